"""Batches: padded tokens (or features already computed) with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kshot.models.spans import Spans


@dataclass(frozen=True)
class Batch:
    """Examples ready for a learner. What is labelled is a unit: a text, or of some kinds a word of it.

    Args:
        input_ids: token ids (R, L), or None where ``features`` are given; a row a text, but for long ones that take several.
        mask: 1 for tokens and 0 for padding (R, L).
        labels: class indices of the units (B,).
        ways: the number of classes N.
        features: vectors of the units (B, H) that stand for the tokens; a frozen or already applied encoder is not run again.
        untouched: vectors of the same units by the encoder as it was before meta-training, where a run has it.
        spans: which tokens are pooled to the units' vectors; None where each text is a unit.
        units: which of all the units of its examples the batch has; None for all.
        sizes: the units of each example; empty where each text is one.
        decoder_ids: what a decoder reads beside an encoder (R, M).
        targets: what each example is to be answered with, of kinds where that is not its labels.
        states: what enters layer ``first_layer``, where those below were already applied; one tensor a pass of the learner.
        first_layer: see ``states``.
        names: how many of the examples, the last ones, are the names of their labels.
        texts: the texts themselves, where they are at hand, for what looks at their words.
        memo: what a learner works out of the tokens once and uses in every inner step; never copied to another batch.
    """

    labels: Tensor
    ways: int
    input_ids: Tensor | None = None
    mask: Tensor | None = None
    features: Tensor | None = None
    states: tuple[Tensor, ...] = ()
    first_layer: int = 0
    names: int = 0
    texts: tuple[str, ...] = ()
    untouched: Tensor | None = None
    spans: Spans | None = None
    units: Tensor | None = None
    sizes: tuple[int, ...] = ()
    targets: tuple[Any, ...] = ()
    decoder_ids: Tensor | None = None
    memo: dict[str, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        moved = {
            name: value.to(device)
            for name in ("labels", "input_ids", "mask", "features", "untouched", "spans", "units", "decoder_ids")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def with_features(self, features: Tensor) -> Batch:
        """Return the batch with its tokens replaced by the units' vectors."""
        return replace(self, input_ids=None, mask=None, spans=None, features=features)

    def with_states(self, states: tuple[Tensor, ...], first_layer: int) -> Batch:
        """Return the batch with its lower layers applied."""
        batch = replace(self, states=states, first_layer=first_layer)
        batch.memo.update(self.memo)  # the tokens are the same
        return batch


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode as two batches that share the classes."""

    support: Batch
    query: Batch

    def __post_init__(self) -> None:
        assert self.support.ways == self.query.ways

    @property
    def ways(self) -> int:
        """The number of classes N."""
        return self.support.ways


def join(first: Batch, second: Batch) -> Batch:
    """Return one batch with the units of both, names being examples like any other."""
    labels = torch.cat([first.labels, second.labels])
    if first.features is not None and second.features is not None:
        return Batch(labels, first.ways, features=torch.cat([first.features, second.features]))
    assert first.input_ids is not None and second.input_ids is not None
    assert first.mask is not None and second.mask is not None
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])
    ids, mask = (
        torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
        for parts in ((first.input_ids, second.input_ids), (first.mask, second.mask))
    )
    read = (first.decoder_ids, second.decoder_ids)
    if read[0] is not None and read[1] is not None:
        widest = max(part.shape[1] for part in read if part is not None)
        decoder_ids = torch.cat([torch.nn.functional.pad(p, (0, widest - p.shape[1])) for p in read if p is not None])
    else:
        decoder_ids = None
    both = first.spans is not None and second.spans is not None
    spans = first.spans.followed_by(second.spans, len(first.input_ids)) if both else None  # type: ignore[union-attr, arg-type]
    sizes = first.sizes + second.sizes
    return Batch(labels, first.ways, ids, mask, spans=spans, sizes=sizes, decoder_ids=decoder_ids)


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices of texts of like length, shortest first, so that a group padded to its longest has few wasted tokens.

    Args:
        lengths: the number of tokens of each text.
        budget: the most padded tokens a group; a longer text stands alone.

    Example:
        >>> by_length([9, 2, 3, 2], budget=6)
        [[1, 3], [2], [0]]
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pad(tokens: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Return token ids (B, L) padded on the right to the longest, and the mask (B, L)."""
    longest = max((len(ids) for ids in tokens), default=0)
    input_ids = torch.full((len(tokens), longest), padding, dtype=torch.long)
    mask = torch.zeros(len(tokens), longest, dtype=torch.long)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask[row, : len(ids)] = 1
    return input_ids, mask
