"""Prototypical networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, require_known
from kshot.meta.finetuning import fine_tuned
from kshot.meta.metric import Metric, class_means, head, one_hot, require_positive, unit
from kshot.meta.regression import UNTOUCHED, WEIGHT, class_scores, regression
from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.focus import encoded
from kshot.models.learner import Learner, Params

METRICS = ("cosine", "euclidean", "mahalanobis")
HEADS = ("chosen", "prototypes", "regression")


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
        leave_one_out: meta-train on support and query set together, each text being classified by class means that it is left
            out of: every text that is encoded teaches twice, as a query and as a support example.
        head: what labels a text: ``prototypes``, a logistic ``regression`` on the meta-trained vectors where a task has the
            shots for it, or ``chosen``: the regression where it is not clearly worse on meta-validation tasks, which
            `kshot.api.train` finds out at the end (`kshot.training.head`); prototypes until then. Meta-training is by
            prototypes whatever it is.
        regression_shots: examples a label from which on the regression is taken; with fewer, prototypes.
        regression_scale: what the regression's class scores are multiplied by, so that it is about as sure of itself as it is
            right; where the head is chosen, so is this.
        go_back: whether the regression may see a task by the encoder as it was before meta-training, where leaving out one
            example after another shows that this suits it better; a run then keeps both.
        lexical: whether the regression may also go by words and character n-grams, as far as leaving out one example after
            another shows that they help (`kshot.meta.regression`).
        finetune_steps: steps by which the encoder goes on learning on a support set when it adapts, by the loss of
            ``leave_one_out``; 0 for none. Meta-training is without them.
        finetune_lr: their peak rate.
        finetune_shots: examples a label from which on they are taken; with fewer there is little to learn from.

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
    leave_one_out: bool = False
    head: str = "chosen"
    regression_shots: int = 1
    regression_scale: float = 1.0
    lexical: bool = True
    go_back: bool = True
    finetune_steps: int = 0
    finetune_lr: float = 5e-5
    finetune_shots: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("metric", self.metric, METRICS)
        require_known("head", self.head, HEADS)
        for name in ("regression_shots", "regression_scale"):
            require_positive(name, getattr(self, name))
        asked = {name: getattr(self, name) for name in ("leave_one_out", "finetune_steps")} | {
            "head: regression": self.head == "regression"
        }
        for name in (name for name, wanted in asked.items() if wanted and self.metric != "cosine"):
            raise ConfigError(f"algorithm.{name} is asked with the metric '{self.metric}'.", "Expected cosine.")
        if self.finetune_steps < 0:
            raise ConfigError(f"algorithm.finetune_steps is {self.finetune_steps}.", "At least 0 is expected.")
        require_positive("finetune_lr", self.finetune_lr)

    @property
    def moves_backbone(self) -> bool:
        return self.finetune_steps > 0

    def meta_parameters(self, learner: Learner) -> Params:
        own = super().meta_parameters(learner)
        if self.metric != "cosine":
            own.pop("meta.scale", None)
        if self.metric == "mahalanobis":
            width = head(learner).shape[1]
            own["meta.factor"] = head(learner).new_zeros(width, width)
        return own

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        moved: Adapted = {}
        if (
            self.finetune_steps
            and support.features is None
            and len(support) - support.names >= self.finetune_shots * support.ways
        ):
            moved = fine_tuned(learner, support, self.left_out_loss, self.finetune_steps, self.finetune_lr)
            learner = learner.with_params(learner.params | moved)
        z, weights = self._embed(learner, support), self.weights(learner, support)
        moved |= {"prototypes": class_means(z, support, weights)}
        if self.head == "regression" and len(support) - support.names >= self.regression_shots * support.ways:
            moved |= regression(z, support, weights, self.lexical, _untouched(learner, support))
        return moved

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        if UNTOUCHED in adapted:
            z = _untouched(learner, query)
            assert z is not None
        else:
            z = self._embed(_moved(learner, adapted), query)
        if WEIGHT in adapted:
            return self.regression_scale * class_scores(z, query, adapted)
        c = adapted["prototypes"]
        if self.metric == "cosine":
            return self.inverse_temperature(learner) * z @ F.normalize(c, dim=-1).T
        return -(z.unsqueeze(1) - c).square().sum(-1)

    def reads_untouched(self, adapted: Adapted) -> bool:
        return UNTOUCHED in adapted

    def nearness(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor | None:
        if self.metric != "cosine":
            return None
        return (unit(_moved(learner, adapted), query) @ F.normalize(adapted["prototypes"], dim=-1).T).amax(-1)

    def episode_loss(self, learner: Learner, episode: EncodedEpisode) -> tuple[Tensor, Tensor]:
        if self.head == "regression":
            return replace(self, head="prototypes").episode_loss(learner, episode)
        episode = encoded(learner, episode)
        if not self.leave_one_out:
            return super().episode_loss(learner, episode)
        sides = episode.query, episode.support  # names stay last
        z, labels = torch.cat([unit(learner, side) for side in sides]), torch.cat([side.labels for side in sides])
        scores = self._left_out_scores(learner, Batch(labels, episode.ways, features=z, names=episode.support.names))
        return F.cross_entropy(scores, labels[: len(scores)]), scores[: len(episode.query)]

    def left_out_loss(self, learner: Learner, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch's texts, each left out of its class's mean; names are in means alone."""
        scores = self._left_out_scores(learner, batch)
        return F.cross_entropy(scores, batch.labels[: len(scores)])

    def _left_out_scores(self, learner: Learner, batch: Batch) -> Tensor:
        cosines = left_out_cosines(unit(learner, batch), batch, self.weights(learner, batch))
        return self.inverse_temperature(learner) * cosines[: len(batch) - batch.names]

    def _embed(self, learner: Learner, batch: Batch) -> Tensor:
        if self.metric == "cosine":
            return unit(learner, batch)
        z = learner.features(learner.params, batch)
        if self.metric == "euclidean":
            return z
        stored = self.meta(learner)["meta.factor"]
        return z @ (stored.tril(-1) + stored.diagonal().exp().diag())  # as row vectors: (z - c) M (z - c)' = ||(z - c) L||^2


def _moved(learner: Learner, adapted: Adapted) -> Learner:
    """Return the learner with the weights that fine-tuning moved, if any."""
    moved = {name: value for name, value in adapted.items() if name in learner.params}
    return learner.with_params(learner.params | moved) if moved else learner


def _untouched(learner: Learner, batch: Batch) -> Tensor | None:
    """Return the vectors (B, H), of unit length, of the encoder before meta-training; None where that was not kept."""
    z = batch.untouched
    if z is None and batch.features is None and (before := learner.before()) is not None:
        with torch.no_grad():
            z = before.features(before.params, batch)
    return None if z is None else F.normalize(z, dim=-1)


def left_out_cosines(z: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Return the cosines (B, N) of unit vectors with the class means, each example being left out of the mean of its class.

    One that is alone in its class stays in, and so has the cosine 1, whose gradient is 0.
    """
    members = one_hot(batch, z) * weights.unsqueeze(1)
    sums, weighted = members.T @ z, weights.unsqueeze(1) * z
    alone = batch.labels.bincount(minlength=batch.ways)[batch.labels] == 1
    own = torch.where(alone.unsqueeze(1), weighted, sums[batch.labels] - weighted)
    others = z @ F.normalize(sums, dim=-1).T
    return others.scatter(1, batch.labels.unsqueeze(1), (z * F.normalize(own, dim=-1)).sum(-1, keepdim=True))
