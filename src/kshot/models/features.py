"""Episodes whose every text is encoded once, for algorithms that leave the encoder alone when they adapt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner
from kshot.tasks import Episode, Examples


class EncodedTexts:
    """Vectors of texts' units, each text encoded when it is first asked for.

    Args:
        learner: the encoder; a vector is at its parameters.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._places: dict[str, range] = {}
        self._encoders = [learner, *([] if (before := learner.before()) is None else [before])]
        self._vectors = [encoder.embed_units([])[0] for encoder in self._encoders]

    def episodes(self, episodes: Sequence[Episode]) -> Iterator[EncodedEpisode]:
        """Yield episodes with vectors in place of tokens; all that is new in them is encoded together."""
        episodes = [episode.named() for episode in episodes] if self._learner.names else episodes
        texts = dict.fromkeys(text for e in episodes for side in (e.support, e.query) for text in side.texts)
        new = [text for text in texts if text not in self._places]
        embedded = [encoder.embed_units(new) for encoder in self._encoders]
        ends = accumulate(embedded[0][1], initial=len(self._vectors[0]))
        self._places.update({text: range(*ends_of) for text, ends_of in zip(new, pairwise(ends), strict=True)})
        self._vectors = [torch.cat([old, added]) for old, (added, _) in zip(self._vectors, embedded, strict=True)]
        for episode in episodes:
            yield EncodedEpisode(*(self._batch(side, episode.labels) for side in (episode.support, episode.query)))

    def _batch(self, examples: Examples, labels: Sequence[str]) -> Batch:
        places = torch.tensor([place for text in examples.texts for place in self._places[text]], dtype=torch.long)
        batch = self._learner.annotated(examples, labels)
        places = places if batch.units is None else places[batch.units]
        own, *before = [vectors[places.to(vectors.device)] for vectors in self._vectors]
        batch = batch.to(own.device).with_features(own)
        return replace(batch, untouched=before[0]) if before else batch


def encode_once(learner: Learner, episodes: Sequence[Episode]) -> Iterator[EncodedEpisode]:
    """Yield the episodes with text vectors in place of tokens; a text that many episodes share is encoded once."""
    return EncodedTexts(learner).episodes(episodes)
