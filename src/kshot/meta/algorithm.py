"""The one contract of every meta-learning algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from kshot.errors import ConfigError, TrainingError, listing, nearest
from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.focus import encoded, focused
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

    def nearness(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor | None:
        """Return how near texts are to what the task knows (B,), where an algorithm has a measure of it beside class scores."""
        return None

    def reads_untouched(self, adapted: Adapted) -> bool:
        """Whether what was adapted labels texts by the encoder as it was before meta-training."""
        return False

    def at(self, step: int) -> Algorithm:
        """Return the algorithm as it is at a meta-update, counted from 0: some change in the course of the training."""
        return self

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Metrics]:
        """Return the loss, averaged over episodes and differentiable in ``learner.params``, and what to show of it."""
        losses, score = [], 0.0
        for episode in episodes:
            narrow, focal = focused(learner, episode)
            loss, logits = self.episode_loss(narrow, focal if self.moves_backbone else encoded(narrow, focal))
            losses.append(loss)
            score += learner.score(logits.detach(), episode.query) / len(episodes)
        return torch.stack(losses).mean(), {learner.metric: score}

    def episode_loss(self, learner: Learner, episode: EncodedEpisode) -> tuple[Tensor, Tensor]:
        """Return an episode's meta-loss and the query set's class scores (B, N).

        By default the query set's loss after adapting to the support set.
        """
        logits = self.logits(learner, self.adapt(learner, episode.support), episode.query)
        return learner.loss_of(logits, episode.query), logits


def adapted_safely(algorithm: Algorithm, learner: Learner, support: Batch) -> Adapted:
    """Adapt without a graph, for use.

    Raises:
        TrainingError: the inner loop diverged.
    """
    with torch.no_grad():
        adapted = algorithm.adapt(learner, support)
    for name, value in adapted.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"Adapting to {len(support)} examples diverged: '{name}' is no longer a finite number.",
                "Inner rates at which the steps settle are expected.",
                "Meta-train with a smaller algorithm.inner_lr or algorithm.head_lr, or with fewer steps.",
            )
    return adapted


def require_known(name: str, value: str, known: Collection[str]) -> None:
    """Refuse a hyperparameter that names none of what is known.

    Raises:
        ConfigError: with the nearest name.
    """
    if value not in known:
        raise ConfigError(f"algorithm.{name} is '{value}'.{nearest(value, known)}", f"Expected {listing(known)}.")
