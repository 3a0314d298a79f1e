"""From how many examples a label on a run labels by logistic regression: chosen on meta-validation tasks.

Class means are hard to beat from one example a label, and lose to a fitted head where there are several. Where that turns
depends on the encoder and on the kind of task, so it is measured, on tasks that are as new to the run as a user's will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from kshot.meta import Algorithm
from kshot.meta.regression import REGRESSION
from kshot.models import Learner
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import Episode, EpisodeSpec, Schema, Task
from kshot.tasks.schema import CLASSIFICATION

Answers = list[tuple[Tensor, Tensor]]
"""Class scores (B, N) and labels (B,) of an episode's query set, for each episode."""

CHOSEN = "chosen"
_SHOTS = (1, 2, 5, 10)
_QUERIES = 5
_WAYS = 5
_SEED = 32_452_843  # apart from the streams of training, validation and calibration


def choose_head(
    learner: Learner, algorithm: Algorithm, tasks: Sequence[Task], episodes: int, schema: Schema = CLASSIFICATION
) -> dict[str, Any]:
    """Return the hyperparameters ``head``, ``regression_shots`` and ``regression_scale`` that suit a run; empty where there is
    nothing to choose.

    The regression is taken from the fewest shots from which on, at all numbers of shots measured, it does not label clearly
    fewer texts rightly than prototypes do (by the 95% interval of the paired difference): on most tasks it labels more. Its
    scale is that of the greatest likelihood: prototypes have a meta-learned one, and one calibration (`kshot.training.trust`)
    is to serve both heads.

    Args:
        learner: at its meta-trained parameters.
        algorithm: how it adapts; only where its head is to be chosen is something done.
        tasks: of meta-validation.
        episodes: how many a number of shots and of ways; 0 leaves prototypes.
        schema: how episodes of the tasks' kind are drawn.
    """
    if getattr(algorithm, "head", None) != CHOSEN or getattr(algorithm, "metric", None) != "cosine":
        return {}
    least, texts, measured = None, EncodedTexts(learner), dict[int, Answers]()
    for shots in _SHOTS:
        gain, measured[shots] = _measured(learner, algorithm, _drawn(tasks, shots, episodes, schema), texts)
        if gain is not None:
            least = (least or shots) if gain >= 0 else None
    if least is None:
        return {"head": "prototypes"}
    answers = [answer for shots, answers in measured.items() if shots >= least for answer in answers]
    return {"head": "regression", "regression_shots": least, "regression_scale": _scale(answers)}


@torch.no_grad()
def _measured(
    learner: Learner, algorithm: Any, episodes: Iterable[Sequence[Episode]], texts: EncodedTexts
) -> tuple[float | None, Answers]:
    """Return how much better regression is than prototypes at best, None where there are no episodes, and its class scores with
    the labels.

    At best: the upper end of the 95% interval, averaged over few and all ways.
    """
    gains, answers = list[float](), Answers()
    both = replace(algorithm, head="regression", regression_shots=1)
    for drawn in episodes:
        gained = list[float]()
        for episode in map(learner.encode, drawn) if both.moves_backbone else texts.episodes(drawn):
            adapted = both.adapt(learner, episode.support)
            fitted = both.logits(learner, adapted, episode.query)
            without = {name: value for name, value in adapted.items() if not name.startswith(REGRESSION)}
            means = both.logits(learner, without, episode.query)
            right, before = (learner.score(scores, episode.query) for scores in (fitted, means))
            gained.append(right - before)
            answers.append((fitted.double().cpu(), episode.query.labels.cpu()))
        gain = mean(gained)
        gains.append(gain.value + (gain.ci95 if gain.count > 1 else 0.0))
    return (sum(gains) / len(gains) if gains else None), answers


def _scale(answers: Answers) -> float:
    """Return the scale at which the regression's answers, class scores with the labels, are most likely."""

    def loss(log_scale: float) -> float:
        terms = [cross_entropy(np.exp(log_scale) * scores, labels, reduction="sum") for scores, labels in answers]
        return float(sum(terms)) / sum(len(labels) for _, labels in answers)

    return round(float(np.exp(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x)), 3)


def _drawn(tasks: Sequence[Task], shots: int, episodes: int, schema: Schema) -> Iterator[Sequence[Episode]]:
    """Yield episodes of few and of all ways, fewer of the wide ones; none where no task has texts enough."""
    able = [_narrowed(task, shots + _QUERIES, schema) for task in tasks]
    most = max((len(task.labels) for task in able), default=0)
    for ways in sorted({min(_WAYS, most), most} - {0, 1}) if episodes else ():
        wide = [task for task in able if len(task.labels) >= ways]
        count = episodes if ways <= _WAYS else episodes // 5 + 1
        yield schema.episodes(wide, EpisodeSpec(ways, shots, _QUERIES), _SEED)[:count]


def _narrowed(task: Task, texts: int, schema: Schema) -> Task:
    """Return a task with the labels alone that have so many texts."""
    return task.with_labels({label for label, count in schema.usable(task).items() if count >= texts})
