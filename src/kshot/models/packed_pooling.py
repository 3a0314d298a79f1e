"""Text vectors of packed token states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kshot.models.packed_batch import Group, Packing


def _by_text(states: Tensor, packing: Packing, pool: Callable[[Tensor, Group], Tensor]) -> Tensor:
    """Pool the token states (N, H) of each group of texts to (n, H), and give the texts (B, H) in their original order."""
    if not packing.groups:
        return states.new_empty(0, states.shape[1])
    parts = torch.split(states, [group.tokens for group in packing.groups])
    pooled = [pool(part, group) for part, group in zip(parts, packing.groups, strict=True)]
    return torch.cat(pooled)[packing.inverse]


def _padded(states: Tensor, group: Group, filler: float) -> Tensor:
    """Return a group's token states as (n, w, H), with ``filler`` in the padding."""
    if group.slots is not None:
        full = states.new_full((group.texts * group.width, states.shape[1]), filler)
        states = full.index_copy(0, group.slots, states)
    return states.view(group.texts, group.width, -1)


def _mean(states: Tensor, group: Group) -> Tensor:
    return _padded(states, group, 0.0).sum(1) / group.mask.sum(1, keepdim=True)


def _maximum(states: Tensor, group: Group) -> Tensor:
    return _padded(states, group, torch.finfo(states.dtype).min).amax(1)


PACKED_POOLINGS: dict[str, Callable[[Tensor, Packing], Tensor]] = {
    "mean": lambda states, packing: _by_text(states, packing, _mean),
    "cls": lambda states, packing: states[packing.starts][packing.inverse],
    "max": lambda states, packing: _by_text(states, packing, _maximum),
}
"""By the names that `BackboneSpec` uses: functions of token states (N, H) and packing, to (B, H)."""
