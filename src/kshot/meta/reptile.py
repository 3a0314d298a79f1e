"""Reptile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, Algorithm, Metrics, accuracy
from kshot.meta.gradient import features_once, gradient
from kshot.models.batch import Batch, EncodedEpisode, join
from kshot.models.learner import Learner
from kshot.models.select import select


@dataclass(frozen=True)
class Reptile(Algorithm):
    """Move the initialisation towards the weights that plain training on each task ends at.

    With U the result of T gradient steps on the task's examples from theta (algorithm 2 of the paper)::

        theta <- theta + epsilon * mean over tasks of (U(theta) - theta)

    The meta-loss is 1/2 ||theta - U||^2 with U held constant, whose gradient is theta - U, so that any outer optimiser applies.
    Meta-training uses the support and the query set of an episode together: Reptile needs no split.

    Args:
        inner_lr: the rate of the inner steps, for the backbone.
        head_lr: that of the head.
        inner_steps: T in meta-training.
        adapt_steps: T when adapting to a new task; None for ``inner_steps``.
        adapts: the selector of what moves in the inner loop.

    References:
        Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999.

    Example:
        >>> Reptile(inner_steps=3).twice_differentiable
        False
    """

    inner_lr: float = 1e-2
    head_lr: float = 10.0
    inner_steps: int = 5
    adapt_steps: int | None = None
    adapts: str = "all"

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ConfigError(
                f"algorithm.inner_steps is {self.inner_steps}.",
                "Reptile needs at least 1: without a step nothing is learned.",
            )

    @property
    def moves_backbone(self) -> bool:
        return self.adapts != "head"

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        meta_training = torch.is_grad_enabled()
        steps = self.inner_steps if meta_training or self.adapt_steps is None else self.adapt_steps
        phi = {name: value.detach() for name, value in learner.start(support.ways).items()}
        moving = select(phi, self.adapts)
        with torch.no_grad():
            support = features_once(learner, support, moving)
        for _ in range(steps):
            grads = gradient(learner, phi, moving, support, create_graph=False)
            phi |= {name: phi[name] - self._alpha(name) * grads[name] for name in moving}
        return {name: phi[name] for name in moving}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        return learner.logits(learner.start(query.ways) | adapted, query)

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Metrics]:
        distances, right = [], 0.0
        for episode in episodes:
            u = self.adapt(learner, join(episode.support, episode.query))
            theta = learner.start(episode.ways)
            distances.append(torch.stack([(theta[name] - u[name]).square().sum() for name in u]).sum() / 2)
            with torch.no_grad():
                right += accuracy(self.logits(learner, u, episode.query), episode.query.labels) / len(episodes)
        return torch.stack(distances).mean(), {"accuracy": right}

    def _alpha(self, name: str) -> float:
        return self.head_lr if name.startswith("head.") else self.inner_lr
