"""MAML++."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kshot.errors import ConfigError
from kshot.meta.maml import MAML
from kshot.models.batch import EncodedEpisode
from kshot.models.learner import Learner, Params

_RATE = "meta.rate."


@dataclass(frozen=True)
class MAMLPlusPlus(MAML):
    """MAML made stable: the loss counts after every step, and each layer learns a rate for each step.

    With alpha_{l,t} the rate of layer l at step t and v_t weights that move to the last step (section 4 of the paper)::

        phi^l_{t+1} = phi^l_t - alpha_{l,t} * grad_l L_S(phi_t)
        meta-loss = sum_t v_t L_Q(phi_t),   v_t = m/T,   v_T = m/T + (1 - m)

    Of the paper's changes these two are here, with ``first_order_steps`` (derivative-order annealing) and the outer loop's
    cosine schedule; its two on batch normalisation have no object in a transformer. A layer is a parameter tensor. Rates are
    stored as factors of ``inner_lr`` and ``head_lr``, starting at 1.

    Args:
        multi_step: m, the share of the loss that is spread over all steps.
        multi_step_steps: meta-updates in which that share falls to 0, linearly; 0 leaves it.

    The other arguments are those of `kshot.meta.maml.MAML`.

    References:
        Antoniou, Edwards, Storkey 2019, "How to Train Your MAML", arXiv:1810.09502.

    Example:
        >>> MAMLPlusPlus(multi_step_steps=10).at(5).multi_step
        0.5
    """

    multi_step: float = 1.0
    multi_step_steps: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.multi_step <= 1:
            raise ConfigError(f"algorithm.multi_step is {self.multi_step}.", "A share between 0 and 1 is expected.")
        if self.multi_step_steps < 0:
            raise ConfigError(f"algorithm.multi_step_steps is {self.multi_step_steps}.", "At least 0 is expected.")
        if self.hypergradient == "implicit":
            raise ConfigError(
                "algorithm.hypergradient is 'implicit', and MAML++ counts the loss after every step.",
                "Expected graph, checkpointed or first-order.",
            )

    def at(self, step: int) -> Self:
        left = max(0.0, 1 - step / self.multi_step_steps) if self.multi_step_steps else 1.0
        return replace(super().at(step), multi_step=self.multi_step * left)

    def meta_parameters(self, learner: Learner) -> Params:
        most = max(1, self.inner_steps, self.adapt_steps or 0)
        factors = {_RATE + name: torch.ones(most).to(learner.params[name]) for name in self.moving(learner.params)}
        return super().meta_parameters(learner) | factors

    def rate(self, theta: Params, name: str, t: int) -> float | Tensor:
        return super().rate(theta, name, t) * theta[_RATE + name][t]

    def episode_loss(self, learner: Learner, episode: EncodedEpisode) -> tuple[Tensor, Tensor]:
        if not self.multi_step:
            return super().episode_loss(learner, episode)
        losses = []
        for phi in self.trajectory(learner, episode.support, every=True):
            logits = self.logits(learner, phi, episode.query)
            losses.append(learner.loss_of(logits, episode.query))
        return self.multi_step * torch.stack(losses).mean() + (1 - self.multi_step) * losses[-1], logits
