"""Episodes of examples that have several labels at once: sentences with entities, texts with several topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kshot.errors import DataError
from kshot.tasks.episodes import Episode, EpisodeSpec, Examples, Sampler, span
from kshot.tasks.task import Rows, Task

Mentions = Callable[[str], Counter[str]]
"""From an example's annotation to how often each label is in it."""


@dataclass(frozen=True)
class _Pool:
    """A task to draw from."""

    task: Task
    mentions: Mentions

    @cached_property
    def counts(self) -> dict[int, Counter[str]]:
        """How often each label is in each row."""
        rows = self.task.all_rows()
        return dict(zip(rows.tolist(), map(self.mentions, self.task.corpus.annotations(rows)), strict=True))

    @cached_property
    def totals(self) -> Counter[str]:
        """How often each label is in all rows."""
        totals: Counter[str] = Counter()
        for counts in self.counts.values():
            totals.update(counts)
        return totals


def mention_totals(task: Task, mentions: Mentions) -> Counter[str]:
    """Return how often each label is in a task's examples."""
    return _Pool(task, mentions).totals


class GreedySampler(Sampler):
    """N-way episodes in which every label is mentioned K to 2K times, sentence by sentence.

    Examples are added one after another, those of the rarest label first, as long as no label is mentioned more than 2K times;
    where that leaves a label short, the bound is given up for it. A task with fewer than N labels is used with all of them.
    Mentions of other labels are in the episode's annotations still; a learner passes over them.

    Args:
        tasks: the tasks to draw from, each with equal probability. No text occurs twice in an episode.
        spec: the episodes' shape: ``shots`` and ``queries`` count mentions of a label.
        mentions: counts an annotation's labels.
        seed, length: see `Sampler`.

    References:
        Ding, Xu, Chen, Wang, Han, Xie, Zheng, Liu 2021, "Few-NERD: A Few-shot Named Entity Recognition Dataset",
        arXiv:2105.07464, algorithm 1 (greedy N-way K~2K-shot sampling; there a sentence with other types is left out).

    Raises:
        DataError: a label with fewer mentions than shots and queries need.
    """

    def __init__(
        self, tasks: Sequence[Task], spec: EpisodeSpec, mentions: Mentions, seed: int = 0, length: int = 1_000_000
    ) -> None:
        super().__init__(spec, seed, length)
        if not tasks:
            raise DataError("There is no task to draw episodes from.")
        self._pools = [_Pool(task, mentions) for task in tasks]
        need = span(spec.shots)[0] + spec.queries
        for pool in self._pools:
            enough = {
                label: pool.totals[label] >= need and pool.task.count(number) > 1
                for number, label in enumerate(pool.task.labels)
            }
            short = {label: pool.totals[label] for label, well in enough.items() if not well}
            if short:
                said = ", ".join(f"'{label}' has {count}" for label, count in list(short.items())[:5])
                raise DataError(
                    f"The task '{pool.task.name}' has labels with too few mentions: {said}.",
                    f"{need - spec.queries} shots and {spec.queries} queries need {need} mentions a label, in several texts.",
                    "Add examples, remove these labels, or ask for fewer shots or queries.",
                )

    def draw(self, rng: np.random.Generator) -> Episode:
        pool = self._pools[int(rng.integers(len(self._pools)))]
        task = pool.task
        low, high = (min(end, len(task.labels)) for end in span(self.spec.ways))
        labels = [task.labels[i] for i in rng.permutation(len(task.labels))[: int(rng.integers(low, high + 1))]]
        low, high = span(self.spec.shots)
        shots = int(rng.integers(low, high + 1))
        taken: set[int] = set()
        support = self._side(rng, pool, labels, shots, taken)
        query = self._side(rng, pool, labels, self.spec.queries, taken)
        return Episode(
            task.name, task.corpus.fingerprint, tuple(labels), Examples.of_rows(task, support), Examples.of_rows(task, query)
        )

    def _side(self, rng: np.random.Generator, pool: _Pool, labels: Sequence[str], shots: int, taken: set[int]) -> list[int]:
        """Draw rows in which every label is mentioned at least ``shots`` times, as far as there are any; add their texts."""
        counts, chosen = Counter[str](), list[int]()
        for label in sorted(labels, key=lambda name: pool.totals[name]):
            rows: Rows = rng.permutation(pool.task.rows(pool.task.labels.index(label)))
            for most in (2 * shots, None):
                for row in rows.tolist():
                    if counts[label] >= shots:
                        break
                    text, own = int(pool.task.corpus.hashes[row]), pool.counts[row]
                    if text in taken or (most is not None and any(counts[name] + own[name] > most for name in labels)):
                        continue
                    taken.add(text)
                    chosen.append(row)
                    counts.update({name: own[name] for name in labels})
        return chosen
