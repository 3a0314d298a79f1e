"""From words to tokens and back: which tokens of a text belong to which of its words."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.errors import BackboneError
from kshot.models.backbones import Backbone
from kshot.models.batch import pad
from kshot.models.spans import Spans

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")


def is_ideograph(character: str) -> bool:
    """Tell whether a character is written without spaces around it, as those of Chinese and Japanese are."""
    return unicodedata.east_asian_width(character) in "WF" and unicodedata.category(character) != "Zs"


def split_words(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text are; ideographs and signs are words of their own.

    Example:
        >>> [("It's 3 p.m. 北京")[a:b] for a, b in split_words("It's 3 p.m. 北京")]
        ["It's", '3', 'p', '.', 'm', '.', '北', '京']
    """
    words = []
    for match in _WORD.finditer(text):
        start = match.start()
        for place in range(match.start(), match.end()):
            if is_ideograph(text[place]):
                words += [(start, place)] * (start < place) + [(place, place + 1)]
                start = place + 1
        words += [(start, match.end())] * (start < match.end())
    return words


def layout(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return words as a text, blanks between them but for ideographs, and where each word is in it.

    Example:
        >>> layout(["in", "北", "京"])
        ('in 北京', [(0, 2), (3, 4), (4, 5)])
    """
    pieces, places, at, before = list[str](), list[tuple[int, int]](), 0, ""
    for word in words:
        if before and not (is_ideograph(before[-1]) and is_ideograph(word[0])):
            pieces.append(" ")
            at += 1
        pieces.append(word)
        places.append((at, at + len(word)))
        at, before = at + len(word), word
    return "".join(pieces), places


@dataclass(frozen=True)
class Tokens:
    """Texts as padded tokens, with the tokens of every word.

    Args:
        input_ids, mask: (R, L); a long text takes several rows.
        spans: a span a word, in the order of texts and words.
        windowed: how many texts take several rows.
    """

    input_ids: Tensor
    mask: Tensor
    spans: Spans
    windowed: int = 0


def tokenized(backbone: Backbone, texts: Sequence[tuple[str, Sequence[tuple[int, int]]]]) -> Tokens:
    """Tokenise texts, given with the places of their words.

    A text that is longer than the model can take is cut into overlapping windows; a word has its tokens from the window in
    which there is most to see on both sides of it.

    Raises:
        BackboneError: the tokenizer does not tell where its tokens are.
    """
    tokenizer, prefix = backbone.tokenizer, backbone.spec.prefix or ""
    if not tokenizer.is_fast:
        raise BackboneError(
            f"The tokenizer of the backbone '{backbone.spec.name}' does not say where in a text its tokens are.",
            "A fast tokenizer (with a tokenizer.json) is expected to tell words apart.",
        )
    longest = backbone.max_length
    found = tokenizer(
        [prefix + text for text, _ in texts],
        truncation=True,
        max_length=longest,
        stride=max(0, min(longest // 4, longest - tokenizer.num_special_tokens_to_add() - 1)),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    ) if texts else {"input_ids": [], "overflow_to_sample_mapping": [], "offset_mapping": []}  # fmt: skip
    first = [0]
    for _, places in texts:
        first.append(first[-1] + len(places))
    best: dict[int, tuple[int, int, list[int]]] = {}  # by word: how much is around it, its row and tokens
    for row, (sample, offsets) in enumerate(zip(found["overflow_to_sample_mapping"], found["offset_mapping"], strict=True)):
        places = texts[sample][1]
        starts, mine = [start for start, _ in places], dict[int, list[int]]()
        for at, (start, end) in enumerate(offsets):
            last = end - 1 - len(prefix)  # some tokenizers count the blank before a word to its token
            word = bisect_right(starts, last) - 1
            if end > start and word >= 0 and last < places[word][1]:
                mine.setdefault(first[sample] + word, []).append(at)
        for word, at_tokens in mine.items():
            around = min(at_tokens[0], len(offsets) - 1 - at_tokens[-1])
            if word not in best or around > best[word][0]:
                best[word] = (around, row, at_tokens)
    listed = [(row, at, word) for word, (_, row, at_tokens) in sorted(best.items()) for at in at_tokens]
    rows, offsets, words = torch.tensor(listed, dtype=torch.long).view(-1, 3).unbind(1)
    ids, mask = pad(found["input_ids"], tokenizer.pad_token_id or 0)
    windowed = len({s for s in found["overflow_to_sample_mapping"] if found["overflow_to_sample_mapping"].count(s) > 1})
    return Tokens(ids, mask, Spans(rows, offsets, words, first[-1]), windowed)
