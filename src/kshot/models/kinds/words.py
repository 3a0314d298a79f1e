"""From words to tokens and back: which tokens of a text belong to which of its words."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
class Windows:
    """Texts as padded tokens, a long one as several overlapping windows.

    Args:
        input_ids, mask: (R, L).
        samples: the text of each row.
        offsets: for each row the characters of its text that each token stands for; none for special tokens.
        sides: for each row and token whether it is of the first or the second text of a pair (0, 1); None for special tokens.
    """

    input_ids: Tensor
    mask: Tensor
    samples: list[int]
    offsets: list[list[tuple[int, int]]]
    sides: list[list[int | None]]

    def within(self, row: int, place: tuple[int, int]) -> list[int]:
        """Return the tokens of a row whose last character lies in some characters of its text.

        The last one, since some tokenizers count the blank before a word to its token.
        """
        return [at for at, (start, end) in enumerate(self.offsets[row]) if end > start and place[0] < end <= place[1]]


def windows(backbone: Backbone, texts: Sequence[str], others: Sequence[str] | None = None, cut: str = "") -> Windows:
    """Tokenise texts, or pairs of texts, and tell where their tokens are.

    A long text takes several windows. Of a long pair the longer text is cut, or with ``cut`` ``second`` the second one takes
    several windows.

    Raises:
        BackboneError: the tokenizer does not tell where its tokens are.
    """
    tokenizer, prefix, longest = backbone.tokenizer, backbone.spec.prefix or "", backbone.max_length
    if not tokenizer.is_fast:
        raise BackboneError(
            f"The tokenizer of the backbone '{backbone.spec.name}' does not say where in a text its tokens are.",
            "A fast tokenizer (with a tokenizer.json) is expected for kinds of task other than classification.",
        )
    if not texts:
        return Windows(*pad([], 0), [], [], [])
    stride = max(0, min(longest // 4, longest - tokenizer.num_special_tokens_to_add() - 1))
    several = {"stride": stride, "return_overflowing_tokens": True} if others is None or cut else {}
    first = [prefix + text for text in texts]
    if cut:  # so that there is room for a part of the second text
        first = [text[: 2 * longest] for text in first]
    options = {"truncation": f"only_{cut}" if cut else True, "max_length": longest, "return_offsets_mapping": True, **several}
    found = tokenizer(first, **options) if others is None else tokenizer(first, list(others), **options)
    ids, mask = pad(found["input_ids"], tokenizer.pad_token_id or 0)
    shift = len(prefix)
    sides = [list(found.sequence_ids(row)) for row in range(len(ids))]
    offsets = [
        [(start - shift, end - shift) if side == 0 else (start, end) for (start, end), side in zip(row, own, strict=True)]
        for row, own in zip(found["offset_mapping"], sides, strict=True)
    ]
    return Windows(ids, mask, list(found.get("overflow_to_sample_mapping", range(len(texts)))), offsets, sides)


def word_spans(found: Windows, words: Sequence[Sequence[tuple[int, int]]]) -> Spans:
    """Return a span for every word, in the order of texts and words, given the places of each text's words.

    A word has its tokens from the window in which there is most to see on both sides of it.
    """
    first = list(accumulate(map(len, words), initial=0))
    best: dict[int, tuple[int, int, list[int]]] = {}  # by word: how much is around it, its row and tokens
    for row, (sample, offsets) in enumerate(zip(found.samples, found.offsets, strict=True)):
        places = words[sample]
        starts, mine = [start for start, _ in places], dict[int, list[int]]()
        for at, (start, end) in enumerate(offsets):
            word = bisect_right(starts, end - 1) - 1
            if end > start and word >= 0 and end <= places[word][1]:
                mine.setdefault(first[sample] + word, []).append(at)
        for word, tokens in mine.items():
            around = min(tokens[0], len(offsets) - 1 - tokens[-1])
            if word not in best or around > best[word][0]:
                best[word] = (around, row, tokens)
    listed = [(row, at, word) for word, (_, row, tokens) in sorted(best.items()) for at in tokens]
    rows, places_in_rows, numbers = torch.tensor(listed, dtype=torch.long).view(-1, 3).unbind(1)
    return Spans(rows, places_in_rows, numbers, first[-1])
