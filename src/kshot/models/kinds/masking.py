"""Masked language modelling: words that are hidden in a text, and what they were.

Whole words are masked, not their pieces, which would give each other away; Chinese words as a segmenter (jieba) finds them
where that is installed, single characters where not.

References:
    Devlin, Chang, Lee, Toutanova 2019, "BERT", arXiv:1810.04805 (15 % of the tokens, of which 80 % masked, 10 % random).
    Cui, Che, Liu, Qin, Yang 2021, "Pre-Training with Whole Word Masking for Chinese BERT", arXiv:1906.08101.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.errors import BackboneError
from kshot.models.batch import Batch
from kshot.models.kinds.generation import GenerativeLearner, LanguageSchema
from kshot.models.kinds.words import Windows, is_ideograph, split_words, windows, word_spans
from kshot.models.spans import Placed, Spans
from kshot.tasks import Examples
from kshot.tasks.corpus import text_hash

SHARE = 0.15  # of a text's tokens
_RANDOM, _KEPT = 0.1, 0.1  # of those that were chosen


class MaskedSchema(LanguageSchema):
    """Plain texts: what is learned are words that are hidden in them."""

    kind = "mlm"


class MaskedLearner(GenerativeLearner):
    """An encoder with its own output layer, of the BERT family or another masked language model."""

    kind = "mlm"
    head = "mlm"

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        return self.masked(examples.texts)

    def masked(self, texts: Sequence[str], seed: int = 0) -> Batch:
        """Return texts with words masked, the same ones for the same text and seed.

        Raises:
            BackboneError: the tokenizer has no token for what is masked.
        """
        tokenizer = self.backbone.tokenizer
        if tokenizer.mask_token_id is None:
            raise BackboneError(
                f"The tokenizer of the backbone '{self.backbone.spec.name}' has no token for a masked word.",
                "A masked language model such as BERT is expected.",
                "For a decoder name --kind lm.",
            )
        found = windows(self.backbone, texts)
        words = [word_places(text) for text in texts]
        spans = word_spans(found, words)
        ids, listed, wanted = found.input_ids.clone(), list[tuple[int, int]](), list[int]()
        first = np.cumsum([0, *map(len, words)])
        by_word = _tokens_of(spans)
        for number, text in enumerate(texts):
            rng = np.random.default_rng([seed, text_hash(text) & 0x7FFFFFFF])
            for row, at in self._chosen(rng, by_word[first[number] : first[number + 1]], found):
                listed.append((row, at))
                wanted.append(int(found.input_ids[row, at]))
                drawn = rng.random()
                if drawn >= _KEPT:
                    hidden = tokenizer.mask_token_id
                    ids[row, at] = int(rng.integers(len(tokenizer))) if drawn < _KEPT + _RANDOM else hidden
        rows, offsets = torch.tensor(listed, dtype=torch.long).view(-1, 2).unbind(1)
        places = Spans(rows, offsets, torch.arange(len(listed)), len(listed))
        labels = torch.tensor(wanted, dtype=torch.long)
        return Batch(labels, 0, ids, found.mask, spans=places, targets=tuple(texts)).to(self.device)

    def _chosen(
        self, rng: np.random.Generator, words: Sequence[list[tuple[int, int]]], found: Windows
    ) -> list[tuple[int, int]]:
        """Draw whole words until their tokens are so many; at least one."""
        total, chosen = sum(map(len, words)), list[tuple[int, int]]()
        most = max(1, round(SHARE * total))
        for index in rng.permutation(len(words)):
            if chosen and len(chosen) + len(words[index]) > most:
                continue
            chosen += words[index]
            if len(chosen) >= most:
                break
        return sorted(chosen)

    def logits(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the scores (T, V) of the vocabulary for each masked token; the output layer sees these alone."""
        assert batch.spans is not None
        passes = self._passes(batch)
        placed = (self._placed(params, one, None, 0) for one in passes)
        return self.backbone.output_scores(params, batch.spans.pooled(placed))

    def _placed(self, params: Mapping[str, Tensor], one: Any, states: Tensor | None, first_layer: int) -> Placed:
        if one.packing is not None:  # the packed forward knows the encoder's own names
            params = {self._inner_name(name): value for name, value in params.items()}
        return super()._placed(params, one, states, first_layer)

    def _inner_name(self, name: str) -> str:
        owner, _, rest = name.partition(".")
        return f"{owner}.{rest.removeprefix(self.backbone.model.base_model_prefix + '.')}"

    def _token_states(self, params: Mapping[str, Tensor], one: Any) -> Tensor:
        self.backbone.model.train(self.dropout)
        states = self.backbone.states(params, one.input_ids, one.mask)
        return states.to(next(iter(params.values())).dtype)


def _tokens_of(spans: Spans) -> list[list[tuple[int, int]]]:
    """Return the places of each span's tokens."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(spans.count)]
    for row, at, word in zip(spans.rows.tolist(), spans.offsets.tolist(), spans.span.tolist(), strict=True):
        found[word].append((row, at))
    return found


def word_places(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text are, Chinese ones as a segmenter finds them."""
    places = split_words(text)
    cut = _segmenter()
    if cut is None or not any(is_ideograph(character) for character in text):
        return places
    joined, at = list[tuple[int, int]](), 0
    for word in cut(text):
        inside = split_words(word)
        if len(inside) > 1 and all(is_ideograph(c) for c in word):
            joined.append((at, at + len(word)))
        else:
            joined += [(at + start, at + end) for start, end in inside]
        at += len(word)
    return joined


@cache
def _segmenter() -> Any:
    """Return jieba's segmenter; None where it is not installed."""
    try:
        import jieba
    except ImportError:
        return None
    import logging

    jieba.setLogLevel(logging.WARNING)
    return jieba.cut
