"""Extractive question answering: what is read, learned and answered, with the tiny real model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import refusal
from runs import Shell, in_process  # noqa: F401
from tiny import finite_difference_error, gradient_of, needs_tiny, one_thread, snapshot  # noqa: F401

from kshot.errors import ConfigError, DataError
from kshot.meta import new_algorithm
from kshot.models import BackboneSpec, Learner, load_backbone, new_learner
from kshot.models.batch import join
from kshot.models.features import EncodedTexts
from kshot.models.kinds import KINDS
from kshot.models.kinds.qa import SEPARATOR, answer_f1
from kshot.tasks import Examples, load_tasks

QA = KINDS["qa"]
PEOPLE = ("Ana", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana")
PLACES = ("Rome", "Oslo", "Bath", "Cork", "Lyon", "Turin", "Porto", "Leeds")


def records(domain: str = "moves", count: int = 8):
    rows = []
    for who, where in zip(PEOPLE[:count], PLACES, strict=False):
        context = f"Last year {who} left the {domain} firm and went to {where} by train."
        question, answer = (f"Where did {who} go?", where) if len(rows) % 2 else (f"Who went to {where}?", who)
        rows.append(
            {"question": question, "context": context, "answers": [{"text": answer, "answer_start": context.index(answer)}]}
        )
    return rows


def squad(rows, title: str = "t"):
    paragraphs = [{"context": r["context"], "qas": [{"question": r["question"], "answers": r["answers"]}]} for r in rows]
    return {"version": "1", "data": [{"title": title, "paragraphs": paragraphs}]}


def tiny(double: bool = False, max_length: int = 48) -> Learner:
    backbone = load_backbone(BackboneSpec("tiny", max_length=max_length))
    if double:
        backbone.model.double()
    return new_learner(backbone, kind=QA.learner)


def examples(rows) -> Examples:
    kept = [QA.schema.example({name: row[name] for name in ("question", "context")}, row["answers"]) for row in rows]
    return Examples(tuple(row.text for row in kept), (0,) * len(kept), annotations=tuple(row.annotation for row in kept))


def test_squads_json_and_rows_say_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(squad(records())))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, records())))
    one, two = (load_tasks(tmp_path / name, None, QA.schema)[0] for name in ("a.json", "b.jsonl"))
    assert len(one) == 8
    assert one.corpus.texts(range(8)) == two.corpus.texts(range(8))
    assert one.corpus.annotations([1]) == two.corpus.annotations([1]) == ['[[45, "Oslo"]]']


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answers": [{"text": "Paris", "answer_start": 3}]}, "line 1: the answer 'Paris' is not in the context."),
        ({"answers": []}, "line 1: no answer in column 'answers'."),
        ({"context": " "}, "line 1: no context in column 'context'."),
    ],
)
def test_what_is_no_question_is_refused(tmp_path, change, sentence):
    (tmp_path / "a.jsonl").write_text(json.dumps(records()[0] | change))
    assert sentence in refusal(lambda: load_tasks(tmp_path / "a.jsonl", None, QA.schema), DataError)


def test_a_wrong_place_of_a_right_answer_is_mended():
    row = QA.schema.example({"question": "who?", "context": "it was Ana"}, [{"text": "Ana", "answer_start": 2}])
    assert json.loads(row.annotation) == [[7, "Ana"]]


@needs_tiny
def test_the_loss_is_the_cross_entropy_of_first_and_last_token():
    learner = tiny()
    batch = learner.batch(examples(records(count=3)), ())
    scores = torch.randn(len(batch), 2, generator=torch.Generator().manual_seed(0))
    losses = []
    for part, wanted in zip(torch.split(scores, list(batch.sizes)), torch.split(batch.labels, list(batch.sizes)), strict=True):
        assert wanted.sum(0).tolist() == [1.0, 1.0]
        losses += [torch.nn.functional.cross_entropy(part[:, side], wanted[:, side].argmax()) for side in (0, 1)]
    torch.testing.assert_close(learner.loss_of(scores, batch), torch.stack(losses).mean())


@needs_tiny
def test_the_right_scores_give_the_right_answers_in_a_text_of_several_windows():
    learner = tiny(max_length=24)
    rows = records(count=4)
    filler = "And so it went on and on for many a long day. " * 6
    for row in rows:
        row["context"] = filler + row["context"]
        row["answers"] = [row["answers"][0]["text"]]
    batch = learner.batch(examples(rows), ())
    assert len(batch.input_ids) > 3 * len(rows)
    found = learner.answers_of(10 * batch.labels, batch)
    assert [text for text, _ in found] == [row["answers"][0] for row in rows]
    assert [row["context"][at : at + len(text)] for row, (text, at) in zip(rows, found, strict=True)] == [t for t, _ in found]
    assert learner.score(10 * batch.labels, batch) == learner.exact(10 * batch.labels, batch) == 1.0


def test_answers_are_compared_as_squad_does():
    assert answer_f1("The Red House!", ["red house"]) == 1.0
    assert answer_f1("red", ["red house", "blue"]) == pytest.approx(2 / 3)
    assert answer_f1("北京市", ["北京"]) == pytest.approx(0.8)
    assert answer_f1("", ["red"]) == 0.0


@needs_tiny
@pytest.mark.parametrize("name", ["maml", "anil"])
def test_meta_gradients_are_the_derivatives_of_the_meta_loss(name):
    learner, algorithm = tiny(double=True), new_algorithm(name, {"inner_steps": 2})
    generator = torch.Generator().manual_seed(0)
    head = {n: (0.3 * torch.randn(v.shape, generator=generator, dtype=v.dtype)).requires_grad_()
            for n, v in learner.params.items() if n.startswith("head.")}  # fmt: skip
    learner = learner.with_params(learner.params | head)
    support, query = (learner.batch(examples(records(count=6)[start : start + 2]), ()) for start in (0, 2))
    from kshot.models import EncodedEpisode

    episode = EncodedEpisode(support, query)
    at = {n: v for n, v in learner.params.items() if n.startswith("head.") or n.endswith("layer.1.output.dense.weight")}

    def loss(params):
        return algorithm.meta_loss(learner.with_params(learner.params | params), [episode])[0]

    assert finite_difference_error(loss, snapshot(at), gradient_of(loss(at), at)) < 1e-6


@needs_tiny
def test_vectors_encoded_before_are_the_same_and_batches_are_joined():
    learner = tiny()
    whole = examples(records(count=4))
    batch = learner.batch(whole, ())
    z = learner.features(learner.params, batch)
    from kshot.tasks import Episode

    (before,) = EncodedTexts(learner).episodes([Episode("t", "", (), whole, whole)])
    torch.testing.assert_close(z, before.query.features, rtol=1e-4, atol=1e-5)
    parts = [examples(records(count=4)[start : start + 2]) for start in (0, 2)]
    both = join(*(learner.batch(part, ()) for part in parts))
    torch.testing.assert_close(learner.features(learner.params, both), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.loss(learner.params, both), learner.loss(learner.params, batch), rtol=1e-4, atol=1e-5)


@needs_tiny
def test_steps_on_a_few_questions_learn_them():
    learner = tiny()
    batch, algorithm = learner.batch(examples(records()), ()), new_algorithm("fomaml", {"inner_steps": 60, "inner_lr": 0.1})
    with torch.no_grad():
        adapted = algorithm.adapt(learner, batch)
        before, after = (learner.loss(params, batch) for params in (learner.params, learner.params | adapted))
        answered = learner.score(algorithm.logits(learner, adapted, batch), batch)
    assert float(before) == pytest.approx(sum(map(math.log, batch.sizes)) / len(batch.sizes), rel=1e-3)  # of a head of zeros
    assert float(after) < 0.3 * float(before)
    assert answered > 0.8


@needs_tiny
def test_a_run_is_trained_measured_adapted_and_asked(tmp_path, kshot):
    data = tmp_path / "data"
    data.mkdir()
    for domain in ("law", "bank", "news", "toy"):
        (data / f"{domain}.json").write_text(json.dumps(squad(records(domain))))
    given = ("--tasks", data, "--kind", "qa", "--split", "task", "--split-ratios", "1,0,1", "--shots", 2, "--queries", 2)
    run = tmp_path / "run"
    train = ("train", *given, "--backbone", "tiny", "--steps", 2, "--no-tensorboard", "--out", run)
    said = kshot.refused(*train, "--algorithm", "protonet", "--set", "training.validate_every=0")
    assert (
        "The algorithm 'protonet' tells labels apart, and tasks of the kind qa have none. For these there are: maml, " in said
    )
    assert "anil" in said
    kshot.done(*train, "--algorithm", "fomaml", "--set", "training.validate_every=0")
    kshot.done("evaluate", run, *given, "--episodes", 3, "--out", tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["protocol"]["metric"] == "answer F1"
    assert all(0 <= row["exact_match"] <= 1 for row in report["rows"])
    assert "Exact match" in (tmp_path / "report" / "report.html").read_text()
    kshot.done("adapt", run, data / "law.json", "--out", tmp_path / "task")
    asked = {name: records()[0][name] for name in ("question", "context")}
    answer = json.loads(kshot.done("predict", tmp_path / "task", stdin=json.dumps(asked)).out)
    assert asked["context"][answer["start"] :].startswith(answer["answer"])
    assert 'one text, and {"question", "context"} is expected' in kshot.refused("predict", tmp_path / "task", stdin="Where?")


def test_only_algorithms_that_start_all_alike_serve(tmp_path):
    from kshot import api

    (tmp_path / "a.json").write_text(json.dumps(squad(records())))
    suite = api.load_suite(str(tmp_path / "a.json"), "task", kind="qa", split__ratios=(1.0, 0.0, 0.0))
    said = refusal(lambda: api.train(suite, tmp_path / "run", algorithm__name="protomaml", backbone__name="tiny"), ConfigError)
    assert "The algorithm 'protomaml' tells labels apart" in said


def test_the_separator_is_no_part_of_a_question():
    assert QA.schema.asked({"question": f"a{SEPARATOR}b", "context": "c"}) == f"a b{SEPARATOR}c"
