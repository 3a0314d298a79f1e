"""The meta-gradient of a meta-batch: an episode at a time, or several side by side on the cores of a processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.meta import Algorithm
from kshot.models import EncodedEpisode, Learner


@dataclass(frozen=True)
class EpisodeGradient:
    """What one episode says.

    Args:
        loss: its meta-loss.
        metrics: what the algorithm shows of it.
        grads: the meta-loss's gradient by the names that were asked for; None for those that it does not depend on.
    """

    loss: float
    metrics: dict[str, float]
    grads: tuple[Tensor | None, ...]


def episode_gradients(
    learner: Learner, algorithm: Algorithm, episodes: Sequence[EncodedEpisode], names: Sequence[str], threads: int = 1
) -> Iterator[EpisodeGradient]:
    """Yield the gradient of each episode's meta-loss, in their order; the meta-gradient is the mean.

    Small products do not use two cores well, and two tasks do. So with several threads each takes an episode and one core.
    The graph of ``threads`` episodes is in memory at a time.

    Args:
        learner: at the meta-parameters.
        algorithm: whose meta-loss.
        episodes: the meta-batch.
        names: which meta-parameters.
        threads: episodes at a time.
    """
    trained = [learner.params[name] for name in names]

    def one(episode: EncodedEpisode) -> EpisodeGradient:
        loss, metrics = algorithm.meta_loss(learner, [episode])
        grads = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else (None,) * len(trained)
        return EpisodeGradient(float(loss.detach()), metrics, grads)

    if min(threads, len(episodes)) < 2:
        yield from map(one, episodes)
        return
    with _one_core_a_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(one, episodes)


@contextmanager
def _one_core_a_thread() -> Iterator[None]:
    """PyTorch's threads are counted for the calling thread and, in one of its libraries, for all."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def usual_threads(learner: Learner, algorithm: Algorithm) -> int:
    """Return how many episodes are worth differentiating side by side.

    One where the time goes into few large products anyway (no inner loop through the encoder, or a GPU), and where dropout
    draws from the one generator, whose order threads would not keep.
    """
    alone = learner.device.type != "cpu" or learner.dropout or not algorithm.moves_backbone
    return 1 if alone else torch.get_num_threads()
