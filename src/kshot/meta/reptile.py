"""Reptile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, Metrics, accuracy
from kshot.meta.gradient import InnerLoop
from kshot.models.batch import Batch, EncodedEpisode, join
from kshot.models.learner import Learner


@dataclass(frozen=True)
class Reptile(InnerLoop):
    """Move the initialisation towards the weights that plain training on each task ends at.

    With U the result of T gradient steps on the task's examples from theta (algorithm 2 of the paper)::

        theta <- theta + epsilon * mean over tasks of (U(theta) - theta)

    The meta-loss is 1/2 ||theta - U||^2 with U held constant, whose gradient is theta - U, so that any outer optimiser applies.
    Meta-training uses the support and the query set of an episode together: Reptile needs no split. So its training accuracy is
    on examples that the steps have seen.

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
        super().__post_init__()
        if self.inner_steps < 1:
            raise ConfigError(
                f"algorithm.inner_steps is {self.inner_steps}.",
                "Reptile needs at least 1: without a step nothing is learned.",
            )
        if self.adapts == "head":
            raise ConfigError(
                "algorithm.adapts is 'head', and the moves of the classes cancel in the start that they share.",
                "Reptile learns where the backbone moves: all, bias or top-K-layers.",
            )

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        steps = self.steps
        with torch.no_grad():
            return self.descend(learner, learner.start(support.ways), support, steps)

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Metrics]:
        distances, right = [], 0.0
        for episode in episodes:
            u = self.adapt(learner, join(episode.support, episode.query))
            theta = learner.start(episode.ways)
            distances.append(torch.stack([(theta[name] - u[name]).square().sum() for name in u]).sum() / 2)
            with torch.no_grad():
                right += accuracy(self.logits(learner, u, episode.query), episode.query.labels) / len(episodes)
        return torch.stack(distances).mean(), {"accuracy": right}
