"""Pairs of texts: whether one follows from the other, means the same, or answers it.

Both texts pass through the encoder together, so that each sees the other, and their mean states u and v make up the vector of
the pair: u, v, |u - v| and u * v, in which likeness can be told even by an encoder that was never trained on pairs.

References:
    Conneau, Kiela, Schwenk, Barrault, Bordes 2017, "Supervised Learning of Universal Sentence Representations from Natural
    Language Inference Data", arXiv:1705.02364, section 3.1 (the four parts; there of texts encoded apart).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.models.batch import Batch
from kshot.models.kinds.spanned import SpannedLearner
from kshot.models.kinds.words import windows
from kshot.models.spans import Spans
from kshot.tasks import Examples
from kshot.tasks.columns import find_columns
from kshot.tasks.readers import Record, column_names
from kshot.tasks.schema import ReadOptions, Roles, Row, Schema, WrongRowError, label_of, text_of

SEPARATOR = "\x1e"  # between the two texts, as they are kept
_FIRST = ("text", "sentence1", "premise", "question", "question1", "sentence", "text_a", "query")
_SECOND = ("text_pair", "sentence2", "hypothesis", "question2", "text_b", "passage", "answer", "context")
_SIDES = {"text": _FIRST, "text_pair": _SECOND}


class PairSchema(Schema):
    """Two texts and a label."""

    kind = "pair"

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        names = column_names(sample)
        second = next((name for name in _SECOND if name in names), None)
        if second is None:
            found = find_columns(where, sample, options.text_column, options.label_column, options.task_column)
            second = next((name for name in names if name not in (found.text, found.label, found.task)), "")
        first = options.text_column or next((name for name in _FIRST if name in names and name != second), None)
        known = find_columns(where, sample, first, options.label_column, options.task_column)
        return {"text": known.text, "text_pair": second, "label": known.label, "task": known.task}

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        both = {role: text_of(record, found[role], role) for role in ("text", "text_pair")}
        return Row(self.asked(both), (label_of(record, found["label"]),))

    def asked(self, value: Any) -> str:
        if not isinstance(value, Mapping):
            raise WrongRowError('one text, and {"text", "text_pair"} is expected')
        both = {role: next((name for name in known if name in value), known[0]) for role, known in _SIDES.items()}
        first, second = (text_of(dict(value), name) for name in both.values())
        return first.replace(SEPARATOR, " ") + SEPARATOR + second.replace(SEPARATOR, " ")

    def shown(self, text: str) -> str:
        return text.replace(SEPARATOR, " | ")


class PairLearner(SpannedLearner):
    """A learner of two texts that see each other."""

    kind = "pair"
    parts = 4

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        pairs = [text.split(SEPARATOR) for text in examples.texts]
        found = windows(self.backbone, [first for first, *_ in pairs], [second for _, second, *_ in pairs])
        listed = list[tuple[int, int, int]]()
        for row, sides in enumerate(found.sides):
            listed += [(row, at, 2 * row + side) for at, side in enumerate(sides) if side is not None]
        rows, offsets, span = torch.tensor(listed, dtype=torch.long).view(-1, 3).unbind(1)
        spans = Spans(rows, offsets, span, 2 * len(pairs), 2)
        batch = replace(self.annotated(examples, labels), input_ids=found.input_ids, mask=found.mask, spans=spans)
        return batch.to(self.device)

    def features(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        if batch.features is not None:
            return batch.features
        u, v = (F.normalize(side, dim=-1) for side in super().features(params, batch).chunk(2, -1))
        return torch.cat([u, v, (u - v).abs(), u * v * u.shape[-1] ** 0.5], -1)
