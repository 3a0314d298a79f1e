"""Episodes whose every text is encoded once, for algorithms that leave the encoder alone when they adapt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner
from kshot.tasks import Episode, Examples


def encode_once(learner: Learner, episodes: Sequence[Episode]) -> Iterator[EncodedEpisode]:
    """Yield the episodes with text vectors in place of tokens; a text that many episodes share is encoded once."""
    episodes = [episode.named() for episode in episodes] if learner.names else episodes
    texts = dict.fromkeys(text for e in episodes for side in (e.support, e.query) for text in side.texts)
    vectors = learner.embed_texts(list(texts))
    position = {text: index for index, text in enumerate(texts)}
    for episode in episodes:
        support, query = (_batch(side, episode.ways, vectors, position) for side in (episode.support, episode.query))
        yield EncodedEpisode(support, query)


def _batch(examples: Examples, ways: int, vectors: Tensor, position: dict[str, int]) -> Batch:
    features = vectors[[position[text] for text in examples.texts]]
    return Batch(torch.tensor(examples.labels, device=vectors.device), ways, features=features, names=examples.names)
