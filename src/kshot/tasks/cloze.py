"""Tasks from texts without labels: which word is hidden in a text.

A word that some texts have is hidden in them, and is their label; so any texts of a domain make a task of hundreds of labels to
meta-train on, alone or beside labelled ones. Labels are numbers, whose names say nothing: the words themselves would.

References:
    Bansal, Jha, Munkhdalai, McCallum 2020, "Self-Supervised Meta-Learning for Few-Shot Natural Language Classification Tasks",
    arXiv:2009.08445 (SMLMT).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kshot.errors import DataError
from kshot.tasks.readers import Record

_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Cloze:
    """How words are chosen.

    Args:
        words: the most words, drawn from those that qualify.
        least: texts that a word needs.
        most_share: of all texts that a word may be in; those in more are grammar.
        mask: what stands for the word.
        seed: of the draw.
    """

    words: int = 500
    least: int = 12
    most_share: float = 0.02
    mask: str = "[MASK]"
    seed: int = 0


def cloze_records(texts: Callable[[], Iterator[str]], how: Cloze | None = None) -> Iterator[tuple[int, Record]]:
    """Yield ``(number, {"text", "label"})`` for each text that has one of the chosen words, its rarest one hidden.

    Args:
        texts: starts the texts from their beginning; they are read twice.
        how: how words are chosen.

    Raises:
        DataError: fewer than two words qualify.
    """
    how = how or Cloze()
    counts, total = Counter[str](), 0
    for text in texts():
        counts.update(set(_words(text)))
        total += 1
    most = max(how.most_share * total, 2 * how.least)
    able = sorted(word for word, count in counts.items() if how.least <= count <= most)
    if len(able) < 2:
        raise DataError(
            f"Of {total} text(s), {len(able)} word(s) are in {how.least} to {most:.0f} of them.",
            "To make tasks of hidden words, at least two are needed.",
            "Give more texts.",
        )
    drawn = np.random.default_rng(how.seed).permutation(len(able))[: how.words]
    label = {able[index]: number for number, index in enumerate(sorted(drawn.tolist()))}
    for number, text in enumerate(texts(), 1):
        inside = [word for word in dict.fromkeys(_words(text)) if word in label]
        if inside:
            word = min(inside, key=lambda one: (counts[one], one))
            hidden = re.sub(rf"\b{re.escape(word)}\b", how.mask.replace("\\", r"\\"), text, flags=re.IGNORECASE)
            yield number, {"text": hidden, "label": str(label[word])}


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in _WORD.finditer(text)]
