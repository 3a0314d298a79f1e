"""R2-D2: ridge regression as the base-learner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.meta.algorithm import Adapted
from kshot.meta.metric import Metric, head, one_hot, require_positive, unit
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params


@dataclass(frozen=True)
class R2D2(Metric):
    """Solve a ridge regression of the labels on the support set's vectors, in closed form that is differentiated through.

    With X the n support vectors of unit length, Y their one-hot labels, and X' those of the query (equations 4 to 7)::

        W = argmin_W ||X W - Y||^2 + lambda ||W||^2 = X^T (X X^T + lambda I)^-1 Y
        logits = alpha X' W
        meta-loss = mean over queries (x, y) of -log softmax(logits) at y

    A label's name counts in the squared error as often as was learned (see `Metric`). The second form of W (Woodbury's
    identity) solves n equations where the usual one solves H, and n is small. lambda and alpha, the scale, are meta-learned as
    their logarithms. The paper also adds a learned number beta to all logits, which cancels in the softmax and is left out.

    Args:
        ridge: where lambda starts.
        scale: where alpha starts.

    References:
        Bertinetto, Henriques, Torr, Vedaldi 2019, "Meta-learning with differentiable closed-form solvers", arXiv:1805.08136.

    Example:
        >>> R2D2(ridge=0.1).moves_backbone
        False
    """

    ridge: float = 1.0
    scale: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("ridge", self.ridge)

    def meta_parameters(self, learner: Learner) -> Params:
        return super().meta_parameters(learner) | {"meta.ridge": head(learner).new_tensor(self.ridge).log()}

    def adapt(self, learner: Learner, support: Batch) -> Adapted:
        penalty, root = self.meta(learner)["meta.ridge"].exp(), self.weights(learner, support).sqrt().unsqueeze(1)
        x = root * unit(learner, support)
        gram = x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype, device=x.device)
        return {"weight": x.T @ torch.linalg.solve(gram, root * one_hot(support, x))}

    def logits(self, learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
        return self.inverse_temperature(learner) * unit(learner, query) @ adapted["weight"]
