"""Calibration: fitted on meta-validation, stored in the run, used by predictions, measured in reports."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import loaded, small_suite
from tiny import tiny_learner

from kshot import api
from kshot.deploy import adapt, load_adapted
from kshot.evaluation.metrics import calibration_error, reliability
from kshot.meta import ProtoNet
from kshot.tasks import EpisodeSampler, EpisodeSpec, load_tasks
from kshot.training import load_run
from kshot.training.run import save_run
from kshot.training.trust import (
    NEARNESS,
    SCORES,
    Trust,
    _Answers,
    _fit_temperature,
    _fit_threshold,
    _shapes,
    _without,
    fit_trust,
)

GENERATOR = np.random.default_rng(0)


def answers(temperature: float, shots: float, ways: int = 4, count: int = 4_000) -> _Answers:
    """Class scores of which the labels are drawn as their softmax at a temperature says."""
    logits = torch.tensor(GENERATOR.normal(0, 6, (count, ways)))
    probabilities = (logits / temperature).softmax(-1).numpy()
    labels = torch.tensor([GENERATOR.choice(ways, p=row) for row in probabilities])
    return _Answers(logits, labels, logits[:10] - 20, shots)


def test_the_temperature_of_each_number_of_shots_is_found():
    found = Trust(_fit_temperature([answers(4.0, 1), answers(2.0, 5)]))

    for shots, temperature in ((1, 4.0), (5, 2.0)):
        ones = torch.ones(1, 4, dtype=torch.float64)
        assert float(found.calibrated(ones, shots)[0, 0]) == pytest.approx(1 / temperature, rel=0.06)


def test_a_temperature_changes_no_answer():
    logits = torch.randn(50, 7)

    calibrated = Trust((0.7, -0.2, 0.1)).calibrated(logits, 3)

    assert torch.equal(calibrated.argmax(-1), logits.argmax(-1))


def test_the_threshold_lets_all_but_one_in_twenty_through():
    few, many = answers(1.0, 1), answers(1.0, 10)
    scores = [torch.randn(4_000, dtype=torch.float64), torch.randn(4_000, dtype=torch.float64) + 5]

    trust = Trust(threshold=_fit_threshold([few, many], scores))

    for score, shots in zip(scores, (1, 10), strict=True):
        assert float((score >= trust.least(shots, 4)).double().mean()) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_is_larger_where_an_answer_is_clearer(name):
    clear, unclear = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.9, 0.8]])

    assert float(SCORES[name](clear)) > float(SCORES[name](unclear))


def test_left_out_labels_are_out_of_scope_and_the_rest_is_an_episode():
    (episode,) = EpisodeSampler(load_tasks("bundled:en/law"), EpisodeSpec(3, 2, 2), seed=1)[:1]

    kept, outside = _without(episode, 2)

    assert kept.labels == episode.labels[:2]
    assert (len(kept.support), len(kept.query), len(outside)) == (4, 4, 2)
    texts = {text for side in (episode.support, episode.query) for text in side.texts}
    assert set(kept.support.texts) | set(kept.query.texts) | set(outside.texts) < texts | set(outside.texts)
    assert set(outside.labels) == {2}
    assert not set(outside.texts) & set(kept.query.texts)


def test_shapes_reach_from_two_to_all_ways_and_leave_a_label():
    tasks = load_tasks("bundled:en/law")

    ways = {spec.ways for spec in _shapes(tasks)}

    assert min(ways) == 3
    assert max(ways) == max(len(task.labels) for task in tasks)


def test_tasks_without_a_label_to_leave_out_give_no_calibration():
    pairs = [task.with_labels(set(task.labels[:2])) for task in load_tasks("bundled:en/law")]

    assert fit_trust(tiny_learner(), ProtoNet(), pairs, 20) is None
    assert fit_trust(tiny_learner(), ProtoNet(), load_tasks("bundled:en/law"), 0) is None


@pytest.mark.parametrize("algorithm", ["protonet", "anil", "maml"])
def test_it_is_fitted_for_any_algorithm_and_makes_the_likelihood_no_worse(algorithm):
    run = loaded(algorithm)
    tasks = load_tasks("bundled:en/law")

    trust = fit_trust(run.learner, run.algorithm, tasks, 12)

    assert trust is not None
    assert trust.score in (*SCORES, NEARNESS)
    assert all(math.isfinite(value) for value in (*trust.temperature, *trust.threshold))
    assert fit_trust(run.learner, run.algorithm, tasks, 12) == trust


def test_training_stores_it_in_the_run_and_tasks_use_it(tmp_path):
    shape = {"episodes__ways": 2, "episodes__shots": 1, "episodes__queries": 1, "training__validate_every": 0}
    suite = small_suite()
    suite = replace(suite, validation=tuple(load_tasks("bundled:en/law")))
    run = api.train(
        suite, tmp_path / "run", backbone__name="tiny", training__steps=1, training__calibration_episodes=8, **shape
    )

    again = load_run(tmp_path / "run")

    assert run.trust is not None
    assert again.trust == run.trust
    texts, labels = ["where is it", "it never came", "give me my money"], ["parcel late", "parcel late", "refund"]
    task = adapt(again, texts, labels)
    task.save(tmp_path / "task")
    for prediction in load_adapted(tmp_path / "task").predict(texts):
        assert prediction.in_scope in (True, False)
        assert prediction.to_json()["in_scope"] is prediction.in_scope
    plain = adapt(replace(again, trust=None), texts, labels)
    assert [p.label for p in plain.predict(texts)] == [p.label for p in task.predict(texts)]
    assert plain.predict(texts)[0].in_scope is None
    hot = replace(again, trust=replace(run.trust, temperature=(3.0, 0.0, 0.0)))
    assert adapt(hot, texts, labels).predict(texts)[0].probability < plain.predict(texts)[0].probability


def test_a_run_from_before_there_was_calibration_is_loaded_without(tmp_path):
    save_run(loaded(), tmp_path / "run")
    card = json.loads((tmp_path / "run" / "kshot.json").read_text())
    card.pop("trust")
    (tmp_path / "run" / "kshot.json").write_text(json.dumps(card))

    assert load_run(tmp_path / "run").trust is None


@pytest.mark.parametrize("score", ["logit", NEARNESS])
def test_a_text_of_no_label_is_told_from_those_in_scope(score):
    run = replace(loaded(), trust=Trust((0.0, 0.0, 0.0), score, (-1e9, 0.0, 0.0)))
    texts, labels = ["where is it", "give me my money"], ["parcel", "refund"]

    assert adapt(run, texts, labels).predict(["anything"])[0].in_scope is True
    strict = replace(run, trust=replace(run.trust, threshold=(1e9, 0.0, 0.0)))
    assert adapt(strict, texts, labels).predict(["anything"])[0].in_scope is False


def test_the_calibration_error_by_hand():
    confidences = [(0.95, True), (0.95, False), (0.55, True), (0.55, True), (1.0, True)]

    # bins of a fifteenth: 0.95 and 1.0 share the last, 0.55 has one of its own
    expected = 3 / 5 * abs(2 / 3 - (0.95 + 0.95 + 1.0) / 3) + 2 / 5 * abs(1.0 - 0.55)
    assert calibration_error(confidences) == pytest.approx(expected)
    assert [row["share"] for row in reliability(confidences)] == [0.4, 0.6]
    assert calibration_error([]) == 0
