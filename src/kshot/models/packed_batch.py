"""A padded batch packed: its real tokens alone, texts sorted by length, and every index that a forward pass needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_GROUP_COST = 20_000  # measured: a group's kernel calls take the time of about so many pairs of slots


@dataclass(frozen=True)
class Group:
    """Texts of like length, whose attention is computed together.

    Args:
        start: the first token of the group among the packed tokens.
        stop: one past the last.
        texts: the number n of texts.
        width: the length w of the longest.
        mask: which slots are tokens (n, w).
        slots: the padded slot of every token of the group; None where all are equally long.
        gather: for rows of k parts, k being 1 or 3, the pieces of all packed tokens, each of one part and head, that stand in
            each place of (k, n, heads, w); some token's in the padding.
        scatter: the places in (k, n, heads, w) of the pieces of the group's tokens.
    """

    start: int
    stop: int
    texts: int
    width: int
    mask: Tensor
    slots: Tensor | None
    gather: Mapping[int, Tensor]
    scatter: Mapping[int, Tensor]

    @property
    def tokens(self) -> int:
        """The number of tokens of the group."""
        return self.stop - self.start


@dataclass(frozen=True)
class Packing:
    """The tokens of B texts of L padded slots each, packed: N real tokens, by ascending length of their text.

    Args:
        input_ids: (N,) token ids.
        positions: (N,) rows of the position embeddings.
        slots: (N,) the padded slot ``text * L + offset`` of every token.
        starts: (B,) the first token of each text, in packed order.
        lengths: (B,) of the texts, in packed order.
        order: (B,) the original number of each text.
        inverse: (B,) the packed place of each original text.
        groups: texts of like length.
        shape: (B, L) of the padded batch.
    """

    input_ids: Tensor
    positions: Tensor
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    order: Tensor
    inverse: Tensor
    groups: tuple[Group, ...]
    shape: tuple[int, int]


def pack(input_ids: Tensor, mask: Tensor, heads: int, first_position: int = 0) -> Packing | None:
    """Pack a padded batch, on the device that it is on.

    Args:
        input_ids: token ids (B, L).
        mask: 1 for tokens and 0 for padding (B, L).
        heads: the number of attention heads.
        first_position: the position of each text's first token; RoBERTa counts from its padding index + 1.

    Returns:
        None where a text has no token, or has padding before a token: such batches are not packed.
    """
    real = mask.bool()
    count, width = real.shape
    lengths = real.sum(1)
    offsets = torch.arange(width, device=mask.device)
    if count and not (bool((lengths > 0).all()) and bool((real == (offsets < lengths.unsqueeze(1))).all())):
        return None
    order = lengths.argsort(stable=True)
    lengths, real = lengths[order], real[order]
    text, position = real.nonzero(as_tuple=True)
    slots = order[text] * width + position
    return Packing(
        input_ids=input_ids.reshape(-1)[slots],
        positions=position + first_position,
        slots=slots,
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        order=order,
        inverse=order.argsort(),
        groups=_groups(lengths, heads),
        shape=(count, width),
    )


def _groups(lengths: Tensor, heads: int) -> tuple[Group, ...]:
    listed: list[int] = lengths.tolist()
    groups, start = [], 0
    for begin, end in pairwise(_cuts(listed)):
        group = _group(lengths[begin:end], start, sum(listed[begin:end]), listed[end - 1], heads)
        groups.append(group)
        start = group.stop
    return tuple(groups)


def _cuts(lengths: list[int]) -> list[int]:
    """Return where to cut ascending lengths into groups, so that groups and padded pairs of slots cost the least together.

    Example:
        >>> _cuts([9, 9, 10]), _cuts([4] * 50 + [64] * 50)
        ([0, 3], [0, 50, 100])
    """
    ends = [i for i in range(1, len(lengths)) if lengths[i - 1] < lengths[i]] + [len(lengths)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [0])}
    for end in ends if lengths else []:
        pairs = lengths[end - 1] ** 2
        cost, begin = min((cost + (end - begin) * pairs, begin) for begin, (cost, _) in best.items())
        best[end] = (cost + _GROUP_COST, [*best[begin][1], end])
    return best[len(lengths)][1]


def _group(lengths: Tensor, start: int, tokens: int, width: int, heads: int) -> Group:
    device, count = lengths.device, len(lengths)
    mask = torch.arange(width, device=device) < lengths.unsqueeze(1)
    slots = mask.reshape(-1).nonzero().squeeze(1)
    token = torch.full((count * width,), start, device=device)
    token[slots] = torch.arange(start, start + tokens, device=device)
    text, offset = slots.view(-1, 1, 1) // width, slots.view(-1, 1, 1) % width
    head = torch.arange(heads, device=device)
    gather, scatter = {}, {}
    for parts in (1, 3):
        part = torch.arange(parts, device=device).view(-1, 1)
        piece = token.view(1, count, 1, width) * parts * heads + (part * heads + head).view(parts, 1, heads, 1)
        gather[parts] = piece.reshape(-1)
        scatter[parts] = (((part * count + text) * heads + head) * width + offset).reshape(-1)
    equal = tokens == count * width
    return Group(start, start + tokens, count, width, mask, None if equal else slots, gather, scatter)
