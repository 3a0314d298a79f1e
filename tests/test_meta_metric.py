"""The metric-based algorithms against formulas written out by hand, and at the edges of their numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.linear_model import Ridge
from tiny import (
    finite_difference_error,
    gradient_of,
    learner_for,
    one_thread,  # noqa: F401
    random_episode,
    random_learner,
    same_bits,
    snapshot,
)
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import ConfigError
from kshot.meta import Algorithm, ProtoNet
from kshot.meta.matching import Matching
from kshot.meta.metric import log_sum_by_class
from kshot.meta.protonet import left_out_cosines
from kshot.meta.relation import Relation
from kshot.meta.ridge import R2D2
from kshot.models import Batch, EncodedEpisode, Learner

TOLERANCE = 1e-8  # measured: 2.6e-10 and below
COUNTS = (1, 3, 2)  # shots differ, so that a mean is not a sum and an order not a grouping
ALGORITHMS = [
    ProtoNet("cosine"),
    ProtoNet("cosine", learn_scale=False),
    ProtoNet("cosine", leave_one_out=True),
    ProtoNet("euclidean"),
    ProtoNet("mahalanobis"),
    Matching(),
    Matching(learn_scale=False, context_steps=1),
    Matching(context_steps=3),
    Relation(hidden=5),
    Relation(hidden=5, loss="mse", scale=5.0),
    R2D2(),
    R2D2(ridge=0.01, scale=5.0),
]
LEARNED = [algorithm for algorithm in ALGORITHMS if algorithm.meta_parameters(random_learner())]


def vectors(seed: int = 0, counts: tuple[int, ...] = COUNTS, width: int = 16) -> EncodedEpisode:
    """An episode of random text vectors in float64, of lengths around 3, with two queries a class."""
    generator = torch.Generator().manual_seed(seed)

    def side(sizes: list[int]) -> Batch:
        labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        return Batch(labels, len(sizes), features=torch.randn(len(labels), width, generator=generator, dtype=torch.float64))

    return EncodedEpisode(side(list(counts)), side([2] * len(counts)))


def logits_of(algorithm: Algorithm, learner: Learner, episode: EncodedEpisode) -> np.ndarray:
    return algorithm.logits(learner, algorithm.adapt(learner, episode.support), episode.query).detach().numpy()


def arrays(episode: EncodedEpisode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support vectors, their labels, and query vectors."""
    return episode.support.features.numpy(), episode.support.labels.numpy(), episode.query.features.numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def own(learner: Learner) -> dict[str, Tensor]:
    return {name: value for name, value in learner.params.items() if name.startswith("meta.")}


def with_own(learner: Learner, **values: float) -> Learner:
    """The learner with scalars among its meta-parameters at some values, given as they are used."""
    stored = {f"meta.{name}": torch.tensor(math.log(value), dtype=torch.float64) for name, value in values.items()}
    return learner.with_params(learner.params | stored)


# --- by hand ----------------------------------------------------------------------------------------------------------------


def test_the_learned_scale_multiplies_the_cosine():
    episode = vectors()
    x, y, q = arrays(episode)
    learner = with_own(learner_for(ProtoNet()), scale=7.0)

    found = logits_of(ProtoNet(), learner, episode)

    for k in range(3):
        centre = unit(unit(x[y == k]).mean(0))
        for row in range(len(q)):
            assert found[row, k] == pytest.approx(7 * float(unit(q[row]) @ centre), rel=1e-12)


def test_the_scale_starts_where_it_is_told_and_is_learned_only_where_it_is_told():
    learned, fixed = ProtoNet(scale=12.5), ProtoNet(scale=12.5, learn_scale=False)

    assert float(learner_for(learned).params["meta.scale"].detach().exp()) == pytest.approx(12.5, rel=1e-12)
    assert own(learner_for(fixed)) == {}
    np.testing.assert_allclose(
        logits_of(learned, learner_for(learned), vectors()), logits_of(fixed, learner_for(fixed), vectors()), rtol=1e-12
    )


@pytest.mark.parametrize("algorithm", [ProtoNet("euclidean"), ProtoNet("mahalanobis")], ids=str)
def test_a_metric_without_a_scale_has_none_among_its_parameters(algorithm):
    assert "meta.scale" not in learner_for(algorithm).params


def test_mahalanobis_by_hand():
    episode, learner = vectors(), learner_for(ProtoNet("mahalanobis"), nudge=0.5)
    x, y, q = arrays(episode)
    stored = learner.params["meta.factor"].detach().numpy()
    factor = np.array([[math.exp(stored[i, i]) if i == j else stored[i, j] * (i > j) for j in range(16)] for i in range(16)])

    found = logits_of(ProtoNet("mahalanobis"), learner, episode)

    for k in range(3):
        for row in range(len(q)):
            away = q[row] - x[y == k].mean(0)
            assert found[row, k] == pytest.approx(-float(away @ (factor @ factor.T) @ away), rel=1e-11)


def test_mahalanobis_starts_as_euclidean():
    algorithm = ProtoNet("mahalanobis")

    assert np.array_equal(
        logits_of(algorithm, learner_for(algorithm), vectors()), logits_of(ProtoNet("euclidean"), random_learner(), vectors())
    )


def test_mahalanobis_stays_positive_definite_however_far_it_is_moved():
    learner, algorithm = learner_for(ProtoNet("mahalanobis"), nudge=3.0), ProtoNet("mahalanobis")
    centre = Batch(torch.zeros(1, dtype=torch.long), 1, features=torch.zeros(1, 16, dtype=torch.float64))
    everywhere = vectors(counts=(50, 50)).support

    distances = -algorithm.logits(learner, algorithm.adapt(learner, centre), everywhere)

    assert (distances > 0).all()


def test_left_out_means_by_hand():
    episode, algorithm = vectors(), ProtoNet(leave_one_out=True)
    learner = with_own(learner_for(algorithm), scale=7.0)
    x = np.concatenate([unit(side.features.numpy()) for side in (episode.support, episode.query)])
    y = np.concatenate([side.labels.numpy() for side in (episode.support, episode.query)])

    loss, _ = algorithm.meta_loss(learner, [episode])

    terms = []
    for i in range(len(x)):
        others = [unit(x[[j for j in range(len(x)) if y[j] == k and j != i]].mean(0)) for k in range(3)]
        terms.append(-math.log(softmax(7 * np.array([x[i] @ centre for centre in others]))[y[i]]))
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-10)


def test_an_example_alone_in_its_class_teaches_nothing_and_breaks_nothing():
    z = torch.eye(3, dtype=torch.float64, requires_grad=True)
    batch = Batch(torch.tensor([0, 1, 1]), 2, features=z)

    cosines = left_out_cosines(z, batch, torch.ones(3, dtype=torch.float64))

    assert cosines[0].tolist() == [1.0, 0.0]
    assert cosines[1, 1] == 0.0
    (gradient,) = torch.autograd.grad(cosines[0, 0], z)
    assert bool(torch.isfinite(gradient).all())


def test_matching_by_hand():
    episode = vectors()
    x, y, q = arrays(episode)
    learner = with_own(learner_for(Matching()), scale=3.0)

    found = logits_of(Matching(), learner, episode)

    for row in range(len(q)):
        weights = [math.exp(3 * float(unit(q[row]) @ unit(x[i]))) for i in range(len(x))]
        for k in range(3):
            p = sum(weight for weight, label in zip(weights, y, strict=True) if label == k) / sum(weights)
            assert found[row, k] == pytest.approx(math.log(p), rel=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_matching_in_context_by_an_lstm_cell_of_pytorch(steps):
    """The cell sees query, state and read as its input, with no state of its own but c."""
    episode, algorithm = vectors(), Matching(context_steps=steps)
    learner = with_own(learner_for(algorithm, nudge=0.3), scale=3.0)
    x, y, q = arrays(episode)
    cell = torch.nn.LSTMCell(48, 16, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(learner.params["meta.lstm.weight"])
        cell.bias_ih.copy_(learner.params["meta.lstm.bias"])
        cell.weight_hh.zero_()
        cell.bias_hh.zero_()

        found = logits_of(algorithm, learner, episode)

        for row in range(len(q)):
            z, memory, c = torch.tensor(unit(q[row])), torch.tensor(unit(x)), torch.zeros(1, 16, dtype=torch.float64)
            h = z
            for _ in range(steps):
                read = sum(a * g for a, g in zip((3 * memory @ h).softmax(0), memory, strict=True))
                out, c = cell(torch.cat([z, h, read])[None], (torch.zeros(1, 16, dtype=torch.float64), c))
                h = out[0] + z
            p = softmax(3 * unit(h.numpy()) @ unit(x).T)
            for k in range(3):
                assert found[row, k] == pytest.approx(math.log(p[y == k].sum()), rel=1e-11)


def test_the_context_starts_as_none_and_learns_at_once():
    algorithm, episode = Matching(context_steps=2), vectors()
    learner = learner_for(algorithm)

    loss, _ = algorithm.meta_loss(learner, [episode])

    assert float(loss.detach()) == float(Matching().meta_loss(learner_for(Matching()), [episode])[0].detach())
    assert float(gradient_of(loss, own(learner))["meta.lstm.weight"].norm()) > 1e-3


def test_a_query_is_read_against_the_support_set_and_not_against_other_queries():
    for algorithm in ALGORITHMS:
        learner, episode = learner_for(algorithm, nudge=0.1), vectors()
        together = logits_of(algorithm, learner, episode)
        for row in range(len(episode.query)):
            alone = Batch(episode.query.labels[row : row + 1], 3, features=episode.query.features[row : row + 1])
            np.testing.assert_allclose(
                logits_of(algorithm, learner, EncodedEpisode(episode.support, alone)), together[row : row + 1], rtol=1e-10
            )


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_relation_by_hand(loss):
    episode, algorithm = vectors(), Relation(hidden=5, loss=loss)
    learner = learner_for(algorithm, nudge=0.3)
    x, y, q = arrays(episode)
    g = {name.removeprefix("meta.relation."): value.detach().numpy() for name, value in own(learner).items()}

    found = logits_of(algorithm, learner, episode)

    expected = np.zeros((len(q), 3))
    for k in range(3):
        c = 4 * unit(unit(x[y == k]).mean(0))  # of length sqrt(16)
        for row in range(len(q)):
            f = 4 * unit(q[row])
            pair = np.array([*c, *f, *np.abs(c - f), *(c * f)])
            hidden = [gelu(float(g["inner.weight"][j] @ pair + g["inner.bias"][j])) for j in range(5)]
            expected[row, k] = g["outer.weight"][0] @ hidden + (g["outer.bias"][0] if loss == "mse" else 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    labels, value = episode.query.labels.numpy(), float(algorithm.meta_loss(learner, [episode])[0].detach())
    if loss == "mse":
        errors = [(1 / (1 + math.exp(-expected[row, k])) - (labels[row] == k)) ** 2 for row in range(len(q)) for k in range(3)]
        assert value == pytest.approx(sum(errors) / len(errors), rel=1e-11)
    else:
        assert value == pytest.approx(-np.log(softmax(expected)[np.arange(len(q)), labels]).mean(), rel=1e-11)


@pytest.mark.parametrize("hidden", [2, 64])
def test_relation_starts_as_prototypes_by_scaled_cosine(hidden):
    algorithm, prototypes = Relation(hidden, scale=9.0), ProtoNet(scale=9.0)

    np.testing.assert_allclose(
        logits_of(algorithm, learner_for(algorithm), vectors()),
        logits_of(prototypes, learner_for(prototypes), vectors()),
        rtol=1e-10,
    )


def test_relation_starts_in_the_same_place_every_time_and_in_the_middle_of_the_sigmoid():
    algorithm = Relation(loss="mse", scale=8.0)

    assert same_bits(own(learner_for(algorithm)), own(learner_for(algorithm)))
    assert own(learner_for(algorithm))["meta.relation.outer.bias"].tolist() == [-4.0]
    assert "meta.relation.outer.bias" not in own(learner_for(Relation()))


@pytest.mark.parametrize("counts", [(1, 3, 2), (1, 1), (9, 7, 8, 6)], ids=str)  # fewer examples than the width, and more
@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_ridge_by_the_normal_equations_and_by_scikit_learn(counts, penalty):
    episode = vectors(counts=counts)
    learner = with_own(learner_for(R2D2()), scale=3.0, ridge=penalty)
    x, y, q = arrays(episode)
    x, q, targets = unit(x), unit(q), np.eye(len(counts))[y]

    found = logits_of(R2D2(), learner, episode)

    weight = np.linalg.inv(x.T @ x + penalty * np.eye(16)) @ x.T @ targets
    np.testing.assert_allclose(found, 3 * q @ weight, rtol=1e-9, atol=1e-12)
    theirs = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(x, targets)
    np.testing.assert_allclose(found, 3 * theirs.predict(q).reshape(len(q), -1), rtol=1e-9, atol=1e-12)


def test_ridge_starts_at_its_hyperparameters():
    learner = learner_for(R2D2(ridge=0.25, scale=4.0))

    assert {name: float(value.detach().exp()) for name, value in own(learner).items()} == pytest.approx(
        {"meta.scale": 4.0, "meta.ridge": 0.25}
    )


# --- gradients --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("nudge", [0.0, 0.1], ids=["start", "moved"])
def test_meta_gradient_is_the_derivative_of_the_meta_loss(algorithm, nudge):
    """In all parameters together, and in the algorithm's own alone, which the backbone's would outweigh."""
    learner = learner_for(algorithm, nudge=nudge)
    episode = random_episode(1, COUNTS)  # in episode 0 an entry of relation's |c - f| passes its kink between the differences
    found = gradient_of(algorithm.meta_loss(learner, [episode])[0], learner.params)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return algorithm.meta_loss(learner.with_params(params), [episode])[0]

    parts = [part for part in (found, {name: found[name] for name in own(learner)}) if part]
    errors = [finite_difference_error(loss, learner.params, part) for part in parts]

    print(f"finite-difference error {max(errors):.1e}")
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize("algorithm", LEARNED, ids=str)
def test_each_of_its_own_parameters_takes_a_gradient(algorithm):
    learner = learner_for(algorithm, nudge=0.1)

    found = gradient_of(algorithm.meta_loss(learner, [vectors()])[0], own(learner))

    assert all(float(gradient.norm()) > 1e-9 for gradient in found.values())


# --- numbers ----------------------------------------------------------------------------------------------------------------


def hard(algorithm: Algorithm) -> Algorithm:
    """The algorithm with the largest scale that is promised."""
    return replace(algorithm, scale=100.0)


@pytest.mark.parametrize("algorithm", [hard(algorithm) for algorithm in ALGORITHMS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_scale_and_identical_texts_give_finite_numbers(algorithm, dtype):
    """All support texts alike, and one query opposite to them."""
    same = torch.ones(6, 16, dtype=dtype)
    support = Batch(torch.tensor([0, 0, 1, 1, 1, 2]), 3, features=same)
    queries = torch.cat([same[:1], -same[:1], torch.linspace(-1, 1, 16, dtype=dtype)[None]]).requires_grad_()
    learner = learner_for(algorithm)
    learner = learner.with_params({name: value.detach().to(dtype).requires_grad_() for name, value in learner.params.items()})
    episode = EncodedEpisode(support, Batch(torch.tensor([0, 1, 2]), 3, features=queries))

    loss, _ = algorithm.meta_loss(learner, [episode])
    logits = torch.from_numpy(logits_of(algorithm, learner, episode))

    assert loss.dtype == logits.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(g).all() for g in gradient_of(loss, own(learner) | {"queries": queries}).values())
    if not isinstance(algorithm, (Matching, R2D2)):  # where a class's size counts
        torch.testing.assert_close(logits, logits[:, :1].expand(-1, 3), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("algorithm", [hard(algorithm) for algorithm in ALGORITHMS], ids=str)
def test_single_precision_is_near_double(algorithm):
    learner, episode = learner_for(algorithm), vectors(counts=(2, 5, 1, 3))
    single = learner.with_params({name: value.detach().float() for name, value in learner.params.items()})
    sides = (side.with_features(side.features.float()) for side in (episode.support, episode.query))

    np.testing.assert_allclose(
        logits_of(algorithm, single, EncodedEpisode(*sides)), logits_of(algorithm, learner, episode), rtol=1e-4, atol=5e-4
    )


def test_a_class_that_attention_all_but_ignores_keeps_its_logarithm():
    log_p = torch.tensor([[0.0, -500.0, -500.0, -2000.0], [-1.0, -1.0, -1.0, -1.0]], requires_grad=True)
    labels = torch.tensor([0, 1, 1, 2])

    found = log_sum_by_class(log_p, labels, 3)

    expected = torch.tensor([[0.0, -500 + math.log(2), -2000.0], [-1.0, -1 + math.log(2), -1.0]])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found[0].sum(), log_p)
    assert gradient[0].tolist() == [1.0, 0.5, 0.5, 1.0]


# --- what the rest of kshot relies on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_what_adapting_returns_is_kept_by_safetensors_and_answers_alike(algorithm):
    learner, episode = learner_for(algorithm, nudge=0.1), vectors()
    adapted = snapshot(algorithm.adapt(learner, episode.support))

    kept = load(save({name: value.contiguous() for name, value in adapted.items()}))

    assert same_bits(kept, adapted)
    assert torch.equal(algorithm.logits(learner, kept, episode.query), algorithm.logits(learner, adapted, episode.query))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_a_learner_that_was_not_meta_trained_uses_the_start(algorithm):
    episode = vectors()

    assert np.array_equal(
        logits_of(algorithm, random_learner(), episode), logits_of(algorithm, learner_for(algorithm), episode)
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_the_parameters_are_of_the_heads_type_and_named_as_their_own(algorithm):
    learner = random_learner()
    single = learner.with_params({name: value.detach().float() for name, value in learner.params.items()})

    start = algorithm.meta_parameters(single)

    assert all(name.startswith("meta.") and value.dtype == torch.float32 for name, value in start.items())
    assert not any(value.requires_grad for value in start.values())


@pytest.mark.parametrize("algorithm", LEARNED, ids=str)
def test_steps_on_its_own_parameters_alone_lower_the_loss(algorithm):
    """As in a training whose backbone is frozen: on vectors whose first half is noise, there is something to learn."""
    learner = learner_for(algorithm)
    episodes = [vectors(seed, (3, 3, 3)) for seed in range(4)]
    for episode in episodes:
        for side in (episode.support, episode.query):
            side.features[:, 8:] = F.one_hot(side.labels, 8) + 0.3 * side.features[:, 8:]
    params = snapshot(own(learner))
    losses = []
    for _ in range(30):
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss, _ = algorithm.meta_loss(learner.with_params(learner.params | params), episodes)
        losses.append(float(loss.detach()))
        params = {name: params[name] - 0.02 * gradient for name, gradient in gradient_of(loss, params).items()}

    assert losses[-1] < losses[0] - 1e-4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: ProtoNet("mahalanobi"),
            "algorithm.metric is 'mahalanobi'. Did you mean 'mahalanobis'? Expected cosine, euclidean, mahalanobis.",
        ),
        (lambda: ProtoNet(scale=0.0), "algorithm.scale is 0.0. A number above 0 is expected."),
        (lambda: Matching(scale=-1.0), "algorithm.scale is -1.0. A number above 0 is expected."),
        (lambda: Matching(context_steps=-1), "algorithm.context_steps is -1. At least 0 is expected."),
        (lambda: Relation(scale=float("nan")), "algorithm.scale is nan. A number above 0 is expected."),
        (lambda: Relation(hidden=1), "algorithm.hidden is 1. At least 2 is expected: two units start at the cosine."),
        (
            lambda: Relation(loss="entropy"),
            "algorithm.loss is 'entropy'. Did you mean 'cross-entropy'? Expected cross-entropy, mse.",
        ),
        (lambda: Relation(loss="x"), "algorithm.loss is 'x'. Expected cross-entropy, mse."),
        (lambda: R2D2(ridge=0), "algorithm.ridge is 0. A number above 0 is expected."),
        (lambda: R2D2(scale=-2), "algorithm.scale is -2. A number above 0 is expected."),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, sentence):
    with pytest.raises(ConfigError) as error:
        make()

    assert str(error.value) == sentence
