"""What an evaluation compares: methods that learn an episode's support set and label its query set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kshot.meta.algorithm import adapted_safely
from kshot.models import Batch, Learner
from kshot.tasks import Episode
from kshot.training import Run

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]
Predict = Callable[[Episode, Batch], Labels | Probabilities]
"""Returns label indices (B,) or probabilities (B, N) of an episode's query set; the batch holds it as the method wants it."""


class Method(ABC):
    """One way to learn from a support set.

    Attributes:
        name: as reports show it.
        encoder: the frozen encoder whose text vectors the method works on; None where it takes tokens or texts.
        tokenizer: the learner that turns texts into token batches, for methods without an ``encoder`` that want tokens.
        names: whether the labels' names are among its support examples.
        slow: whether it takes seconds an episode, so that it is measured on fewer episodes.
    """

    name: str
    encoder: Learner | None = None
    tokenizer: Learner | None = None
    names: bool = False
    slow: bool = False

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
        def predict(episode: Episode, query: Batch) -> Probabilities:
            logits = algorithm.logits(learner, adapted, query)
            if trust is not None:
                logits = trust.calibrated(logits, (len(support) - support.names) / support.ways)
            return np.asarray(logits.softmax(-1).cpu(), np.float64)

        return predict


def as_labels(values: Any) -> Labels:
    """Return label indices as an int64 array."""
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, np.int64)
