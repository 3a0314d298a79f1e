"""Reptile."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted
from kshot.meta.heads import HEAD_STARTS
from kshot.meta.inner import InnerLoop, last
from kshot.models.batch import Batch, EncodedEpisode, join
from kshot.models.focus import focus
from kshot.models.learner import Learner
from kshot.models.select import HEAD


@dataclass(frozen=True)
class Reptile(InnerLoop):
    """Move the initialisation towards the weights that plain training on each task ends at.

    With U the result of T gradient steps on the task's examples from theta (algorithm 2 of the paper)::

        theta <- theta + epsilon * mean over tasks of (U(theta) - theta)

    The meta-loss is 1/2 ||theta - U||^2 with U held constant, whose gradient is theta - U, so that any outer optimiser applies.
    Meta-training uses the support and the query set of an episode together: Reptile needs no split. So its training accuracy is
    on examples that the steps have seen.

    The arguments are those of `kshot.meta.inner.InnerLoop`.

    References:
        Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999.

    Example:
        >>> Reptile(inner_steps=3).twice_differentiable
        False
    """

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
        narrow, steps = focus(learner, support), self.steps
        with torch.no_grad():
            return narrow.widen(last(replace(self, adapt_steps=steps).descend(narrow.learner, narrow.batches[0])))

    def episode_loss(self, learner: Learner, episode: EncodedEpisode) -> tuple[Tensor, Tensor]:
        u = self.adapt(learner, join(episode.support, episode.query))
        theta = self.start(learner, episode.support)
        own = [name for name in u if not (name.startswith(HEAD) and HEAD_STARTS[self.head_start].of_support)]
        distance = torch.stack([(theta[name] - u[name]).square().sum() for name in own]).sum() / 2
        with torch.no_grad():
            return distance, self.logits(learner, u, episode.query)
