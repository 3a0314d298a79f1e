"""Methods for kinds without labels: how likely they find what follows, after learning a few examples."""

from __future__ import annotations

import torch

from kshot.evaluation.methods import Likelihood, Method, Predict, likelihood
from kshot.meta.inner import InnerLoop
from kshot.models import Batch, Learner
from kshot.models.select import select
from kshot.tasks import Episode
from kshot.training import Run


class Untouched(Method):
    """The pretrained model as it is: what it knows without an example."""

    name = "untouched"

    def __init__(self, pretrained: Learner) -> None:
        self.tokenizer = pretrained

    def fit(self, episode: Episode, support: Batch) -> Predict:
        learner = self.tokenizer
        assert learner is not None

        def predict(episode: Episode, query: Batch) -> Likelihood:
            with torch.no_grad():
                return likelihood(learner, learner.logits(learner.params, query), query)

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
        params, optimizer = learner.params | moving, torch.optim.AdamW(moving.values(), lr=self._lr)
        for _ in range(self._steps):
            optimizer.zero_grad()
            learner.loss(params, support).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        def predict(episode: Episode, query: Batch) -> Likelihood:
            with torch.no_grad():
                return likelihood(learner, learner.logits(params, query), query)

        return predict


def generative_baselines(pretrained: Learner, run: Run) -> list[Method]:
    """Return what a run of a kind without labels is compared with."""
    return [Untouched(pretrained), FineTuning(pretrained, run)]
