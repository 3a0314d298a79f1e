"""Vectors of parts of texts: of words, of entities, of the tokens of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """Token states of some of a batch's rows.

    Args:
        rows: which rows.
        width: the padded length of a row.
        states: their token states (n, H).
        slots: the padded slot ``row * width + offset`` of each state (n,); None where all slots are there, in order.
    """

    rows: Sequence[int]
    width: int
    states: Tensor
    slots: Tensor | None = None


@dataclass(frozen=True)
class Spans:
    """Which tokens of a batch make up each vector: the mean of a span's token states, a span without tokens being zero.

    Args:
        rows: the row of each token in the batch's padded tokens (T,).
        offsets: its place in that row (T,).
        span: the span that it belongs to (T,).
        count: the number of spans.
        parts: the spans of a unit, whose vectors stand side by side in the unit's own.
    """

    rows: Tensor
    offsets: Tensor
    span: Tensor
    count: int
    parts: int = 1

    @property
    def units(self) -> int:
        """The number of vectors."""
        return self.count // self.parts

    def to(self, device: torch.device | str) -> Spans:
        """Return the spans on another device."""
        return replace(self, rows=self.rows.to(device), offsets=self.offsets.to(device), span=self.span.to(device))

    def only(self, units: Tensor) -> Spans:
        """Return some units (n,), in that order."""
        spans = (units.unsqueeze(1) * self.parts + torch.arange(self.parts, device=units.device)).flatten()
        place = torch.full((self.count,), -1, device=units.device)
        place[spans] = torch.arange(len(spans), device=units.device)
        kept = place[self.span] >= 0
        return Spans(self.rows[kept], self.offsets[kept], place[self.span[kept]], len(spans), self.parts)

    def followed_by(self, other: Spans, rows: int) -> Spans:
        """Return the units of two batches that are joined, the first one having so many rows."""
        own, offsets = torch.cat([self.rows, other.rows + rows]), torch.cat([self.offsets, other.offsets])
        return Spans(own, offsets, torch.cat([self.span, other.span + self.count]), self.count + other.count, self.parts)

    def pooled(self, passes: Iterable[Placed]) -> Tensor:
        """Return the vectors of the units (units, parts * H), differentiable twice in the token states."""
        total: Tensor | None = None
        for one in passes:
            device = one.states.device
            rows = torch.tensor(one.rows, dtype=torch.long, device=device)
            every = torch.cat([rows, self.rows])
            place = torch.full((int(every.max()) + 1 if len(every) else 0,), -1, device=device)
            place[rows] = torch.arange(len(rows), device=device)
            here = (place[self.rows] >= 0).nonzero().squeeze(1)
            at = place[self.rows[here]] * one.width + self.offsets[here]
            if one.slots is not None:
                index = torch.zeros(len(one.rows) * one.width, dtype=torch.long, device=device)
                index[one.slots] = torch.arange(len(one.slots), device=device)
                at = index[at]
            empty = one.states.new_zeros(self.count, one.states.shape[1])
            part = empty.index_add(0, self.span[here], one.states.index_select(0, at))
            total = part if total is None else total + part
        assert total is not None
        counts = self.span.bincount(minlength=self.count).clamp_min(1).unsqueeze(1)
        return (total / counts).view(self.units, -1)
