"""Inner optimisers as pure functions, differentiable in everything that they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kshot.models.learner import Params

Rates = Mapping[str, float | Tensor]
"""The rate of each parameter: a number, or a tensor of one element or of the parameter's shape."""

InnerOptimizer = Callable[[Params, Params, Rates, Params, int], tuple[Params, Params]]
"""``(phi, gradients, rates, state, t) -> (phi, state)`` with t counted from 0. The state is empty before the first step."""

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def sgd(phi: Params, grads: Params, rates: Rates, state: Params, t: int) -> tuple[Params, Params]:
    """``phi - alpha g``."""
    return {name: _less(value, grads[name], rates[name]) for name, value in phi.items()}, state


def momentum(phi: Params, grads: Params, rates: Rates, state: Params, t: int) -> tuple[Params, Params]:
    """``m <- mu m + g; phi - alpha m``, PyTorch's SGD with momentum 0.9 (Sutskever et al. 2013)."""
    m = {name: MOMENTUM * state[f"{name}/m"] + g if state else g for name, g in grads.items()}
    phi = {name: _less(value, m[name], rates[name]) for name, value in phi.items()}
    return phi, {f"{name}/m": value for name, value in m.items()}


def adam(phi: Params, grads: Params, rates: Rates, state: Params, t: int) -> tuple[Params, Params]:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), with epsilon under the root.

    ``sqrt(v) + epsilon`` has an infinite derivative at v = 0, which a parameter without a gradient has; ``sqrt(v + epsilon^2)``
    has none and agrees to epsilon.
    """
    moved, kept = Params(), Params()
    for name, g in grads.items():
        m, v = state.get(f"{name}/m", torch.zeros_like(g)), state.get(f"{name}/v", torch.zeros_like(g))
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        unbiased_m, unbiased_v = m / (1 - BETA1 ** (t + 1)), v / (1 - BETA2 ** (t + 1))
        moved[name] = _less(phi[name], unbiased_m / (unbiased_v + EPSILON**2).sqrt(), rates[name])
        kept |= {f"{name}/m": m, f"{name}/v": v}
    return moved, kept


def _less(value: Tensor, direction: Tensor, rate: float | Tensor) -> Tensor:
    return value - rate * direction if isinstance(rate, Tensor) else value.sub(direction, alpha=rate)


OPTIMIZERS: dict[str, InnerOptimizer] = {"sgd": sgd, "momentum": momentum, "adam": adam}
