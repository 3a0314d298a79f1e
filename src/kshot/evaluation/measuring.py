"""Measuring methods on episodes: the same support and query sets for each, and the time to a classifier."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from kshot.errors import BackboneError
from kshot.evaluation.methods import Answered, Labels, Likelihood, Method, Probabilities, as_labels
from kshot.evaluation.metrics import Confusions, EntityCounts, calibration_error
from kshot.models import Batch, Learner, add_adapter, load_backbone, new_learner
from kshot.models.backbones import BackboneSpec
from kshot.models.features import EncodedTexts, encode_once
from kshot.models.kinds.tagging import TaggingLearner, predicted_entities
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
    entities: EntityCounts = field(default_factory=EntityCounts)
    likelihoods: list[Likelihood] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)

    def add(self, learner: Learner, episode: Episode, answer: Labels | Probabilities | Likelihood | Answered) -> None:
        """Count an episode's answers.

        Args:
            learner: which knows what a kind's answers are measured by.
            episode: whose query set was answered.
            answer: for each of its units.
        """
        if isinstance(answer, Likelihood):
            self.likelihoods.append(answer)
            self._scored(episode, math.exp(-answer.nats / max(1, answer.tokens)))
            return
        if isinstance(answer, Answered):
            self.exact.append(answer.exact_match)
            self._scored(episode, answer.f1)
            return
        predicted = as_labels(answer.argmax(-1) if answer.ndim == 2 else answer)
        query = learner.annotated(episode.query, episode.labels)
        truth = query.labels.numpy()
        if answer.ndim == 2:
            self.confidences += zip(answer.max(-1).tolist(), (predicted == truth).tolist(), strict=True)
        self._scored(episode, learner.score_of(torch.from_numpy(predicted), query))
        self.confusions.add(episode.task, learner.class_names(episode.labels), truth, predicted)
        if isinstance(learner, TaggingLearner):
            self.entities.add(episode, predicted_entities(torch.from_numpy(predicted), query.sizes), query)

    def _scored(self, episode: Episode, score: float) -> None:
        self.accuracies.append(score)
        self.by_task.setdefault(episode.task, []).append(score)

    def figures(self) -> dict[str, float]:
        """Return what is said beside the mean score, as far as it means anything for the kind."""
        if self.likelihoods:
            nats, tokens, size = (sum(getattr(one, name) for one in self.likelihoods) for name in ("nats", "tokens", "bytes"))
            return {"perplexity": math.exp(nats / max(1, tokens)), "bits_per_byte": nats / math.log(2) / max(1, size)}
        if self.exact:
            return {"exact_match": sum(self.exact) / len(self.exact)}
        return self.confusions.macro() | ({"ece": calibration_error(self.confidences)} if self.confidences else {})


def pretrained_learner(run: Run, warnings: list[str]) -> Learner | None:
    """Return the backbone that training started from, for the baselines; None with a warning where it is not to be had."""
    spec = run.learner.backbone.spec
    try:
        named = BackboneSpec(run.pretrained, spec.pooling, spec.max_length, spec.prefix)
        backbone = load_backbone(named, run.learner.head)
    except BackboneError as error:
        warnings.append(f"No baselines: {error}")
        return None
    adapter = run.learner.backbone.adapter
    if adapter is not None and not run.learner.labelled:  # which baselines move as the run does
        backbone = add_adapter(backbone, adapter.spec)
    learner = new_learner(backbone, run.learner.device, type(run.learner))
    learner.backbone.use_attention(twice_differentiable=False)
    return learner


def measure(method: Method, episodes: Sequence[Episode], texts: dict[int, EncodedTexts], learner: Learner) -> Outcome:
    """Run a method on the episodes. Each method is timed from the support set's texts to a classifier.

    Args:
        method: what to measure.
        episodes: the same ones for every method.
        texts: what frozen encoders encoded before, for all methods and numbers of shots; added to.
        learner: of the tasks' kind, which knows how answers are scored.
    """
    outcome = Outcome()
    episodes = [episode.named() for episode in episodes] if method.names else episodes
    if method.encoder is None:
        for episode in episodes:
            begin = time.perf_counter()
            predict = method.fit(episode, _batch(method, episode, episode.support))
            outcome.seconds.append(time.perf_counter() - begin)
            outcome.add(learner, episode, predict(episode, _batch(method, episode, episode.query)))
        return outcome
    encoder = replace(method.encoder, names=False)
    encoded = texts.setdefault(id(method.encoder), EncodedTexts(encoder))
    for episode, both in zip(episodes, encoded.episodes(episodes), strict=True):
        outcome.add(learner, episode, method.fit(episode, both.support)(episode, both.query))
    for episode in episodes[:_TIMED]:
        begin = time.perf_counter()
        method.fit(episode, next(encode_once(encoder, [replace(episode, query=episode.support)])).support)
        outcome.seconds.append(time.perf_counter() - begin)
    return outcome


def _batch(method: Method, episode: Episode, examples: Examples) -> Batch:
    if method.tokenizer is not None:
        return method.tokenizer.batch(examples, episode.labels)
    return Batch(torch.tensor(examples.labels), episode.ways, names=examples.names)
