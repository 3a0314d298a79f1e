"""Methods for kinds without labels: how well they answer, or foresee what follows, after learning a few examples."""

from __future__ import annotations

import torch

from kshot.evaluation.methods import Answered, Likelihood, Method, Predict, unlabelled
from kshot.meta.inner import InnerLoop
from kshot.models import Batch, Learner
from kshot.models.select import HEAD, select
from kshot.tasks import Episode
from kshot.training import Run

_HEAD_LR = 1e-2  # of heads, which see vectors of unit length


class Untouched(Method):
    """The pretrained model as it is: what it knows without an example."""

    name = "untouched"

    def __init__(self, pretrained: Learner) -> None:
        self.tokenizer = pretrained

    def fit(self, episode: Episode, support: Batch) -> Predict:
        learner = self.tokenizer
        assert learner is not None

        def predict(episode: Episode, query: Batch) -> Likelihood | Answered:
            with torch.no_grad():
                return unlabelled(learner, learner.logits(learner.params, query), query)

        return predict


class FineTuning(Method):
    """The same weights that the run moves, from their pretrained start, by AdamW for as many steps as the run takes.

    Args:
        pretrained: the model, with the same adapter as the run.
        run: whose steps and weights.
        lr: of AdamW.
    """

    name = "fine-tuning"

    def __init__(self, pretrained: Learner, run: Run, lr: float | None = None) -> None:
        algorithm = run.algorithm
        assert isinstance(algorithm, InnerLoop)
        self.tokenizer, self._adapts = pretrained, algorithm.adapts
        self._steps = algorithm.inner_steps if algorithm.adapt_steps is None else algorithm.adapt_steps
        self._lr = lr or (1e-3 if pretrained.backbone.adapter else 5e-5)

    def fit(self, episode: Episode, support: Batch) -> Predict:
        learner = self.tokenizer
        assert learner is not None
        moving = {name: learner.params[name].detach().clone().requires_grad_() for name in select(learner.params, self._adapts)}
        heads, others = ([v for n, v in moving.items() if n.startswith(HEAD) is own] for own in (True, False))
        groups = [{"params": others, "lr": self._lr}, {"params": heads, "lr": _HEAD_LR}]
        params, optimizer = learner.params | moving, torch.optim.AdamW([group for group in groups if group["params"]])
        for _ in range(self._steps):
            optimizer.zero_grad()
            learner.loss(params, support).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        def predict(episode: Episode, query: Batch) -> Likelihood | Answered:
            with torch.no_grad():
                return unlabelled(learner, learner.logits(params, query), query)

        return predict


def generative_baselines(pretrained: Learner, run: Run) -> list[Method]:
    """Return what a run of a kind without labels is compared with."""
    return [Untouched(pretrained), FineTuning(pretrained, run)]
