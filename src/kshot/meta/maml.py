"""Model-agnostic meta-learning, of second and of first order; ANIL is ``MAML(adapts="head")``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, Algorithm, Metrics, accuracy
from kshot.meta.gradient import features_once, gradient
from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner
from kshot.models.select import select


@dataclass(frozen=True)
class MAML(Algorithm):
    """Learn an initialisation from which a few gradient steps on a task's support set do well on its query set.

    With L_S and L_Q the support and query loss, theta the meta-parameters and alpha the inner rate (algorithm 1)::

        phi_0 = theta,   phi_{t+1} = phi_t - alpha * grad L_S(phi_t)
        meta-loss(theta) = mean over tasks of L_Q(phi_T(theta))

    Order 2 differentiates through the steps; order 1 takes d phi_T / d theta as the identity.

    Args:
        inner_lr: alpha, for the backbone.
        head_lr: alpha for the head, which sees vectors of unit length and wants a larger step.
        inner_steps: T in meta-training.
        adapt_steps: T when adapting to a new task; None for ``inner_steps``.
        order: 2 or 1.
        adapts: the selector of what moves in the inner loop; ``head`` is ANIL.

    References:
        Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", arXiv:1703.03400.
        Raghu, Raghu, Bengio, Vinyals 2020, "Rapid Learning or Feature Reuse?", arXiv:1909.09157 (ANIL).

    Example:
        >>> anil = MAML(adapts="head", inner_lr=0.1)
        >>> anil.twice_differentiable, anil.moves_backbone
        (False, False)
    """

    inner_lr: float = 1e-2
    head_lr: float = 10.0
    inner_steps: int = 5
    adapt_steps: int | None = None
    order: int = 2
    adapts: str = "all"

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"algorithm.order is {self.order}.", "Expected 1 (first order) or 2 (second order).")
        if self.inner_steps < 0 or (self.adapt_steps or 0) < 0:
            raise ConfigError(f"algorithm.inner_steps is {self.inner_steps}.", "At least 0 is expected.")

    @property
    def twice_differentiable(self) -> bool:
        return self.order == 2 and self.moves_backbone

    @property
    def moves_backbone(self) -> bool:
        return self.adapts != "head"

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        differentiable = torch.is_grad_enabled()
        steps = self.inner_steps if differentiable or self.adapt_steps is None else self.adapt_steps
        phi = learner.start(support.ways)
        moving = select(phi, self.adapts)
        support = features_once(learner, support, moving)
        for _ in range(steps):
            grads = gradient(learner, phi, moving, support, create_graph=differentiable and self.order == 2)
            phi |= {name: phi[name] - self._alpha(name) * grads[name] for name in moving}
        return {name: phi[name] for name in moving}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        return learner.logits(learner.start(query.ways) | adapted, query)

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Metrics]:
        losses, right = [], 0.0
        for episode in episodes:
            logits = self.logits(learner, self.adapt(learner, episode.support), episode.query)
            losses.append(F.cross_entropy(logits, episode.query.labels))
            right += accuracy(logits, episode.query.labels) / len(episodes)
        return torch.stack(losses).mean(), {"accuracy": right}

    def _alpha(self, name: str) -> float:
        return self.head_lr if name.startswith("head.") else self.inner_lr
