"""Relations: what connects two entities of a sentence.

A text is kept with its two entities marked in it. Its vector is the sentence's mean state beside those of its two entities, so
that who does what to whom is in it: "A bought B" and "B bought A" have the same words.

References:
    Baldini Soares, FitzGerald, Ling, Kwiatkowski 2019, "Matching the Blanks: Distributional Similarity for Relation Learning",
    arXiv:1906.03158 (entity markers, and the states of both entities side by side).
    Zhou, Chen 2022, "An Improved Baseline for Sentence-level Relation Extraction", arXiv:2102.01373 (markers by punctuation,
    whose tokens an encoder knows already).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kshot.errors import DataError, listing, nearest
from kshot.models.batch import Batch
from kshot.models.kinds.spanned import SpannedLearner
from kshot.models.kinds.words import layout, windows
from kshot.models.spans import Spans
from kshot.tasks import Examples
from kshot.tasks.columns import LABEL_NAMES
from kshot.tasks.readers import READERS, Record, Records, column_names
from kshot.tasks.schema import ReadOptions, Roles, Row, Schema, WrongRowError, label_of, text_of

Place = tuple[int, int]
_MARKS = ("\x01", "\x02"), ("\x03", "\x04")  # around the head, and around the tail, in a text as it is kept
_SHOWN = "@", "#"  # what the encoder sees for them
_TEXTS, _HEADS, _TAILS = ("text", "sentence", "tokens"), ("head", "h", "subject", "subj"), ("tail", "t", "object", "obj")


def marked(text: str, head: Place, tail: Place) -> str:
    """Return a text with its two entities marked."""
    inserts = []
    for (start, end), (opening, closing) in zip((head, tail), _MARKS, strict=True):
        inserts += [(start, 1, opening), (end, 0, closing)]
    for place, _, mark in sorted(inserts, reverse=True):
        text = text[:place] + mark + text[place:]
    return text


def unmarked(text: str, signs: tuple[str, str] = ("", "")) -> tuple[str, tuple[Place, Place]]:
    """Return a text without marks, or with visible signs for them, and where its head and its tail are.

    Raises:
        WrongRowError: it has no marks.

    Example:
        >>> unmarked(marked("A bought B", (0, 1), (9, 10)), ("@", "#"))
        ('@ A @ bought # B #', ((2, 3), (15, 16)))
    """
    characters, found = list[str](), dict[str, int]()
    for character in text:
        for (opening, closing), sign in zip(_MARKS, signs, strict=True):
            if character == opening:
                characters += f"{sign} " if sign else ""
                found[opening] = len(characters)
            elif character == closing:
                found[closing] = len(characters)
                characters += f" {sign}" if sign else ""
        if character not in found:
            characters.append(character)
    if len(found) < 4:
        raise WrongRowError("the text has no marked head and tail")
    (a, b), (c, d) = _MARKS
    return "".join(characters), ((found[a], found[b]), (found[c], found[d]))


def _read_json(path: Path) -> Records:
    """Yield records of a JSON file: rows as usual, or FewRel's own form, a list of sentences by relation."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        value = None  # the usual reader says what is wrong
    lists = value.values() if isinstance(value, dict) else ()
    if not lists or not all(isinstance(rows, list) and rows and isinstance(rows[0], dict) and "h" in rows[0] for rows in lists):
        yield from READERS[".json"](path)
        return
    yield from enumerate(_by_relation(value), 1)


def _by_relation(value: Mapping[str, list[Record]]) -> Iterator[Record]:
    for label, rows in value.items():
        for row in rows:
            yield {"tokens": row["tokens"], "head": row["h"][2][0], "tail": row["t"][2][0], "label": label}


class RelationSchema(Schema):
    """A sentence, two entities in it (as strings, or as places), and the relation between them."""

    kind = "relation"
    readers = {".json": _read_json}  # noqa: RUF012

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        names = column_names(sample)
        found: Roles = {"task": options.task_column}
        wanted = {"text": _TEXTS, "head": _HEADS, "tail": _TAILS, "label": ("relation", *LABEL_NAMES)}
        given = {"text": options.text_column, "label": options.label_column}
        for role, known in wanted.items():
            column = given.get(role) or next((name for name in known if name in names), None)
            if column is None or column not in names:
                raise DataError(
                    f"{where}: no column of the {role} found.",
                    f"The columns are: {listing(names)}; expected are a text, 'head', 'tail' (strings, or [start, end] in the "
                    f"text) and 'label'.{nearest(role, names)}",
                )
            found[role] = column
        return found

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        name = label_of(record, found["label"])
        return Row(self.asked({role: record.get(str(found[role])) for role in ("text", "head", "tail")}), (name,))

    def asked(self, value: Any) -> str:
        if not isinstance(value, Mapping):
            raise WrongRowError('a text alone, and {"text", "head", "tail"} is expected')
        text, given, other = (
            next((value[name] for name in known if name in value), None) for known in (_TEXTS, _HEADS, _TAILS)
        )
        if isinstance(text, list):
            return _marked_tokens(text, given, other)
        text = text_of({"text": text}, "text")
        head = _place(text, given, "head")
        return marked(text, head, _place(text, other, "tail", after=head if given == other else None))

    def shown(self, text: str) -> str:
        return unmarked(text)[0]


def _marked_tokens(tokens: list[Any], head: Any, tail: Any) -> str:
    words = [str(token).strip() or "_" for token in tokens]
    text, places = layout(words)
    both = []
    for what, found in (("head", head), ("tail", tail)):
        if not (isinstance(found, list) and found and all(isinstance(i, int) and 0 <= i < len(words) for i in found)):
            raise WrongRowError(f"the {what} {found!r} is no list of numbers of the {len(words)} words")
        both.append((places[min(found)][0], places[max(found)][1]))
    return marked(text, both[0], both[1])


def _place(text: str, found: Any, what: str, after: Place | None = None) -> Place:
    """Return where an entity is, given as a string, as [start, end], or as {"start", "end"} or {"text"}."""
    if isinstance(found, Mapping):
        found = found.get("text") if "start" not in found else [found["start"], found.get("end")]
    if isinstance(found, str) and found:
        start = text.find(found, after[1] if after else 0)
        if start < 0:
            raise WrongRowError(f"the {what} '{found}' is not in the text" + (" a second time" if after else ""))
        return start, start + len(found)
    if isinstance(found, list) and len(found) == 2 and all(isinstance(place, int) for place in found):
        if not 0 <= found[0] < found[1] <= len(text):
            raise WrongRowError(f"the {what} at {found[0]}-{found[1]} is outside the text of {len(text)} characters, or empty")
        return found[0], found[1]
    raise WrongRowError(f"the {what} is {found!r}, and a string or [start, end] is expected")


class RelationLearner(SpannedLearner):
    """A learner of sentences with two entities; their vectors are three times as wide as the encoder's."""

    kind = "relation"
    parts = 3

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        texts, places = list[str](), list[tuple[Place, Place]]()
        for text in examples.texts:
            shown, both = unmarked(text, _SHOWN)
            texts.append(shown)
            places.append(both)
        found = windows(self.backbone, texts)
        best = dict[int, tuple[int, int]]()  # by text: how many tokens of the entities its best window has, and which it is
        for row, sample in enumerate(found.samples):
            seen = [len(found.within(row, place)) for place in places[sample]]
            best[sample] = max(best.get(sample, (-1, 0)), (min(seen) * 1000 + sum(seen), row))
        listed = list[tuple[int, int, int]]()
        for sample, (_, row) in sorted(best.items()):
            whole = range(len(found.offsets[row]))
            for part, tokens in enumerate((whole, *(found.within(row, place) for place in places[sample]))):
                listed += [(row, token, self.parts * sample + part) for token in tokens]
        rows, offsets, span = torch.tensor(listed, dtype=torch.long).view(-1, 3).unbind(1)
        spans = Spans(rows, offsets, span, self.parts * len(texts), self.parts)
        batch = replace(self.annotated(examples, labels), input_ids=found.input_ids, mask=found.mask, spans=spans)
        return batch.to(self.device)
