"""Model-agnostic meta-learning, of second and of first order; ANIL is ``MAML(adapts="head")``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted
from kshot.meta.gradient import InnerLoop
from kshot.models.batch import Batch
from kshot.models.learner import Learner


@dataclass(frozen=True)
class MAML(InnerLoop):
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
        super().__post_init__()
        if self.order not in (1, 2):
            raise ConfigError(f"algorithm.order is {self.order}.", "Expected 1 (first order) or 2 (second order).")

    @property
    def twice_differentiable(self) -> bool:
        return self.order == 2 and self.moves_backbone

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        theta = learner.start(support.ways)
        second_order = self.order == 2 and torch.is_grad_enabled()
        return self.descend(learner, theta, support, self.steps, create_graph=second_order)
