"""What a run knows of its own confidence: a temperature and an out-of-scope threshold, fitted on meta-validation tasks.

A new task has too few examples to calibrate on. The tasks of meta-validation have plenty, and they are as new to the run as a
user's task will be: what holds over many of them is handed on. Both depend on the shots and ways of a task::

    log T = a + b log K + c log N        probabilities = softmax(logits / T), a, b, c by maximum likelihood
    t = a + b log K + c log N            in scope where score >= t, a, b, c by quantile regression

with N the labels, K the mean number of examples a label. The texts that are out of scope while fitting are those of labels that
an episode does not have. Which score tells them apart best is chosen by its AUROC.

References:
    Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599 (temperature scaling, ECE).
    Hendrycks, Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", arXiv:1610.02136.
    Liu, Wang, Owens, Li 2020, "Energy-based Out-of-distribution Detection", arXiv:2010.03759.
    Koenker, Bassett 1978, "Regression Quantiles", Econometrica 46.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.linear_model import QuantileRegressor
from sklearn.metrics import roc_auc_score
from torch import Tensor

from kshot.meta import Algorithm
from kshot.models import Learner
from kshot.models.features import encode_once
from kshot.tasks import Episode, EpisodeSampler, EpisodeSpec, Examples, Task
from kshot.tasks.episodes import usable_counts

KEPT = 0.95  # of the texts in scope that the threshold lets through
_SEED = 15_485_863  # apart from the streams of training and validation
_QUERIES = 5

SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "probability": lambda logits: logits.softmax(-1).amax(-1),
    "logit": lambda logits: logits.amax(-1),
    "energy": lambda logits: logits.logsumexp(-1),
}
"""How sure a task is that a text is its own, of calibrated class scores (B, N): the larger the surer, (B,)."""
NEARNESS = "nearness"  # one more, which an algorithm itself has: `Algorithm.nearness`


@dataclass(frozen=True)
class Trust:
    """A run's calibration.

    Args:
        temperature: a, b and c of the logarithm of the temperature.
        score: one of `SCORES`, or `NEARNESS`.
        threshold: a, b and c of the least score of a text in scope.
    """

    temperature: tuple[float, float, float] = (0.0, 0.0, 0.0)
    score: str = "probability"
    threshold: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def calibrated(self, logits: Tensor, shots: float) -> Tensor:
        """Return class scores (B, N) whose softmax is calibrated, of a task with so many examples a label."""
        return logits / float(np.exp(np.dot(self.temperature, _shape(shots, logits.shape[-1]))))

    def scores(self, calibrated: Tensor, nearness: Tensor | None) -> Tensor:
        """Return how sure it is that texts are in scope (B,), of calibrated class scores and the algorithm's nearness."""
        if self.score != NEARNESS:
            return SCORES[self.score](calibrated)
        assert nearness is not None
        return nearness

    def least(self, shots: float, ways: int) -> float:
        """Return the threshold: a text with a lower score is out of scope."""
        return float(np.dot(self.threshold, _shape(shots, ways)))


def _shape(shots: float, ways: int) -> tuple[float, float, float]:
    return 1.0, float(np.log(shots)), float(np.log(ways))


@dataclass(frozen=True)
class _Answers:
    """What an adapted episode says of texts in and out of its scope: class scores (B, N), right labels (B,), its shots, and how
    near the texts are (B,), where the algorithm says.
    """

    inside: Tensor
    labels: Tensor
    outside: Tensor
    shots: float
    near: tuple[Tensor, Tensor] | None = None

    def scored(self, trust: Trust, score: str) -> tuple[Tensor, Tensor]:
        """Return the scores of the texts in and out of scope."""
        trust, near = replace(trust, score=score), self.near or (None, None)
        inside, outside = (
            trust.scores(trust.calibrated(logits, self.shots), one)
            for logits, one in zip((self.inside, self.outside), near, strict=True)
        )
        return inside, outside


def fit_trust(learner: Learner, algorithm: Algorithm, tasks: Sequence[Task], episodes: int) -> Trust | None:
    """Fit a run's calibration on tasks that it was not trained on.

    Args:
        learner: at its meta-trained parameters.
        algorithm: how it adapts.
        tasks: of meta-validation.
        episodes: how many to adapt to, over several numbers of shots and ways.

    Returns:
        None where no task has three labels, so that a label can be left out.
    """
    drawn = [pair for spec in _shapes(tasks) for pair in _episodes(tasks, spec, episodes)]
    if not drawn or not episodes:
        return None
    drawn = drawn[:: max(1, len(drawn) // episodes)]
    answers = _answers(learner, algorithm, drawn)
    temperature = _fit_temperature(answers)
    names = [*SCORES, *([NEARNESS] if answers[0].near is not None else [])]
    scored = {name: [answer.scored(Trust(temperature), name) for answer in answers] for name in names}
    score = max(names, key=lambda name: _auroc(scored[name]))
    return Trust(temperature, score, _fit_threshold(answers, [inside for inside, _ in scored[score]]))


def _shapes(tasks: Sequence[Task]) -> list[EpisodeSpec]:
    """Return shapes of episodes that the tasks allow: few and many ways, few and more shots, each with a label to leave out."""
    most = max((len(task.labels) for task in tasks), default=0)
    fewest = min((min(usable_counts(task).values()) for task in tasks if len(task.labels) >= 3), default=0)
    shots = sorted({shots for shots in (1, 5, 10) if shots + _QUERIES <= fewest})
    return [EpisodeSpec(ways + 1, s, _QUERIES) for ways in sorted({2, min(5, most - 1), most - 1}) if ways >= 2 for s in shots]


def _episodes(tasks: Sequence[Task], spec: EpisodeSpec, count: int) -> list[tuple[Episode, Examples]]:
    """Draw episodes, and of each the texts of the labels that are left out of it: one in six, at least one."""
    assert isinstance(spec.ways, int)
    out = max(1, spec.ways // 6)
    able = [task for task in tasks if len(task.labels) >= spec.ways]
    return [_without(episode, spec.ways - out) for episode in EpisodeSampler(able, spec, _SEED)[:count]] if able else []


def _without(episode: Episode, ways: int) -> tuple[Episode, Examples]:
    """Return an episode with its first labels alone, and the query texts of the others."""

    def only(examples: Examples, inside: bool) -> Examples:
        kept = [i for i, label in enumerate(examples.labels) if (label < ways) is inside]
        rows = tuple(examples.rows[i] for i in kept) if examples.rows else ()
        return Examples(tuple(examples.texts[i] for i in kept), tuple(examples.labels[i] for i in kept), rows)

    narrowed = replace(
        episode, labels=episode.labels[:ways], support=only(episode.support, True), query=only(episode.query, True)
    )
    return narrowed, only(episode.query, False)


@torch.no_grad()
def _answers(learner: Learner, algorithm: Algorithm, drawn: Sequence[tuple[Episode, Examples]]) -> list[_Answers]:
    """Adapt to each episode, and score the texts in and out of scope in one batch."""
    quiet = replace(learner, dropout=False)
    joined = [replace(episode, query=_join(episode.query, outside)) for episode, outside in drawn]
    encoded = map(quiet.encode, joined) if algorithm.moves_backbone else encode_once(quiet, joined)
    answers = []
    for (episode, _), both in zip(drawn, encoded, strict=True):
        adapted, inside, shots = algorithm.adapt(quiet, both.support), len(episode.query), len(episode.support) / episode.ways
        logits = algorithm.logits(quiet, adapted, both.query).double().cpu()
        near = algorithm.nearness(quiet, adapted, both.query)
        parts = None if near is None else (near[:inside].double().cpu(), near[inside:].double().cpu())
        answers.append(_Answers(logits[:inside], both.query.labels[:inside].cpu(), logits[inside:], shots, parts))
    return answers


def _join(first: Examples, second: Examples) -> Examples:
    return Examples(first.texts + second.texts, first.labels + (0,) * len(second), first.rows + second.rows)


def _fit_temperature(answers: Sequence[_Answers]) -> tuple[float, float, float]:
    """Minimise the negative log-likelihood of the right labels."""

    def loss(parameters: np.ndarray) -> float:
        trust = Trust(tuple(parameters))
        terms = [
            torch.nn.functional.cross_entropy(trust.calibrated(a.inside, a.shots), a.labels, reduction="sum") for a in answers
        ]
        # the slopes are held near 0, where few shapes were there to learn them from
        return float(sum(terms)) / sum(len(a.labels) for a in answers) + 1e-3 * float(parameters[1:] @ parameters[1:])

    found = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6, "maxiter": 400}).x
    return float(found[0]), float(found[1]), float(found[2])


def _fit_threshold(answers: Sequence[_Answers], scores: Sequence[Tensor]) -> tuple[float, float, float]:
    """Fit the score that all but one in twenty texts in scope exceed."""
    shapes = [_shape(a.shots, a.inside.shape[-1])[1:] for a in answers]
    x = np.repeat(np.array(shapes), [len(score) for score in scores], axis=0)
    fitted = QuantileRegressor(quantile=1 - KEPT, alpha=0.0).fit(x, torch.cat(list(scores)).numpy())
    return float(fitted.intercept_), float(fitted.coef_[0]), float(fitted.coef_[1])


def _auroc(scored: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the mean over episodes: a score need not compare between tasks."""
    return float(
        np.mean(
            [
                roc_auc_score([1] * len(inside) + [0] * len(outside), torch.cat([inside, outside]).numpy())
                for inside, outside in scored
            ]
        )
    )
