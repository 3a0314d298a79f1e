"""What a kind of task reads: from a record of a file to an example, its labels, and what a label cannot say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kshot.tasks.columns import find_columns
from kshot.tasks.episodes import EpisodeSampler, EpisodeSpec, Sampler, usable_counts
from kshot.tasks.readers import Record, Records
from kshot.tasks.task import Task

MAX_TEXT_CHARACTERS = 200_000
Roles = dict[str, str | None]
"""Names of columns by what they hold: ``text``, ``label``, ``task`` and what else a kind has."""


@dataclass(frozen=True)
class ReadOptions:
    """How labelled files are read.

    Args:
        text_column, label_column: the columns' names; None to find them by name.
        task_column: a column that says to which task (domain) a row belongs.
        mixed_labels: accept numbers and words side by side as labels.
        skip_empty: pass over rows without a text or a label, and count them.
        max_text_characters: a longer text is refused, since it is most often an unclosed quote.
    """

    text_column: str | None = None
    label_column: str | None = None
    task_column: str | None = None
    mixed_labels: bool = False
    skip_empty: bool = False
    max_text_characters: int = MAX_TEXT_CHARACTERS


@dataclass(frozen=True)
class Row:
    """An example as it is kept.

    Args:
        text: what is read, as one string.
        labels: under which labels it is drawn; none where a kind has no labels, or the example has none of them.
        annotation: what is to be learned of it beside a label, as one string.
        repaired: whether something of it was mended while reading.
    """

    text: str
    labels: tuple[str, ...] = ()
    annotation: str = ""
    repaired: bool = False


class WrongRowError(Exception):
    """A record that cannot be an example; the message is what is wrong, such as "the label is a JSON list"."""


class EmptyFieldError(Exception):
    """A record without what it needs: ``missing`` (text, label) in ``column``."""

    def __init__(self, missing: str, column: str) -> None:
        super().__init__(f"no {missing} in column '{column}'")
        self.missing, self.column = missing, column


class Schema(ABC):
    """How files are read as examples of a kind.

    Attributes:
        kind: its name.
        least_labels: how many labels a task needs; 0 for kinds without.
        shared: whether an example may be drawn under several labels.
        annotated: whether examples have an annotation.
        label_files: whether a folder may hold a file for each label.
        readers: readers of the kind's own formats, by suffix; those of `kshot.tasks.readers` serve the others.
    """

    kind: ClassVar[str]
    least_labels: ClassVar[int] = 2
    shared: ClassVar[bool] = False
    annotated: ClassVar[bool] = False
    label_files: ClassVar[bool] = False
    readers: ClassVar[Mapping[str, Callable[[Path], Records]]] = {}

    @abstractmethod
    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        """Find the columns of a file.

        Args:
            where: the file's name, for error sentences.
            sample: its first records.
            options: what the user said.
            label: the label of all its rows, where there is a file for each.

        Raises:
            DataError: a column is absent.
        """

    @abstractmethod
    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        """Return a record as an example.

        Raises:
            WrongRowError: it cannot be one.
            EmptyFieldError: it lacks a text or a label.
        """

    def asked(self, value: Any) -> str:
        """Return the text of an example to be answered, as it is kept, given as a user gives it: a text, or a record.

        Raises:
            WrongRowError: it cannot be one.
        """
        if not isinstance(value, str):
            raise WrongRowError(f"{value!r} is no text")
        return value

    def example(self, value: Any, label: Any) -> Row:
        """Return an example given from Python: what is asked, and the answer.

        Raises:
            WrongRowError: it cannot be one.
        """
        if not isinstance(label, str) or not label.strip():
            raise WrongRowError(f"the label is {label!r}, and a string is expected")
        return Row(self.asked(value), (label,))

    def shown(self, text: str) -> str:
        """Return a text as it is kept, for people to read."""
        return text

    def mentions(self, annotation: str) -> Counter[str]:
        """Return how often each label is in an example, where it may have several."""
        return Counter()

    def usable(self, task: Task) -> dict[str, int]:
        """Return how many examples of each label episodes can draw."""
        return usable_counts(task)

    def described(self, spec: EpisodeSpec) -> str:
        """Return an episode's shape in words."""
        return str(spec)

    def episodes(self, tasks: Sequence[Task], spec: EpisodeSpec, seed: int = 0) -> Sampler:
        """Return the stream of episodes of this kind."""
        return EpisodeSampler(tasks, spec, seed)


class Classification(Schema):
    """A text and its label."""

    kind = "classification"
    label_files = True

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        wanted = None if label is not None else options.label_column
        found = find_columns(where, sample, options.text_column, wanted, options.task_column, label_required=label is None)
        return {"text": found.text, "label": found.label, "task": found.task}

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        return Row(text_of(record, found["text"]), (label_of(record, found["label"]) if label is None else label,))


CLASSIFICATION = Classification()


def text_of(record: Record, column: str | None, what: str = "text") -> str:
    """Return a record's text.

    Raises:
        EmptyFieldError: there is none.
        WrongRowError: it is no string.
    """
    assert column is not None
    value = record.get(column)
    if value is None or not str(value).strip():
        raise EmptyFieldError(what, column)
    if not isinstance(value, str):
        raise WrongRowError(f"the {what} in column '{column}' is of type {type(value).__name__}, not a string")
    return value


def label_of(record: Record, column: str | None) -> str:
    """Return a record's label as a string.

    Raises:
        EmptyFieldError: there is none.
        WrongRowError: there are several.
    """
    assert column is not None  # the columns were found with a label required
    value: Any = record.get(column)
    if isinstance(value, (list, dict)):
        raise WrongRowError(
            f"the label in column '{column}' is a JSON {type(value).__name__}, and one label a text is expected"
        )
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    label = "" if missing else str(value).strip()
    if not label:
        raise EmptyFieldError("label", column)
    return label
