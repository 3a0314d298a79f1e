"""What the metric-based algorithms share: they compare text vectors, and the backbone stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError
from kshot.meta.algorithm import Algorithm
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params

NAMES = "meta.names"


class Metric(Algorithm):
    """An algorithm with a scale, the inverse temperature of its softmax, which is a meta-parameter where ``learn_scale`` holds.

    The scale is stored as its logarithm, so that no step makes it negative and equal steps multiply it by equal factors. So is
    the weight of a label's name, where names are support examples: one learned number says how many texts a name is worth.

    References:
        Oreshkin, Rodriguez, Lacoste 2018, "TADAM: Task dependent adaptive metric for improved few-shot learning",
        arXiv:1805.10123 (a learned scale of the metric, section 3.1).
    """

    scale: float
    learn_scale: bool = True

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)

    def meta_parameters(self, learner: Learner) -> Params:
        scale = {"meta.scale": head(learner).new_tensor(self.scale).log()} if self.learn_scale else {}
        return scale | ({NAMES: head(learner).new_zeros(())} if learner.names else {})

    def meta(self, learner: Learner) -> Params:
        """Return the learner's ``meta.*``; their start where it has none, since it was not meta-trained with the algorithm."""
        return {n: v for n, v in learner.params.items() if n.startswith("meta.")} or self.meta_parameters(learner)

    def inverse_temperature(self, learner: Learner) -> Tensor | float:
        """Return the scale."""
        return self.meta(learner)["meta.scale"].exp() if self.learn_scale else self.scale

    def weights(self, learner: Learner, batch: Batch) -> Tensor:
        """Return how much each example counts (B,): a text 1, the name of a label as much as was learned."""
        like = head(learner)
        name = learner.params[NAMES].exp() if NAMES in learner.params else like.new_ones(())
        return torch.cat([like.new_ones(len(batch) - batch.names), name.expand(batch.names)])


def head(learner: Learner) -> Tensor:
    """Return the head's start (1, H), which an algorithm's own parameters share the width, type and device of."""
    return learner.params["head.weight"].detach()


def unit(learner: Learner, batch: Batch) -> Tensor:
    """Return text vectors (B, H) of unit length."""
    return F.normalize(learner.features(learner.params, batch), dim=-1)


def one_hot(batch: Batch, like: Tensor) -> Tensor:
    """Return the labels as rows of zeros and a one (B, N), of the type of ``like``."""
    return F.one_hot(batch.labels, batch.ways).to(like.dtype)


def class_means(z: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """Return the mean vector of each class (N, H), of examples that count as much as their weights (B,) say."""
    members = one_hot(batch, z)
    members = members if weights is None else members * weights.unsqueeze(1)
    return members.T @ z / members.sum(0).unsqueeze(1)


def log_sum_by_class(log_p: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Return the logarithm of the sum of exp(log_p) (B, n) over the columns of each class (B, N), whatever their size.

    Example:
        >>> log_sum_by_class(torch.tensor([[0.0, -1000.0, -1000.0]]), torch.tensor([0, 1, 1]), 2).round().tolist()
        [[0.0, -999.0]]
    """
    top = log_p.new_full((len(log_p), ways), -torch.inf)
    top = top.scatter_reduce(1, labels.expand(len(log_p), -1), log_p.detach(), "amax")  # taken out, so that no exp vanishes
    return top + ((log_p - top[:, labels]).exp() @ F.one_hot(labels, ways).to(log_p.dtype)).log()


def require_positive(name: str, value: float) -> None:
    """Refuse a hyperparameter that is not above 0."""
    if not value > 0:
        raise ConfigError(f"algorithm.{name} is {value}.", "A number above 0 is expected.")
