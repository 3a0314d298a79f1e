"""The one contract of every meta-learning algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner, Params

Adapted = Params
"""What an adaptation made: fast weights by parameter name, or ``prototypes``. Stored in an adapted task as it is."""

Metrics = dict[str, float]


class Algorithm(ABC):
    """How a learner adapts to a support set, and the meta-loss of that on the query set.

    An algorithm is a frozen dataclass of its hyperparameters. It holds no tensors: what is meta-learned lives in the learner's
    parameters, where `meta_parameters` may add an algorithm's own (learned rates, a metric's covariance) under ``meta.``.

    Gradients flow through `adapt` where they are enabled around it; under ``torch.no_grad()`` it adapts plainly.
    """

    @property
    def twice_differentiable(self) -> bool:
        """Whether the meta-gradient needs the backbone's second derivative (and so its plain attention)."""
        return False

    @property
    def moves_backbone(self) -> bool:
        """Whether adaptation changes how texts are encoded; where not, an evaluation encodes every text once."""
        return False

    def meta_parameters(self, learner: Learner) -> Params:
        """Return the algorithm's own meta-parameters at their start, under names that begin with ``meta.``."""
        return {}

    @abstractmethod
    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        """Return the result of adapting to the support set. Pure: nothing is mutated."""

    @abstractmethod
    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        """Return the adapted learner's class scores (B, N)."""

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Metrics]:
        """Return the loss, averaged over episodes and differentiable in ``learner.params``, and what to show of it.

        By default the query sets' cross-entropy after adapting to the support sets.
        """
        losses, right = [], 0.0
        for episode in episodes:
            logits = self.logits(learner, self.adapt(learner, episode.support), episode.query)
            losses.append(F.cross_entropy(logits, episode.query.labels))
            right += accuracy(logits, episode.query.labels) / len(episodes)
        return torch.stack(losses).mean(), {"accuracy": right}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest score is at their label."""
    return float((logits.argmax(-1) == labels).double().mean())
