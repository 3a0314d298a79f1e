"""The hand-written operations against finite differences: values, first and second derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import in_groups
from torch import Tensor

from kshot.models.low_rank import low_rank
from kshot.models.ops import ACTIVATIONS, activate, layer_norm, linear
from kshot.models.packed_attention import attention
from kshot.models.packed_batch import pack


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


MASK = torch.arange(4) < torch.tensor([[2], [4], [2], [3]])
PACKING = in_groups(lambda: pack(torch.zeros(4, 4, dtype=torch.long), MASK, 2), cost=8)  # of texts (2, 2) and (3, 4)
FACTORS = [(doubles(g.texts * 2, g.width, g.width, seed=4) > 0) * 1.5 for g in PACKING.groups]
OPERATIONS = {
    "linear": (lambda x, *p: linear(x, p[:2], p[2:]), [(3, 4), (2, 4), (3, 4), (2,), (3,)]),
    "linear without biases": (lambda x, w: linear(x, [w], []), [(3, 4), (2, 4)]),
    "low rank": (lambda y, x, a, b: low_rank(1 * y, x, [a], [b], 0.7), [(5, 3), (5, 4), (2, 4), (3, 2)]),
    "low rank of two layers": (
        lambda y, x, a, b, c, d: low_rank(1 * y, x, [a, c], [b, d], 0.7),
        [(5, 5), (5, 4), (2, 4), (3, 2), (1, 4), (2, 1)],
    ),
    "low rank and a plain layer": (
        lambda y, x, a, b: low_rank(1 * y, x, [x.new_zeros(0, 4), a], [x.new_zeros(2, 0), b], 0.7),
        [(5, 5), (5, 4), (2, 4), (3, 2)],
    ),
    "layer_norm": (lambda x, w, b: layer_norm(x, w, b, 1e-2), [(3, 5), (5,), (5,)]),
    "attention": (lambda x: attention(x, PACKING.groups, 2, 0.7), [(11, 12)]),
    "attention with dropout": (lambda x: attention(x, PACKING.groups, 2, 0.7, FACTORS), [(11, 12)]),
    **{name: (lambda x, name=name: activate(x, name), [(4, 3)]) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_of_an_operation_are_those_of_finite_differences(name):
    operation, shapes = OPERATIONS[name]
    inputs = [doubles(*shape, seed=seed) for seed, shape in enumerate(shapes)]

    assert torch.autograd.gradcheck(operation, inputs)
    assert torch.autograd.gradgradcheck(operation, inputs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_only_the_derivatives_that_are_asked_for_are_needed(name):
    """Each input alone may be what moves: first and second derivative by it are the same as among all."""
    operation, shapes = OPERATIONS[name]
    inputs = [doubles(*shape, seed=seed) for seed, shape in enumerate(shapes)]

    def both(asked: Sequence[int]) -> list[Tensor]:
        at = [x if i in asked else x.detach() for i, x in enumerate(inputs)]
        value = operation(*at).sin().sum()
        first = torch.autograd.grad(value, [at[i] for i in asked], create_graph=True)
        return [first[0], *torch.autograd.grad(first[0].square().sum(), [at[asked[0]]])]

    for number in range(len(inputs)):
        others = [i for i in range(len(inputs)) if i != number]
        for alone, among in zip(both([number]), both([number, *others]), strict=True):
            torch.testing.assert_close(alone, among, rtol=1e-11, atol=1e-13)


def test_a_third_derivative_is_refused():
    x = doubles(2, 3)
    first = torch.autograd.grad(layer_norm(x, doubles(3, seed=1), doubles(3, seed=2), 1e-5).pow(3).sum(), x, create_graph=True)[
        0
    ]
    second = torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float32])
def test_a_low_rank_update_of_narrow_factors_is_near(narrow):
    y, x, a, b = (doubles(*shape, seed=seed) for seed, shape in enumerate([(5, 3), (5, 4), (2, 4), (3, 2)]))

    def both(narrow: torch.dtype | None) -> list[Tensor]:
        first = torch.autograd.grad(low_rank(1 * y, x, [a], [b], 0.7, narrow).sin().sum(), [y, x, a, b], create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), [y, x, a, b])]

    for found, exact in zip(both(narrow), both(None), strict=True):
        assert found.dtype == torch.float64
        assert float((found - exact).detach().norm() / exact.detach().norm()) < 4 * torch.finfo(narrow).eps
