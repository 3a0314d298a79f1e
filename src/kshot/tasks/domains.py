"""Episodes of tasks without labels: a task is a domain, an episode some examples to learn from and others to be asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kshot.errors import DataError
from kshot.tasks.episodes import Episode, EpisodeSpec, Examples, Sampler, span
from kshot.tasks.task import Task


class DomainSampler(Sampler):
    """Episodes of ``shots`` and ``queries`` examples of a task, no text of which is twice in an episode.

    Args:
        tasks: the tasks to draw from, each with equal probability.
        spec: the episodes' shape; its ways mean nothing here.
        seed, length: see `Sampler`.

    Raises:
        DataError: a task with fewer different texts than shots and queries need.
    """

    def __init__(self, tasks: Sequence[Task], spec: EpisodeSpec, seed: int = 0, length: int = 1_000_000) -> None:
        super().__init__(spec, seed, length)
        if not tasks:
            raise DataError("There is no task to draw episodes from.")
        self._tasks = list(tasks)
        # the first row of each text
        self._rows = [rows[np.unique(t.corpus.hashes[rows], return_index=True)[1]] for t in tasks for rows in (t.all_rows(),)]
        need = span(spec.shots)[0] + spec.queries
        for task, rows in zip(tasks, self._rows, strict=True):
            if len(rows) < need:
                raise DataError(
                    f"The task '{task.name}' has {len(rows)} different texts.",
                    f"{need - spec.queries} shots and {spec.queries} queries need {need}.",
                    "Add examples, or ask for fewer shots or queries.",
                )

    def draw(self, rng: np.random.Generator) -> Episode:
        number = int(rng.integers(len(self._tasks)))
        task, rows = self._tasks[number], self._rows[number]
        low, high = span(self.spec.shots)
        shots = int(rng.integers(low, min(high, len(rows) - self.spec.queries) + 1))
        drawn = rng.choice(rows, shots + self.spec.queries, replace=False).tolist()
        support, query = (Examples.of_rows(task, part) for part in (drawn[:shots], drawn[shots:]))
        return Episode(task.name, task.corpus.fingerprint, (), support, query)
