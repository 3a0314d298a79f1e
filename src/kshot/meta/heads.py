"""Where a task's head starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kshot.errors import ConfigError
from kshot.meta.metric import class_means, unit
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params

WEIGHT, BIAS = "meta.head.weight", "meta.head.bias"
_SCALE = 10.0  # of class vectors that are made and not shared: features are of unit length


@dataclass(frozen=True)
class HeadStart:
    """One way to start a head.

    Args:
        start: returns ``head.weight`` (N, H) and ``head.bias`` (N,) for a task's classes, given its support set.
        parameters: returns what is meta-learned of it, given the learner and the most classes.
        alike: whether all classes start with the same vector, so that the head must move.
        of_support: whether it depends on the support set's texts, so that an adapted task must keep it.
    """

    start: Callable[[Learner, Batch], Params]
    parameters: Callable[[Learner, int], Params] = lambda learner, ways: {}
    alike: bool = False
    of_support: bool = False


def _shared(learner: Learner, support: Batch) -> Params:
    return {}  # the learner's own start


def _zero(learner: Learner, support: Batch) -> Params:
    weight = learner.params["head.weight"]
    return {"head.weight": weight.new_zeros(support.ways, weight.shape[1]), "head.bias": weight.new_zeros(support.ways)}


def _learned(learner: Learner, support: Batch) -> Params:
    most = len(learner.params[WEIGHT])
    if support.ways > most:
        raise ConfigError(
            f"The head was meta-trained for at most {most} classes, and the task has {support.ways}.",
            mend=f"Meta-train with algorithm.ways={support.ways}, or with head_start shared or prototypes, "
            "which serve any number.",
        )
    return {"head.weight": learner.params[WEIGHT][: support.ways], "head.bias": learner.params[BIAS][: support.ways]}


def _class_vectors(learner: Learner, ways: int) -> Params:
    """Return orthogonal class vectors, the same ones every time."""
    like = learner.params["head.weight"]
    drawn = torch.randn(like.shape[1], ways, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = _SCALE * torch.linalg.qr(drawn).Q.T
    return {WEIGHT: weight.to(like), BIAS: like.new_zeros(ways)}


def _prototypes(learner: Learner, support: Batch) -> Params:
    """``w_k = 2 s c_k, b_k = -s ||c_k||^2``, so that the logits are ``-s ||z - c_k||^2`` up to what all classes share."""
    z = unit(learner, support)
    c = class_means(z, support)
    return {"head.weight": 2 * _SCALE * c, "head.bias": -_SCALE * c.square().sum(1)}


HEAD_STARTS: dict[str, HeadStart] = {
    "shared": HeadStart(_shared, alike=True),  # one meta-trained vector for all classes (Ye & Chao 2022, arXiv:2106.16245)
    "zero": HeadStart(_zero, alike=True),
    "learned": HeadStart(_learned, _class_vectors),  # a vector for each class, as MAML's paper has it
    "prototypes": HeadStart(_prototypes, of_support=True),  # Triantafillou et al. 2020, arXiv:1903.03096, section 3
}
