"""What the kinds of task read, make of examples, and answer, with the tiny real model and no data but the bundled tasks."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from runs import Shell, in_process  # noqa: F401
from seqeval.metrics import classification_report
from seqeval.metrics import f1_score as seqeval_f1
from tiny import finite_difference_error, gradient_of, needs_tiny, one_thread, snapshot  # noqa: F401

from kshot import api
from kshot.deploy import adapt, load_adapted
from kshot.errors import ConfigError, DataError
from kshot.evaluation.metrics import EntityCounts
from kshot.meta import new_algorithm
from kshot.models import BackboneSpec, EncodedEpisode, Learner, load_backbone, new_learner
from kshot.models.batch import join
from kshot.models.features import EncodedTexts
from kshot.models.kinds import KINDS, kind_of
from kshot.models.kinds.pair import SEPARATOR as BESIDE
from kshot.models.kinds.relation import marked, unmarked
from kshot.models.kinds.tagging import SEPARATOR, predicted_entities
from kshot.models.kinds.tags import entities, to_bio
from kshot.models.kinds.words import layout, split_words, windows, word_spans
from kshot.tasks import Episode, EpisodeSpec, Examples, Task, load_episodes, load_tasks, save_episodes
from kshot.training import Run
from kshot.training.validation import episode_scores

TAGGING, RELATION, PAIR = (KINDS[name].schema for name in ("tagging", "relation", "pair"))
BUNDLED = {"tagging": "bundled:tagging/en", "relation": "bundled:relation/en"}
SHAPES = {"tagging": EpisodeSpec(3, 1, 2), "relation": EpisodeSpec(3, 2, 2), "pair": EpisodeSpec(2, 2, 2)}
PAIRS = [
    {"premise": f"{who} {verb} the {what}", "hypothesis": f"{who} {other} it", "label": label}
    for who in ("Ana", "the doctor", "my bank")
    for what in ("bill", "letter", "house")
    for verb, other, label in (
        ("paid", "paid for", "follows"),
        ("lost", "still has", "contradicts"),
        ("saw", "likes", "neutral"),
    )
]


@cache
def tiny(kind: str, max_length: int = 64) -> Learner:
    return new_learner(load_backbone(BackboneSpec("tiny", max_length=max_length)), kind=KINDS[kind].learner)


def conll(path, text: str, **options) -> Task:
    path.write_text(text, encoding="utf-8")
    (task,) = load_tasks(path, None, TAGGING)
    return task


@pytest.fixture
def tasks(request, tmp_path) -> list[Task]:
    kind = request.param
    if kind != "pair":
        return load_tasks(BUNDLED[kind], None, KINDS[kind].schema)
    (tmp_path / "nli.jsonl").write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    return load_tasks(tmp_path / "nli.jsonl", None, PAIR)


every_kind = pytest.mark.parametrize("tasks", ["tagging", "relation", "pair"], indirect=True)


# --- tags and words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "bio", "mended"),
    [
        ("B-x I-x O B-x", "B-x I-x O B-x", False),
        ("I-x I-x O I-y", "B-x I-x O B-y", True),
        ("B-x I-y", "B-x B-y", True),
        ("S-x O B-x I-x E-x S-y", "B-x O B-x I-x I-x B-y", False),
        ("U-x B-x L-x L-x", "B-x B-x I-x B-x", True),
        ("B-x M-x E-x", "B-x I-x I-x", False),
        ("x x O y x", "B-x I-x O B-y B-x", False),
        ("O O", "O O", False),
    ],
)
def test_every_scheme_becomes_bio(tags, bio, mended):
    assert to_bio(tags.split()) == (bio.split(), mended)


def test_entities_are_seqevals():
    rng = np.random.default_rng(0)
    both = []
    for _ in range(2):
        types = [["O", "x", "y"][i] for i in rng.integers(3, size=200)]
        both.append([to_bio(types[i : i + 10])[0] for i in range(0, 200, 10)])
    right = sum(len(set(entities(a)) & set(entities(b))) for a, b in zip(*both, strict=True))
    found, given = (sum(len(entities(tags)) for tags in side) for side in both)
    assert 2 * right / (found + given) == pytest.approx(seqeval_f1(*both))


def test_words_are_where_they_are_said_to_be():
    text = "It's 3 p.m. in 北京, isn't it?"
    words = [text[start:end] for start, end in split_words(text)]
    assert words == ["It's", "3", "p", ".", "m", ".", "in", "北", "京", ",", "isn't", "it", "?"]
    again, places = layout(words)
    assert [again[start:end] for start, end in places] == words
    assert "北京" in again


@needs_tiny
def test_the_tokens_of_a_word_are_those_that_stand_for_it():
    learner = tiny("tagging")
    words = ["Unbelievably", ",", "Zürich", "wins", "!"]
    text, places = layout(words)
    found = windows(learner.backbone, [text])
    spans = word_spans(found, [places])
    tokens = learner.backbone.tokenizer.convert_ids_to_tokens(found.input_ids[0].tolist())
    said = ["".join(tokens[i].removeprefix("##") for i in spans.offsets[spans.span == word]) for word in range(5)]
    assert said == ["unbelievably", ",", "zurich", "wins", "!"]


@needs_tiny
def test_a_long_sentence_is_cut_into_windows_and_no_word_is_lost():
    learner = tiny("tagging", 16)
    words = [f"word{i}" for i in range(40)]
    text, places = layout(words)
    found = windows(learner.backbone, [text, "short"])
    spans = word_spans(found, [places, [(0, 5)]])
    assert len(found.samples) > 2
    assert set(found.samples) == {0, 1}
    assert set(spans.span.tolist()) == set(range(41))
    batch = learner.batch(Examples((SEPARATOR.join(words), "short"), (0, 0)), ())
    assert learner.features(learner.params, batch).shape == (41, learner.backbone.hidden_size)


# --- reading ----------------------------------------------------------------------------------------------------------------


def test_tagged_words_are_read_from_lines_and_from_json(tmp_path):
    task = conll(
        tmp_path / "news.conll",
        "-DOCSTART-\tO\n\nParis\tB-place\nis\tO\n\n# source = wire\nAna\tI-person\nMo\tI-person\nin\tO\nRome\tB-place\n#\tO\n",
    )
    assert task.labels == ("place", "person")
    assert task.corpus.texts(task.all_rows()) == ["Paris\x1fis", "Ana\x1fMo\x1fin\x1fRome\x1f#"]
    assert task.corpus.annotations(task.all_rows())[1] == "B-person\x1fI-person\x1fO\x1fB-place\x1fO"
    assert task.corpus.repaired == {"news.conll": 1}
    rows = [
        {"tokens": ["Paris", "is"], "ner_tags": ["B-place", "O"]},
        {"tokens": ["Ana", "Mo", "in", "Rome", "#"], "ner_tags": ["B-person", "I-person", "O", "B-place", "O"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (lists,) = load_tasks(tmp_path / "a.jsonl", None, TAGGING)
    assert lists.corpus.annotations(lists.all_rows()) == task.corpus.annotations(task.all_rows())
    spans = [{"text": "Ana Mo in Rome-based", "entities": [{"start": 0, "end": 6, "label": "person"}, [10, 14, "place"]]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, spans)))
    (places,) = load_tasks(tmp_path / "b.jsonl", None, TAGGING)
    assert places.corpus.texts([0]) == ["Ana\x1fMo\x1fin\x1fRome\x1f-\x1fbased"]
    assert places.corpus.annotations([0]) == ["B-person\x1fI-person\x1fO\x1fB-place\x1fO\x1fO"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("Paris\n", "line 1: 'Paris' is one column."),
        ("Paris\tB-place\nis\tplace\n", "line 1: the tag 'place' has no prefix, and 'B-place' has one: B-TYPE, I-TYPE or O"),
        ('{"words": ["a", "b"], "tags": ["O"]}', "line 1: 2 words and 1 tags, and a tag a word is expected."),
        ('{"text": "in Rome", "entities": [[3, 9, "place"]]}', "the entity at 3-9 is outside the text of 7 characters"),
        ('{"text": "in Rome", "entities": [[0, 5, "a"], [3, 7, "b"]]}', "the entities 'a' and 'b' overlap at character 3"),
        ('{"text": "in Rome", "entities": [{"text": "Oslo", "label": "a"}]}', "the entity 'Oslo' is not in the text"),
        ('{"words": ["a"], "tags": [3]}', "a tag is the int 3, and a string is expected"),
        ('{"body": "a"}', "no tagged words found. The columns are: body"),
        ('{"words": ["a"], "tags": ["O"]}', "has no label. A task needs at least 1."),
    ],
)
def test_what_is_no_tagged_sentence_is_refused(tmp_path, line, sentence):
    path = tmp_path / ("bad.jsonl" if line.startswith("{") else "bad.conll")
    path.write_text(line)
    assert sentence in refusal(lambda: load_tasks(path, None, TAGGING), DataError)


def test_a_file_of_tags_tells_a_classifier_which_kind_it_is(tmp_path):
    (tmp_path / "a.conll").write_text("Paris\tB-place\n")
    assert "Tagged words are read with --kind tagging." in refusal(lambda: load_tasks(tmp_path / "a.conll"), DataError)


def test_relations_are_read_from_strings_places_and_fewrels_own_form(tmp_path):
    rows = [
        {"text": "Ana runs Lumo", "head": "Ana", "tail": "Lumo", "label": "leads"},
        {"text": "no, no and no", "head": "no", "tail": "no", "label": "repeats"},
        {"text": "Ana runs Lumo", "head": [9, 13], "tail": {"start": 0, "end": 3}, "label": "repeats"},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (task,) = load_tasks(tmp_path / "r.jsonl", None, RELATION)
    assert task.corpus.texts(range(3)) == [
        "\x01Ana\x02 runs \x03Lumo\x04", "\x01no\x02, \x03no\x04 and no", "\x03Ana\x04 runs \x01Lumo\x02",
    ]  # fmt: skip
    tokens = ["Ana", "runs", "Lumo", "AG"]
    value = {"P1": [{"tokens": tokens, "h": ["ana", "Q1", [[0]]], "t": ["lumo", "Q2", [[2, 3]]]}]}
    value["P2"] = value["P1"]
    (tmp_path / "few.json").write_text(json.dumps(value))
    (few,) = load_tasks(tmp_path / "few.json", None, RELATION)
    assert few.labels == ("P1", "P2")
    assert few.corpus.text(0) == "\x01Ana\x02 runs \x03Lumo AG\x04"
    assert unmarked(marked("Ana runs Lumo", (0, 3), (9, 13)), ("@", "#"))[0] == "@ Ana @ runs # Lumo #"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"head": "Ivo", "tail": "Lumo"}, "line 1: the head 'Ivo' is not in the text."),
        ({"head": "Ana", "tail": [9, 40]}, "the tail at 9-40 is outside the text of 13 characters"),
        ({"head": "Ana", "tail": 7}, "the tail is 7, and a string or [start, end] is expected"),
        ({"head": "Ana", "tail": "Ana"}, "the tail 'Ana' is not in the text a second time"),
        ({"head": "Ana"}, "no column of the tail found."),
    ],
)
def test_what_is_no_relation_is_refused(tmp_path, row, sentence):
    (tmp_path / "r.jsonl").write_text(json.dumps({"text": "Ana runs Lumo", "label": "leads", **row}))
    assert sentence in refusal(lambda: load_tasks(tmp_path / "r.jsonl", None, RELATION), DataError)


@every_kind
def test_episodes_have_their_shape_are_disjoint_and_are_replayed(tasks, tmp_path):
    kind = tasks[0].kind
    spec = SHAPES[kind]
    sampler = KINDS[kind].schema.episodes(tasks, spec, 3)
    episodes = sampler[:6]
    assert episodes == KINDS[kind].schema.episodes(tasks, spec, 3)[:6]
    save_episodes(tmp_path / "episodes.jsonl", episodes)
    assert load_episodes(tmp_path / "episodes.jsonl") == episodes
    for episode in episodes:
        assert len(episode.labels) == spec.ways
        assert not set(episode.support.texts) & set(episode.query.texts)
        if kind == "tagging":
            for side, shots in ((episode.support, spec.shots), (episode.query, spec.queries)):
                counts = sum(
                    (TAGGING.mentions(annotation) for annotation in side.annotations), start=type(TAGGING.mentions(""))()
                )
                assert all(shots <= counts[label] <= 2 * shots for label in episode.labels)


def test_a_label_with_too_few_mentions_is_named(tmp_path):
    task = conll(tmp_path / "a.conll", "Paris\tB-place\n\nRome\tB-place\n\nAna\tB-person\n")
    said = refusal(lambda: TAGGING.episodes([task], EpisodeSpec(2, 1, 1)), DataError)
    assert "The task 'a' has labels with too few mentions: 'person' has 1." in said


# --- learners ---------------------------------------------------------------------------------------------------------------


@needs_tiny
@every_kind
def test_packed_and_plain_vectors_are_the_same_and_so_are_those_encoded_before(tasks):
    kind = tasks[0].kind
    learner = tiny(kind)
    (episode,) = KINDS[kind].schema.episodes(tasks, SHAPES[kind])[:1]
    encoded, plain = learner.encode(episode), replace(learner, fast=False).encode(episode)
    z = learner.features(learner.params, encoded.query)
    assert z.shape == (len(encoded.query), learner.parts * learner.backbone.hidden_size)
    torch.testing.assert_close(z, replace(learner, fast=False).features(learner.params, plain.query), rtol=1e-4, atol=1e-5)
    (before,) = EncodedTexts(learner).episodes([episode])
    torch.testing.assert_close(z, before.query.features, rtol=1e-4, atol=1e-5)
    both = learner.features(learner.params, join(encoded.support, encoded.query))
    torch.testing.assert_close(both[len(encoded.support) :], z, rtol=1e-4, atol=1e-5)


@needs_tiny
@every_kind
@pytest.mark.parametrize("name", ["protonet", "anil", "maml"])
def test_meta_gradients_are_the_derivatives_of_the_meta_loss(tasks, name):
    kind = tasks[0].kind
    backbone = load_backbone(BackboneSpec("tiny", max_length=24))
    backbone.model.double()
    learner = new_learner(backbone, kind=KINDS[kind].learner)
    options = {} if name == "protonet" else {"inner_steps": 2}
    algorithm = new_algorithm(name, options)
    own = {n: v.double().requires_grad_() for n, v in algorithm.meta_parameters(learner).items()}
    learner = learner.with_params(learner.params | own)
    spec = replace(SHAPES[kind], ways=2, shots=1, queries=1)
    episode = learner.encode(KINDS[kind].schema.episodes(tasks, spec)[0])
    names = [n for n in learner.params if n.endswith(("layer.1.output.dense.weight", "layer.0.attention.self.query.bias"))]
    at = {n: learner.params[n] for n in names}

    def loss(params):
        return algorithm.meta_loss(learner.with_params(learner.params | params), [episode])[0]

    gradient = gradient_of(loss(at), at)
    assert finite_difference_error(loss, snapshot(at), gradient) < 1e-6


def test_words_of_other_types_are_neither_outside_nor_in_a_class():
    learner = tiny("tagging")
    text, tags = (SEPARATOR.join(said.split()) for said in ("Ana met Bo in Rome", "B-p O B-p O B-c"))
    examples = Examples((text,), (0,), annotations=(tags,))
    batch = learner.annotated(examples, ("c",))
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.units.tolist() == [1, 3, 4]
    assert batch.targets == (((2, 3, 1),),)
    whole = learner.annotated(examples, ("c", "p"))
    assert whole.units is None
    assert whole.labels.tolist() == [2, 0, 2, 0, 1]


def test_the_score_of_tags_is_the_f1_of_entities_and_the_report_is_seqevals():
    learner = tiny("tagging")
    rng = np.random.default_rng(1)
    labels, sentences = ("x", "y"), []
    for _ in range(12):
        sentences.append(to_bio([["O", "x", "y"][i] for i in rng.integers(3, size=9)])[0])
    texts = tuple(SEPARATOR.join("w" * 9) for _ in sentences)
    examples = Examples(texts, (0,) * 12, annotations=tuple(map(SEPARATOR.join, sentences)))
    batch = learner.annotated(examples, labels)
    classes = torch.from_numpy(rng.integers(3, size=12 * 9))
    guessed = [to_bio([["O", "x", "y"][i] for i in part])[0] for part in classes.view(12, 9).tolist()]

    assert learner.score_of(classes, batch) == pytest.approx(seqeval_f1(sentences, guessed))
    counts = EntityCounts()
    counts.add(Episode("t", "", labels, examples, examples), predicted_entities(classes, batch.sizes), batch)
    report = classification_report(sentences, guessed, output_dict=True)
    for row in counts.rows():
        theirs = report["micro avg" if row["type"] == "micro" else row["type"]]
        assert (row["precision"], row["recall"], row["f1"], row["support"]) == (
            pytest.approx(theirs["precision"]), pytest.approx(theirs["recall"]),
            pytest.approx(theirs["f1-score"]), theirs["support"],
        )  # fmt: skip


@needs_tiny
def test_who_does_what_to_whom_is_in_the_vector_of_a_relation():
    learner = tiny("relation")
    texts = tuple(marked("Ana pays Bo", *places) for places in (((0, 3), (9, 11)), ((9, 11), (0, 3))))
    first, second = learner.embed_units(texts)[0]
    assert not torch.allclose(first, second, atol=1e-3)


@needs_tiny
def test_a_long_sentence_keeps_the_window_with_both_entities():
    learner = tiny("relation", 16)
    text = " ".join(["word"] * 30) + " Ana pays Bo " + " ".join(["word"] * 30)
    start = text.index("Ana")
    batch = learner.batch(Examples((marked(text, (start, start + 3), (start + 9, start + 11)),), (0,)), ("a", "b"))
    assert len(batch.input_ids) > 3
    assert batch.spans.span.bincount(minlength=3).min() > 0


@needs_tiny
def test_both_texts_of_a_pair_count_and_in_their_order():
    learner = tiny("pair")
    z = learner.embed_units((f"he slept{BESIDE}he was tired", f"he was tired{BESIDE}he slept", f"he slept{BESIDE}it rained"))[0]
    assert not torch.allclose(z[0], z[1], atol=1e-3)
    assert not torch.allclose(z[0], z[2], atol=1e-3)


# --- the whole job ----------------------------------------------------------------------------------------------------------


@needs_tiny
@every_kind
def test_a_run_is_trained_measured_adapted_and_asked(tasks, tmp_path, kshot):
    kind = tasks[0].kind
    spec = SHAPES[kind]
    shape = ("--ways", spec.ways, "--shots", spec.shots, "--queries", 1)
    given = ("--tasks", BUNDLED.get(kind, str(tmp_path / "nli.jsonl")), "--kind", kind)
    given += (
        ("--split", "class", "--split-ratios", "1,0,0") if kind == "pair" else ("--split", "task", "--split-ratios", "1,0,1")
    )
    run, folder = tmp_path / "run", tmp_path / "task"
    kshot.done(
        "train", *given, *shape, "--backbone", "tiny", "--steps", 2, "--no-tensorboard", "--out", run,
        "--set", "training.validate_every=0", "--set", "training.calibration_episodes=0",
    )  # fmt: skip
    assert json.loads((run / "kshot.json").read_text())["kind"] == kind
    if kind != "pair":
        kshot.done("evaluate", run, *given, *shape, "--episodes", 3, "--slow-episodes", 1, "--out", tmp_path / "report")
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        assert report["protocol"]["kind"] == kind
        assert report["protocol"]["metric"] == ("entity F1" if kind == "tagging" else "accuracy")
        assert {row["method"] for row in report["rows"]} > {"frozen prototype", "full fine-tuning"}
        assert bool(report["entities"]) is (kind == "tagging")
        assert "they label whole texts" in report["warnings"][-1]
    file = tmp_path / "few.jsonl"
    rows = PAIRS if kind == "pair" else [json.loads(line) for line in bundled_lines(kind, tasks[0])]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    kshot.done("adapt", run, file, "--out", folder)
    asked = {name: value for name, value in rows[0].items() if name not in ("label", "entities", "tags")}
    answer = json.loads(kshot.done("predict", folder, stdin=json.dumps(asked)).out)
    if kind == "tagging":
        assert all(answer["text"][e["start"] : e["end"]] == e["text"] for e in answer["entities"])
    else:
        assert answer["label"] in {row["label"] for row in rows}
        assert not set("\x01\x02\x03\x04\x1e") & set(answer["nearest"][0]["text"])
    task = load_adapted(folder)
    assert task.answers([asked]) == load_adapted(folder).answers([asked])


def bundled_lines(kind: str, task: Task) -> list[str]:
    return (
        Path(str(files("kshot.tasks") / "bundled" / kind / "en" / f"{task.name}.jsonl"))
        .read_text(encoding="utf-8")
        .splitlines()
    )


@needs_tiny
def test_from_python_a_sentence_is_a_text_or_a_list_of_words():
    run = trained("tagging")
    words = [["Ana", "lives", "in", "Rome"], ["Bo", "left", "Oslo"]]
    task = adapt(run, words, [["B-person", "O", "O", "B-city"], ["B-person", "O", "B-city"]])
    assert task.labels == ("person", "city")
    same = adapt(
        run, ["Ana lives in Rome", "Bo left Oslo"], [[[0, 3, "person"], [13, 17, "city"]], [[0, 2, "person"], [8, 12, "city"]]]
    )
    assert all(torch.equal(task.adapted[name], same.adapted[name]) for name in task.adapted)
    assert task.entities(["Ana lives in Rome"]) == task.entities([words[0]])
    assert "Text 1: 3 is no text, and no list of words." in refusal(lambda: task.answers([3]), DataError)
    assert "Example 1: 2 words and 1 tags" in refusal(lambda: adapt(run, [["a", "b"]], [["O"]]), DataError)


@cache
def trained(kind: str) -> Run:
    suite = api.load_suite(BUNDLED[kind], "task", kind=kind, split__ratios=(1.0, 0.0, 0.0))
    options = {"steps": 1, "validate_every": 0, "calibration_episodes": 0}
    options = {f"training__{name}": value for name, value in options.items()}
    options |= {f"episodes__{name}": value for name, value in {"ways": 2, "shots": 1, "queries": 1}.items()}
    with tempfile.TemporaryDirectory() as folder:
        return api.train(suite, Path(folder) / "run", backbone__name="tiny", **options)


@needs_tiny
def test_tasks_of_another_kind_than_the_runs_are_refused():
    run = trained("tagging")
    said = refusal(lambda: api.evaluate(run, api.load_suite("bundled:en/law", "class")), DataError)
    assert "is of the kind classification, and the run was meta-trained on tagging. Read it with --kind tagging" in said


def test_an_unknown_kind_and_mixed_kinds_are_refused(tmp_path):
    assert "No kind of task 'taging'. Did you mean 'tagging'?" in refusal(lambda: kind_of("taging"), ConfigError)
    mixed = api.load_suite(BUNDLED["tagging"], "task", kind="tagging")
    plain = api.load_suite("bundled:en", "task")
    suite = replace(mixed, validation=plain.validation)
    said = refusal(lambda: api.train(suite, tmp_path / "run"), DataError)
    assert "The suite mixes tasks of the kinds classification, tagging. One run learns tasks of one kind." in said


@needs_tiny
def test_fine_tuning_on_a_few_sentences_learns_them():
    tasks = load_tasks("bundled:tagging/en/law", None, TAGGING)
    (episode,) = TAGGING.episodes(tasks, EpisodeSpec(4, 2, 2))[:1]
    episode = replace(episode, query=episode.support)
    plain = new_algorithm("protonet", {"head": "prototypes"})
    tuned = new_algorithm("protonet", {"head": "prototypes", "finetune_steps": 30, "finetune_lr": 1e-3, "finetune_shots": 1})
    before, after = (episode_scores(tiny("tagging"), algorithm, [episode])[0] for algorithm in (plain, tuned))
    assert after > before + 0.2


def test_an_encoded_episode_keeps_its_shape():
    learner = tiny("tagging")
    tasks = load_tasks("bundled:tagging/en/law", None, TAGGING)
    episode = learner.encode(TAGGING.episodes(tasks, EpisodeSpec(2, 1, 1))[0])
    assert isinstance(episode, EncodedEpisode)
    assert sum(episode.support.sizes) == len(episode.support)


BUNDLES = {
    "tagging": "customer_service │ 4      │ 18 ",
    "relation": "business │ 5      │ 30 ",
    "qa": "clinic   │ 0      │ 11 ",
    "seq2seq": "headline                │ 0      │ 12 ",
}


@pytest.mark.parametrize(("kind", "said"), BUNDLES.items())
def test_the_bundled_tasks_of_every_kind_are_understood(kshot, kind, said):
    out = kshot.done("data", "check", f"bundled:{kind}/en", "--kind", kind).out
    assert said in out
    assert "meta-train" in out or "a part would have 1" in out
    answer = kshot.refused("data", "check", "bundled:nowhere")
    assert f"{kind}/en" in answer
