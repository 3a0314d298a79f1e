"""Model-agnostic meta-learning, of second order, of first order, and implicit; ANIL, BOIL and ProtoMAML are presets of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, require_known
from kshot.meta.hypergradient import HYPERGRADIENTS, Options
from kshot.meta.inner import InnerLoop, last
from kshot.models.batch import Batch
from kshot.models.focus import focus
from kshot.models.learner import Learner


@dataclass(frozen=True)
class MAML(InnerLoop):
    """Learn an initialisation from which a few gradient steps on a task's support set do well on its query set.

    With L_S and L_Q the support and query loss, theta the meta-parameters and alpha the inner rate (algorithm 1)::

        phi_0 = theta,   phi_{t+1} = phi_t - alpha * grad L_S(phi_t)
        meta-loss(theta) = mean over tasks of L_Q(phi_T(theta))

    Args:
        hypergradient: how d phi_T / d theta is had: ``graph`` (exact), ``checkpointed`` (exact, in the memory of one step),
            ``implicit`` (iMAML; wants ``l2_to_start``), ``first-order`` (the identity).
        first_order_steps: meta-updates that are of first order before the others (Antoniou et al. 2019, section 4).
        cg_steps: products with the Hessian, for ``implicit``.

    The other arguments are those of `kshot.meta.inner.InnerLoop`.

    References:
        Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", arXiv:1703.03400.
        Raghu, Raghu, Bengio, Vinyals 2020, "Rapid Learning or Feature Reuse?", arXiv:1909.09157 (ANIL: ``adapts="head"``).
        Oh, Yoo, Kim, Yun 2021, "BOIL", arXiv:2008.08882 (``adapts="body", head_start="learned"``).
        Triantafillou et al. 2020, "Meta-Dataset", arXiv:1903.03096 (ProtoMAML: ``head_start="prototypes"``).
        Rajeswaran, Finn, Kakade, Levine 2019, "Meta-Learning with Implicit Gradients", arXiv:1909.04630 (iMAML).

    Example:
        >>> anil = MAML(adapts="head", inner_lr=0.1)
        >>> anil.twice_differentiable, anil.moves_backbone
        (False, False)
    """

    hypergradient: str = "graph"
    first_order_steps: int = 0
    cg_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("hypergradient", self.hypergradient, HYPERGRADIENTS)
        for name, least in (("first_order_steps", 0), ("cg_steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"algorithm.{name} is {getattr(self, name)}.", f"At least {least} is expected.")
        if self.hypergradient == "implicit" and not (self.l2_to_start > 0 and self.inner_steps > 0):
            raise ConfigError(
                f"algorithm.hypergradient is 'implicit' with l2_to_start {self.l2_to_start} and {self.inner_steps} step(s).",
                "The implicit gradient needs l2_to_start above 0, which ties the result to the start, and at least 1 step.",
            )

    @property
    def twice_differentiable(self) -> bool:
        return self.hypergradient != "first-order" and self.moves_backbone

    def at(self, step: int) -> Self:
        return replace(self, hypergradient="first-order") if step < self.first_order_steps else self

    def trajectory(self, learner: Learner, support: Batch, every: bool = False) -> Iterator[Adapted]:
        """Yield phi_T, and with ``every`` phi_1 ... before it."""
        return self.descend(learner, support, HYPERGRADIENTS[self.hypergradient], Options(every, self.cg_steps))

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        narrow = focus(learner, support)
        return narrow.widen(last(self.trajectory(narrow.learner, narrow.batches[0])))
