"""A task: one learning problem, as a view into a memory-mapped corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kshot.tasks.corpus import Corpus

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One learning problem: its label set, and where its examples lie.

    Args:
        name: the task's name; for many small data sets, the domain.
        labels: the label names, in a fixed order.
        corpus: the memory-mapped rows.
        groups: for each label the corpus's row groups that hold its examples.
        kind: the kind of task.
        rest: the row groups of examples without a label.
    """

    name: str
    labels: tuple[str, ...]
    corpus: Corpus
    groups: tuple[tuple[int, ...], ...]
    kind: str = "classification"
    rest: tuple[int, ...] = ()

    def rows(self, label: int) -> Rows:
        """Return the corpus rows of the label's examples, int64 of shape (n,)."""
        return self._rows(self.groups[label])

    def all_rows(self) -> Rows:
        """Return the corpus rows of all examples, each once, int64 of shape (n,)."""
        rows = self._rows([group for groups in (*self.groups, self.rest) for group in groups])
        return np.unique(rows) if self.corpus.shared else rows

    def _rows(self, groups: Sequence[int]) -> Rows:
        slices = [self.corpus.group(group) for group in groups] or [np.empty(0, np.int64)]
        return slices[0] if len(slices) == 1 else np.concatenate(slices)

    def count(self, label: int) -> int:
        """Return how many examples the label has."""
        return sum(self.corpus.group_size(group) for group in self.groups[label])

    def counts(self) -> dict[str, int]:
        """Return the number of examples by label name."""
        return {name: self.count(index) for index, name in enumerate(self.labels)}

    def __len__(self) -> int:
        if self.corpus.shared:
            return len(self.all_rows())
        return sum(self.corpus.group_size(group) for groups in (*self.groups, self.rest) for group in groups)

    def with_labels(self, names: set[str] | frozenset[str]) -> Task:
        """Return the task restricted to some of its labels, in the same order."""
        kept = [index for index, name in enumerate(self.labels) if name in names]
        return replace(self, labels=tuple(self.labels[i] for i in kept), groups=tuple(self.groups[i] for i in kept))

    def with_part(self, part: str) -> Task:
        """Return the task restricted to rows of one part (the file of a split: ``train``, ``validation``, ``test``)."""
        kept = [
            (name, chosen)
            for name, groups in zip(self.labels, self.groups, strict=True)
            if (chosen := tuple(group for group in groups if self.corpus.groups[group].part == part))
        ]
        rest = tuple(group for group in self.rest if self.corpus.groups[group].part == part)
        return replace(self, labels=tuple(name for name, _ in kept), groups=tuple(groups for _, groups in kept), rest=rest)
