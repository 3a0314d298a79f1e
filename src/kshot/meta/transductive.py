"""Class means refined by the very texts that are to be labelled: soft k-means.

Each round, every query counts in every class's mean, as much as it is likely of that class (equation 4 of the paper)::

    p_jk = softmax_k( s * cos(f(x_j), c_k) )
    c_k <- (sum_{i in S_k} w_i f(x_i) + sum_j p_jk f(x_j)) / (sum_{i in S_k} w_i + sum_j p_jk)

It sees the queries together, so that what it says of one depends on the others: no answer to a text that comes alone, and not
to be compared with methods that label each by itself. Episodes have equally many queries of every label, which flatters it.

References:
    Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle, Zemel 2018, "Meta-Learning for Semi-Supervised Few-Shot
    Classification", arXiv:1803.00676 (soft k-means; there of unlabelled examples beside the queries).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kshot.meta.metric import one_hot, unit
from kshot.meta.protonet import ProtoNet
from kshot.models.batch import Batch
from kshot.models.learner import Learner

_SCALE = 10.0  # s; chosen on HuffPost's validation classes, where 5 to 20 differ by two points
_ROUNDS = 10


def transductive_logits(algorithm: ProtoNet, learner: Learner, support: Batch, query: Batch) -> Tensor:
    """Return class scores (B, N) of a query set by class means that it took part in.

    Args:
        algorithm: with the metric ``cosine``; its head is that of prototypes here.
        learner: at the parameters to use.
        support: every class has an example.
        query: all the texts to label.
    """
    q, weighted = unit(learner, query), algorithm.weights(learner, support).unsqueeze(1) * unit(learner, support)
    sums = one_hot(support, weighted).T @ weighted  # a mean's length does not matter to a cosine
    cosines = q @ F.normalize(sums, dim=-1).T
    for _ in range(_ROUNDS):
        cosines = q @ F.normalize(sums + (_SCALE * cosines).softmax(-1).T @ q, dim=-1).T
    return algorithm.inverse_temperature(learner) * cosines
