"""Tagging: entities or slots in a sentence, found word by word.

A word is classified as one of the task's types or as none (O), so that every algorithm that tells labels apart serves; words of
one type in a row are one entity. Two entities of a type side by side are taken for one, which costs less than telling the first
word of an entity from the others would, where a type has five mentions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kshot.errors import DataError, listing, nearest
from kshot.models.batch import Batch
from kshot.models.kinds.spanned import SpannedLearner
from kshot.models.kinds.tags import entities, from_types, to_bio
from kshot.models.kinds.words import layout, split_words, windows, word_spans
from kshot.tasks import EpisodeSpec, Examples, Sampler, Task
from kshot.tasks.conll import read_conll
from kshot.tasks.greedy import GreedySampler, mention_totals
from kshot.tasks.readers import TAGGED, Record, column_names
from kshot.tasks.schema import EmptyFieldError, ReadOptions, Roles, Row, Schema, WrongRowError

SEPARATOR = "\x1f"  # between the words of a sentence, and between their tags
OUTSIDE = "O"
_WORDS, _TAGS = ("words", "tokens"), ("tags", "ner_tags", "labels", "slots")
_TEXTS, _ENTITIES = ("text", "sentence", "content"), ("entities", "spans", "ents", "label", "labels")


class TaggingSchema(Schema):
    """Words with tags (CoNLL, or lists in JSON), or a text with the places of its entities."""

    kind = "tagging"
    least_labels = 1
    shared = True
    annotated = True
    readers = dict.fromkeys((*TAGGED, ".txt"), read_conll)

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        names = column_names(sample)
        given = (options.text_column, options.label_column)
        for option, column in zip(("--text-column", "--label-column"), given, strict=True):
            if column is not None and column not in names:
                raise DataError(
                    f"{where}: no column '{column}' ({option}).", f"The columns are: {listing(names)}.{nearest(column, names)}"
                )
        for texts, tags in ((_WORDS, _TAGS), (_TEXTS, _ENTITIES)):
            text = given[0] or next((name for name in texts if name in names), None)
            tag = given[1] or next((name for name in tags if name in names), None)
            if text and tag:
                return {"text": text, "label": tag, "task": options.task_column}
        raise DataError(
            f"{where}: no tagged words found.",
            f"The columns are: {listing(names)}; expected are 'words' and 'tags' (lists), or 'text' and 'entities' "
            '([{"start": 0, "end": 5, "label": "place"}]), or a file of a word and its tag a line (.conll).',
            "Name them with --text-column and --label-column.",
        )

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        text, tags = record.get(str(found["text"])), record.get(str(found["label"]))
        if not text:
            raise EmptyFieldError("text", str(found["text"]))
        if tags is None:
            raise EmptyFieldError("label", str(found["label"]))
        words, tags = _tagged_words(text, tags) if isinstance(text, str) else _listed(text, tags)
        bio, repaired = to_bio(tags)
        types = tuple(dict.fromkeys(kind for _, _, kind in entities(bio)))
        return Row(SEPARATOR.join(words), types, SEPARATOR.join(bio), repaired)

    def asked(self, value: Any) -> str:
        words, _ = self.words_of(value)
        return SEPARATOR.join(words)

    def words_of(self, value: Any) -> tuple[list[str], list[tuple[int, int]]]:
        """Return the words of a text, or a list of words, and their places in the text, or in the words with blanks between."""
        given = value.get("words", value.get("tokens", value.get("text"))) if isinstance(value, Mapping) else value
        if isinstance(given, str) and given.strip():
            places = split_words(given)
            return [given[start:end] for start, end in places], places
        if not isinstance(given, list) or not given or not all(isinstance(word, str) for word in given):
            raise WrongRowError(f"{value!r} is no text, and no list of words")
        words = [word.replace(SEPARATOR, " ").strip() or "_" for word in given]
        return words, layout(words)[1]

    def shown_words(self, value: Any) -> tuple[str, list[tuple[int, int]]]:
        """Return a sentence as a text, and the places of its words in it."""
        words, places = self.words_of(value)
        given = value.get("text") if isinstance(value, Mapping) and "words" not in value else value
        return given if isinstance(given, str) else layout(words)[0], places

    def example(self, value: Any, label: Any) -> Row:
        record = {"text": value, "label": label} if isinstance(value, str | list) else dict(value) | {"label": label}
        return self.row(record, {"text": "text", "label": "label"}, None)

    def shown(self, text: str) -> str:
        return layout(text.split(SEPARATOR))[0]

    def mentions(self, annotation: str) -> Counter[str]:
        return Counter(kind for _, _, kind in entities(annotation.split(SEPARATOR)))

    def usable(self, task: Task) -> dict[str, int]:
        totals = mention_totals(task, self.mentions)
        return {label: totals[label] if task.count(number) > 1 else 0 for number, label in enumerate(task.labels)}

    def episodes(self, tasks: Sequence[Task], spec: EpisodeSpec, seed: int = 0) -> Sampler:
        return GreedySampler(tasks, spec, self.mentions, seed)


def _listed(words: Any, tags: Any) -> tuple[list[str], list[str]]:
    if not isinstance(words, list) or not isinstance(tags, list):
        raise WrongRowError("words and tags are not both lists")
    if len(words) != len(tags):
        raise WrongRowError(f"{len(words)} words and {len(tags)} tags, and a tag a word is expected")
    for what, values in (("word", words), ("tag", tags)):
        wrong = next((value for value in values if not isinstance(value, str)), None)
        if wrong is not None:
            raise WrongRowError(f"a {what} is the {type(wrong).__name__} {wrong!r}, and a string is expected")
    kept = [(word.replace(SEPARATOR, " ").strip(), tag) for word, tag in zip(words, tags, strict=True)]
    kept = [(word, tag) for word, tag in kept if word]  # some files have blanks for words
    return [word for word, _ in kept], [tag for _, tag in kept]


def _tagged_words(text: str, found: Any) -> tuple[list[str], list[str]]:
    """Return the words of a text and their tags, given where its entities are; an entity's ends are always words' ends."""
    if not isinstance(found, list):
        raise WrongRowError(f"the entities are a JSON {type(found).__name__}, and a list is expected")
    marked = sorted(_entity(text, entity) for entity in found)
    for (_, end, first), (start, _, second) in pairwise(marked):
        if start < end:
            raise WrongRowError(f"the entities '{first}' and '{second}' overlap at character {start}")
    cuts = {place for start, end, _ in marked for place in (start, end)}
    words, tags = list[str](), list[str]()
    opened = {start: (end, kind) for start, end, kind in marked}
    until, kind = 0, OUTSIDE
    for start, end in split_words(text):
        inner = [start, *sorted(cut for cut in cuts if start < cut < end), end]
        for a, b in pairwise(inner):
            begins = a in opened
            if begins:
                until, kind = opened[a]
            words.append(text[a:b])
            tags.append(OUTSIDE if a >= until else ("B-" if begins else "I-") + kind)
    return words, tags


def _entity(text: str, entity: Any) -> tuple[int, int, str]:
    """Return where an entity is, without blanks at its ends, and its type."""
    if isinstance(entity, dict):
        start, end = (entity.get(name) for name in ("start", "end"))
        kind = next((entity[name] for name in ("label", "type", "entity") if name in entity), None)
        shown = entity.get("text")
    elif isinstance(entity, list) and len(entity) == 3:
        start, end, kind = entity
        shown = None
    else:
        raise WrongRowError(f'the entity {entity!r} is not {{"start", "end", "label"}} or [start, end, label]')
    if isinstance(shown, str) and start is None:
        start = text.find(shown)
        end = start + len(shown)
        if start < 0:
            raise WrongRowError(f"the entity {shown!r} is not in the text")
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(kind, str)) or not kind.strip():
        raise WrongRowError(f"the entity {entity!r} has no whole start, end and type")
    if not (0 <= start < end <= len(text)) or not text[start:end].strip():
        raise WrongRowError(f"the entity at {start}-{end} is outside the text of {len(text)} characters, or empty")
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()), kind.strip()


class TaggingLearner(SpannedLearner):
    """A learner of words: class 0 is O, the others are the types of the task or episode.

    Words of a type that an episode does not have are no units: they are neither of its types nor O.
    """

    kind = "tagging"
    metric = "entity F1"

    def annotated(self, examples: Examples, labels: Sequence[str]) -> Batch:
        known = {OUTSIDE: 0} | {label: index for index, label in enumerate(labels, 1)}
        classes, kept, sizes, targets, at = list[int](), list[int](), list[int](), list[Any](), 0
        for number, text in enumerate(examples.texts):
            count = text.count(SEPARATOR) + 1
            tags = examples.annotations[number].split(SEPARATOR) if examples.annotations else [OUTSIDE] * count
            own = [place for place in range(count) if tags[place][2:] in known or tags[place] == OUTSIDE]
            classes += [known[tags[place][2:] or OUTSIDE] for place in own]
            kept += [at + place for place in own]
            sizes.append(len(own))
            targets.append(tuple((start, end, known[kind]) for start, end, kind in entities([tags[i] for i in own])))
            at += count
        units = None if len(kept) == at else torch.tensor(kept)
        return Batch(
            torch.tensor(classes, dtype=torch.long),
            len(labels) + 1,
            units=units,
            sizes=tuple(sizes),
            targets=tuple(targets),
        )

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        batch = self.annotated(examples, labels)
        texts = [layout(text.split(SEPARATOR)) for text in examples.texts]
        found = windows(self.backbone, [text for text, _ in texts])
        spans = word_spans(found, [places for _, places in texts])
        spans = spans if batch.units is None else spans.only(batch.units)
        return replace(batch, input_ids=found.input_ids, mask=found.mask, spans=spans).to(self.device)

    def units_of(self, text: str) -> int:
        return text.count(SEPARATOR) + 1

    def score_of(self, classes: Tensor, batch: Batch) -> float:
        """Return the F1 of entities: one is right where its first and last word and its type are."""
        return f1(*agreement(predicted_entities(classes, batch.sizes), batch.targets))

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return (OUTSIDE, *labels)


def predicted_entities(classes: Tensor, sizes: Sequence[int]) -> list[set[tuple[int, int, int]]]:
    """Return the entities of each sentence, their types as class numbers, of the classes of words (B,)."""
    found = []
    for part in torch.split(classes.cpu(), list(sizes)):
        bio = from_types([OUTSIDE if number == 0 else str(number) for number in part.tolist()])
        found.append({(start, end, int(kind)) for start, end, kind in entities(bio)})
    return found


def agreement(predicted: Sequence[set[Any]], targets: Sequence[Sequence[Any]]) -> tuple[int, int, int]:
    """Return how many entities were found rightly, how many were found, and how many there are."""
    right = sum(len(found & set(given)) for found, given in zip(predicted, targets, strict=True))
    return right, sum(map(len, predicted)), sum(map(len, targets))


def f1(right: int, found: int, given: int) -> float:
    """Return the harmonic mean of precision and recall; 1 where nothing was to be found and nothing was."""
    return 2 * right / (found + given) if found + given else 1.0
