"""How the token states of a text become one vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def _maximum(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(states.dtype).min).amax(1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


# from token states (B, L, H) and mask (B, L), padded on the right, to text vectors (B, H)
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _first, "max": _maximum, "last": _last}
