"""The outer loop: what a step does, what it trains, when it stops, what it returns, and what it refuses."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import refusal
from tiny import (
    StopAt,
    law_episodes,
    needs_tiny,
    one_thread,  # noqa: F401
    random_episode,
    random_learner,
    relative,
    same_bits,
    snapshot,
    tiny_learner,
)

from kshot.errors import ConfigError, TrainingError
from kshot.meta import MAML, Algorithm, ProtoNet, Reptile
from kshot.models import BackboneSpec, Batch, EncodedEpisode, Learner, load_backbone, new_learner
from kshot.models.select import select
from kshot.training import TrainingConfig, TrainingResult, meta_train
from kshot.training.callbacks import Callback
from kshot.training.checkpoint import LAST, load_checkpoint
from kshot.training.gradient import episode_gradients, usual_threads
from kshot.training.interrupt import stop_requests
from kshot.training.validation import episode_scores

pytestmark = needs_tiny


def train(algorithm: Algorithm | None = None, validate: bool = False, callbacks: Sequence[Callback] = (), **config):
    config = {"steps": 2, "tasks_per_step": 2, "validate_every": 1, **config}
    episodes, validation = law_episodes()
    learner = tiny_learner()
    return meta_train(
        learner,
        algorithm or ProtoNet(),
        episodes,
        validation if validate else [],
        TrainingConfig(**config),
        callbacks=callbacks,
    )


@dataclass(frozen=True)
class Stub(Algorithm):
    """An algorithm whose meta-gradient is known: ``slope`` for every weight."""

    slope: float = 0.0

    def adapt(self, learner, support):
        return {}

    def logits(self, learner, adapted, query):
        return torch.zeros(len(query), query.ways)

    def meta_loss(self, learner: Learner, episodes: Sequence[EncodedEpisode]):
        return self.slope * torch.stack([p.sum() for p in learner.params.values()]).sum(), {"accuracy": 0.0}


# --- a step -----------------------------------------------------------------------------------------------------------------


def double_learner() -> Learner:
    backbone = load_backbone(BackboneSpec("tiny", max_length=16))
    backbone.model.double()
    return new_learner(backbone)


def test_steps_are_those_of_adamw_on_the_mean_gradient_of_the_episodes():
    episodes, _ = law_episodes()
    algorithm = ProtoNet(learn_scale=False)
    learner, by_hand = double_learner(), double_learner()  # Adam turns the rounding of small gradients into signs
    trained = meta_train(learner, algorithm, episodes, [], TrainingConfig(steps=2, tasks_per_step=3, clip=0, lr=1e-3))

    names = [name for name in by_hand.params if name.startswith("backbone.")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [by_hand.params[n] for n in names if by_hand.params[n].dim() > 1], "weight_decay": 0.01},
            {"params": [by_hand.params[n] for n in names if by_hand.params[n].dim() == 1], "weight_decay": 0.0},
        ]
    )
    for step, rate in enumerate((1e-3, 1e-3 * (1 - 0.8 / 1.8))):  # the warm-up is 0.2 of a step long
        optimizer.zero_grad()
        loss, metrics = algorithm.meta_loss(by_hand, [by_hand.encode(episodes[i]) for i in range(3 * step, 3 * step + 3)])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        record = trained.history[step]
        assert record["step"] == step + 1
        assert record["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert record["accuracy"] == pytest.approx(metrics["accuracy"])
        assert record["lr"] == pytest.approx(rate)
        norm = torch.stack([by_hand.params[n].grad.norm() for n in names]).norm()
        assert record["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, value in trained.learner.params.items():
        torch.testing.assert_close(value, by_hand.params[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "algorithm", [MAML(inner_steps=2), MAML(inner_steps=1, hypergradient="checkpointed"), Reptile()], ids=str
)
def test_episodes_side_by_side_have_the_gradients_that_they_have_one_by_one(algorithm):
    learner = random_learner()
    episodes = [random_episode(seed, counts) for seed, counts in enumerate([(2, 1), (1, 1, 2), (3, 2), (2, 2, 2), (1, 4)])]
    names = [name for name in learner.params if "layer.1" in name]
    threads = torch.get_num_threads()

    one_by_one, side_by_side = (list(episode_gradients(learner, algorithm, episodes, names, count)) for count in (1, 3))

    assert torch.get_num_threads() == threads
    for alone, together in zip(one_by_one, side_by_side, strict=True):
        assert together.loss == pytest.approx(alone.loss, rel=1e-12)
        assert together.metrics == alone.metrics
        assert relative(dict(zip(names, together.grads, strict=True)), dict(zip(names, alone.grads, strict=True))) < 1e-12


def test_a_mistake_in_an_episode_s_thread_is_told_as_it_is():
    episodes = [random_episode(seed, (2, 1)) for seed in range(4)]
    algorithm = MAML(adapts="body")
    with pytest.raises(ConfigError, match="leaves the head where all classes start alike"):
        list(episode_gradients(random_learner(), algorithm, episodes, ["head.weight"], 2))


def test_episodes_go_side_by_side_where_that_is_faster_and_the_same(monkeypatch):
    learner = random_learner()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert usual_threads(learner, MAML()) == 6
    assert usual_threads(learner, ProtoNet()) == usual_threads(learner, MAML(adapts="head")) == 1
    assert usual_threads(replace(learner, dropout=True), MAML()) == 1  # one generator, one order of drawing


def test_the_learner_given_is_not_changed():
    episodes, validation = law_episodes()
    learner = tiny_learner()
    before, module = snapshot(learner.params), snapshot(dict(learner.backbone.model.named_parameters()))

    result = meta_train(learner, ProtoNet(), episodes, validation, TrainingConfig(steps=1, validate_every=1))

    assert same_bits(before, learner.params)
    assert same_bits(module, dict(learner.backbone.model.named_parameters()))
    assert not same_bits(before, result.learner.params)
    assert all(value.requires_grad and value.is_leaf for value in result.learner.params.values())


def test_weight_decay_is_on_matrices_alone():
    start, result = tiny_learner().params, train(Stub(), steps=1, lr=0.1, weight_decay=0.5, schedule="constant", warmup=0.0)

    for name, value in result.learner.params.items():
        decayed = name.startswith("backbone.") and value.dim() > 1
        expected = start[name] * (1 - 0.1 * 0.5) if decayed else start[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clip", [1e-3, 0.0, 1e3])
def test_the_gradient_is_clipped_to_the_norm(clip, tmp_path):
    episodes, _ = law_episodes()
    result = meta_train(tiny_learner(), ProtoNet(), episodes, [], TrainingConfig(steps=1, clip=clip), tmp_path)

    moments = load_checkpoint(tmp_path / LAST)[1]
    told = result.history[0]["gradient_norm"]  # the raw one
    norm = 10 * torch.stack([moment["exp_avg"].norm() for moment in moments.values()]).norm()  # AdamW keeps a tenth of it
    assert float(norm) == pytest.approx(1e-3 if clip == 1e-3 else told, rel=1e-4)
    assert told > 1e-3


@pytest.mark.parametrize("selector", ["top-1-layers", "bias", "re:word_embeddings"])
@pytest.mark.parametrize(
    "algorithm",
    [ProtoNet(learn_scale=False), MAML(inner_steps=1), MAML(inner_steps=1, hypergradient="first-order", adapts="bias")],
    ids=["protonet", "maml", "fomaml"],
)
def test_frozen_parameters_stay_as_they_are(selector, algorithm):
    start = tiny_learner().params

    result = train(algorithm, steps=2, lr=1e-2, trains=selector, tasks_per_step=1)

    trained = set(select(start, selector))
    moved = {name for name, value in result.learner.params.items() if not torch.equal(value, start[name])}
    assert moved
    assert moved <= trained


def test_a_frozen_lower_part_keeps_no_graph():
    """What the outer loop does not train takes no gradient, so its activations are not kept."""
    requiring = {}

    @dataclass(frozen=True)
    class Spy(ProtoNet):
        def meta_loss(self, learner, episodes):
            requiring.update({name: value.requires_grad for name, value in learner.params.items()})
            return super().meta_loss(learner, episodes)

    train(Spy(learn_scale=False), steps=1, trains="top-1-layers")

    assert {name for name, value in requiring.items() if value} == set(select(requiring, "top-1-layers"))


def test_an_algorithms_own_meta_parameters_are_trained_too():
    @dataclass(frozen=True)
    class Scaled(ProtoNet):
        def meta_parameters(self, learner):
            return {"meta.scale": torch.tensor(5.0)}

        def logits(self, learner, adapted, query):
            return learner.params["meta.scale"] * super().logits(learner, adapted, query)

    result = train(Scaled(scale=1.0), steps=2, lr=0.1, trains="top-1-layers", weight_decay=0.5)

    assert result.learner.params["meta.scale"].item() != 5.0


def test_attention_is_the_plain_one_where_the_algorithm_differentiates_twice():
    episodes, _ = law_episodes()
    for algorithm, kind in (
        (MAML(inner_steps=1), "eager"),
        (MAML(inner_steps=1, hypergradient="first-order"), "sdpa"),
        (ProtoNet(), "sdpa"),
    ):
        learner = tiny_learner()
        meta_train(learner, algorithm, episodes, [], TrainingConfig(steps=1))
        assert learner.backbone.model.config._attn_implementation == kind


def test_dropout_is_off_unless_asked_for_and_never_in_what_is_returned():
    results = {dropout: train(ProtoNet(), validate=True, steps=1, dropout=dropout) for dropout in ("off", "on")}

    assert results["off"].history[0]["loss"] != results["on"].history[0]["loss"]
    assert not any(result.learner.dropout for result in results.values())


def test_seeds_draw_dropout():
    losses = [train(ProtoNet(), steps=1, dropout="on", seed=seed).history[0]["loss"] for seed in (0, 0, 1)]

    assert losses[0] == losses[1] != losses[2]


def test_each_step_draws_dropout_of_its_own():
    drawn = []

    @dataclass(frozen=True)
    class Spy(ProtoNet):
        def meta_loss(self, learner, episodes):
            drawn.append(torch.rand(1).item())
            return super().meta_loss(learner, episodes)

    train(Spy(), steps=3, dropout="on")

    assert len(set(drawn)) == len(drawn) == 6


# --- the rate ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, *[1.0] * 9]),
        ("cosine", [0.5, 1.0, *[(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]]),
    ],
)
def test_rates_by_hand(schedule, expected):
    config = TrainingConfig(steps=10, lr=2.0, warmup=0.2, schedule=schedule)

    assert [config.rate(step) / 2 for step in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_rates_rise_to_the_peak_and_stay_positive(steps, warmup, schedule):
    config = TrainingConfig(steps=steps, warmup=warmup, schedule=schedule, lr=3.0)

    rates = [config.rate(step) for step in range(steps)]

    assert all(0 < rate <= 3.0 * (1 + 1e-12) for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"schedule": "linaer"}, "training.schedule is 'linaer'. Did you mean 'linear'? Expected linear, cosine, constant."),
        ({"dropout": "yes"}, "training.dropout is 'yes'. Expected off, on."),
        ({"steps": 0}, "training.steps is 0. A number above 0 is expected."),
        ({"lr": float("nan")}, "training.lr is nan. A number above 0 is expected."),
        ({"tasks_per_step": 0}, "training.tasks_per_step is 0. At least 1 is expected."),
        ({"warmup": 1.5}, "training.warmup is 1.5. A share of the steps between 0 and 1 is expected."),
        ({"clip": -1.0}, "training.clip is -1.0. At least 0 is expected."),
        ({"validate_every": -1}, "training.validate_every is -1. At least 0 is expected."),
        ({"patience": -1}, "training.patience is -1. At least 0 is expected."),
        ({"weight_decay": -0.1}, "training.weight_decay is -0.1. At least 0 is expected."),
    ],
)
def test_wrong_options(values, sentence):
    assert refusal(lambda: TrainingConfig(**values), ConfigError) == sentence


# --- validation -------------------------------------------------------------------------------------------------------------


def test_validation_adapts_and_scores_each_episode():
    _, validation = law_episodes()
    learner = tiny_learner()
    for algorithm in (ProtoNet(), MAML(inner_steps=2, hypergradient="first-order"), MAML(adapts="head")):
        found = episode_scores(learner, algorithm, validation)

        expected = []
        for episode in map(learner.encode, validation):
            with torch.no_grad():
                logits = algorithm.logits(learner, algorithm.adapt(learner, episode.support), episode.query)
            expected.append(float((logits.argmax(-1) == episode.query.labels).double().mean()))
        assert found == expected


def test_validation_draws_no_dropout():
    _, validation = law_episodes()
    quiet = tiny_learner()
    loud = replace(quiet, dropout=True)

    for algorithm in (ProtoNet("euclidean"), MAML(inner_steps=2, hypergradient="first-order")):
        assert episode_scores(loud, algorithm, validation) == episode_scores(quiet, algorithm, validation)


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: Sequence[float]) -> None:
    """Let validation find these accuracies, one after the other."""
    values = iter(accuracies)
    monkeypatch.setattr("kshot.training.loop.episode_scores", lambda *_: [next(values)] * 4)


def test_training_stops_early_and_returns_the_best_parameters(monkeypatch):
    constant = {"schedule": "constant", "warmup": 0.0, "lr": 1e-3}
    two_steps = train(steps=2, **constant)
    scripted(monkeypatch, [0.5, 0.6, 0.6, 0.55, 0.9])

    result = train(validate=True, steps=5, patience=2, **constant)

    assert [record["step"] for record in result.history] == [1, 2, 3, 4]
    assert [record["validation"] for record in result.history] == pytest.approx([0.5, 0.6, 0.6, 0.55])
    assert (result.best.value, result.best.count, result.best_step) == (pytest.approx(0.6), 4, 2)
    assert not result.interrupted
    assert same_bits(result.learner.params, two_steps.learner.params)


def test_patience_counts_validations_and_not_steps(monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.4, 0.9])

    result = train(validate=True, steps=8, validate_every=2, patience=2)

    assert (len(result.history), result.best_step) == (6, 2)


def test_without_patience_training_goes_to_its_end(monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2])

    result = train(validate=True, steps=4, patience=0)

    assert (len(result.history), result.best_step) == (4, 1)


def test_the_best_parameters_have_the_best_accuracy():
    episodes, validation = law_episodes()
    config = TrainingConfig(steps=4, validate_every=1, lr=5e-3)

    result = meta_train(tiny_learner(), ProtoNet(), episodes, validation, config)

    measured = [record["validation"] for record in result.history]
    assert result.best.value == max(measured)
    assert result.best_step == 1 + measured.index(max(measured))
    accuracies = episode_scores(result.learner, ProtoNet(), validation)
    assert sum(accuracies) / len(accuracies) == pytest.approx(result.best.value)


def test_validation_comes_at_its_steps_and_at_the_end():
    result = train(validate=True, steps=5, validate_every=2)

    assert [record["step"] for record in result.history if "validation" in record] == [2, 4, 5]


def test_without_validation_the_last_parameters_are_returned():
    for result in (train(steps=2), train(steps=2, validate=True, validate_every=0)):
        assert math.isnan(result.best.value)
        assert (result.best.count, result.best_step) == (0, 0)
        assert not any("validation" in record for record in result.history)


# --- refusals ---------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite():
    sentence = refusal(lambda: train(MAML(inner_lr=1e30, inner_steps=3, hypergradient="first-order"), steps=3), TrainingError)

    assert sentence == (
        "The loss became nan at step 1, with the learning rate 5e-05. Try a smaller training.lr, or smaller algorithm.inner_lr "
        "and algorithm.head_lr. The last checkpoint, if one was written, is from before."
    )


def test_a_rate_that_is_too_large():
    sentence = refusal(lambda: train(steps=3, lr=1e20, schedule="constant"), TrainingError)

    assert sentence.startswith("The loss became nan at step 2, with the learning rate 1e+20. Try a smaller training.lr")


def test_a_gradient_that_is_not_finite():
    @dataclass(frozen=True)
    class Kink(Stub):
        def meta_loss(self, learner, episodes):
            bias = learner.params["backbone.embeddings.LayerNorm.bias"]
            return (bias - bias.detach()).abs().sqrt().sum(), {}

    sentence = refusal(lambda: train(Kink()), TrainingError)

    assert sentence.startswith("The gradient became nan at step 1, with the learning rate 5e-05. Try a smaller training.lr")


def test_a_selector_of_nothing_that_the_algorithm_uses():
    assert refusal(lambda: train(ProtoNet(learn_scale=False), trains="head"), ConfigError) == (
        "training.trains is 'head', and the head's start, which all classes share, cancels in the softmax. "
        "A selector of the backbone's parameters is expected, such as all or top-2-layers."
    )
    assert refusal(lambda: train(Reptile(adapts="top-1-layers"), trains="re:embeddings"), ConfigError) == (
        "training.trains is 're:embeddings', and the algorithm uses nothing of it. "
        "A selector of parameters that its loss depends on is expected, such as all or top-1-layers."
    )


# --- signals and callbacks --------------------------------------------------------------------------------------------------


def test_the_first_signal_ends_the_step_and_the_second_interrupts():
    old = signal.getsignal(signal.SIGINT)
    result = train(steps=5, callbacks=[StopAt(2)])

    assert isinstance(result, TrainingResult)
    assert result.interrupted
    assert len(result.history) == 2

    with pytest.raises(KeyboardInterrupt):
        train(steps=5, callbacks=[StopAt(1), StopAt(1)])
    assert signal.getsignal(signal.SIGINT) is old


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_is_too_late(number):
    result = train(steps=2, callbacks=[StopAt(2, number)])

    assert not result.interrupted


def test_in_another_thread_signals_are_left_alone():
    seen = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append((stop.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]


class Diary(Callback):
    def __init__(self, trouble: str = "") -> None:
        self.said: list[str] = []
        self.trouble = trouble

    def _say(self, what: str) -> None:
        if self.trouble == what:
            raise RuntimeError(what)
        self.said.append(what)

    def start(self, steps, done):
        self._say(f"start {done}/{steps}")

    def step(self, record, episodes):
        self._say(f"step {record['step']} over {episodes}")

    def end(self):
        self._say("end")


def test_callbacks_are_told_of_start_steps_and_end():
    diary = Diary()

    train(steps=2, callbacks=[diary])

    assert diary.said == ["start 0/2", "step 1 over 2", "step 2 over 2", "end"]


@pytest.mark.parametrize("trouble", ["start 0/2", "step 1 over 2", "end"])
def test_callbacks_are_ended_whatever_fails(trouble):
    first, failing, last = Diary(), Diary(trouble), Diary()

    with pytest.raises(RuntimeError, match=trouble):
        train(steps=2, callbacks=[first, failing, last])

    assert first.said[-1] == "end"
    assert last.said[-1:] == ([] if trouble.startswith("start") else ["end"])


def test_no_checkpoint_is_left_where_no_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    train(steps=1, validate=True)

    assert os.listdir(tmp_path) == []


def test_batches_of_an_algorithm_may_hold_no_tokens():
    """The loop hands over encoded episodes; their labels and ways agree with the sampler's."""
    seen: list[Batch] = []

    @dataclass(frozen=True)
    class Spy(ProtoNet):
        def meta_loss(self, learner, episodes):
            seen.extend(episode.support for episode in episodes)
            return super().meta_loss(learner, episodes)

    train(Spy(), steps=2, tasks_per_step=2)

    episodes, _ = law_episodes()
    assert [batch.labels.tolist() for batch in seen] == [list(episodes[i].support.labels) for i in range(4)]
