"""A learner narrowed to the words that an episode uses.

Half of a small encoder's weights are word vectors, of which a task of fifty texts uses a few hundred. The others get no
gradient and do not move; so inner steps, their graph and the optimiser's state need only the rows in use, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kshot.models.batch import Batch, EncodedEpisode, join
from kshot.models.learner import Learner, Params

_MOST_KEPT = 1_000  # rows below the padding index that must keep their number


@dataclass(frozen=True)
class Focus:
    """A learner with some rows of the word vectors, and batches whose token ids count those rows.

    Args:
        learner: the narrowed learner.
        batches: the batches that it was narrowed to.
        rows: which rows it has; None where it is the whole learner.
        word_vectors: the whole matrix (V, H), and its name.
    """

    learner: Learner
    batches: tuple[Batch, ...]
    rows: Tensor | None = None
    word_vectors: tuple[str, Tensor] | None = None

    def widen(self, params: Params) -> Params:
        """Return the parameters with the rows put back into the whole matrix."""
        if self.rows is None or self.word_vectors is None or self.word_vectors[0] not in params:
            return params
        name, whole = self.word_vectors
        return params | {name: whole.index_copy(0, self.rows, params[name])}


def focus(learner: Learner, *batches: Batch) -> Focus:
    """Narrow a learner to the tokens of some batches; the whole learner where that would save little."""
    tokens = [batch.input_ids for batch in batches if batch.input_ids is not None]
    if not tokens or learner.whole_vocabulary:
        return Focus(learner, batches)
    name, padding = learner.backbone.word_vectors
    whole = learner.params[name]
    if padding > _MOST_KEPT:
        return Focus(learner, batches)
    # the padding index keeps its number: models of the RoBERTa family count positions from it
    first = torch.arange(padding + 1, device=whole.device)
    rows = torch.unique(torch.cat([first, *(ids.flatten() for ids in tokens)]))
    if 2 * len(rows) > len(whole):
        return Focus(learner, batches)
    params = {
        key: value.index_select(0, rows) if key.endswith(name) and value.shape[:1] == whole.shape[:1] else value
        for key, value in learner.params.items()
    }
    narrowed = tuple(
        batch if batch.input_ids is None else replace(batch, input_ids=torch.searchsorted(rows, batch.input_ids.contiguous()))
        for batch in batches
    )
    return Focus(replace(learner, params=params), narrowed, rows, (name, whole))


def focused(learner: Learner, episode: EncodedEpisode) -> tuple[Learner, EncodedEpisode]:
    """Return the learner narrowed to an episode, and the episode in its terms."""
    narrow = focus(learner, episode.support, episode.query)
    return narrow.learner, EncodedEpisode(*narrow.batches)


def encoded(learner: Learner, episode: EncodedEpisode) -> EncodedEpisode:
    """Return the episode with text vectors for tokens, differentiable, by one pass over support and query together."""
    if episode.support.features is not None and episode.query.features is not None:
        return episode
    z = learner.features(learner.params, join(episode.support, episode.query))
    support, query = z[: len(episode.support)], z[len(episode.support) :]
    return EncodedEpisode(episode.support.with_features(support), episode.query.with_features(query))
