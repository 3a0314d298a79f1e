"""What learners have in common whose units are pooled from parts of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from kshot.models.learner import Learner
from kshot.tasks import Corpus, Examples

_CHUNK = 256  # texts that are encoded together


class SpannedLearner(Learner):
    """A learner whose batches have spans: texts are tokenised as they come, with the places of their tokens."""

    def units_of(self, text: str) -> int:
        """Return how many units a text has."""
        return 1

    def with_stores(self, corpora: Sequence[Corpus]) -> Self:
        return self

    @torch.no_grad()
    def embed_units(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        quiet = replace(self, dropout=False, names=False)
        vectors = [torch.empty(0, self.parts * self.backbone.hidden_size, device=self.device)]
        for start in range(0, len(texts), _CHUNK):
            chunk = tuple(texts[start : start + _CHUNK])
            vectors.append(quiet.features(self.params, quiet.batch(Examples(chunk, (0,) * len(chunk)), ())))
        return torch.cat(vectors), [self.units_of(text) for text in texts]
