"""CAVIA."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.errors import ConfigError, listing
from kshot.meta.maml import MAML
from kshot.models.batch import Batch
from kshot.models.learner import Learner, Params

CONTEXT = "context"
_MAP = "meta.context."


@dataclass(frozen=True)
class CAVIA(MAML):
    """Adapt a small context vector alone; the network that it conditions is shared by all tasks.

    With phi the context, which starts at 0 for every task, and theta all weights (equations 4 and 5 of the paper)::

        phi <- phi - alpha * grad_phi L_S(phi, theta)
        meta-loss(theta) = L_Q(phi, theta)

    The context enters as in the paper's feature-wise modulation, through the biases b of the layers that ``conditions``
    matches: b + W phi, with W meta-learned. The head does not move; by default it starts from the prototypes at phi = 0 and so
    serves any number of classes, and with ``head_start="learned"`` it is the paper's. What is stored of a task is the context.

    Args:
        context: the length of phi.
        conditions: a regular expression for the names of the biases that depend on phi.

    The other arguments are those of `kshot.meta.maml.MAML`; ``inner_lr`` is the context's rate, ``adapts`` has no effect.

    References:
        Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019, "Fast Context Adaptation via Meta-Learning", arXiv:1810.03642.

    Example:
        >>> CAVIA(context=16).moves_backbone
        True
    """

    inner_lr: float = 1.0
    head_start: str = "prototypes"
    context: int = 32
    conditions: str = r"(LayerNorm|layer_norm|norm\d?|ln_\d)\.bias$"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1:
            raise ConfigError(f"algorithm.context is {self.context}.", "At least 1 is expected.")
        if self.head_start in ("shared", "zero"):
            raise ConfigError(
                f"algorithm.head_start is '{self.head_start}', where all classes start alike, and CAVIA's head does not move.",
                "Expected prototypes or learned.",
            )

    def meta_parameters(self, learner: Learner) -> Params:
        draw = torch.Generator().manual_seed(0)
        maps = {}
        for name in self._conditioned_names(learner.params):
            bias = learner.params[name]
            maps[_MAP + name] = (torch.randn(len(bias), self.context, generator=draw) / 10 / self.context**0.5).to(bias)
        return super().meta_parameters(learner) | maps

    def _conditioned_names(self, params: Params) -> list[str]:
        names = [name for name in params if re.search(self.conditions, name) and not name.startswith("meta.")]
        if not names:
            biases = [name for name in params if name.endswith(".bias")]
            raise ConfigError(
                f"algorithm.conditions '{self.conditions}' matches no parameter of this backbone.",
                f"Its biases are {listing(biases, 6)}." if biases else "It has no biases, so CAVIA cannot condition it.",
            )
        return names

    def start(self, learner: Learner, support: Batch) -> Params:
        theta = super().start(learner, support)
        return theta | {CONTEXT: theta["head.weight"].new_zeros(self.context)}

    def moving(self, theta: Params) -> tuple[str, ...]:
        return (CONTEXT,)

    def rate(self, theta: Params, name: str, t: int) -> float | Tensor:
        return self.inner_lr

    def conditioned(self, params: Params) -> Params:
        maps = {name.removeprefix(_MAP): value for name, value in params.items() if name.startswith(_MAP)}
        return params | {name: params[name] + w @ params[CONTEXT] for name, w in maps.items()}
