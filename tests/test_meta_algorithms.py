"""What every algorithm promises, driven by one table of (algorithm, property): a new algorithm is tested by adding a row."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import (
    finite_difference_error,
    gradient_of,
    learner_for,
    one_thread,  # noqa: F401
    random_batch,
    random_episode,
    random_learner,
    relative,
    same_bits,
    snapshot,
)
from torch import Tensor

from kshot.meta import ALGORITHMS, MAML, Algorithm, ProtoNet, Reptile, new_algorithm
from kshot.meta.matching import Matching
from kshot.meta.relation import Relation
from kshot.meta.ridge import R2D2
from kshot.models import EncodedEpisode, Learner
from kshot.models.batch import join

Objective = Callable[[Mapping[str, Tensor]], Tensor]


def meta_loss(algorithm: Algorithm, learner: Learner, episode: EncodedEpisode) -> tuple[Objective, Mapping[str, Tensor]]:
    return lambda params: algorithm.meta_loss(learner.with_params(dict(params)), [episode])[0], learner.params


def loss_at_the_fast_weights(algorithm, learner, episode):
    phi = learner.start(episode.ways) | algorithm.adapt(learner, episode.support)
    return lambda params: learner.loss(params, episode.query), phi


def distance_to_the_fixed_result(algorithm, learner, episode):
    u = algorithm.adapt(learner, join(episode.support, episode.query))
    return lambda params: sum((params[name] - u[name]).square().sum() for name in u) / 2, learner.params


@dataclass(frozen=True)
class Row:
    """An algorithm and what is its own.

    Args:
        algorithm: with hyperparameters at which the small random learner is curved.
        adapted: what its adaptation returns: names of its own, and prefixes, which end with a dot, of parameters' names.
        objective: the function, and the point, whose derivative its meta-gradient is; None where that is tested elsewhere.
        interchangeable: whether all classes are alike to it; a head with a vector of its own for each class prefers some.
    """

    algorithm: Algorithm
    adapted: tuple[str, ...] = ("backbone.", "head.")
    objective: Callable[[Algorithm, Learner, EncodedEpisode], tuple[Objective, Mapping[str, Tensor]]] | None = meta_loss
    interchangeable: bool = True


STEEP = {"inner_lr": 0.1, "head_lr": 1.0, "inner_steps": 2}
GENTLE = {"inner_lr": 0.02, "head_lr": 0.2, "inner_steps": 2}
TABLE = {
    "protonet": Row(new_algorithm("protonet"), ("prototypes",)),
    "protonet-euclidean": Row(ProtoNet("euclidean"), ("prototypes",)),
    "protonet-mahalanobis": Row(ProtoNet("mahalanobis"), ("prototypes",)),
    "protonet-fixed-scale": Row(ProtoNet(learn_scale=False), ("prototypes",)),
    "matching": Row(Matching(), ("memory", "labels", "votes")),
    "matching-in-context": Row(Matching(context_steps=2), ("memory", "labels", "votes")),
    "relation": Row(Relation(hidden=5), ("prototypes",)),
    "relation-mse": Row(Relation(hidden=5, loss="mse", scale=5.0), ("prototypes",)),
    "r2d2": Row(R2D2(), ("weight",)),
    "maml": Row(new_algorithm("maml", STEEP)),
    "maml-top-1-layers": Row(MAML(**STEEP, adapts="top-1-layers"), ("backbone.encoder.layer.1.", "head.")),
    "fomaml": Row(new_algorithm("fomaml", STEEP), objective=loss_at_the_fast_weights),
    "anil": Row(new_algorithm("anil", STEEP), ("head.",)),
    "anil-first-order": Row(MAML(**STEEP, adapts="head", hypergradient="first-order"), ("head.",), loss_at_the_fast_weights),
    "maml-checkpointed": Row(new_algorithm("maml", {**STEEP, "hypergradient": "checkpointed"})),
    "maml-momentum": Row(MAML(**STEEP, optimizer="momentum", l2_to_start=0.1)),
    "maml-learned-start": Row(MAML(**{**GENTLE, "head_lr": 2.0}, head_start="learned", ways=12), interchangeable=False),
    "maml++": Row(new_algorithm("maml++", {**GENTLE, "adapt_steps": 2})),
    "metasgd": Row(new_algorithm("metasgd", GENTLE)),
    "boil": Row(
        new_algorithm("boil", {"inner_lr": 0.002, "inner_steps": 2, "ways": 12}), ("backbone.",), interchangeable=False
    ),
    "protomaml": Row(new_algorithm("protomaml", GENTLE)),
    # at the rates of its preset, which belong to its pull to the start
    "imaml": Row(new_algorithm("imaml", {"inner_steps": STEEP["inner_steps"], "cg_steps": 3}), objective=None),
    "cavia": Row(new_algorithm("cavia", {"inner_lr": 0.1, "inner_steps": 2}), ("context", "head.")),
    "reptile": Row(new_algorithm("reptile", STEEP), objective=distance_to_the_fixed_result),
    "reptile-top-1-layers": Row(
        Reptile(**STEEP, adapts="top-1-layers"), ("backbone.encoder.layer.1.", "head."), distance_to_the_fixed_result
    ),
}


def test_every_registered_algorithm_has_a_row():
    assert ALGORITHMS.keys() <= TABLE.keys()


def adapted_logits(algorithm: Algorithm, learner: Learner, episode: EncodedEpisode) -> Tensor:
    with torch.no_grad():
        return algorithm.logits(learner, algorithm.adapt(learner, episode.support), episode.query)


def with_features(learner: Learner, episode: EncodedEpisode) -> EncodedEpisode:
    return EncodedEpisode(learner.featurised(episode.support), learner.featurised(episode.query))


# --- the properties ---------------------------------------------------------------------------------------------------------


def meta_gradient_is_the_derivative_of_the_objective(row: Row) -> None:
    if row.objective is None:
        pytest.skip("exact in the limit of many inner steps alone: see test_meta_hypergradient.py")
    learner, episode = learner_for(row.algorithm, ways=3, nudge=0.1), random_episode(counts=(1, 2, 3))
    objective, at = row.objective(row.algorithm, learner, episode)

    found = gradient_of(row.algorithm.meta_loss(learner, [episode])[0], learner.params)

    assert finite_difference_error(objective, at, found) < 1e-8


def adapting_mutates_nothing(row: Row) -> None:
    learner, episode = learner_for(row.algorithm), random_episode()
    before, module = snapshot(learner.params), snapshot(dict(learner.backbone.model.named_parameters()))
    batch = dataclasses.replace(episode.support, input_ids=episode.support.input_ids.clone())

    row.algorithm.adapt(learner, batch)
    row.algorithm.meta_loss(learner, [episode])[0].backward()

    assert same_bits(before, learner.params)
    assert same_bits(module, dict(learner.backbone.model.named_parameters()))
    assert torch.equal(batch.input_ids, episode.support.input_ids)


def frozen_parameters_are_adapted_and_take_no_gradient(row: Row) -> None:
    """Where the outer loop trains a part alone, the rest moves in the inner loop all the same."""
    learner, episode = learner_for(row.algorithm), random_episode()
    whole = gradient_of(row.algorithm.meta_loss(learner, [episode])[0], learner.params)
    part = {name for name in learner.params if "layer.1." in name}
    params = {name: value.detach().clone().requires_grad_(name in part) for name, value in learner.params.items()}

    loss, _ = row.algorithm.meta_loss(learner.with_params(params), [episode])
    found = gradient_of(loss, {name: params[name] for name in part})

    assert {name for name, value in params.items() if value.requires_grad} == part
    assert relative(found, {name: whole[name] for name in part}) < 1e-12


def adapting_without_gradients_is_the_same(row: Row) -> None:
    learner, episode = learner_for(row.algorithm), random_episode()

    with_graph = row.algorithm.adapt(learner, episode.support)
    with torch.no_grad():
        plain = row.algorithm.adapt(learner, episode.support)
        again = row.algorithm.adapt(learner, episode.support)

    assert with_graph.keys() == plain.keys()
    assert relative(with_graph, plain) < 1e-13
    assert same_bits(plain, again)
    assert not any(value.requires_grad for value in plain.values())


def only_what_moves_is_returned(row: Row) -> None:
    learner, episode = learner_for(row.algorithm), random_episode()
    start = learner.start(episode.ways)

    adapted = row.algorithm.adapt(learner, episode.support)

    parameters = {name for name in start if name.startswith(row.adapted)}
    assert adapted.keys() == parameters | {name for name in row.adapted if not name.endswith(".")}
    assert row.algorithm.moves_backbone == any(name.startswith(("backbone.", "context")) for name in adapted)
    assert any(name not in start or not torch.equal(value, start[name]) for name, value in adapted.items())


def the_order_of_the_examples_does_not_matter(row: Row) -> None:
    learner, episode = learner_for(row.algorithm), random_episode(counts=(1, 3, 2))
    order = torch.randperm(len(episode.support), generator=torch.Generator().manual_seed(0))
    support = dataclasses.replace(
        episode.support,
        labels=episode.support.labels[order],
        input_ids=episode.support.input_ids[order],
        mask=episode.support.mask[order],
    )

    torch.testing.assert_close(
        adapted_logits(row.algorithm, learner, EncodedEpisode(support, episode.query)),
        adapted_logits(row.algorithm, learner, episode),
        rtol=1e-9,
        atol=1e-11,
    )


def permuting_the_labels_permutes_the_logits(row: Row) -> None:
    if not row.interchangeable:
        pytest.skip("each class starts from a vector of its own")
    learner = learner_for(row.algorithm)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1000), st.permutations(range(4)))
    def check(seed: int, permutation: list[int]) -> None:
        episode, renamed = random_episode(seed, (2, 1, 3, 2)), torch.tensor(permutation)
        other = EncodedEpisode(
            *(dataclasses.replace(side, labels=renamed[side.labels]) for side in (episode.support, episode.query))
        )
        torch.testing.assert_close(
            adapted_logits(row.algorithm, learner, other)[:, renamed],
            adapted_logits(row.algorithm, learner, episode),
            rtol=1e-9,
            atol=1e-11,
        )
        losses = [row.algorithm.meta_loss(learner, [e])[0].detach() for e in (episode, other)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-11)

    check()


def any_number_of_ways_and_shots_is_taken(row: Row) -> None:
    learner = learner_for(row.algorithm)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(1, 4), min_size=2, max_size=12))
    def check(counts: list[int]) -> None:
        episode = random_episode(len(counts), counts, queries=1)
        loss, metrics = row.algorithm.meta_loss(learner, [episode])
        logits = adapted_logits(row.algorithm, learner, episode)
        assert logits.shape == (len(counts), len(counts))
        assert torch.isfinite(loss)
        assert torch.isfinite(logits).all()
        if row.objective is not distance_to_the_fixed_result:  # Reptile adapts to the query set, too, when it trains
            assert metrics["accuracy"] == pytest.approx(float((logits.argmax(-1) == episode.query.labels).double().mean()))

    check()


def the_meta_loss_is_the_mean_over_episodes(row: Row) -> None:
    learner = learner_for(row.algorithm)
    episodes = [random_episode(0), random_episode(1, (1, 2)), random_episode(2, (1, 1, 1, 1))]

    loss, metrics = row.algorithm.meta_loss(learner, episodes)

    alone = [row.algorithm.meta_loss(learner, [episode]) for episode in episodes]
    torch.testing.assert_close(loss, torch.stack([value for value, _ in alone]).mean(), rtol=1e-12, atol=0)
    assert metrics["accuracy"] == pytest.approx(sum(m["accuracy"] for _, m in alone) / 3)
    each = [gradient_of(value, learner.params) for value, _ in alone]
    mean = {name: torch.stack([g[name] for g in each]).mean(0) for name in learner.params}
    assert relative(gradient_of(loss, learner.params), mean) < 1e-12


def the_feature_path_is_the_token_path(row: Row) -> None:
    if row.algorithm.moves_backbone:
        pytest.skip("an algorithm that moves the backbone needs the tokens")
    learner, episode = learner_for(row.algorithm), random_episode(counts=(1, 2, 3))
    vectors = with_features(learner, episode)

    torch.testing.assert_close(
        adapted_logits(row.algorithm, learner, vectors), adapted_logits(row.algorithm, learner, episode), rtol=1e-12, atol=1e-13
    )
    by_tokens, by_features = (row.algorithm.meta_loss(learner, [e])[0] for e in (episode, vectors))
    torch.testing.assert_close(by_features, by_tokens, rtol=1e-12, atol=0)
    assert relative(gradient_of(by_features, learner.params), gradient_of(by_tokens, learner.params)) < 1e-11


def the_fused_attention_serves_where_it_is_said_to(row: Row) -> None:
    if row.algorithm.twice_differentiable:
        pytest.skip("this algorithm asks for the plain attention")
    learner, episode = learner_for(row.algorithm), random_episode()
    gradients = []
    for twice in (True, False):
        learner.backbone.use_attention(twice)
        gradients.append(gradient_of(row.algorithm.meta_loss(learner, [episode])[0], learner.params))
    assert relative(*gradients) < 1e-10


def the_support_set_is_learned(row: Row) -> None:
    """With every class's texts starting with a word of its own, the adapted learner tells the classes apart."""
    long = {"inner_steps": 30, "adapt_steps": 30} if hasattr(row.algorithm, "inner_steps") else {}
    algorithm = dataclasses.replace(row.algorithm, **long)
    learner, episode = learner_for(algorithm), random_episode(3, (4, 4, 4), queries=4)
    for side in (episode.support, episode.query):
        side.input_ids[:, :2] = side.labels[:, None] + 1  # inside every text, which has three tokens at least

    logits = adapted_logits(algorithm, learner, episode)

    assert float((logits.argmax(-1) == episode.query.labels).double().mean()) > 0.6  # chance is 0.33


def it_is_a_value_that_holds_no_tensor(row: Row) -> None:
    assert pickle.loads(pickle.dumps(row.algorithm)) == row.algorithm
    assert hash(row.algorithm) == hash(dataclasses.replace(row.algorithm))
    assert all(isinstance(value, (int, float, str, type(None))) for value in vars(row.algorithm).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(row.algorithm, dataclasses.fields(row.algorithm)[0].name, 1)


PROPERTIES = [
    meta_gradient_is_the_derivative_of_the_objective,
    adapting_mutates_nothing,
    frozen_parameters_are_adapted_and_take_no_gradient,
    adapting_without_gradients_is_the_same,
    only_what_moves_is_returned,
    the_order_of_the_examples_does_not_matter,
    permuting_the_labels_permutes_the_logits,
    any_number_of_ways_and_shots_is_taken,
    the_meta_loss_is_the_mean_over_episodes,
    the_feature_path_is_the_token_path,
    the_fused_attention_serves_where_it_is_said_to,
    the_support_set_is_learned,
    it_is_a_value_that_holds_no_tensor,
]


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", TABLE)
def test_algorithm(name, check):
    check(TABLE[name])


# --- what only some have ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [MAML(**STEEP, adapt_steps=5), Reptile(**STEEP, adapt_steps=5)], ids=["maml", "reptile"])
def test_adapting_to_a_new_task_may_take_other_steps_than_meta_training(algorithm):
    learner, episode = random_learner(), random_episode()
    five, two = (dataclasses.replace(algorithm, inner_steps=n, adapt_steps=None) for n in (5, 2))

    with torch.no_grad():
        assert same_bits(algorithm.adapt(learner, episode.support), five.adapt(learner, episode.support))
    assert same_bits(snapshot(algorithm.adapt(learner, episode.support)), snapshot(two.adapt(learner, episode.support)))


def test_protonet_by_hand():
    learner, episode = random_learner(), random_episode(counts=(1, 2, 3))
    z, q = (learner.features(learner.params, side).detach() for side in (episode.support, episode.query))

    euclidean = adapted_logits(ProtoNet("euclidean"), learner, episode)
    cosine = adapted_logits(ProtoNet("cosine", scale=7.0), learner, episode)

    for k in range(3):
        members = z[episode.support.labels == k]
        centre, direction = members.mean(0), (members / members.norm(dim=1, keepdim=True)).mean(0)
        for row in range(len(q)):
            assert float(euclidean[row, k]) == pytest.approx(-float((q[row] - centre).square().sum()), rel=1e-10)
            assert float(cosine[row, k]) == pytest.approx(
                7 * float(torch.cosine_similarity(q[row], direction, dim=0)), rel=1e-10
            )


def test_dropout_is_drawn_anew_in_each_inner_step_and_repeats_with_the_seed():
    learner, batch = random_learner(dropout=0.3), random_batch(0, (2, 2))
    algorithm = MAML(**STEEP)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(snapshot(algorithm.adapt(learner, batch)))

    assert same_bits(results[0], results[1])
    assert not same_bits(results[0], results[2])
