"""Per-label figures from the predictions of many episodes, pooled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kshot.evaluation.methods import Labels
from kshot.models import Batch
from kshot.models.kinds.tagging import f1
from kshot.tasks import Episode


class Confusions:
    """Counts of (true label, predicted label) by task."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, task: str, names: Sequence[str], truth: Labels, predicted: Labels) -> None:
        """Count an episode's predictions, given as numbers of its classes' names."""
        counter = self.counts.setdefault(task, Counter())
        for right, guess in zip(truth, predicted, strict=True):
            counter[names[right], names[guess]] += 1

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


class EntityCounts:
    """How many entities of each type were found, were found rightly, and are there, by task."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Counter[str]]] = {}

    def add(self, episode: Episode, predicted: Sequence[set[tuple[int, int, int]]], query: Batch) -> None:
        """Count an episode's entities, whose types are class numbers."""
        by_type = self._counts.setdefault(episode.task, {})
        for found, given in zip(predicted, query.targets, strict=True):
            for what, listed in (("found", found), ("given", given), ("right", found & set(given))):
                for _, _, number in listed:
                    by_type.setdefault(episode.labels[number - 1], Counter())[what] += 1

    def rows(self) -> list[dict[str, Any]]:
        """Return ``task, type, precision, recall, f1, support`` of every type, and of all together (``type`` "micro")."""
        listed = []
        for task, by_type in self._counts.items():
            every = sum(by_type.values(), Counter[str]())
            for name, counts in (*sorted(by_type.items()), ("micro", every)):
                precision, recall = (counts["right"] / max(1, counts[what]) for what in ("found", "given"))
                score = f1(*(counts[what] for what in ("right", "found", "given")))
                figures = {"precision": precision, "recall": recall, "f1": score}
                listed.append({"task": task, "type": name, **figures, "support": counts["given"]})
        return listed


def reliability(confidences: Sequence[tuple[float, bool]], bins: int = 15) -> list[dict[str, float]]:
    """Return the bins of a reliability diagram that hold something: ``confidence, accuracy, share``.

    Args:
        confidences: for each prediction its probability and whether it was right.
        bins: of equal width.

    References:
        Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, equations 2 and 3.
    """
    values = np.array(confidences, float).reshape(-1, 2)
    places = np.minimum((values[:, 0] * bins).astype(int), bins - 1)
    rows = [values[places == place] for place in range(bins)]
    return [
        {"confidence": float(row[:, 0].mean()), "accuracy": float(row[:, 1].mean()), "share": len(row) / len(values)}
        for row in rows
        if len(row)
    ]


def calibration_error(confidences: Sequence[tuple[float, bool]], bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart, on average over predictions.

    Example:
        >>> calibration_error([(0.9, True), (0.9, False)])
        0.4
    """
    return sum(row["share"] * abs(row["confidence"] - row["accuracy"]) for row in reliability(confidences, bins))


def _names(counter: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({name for pair in counter for name in pair})


def _figures(counter: Counter[tuple[str, str]], label: str) -> dict[str, float]:
    right = counter[label, label]
    truths = sum(count for (true, _), count in counter.items() if true == label)
    guesses = sum(count for (_, guess), count in counter.items() if guess == label)
    precision, recall = right / guesses if guesses else 0.0, right / truths if truths else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "queries": truths}
