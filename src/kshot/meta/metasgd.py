"""Meta-SGD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.meta.maml import MAML
from kshot.models.learner import Learner, Params

_RATE = "meta.rate."


@dataclass(frozen=True)
class MetaSGD(MAML):
    """MAML whose inner rate is learned, one for every weight.

    With alpha a vector as long as theta and o the product by element (equation 4 and algorithm 1 of the paper)::

        phi_{t+1} = phi_t - alpha o grad L_S(phi_t),   theta and alpha both follow the meta-gradient

    A rate is stored as a factor of ``inner_lr`` or ``head_lr``, starting at 1, so that the outer loop's steps suit all alike.
    It may change its sign, which the paper allows. The head's factors are shared by its classes.

    The arguments are those of `kshot.meta.maml.MAML`.

    References:
        Li, Zhou, Chen, Li 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv:1707.09835.

    Example:
        >>> MetaSGD(inner_steps=1).twice_differentiable
        True
    """

    def meta_parameters(self, learner: Learner) -> Params:
        factors = {_RATE + name: torch.ones_like(learner.params[name]) for name in self.moving(learner.params)}
        return super().meta_parameters(learner) | factors

    def rate(self, theta: Params, name: str, t: int) -> float | Tensor:
        base = super().rate(theta, name, t)
        return base * theta[_RATE + name]
