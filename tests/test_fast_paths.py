"""What is faster must be the same: narrowed word vectors, lower layers applied once, stored text vectors, packed tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import (
    gradient_of,
    law_episodes,
    learner_for,
    needs_tiny,
    one_thread,  # noqa: F401
    random_backbone,
    random_episode,
    random_learner,
    relative,
    same_bits,
    tiny_learner,
)
from torch import Tensor

from kshot.errors import ConfigError, TrainingError
from kshot.meta import MAML, MetaSGD, ProtoNet, Reptile
from kshot.meta.algorithm import adapted_safely
from kshot.models import EncodedEpisode, Learner, new_learner
from kshot.models import precision as precisions
from kshot.models.focus import focus
from kshot.models.select import select
from kshot.models.vectors import backbone_fingerprint
from kshot.training import TrainingConfig, meta_train
from kshot.training.validation import episode_scores

STEEP = {"inner_lr": 0.1, "head_lr": 1.0, "inner_steps": 2}


def meta_gradient(algorithm, learner: Learner, episode: EncodedEpisode) -> dict[str, Tensor]:
    return gradient_of(algorithm.meta_loss(learner, [episode])[0], learner.params)


@pytest.fixture
def wide() -> Learner:
    """A learner with far more words than an episode uses."""
    backbone = random_backbone()
    backbone.model.resize_token_embeddings(400)
    return new_learner(backbone)


# --- word vectors -----------------------------------------------------------------------------------------------------------


def test_an_episode_needs_the_rows_of_its_words_alone(wide):
    episode = random_episode()
    name = "backbone.embeddings.word_embeddings.weight"

    narrow = focus(wide, episode.support, episode.query)

    used = set(torch.cat([episode.support.input_ids.flatten(), episode.query.input_ids.flatten()]).tolist()) | {0}
    assert len(narrow.learner.params[name]) == len(used)
    for before, after in zip((episode.support, episode.query), narrow.batches, strict=True):
        torch.testing.assert_close(
            narrow.learner.features(narrow.learner.params, after), wide.features(wide.params, before), rtol=1e-13, atol=1e-14
        )
    assert same_bits(narrow.widen(narrow.learner.params), wide.params)


def test_little_is_narrowed_where_little_is_saved():
    learner, episode = random_learner(), random_episode()
    narrow = focus(learner, episode.support)
    assert narrow.learner is learner
    assert narrow.batches == (episode.support,)


def test_the_padding_row_keeps_its_number(wide):
    """Models of the RoBERTa family count positions from it."""
    wide.backbone.model.embeddings.word_embeddings.padding_idx = 5
    episode = random_episode()
    narrow = focus(wide, episode.support)
    rows = narrow.rows.tolist()
    assert rows[:6] == [0, 1, 2, 3, 4, 5]
    assert rows == sorted(set(rows))


@pytest.mark.parametrize(
    "algorithm", [MAML(**STEEP), MetaSGD(**STEEP), Reptile(**STEEP), ProtoNet(), MAML(**STEEP, optimizer="adam")], ids=str
)
def test_narrowing_changes_no_gradient_and_no_adaptation(algorithm, wide, monkeypatch):
    episode = random_episode(counts=(2, 1, 2))
    own = {name: value.requires_grad_() for name, value in algorithm.meta_parameters(wide).items()}
    learner = wide.with_params(wide.params | own)
    narrowed = meta_gradient(algorithm, learner, episode), algorithm.adapt(learner, episode.support)

    monkeypatch.setattr("kshot.models.focus._MOST_KEPT", -2)  # no row may be left out
    whole = meta_gradient(algorithm, learner, episode), algorithm.adapt(learner, episode.support)

    assert relative(narrowed[0], whole[0]) < 1e-12
    assert narrowed[1].keys() == whole[1].keys()
    assert relative(narrowed[1], whole[1]) < 1e-12


# --- lower layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["graph", "checkpointed", "first-order"])
@pytest.mark.parametrize("fast", [True, False])
def test_layers_below_what_moves_are_applied_once(method, fast):
    algorithm = MAML(inner_lr=0.1, head_lr=1.0, inner_steps=4, adapts="top-1-layers", hypergradient=method)
    episode, calls = random_episode(), []
    learner = replace(random_learner(), fast=fast)
    layers = learner.backbone.packed
    original = type(layers).states

    def counted(self, *args, first_layer=0, **more):
        calls.append((first_layer, more.get("last_layer")))
        return original(self, *args, first_layer=first_layer, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(layers), "states", counted)
        found = meta_gradient(algorithm, learner, episode)

    if fast:
        assert calls.count((0, 1)) == 1  # the lower layer of the support set, once
        assert all(first == 1 for first, last in calls if last is None) or calls.count((0, None)) == 1  # and the query set
    plain = meta_gradient(algorithm, replace(learner, fast=False), episode)
    assert relative(found, plain) < 1e-10


def test_each_inner_step_has_its_own_dropout_where_there_is_any():
    learner, episode = random_learner(dropout=0.3), random_episode()
    assert learner.lowered(episode.support, ["backbone.encoder.layer.1.output.dense.bias"]) is episode.support


# --- the packed forward in the learner --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [MAML(**STEEP), MAML(**STEEP, adapts="head"), ProtoNet(), Reptile(**STEEP)], ids=str)
def test_the_packed_forward_is_the_model_s_own(algorithm):
    episode = random_episode(counts=(1, 3, 2))
    learner = learner_for(algorithm)
    assert learner.backbone.packed is not None

    fast, plain = (meta_gradient(algorithm, replace(learner, fast=on), episode) for on in (True, False))

    assert relative(fast, plain) < 1e-10


def test_large_batches_go_in_passes(monkeypatch):
    learner, batch = random_learner(), random_episode(counts=(5, 4, 6)).support
    whole = learner.features(learner.params, batch)
    for budget in (1, 9, 20):
        monkeypatch.setattr("kshot.models.learner._PACKED_TOKENS", budget)
        again = replace(batch)
        torch.testing.assert_close(learner.features(learner.params, again), whole, rtol=1e-12, atol=1e-13)


# --- frozen backbones -------------------------------------------------------------------------------------------------------


@needs_tiny
def test_a_frozen_backbone_encodes_a_corpus_once_and_trains_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    episodes, validation = law_episodes()
    algorithm = ProtoNet("mahalanobis")
    config = TrainingConfig(steps=3, trains="head", validate_every=3, tasks_per_step=2, lr=1e-3)
    corpus = episodes.tasks[0].corpus
    stored = tiny_learner().with_stores([corpus])
    monkeypatch.setattr("kshot.training.loop._texts_drawn", lambda *_: 10**9)

    fast = meta_train(stored, algorithm, episodes, validation, config)
    monkeypatch.setattr(Learner, "with_vectors", lambda self, most: self)
    plain = meta_train(stored, algorithm, episodes, validation, config)

    assert len(list((tmp_path / "vectors").iterdir())) == 1
    assert relative(fast.learner.params, plain.learner.params) < 1e-5
    assert fast.best.value == pytest.approx(plain.best.value, abs=0.05)
    assert fast.learner.vectors == {}  # a run may be trained on, and its vectors would be stale


@needs_tiny
def test_stored_vectors_are_the_encoder_s_and_belong_to_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    episodes, validation = law_episodes()
    learner = tiny_learner().with_stores([episodes.tasks[0].corpus])
    stored = learner.with_vectors(most=10**9)

    for episode in validation[:2]:
        torch.testing.assert_close(
            stored.encode(episode).query.features,
            learner.featurised(learner.encode(episode).query).features,
            rtol=1e-4,
            atol=1e-5,
        )
    assert learner.with_vectors(most=3).vectors == {}  # larger than what is used of it
    other = {n: v + 1e-3 if n.endswith("layer.0.output.dense.bias") else v for n, v in learner.params.items()}
    assert backbone_fingerprint(learner.with_params(other)) != backbone_fingerprint(learner)
    assert backbone_fingerprint(tiny_learner()) == backbone_fingerprint(learner)
    assert episode_scores(stored, ProtoNet(), validation) == pytest.approx(
        episode_scores(learner, ProtoNet(), validation), abs=0.2
    )


def test_a_backbone_that_is_trained_stores_no_vectors(monkeypatch):
    def fail(self, most):
        raise AssertionError

    monkeypatch.setattr(Learner, "with_vectors", fail)
    episodes, _ = law_episodes()
    for algorithm, trains in ((ProtoNet(), "top-1-layers"), (MAML(inner_steps=1, adapts="bias"), "bias")):
        meta_train(tiny_learner(), algorithm, episodes, [], TrainingConfig(steps=1, trains=trains))


# --- refusals ---------------------------------------------------------------------------------------------------------------


def test_an_inner_loop_that_diverges_is_told():
    learner, episode = random_learner(), random_episode()
    with pytest.raises(TrainingError) as error:
        adapted_safely(MAML(inner_lr=1e200, head_lr=1e200, inner_steps=3), learner, episode.support)

    assert str(error.value).startswith("Adapting to 6 examples diverged: 'backbone.")
    assert str(error.value).endswith(
        "' is no longer a finite number. Inner rates at which the steps settle are expected. "
        "Meta-train with a smaller algorithm.inner_lr or algorithm.head_lr, or with fewer steps."
    )


def test_a_precision_that_is_not_to_be_had(monkeypatch):
    monkeypatch.setattr(precisions, "_has_bf16", lambda device: False)
    with pytest.raises(ConfigError) as error:
        precisions.require_precision("bf16", "cpu")
    assert str(error.value) == "The device 'cpu' has no bf16 products. Use --precision fp32."
    with pytest.raises(ConfigError) as error:
        precisions.require_precision("bf61", "cpu")
    assert str(error.value) == "precision is 'bf61'. Did you mean 'bf16'? Expected one of fp32, bf16."
    precisions.require_precision("fp32", "cpu")


def test_the_probed_route_can_be_switched_off():
    before = torch.get_float32_matmul_precision()
    try:
        assert precisions.choose_matmul_route().startswith("fp32 matrix products: ")
        assert precisions.default_matmul_route() == "fp32 matrix products: default route (fast is off, nothing was probed)"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_selectors_of_both_loops_are_independent():
    learner, episode = random_learner(), random_episode()
    whole = meta_gradient(MAML(**STEEP, adapts="bias"), learner, episode)
    trained = set(select(learner.params, "top-1-layers")) - {"head.weight", "head.bias"}
    params = {n: v.detach().clone().requires_grad_(n in trained) for n, v in learner.params.items()}
    loss, _ = MAML(**STEEP, adapts="bias").meta_loss(learner.with_params(params), [episode])
    found = gradient_of(loss, {n: params[n] for n in trained})
    assert relative(found, {n: whole[n] for n in trained}) < 1e-12
