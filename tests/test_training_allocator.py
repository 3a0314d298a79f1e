"""Freed memory is kept while training, and returned afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kshot.training import allocator
from kshot.training.allocator import kept_memory

# in a process of its own: what other tests left in the heap would be counted too
MEASURED = """
import json, os, resource
from pathlib import Path
import torch
from kshot.training.allocator import kept_memory

SIZE = 64 << 20  # bytes, above glibc's largest threshold of its own

def faults():
    torch.empty(SIZE, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(SIZE, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

result = {"usual": faults()}
try:
    with kept_memory() as result["kept"]:
        result["within"] = faults()
        result["held"] = resident()
        raise ValueError
except ValueError:
    result |= {"left": resident(), "afterwards": faults()}
print(json.dumps(result))
"""


@pytest.mark.skipif(allocator._allocator() is None, reason="needs glibc and an environment that leaves malloc alone")
def test_pages_are_faulted_in_once_and_given_back_at_the_end_even_by_an_error():
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)

    assert found["kept"]
    assert found["within"] < found["usual"] / 4
    assert found["left"] < found["held"] - (32 << 20)
    assert found["afterwards"] > found["usual"] / 2


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_an_allocator_that_the_user_set_up_is_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    with kept_memory() as kept:
        assert not kept


def test_it_can_be_left_out():
    with kept_memory(False) as kept:
        assert not kept
