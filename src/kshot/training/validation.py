"""Scores over episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kshot.meta import Algorithm
from kshot.models import Learner
from kshot.models.features import EncodedTexts
from kshot.tasks import Episode


@torch.no_grad()
def episode_scores(
    learner: Learner, algorithm: Algorithm, episodes: Sequence[Episode], texts: EncodedTexts | None = None
) -> list[float]:
    """Return the score on each episode's query set after adapting to its support set.

    Args:
        learner: what adapts.
        algorithm: how.
        episodes: what to.
        texts: what the learner encoded before, where it leaves the encoder as it is; added to.
    """
    quiet = replace(learner, dropout=False)
    as_drawn = algorithm.moves_backbone or quiet.vectors
    encoded = map(quiet.encode, episodes) if as_drawn else (texts or EncodedTexts(quiet)).episodes(episodes)
    return [
        quiet.score(algorithm.logits(quiet, algorithm.adapt(quiet, episode.support), episode.query), episode.query)
        for episode in encoded
    ]
