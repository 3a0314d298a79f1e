"""The inner loop, shared by the gradient-based algorithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, Algorithm
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params
from kshot.models.select import HEAD, select


class InnerLoop(Algorithm):
    """What algorithms share that adapt by gradient steps. The hyperparameters are documented where they are declared."""

    inner_lr: float
    head_lr: float
    inner_steps: int
    adapt_steps: int | None
    adapts: str

    def __post_init__(self) -> None:
        for name in ("inner_lr", "head_lr", "inner_steps", "adapt_steps"):
            if not (getattr(self, name) or 0) >= 0:
                raise ConfigError(f"algorithm.{name} is {getattr(self, name)}.", "At least 0 is expected.")

    @property
    def moves_backbone(self) -> bool:
        return self.adapts != "head"

    @property
    def steps(self) -> int:
        """T: that of meta-training where gradients are enabled, that of adapting to a new task where not."""
        return self.inner_steps if torch.is_grad_enabled() or self.adapt_steps is None else self.adapt_steps

    def descend(self, learner: Learner, phi: Params, batch: Batch, steps: int, create_graph: bool = False) -> Adapted:
        """Return what moved in ``phi_{t+1} = phi_t - alpha * grad L(phi_t)`` after some steps on the batch."""
        moving = select(phi, self.adapts)
        if not any(name.startswith(HEAD) for name in moving):
            raise ConfigError(
                f"algorithm.adapts is '{self.adapts}', which leaves the head where all classes start alike: "
                "no step tells them apart.",
                "A selector with the head is expected, such as all, head, bias or top-K-layers.",
            )
        alpha = {name: self.head_lr if name.startswith(HEAD) else self.inner_lr for name in moving}
        batch = features_once(learner, batch, moving)
        for _ in range(steps):
            grads = gradient(learner, phi, moving, batch, create_graph)
            phi = phi | {name: phi[name] - alpha[name] * grads[name] for name in moving}
        return {name: phi[name] for name in moving}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        return learner.logits(learner.start(query.ways) | adapted, query)


def gradient(learner: Learner, params: Params, names: Sequence[str], batch: Batch, create_graph: bool) -> Params:
    """Return the gradient of the learner's loss at ``params`` with respect to the named ones.

    Args:
        create_graph: keep the graph, so that the gradient can be differentiated again (second order).
    """
    with torch.enable_grad():
        # what is neither asked for nor differentiated again needs no graph: below the lowest named layer nothing is kept
        at = dict(params) if create_graph else {name: value.detach() for name, value in params.items()}
        for name in names:
            if not at[name].requires_grad:
                at[name] = at[name].detach().requires_grad_()
        loss = learner.loss(at, batch)
        grads = torch.autograd.grad(loss, [at[name] for name in names], create_graph=create_graph, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


def features_once(learner: Learner, batch: Batch, moving: Sequence[str]) -> Batch:
    """Encode the batch once where only the head moves: the inner steps then cost next to nothing, and nothing changes."""
    return batch if any(not name.startswith(HEAD) for name in moving) else learner.featurised(batch)
