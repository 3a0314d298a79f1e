"""Prototypical networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError, listing, nearest
from kshot.meta.algorithm import Adapted, Algorithm, Metrics, accuracy
from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner

METRICS = ("cosine", "euclidean")


@dataclass(frozen=True)
class ProtoNet(Algorithm):
    """Classify by the nearest class mean of an embedding that episodes train.

    With f the encoder and S_k the support examples of class k (equations 1 and 2 of the paper)::

        c_k = 1/|S_k| sum_{x in S_k} f(x)
        p(y = k | x) = softmax_k( -d(f(x), c_k) )

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

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        z = self._embed(learner, support)
        members = F.one_hot(support.labels, support.ways).to(z.dtype)  # (B, N)
        return {"prototypes": members.T @ z / members.sum(0).unsqueeze(1)}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        z, c = self._embed(learner, query), adapted["prototypes"]
        if self.metric == "cosine":
            return self.scale * z @ F.normalize(c, dim=-1).T
        return -(z.unsqueeze(1) - c).square().sum(-1)

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Metrics]:
        losses, right = [], 0.0
        for episode in episodes:
            logits = self.logits(learner, self.adapt(learner, episode.support), episode.query)
            losses.append(F.cross_entropy(logits, episode.query.labels))
            right += accuracy(logits, episode.query.labels) / len(episodes)
        return torch.stack(losses).mean(), {"accuracy": right}

    def _embed(self, learner: Learner, batch: Batch) -> Tensor:
        z = learner.features(learner.params, batch)
        return F.normalize(z, dim=-1) if self.metric == "cosine" else z
