"""What kshot understood of labelled data: for a user to look at before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.tasks.task import Task

_LANGUAGE_SAMPLE, _LENGTH_SAMPLE = 200, 5_000


@dataclass(frozen=True)
class TaskSummary:
    """A task in figures.

    Args:
        name: the task's name.
        labels: the number of examples by label.
        examples: how many there are.
        lengths: the shortest, median and longest text, in characters (of a sample where there are many).
        language: the ISO 639-1 code of most texts.
        duplicates: texts that stand there more than once under the same label.
        conflicts: texts that stand under several labels, with these labels.
        conflict_count: how many such texts there are.
    """

    name: str
    labels: dict[str, int]
    examples: int
    lengths: tuple[int, int, int]
    language: str
    duplicates: int
    conflicts: tuple[tuple[str, tuple[str, ...]], ...]
    conflict_count: int


def summarise(task: Task, examples: int = 3) -> TaskSummary:
    """Return a task in figures, with some examples of conflicting labels."""
    if task.corpus.shared or not task.labels:  # then no label contradicts another
        rows = task.all_rows()
        labels = np.zeros(len(rows), np.int64)
    else:
        rows = np.concatenate([task.rows(label) for label in range(len(task.labels))])
        labels = np.concatenate([np.full(task.count(label), label) for label in range(len(task.labels))])
    hashes = task.corpus.hashes[rows]
    pairs, first = np.unique(np.stack([hashes, labels.astype(np.uint64)]), axis=1, return_index=True)
    _, starts, counts = np.unique(pairs[0], return_index=True, return_counts=True)
    conflicting = np.flatnonzero(counts > 1)
    conflicts = []
    for index in conflicting[:examples]:
        among = first[starts[index] : starts[index] + counts[index]]
        names = tuple(task.labels[labels[position]] for position in sorted(among))
        conflicts.append((task.corpus.text(int(rows[among[0]])), names))
    sample = np.random.default_rng(0).permutation(rows)[:_LENGTH_SAMPLE]
    texts = task.corpus.texts(sample)
    lengths = [len(text) for text in texts]
    return TaskSummary(
        name=task.name,
        labels=task.counts(),
        examples=len(task),
        lengths=(min(lengths), int(np.median(lengths)), max(lengths)),
        language=language(texts[:_LANGUAGE_SAMPLE]),
        duplicates=len(rows) - pairs.shape[1],
        conflicts=tuple(conflicts),
        conflict_count=len(conflicting),
    )


def language(texts: Sequence[str]) -> str:
    """Return the ISO 639-1 code of the language of most of the texts taken together."""
    import py3langid

    code, _ = py3langid.classify(" ".join(texts)[:20_000])
    return str(code)
