"""Prototypical networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError, listing, nearest
from kshot.meta.algorithm import Adapted, Algorithm
from kshot.models.batch import Batch
from kshot.models.learner import Learner

METRICS = ("cosine", "euclidean")


@dataclass(frozen=True)
class ProtoNet(Algorithm):
    """Classify by the nearest class mean of an embedding that episodes train.

    With f the encoder and S_k the support examples of class k (equations 1 and 2 of the paper)::

        c_k = 1/|S_k| sum_{x in S_k} f(x)
        p(y = k | x) = softmax_k( -d(f(x), c_k) )
        meta-loss = mean over queries (x, y) of -log p(y | x)

    Args:
        metric: ``euclidean``, d = ||f(x) - c_k||^2; or ``cosine``, -d = scale * cos(f(x), c_k) with f(x) of unit length.
        scale: the inverse temperature of the cosine.

    References:
        Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning", arXiv:1703.05175.
        Gidaris, Komodakis 2018, "Dynamic Few-Shot Visual Learning without Forgetting", arXiv:1804.09458 (scaled cosine).

    Example:
        >>> ProtoNet(metric="euclidean").twice_differentiable
        False
    """

    metric: str = "cosine"
    scale: float = 20.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(
                f"algorithm.metric is '{self.metric}'.{nearest(self.metric, METRICS)}", f"Expected {listing(METRICS)}."
            )
        if not self.scale > 0:
            raise ConfigError(f"algorithm.scale is {self.scale}.", "A number above 0 is expected.")

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        z = self._embed(learner, support)
        members = F.one_hot(support.labels, support.ways).to(z.dtype)  # (B, N)
        return {"prototypes": members.T @ z / members.sum(0).unsqueeze(1)}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        z, c = self._embed(learner, query), adapted["prototypes"]
        if self.metric == "cosine":
            return self.scale * z @ F.normalize(c, dim=-1).T
        return -(z.unsqueeze(1) - c).square().sum(-1)

    def _embed(self, learner: Learner, batch: Batch) -> Tensor:
        z = learner.features(learner.params, batch)
        return F.normalize(z, dim=-1) if self.metric == "cosine" else z
