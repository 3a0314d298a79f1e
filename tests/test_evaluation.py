"""The protocol: the same episodes for all, honest intervals, figures that agree with scikit-learn, and what is warned of."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal, write_jsonl
from runs import CHINESE, LABELS, loaded, rows, small_suite
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from tiny import needs_tiny, one_thread, tiny_learner  # noqa: F401

from kshot import api
from kshot.errors import ConfigError, DataError, MissingExtraError
from kshot.evaluation import BASELINES, EvaluationConfig, measuring, protocol
from kshot.evaluation.baselines import TfIdf, new_baselines
from kshot.evaluation.map import embedding_map
from kshot.evaluation.methods import Method, as_labels
from kshot.evaluation.metrics import Confusions
from kshot.evaluation.report import write_report
from kshot.meta import ProtoNet
from kshot.meta.transductive import transductive_logits
from kshot.models import Batch
from kshot.models.features import encode_once
from kshot.statistics import mean
from kshot.tasks import Episode, EpisodeSampler, EpisodeSpec, Examples, TaskSuite, load_tasks

FAST = ("prototype", "logistic", "head", "tfidf")
QUICK: dict[str, Any] = {"ways": 2, "shots": (1, 2), "queries": 2, "episodes": 6, "slow_episodes": 2, "baselines": FAST}


class Guess(Method):
    """Guesses at random, or always rightly from some episode on, and remembers what it saw."""

    def __init__(self, name: str, seed: int, slow: bool = False, right_from: int = 10**9) -> None:
        self.name, self.slow, self._rng, self._right_from = name, slow, np.random.default_rng(seed), right_from
        self.fitted: list[Episode] = []
        self.predicted: list[Any] = []

    def fit(self, episode, support):
        self.fitted.append(episode)

        def predict(episode, query):
            right = len(self.predicted) >= self._right_from
            guess = episode.query.labels if right else self._rng.integers(episode.ways, size=len(episode.query))
            self.predicted.append(as_labels(guess))
            return self.predicted[-1]

        return predict


@pytest.fixture
def suite() -> TaskSuite:
    tasks = load_tasks("bundled:en")
    return TaskSuite("two", tuple(tasks[2:4]), tuple(tasks[4:6]), tuple(tasks[:2]))


@pytest.fixture
def no_map(monkeypatch) -> None:
    """A map takes longer than all else."""
    empty = {"labels": [], "points": []}
    monkeypatch.setattr(protocol, "embedding_map", lambda task, before, after: {"task": task.name, **empty})


@pytest.fixture
def stubs(monkeypatch, no_map) -> list[Guess]:
    """The run and two baselines, of which none looks at a text."""
    ours, quick, slow = Guess("ours", 1, right_from=9), Guess("quick", 2), Guess("slow", 3, slow=True)
    monkeypatch.setattr(protocol, "MetaTrained", lambda run: ours)
    monkeypatch.setattr(protocol, "new_baselines", lambda names, pretrained, warnings: [quick, slow])
    return [ours, quick, slow]


def evaluated(suite: TaskSuite, **options: Any) -> dict[str, Any]:
    return protocol.evaluate(loaded(), suite, EvaluationConfig(**{**QUICK, "baselines": (), **options}))


def found(report: dict[str, Any], part: str, **wanted: Any) -> dict[str, Any]:
    (only,) = [row for row in report[part] if all(row[key] == value for key, value in wanted.items())]
    return only


# --- the figures, with methods that look at nothing -------------------------------------------------------------------------


@needs_tiny
def test_every_method_sees_the_same_episodes(stubs, suite):
    evaluated(suite, episodes=8, slow_episodes=3)
    ours, quick, slow = stubs
    expected = [
        episode for shots in (1, 2) for episode in EpisodeSampler(suite.test, EpisodeSpec(2, shots, 2), seed=0)[:8]
    ]  # of the seed, and nothing else
    assert ours.fitted == quick.fitted == expected
    assert slow.fitted == expected[:3] + expected[8:11]
    assert {episode.task for episode in expected} == {task.name for task in suite.test}


@needs_tiny
def test_differences_are_paired_on_the_episodes_that_both_saw(stubs, suite):
    report = evaluated(suite, shots=(1,), episodes=20, slow_episodes=5)
    accuracies = {
        method.name: [
            float((guess == np.array(episode.query.labels)).mean())
            for guess, episode in zip(method.predicted, method.fitted, strict=True)
        ]
        for method in stubs
    }
    assert accuracies["ours"][9:] == [1.0] * 11
    for baseline, count in (("quick", 20), ("slow", 5)):
        differences = np.array(accuracies["ours"][:count]) - np.array(accuracies[baseline])
        pair = found(report, "paired", baseline=baseline)
        low, high = stats.t.interval(0.95, count - 1, differences.mean(), stats.sem(differences))
        assert pair["method"] == "ours"
        assert pair["episodes"] == count
        assert pair["difference"] == pytest.approx(differences.mean())
        assert pair["ci95"] == pytest.approx((high - low) / 2)
    for name, values in accuracies.items():
        row = found(report, "rows", method=name)
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (row["accuracy"], row["episodes"]) == (pytest.approx(np.mean(values)), len(values))
        assert row["ci95"] == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("values", [[0.2, 0.4], [1.0, 1.0, 1.0], list(np.random.default_rng(0).random(600))])
def test_the_interval_is_scipys(values):
    made = mean(values)
    if np.std(values):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert made.ci95 == pytest.approx((high - low) / 2)
    else:
        assert made.ci95 == 0
    assert (made.value, made.count) == (pytest.approx(np.mean(values)), len(values))


def test_one_episode_has_no_interval():
    assert math.isnan(mean([0.5]).ci95)
    assert mean([0.5]).percent() == "50.0"


@needs_tiny
def test_figures_are_scikit_learns_on_the_pooled_predictions(stubs, suite):
    report = evaluated(suite, ways=3, shots=(2,), episodes=30, queries=3)
    ours = stubs[0]
    truths: dict[str, list[str]] = {}
    guesses: dict[str, list[str]] = {}
    for episode, guess in zip(ours.fitted, ours.predicted, strict=True):
        truths.setdefault(episode.task, []).extend(episode.labels[i] for i in episode.query.labels)
        guesses.setdefault(episode.task, []).extend(episode.labels[i] for i in guess)
    figures = []
    for task, truth in truths.items():
        names = sorted(set(truth) | set(guesses[task]))
        scores = precision_recall_fscore_support(truth, guesses[task], labels=names, zero_division=0)
        for name, *expected in zip(names, *scores, strict=True):
            row = found(report, "labels", task=task, label=name)
            assert [row["precision"], row["recall"], row["f1"], row["queries"]] == pytest.approx(expected)
            figures.append(expected[:3])
        table = found(report, "confusion", task=task)
        assert table["labels"] == names
        assert table["matrix"] == confusion_matrix(truth, guesses[task], labels=names).tolist()
    macro = found(report, "rows", method="ours")
    assert [macro["macro_precision"], macro["macro_recall"], macro["macro_f1"]] == pytest.approx(np.mean(figures, 0))
    assert sum(np.sum(table["matrix"]) for table in report["confusion"]) == 30 * 3 * 3
    assert sum(row["queries"] for row in report["labels"]) == 30 * 3 * 3
    by_task = [row for row in report["tasks"] if row["method"] == "ours"]
    assert sum(row["episodes"] for row in by_task) == 30
    total = sum(row["accuracy"] * row["episodes"] for row in by_task) / 30
    assert total == pytest.approx(macro["accuracy"])


def test_a_label_that_is_never_predicted_or_never_right_has_zeros():
    confusions = Confusions()
    confusions.add("t", ("a", "b", "c"), as_labels([0, 1, 2]), as_labels([0, 0, 1]))
    assert [(row["label"], row["precision"], row["recall"], row["f1"]) for row in confusions.labels()] == [
        ("a", 0.5, 1.0, pytest.approx(2 / 3)),
        ("b", 0.0, 0.0, 0.0),
        ("c", 0.0, 0.0, 0.0),
    ]
    assert confusions.matrix("t")["matrix"] == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert set(confusions.macro()) == {"macro_precision", "macro_recall", "macro_f1"}


@needs_tiny
def test_slow_methods_are_left_out_on_request(stubs, suite):
    report = evaluated(suite, slow_episodes=0)
    assert {row["method"] for row in report["rows"]} == {"ours", "quick"}
    assert {pair["baseline"] for pair in report["paired"]} == {"quick"}


@needs_tiny
def test_one_slow_episode_has_a_figure_and_no_interval(stubs, suite, tmp_path):
    report = evaluated(suite, slow_episodes=1)
    assert found(report, "rows", method="slow", shots=1)["ci95"] is None
    assert found(report, "paired", baseline="slow", shots=1)["ci95"] is None
    json.dumps(report, allow_nan=False)
    assert write_report(report, tmp_path).is_file()


# --- the real thing ---------------------------------------------------------------------------------------------------------


@needs_tiny
def test_the_same_seed_gives_the_same_report(no_map):
    def measured(seed: int) -> dict[str, Any]:
        report = evaluated(small_suite(), baselines=FAST, seed=seed, shots=(1,))
        return {key: value for key, value in report.items() if key not in ("created", "map")} | {
            "rows": [{**row, "adapt_seconds_median": 0} for row in report["rows"]]
        }

    first = measured(3)
    assert measured(3) == first
    assert measured(4)["rows"] != first["rows"]


@needs_tiny
@pytest.mark.parametrize("algorithm", ["protonet", "anil", "maml", "reptile"])
def test_a_run_of_any_algorithm_is_measured_on_any_part(algorithm):
    suite = small_suite()
    for part in ("validation", "test") if algorithm == "protonet" else ("test",):
        report = api.evaluate(loaded(algorithm), suite, split=part, **{**QUICK, "baselines": ["prototype"], "episodes": 3})
        assert report["protocol"]["split"] == part
        assert {row["method"] for row in report["rows"]} == {f"{algorithm} (meta-trained)", "frozen prototype"}
        assert {row["task"] for row in report["labels"]} == {"law"}
        assert {row["label"] for row in report["labels"]} == set(suite[part][0].labels)
        assert all(row["adapt_seconds_median"] > 0 for row in report["rows"])
        assert [row["step"] for row in report["training"]["history"]] == [1, 2]


@needs_tiny
def test_many_tasks_and_one(no_map):
    tasks = load_tasks("bundled:en")
    many = TaskSuite("many", (tasks[0],), (), tuple(tasks[1:7]))
    report = evaluated(many, shots=(1,), episodes=40)
    assert {row["task"] for row in report["tasks"]} == {task.name for task in many.test}
    assert report["protocol"]["tasks"] == 6
    assert len(report["confusion"]) == len(report["map"]) == 4  # a page shows no more
    one = evaluated(replace(many, test=(tasks[1],)), shots=(1,))
    assert [row["task"] for row in one["tasks"]] == [tasks[1].name]
    assert one["rows"][0]["accuracy"] == one["tasks"][0]["accuracy"]


# --- baselines --------------------------------------------------------------------------------------------------------------


def separable(seed: int, ways: int = 4, shots: int = 3, queries: int = 5, texts: dict[str, list[str]] | None = None) -> Episode:
    """An episode of texts that one look tells apart."""
    rng = np.random.default_rng(seed)
    topics = texts or {
        "animals": ["the dog and the cat", "a horse in the stable", "birds and fish", "the cow and the sheep", "a wild animal"],
        "music": ["the band plays a song", "a piano concert", "guitar and drums", "the singer sings", "a new album of music"],
        "money": ["the bank and the loan", "pay the bill in cash", "a credit card", "taxes and income", "the price of money"],
        "sports": ["the team won the game", "a football match", "the player scored", "a tennis champion", "the olympic race"],
    }
    names = list(topics)[:ways]
    support, query = [], []
    for label, name in enumerate(names):
        order = rng.permutation(len(topics[name]))
        support += [(topics[name][i], label) for i in order[:shots]]
        query += [(f"{topics[name][i]}, {topics[name][j]}", label) for i in order[:shots] for j in order[shots:]][:queries]
    return Episode("topics", "", tuple(names), *(Examples(*map(tuple, zip(*side, strict=True))) for side in (support, query)))


def accuracy(method: Method, episodes: list[Episode]) -> float:
    scores = []
    encoded: Any = [None] * len(episodes) if method.encoder is None else encode_once(method.encoder, episodes)
    for episode, both in zip(episodes, encoded, strict=True):
        if both is None:
            support, query = (measuring._batch(method, episode, side) for side in (episode.support, episode.query))
        else:
            support, query = both.support, both.query
        predicted = method.fit(episode, support)(episode, query)
        assert predicted.dtype == np.int64
        assert predicted.shape == (len(episode.query),)
        scores.append((predicted == np.array(episode.query.labels)).mean())
    return float(np.mean(scores))


@needs_tiny
@pytest.mark.parametrize("name", [*FAST, "full"])
def test_every_baseline_beats_chance_on_what_is_easy(name):
    torch.manual_seed(0)
    (method,) = new_baselines([name], tiny_learner())
    assert method.slow == (name == "full")
    reached = accuracy(method, [separable(seed) for seed in range(2 if method.slow else 6)])
    assert reached > 0.6  # one in four by chance


def test_tf_idf_reads_chinese():
    assert accuracy(TfIdf(), [separable(seed, 3, 2, 4, CHINESE) for seed in range(5)]) > 0.6


@pytest.mark.parametrize(
    "texts",
    [
        {"a": ["!", "?!", "!!"], "b": ["5", "55", "555"]},
        {"a": ["x y", "y x", "x"], "b": ["k", "l k", "l"]},
        {"a": ["退", "退款", "款"], "b": ["货", "发货", "发"]},
        {"a": ["👍", "👍👍", "👍!"], "b": ["👎", "👎👎", "👎!"]},
    ],
)
def test_tf_idf_takes_texts_without_words(texts):
    assert accuracy(TfIdf(), [separable(1, 2, 2, 2, texts)]) >= 0


def test_one_shot_two_way_is_enough_for_tf_idf():
    assert accuracy(TfIdf(), [separable(1, 2, 1, 2)]) >= 0


@needs_tiny
def test_a_baseline_leaves_the_pretrained_weights_alone():
    learner = tiny_learner()
    before = {name: value.detach().clone() for name, value in learner.params.items()}
    for method in new_baselines(["head", "full"], learner):
        accuracy(method, [separable(0)])
    assert all(torch.equal(value, before[name]) for name, value in learner.params.items())


def test_an_unknown_baseline():
    said = refusal(lambda: new_baselines(["prototype", "logistics"], None), ConfigError)
    assert said.startswith("No baseline 'logistics'. Did you mean 'logistic'?")
    assert all(name in said for name in BASELINES)


def test_setfit_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "setfit", None)
    said = refusal(lambda: new_baselines(["setfit"], None), MissingExtraError)
    assert said == (
        "The package 'setfit', needed for the baseline 'setfit', is not installed. Install it with: pip install 'kshot[setfit]'"
    )


@pytest.mark.slow
@needs_tiny
@pytest.mark.skipif(importlib.util.find_spec("setfit") is None, reason="setfit is not installed: pip install 'kshot[setfit]'")
def test_setfit_beats_chance():
    (method,) = new_baselines(["setfit"], tiny_learner())
    assert accuracy(method, [separable(0)]) > 0.4


# --- what is refused, and what a reader is warned of ------------------------------------------------------------------------


@needs_tiny
@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"split": "tset"}, ConfigError, "Did you mean 'test'?"),
        ({"ways": 3}, DataError, "largest of 1 task(s) has 2 labels"),
        ({"ways": 1}, ConfigError, "ways is 1"),
        ({"shots": (1, 50)}, DataError, "50 shots and 2 queries need 52"),
        ({"shots": ()}, ConfigError, "evaluation.shots is empty"),
        ({"shots": 5}, ConfigError, "evaluation.shots is 5. Expected a list of a whole number."),
        ({"shot": (1,)}, ConfigError, "Did you mean 'shots'?"),
        ({"baselines": "tfidf"}, ConfigError, "evaluation.baselines is 'tfidf'"),
        ({"baselines": ("tfidff",)}, ConfigError, "Did you mean 'tfidf'?"),
        ({"seed": -1}, ConfigError, "seed"),
    ],
)
def test_a_protocol_that_cannot_be_followed(options, kind, said):
    assert said in refusal(lambda: api.evaluate(loaded(), small_suite(), **{**QUICK, **options}), kind)


@needs_tiny
def test_a_part_without_tasks():
    suite = replace(small_suite(), test=())
    assert "0 task(s)" in refusal(lambda: evaluated(suite), DataError)


@needs_tiny
def test_labels_that_were_trained_on_are_told(no_map):
    suite = small_suite()
    assert evaluated(suite, episodes=2)["warnings"] == []
    (warning,) = evaluated(suite, split="train", episodes=2)["warnings"]
    seen = len(suite.train[0].labels)
    assert warning.startswith(f"{seen} of the evaluated labels were meta-trained on (law: ")


@needs_tiny
def test_texts_that_stand_in_both_parts_are_told(tmp_path, no_map):
    given = rows(LABELS, 4)
    given[-1]["text"] = f"  {given[0]['text'].upper()} "
    path = write_jsonl(tmp_path / "data.jsonl", given)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": LABELS[:6], "valid": LABELS[6:8], "test": LABELS[8:]}))
    suite = api.load_suite(str(path), str(split))
    (warning,) = evaluated(suite, episodes=2)["warnings"]
    assert warning.startswith("1 text(s) of meta-test also stand in meta-train")
    assert evaluated(suite, split="validation", episodes=2)["warnings"] == []


@needs_tiny
def test_an_absent_backbone_is_a_warning_and_not_the_end(tmp_path):
    run = replace(loaded(), pretrained=str(tmp_path / "gone"))
    report = protocol.evaluate(run, small_suite(), EvaluationConfig(**QUICK))
    assert {row["method"] for row in report["rows"]} == {"protonet (meta-trained)"}
    assert report["paired"] == report["map"] == []
    (warning,) = report["warnings"]
    assert warning.startswith("No baselines: No backbone ")
    assert write_report(report, tmp_path / "report").is_file()


# --- the map ----------------------------------------------------------------------------------------------------------------


@needs_tiny
def test_the_map_places_some_texts_of_a_task():
    (whole,) = load_tasks("bundled:en/law")
    task, learner = whole.with_labels(set(whole.labels[:3])), tiny_learner()
    made = embedding_map(task, learner, loaded().learner)
    assert made == embedding_map(task, learner, loaded().learner)
    assert made["labels"] == list(task.labels)
    assert {point["label"] for point in made["points"]} == set(range(len(task.labels)))
    places = np.array([[*point["before"], *point["after"]] for point in made["points"]])
    assert np.isfinite(places).all()
    assert np.abs(places).max() <= 2


@needs_tiny
@pytest.mark.parametrize("texts", [["one", "two"], ["same", "same"], ["same", "same", "same", "other"]])
def test_the_map_of_very_few_texts_is_finite(texts, tmp_path):
    given = [{"text": text, "label": "ab"[index % 2]} for index, text in enumerate(texts)]
    (task,) = load_tasks(write_jsonl(Path(tmp_path) / "few.jsonl", given))
    made = embedding_map(task, tiny_learner(), tiny_learner())
    assert len(made["points"]) == len(texts)
    assert np.isfinite([point["before"] for point in made["points"]]).all()


# --- queries seen together --------------------------------------------------------------------------------------------------


def test_soft_k_means_moves_class_means_by_the_queries(one_thread):  # noqa: F811
    algorithm, learner = ProtoNet(learn_scale=False, scale=1.0), tiny_learner()
    generator = torch.Generator().manual_seed(1)
    z, q = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (6, 10))
    support, query = Batch(torch.tensor([0, 1, 2] * 2), 3, features=z), Batch(torch.zeros(10, dtype=torch.long), 3, features=q)

    found = transductive_logits(algorithm, learner, support, query)

    means = torch.stack([z[c::3].sum(0) for c in range(3)])
    p = (10 * q @ (means / means.norm(dim=-1, keepdim=True)).T).softmax(-1)
    for _ in range(10):
        moved = torch.stack([means[c] + sum(p[j, c] * q[j] for j in range(10)) for c in range(3)])
        cosines = q @ (moved / moved.norm(dim=-1, keepdim=True)).T
        p = (10 * cosines).softmax(-1)
    torch.testing.assert_close(found, cosines)


@needs_tiny
def test_what_sees_the_queries_together_is_a_row_that_none_is_compared_with(tmp_path):
    report = api.evaluate(loaded(), small_suite(), **{**QUICK, "baselines": ("prototype",)}, transductive=True)

    rows = {row["method"] for row in report["rows"]}
    assert rows == {"protonet (meta-trained)", "protonet (meta-trained), transductive", "frozen prototype"}
    assert {pair["baseline"] for pair in report["paired"]} == {"frozen prototype"}
    assert "transductive" in write_report(report, tmp_path / "report").read_text(encoding="utf-8")


@needs_tiny
def test_only_prototypes_can_see_the_queries_together():
    assert refusal(lambda: api.evaluate(loaded("maml"), small_suite(), **QUICK, transductive=True), ConfigError) == (
        "evaluation.transductive is asked of a run of maml. "
        "It needs protonet with the metric cosine and without finetune_steps."
    )
