"""Adapted tasks and scikit-learn's estimator: what they say, what they keep, and what they refuse."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import sklearn.utils.estimator_checks as checks
from conftest import refusal
from runs import CHINESE, LABELS, loaded, rows, trained
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from tiny import needs_tiny, one_thread  # noqa: F401

from kshot.deploy import AdaptedTask, FewShotClassifier, Prediction, adapt, load_adapted
from kshot.errors import DataError, RunError
from kshot.training import load_run

pytestmark = needs_tiny
ALGORITHMS = ["protonet", "anil", "maml", "reptile"]
QUERIES = ["no news of my refund", "the invoice is wrong", "我要退款", ""]


def examples(labels=LABELS[:3], each: int = 3) -> tuple[list[str], list[str]]:
    given = rows(labels, each)
    return [row["text"] for row in given], [row["label"] for row in given]


def adapted(algorithm: str = "protonet", labels=LABELS[:3], each: int = 3) -> AdaptedTask:
    return adapt(loaded(algorithm), *examples(labels, each))


def assert_same(one: list[Prediction], two: list[Prediction]) -> None:
    """Loaded weights may lie otherwise in memory, which changes the last bit of a sum."""
    for a, b in zip(one, two, strict=True):
        assert a.label == b.label
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
        assert [(reason.text, reason.label) for reason in a.reasons] == [(reason.text, reason.label) for reason in b.reasons]
        assert [reason.similarity for reason in a.reasons] == pytest.approx([r.similarity for r in b.reasons], abs=1e-6)


def by_label(task: AdaptedTask, texts=QUERIES) -> list[dict[str, float]]:
    return [prediction.probabilities for prediction in task.predict(texts)]


# --- what a prediction says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_prediction_is_whole(algorithm):
    task = adapted(algorithm)
    for prediction in task.predict(QUERIES, nearest=4):
        assert set(prediction.probabilities) == set(LABELS[:3])
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probability == prediction.probabilities[prediction.label]
        similarities = [reason.similarity for reason in prediction.reasons]
        assert len(similarities) == 4
        assert similarities == sorted(similarities, reverse=True)
        assert all(-1.001 <= value <= 1.001 for value in similarities)
        plain = prediction.to_json()
        assert json.loads(json.dumps(plain)) == plain
        assert list(plain) == ["label", "probability", "probabilities", "in_scope", "nearest"]
    assert task.predict(["x"])[0].reasons == ()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_support_text_finds_itself(algorithm):
    texts, labels = examples()
    for prediction, text, label in zip(adapted(algorithm).predict(texts, nearest=1), texts, labels, strict=True):
        (reason,) = prediction.reasons
        assert (reason.text, reason.label) == (text, label)
        assert reason.similarity == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_support_texts_that_are_unlike_are_told_apart(algorithm):
    texts, labels = examples()
    right = [prediction.label == label for prediction, label in zip(adapted(algorithm).predict(texts), labels, strict=True)]
    assert np.mean(right) > 0.6  # one in three by chance


def test_more_reasons_than_examples_are_all_examples():
    (prediction,) = adapted(each=1).predict(["x"], nearest=50)
    assert len(prediction.reasons) == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_text_has_no_prediction(algorithm):
    task = adapted(algorithm)
    assert task.predict([], nearest=3) == []
    assert task.probabilities([]).shape == (0, 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batches_and_neighbours_change_nothing(algorithm):
    task = adapted(algorithm)
    whole = task.probabilities(QUERIES)
    assert np.allclose(task.probabilities(QUERIES, batch_size=1), whole, atol=1e-5)
    assert np.allclose([list(p.probabilities.values()) for p in task.predict(QUERIES, batch_size=3)], whole, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_order_of_examples_and_labels_does_not_matter(algorithm):
    texts, labels = examples()
    shuffled = list(zip(texts, labels, strict=True))
    random.Random(1).shuffle(shuffled)
    other = adapt(loaded(algorithm), *zip(*shuffled, strict=True))
    assert other.labels != adapted(algorithm).labels
    for one, two in zip(by_label(adapted(algorithm)), by_label(other), strict=True):
        assert one == pytest.approx(two, abs=1e-4)


# --- which tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unequal_shots(algorithm):
    few, many = examples(LABELS[:1], 1), examples(LABELS[1:3], 6)
    task = adapt(loaded(algorithm), few[0] + many[0], few[1] + many[1])
    assert len(task.support) == 13
    assert np.allclose(task.probabilities(QUERIES).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("count", [2, 20])
def test_two_and_twenty_labels(algorithm, count):
    names = [f"{label} {kind}" for label in LABELS for kind in ("old", "new")][:count]
    task = adapt(loaded(algorithm), *examples(names, 1))
    assert task.labels == tuple(names)
    assert task.probabilities(QUERIES).shape == (len(QUERIES), count)
    assert np.allclose(task.probabilities(QUERIES).sum(1), 1, atol=1e-5)


def test_chinese(tmp_path):
    texts = [text for given in CHINESE.values() for text in given]
    labels = [label for label, given in CHINESE.items() for _ in given]
    task = adapt(loaded(), texts, labels)
    assert task.labels == tuple(CHINESE)
    again = load_adapted(task.save(tmp_path / "任务"), loaded())
    assert_same(again.predict(texts, nearest=2), task.predict(texts, nearest=2))
    assert "退款" in (tmp_path / "任务" / "task.json").read_text(encoding="utf-8")  # readable, not escaped


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        ([], [], "The examples have 0 label(s)."),
        (["a", "b"], ["x", "x"], "The examples have 1 label(s): 'x'."),
        (["a", "b"], ["x"], "2 texts and 1 labels"),
    ],
)
def test_examples_that_make_no_task(texts, labels, said):
    assert said in refusal(lambda: adapt(loaded(), texts, labels), DataError)


def test_adapting_changes_nothing_of_the_run():
    before = {name: value.detach().clone() for name, value in loaded("maml").learner.params.items()}
    adapted("maml").predict(QUERIES)
    assert all(bool((value == before[name]).all()) for name, value in loaded("maml").learner.params.items())


# --- the folder -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saved_and_loaded_predicts_the_same(algorithm, tmp_path):
    task = adapted(algorithm)
    assert task.save(tmp_path / "deep" / "task") == tmp_path / "deep" / "task"
    again = load_adapted(tmp_path / "deep" / "task")  # and loads the run, too
    assert again.labels == task.labels
    assert again.support == task.support
    assert_same(again.predict(QUERIES, nearest=3), task.predict(QUERIES, nearest=3))


def test_a_task_and_its_run_move_together(tmp_path):
    home = tmp_path / "one" / "place"
    run = load_run(shutil.copytree(trained(), home / "runs" / "mine"))
    task = adapt(run, *examples())
    task.save(home / "tasks" / "new")
    expected = task.predict(QUERIES, nearest=1)
    (tmp_path / "another").mkdir()
    home.rename(tmp_path / "another" / "house")
    moved = tmp_path / "another" / "house"
    assert_same(load_adapted(moved / "tasks" / "new").predict(QUERIES, nearest=1), expected)

    (moved / "runs").rename(moved / "weights")
    assert "--run FOLDER" in refusal(lambda: load_adapted(moved / "tasks" / "new"), RunError)
    given = load_adapted(moved / "tasks" / "new", load_run(moved / "weights" / "mine"))
    assert_same(given.predict(QUERIES, nearest=1), expected)


def test_the_card_tells_nothing_of_this_machine(tmp_path):
    run = load_run(shutil.copytree(trained(), tmp_path / "runs" / "mine"))
    card = adapt(run, *examples()).save(tmp_path / "task") / "task.json"
    assert json.loads(card.read_text())["run"]["path"] == os.path.join("..", "runs", "mine")
    for private in (str(tmp_path), str(Path.home()), tmp_path.name):
        assert private not in card.read_text()


def test_a_relative_folder_and_a_link_are_found_again(tmp_path, monkeypatch):
    shutil.copytree(trained(), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    adapt(load_run("run"), *examples()).save("task")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "task")
    assert load_adapted(tmp_path / "elsewhere" / "link").labels == LABELS[:3]


def test_a_folder_in_the_way_is_replaced_only_when_asked_and_only_when_a_task(tmp_path):
    task = adapted()
    task.save(tmp_path / "task")
    assert "exists" in refusal(lambda: task.save(tmp_path / "task"), RunError)
    adapted(labels=LABELS[5:8]).save(tmp_path / "task", overwrite=True)
    assert load_adapted(tmp_path / "task", loaded()).labels == LABELS[5:8]
    (tmp_path / "empty").mkdir()
    task.save(tmp_path / "empty", overwrite=True)
    (tmp_path / "file").write_text("mine")
    assert "leaves it alone" in refusal(lambda: task.save(tmp_path / "file", overwrite=True), RunError)
    assert (tmp_path / "file").read_text() == "mine"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


# --- the estimator: scikit-learn's own checks -------------------------------------------------------------------------------
# check_estimator passes over every estimator of texts, so the checks that feed no numbers are called one by one. Left out of
# those that do is check_methods_subset_invariance: it wants seven digits, and single precision has them only within a batch.

GENERAL = [
    checks.check_estimator_cloneable,
    checks.check_estimator_tags_renamed,
    checks.check_valid_tag_types,
    checks.check_estimator_repr,
    checks.check_no_attributes_set_in_init,
    checks.check_do_not_raise_errors_in_init_or_set_params,
    checks.check_mixin_order,
    checks.check_parameters_default_constructible,
    checks.check_get_params_invariance,
    checks.check_set_params,
    checks.check_estimators_partial_fit_n_features,
]


class OfTexts(FewShotClassifier):
    """Takes the numbers that scikit-learn's checks feed as words, so that more of its checks can be asked."""

    def __init__(self, run: Any = None, device: str = "cpu") -> None:
        super().__init__(run, device)

    def fit(self, X: Any, y: Any) -> OfTexts:
        super().fit(words(X), y)
        return self

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(words(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, True
        return tags


def words(X: Any) -> list[str]:
    return [" ".join(f"{value:.1f}" for value in np.ravel(row)) for row in np.asarray(X)]


ON_WORDS = [
    checks.check_fit_score_takes_y,
    checks.check_dont_overwrite_parameters,
    checks.check_estimators_overwrite_params,
    checks.check_estimators_fit_returns_self,
    checks.check_estimators_unfitted,
    checks.check_estimators_pickle,
    checks.check_dict_unchanged,
    checks.check_fit_idempotent,
    checks.check_fit_check_is_fitted,
    checks.check_methods_sample_order_invariance,
    checks.check_readonly_memmap_input,
    checks.check_classifiers_classes,
    checks.check_classifiers_regression_target,
    checks.check_decision_proba_consistency,
    checks.check_pipeline_consistency,
]


@pytest.mark.parametrize("check", GENERAL, ids=lambda check: check.__name__)
def test_checks_of_scikit_learn(check):
    if check is checks.check_parameters_default_constructible:
        check("FewShotClassifier", FewShotClassifier())
    else:
        check("FewShotClassifier", FewShotClassifier(trained()))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("check", ON_WORDS, ids=lambda check: check.__name__)
def test_checks_of_scikit_learn_on_numbers_as_words(check):
    check("OfTexts", OfTexts(str(trained())))


# --- the estimator: on texts ------------------------------------------------------------------------------------------------


def fitted(y: Any = None, **more: Any) -> FewShotClassifier:
    texts, labels = examples(**more)
    return FewShotClassifier(loaded()).fit(texts, labels if y is None else y)


def test_it_is_a_classifier_of_texts():
    classifier = FewShotClassifier()
    tags = classifier.__sklearn_tags__()
    assert is_classifier(classifier)
    assert (tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array) == (True, True, False)
    assert tags.target_tags.required
    assert list(inspect.signature(FewShotClassifier).parameters) == ["run", "device"]
    assert repr(FewShotClassifier("runs/mine")) == "FewShotClassifier(run='runs/mine')"


def test_params_and_clone():
    classifier = FewShotClassifier("runs/mine")
    assert classifier.set_params(device="cuda") is classifier
    assert clone(classifier).get_params() == {"run": "runs/mine", "device": "cuda"}
    assert not hasattr(clone(fitted()), "task_")
    again = clone(fitted()).fit(*examples())  # the loaded run is copied
    assert np.allclose(again.predict_proba(QUERIES), fitted().predict_proba(QUERIES))


def test_fit_returns_itself_and_can_be_repeated():
    classifier = FewShotClassifier(trained())
    assert classifier.fit(*examples()) is classifier
    assert classifier.run == trained()
    first = classifier.predict_proba(QUERIES)
    assert np.array_equal(classifier.fit(*examples()).predict_proba(QUERIES), first)
    classifier.fit(*examples(LABELS[3:5]))
    assert classifier.predict_proba(QUERIES).shape == (4, 2)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["b", "c", "a"], "U"),
        ([3, -1, 10], "i"),
        ([True, False], "b"),
        ([np.float32(1), np.float32(0)], "f"),
        (np.array(["退款", "x"], object), "O"),
    ],
)
def test_labels_keep_their_kind_and_are_sorted(names, kind):
    texts, labels = examples(LABELS[: len(names)])
    y = [names[LABELS.index(label)] for label in labels]
    given = np.array(y, object) if kind == "O" else np.array(y)
    classifier = FewShotClassifier(loaded()).fit(texts, given)
    assert classifier.classes_.dtype == given.dtype
    assert classifier.classes_.tolist() == sorted(set(given.tolist()))
    predicted = classifier.predict(texts)
    assert predicted.dtype == given.dtype
    assert np.array_equal(predicted, classifier.classes_[classifier.predict_proba(texts).argmax(1)])
    assert (predicted == given).mean() > 0.8
    assert classifier.score(texts, given) == (predicted == given).mean()


def test_more_than_ten_integer_labels_keep_their_columns():
    """They are sorted as numbers, and not as the words that they stand for within."""
    names = [f"{label} {kind}" for label in LABELS for kind in ("old", "new")]
    texts, labels = examples(names, 2)
    classifier = FewShotClassifier(loaded()).fit(texts, [names.index(label) for label in labels])
    assert classifier.classes_.tolist() == list(range(20))
    by_name = FewShotClassifier(loaded()).fit(texts, labels)
    order = [by_name.classes_.tolist().index(name) for name in names]
    assert np.allclose(classifier.predict_proba(QUERIES), by_name.predict_proba(QUERIES)[:, order], atol=1e-5)


def test_probabilities_sum_to_one_in_double_precision():
    probabilities = fitted().predict_proba(QUERIES)
    assert probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(1), 1, atol=1e-12)
    assert fitted().predict_proba([]).shape == (0, 3)
    assert fitted().predict([]).shape == (0,)


@pytest.mark.parametrize("container", [list, tuple, np.array, lambda x: np.array(x, object), pd.Series, pd.Index])
def test_containers(container):
    texts, labels = examples()
    classifier = FewShotClassifier(loaded()).fit(container(texts), container(labels))
    assert np.array_equal(classifier.predict_proba(container(QUERIES)), fitted().predict_proba(QUERIES))


def test_the_index_of_a_series_does_not_matter():
    texts, labels = examples()
    classifier = FewShotClassifier(loaded()).fit(pd.Series(texts, index=range(100, 109)), pd.Series(labels))
    assert np.array_equal(classifier.predict_proba(QUERIES), fitted().predict_proba(QUERIES))


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (["a", "b"], ["x", "x"]),
        (["a", "b"], ["x"]),
        (["a"], ["x", "y"]),
        ([], []),
        ("ab", ["x", "y"]),
        (["a", 1], ["x", "y"]),
        (["a", None], ["x", "y"]),
        (["a", float("nan")], ["x", "y"]),
        ([["a"], ["b"]], ["x", "y"]),
        (np.array([[1.0, 2], [3, 4]]), ["x", "y"]),
        (b"ab", ["x", "y"]),
        ([b"a", b"b"], ["x", "y"]),
        (["a", "b"], [["x"], ["y"]]),
        (["a", "b"], [0.1, 0.7]),
        (["a", "b"], [0.0, float("nan")]),
        (["a", "b"], ["x", None]),
        (["a", "b"], None),
        (pd.DataFrame({"text": ["a", "b"]}), ["x", "y"]),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error(X, y):
    classifier = FewShotClassifier(loaded())
    with pytest.raises(ValueError, match=r".{15}"):
        classifier.fit(X, y)
    assert not hasattr(classifier, "classes_")  # nothing half fitted


def test_a_refused_fit_leaves_the_earlier_one():
    classifier = fitted()
    with pytest.raises(ValueError, match="1 label"):
        classifier.fit(["a", "b"], ["x", "x"])
    assert classifier.classes_.tolist() == sorted(LABELS[:3])
    assert classifier.predict_proba(QUERIES).shape == (4, 3)


def test_predicting_too_early_and_of_what_is_no_text():
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            getattr(FewShotClassifier(trained()), method)(QUERIES)
        with pytest.raises(ValueError, match="Expected strings"):
            getattr(fitted(), method)([1, 2])


def test_no_run_and_a_wrong_one(tmp_path):
    assert "FewShotClassifier(run='runs/name')" in refusal(lambda: FewShotClassifier().fit(*examples()))
    assert "No run" in refusal(lambda: FewShotClassifier(tmp_path / "no").fit(*examples()), RunError)


@pytest.mark.parametrize("algorithm", ["protonet", "maml"])
@pytest.mark.parametrize("pickled", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_a_fitted_estimator_is_pickled(pickled, algorithm):
    classifier = FewShotClassifier(loaded(algorithm)).fit(*examples())
    again = pickle.loads(pickled.dumps(classifier))
    assert np.array_equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))


def test_within_a_pipeline():
    texts, labels = examples()
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, FewShotClassifier(loaded())).fit([text.upper() for text in texts], labels)
    assert np.allclose(pipeline.predict_proba(QUERIES), fitted().predict_proba([text.lower() for text in QUERIES]), atol=1e-5)


def test_cross_validation_and_search_over_runs():
    texts, labels = examples(each=6)
    scores = cross_val_score(FewShotClassifier(loaded()), texts, labels, cv=StratifiedKFold(2), error_score="raise")
    assert scores.shape == (2,)
    assert scores.mean() > 0.5
    folds = StratifiedKFold(2)
    grid = {"run": [str(trained()), trained("reptile")]}
    search = GridSearchCV(FewShotClassifier(), grid, cv=folds, error_score="raise").fit(texts, labels)
    assert search.best_params_["run"] in grid["run"]
    assert search.predict(texts).shape == (18,)
