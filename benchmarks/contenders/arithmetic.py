"""How many useful operations a meta-step has, and how many the machine can do in a second.

Operations are two a multiply-add of the matrix products, on real tokens: n of a text of n tokens in the linear layers, n x n
in attention. With H the width and M the feed-forward width, a layer's forward pass over that text costs
``2 n (4 H H + 2 H M)`` in linear layers and ``4 n n H`` in attention (scores, then their product with the values).

A product y = x w has one product forward, and two backward: the gradients of x and of w. The graph of an inner step holds
these three, each a product, so going back through it costs two more of each: 1 + 2 + 6 = 9 in all. With F a forward pass::

    second order     9 F(support) a step + 3 F(query)
    first order      3 F(support) a step + 3 F(query)
    head alone       3 F(support) + 3 F(query); its own steps on 5 x H weights are counted too
    prototypes       3 F(support and query)

LoRA's base weights are frozen: there y = x w has one product forward, one backward (x), and two back through those, so 4 a
step and 2 for the queries; below the first adapter nothing is differentiated, and layer 0's query, key and value products
see an input without a gradient: 1 each, and 4 (2) instead of 9 (3) for the A beside them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from contenders import plain
from contenders.workload import LORA, WORKLOADS, Workload, finish_model, make_tasks

TOLERANCE = 0.02


@dataclass(frozen=True)
class Sizes:
    """An encoder's sizes: layers, width and feed-forward width."""

    layers: int
    width: int
    feed_forward: int


MINILM = Sizes(6, 384, 1536)


@dataclass(frozen=True)
class Forward:
    """Operations of a forward pass, by how they are differentiated."""

    linear: float
    first: float  # layer 0's query, key and value, which are a part of `linear`
    attention: float
    adapters: float
    first_adapters: float  # the A of layer 0's query, key and value, a part of `adapters`
    head: float


def forward(lengths: Sequence[int], sizes: Sizes, ways: int) -> Forward:
    """Return the operations of a forward pass over texts of these lengths."""
    tokens, width, rank = sum(lengths), sizes.width, int(LORA["r"])
    shapes = 4 * [(width, width)] + [(width, sizes.feed_forward), (sizes.feed_forward, width)]
    return Forward(
        linear=2.0 * tokens * sizes.layers * sum(a * b for a, b in shapes),
        first=2.0 * tokens * 3 * width * width,
        attention=4.0 * sum(n * n for n in lengths) * width * sizes.layers,
        adapters=2.0 * tokens * rank * sizes.layers * sum(a + b for a, b in shapes),
        first_adapters=2.0 * tokens * rank * 3 * width,
        head=2.0 * len(lengths) * width * ways,
    )


def useful_operations(workload: Workload, sizes: Sizes = MINILM, full: bool = False) -> float:
    """Return the useful operations of one meta-step."""
    total = 0.0
    for texts in make_tasks(workload, full=full):
        support, query = (forward(each.lengths, sizes, workload.ways) for each in texts)
        whole_s, whole_q = (each.linear + each.attention + each.head for each in (support, query))
        if workload.kind == "maml2":
            total += 9 * workload.steps * whole_s + 3 * whole_q
        elif workload.kind == "fomaml":
            total += 3 * workload.steps * whole_s + 3 * whole_q
        elif workload.kind == "anil":
            total += 3 * (whole_s - support.head + whole_q) + 8 * workload.steps * support.head
        elif workload.kind == "protonet":
            total += 3 * (whole_s - support.head + whole_q - query.head)
        else:
            inner = 4 * support.linear - 3 * support.first + 9 * support.adapters - 5 * support.first_adapters
            outer = 2 * query.linear - query.first + 3 * query.adapters - query.first_adapters
            total += workload.steps * (inner + 9 * (support.attention + support.head))
            total += outer + 3 * (query.attention + query.head)
    return total


def check_counts() -> dict[str, float]:
    """Count the operations that PyTorch does for a small encoder without padding; return counted / derived by workload.

    Raises:
        AssertionError: they differ by more than the tolerance.
    """
    from transformers import BertConfig, BertModel

    sizes, ratios = Sizes(2, 128, 512), {}
    config = BertConfig(
        vocab_size=100, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    for kind, usual in WORKLOADS.items():
        workload = replace(usual, tasks=1, ways=5, shots=2, queries=2, length=24, steps=2)
        encoder: Any = BertModel(config, add_pooling_layer=False)
        model = finish_model(encoder, workload)
        step = plain.cached_step if kind == "anil" else plain.step
        with FlopCounterMode(display=False) as counter:
            step(model, make_tasks(workload, vocabulary=100, full=True), workload)
        ratios[kind] = counter.get_total_flops() / useful_operations(workload, sizes, full=True)
    assert all(abs(ratio - 1) < TOLERANCE for ratio in ratios.values()), ratios
    return {kind: round(ratio, 4) for kind, ratio in ratios.items()}


def peak_gflops(dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Return the most billions of operations a second that a matrix product of some size reaches here."""
    best = 0.0
    for rows, inner, columns in ((1024, 384, 1536), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096)):
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        a @ b
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            a @ b
            best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - begin))
    return best
