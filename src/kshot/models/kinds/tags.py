"""Tags of words: the schemes that files come in, what they mean, and what predictions become."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from kshot.tasks.schema import WrongRowError

Entity = tuple[int, int, str]
"""The first word, the one past the last, and the type."""

_PREFIXED = re.compile(r"^([BIESLUM])[-_](.+)$")
_OPENS, _CLOSES = frozenset("BSU"), frozenset("ESLU")


def to_bio(tags: Sequence[str]) -> tuple[list[str], bool]:
    """Return tags in the scheme BIO, and whether some were mended: an I- without a B- before it begins an entity.

    BIO, BIOES, BILOU and BMES are read, and types without a prefix, where words of one type in a row are one entity.

    Raises:
        WrongRowError: prefixed and plain tags in one sentence, or a tag that is empty.

    Example:
        >>> to_bio(["S-place", "O", "I-person", "E-person"])
        (['B-place', 'O', 'B-person', 'I-person'], True)
    """
    named = [tag for tag in tags if tag != "O"]
    prefixed = [tag for tag in named if _PREFIXED.match(tag)]
    if not all(named):
        raise WrongRowError("a word has an empty tag, and O or a type is expected")
    if prefixed and len(prefixed) < len(named):
        plain = next(tag for tag in named if not _PREFIXED.match(tag))
        raise WrongRowError(f"the tag '{plain}' has no prefix, and '{prefixed[0]}' has one: B-TYPE, I-TYPE or O is expected")
    if not prefixed:
        return _joined(tags), False
    found, mended, open_type = list[str](), False, ""
    for tag in tags:
        match = _PREFIXED.match(tag)
        if match is None:
            found.append("O")
            open_type = ""
            continue
        prefix, kind = match[1], match[2]
        begins = prefix in _OPENS or kind != open_type
        mended = mended or (begins and prefix not in _OPENS)
        found.append(("B-" if begins else "I-") + kind)
        open_type = "" if prefix in _CLOSES else kind
    return found, mended


def _joined(types: Sequence[str]) -> list[str]:
    """Return types, or O, as BIO: those alike in a row are one entity."""
    return [
        "O" if kind == "O" else ("I-" if index else "B-") + kind for kind, run in groupby(types) for index, _ in enumerate(run)
    ]


def entities(bio: Sequence[str]) -> list[Entity]:
    """Return the entities of tags in the scheme BIO.

    Example:
        >>> entities(["B-place", "I-place", "B-place", "O"])
        [(0, 2, 'place'), (2, 3, 'place')]
    """
    found = list[Entity]()
    for place, tag in enumerate(bio):
        if tag.startswith("B-"):
            found.append((place, place + 1, tag[2:]))
        elif tag.startswith("I-"):
            start, _, kind = found[-1]
            found[-1] = (start, place + 1, kind)
    return found


def from_types(types: Sequence[str]) -> list[str]:
    """Return predicted types, O where there is none, as valid BIO: words of one type in a row are one entity."""
    return _joined(types)
