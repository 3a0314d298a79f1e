"""Measuring methods on episodes: the same support and query sets for each, and the time to a classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from kshot.errors import BackboneError
from kshot.evaluation.methods import Labels, Method, Probabilities, as_labels
from kshot.evaluation.metrics import Confusions
from kshot.models import Batch, Learner, load_backbone, new_learner
from kshot.models.backbones import BackboneSpec
from kshot.models.features import EncodedTexts, encode_once
from kshot.tasks import Episode, Examples
from kshot.training import Run

_TIMED = 15  # episodes whose adaptation is timed from the texts on


@dataclass
class Outcome:
    """What a method did on the episodes of one number of shots."""

    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    confusions: Confusions = field(default_factory=Confusions)
    by_task: dict[str, list[float]] = field(default_factory=dict)
    confidences: list[tuple[float, bool]] = field(default_factory=list)

    def add(self, episode: Episode, answer: Labels | Probabilities) -> None:
        predicted = as_labels(answer.argmax(-1) if answer.ndim == 2 else answer)
        if answer.ndim == 2:
            right = predicted == np.array(episode.query.labels)
            self.confidences += zip(answer.max(-1).tolist(), right.tolist(), strict=True)
        accuracy = float((predicted == np.array(episode.query.labels)).mean())
        self.accuracies.append(accuracy)
        self.by_task.setdefault(episode.task, []).append(accuracy)
        self.confusions.add(episode, predicted)


def pretrained_learner(run: Run, warnings: list[str]) -> Learner | None:
    """Return the backbone that training started from, for the baselines; None with a warning where it is not to be had."""
    spec = run.learner.backbone.spec
    try:
        backbone = load_backbone(BackboneSpec(run.pretrained, spec.pooling, spec.max_length, spec.prefix))
    except BackboneError as error:
        warnings.append(f"No baselines: {error}")
        return None
    learner = new_learner(backbone, run.learner.device)
    learner.backbone.use_attention(twice_differentiable=False)
    return learner


def measure(method: Method, episodes: Sequence[Episode], texts: dict[int, EncodedTexts]) -> Outcome:
    """Run a method on the episodes. Each method is timed from the support set's texts to a classifier.

    Args:
        method: what to measure.
        episodes: the same ones for every method.
        texts: what frozen encoders encoded before, for all methods and numbers of shots; added to.
    """
    outcome = Outcome()
    episodes = [episode.named() for episode in episodes] if method.names else episodes
    if method.encoder is None:
        for episode in episodes:
            begin = time.perf_counter()
            predict = method.fit(episode, _batch(method, episode, episode.support))
            outcome.seconds.append(time.perf_counter() - begin)
            outcome.add(episode, predict(episode, _batch(method, episode, episode.query)))
        return outcome
    encoder = replace(method.encoder, names=False)
    encoded = texts.setdefault(id(method.encoder), EncodedTexts(encoder))
    for episode, both in zip(episodes, encoded.episodes(episodes), strict=True):
        outcome.add(episode, method.fit(episode, both.support)(episode, both.query))
    for episode in episodes[:_TIMED]:
        begin = time.perf_counter()
        method.fit(episode, next(encode_once(encoder, [replace(episode, query=episode.support)])).support)
        outcome.seconds.append(time.perf_counter() - begin)
    return outcome


def _batch(method: Method, episode: Episode, examples: Examples) -> Batch:
    if method.tokenizer is not None:
        return method.tokenizer.batch(examples, episode.ways)
    return Batch(torch.tensor(examples.labels), episode.ways, names=examples.names)
