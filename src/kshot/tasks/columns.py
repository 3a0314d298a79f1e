"""Which column holds the text, and which the label: given by the user, or found by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from kshot.errors import DataError, listing, nearest
from kshot.tasks.readers import Record, Records, column_names

TEXT_NAMES = (
    "text", "sentence", "utterance", "query", "content", "review", "message", "question", "headline", "title", "tweet",
    "description", "document", "body", "comment", "input", "sentence1", "文本", "内容", "句子",
)  # fmt: skip
LABEL_NAMES = (
    "label_text", "label_name", "label_desc", "label", "labels", "intent", "category", "class", "target", "topic",
    "sentiment", "tag", "y", "标签", "类别", "意图",
)  # fmt: skip
_ORIGIN = re.compile(
    r"(^|_)(id|idx|doc|document|file|source|domain|date|time|url|author|user|lang|language)(_|$)", re.IGNORECASE
)
_LOOK = 200  # rows looked at to find the columns


@dataclass(frozen=True)
class Columns:
    """The names of the columns of one file. ``label`` is None where the file's name is the label."""

    text: str
    label: str | None
    task: str | None = None


def peek(records: Records) -> tuple[list[tuple[int, Record]], Records]:
    """Return the first rows, and the rest of the iterator."""
    return list(islice(records, _LOOK)), records


def find_columns(
    where: str,
    sample: Sequence[Record],
    text: str | None = None,
    label: str | None = None,
    task: str | None = None,
    label_required: bool = True,
) -> Columns:
    """Find the text, label and task columns among the sample's keys.

    Args:
        where: the file's name, for error sentences.
        sample: the first records of the file.
        text, label, task: the names that the user gave; None to look for the text and label by name.
        label_required: whether a file without a label column is an error (it is not in a folder with a file per label).

    Raises:
        DataError: a given column is not there, or none is found by name; the sentence names the likely one.
    """
    names = column_names(sample)
    for option, name in (("--text-column", text), ("--label-column", label), ("--task-column", task)):
        if name is not None and name not in names:
            raise DataError(
                f"{where}: no column '{name}' ({option}).", f"The columns are: {listing(names)}.{nearest(name, names)}"
            )
    text = text or _by_name(names, TEXT_NAMES, exclude=(label, task))
    label = label or _by_name(names, LABEL_NAMES, exclude=(text, task))
    if text is None:
        likely = _longest(names, sample, exclude=(label, task))
        raise DataError(
            f"{where}: no text column found.",
            f"The columns are: {listing(names)}.",
            f"Name it: --text-column '{likely}', or add a header line." if likely else "Add a column 'text'.",
        )
    if label is None and label_required:
        likely = _fewest_values(names, sample, exclude=(text, task))
        raise DataError(
            f"{where}: no label column found.",
            f"The columns are: {listing(names)}.",
            f"Name it: --label-column '{likely}'"
            if likely
            else "Add a column 'label', or give a folder with a file per label.",
        )
    return Columns(text, label, task)


def _by_name(names: Sequence[str], known: Sequence[str], exclude: tuple[str | None, ...]) -> str | None:
    by_lower = {name.lower(): name for name in names if name not in exclude}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _longest(names: Sequence[str], sample: Sequence[Record], exclude: tuple[str | None, ...]) -> str | None:
    lengths = {
        name: sum(len(record[name]) for record in sample if isinstance(record.get(name), str))
        for name in names
        if name not in exclude
    }
    return max(lengths, key=lengths.__getitem__, default=None)


def _fewest_values(names: Sequence[str], sample: Sequence[Record], exclude: tuple[str | None, ...]) -> str | None:
    """The likely label column: more than one value, and the fewest; one that sounds like a source or an id comes last."""
    values = {name: len({str(record.get(name)) for record in sample}) for name in names if name not in exclude}
    several = {name: (_ORIGIN.search(name) is not None, count) for name, count in values.items() if count > 1}
    return min(several, key=several.__getitem__, default=None)
