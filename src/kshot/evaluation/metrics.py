"""Per-label figures from the predictions of many episodes, pooled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from kshot.evaluation.methods import Labels
from kshot.tasks import Episode


class Confusions:
    """Counts of (true label, predicted label) by task."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, episode: Episode, predicted: Labels) -> None:
        """Count an episode's predictions."""
        counter = self.counts.setdefault(episode.task, Counter())
        for truth, guess in zip(episode.query.labels, predicted, strict=True):
            counter[episode.labels[truth], episode.labels[guess]] += 1

    def labels(self) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of every label: ``task, label, precision, recall, f1, queries``."""
        return [
            {"task": task, "label": label, **_figures(counter, label)}
            for task, counter in self.counts.items()
            for label in _names(counter)
        ]

    def macro(self) -> dict[str, float]:
        """Return precision, recall and F1 averaged over all labels of all tasks."""
        rows = self.labels()
        return {f"macro_{name}": sum(row[name] for row in rows) / len(rows) for name in ("precision", "recall", "f1")}

    def matrix(self, task: str) -> dict[str, Any]:
        """Return a task's labels and the matrix of counts, a row a true label."""
        counter = self.counts[task]
        names = _names(counter)
        return {"task": task, "labels": names, "matrix": [[counter[true, guess] for guess in names] for true in names]}


def _names(counter: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({name for pair in counter for name in pair})


def _figures(counter: Counter[tuple[str, str]], label: str) -> dict[str, float]:
    right = counter[label, label]
    truths = sum(count for (true, _), count in counter.items() if true == label)
    guesses = sum(count for (_, guess), count in counter.items() if guess == label)
    precision, recall = right / guesses if guesses else 0.0, right / truths if truths else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "queries": truths}
