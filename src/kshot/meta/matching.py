"""Matching networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError
from kshot.meta.algorithm import Adapted
from kshot.meta.metric import Metric, head, log_sum_by_class, unit
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params


@dataclass(frozen=True)
class Matching(Metric):
    """Classify by attention over the support examples, each of which votes for its label.

    With f the encoder, S = {(x_i, y_i)} the support set and y_i a one-hot row (equation 1 of the paper)::

        a(x, x_i) = softmax_i( scale * cos(f(x), f(x_i)) )
        p(y | x) = sum_i a(x, x_i) y_i
        meta-loss = mean over queries (x, y) of -log p(y | x)

    With ``context_steps`` K > 0 the query's vector is first read against the support set (equations 3 to 6)::

        h_0 = f(x),  c_0 = 0,  r_k = sum_i softmax_i( scale * h_k' f(x_i) ) f(x_i)
        h_k = LSTM(f(x), [h_{k-1}, r_{k-1}], c_{k-1}) + f(x),  and h_K takes the place of f(x) above

    Here the LSTM starts at zero, which leaves h_K = f(x): training starts from the network without context. The read is scaled
    since vectors are of unit length. The paper also passes the support set through a bidirectional LSTM. That is left out: its
    result depends on the order of the examples, which means nothing.

    The logits are the logarithms of p, summed without underflow. A class with more support examples has more votes; a label's
    name has as many as were learned (see `Metric`).

    Args:
        scale: the inverse temperature of the attention, or where it starts.
        learn_scale: whether the scale is meta-learned.
        context_steps: K, the reads of the support set.

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, "Matching Networks for One Shot Learning", arXiv:1606.04080.

    Example:
        >>> Matching(context_steps=2).moves_backbone
        False
    """

    scale: float = 20.0
    learn_scale: bool = True
    context_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.context_steps >= 0:
            raise ConfigError(f"algorithm.context_steps is {self.context_steps}.", "At least 0 is expected.")

    def meta_parameters(self, learner: Learner) -> Params:
        width, zeros = head(learner).shape[1], head(learner).new_zeros
        lstm = {"meta.lstm.weight": zeros(4 * width, 3 * width), "meta.lstm.bias": zeros(4 * width)}
        return super().meta_parameters(learner) | (lstm if self.context_steps else {})

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        return {"memory": unit(learner, support), "labels": support.labels, "votes": self.weights(learner, support)}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        memory, labels, scale = adapted["memory"], adapted["labels"], self.inverse_temperature(learner)
        z = F.normalize(self._in_context(learner, unit(learner, query), memory), dim=-1)
        votes = adapted.get("votes", torch.ones_like(memory[:, 0]))  # tasks from before there were names have none
        attention = (scale * z @ memory.T + votes.log()).log_softmax(-1)
        return log_sum_by_class(attention, labels, query.ways)

    def _in_context(self, learner: Learner, z: Tensor, memory: Tensor) -> Tensor:
        meta, scale = self.meta(learner), self.inverse_temperature(learner)
        h, c = z, torch.zeros_like(z)
        for _ in range(self.context_steps):
            r = (scale * h @ memory.T).softmax(-1) @ memory
            gates = F.linear(torch.cat([z, h, r], -1), meta["meta.lstm.weight"], meta["meta.lstm.bias"])
            take, keep, new, show = gates.chunk(4, -1)
            c = keep.sigmoid() * c + take.sigmoid() * new.tanh()
            h = show.sigmoid() * c.tanh() + z
        return h
