"""Per-label figures from the predictions of many episodes, pooled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

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
