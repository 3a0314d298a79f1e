"""Episodes: a support set and a query set drawn from one task. Values: seeded, dumpable, replayed exactly."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kshot.errors import ConfigError, DataError, listing
from kshot.files import atomic_file
from kshot.tasks.label_names import label_texts
from kshot.tasks.task import Rows, Task

_EPISODE_SCHEMA = 1


@dataclass(frozen=True)
class Examples:
    """Labelled texts of an episode.

    Args:
        texts: the texts.
        labels: for each text the index of its label among the episode's labels.
        rows: for each text its row in the task's corpus; empty where the texts come from elsewhere.
        names: how many of the texts, the last ones, are the labels' names; these have no row.
        annotations: for each text what is to be learned of it, of the kinds where that is no label.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    names: int = 0
    annotations: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, task: Task) -> Examples:
        """Return all examples of a task."""
        if task.corpus.shared or not task.labels:
            return cls.of_rows(task, task.all_rows().tolist())
        listed = [(row, number) for number in range(len(task.labels)) for row in task.rows(number).tolist()]
        rows = [row for row, _ in listed]
        return cls(tuple(task.corpus.texts(rows)), tuple(number for _, number in listed), tuple(rows))

    @classmethod
    def of_rows(cls, task: Task, rows: Sequence[int]) -> Examples:
        """Return some rows of a task, of a kind whose examples have annotations or no label."""
        annotations = tuple(task.corpus.annotations(rows))
        return cls(tuple(task.corpus.texts(rows)), (0,) * len(rows), tuple(rows), annotations=annotations)

    def named(self, labels: Sequence[str]) -> Examples:
        """Return the examples with each label's name as one more of its label, the same ones where the names say nothing.

        Args:
            labels: the episode's labels.
        """
        names = label_texts(labels)
        return Examples(self.texts + names, self.labels + tuple(range(len(names))), self.rows, len(names), self.annotations)


@dataclass(frozen=True)
class Episode:
    """An N-way support set and query set.

    Args:
        task: the task's name.
        corpus: the fingerprint of the data that the rows refer to.
        labels: the N label names; an example's label indexes into them.
        support, query: the examples, disjoint.
        seed, index: what the episode was drawn from; the same pair draws it again.
    """

    task: str
    corpus: str
    labels: tuple[str, ...]
    support: Examples
    query: Examples
    seed: int = 0
    index: int = 0

    @property
    def ways(self) -> int:
        """The number of labels."""
        return len(self.labels)

    def named(self) -> Episode:
        """Return the episode with its labels' names among the support examples; see `Examples.named`."""
        return replace(self, support=self.support.named(self.labels))


@dataclass(frozen=True)
class EpisodeSpec:
    """The shape of episodes. A pair ``(low, high)`` is drawn from, both ends included.

    Args:
        ways: labels an episode.
        shots: support examples a label.
        queries: query examples a label.
        imbalance: False gives every label of an episode the same shots; True draws them in proportion to the labels' natural
            sizes, with noise, as in Meta-Dataset (Triantafillou et al. 2020, arXiv:1903.03096, section 3.2).
    """

    ways: int | tuple[int, int] = 5
    shots: int | tuple[int, int] = 5
    queries: int = 5
    imbalance: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("ways", self.ways, 2), ("shots", self.shots, 1)):
            ends = span(value)
            if len(ends) != 2 or not least <= ends[0] <= ends[1]:
                raise ConfigError(f"{name} is {value}.", f"A number or a range (low, high) from {least} up is expected.")
        if self.queries < 1:
            raise ConfigError(f"queries is {self.queries}.", "At least 1 is expected.")
        if self.imbalance and span(self.shots)[0] == span(self.shots)[1]:
            raise ConfigError(f"imbalance is asked with shots {self.shots}.", "A range of shots is expected, such as (1, 10).")

    def __str__(self) -> str:
        ways, shots = (_range(value) for value in (self.ways, self.shots))
        return f"{ways}-way {shots}-shot, {self.queries} queries a label"


def span(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a number or a range as its ends."""
    return (value, value) if isinstance(value, int) else value


def _range(value: int | tuple[int, int]) -> str:
    low, high = span(value)
    return str(low) if low == high else f"{low}-{high}"


@dataclass(frozen=True)
class _Pool:
    """A task to draw from, the number of usable texts of each label, and the hashes of texts that several labels have."""

    task: Task
    counts: Rows
    conflicts: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, task: Task) -> _Pool:
        hashes = [np.unique(task.corpus.hashes[task.rows(label)]) for label in range(len(task.labels))]
        values, labels = np.unique(np.concatenate(hashes), return_counts=True)
        conflicts = values[labels > 1]
        return cls(task, np.array([np.isin(own, conflicts, invert=True).sum() for own in hashes]), conflicts)

    def draw(self, rng: np.random.Generator, label: int, size: int) -> list[int]:
        """Draw rows of a label with different texts that no other label has: no query text stands in the support set."""
        rows = self.task.rows(label)
        drawn: list[int] = []
        take = size
        while len(drawn) < size:  # once, except where the data holds a text twice
            sample = rows[rng.choice(len(rows), take, replace=False)]
            hashes = self.task.corpus.hashes[sample]
            first = np.sort(np.unique(hashes, return_index=True)[1])
            drawn = sample[first[np.isin(hashes[first], self.conflicts, invert=True)]].tolist()
            take = min(4 * take, len(rows))
        return drawn[:size]


def usable_counts(task: Task) -> dict[str, int]:
    """Return how many texts episodes can draw of each label: different ones, that are under no other label of the task."""
    return dict(zip(task.labels, _Pool.of(task).counts.tolist(), strict=True)) if task.labels else {}


class Sampler(Sequence[Episode], ABC):
    """An endless, random-access stream of episodes: ``sampler[i]`` depends on nothing but the tasks, the seed and ``i``.

    So any number of workers that divide the indices among themselves draw the same episodes, and a resumed training goes on
    with exactly those that the uninterrupted one would have seen. It is a map-style data set for ``torch.utils.data``.

    Args:
        spec: the episodes' shape.
        seed: of the stream.
        length: what ``len`` says; indices beyond it are not refused.
    """

    def __init__(self, spec: EpisodeSpec, seed: int = 0, length: int = 1_000_000) -> None:
        if seed < 0:
            raise ConfigError(f"The seed of episodes is {seed}.", "A number from 0 up is expected.")
        self.spec, self.seed, self._length = spec, seed, length

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Episode:
        """Draw an episode from a generator of its own."""

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        index = int(index) if index >= 0 else self._length + int(index)
        return replace(self.draw(np.random.default_rng([self.seed, index])), seed=self.seed, index=index)

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(self._length))


class EpisodeSampler(Sampler):
    """Episodes of some labels of a task, with a few examples each; see `Sampler`.

    Args:
        tasks: the tasks to draw from, each with equal probability. No text occurs twice in an episode, and a text that stands
            under several labels of its task, and so has no right answer, occurs in none.
        spec, seed, length: see `Sampler`.

    Raises:
        DataError: no task has enough labels, or a label has fewer different texts than the shots and queries need.

    Example:
        >>> from kshot.tasks import load_tasks
        >>> sampler = EpisodeSampler(load_tasks("bundled:en/law"), EpisodeSpec(ways=3, shots=2), seed=7)
        >>> sampler[41] == sampler[41], len(sampler[41].support)
        (True, 6)
    """

    def __init__(self, tasks: Sequence[Task], spec: EpisodeSpec, seed: int = 0, length: int = 1_000_000) -> None:
        super().__init__(spec, seed, length)
        self._pools = self._eligible(tasks)
        self.tasks = [pool.task for pool in self._pools]

    def _eligible(self, tasks: Sequence[Task]) -> list[_Pool]:
        """Keep the tasks with enough labels; refuse where a label is too small for the shots asked."""
        ways, shots = span(self.spec.ways)[0], span(self.spec.shots)[0]
        eligible = [_Pool.of(task) for task in tasks if len(task.labels) >= ways]
        if not eligible:
            most = max((len(task.labels) for task in tasks), default=0)
            raise DataError(
                f"Episodes of {ways} ways were asked, and the largest of {len(tasks)} task(s) has {most} labels.",
                mend=f"Use at most {most} ways." if most >= 2 else "Give tasks with at least two labels.",
            )
        need = shots + 1 if self.spec.imbalance else shots + self.spec.queries
        for pool in eligible:
            counts = zip(pool.task.labels, pool.counts, strict=True)
            short = [f"'{name}' has {count}" for name, count in counts if count < need]
            if short:
                raise DataError(
                    f"The task '{pool.task.name}' has labels with too few examples: {listing(short, 5)}.",
                    f"{shots} shots and {need - shots} queries need {need} different texts a label, each under no other label.",
                    "Add examples, remove these labels, or ask for fewer shots or queries.",
                )
        return eligible

    def draw(self, rng: np.random.Generator) -> Episode:
        pool = self._pools[int(rng.integers(len(self._pools)))]
        task = pool.task
        low, high = span(self.spec.ways)
        ways = int(rng.integers(low, min(high, len(task.labels)) + 1))
        chosen = [int(label) for label in rng.permutation(len(task.labels))[:ways]]
        shots, queries = self._sizes(rng, pool.counts[chosen])
        support, query = list[tuple[int, int]](), list[tuple[int, int]]()
        for position, label in enumerate(chosen):
            rows = pool.draw(rng, label, shots[position] + queries)
            support += [(row, position) for row in rows[: shots[position]]]
            query += [(row, position) for row in rows[shots[position] :]]
        return Episode(
            task=task.name,
            corpus=task.corpus.fingerprint,
            labels=tuple(task.labels[label] for label in chosen),
            support=_examples(task, support),
            query=_examples(task, query),
        )

    def _sizes(self, rng: np.random.Generator, counts: Rows) -> tuple[list[int], int]:
        """Draw the shots of each label, and the queries a label, for labels with so many different texts."""
        low, high = span(self.spec.shots)
        if not self.spec.imbalance:
            queries = self.spec.queries
            return [int(rng.integers(low, min(high, counts.min() - queries) + 1))] * len(counts), queries
        queries = int(min(self.spec.queries, max(1, counts.min() // 2), counts.min() - low))
        shares = counts * np.exp(rng.uniform(np.log(0.5), np.log(2.0), len(counts)))
        mean = rng.uniform(low, high + 1)
        shots = np.floor(mean * len(counts) * shares / shares.sum()).astype(int)
        return [int(shot) for shot in np.clip(shots, low, np.minimum(high, counts - queries))], queries


def _examples(task: Task, drawn: Sequence[tuple[int, int]]) -> Examples:
    rows = tuple(row for row, _ in drawn)
    return Examples(tuple(task.corpus.texts(rows)), tuple(label for _, label in drawn), rows)


def save_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Dump episodes as JSON Lines, texts included, so that they can be replayed without the data they were drawn from."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for episode in episodes:
            stream.write(json.dumps({"schema": _EPISODE_SCHEMA, **asdict(episode)}, ensure_ascii=False) + "\n")


def load_episodes(path: Path) -> list[Episode]:
    """Reload dumped episodes; they equal those that were dumped.

    Raises:
        DataError: no such file, or a line that is not an episode of a known schema.
    """
    if not path.is_file():
        raise DataError(f"No such file of episodes: '{path}'.")
    episodes = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                value = json.loads(line)
                newer = value.pop("schema") > _EPISODE_SCHEMA
                if not newer:
                    for side in ("support", "query"):
                        texts, labels, rows = (tuple(value[side][key]) for key in ("texts", "labels", "rows"))
                        annotations = tuple(value[side].get("annotations", ()))
                        value[side] = Examples(texts, labels, rows, int(value[side].get("names", 0)), annotations)
                    episodes.append(Episode(**{**value, "labels": tuple(value["labels"])}))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: not an episode ({error}).", mend="Dump the episodes again.") from error
            if newer:
                raise DataError(f"{path}, line {number}: an episode of a newer schema.", mend="Upgrade kshot.")
    return episodes
