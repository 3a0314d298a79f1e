"""The head at adaptation: prototypes, or a regression that may go by words, as meta-validation and the support set say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import SMALL, loaded, rows, small_suite
from sklearn.linear_model import LogisticRegression, Ridge
from tiny import random_batch, random_learner, same_bits, tiny_learner
from torch.nn.functional import cross_entropy

from kshot import api
from kshot.deploy import adapt, load_adapted
from kshot.errors import ConfigError, RunError
from kshot.meta import ProtoNet
from kshot.meta.lexical import term_vectors, vocabulary
from kshot.meta.regression import _RIDGES, UNTOUCHED, class_scores, left_out_errors, regression
from kshot.models import Batch, EncodedEpisode
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import load_tasks
from kshot.tasks.schema import CLASSIFICATION
from kshot.training import head as heads
from kshot.training import load_run
from kshot.training.head import choose_head

REGRESSION = ProtoNet(head="regression", regression_shots=2)
GENERATOR = torch.Generator().manual_seed(0)
VERBS = ("analyze", "create", "evaluate", "recall")
TOPICS = ("budgets", "proteins", "poems", "bridges", "treaties", "networks", "soils", "orbits", "markets", "glaciers")


def vectors(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=GENERATOR, dtype=torch.float64), dim=-1)


def batch(z: torch.Tensor, labels: list[int], texts: tuple[str, ...] = ()) -> Batch:
    return Batch(torch.tensor(labels), max(labels) + 1, features=z, texts=texts)


@pytest.mark.parametrize("ways", [2, 3])
def test_it_is_logistic_regression_of_the_vectors(ways):
    z, queries, weights = vectors(12), vectors(7), torch.rand(12, generator=GENERATOR, dtype=torch.float64) + 0.5
    support = batch(z, [i % ways for i in range(12)])

    found = class_scores(queries, batch(queries, [0] * 7), regression(z, support, weights)).softmax(-1)

    errors = [wrong for wrong, _ in left_out_errors((z @ z.T).numpy(), support.labels.numpy(), 12, _RIDGES)]
    most = min(errors) + (min(errors) * (1 - min(errors) / 12)) ** 0.5  # within one standard error of the fewest
    ridge = max(ridge for ridge, wrong in zip(_RIDGES, errors, strict=True) if wrong <= most)
    expected = LogisticRegression(C=3 / ridge, max_iter=1000).fit(z.numpy(), support.labels.numpy(), weights.numpy())
    np.testing.assert_allclose(found.numpy(), expected.predict_proba(queries.numpy()), atol=1e-6)


def test_one_example_a_class_cannot_be_left_out_and_gets_the_usual_penalty():
    z, queries = vectors(3), vectors(7)

    found = class_scores(queries, batch(queries, [0] * 7), regression(z, batch(z, [0, 1, 2]), torch.ones(3).double()))

    expected = LogisticRegression(C=10.0, max_iter=1000).fit(z.numpy(), [0, 1, 2])
    np.testing.assert_allclose(found.softmax(-1).numpy(), expected.predict_proba(queries.numpy()), atol=1e-6)


@pytest.mark.parametrize("texts", [9, 6])
def test_the_closed_form_equals_leaving_each_text_out(texts):
    """Those behind the texts are names of labels, which stay."""
    z, labels, ridges = vectors(9).numpy(), np.array([0, 1, 2] * 3), (0.1, 0.3, 1.0)
    y, errors = np.eye(3)[labels], []
    features = np.concatenate([z, np.ones((9, 1))], 1)
    for ridge in ridges:
        left = [
            Ridge(ridge, fit_intercept=False).fit(np.delete(features, i, 0), np.delete(y, i, 0)).predict(features[[i]])[0]
            for i in range(texts)
        ]
        wrong = int((np.array(left).argmax(1) != labels[:texts]).sum())
        errors.append((wrong, pytest.approx(np.mean((y[:texts] - np.array(left)) ** 2), rel=1e-9)))

    assert left_out_errors(z @ z.T, labels, texts, ridges) == errors


def test_a_head_is_held_back_where_the_labels_follow_the_vectors_less():
    generator = torch.Generator().manual_seed(3)
    centres = torch.nn.functional.normalize(torch.randn(3, 40, generator=generator, dtype=torch.float64), dim=-1)
    labels, norms = [i % 3 for i in range(48)], []
    for noise in (0.05, 0.5):
        z = centres[labels] + noise * torch.randn(48, 40, generator=generator, dtype=torch.float64)
        z = torch.nn.functional.normalize(z, dim=-1)
        found = left_out_errors((z @ z.T).numpy(), np.array(labels), 48, _RIDGES)
        norms.append(min(zip(found, _RIDGES, strict=True))[1])
    assert norms[0] < norms[1]


def said(verbs: bool, shots: int) -> tuple[tuple[str, ...], list[int], torch.Tensor]:
    """Texts whose label is their verb, with vectors that know the topic alone, or the label."""
    texts, labels, z = list[str](), list[int](), list[torch.Tensor]()
    topics, kinds = vectors(len(TOPICS)), vectors(len(VERBS))
    for label, verb in enumerate(VERBS):
        for index in range(shots):
            texts.append(f"{verb} the {TOPICS[index]}" if verbs else f"{VERBS[index % 4]} the {TOPICS[(index + label) % 10]}")
            labels.append(label)
            z.append(topics[index] if verbs else torch.nn.functional.normalize(kinds[label] + 0.1 * topics[index], dim=-1))
    return tuple(texts), labels, torch.stack(z)


@pytest.mark.parametrize("verbs", [True, False])
def test_words_count_where_they_decide_and_do_no_harm_where_the_vectors_do(verbs):
    texts, labels, z = said(verbs, 10)
    old, new = ([i for i in range(len(z)) if (i % 10 >= 5) is late] for late in (False, True))
    support, queries = (batch(z[part], [labels[i] for i in part], tuple(texts[i] for i in part)) for part in (old, new))

    head = regression(z[old], support, torch.ones(len(old), dtype=torch.float64))

    assert ("regression.lexical" in head) or not verbs
    assert float((class_scores(z[new], queries, head).argmax(-1) == queries.labels).double().mean()) > 0.9


def test_words_are_left_out_where_asked_and_where_a_class_has_one_example():
    texts, labels, z = said(True, 5)
    ones = torch.ones(len(z), dtype=torch.float64)
    first = [0, 5, 10, 15]

    assert "regression.lexical" not in regression(z, batch(z, labels, texts), ones, lexical=False)
    single = batch(z[first], [0, 1, 2, 3], tuple(texts[i] for i in first))
    assert "regression.lexical" not in regression(z[first], single, ones[:4])


@pytest.mark.parametrize("better", ["trained", "untouched"])
def test_a_task_goes_back_to_the_encoder_before_meta_training_where_that_tells_its_labels_apart(better):
    labels = [i % 3 for i in range(24)]
    apart = torch.nn.functional.normalize(vectors(3)[labels] + 0.1 * vectors(24), dim=-1)
    z, untouched = (apart, vectors(24)) if better == "trained" else (vectors(24), apart)
    ones = torch.ones(24, dtype=torch.float64)

    head = regression(z, batch(z, labels), ones, untouched=untouched)

    assert (UNTOUCHED in head) is (better == "untouched")
    plain = regression(apart, batch(apart, labels), ones)
    assert same_bits({name: value for name, value in head.items() if name != UNTOUCHED}, plain)


def test_a_run_keeps_the_encoder_that_it_started_from_and_reads_it_for_the_tasks_that_went_back(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "choose_head", lambda *_: {"head": "regression", "regression_shots": 2})
    options = {**SMALL, "training__steps": 1, "training__lr": 1e-2}
    made = api.train(small_suite(), tmp_path / "run", backbone__name="tiny", **options)
    run = load_run(tmp_path / "run")
    start = tiny_learner().params
    assert run.learner.untouched is not None
    assert same_bits(run.learner.untouched, {name: start[name] for name in run.learner.untouched})
    assert {n for n in start if n.startswith("backbone.")} >= set(run.learner.untouched)
    assert run.fingerprint == made.fingerprint

    texts, labels, _ = said(True, 5)
    names = [VERBS[label] for label in labels]
    monkeypatch.setattr("kshot.meta.protonet.regression", lambda *given: regression(*given) | {UNTOUCHED: torch.ones(())})
    back = adapt(run, texts, names)
    monkeypatch.setattr("kshot.meta.protonet.regression", regression)
    plain = adapt(replace(run, learner=replace(run.learner, untouched=None)), texts, names)
    there = replace(back, adapted={name: value for name, value in back.adapted.items() if name != UNTOUCHED})

    assert UNTOUCHED in back.adapted
    assert UNTOUCHED not in plain.adapted
    assert not torch.equal(back.probabilities(["recall the poems"]), there.probabilities(["recall the poems"]))

    (tmp_path / "run" / "untouched.safetensors").unlink()
    with pytest.raises(RunError, match=r"it has no untouched\.safetensors"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("options", [{"algorithm__head": "prototypes"}, {"algorithm__go_back": False}])
def test_a_run_that_has_no_use_for_the_encoder_before_does_not_keep_it(tmp_path, options):
    run = api.train(small_suite(), tmp_path / "run", backbone__name="tiny", **{**SMALL, "training__steps": 1}, **options)
    assert run.learner.untouched is None
    assert not (tmp_path / "run" / "untouched.safetensors").exists()


def test_term_vectors_are_of_unit_length_and_ignore_terms_that_the_support_set_has_not():
    texts = ("refund my order", "我想退款")
    terms, idf = vocabulary(texts)

    own, strange = term_vectors(texts, terms, idf), term_vectors(("zzz qqq",), terms, idf)

    np.testing.assert_allclose(np.sqrt(own.multiply(own).sum(1)), 1, rtol=1e-12)
    assert strange.sum() == 0


def test_regression_is_taken_from_its_number_of_shots_on_and_names_are_no_shots():
    learner = random_learner()
    one, two = random_batch(0, (1, 1, 1)), random_batch(0, (2, 2, 2))
    named = replace(two, names=3)

    assert set(REGRESSION.adapt(learner, one)) == {"prototypes"}
    assert set(REGRESSION.adapt(learner, two)) == {"prototypes", "regression.weight", "regression.bias"}
    assert set(REGRESSION.adapt(learner, named)) == {"prototypes"}


def test_how_near_a_text_is_is_told_by_the_prototypes_whatever_labels_it():
    learner, support, query = random_learner(), random_batch(0, (3, 3, 3)), random_batch(1, (2, 1, 1))
    plain = ProtoNet(head="prototypes", learn_scale=False, scale=1.0)
    largest = plain.logits(learner, plain.adapt(learner, support), query).amax(-1)

    for algorithm in (plain, REGRESSION):
        torch.testing.assert_close(algorithm.nearness(learner, algorithm.adapt(learner, support), query), largest)
    assert ProtoNet(metric="euclidean").nearness(learner, plain.adapt(learner, support), query) is None


def test_meta_training_is_by_prototypes_whatever_the_head():
    learner, episode = random_learner(), EncodedEpisode(random_batch(0, (3, 3)), random_batch(1, (2, 2)))

    ours, plain = (algorithm.meta_loss(learner, [episode])[0] for algorithm in (REGRESSION, ProtoNet(head="prototypes")))

    assert torch.equal(ours, plain)
    assert ours.requires_grad


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({1: -1, 2: -0.1, 5: 0.1, 10: 0.2}, {"head": "regression", "regression_shots": 5}),
        ({1: 0.1, 2: -0.1, 5: 0.1, 10: None}, {"head": "regression", "regression_shots": 5}),
        ({1: 0.0, 2: 0.1, 5: None, 10: None}, {"head": "regression", "regression_shots": 1}),
        ({1: 0.1, 2: 0.1, 5: 0.1, 10: -0.1}, {"head": "prototypes"}),
        ({1: None, 2: None, 5: None, 10: None}, {"head": "prototypes"}),
    ],
)
def test_the_fewest_shots_from_which_on_regression_may_be_as_good_are_chosen(gains, chosen, monkeypatch):
    monkeypatch.setattr(heads, "_drawn", lambda tasks, shots, *_: shots)
    monkeypatch.setattr(heads, "_measured", lambda learner, algorithm, shots, *_: (gains[shots], []))
    monkeypatch.setattr(heads, "_scale", lambda *_: 3.0)

    scale = {"regression_scale": 3.0} if chosen["head"] == "regression" else {}
    assert choose_head(random_learner(), ProtoNet(), (), 10) == chosen | scale


def test_the_scale_of_the_regression_makes_its_answers_most_likely():
    learner, tasks, texts = tiny_learner(), load_tasks("bundled:en/law"), EncodedTexts(tiny_learner())
    gain, answers = heads._measured(learner, ProtoNet(), heads._drawn(tasks, 5, 4, CLASSIFICATION), texts)
    regressed, means = (ProtoNet(head=head) for head in ("regression", "prototypes"))
    scale, gains = heads._scale(answers), []
    scaled = {factor: replace(regressed, regression_scale=factor * scale) for factor in (0.8, 1.0, 1.25)}
    losses = dict.fromkeys(scaled, 0.0)
    for drawn in heads._drawn(tasks, 5, 4, CLASSIFICATION):
        differences = []
        for episode in texts.episodes(drawn):
            scores = {a: a.logits(learner, a.adapt(learner, episode.support), episode.query) for a in (*scaled.values(), means)}
            for factor, algorithm in scaled.items():
                losses[factor] += float(cross_entropy(scores[algorithm], episode.query.labels, reduction="sum"))
            right = {a: float((scores[a].argmax(-1) == episode.query.labels).double().mean()) for a in (scaled[1.0], means)}
            differences.append(right[scaled[1.0]] - right[means])
        found = mean(differences)
        gains.append(found.value + (found.ci95 if found.count > 1 else 0))

    assert losses[1.0] < min(losses[0.8], losses[1.25])
    assert gain == pytest.approx(np.mean(gains))


def test_an_encoder_that_is_fine_tuned_is_so_while_the_head_is_chosen(monkeypatch):
    learner, tasks = tiny_learner(), load_tasks("bundled:en/law")
    moved = list[bool]()
    plain = ProtoNet.logits

    def logits(self, learner, adapted, query):
        moved.append(any(name in learner.params for name in adapted))
        return plain(self, learner, adapted, query)

    monkeypatch.setattr(ProtoNet, "logits", logits)
    episodes = heads._drawn(tasks, 2, 1, CLASSIFICATION)
    heads._measured(learner, ProtoNet(finetune_steps=1, finetune_shots=2), episodes, EncodedTexts(learner))

    assert moved
    assert all(moved)  # for prototypes as for regression


def test_what_was_set_is_not_chosen_over():
    for algorithm in (ProtoNet(head="prototypes"), REGRESSION, ProtoNet(metric="euclidean")):
        assert choose_head(random_learner(), algorithm, (), 10) == {}


def test_tasks_with_few_or_doubled_texts_are_passed_over(tmp_path):
    path = tmp_path / "tasks.jsonl"
    same = [row | {"text": "always the same"} for row in rows(("fee", "fine"), 12)]
    path.write_text("".join(f'{{"text": "{row["text"]}", "label": "{row["label"]}"}}\n' for row in rows(each=6) + same))

    chosen = choose_head(tiny_learner(), ProtoNet(), load_tasks(str(path)), 3)

    assert chosen["head"] in ("prototypes", "regression")


def test_a_run_keeps_what_was_chosen_and_an_adapted_task_says_the_same_when_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "choose_head", lambda *_: {"head": "regression", "regression_shots": 2})
    made = api.train(small_suite(), tmp_path / "run", backbone__name="tiny", training__steps=1, **SMALL)
    run = load_run(tmp_path / "run")
    assert (run.algorithm.head, run.algorithm.regression_shots) == ("regression", 2)
    assert run.options == made.options

    texts, labels, _ = said(True, 5)
    task = adapt(run, texts, [VERBS[label] for label in labels])
    task.save(tmp_path / "task")
    again = load_adapted(tmp_path / "task")

    assert same_bits(task.adapted, again.adapted)
    assert [p.to_json() for p in task.predict(["recall the poems"])] == [
        p.to_json() for p in again.predict(["recall the poems"])
    ]


def test_without_calibration_episodes_nothing_is_chosen():
    assert loaded().options["head"] in ("prototypes", "regression")
    assert choose_head(loaded().learner, ProtoNet(), small_suite().validation, 0) == {"head": "prototypes"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": "regresion"}, "algorithm.head is 'regresion'. Did you mean 'regression'?"),
        ({"head": "regression", "metric": "euclidean"}, "algorithm.head: regression is asked with the metric 'euclidean'."),
        ({"regression_shots": 0}, "algorithm.regression_shots is 0. A number above 0 is expected."),
    ],
)
def test_what_cannot_be_is_refused(options, sentence):
    with pytest.raises(ConfigError) as error:
        ProtoNet(**options)
    assert sentence in str(error.value)
