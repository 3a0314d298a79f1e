"""Fine-tuning at adaptation: where a task has many examples, the encoder goes on learning on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kshot.meta.algorithm import Adapted
from kshot.models.batch import Batch
from kshot.models.learner import Learner
from kshot.models.select import BACKBONE

Loss = Callable[[Learner, Batch], Tensor]
_MOST_TEXTS = 64  # a step
_EACH = 4  # texts of a label, where it has as many


def fine_tuned(learner: Learner, support: Batch, loss: Loss, steps: int, lr: float) -> Adapted:
    """Return the encoder's weights, all but its word vectors, after some steps of AdamW on batches of a support set.

    A batch has a few texts of each of some labels, and these labels' names. Word vectors stay: a few texts move a few of them,
    and an adapted task would have to keep them all.

    Args:
        learner: where to start; it is not changed.
        support: the examples, as tokens.
        loss: of a learner on a batch, differentiable.
        steps: how many.
        lr: the peak rate, which falls linearly to nothing.
    """
    words = learner.backbone.word_vectors[0]
    moving = {
        name: value.detach().clone().requires_grad_()
        for name, value in learner.params.items()
        if name.startswith(BACKBONE) and name != words
    }
    at_rest = learner.params | moving
    optimizer = torch.optim.AdamW(moving.values(), lr=lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)  # the same examples give the same task
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss(learner.with_params(at_rest), _drawn(support, generator)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
            optimizer.step()
    return {name: value.detach() for name, value in moving.items()}


def _drawn(support: Batch, generator: torch.Generator) -> Batch:
    """Draw a batch: the labels in random order until it is full, up to `_EACH` texts of each, their names last.

    Units of one text are not drawn apart: a few sentences are a batch.
    """
    if support.spans is not None:
        return support
    texts = len(support) - support.names
    labels = support.labels[:texts].cpu()
    order = torch.randperm(texts, generator=generator)
    chosen: list[int] = []
    kept: list[int] = []
    for label in torch.randperm(support.ways, generator=generator).tolist():
        own = order[labels[order] == label][:_EACH].tolist()
        if chosen and len(chosen) + len(own) > _MOST_TEXTS:
            break
        chosen += own
        kept.append(label)
    rows = torch.tensor(chosen + ([texts + label for label in kept] if support.names else []), device=support.labels.device)
    assert support.input_ids is not None and support.mask is not None
    position = torch.full((support.ways,), -1, device=support.labels.device)
    position[kept] = torch.arange(len(kept), device=support.labels.device)
    width = int(support.mask[rows].sum(1).max())
    return replace(
        support,
        labels=position[support.labels[rows]],
        ways=len(kept),
        input_ids=support.input_ids[rows, :width],
        mask=support.mask[rows, :width],
        names=len(kept) if support.names else 0,
        texts=(),
    )
