"""The inner loop's gradient, shared by the gradient-based algorithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params


def gradient(learner: Learner, params: Params, names: Sequence[str], batch: Batch, create_graph: bool) -> Params:
    """Return the gradient of the learner's loss at ``params`` with respect to the named ones.

    Args:
        create_graph: keep the graph, so that the gradient can be differentiated again (second order).
    """
    with torch.enable_grad():
        at = dict(params)
        for name in names:
            if not at[name].requires_grad:
                at[name] = at[name].detach().requires_grad_()
        loss = learner.loss(at, batch)
        grads = torch.autograd.grad(loss, [at[name] for name in names], create_graph=create_graph, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


def features_once(learner: Learner, batch: Batch, moving: Sequence[str]) -> Batch:
    """Encode the batch once where only the head moves: the inner steps then cost next to nothing, and nothing changes."""
    return batch if any(not name.startswith("head.") for name in moving) else learner.featurised(batch)
