"""What an evaluation compares: methods that learn an episode's support set and label its query set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta import ProtoNet
from kshot.meta.algorithm import adapted_safely
from kshot.meta.transductive import transductive_logits
from kshot.models import Batch, Learner
from kshot.models.kinds.qa import QALearner
from kshot.tasks import Episode
from kshot.training import Run

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Likelihood:
    """How likely a method finds an episode's query set.

    Args:
        nats: minus the logarithm of its probability.
        tokens: of what was to be predicted.
        bytes: of the same, in UTF-8, which does not depend on a tokenizer.
    """

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Answered:
    """How well a method answers an episode's questions.

    Args:
        f1: of the answers' words.
        exact_match: the share of answers that are one of those given.
    """

    f1: float
    exact_match: float


def unlabelled(learner: Learner, logits: Tensor, query: Batch) -> Likelihood | Answered:
    """Return how good a method's scores for a query set are, of a kind without labels."""
    if isinstance(learner, QALearner):
        return Answered(learner.score(logits, query), learner.exact(logits, query))
    return likelihood(learner, logits, query)


@torch.no_grad()
def likelihood(learner: Learner, scores: Tensor, query: Batch) -> Likelihood:
    """Return how likely a query set is, given the scores of the vocabulary for each of its tokens."""
    nats = float(learner.loss_of(scores, query)) * len(query)
    return Likelihood(nats, len(query), sum(len(str(text).encode()) for text in query.targets))


Predict = Callable[[Episode, Batch], Labels | Probabilities | Likelihood | Answered]
"""Returns label indices (B,) or probabilities (B, N) of an episode's query set, or how good it is where there are none.

The batch holds it as the method wants it.
"""


class Method(ABC):
    """One way to learn from a support set.

    Attributes:
        name: as reports show it.
        encoder: the frozen encoder whose text vectors the method works on; None where it takes tokens or texts.
        tokenizer: the learner that turns texts into token batches, for methods without an ``encoder`` that want tokens.
        names: whether the labels' names are among its support examples.
        slow: whether it takes seconds an episode, so that it is measured on fewer episodes.
        whole_texts: whether it can only label whole texts.
    """

    name: str
    encoder: Learner | None = None
    tokenizer: Learner | None = None
    names: bool = False
    slow: bool = False
    whole_texts: bool = False

    @abstractmethod
    def fit(self, episode: Episode, support: Batch) -> Predict:
        """Learn the episode's support set and return what labels its query set."""


class MetaTrained(Method):
    """The run under evaluation."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.name = f"{run.algorithm_name} (meta-trained)"
        self.names = run.learner.names
        if run.algorithm.moves_backbone:
            self.tokenizer = run.learner
        else:
            self.encoder = run.learner

    def fit(self, episode: Episode, support: Batch) -> Predict:
        learner, algorithm, trust = self._run.learner, self._run.algorithm, self._run.trust
        adapted = adapted_safely(algorithm, learner, support)

        @torch.no_grad()
        def predict(episode: Episode, query: Batch) -> Probabilities | Likelihood | Answered:
            logits = algorithm.logits(learner, adapted, query)
            if not learner.labelled:
                return unlabelled(learner, logits, query)
            if trust is not None:
                logits = trust.calibrated(logits, (len(support) - support.names) / support.ways)
            return np.asarray(logits.softmax(-1).cpu(), np.float64)

        return predict


class Transductive(MetaTrained):
    """The run under evaluation, where it may see an episode's queries together (`kshot.meta.transductive`)."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        algorithm = run.algorithm
        if not isinstance(algorithm, ProtoNet) or algorithm.metric != "cosine" or algorithm.moves_backbone:
            raise ConfigError(
                f"evaluation.transductive is asked of a run of {run.algorithm_name}.",
                "It needs protonet with the metric cosine and without finetune_steps.",
            )
        self._algorithm = algorithm
        self.name = f"{run.algorithm_name} (meta-trained), transductive"

    def fit(self, episode: Episode, support: Batch) -> Predict:
        @torch.no_grad()
        def predict(episode: Episode, query: Batch) -> Labels:
            return as_labels(transductive_logits(self._algorithm, self._run.learner, support, query).argmax(-1))

        return predict


def as_labels(values: Any) -> Labels:
    """Return label indices as an int64 array."""
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, np.int64)
