"""From how many examples a label on a run labels by logistic regression: chosen on meta-validation tasks.

Class means are hard to beat from one example a label, and lose to a fitted head where there are several. Where that turns
depends on the encoder and on the kind of task, so it is measured, on tasks that are as new to the run as a user's will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kshot.meta import Algorithm
from kshot.models import Learner
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import EpisodeSampler, EpisodeSpec, Task
from kshot.tasks.episodes import usable_counts
from kshot.training.validation import episode_accuracies

CHOSEN = "chosen"
_SHOTS = (1, 2, 5, 10)
_QUERIES = 5
_SEED = 32_452_843  # apart from the streams of training, validation and calibration


def choose_head(learner: Learner, algorithm: Algorithm, tasks: Sequence[Task], episodes: int) -> dict[str, Any]:
    """Return the hyperparameters ``head`` and ``regression_shots`` that suit a run; empty where there is nothing to choose.

    The regression is taken from the fewest shots from which on, at all numbers of shots measured, it labels more texts
    rightly than prototypes do.

    Args:
        learner: at its meta-trained parameters.
        algorithm: how it adapts; only where its head is to be chosen is something done.
        tasks: of meta-validation.
        episodes: how many a number of shots and of ways; 0 leaves prototypes.
    """
    if getattr(algorithm, "head", None) != CHOSEN or getattr(algorithm, "metric", None) != "cosine":
        return {}
    least, texts = None, EncodedTexts(learner)
    for shots in _SHOTS:
        gain = _gain(learner, algorithm, tasks, shots, episodes, texts)
        if gain is not None:
            least = (least or shots) if gain > 0 else None
    return {"head": "prototypes"} if least is None else {"head": "regression", "regression_shots": least}


def _gain(
    learner: Learner, algorithm: Any, tasks: Sequence[Task], shots: int, episodes: int, texts: EncodedTexts
) -> float | None:
    """Return how much more accurate regression is than prototypes on average; None where no task has texts enough."""
    gains: list[float] = []
    able = [_narrowed(task, shots + _QUERIES) for task in tasks]
    most = max((len(task.labels) for task in able), default=0)
    for ways in sorted({min(5, most), most} - {0, 1}) if episodes else ():
        wide = [task for task in able if len(task.labels) >= ways]
        drawn = EpisodeSampler(wide, EpisodeSpec(ways, shots, _QUERIES), _SEED)[: episodes if ways <= 5 else episodes // 5 + 1]
        heads = [replace(algorithm, head=head, regression_shots=1) for head in ("regression", "prototypes")]
        fitted, means = (episode_accuracies(learner, each, drawn, texts) for each in heads)
        gains.append(mean([a - b for a, b in zip(fitted, means, strict=True)]).value)
    return sum(gains) / len(gains) if gains else None


def _narrowed(task: Task, texts: int) -> Task:
    """Return a task with the labels alone that have so many texts."""
    return task.with_labels({label for label, count in usable_counts(task).items() if count >= texts})
