"""Relation networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted, require_known
from kshot.meta.metric import NAMES, Metric, class_means, head, one_hot, unit
from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner, Params

LOSSES = ("cross-entropy", "mse")


@dataclass(frozen=True)
class Relation(Metric):
    """Classify by a learned comparison of a text with each class.

    With f the encoder, c_k the mean of class k's support vectors, both brought to length sqrt(H), and g a network of two layers
    (equations 1 and 2 of the paper, with the mean in place of its sum, so that any number of shots compares)::

        s_k(x) = g([c_k, f(x), |c_k - f(x)|, c_k * f(x)])
        mse:            meta-loss = mean over queries and classes of (sigmoid(s_k(x)) - 1{y = k})^2
        cross-entropy:  meta-loss = mean over queries of -log softmax_k( s_k(x) ) at k = y

    |c - f| and c * f (Conneau et al.) spare g from finding out what a product is. Its units are GELU, as an encoder's are. Two
    start at plus and minus the cosine, the others at random and unheard. Since gelu(t) - gelu(-t) = t, the score starts at
    exactly scale * cos(c_k, f(x)): a g at random would first have to find that like texts are related.

    The paper's loss is ``mse``. The default is ``cross-entropy``: classes exclude each other, its gradient does not vanish
    where a sigmoid saturates, and it does not reward calling all N classes unrelated, which is right N - 1 times out of N.

    Args:
        hidden: units of the hidden layer.
        loss: ``cross-entropy`` or ``mse``.
        scale: where the scale of the cosine starts.

    References:
        Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, "Learning to Compare: Relation Network for Few-Shot Learning",
        arXiv:1711.06025.
        Conneau, Kiela, Schwenk, Barrault, Bordes 2017, "Supervised Learning of Universal Sentence Representations from Natural
        Language Inference Data", arXiv:1705.02364.

    Example:
        >>> Relation(loss="mse").moves_backbone
        False
    """

    hidden: int = 64
    loss: str = "cross-entropy"
    scale: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden >= 2:
            raise ConfigError(f"algorithm.hidden is {self.hidden}.", "At least 2 is expected: two units start at the cosine.")
        require_known("loss", self.loss, LOSSES)

    def meta_parameters(self, learner: Learner) -> Params:
        like, width = head(learner), head(learner).shape[1]
        noise = torch.randn(self.hidden, 4 * width, generator=torch.Generator().manual_seed(0)) / (4 * width) ** 0.5
        inner, outer = noise.to(like), like.new_zeros(1, self.hidden)
        inner[:2], outer[0, :2] = 0.0, like.new_tensor([1.0, -1.0])
        inner[:2, 3 * width :] = like.new_tensor([[self.scale], [-self.scale]]) / width
        start = {"inner.weight": inner, "inner.bias": like.new_zeros(self.hidden), "outer.weight": outer}
        if self.loss == "mse":  # in a softmax over classes it cancels
            start["outer.bias"] = like.new_tensor([-self.scale / 2])
        names = {name: value for name, value in super().meta_parameters(learner).items() if name == NAMES}
        return names | {f"meta.relation.{name}": value for name, value in start.items()}

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        return {"prototypes": class_means(unit(learner, support), support, self.weights(learner, support))}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        g = {name.removeprefix("meta.relation."): value for name, value in self.meta(learner).items()}
        z, c = unit(learner, query).unsqueeze(1), F.normalize(adapted["prototypes"], dim=-1)
        # entries of about 1, as random weights want them
        z, c = (v.expand(len(query), query.ways, -1) * v.shape[-1] ** 0.5 for v in (z, c))
        pairs = torch.cat([c, z, (c - z).abs(), c * z], -1)
        units = F.gelu(F.linear(pairs, g["inner.weight"], g["inner.bias"]))
        return F.linear(units, g["outer.weight"], g.get("outer.bias")).squeeze(-1)

    def episode_loss(self, learner: Learner, episode: EncodedEpisode) -> tuple[Tensor, Tensor]:
        if self.loss == "cross-entropy":
            return super().episode_loss(learner, episode)
        scores = self.logits(learner, self.adapt(learner, episode.support), episode.query)
        return F.mse_loss(scores.sigmoid(), one_hot(episode.query, scores)), scores
