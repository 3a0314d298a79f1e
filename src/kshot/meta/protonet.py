"""Prototypical networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kshot.meta.algorithm import Adapted, require_known
from kshot.meta.metric import Metric, class_means, head, unit
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params

METRICS = ("cosine", "euclidean", "mahalanobis")


@dataclass(frozen=True)
class ProtoNet(Metric):
    """Classify by the nearest class mean of an embedding that episodes train.

    With f the encoder and S_k the support examples of class k (equations 1 and 2 of the paper)::

        c_k = 1/|S_k| sum_{x in S_k} f(x)
        p(y = k | x) = softmax_k( -d(f(x), c_k) )
        meta-loss = mean over queries (x, y) of -log p(y | x)

    Where labels' names are support examples, a name counts in its mean as much as was learned. The metrics are::

        cosine:       -d = scale * cos(f(x), c_k),  f(x) of unit length
        euclidean:     d = ||f(x) - c_k||^2
        mahalanobis:   d = (f(x) - c_k)' M (f(x) - c_k),  M = L L' shared by all tasks

    L is lower triangular with the exponential of its stored diagonal, so that M is positive-definite whatever is learned, and
    one M has one L (Pinheiro & Bates); it starts at the identity, where the metric is euclidean.

    Args:
        metric: ``cosine``, ``euclidean`` or ``mahalanobis``.
        scale: the inverse temperature of the cosine, or where it starts.
        learn_scale: whether the scale is meta-learned.

    References:
        Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning", arXiv:1703.05175.
        Gidaris, Komodakis 2018, "Dynamic Few-Shot Visual Learning without Forgetting", arXiv:1804.09458 (scaled cosine).
        Bateni, Goyal, Masrani, Wood, Sigal 2020, "Improved Few-Shot Visual Classification", arXiv:1912.03432 (Mahalanobis
        distance to class means; there of covariances estimated in each task).
        Pinheiro, Bates 1996, "Unconstrained parametrizations for variance-covariance matrices", Statistics and Computing 6.

    Example:
        >>> ProtoNet(metric="euclidean").twice_differentiable
        False
    """

    metric: str = "cosine"
    scale: float = 20.0
    learn_scale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("metric", self.metric, METRICS)

    def meta_parameters(self, learner: Learner) -> Params:
        own = super().meta_parameters(learner)
        if self.metric != "cosine":
            own.pop("meta.scale", None)
        if self.metric == "mahalanobis":
            width = head(learner).shape[1]
            own["meta.factor"] = head(learner).new_zeros(width, width)
        return own

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        return {"prototypes": class_means(self._embed(learner, support), support, self.weights(learner, support))}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        z, c = self._embed(learner, query), adapted["prototypes"]
        if self.metric == "cosine":
            return self.inverse_temperature(learner) * z @ F.normalize(c, dim=-1).T
        return -(z.unsqueeze(1) - c).square().sum(-1)

    def _embed(self, learner: Learner, batch: Batch) -> Tensor:
        if self.metric == "cosine":
            return unit(learner, batch)
        z = learner.features(learner.params, batch)
        if self.metric == "euclidean":
            return z
        stored = self.meta(learner)["meta.factor"]
        return z @ (stored.tril(-1) + stored.diagonal().exp().diag())  # as row vectors: (z - c) M (z - c)' = ||(z - c) L||^2
