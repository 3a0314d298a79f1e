"""The inner loop that the gradient-based algorithms share: a start, what moves, its rates, and steps on the support loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, Algorithm, require_known
from kshot.meta.heads import HEAD_STARTS
from kshot.meta.hypergradient import Hypergradient, Options, first_order, leaves
from kshot.meta.optimizers import OPTIMIZERS
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params
from kshot.models.select import HEAD, select

FEATURES, STATES = "batch.features", "batch.states."


@dataclass(frozen=True)
class InnerLoop(Algorithm):
    """What the gradient-based algorithms have in common.

    Args:
        inner_lr: alpha, the rate of the inner steps for the backbone.
        head_lr: alpha for the head, which sees vectors of unit length and wants a larger step.
        inner_steps: T, in meta-training.
        adapt_steps: T when adapting to a new task; None for ``inner_steps``.
        adapts: the selector of what moves.
        optimizer: ``sgd``, ``momentum`` or ``adam``.
        l2_to_start: lambda of ``lambda/2 ||phi - theta||^2`` in the inner loss, with theta the start.
        head_start: ``shared``, ``zero``, ``learned`` or ``prototypes``; see `kshot.meta.heads`.
        ways: the most classes of a ``learned`` start.
    """

    inner_lr: float = 1e-2
    head_lr: float = 10.0
    inner_steps: int = 5
    adapt_steps: int | None = None
    adapts: str = "all"
    optimizer: str = "sgd"
    l2_to_start: float = 0.0
    head_start: str = "shared"
    ways: int = 5

    def __post_init__(self) -> None:
        for name in ("inner_lr", "head_lr", "inner_steps", "adapt_steps", "l2_to_start"):
            if not (getattr(self, name) or 0) >= 0:
                raise ConfigError(f"algorithm.{name} is {getattr(self, name)}.", "At least 0 is expected.")
        if self.ways < 2:
            raise ConfigError(f"algorithm.ways is {self.ways}.", "At least 2 is expected.")
        require_known("optimizer", self.optimizer, OPTIMIZERS)
        require_known("head_start", self.head_start, HEAD_STARTS)

    @property
    def moves_backbone(self) -> bool:
        return self.adapts != "head"

    @property
    def steps(self) -> int:
        """T: that of meta-training where gradients are enabled, that of adapting to a new task where not."""
        return self.inner_steps if torch.is_grad_enabled() or self.adapt_steps is None else self.adapt_steps

    def meta_parameters(self, learner: Learner) -> Params:
        return HEAD_STARTS[self.head_start].parameters(learner, self.ways)

    def start(self, learner: Learner, support: Batch) -> Params:
        """Return theta, with a head for the support set's classes."""
        return learner.start(support.ways) | HEAD_STARTS[self.head_start].start(learner, support)

    def moving(self, theta: Params) -> tuple[str, ...]:
        """Return the names in theta of what the inner loop moves."""
        moving = select(theta, self.adapts)
        headed = any(name.startswith(HEAD) for name in theta)
        if headed and HEAD_STARTS[self.head_start].alike and not any(name.startswith(HEAD) for name in moving):
            raise ConfigError(
                f"algorithm.adapts is '{self.adapts}', which leaves the head where all classes start alike: "
                "no step tells them apart.",
                "A selector with the head is expected, such as all, head, bias or top-K-layers, "
                "or another algorithm.head_start (learned, prototypes).",
            )
        return moving

    def rate(self, theta: Params, name: str, t: int) -> float | Tensor:
        """Return alpha of a parameter at step t."""
        return self.head_lr if name.startswith(HEAD) else self.inner_lr

    def conditioned(self, params: Params) -> Params:
        """Return the parameters that the learner is evaluated at; CAVIA's depend on its context."""
        return params

    def descend(
        self, learner: Learner, support: Batch, method: Hypergradient = first_order, options: Options | None = None
    ) -> Iterator[Adapted]:
        """Yield what adapting made after each step, or after the last alone; the start where T is 0.

        Args:
            learner: with its meta-parameters.
            support: the examples to descend on.
            method: how the meta-gradient gets through the steps.
            options: what that method takes.
        """
        theta = self.start(learner, support)
        made = {name: theta[name] for name in theta if HEAD_STARTS[self.head_start].of_support and name.startswith(HEAD)}
        moving = self.moving(theta)
        support = encoded_once(learner, support, moving)
        if support.features is not None:
            theta |= {FEATURES: support.features}
        theta |= {f"{STATES}{number}": states for number, states in enumerate(support.states)}
        problem = SupportLoss(self, learner, support, moving)
        if not self.steps:
            yield made | {name: theta[name] for name in moving}
        chosen = method if torch.is_grad_enabled() else first_order
        for phi in chosen(problem, theta, self.steps, options or Options()):
            yield made | phi

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        head = HEAD_STARTS[self.head_start]
        theta = learner.start(query.ways) | ({} if head.of_support else head.start(learner, query))
        return learner.logits(self.conditioned(theta | adapted), query)


@dataclass(frozen=True)
class SupportLoss:
    """The inner problem of one task (see `kshot.meta.hypergradient.InnerProblem`)."""

    algorithm: InnerLoop
    learner: Learner
    support: Batch
    moving: tuple[str, ...]

    def objective(self, theta: Params, phi: Params) -> Tensor:
        """Return ``L_S(phi) + lambda/2 ||phi - theta||^2``."""
        support = self.support
        if support.features is not None:
            support = support.with_features(theta[FEATURES])
        elif support.states:
            states = tuple(theta[f"{STATES}{number}"] for number in range(len(support.states)))
            support = support.with_states(states, support.first_layer)
        loss = self.learner.loss(self.algorithm.conditioned(theta | phi), support)
        if self.algorithm.l2_to_start:
            squares = [(value - theta[name]).square().sum() for name, value in phi.items()]
            loss = loss + self.algorithm.l2_to_start / 2 * torch.stack(squares).sum()
        return loss

    def step(self, t: int, theta: Params, phi: Params, state: Params, create_graph: bool) -> tuple[Params, Params]:
        with torch.enable_grad():
            if create_graph:  # an alias of each, since a start that was computed from others would bring their derivative in
                at = {n: x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for n, x in phi.items()}
            else:
                at = leaves(phi)
            # what is not differentiated again needs no graph: below the lowest layer that moves nothing is kept
            context = theta if create_graph else {name: value.detach() for name, value in theta.items()}
            objective = self.objective(context, at)
            grads = torch.autograd.grad(objective, list(at.values()), create_graph=create_graph, materialize_grads=True)
        rates = {name: self.algorithm.rate(theta, name, t) for name in phi}
        return OPTIMIZERS[self.algorithm.optimizer](phi, dict(zip(at, grads, strict=True)), rates, state, t)


def encoded_once(learner: Learner, batch: Batch, moving: Sequence[str]) -> Batch:
    """Apply once what lies below everything that moves: the encoder where only the head does, else its lower layers."""
    below = [name for name in moving if not name.startswith(HEAD)]
    return learner.lowered(batch, below) if below else learner.featurised(batch)


def last(results: Iterator[Adapted]) -> Adapted:
    """Return the last of some results; those before it are forgotten as they come."""
    (result,) = deque(results, maxlen=1)
    return result
