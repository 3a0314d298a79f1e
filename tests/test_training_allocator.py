"""Freed memory is kept while training, and returned afterwards."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from kshot.training import allocator
from kshot.training.allocator import kept_memory

SIZE = 64 << 20  # bytes, above glibc's largest threshold of its own

glibc = pytest.mark.skipif(allocator._allocator() is None, reason="needs glibc and an environment that leaves malloc alone")


def faults_of_reuse(rounds: int = 8) -> int:
    """Return the page faults of allocating, filling and freeing the same size over and over."""
    torch.zeros(SIZE, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.empty(SIZE, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Return the bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@glibc
def test_pages_are_faulted_in_once_and_given_back_at_the_end():
    usual = faults_of_reuse()
    with kept_memory() as kept:
        assert kept
        within = faults_of_reuse()
        before = resident()
    assert within < usual / 4
    assert resident() < before - SIZE / 2
    assert faults_of_reuse() > within  # as it was


@glibc
def test_it_ends_with_an_error_too():
    with pytest.raises(ValueError, match="no"), kept_memory():
        raise ValueError("no")
    assert faults_of_reuse() > 8


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_an_allocator_that_the_user_set_up_is_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    with kept_memory() as kept:
        assert not kept


def test_it_can_be_left_out():
    with kept_memory(False) as kept:
        assert not kept
