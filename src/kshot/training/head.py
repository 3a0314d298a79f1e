"""From how many examples a label on a run labels by logistic regression: chosen on meta-validation tasks.

Class means are hard to beat from one example a label, and lose to a fitted head where there are several. Where that turns
depends on the encoder and on the kind of task, so it is measured, on tasks that are as new to the run as a user's will be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from kshot.meta import Algorithm
from kshot.models import Learner
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import Episode, EpisodeSampler, EpisodeSpec, Task
from kshot.tasks.episodes import usable_counts
from kshot.training.validation import episode_accuracies

CHOSEN = "chosen"
_SHOTS = (1, 2, 5, 10)
_QUERIES = 5
_WAYS = 5
_SEED = 32_452_843  # apart from the streams of training, validation and calibration


def choose_head(learner: Learner, algorithm: Algorithm, tasks: Sequence[Task], episodes: int) -> dict[str, Any]:
    """Return the hyperparameters ``head``, ``regression_shots`` and ``regression_scale`` that suit a run; empty where there is
    nothing to choose.

    The regression is taken from the fewest shots from which on, at all numbers of shots measured, it labels more texts
    rightly than prototypes do. Its scale is that of the greatest likelihood: prototypes have a meta-learned one, and one
    calibration (`kshot.training.trust`) is to serve both heads.

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
    if least is None:
        return {"head": "prototypes"}
    chosen = {"head": "regression", "regression_shots": least}
    fitted: Any = algorithm  # a dataclass
    return chosen | {"regression_scale": _scale(learner, replace(fitted, **chosen), tasks, episodes, texts)}


def _gain(
    learner: Learner, algorithm: Any, tasks: Sequence[Task], shots: int, episodes: int, texts: EncodedTexts
) -> float | None:
    """Return how much more accurate regression is than prototypes on average; None where no task has texts enough."""
    gains: list[float] = []
    heads = [replace(algorithm, head=head, regression_shots=1) for head in ("regression", "prototypes")]
    for drawn in _drawn(tasks, shots, episodes):
        fitted, means = (episode_accuracies(learner, each, drawn, texts) for each in heads)
        gains.append(mean([a - b for a, b in zip(fitted, means, strict=True)]).value)
    return sum(gains) / len(gains) if gains else None


@torch.no_grad()
def _scale(learner: Learner, algorithm: Algorithm, tasks: Sequence[Task], episodes: int, texts: EncodedTexts) -> float:
    """Return the scale at which the regression's answers are most likely, over the numbers of shots that it is taken at."""
    scores, labels = list[Tensor](), list[Tensor]()
    for shots in (shots for shots in _SHOTS if shots >= getattr(algorithm, "regression_shots", 1)):
        for drawn in _drawn(tasks, shots, episodes):
            for episode in texts.episodes(drawn):
                adapted = algorithm.adapt(learner, episode.support)
                scores.append(algorithm.logits(learner, adapted, episode.query).double().cpu())
                labels.append(episode.query.labels.cpu())

    def loss(log_scale: float) -> float:
        terms = [cross_entropy(np.exp(log_scale) * s, y, reduction="sum") for s, y in zip(scores, labels, strict=True)]
        return float(sum(terms)) / sum(map(len, labels))

    return round(float(np.exp(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x)), 3)


def _drawn(tasks: Sequence[Task], shots: int, episodes: int) -> Iterator[Sequence[Episode]]:
    """Yield episodes of few and of all ways, fewer of the wide ones; none where no task has texts enough."""
    able = [_narrowed(task, shots + _QUERIES) for task in tasks]
    most = max((len(task.labels) for task in able), default=0)
    for ways in sorted({min(_WAYS, most), most} - {0, 1}) if episodes else ():
        wide = [task for task in able if len(task.labels) >= ways]
        count = episodes if ways <= _WAYS else episodes // 5 + 1
        yield EpisodeSampler(wide, EpisodeSpec(ways, shots, _QUERIES), _SEED)[:count]


def _narrowed(task: Task, texts: int) -> Task:
    """Return a task with the labels alone that have so many texts."""
    return task.with_labels({label for label, count in usable_counts(task).items() if count >= texts})
