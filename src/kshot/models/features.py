"""Episodes whose every text is encoded once, for algorithms that leave the encoder alone when they adapt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner
from kshot.tasks import Episode, Examples


class EncodedTexts:
    """Vectors of texts, each encoded when it is first asked for.

    Args:
        learner: the encoder; a text's vector is at its parameters.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._position: dict[str, int] = {}
        self._vectors = learner.embed_texts([])

    def episodes(self, episodes: Sequence[Episode]) -> Iterator[EncodedEpisode]:
        """Yield episodes with text vectors in place of tokens; all that is new in them is encoded together."""
        episodes = [episode.named() for episode in episodes] if self._learner.names else episodes
        texts = dict.fromkeys(text for e in episodes for side in (e.support, e.query) for text in side.texts)
        new = [text for text in texts if text not in self._position]
        self._position.update({text: len(self._position) + index for index, text in enumerate(new)})
        self._vectors = torch.cat([self._vectors, self._learner.embed_texts(new)])
        for episode in episodes:
            yield EncodedEpisode(*(self._batch(side, episode.ways) for side in (episode.support, episode.query)))

    def _batch(self, examples: Examples, ways: int) -> Batch:
        features = self._vectors[[self._position[text] for text in examples.texts]]
        labels = torch.tensor(examples.labels, device=features.device)
        return Batch(labels, ways, features=features, names=examples.names, texts=examples.texts)


def encode_once(learner: Learner, episodes: Sequence[Episode]) -> Iterator[EncodedEpisode]:
    """Yield the episodes with text vectors in place of tokens; a text that many episodes share is encoded once."""
    return EncodedTexts(learner).episodes(episodes)
