"""Pre-training: masked words of encoders, and texts end to end of decoders; resumed, stopped, refused, and used afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refusal
from decoders import WORDS, save_decoder
from runs import Shell, in_process, small_suite  # noqa: F401
from tiny import StopAt, needs_tiny, one_thread  # noqa: F401

from kshot import api
from kshot.config import load_config
from kshot.errors import BackboneError, ConfigError, DataError, Interrupted, RunError
from kshot.models import BackboneSpec, load_backbone, new_learner
from kshot.models.kinds import KINDS, masking
from kshot.models.kinds.masking import SHARE, word_places
from kshot.pretrain import pretrain
from kshot.tasks import load_tasks
from kshot.training.checkpoint import load_params
from kshot.training.pretraining import PretrainingConfig

MLM = KINDS["mlm"]
SMALL = {"backbone__name": "tiny", "kind": "mlm", "backbone__max_length": 32}
SMALL |= {
    f"pretraining__{name}": value for name, value in {"steps": 6, "tokens": 200, "held_out": 0.1, "validate_every": 3}.items()
}


def masked_learner(max_length: int = 32):
    return new_learner(load_backbone(BackboneSpec("tiny", max_length=max_length), "mlm"), kind=MLM.learner)


def law_texts() -> list[str]:
    (task,) = load_tasks("bundled:en/law")
    return task.corpus.texts(task.all_rows())


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(law_texts()[:100]), encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in law_texts()[100:]), encoding="utf-8")
    return folder


@needs_tiny
def test_the_loss_is_hugging_faces_and_packed_or_not_it_is_the_same():
    learner = masked_learner()
    batch = learner.masked(law_texts()[:8])
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.spans.rows, batch.spans.offsets] = batch.labels
    theirs = learner.backbone.model(input_ids=batch.input_ids, attention_mask=batch.mask, labels=labels).loss
    torch.testing.assert_close(learner.loss(learner.params, batch), theirs, rtol=1e-4, atol=1e-5)
    plain = replace(learner, fast=False)
    torch.testing.assert_close(plain.loss(plain.params, plain.masked(law_texts()[:8])), theirs, rtol=1e-4, atol=1e-5)


@needs_tiny
def test_whole_words_are_masked_about_fifteen_in_a_hundred_and_the_same_ones_for_a_seed():
    learner = masked_learner(128)
    texts = law_texts()[:120]
    batch, again, other = learner.masked(texts, 1), learner.masked(texts, 1), learner.masked(texts, 2)
    assert torch.equal(batch.input_ids, again.input_ids)
    assert not torch.equal(batch.input_ids, other.input_ids)
    tokenizer = learner.backbone.tokenizer
    originals, _ = tokenizer(texts)["input_ids"], None
    words = sum(len(ids) - 2 for ids in originals)
    assert abs(len(batch) / words - SHARE) < 0.03
    hidden = batch.input_ids[batch.spans.rows, batch.spans.offsets]
    shares = [float((hidden == tokenizer.mask_token_id).double().mean()), float((hidden == batch.labels).double().mean())]
    assert shares == [pytest.approx(0.8, abs=0.08), pytest.approx(0.1, abs=0.06)]
    chosen = set(zip(batch.spans.rows.tolist(), batch.spans.offsets.tolist(), strict=True))
    for row, ids in enumerate(originals):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        for at in range(1, len(pieces)):
            if pieces[at].startswith("##"):
                assert ((row, at) in chosen) is ((row, at - 1) in chosen)


def test_chinese_words_are_those_of_the_segmenter_and_characters_without_one(monkeypatch):
    monkeypatch.setattr(masking, "_segmenter", lambda: lambda text: ["我", "想", "退款", " now", "。"])
    text = "我想退款 now。"
    assert [text[a:b] for a, b in word_places(text)] == ["我", "想", "退款", "now", "。"]
    monkeypatch.setattr(masking, "_segmenter", lambda: None)
    assert [text[a:b] for a, b in word_places(text)] == ["我", "想", "退", "款", "now", "。"]


@needs_tiny
def test_an_encoder_learns_its_texts_and_is_a_backbone_afterwards(corpus, tmp_path):
    found = pretrain(str(corpus), tmp_path / "model", **{**SMALL, "pretraining__steps": 40, "pretraining__lr": 5e-4})
    before, after = found["perplexity"]
    assert after < 0.8 * before
    run = api.train(
        small_suite(), tmp_path / "run", backbone__name=str(tmp_path / "model"), training__steps=1,
        training__validate_every=0, training__calibration_episodes=0, episodes__ways=2, episodes__shots=1, episodes__queries=1,
    )  # fmt: skip
    start = load_backbone(BackboneSpec("tiny")).parameters()
    name = next(n for n in start if n.endswith("layer.0.output.dense.weight"))
    assert not torch.allclose(run.learner.params[name], start[name], atol=1e-5)


def test_a_decoder_reads_texts_end_to_end(tmp_path):
    folder = save_decoder(tmp_path / "decoder", "llama")
    (tmp_path / "a.txt").write_text("\n".join(" ".join(WORDS[i % 5 : i % 5 + 5]) for i in range(60)))
    options = {**SMALL, "backbone__name": str(folder), "kind": "lm", "backbone__max_length": 24}
    options |= {"pretraining__steps": 60, "pretraining__lr": 1e-2, "pretraining__held_out": 0.0}
    found = pretrain(str(tmp_path / "a.txt"), tmp_path / "model", **options)
    assert found["perplexity"] == (None, None)
    history = json.loads((tmp_path / "model" / "pretraining.json").read_text())["history"]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    learner = new_learner(load_backbone(BackboneSpec(str(tmp_path / "model"), max_length=24), "lm"), kind=KINDS["lm"].learner)
    batch = learner.rows_of(["the tenant pays", "a loan"] * 10)
    assert batch.mask.all()
    assert len(batch) == batch.mask.numel() - len(batch.mask)


@needs_tiny
def test_a_stopped_training_goes_on_as_if_it_had_not_been(corpus, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(str(corpus), whole, **SMALL)
    with pytest.raises(Interrupted, match="Stopped after step 4 of 6"):
        pretrain(str(corpus), parts, callbacks=[StopAt(4)], **SMALL)
    said = refusal(lambda: pretrain(str(corpus), parts, resume=True, **{**SMALL, "pretraining__lr": 1e-3}), RunError)
    assert "pretraining.lr was 5e-05 and is 0.001" in said
    pretrain(str(corpus), parts, resume=True, **SMALL)
    one, two = (load_params(folder / "checkpoints" / "last.safetensors") for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("params/"))
    assert "is finished: there is nothing to resume" in refusal(
        lambda: pretrain(str(corpus), parts, resume=True, **SMALL), RunError
    )


@needs_tiny
def test_training_stops_where_held_out_texts_get_no_better(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("kshot.training.pretraining.perplexity", lambda learner, texts: 10.0)
    options = {**SMALL, "pretraining__steps": 50, "pretraining__validate_every": 1, "pretraining__patience": 2}
    pretrain(str(corpus), tmp_path / "model", **options)
    history = json.loads((tmp_path / "model" / "pretraining.json").read_text())["history"]
    assert len(history) == 3


@needs_tiny
def test_held_out_texts_are_never_learned_from(corpus, tmp_path, monkeypatch):
    learned, held = set[str](), set[str]()
    masked = masking.MaskedLearner.masked

    def watched(self, texts, seed=0):
        (learned if torch.is_grad_enabled() else held).update(texts)
        return masked(self, texts, seed)

    monkeypatch.setattr(masking.MaskedLearner, "masked", watched)
    pretrain(str(corpus), tmp_path / "model", **{**SMALL, "pretraining__steps": 20, "pretraining__tokens": 400})
    assert len(held) > 5
    assert len(learned) > 100
    assert not held & learned


@needs_tiny
def test_the_command(corpus, tmp_path, kshot):
    out = tmp_path / "model"
    flags = ("--backbone", "tiny", "--kind", "mlm", "--steps", 3, "--tokens", 100, "--held-out", 0.1)
    said = kshot.done("pretrain", corpus, *flags, "--out", out).out
    assert "Perplexity of held-out texts: " in said
    assert f"The model is {out}" in said
    assert "exists and is not empty. Choose another, go on with --resume" in kshot.refused(
        "pretrain", corpus, *flags, "--out", out
    )
    kshot.done("pretrain", corpus, *flags, "--out", out, "--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.doc").write_text("x")
    said = kshot.refused("pretrain", corpus, *flags, "--out", tmp_path / "other", "--overwrite")
    assert "is not a pre-training of kshot, so --overwrite leaves it alone" in said


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (
            {"kind": "tagging"},
            ConfigError,
            "--kind is 'tagging'. To pre-train, mlm (an encoder) or lm (a decoder) is expected.",
        ),
        ({"pretraining__steps": 0}, ConfigError, "pretraining.steps is 0. At least 1 is expected."),
        ({"pretraining__held_out": 1.0}, ConfigError, "pretraining.held_out is 1.0. A share of at least 0 and below 1"),
        ({"kind": "lm"}, BackboneError, "The backbone 'tiny' (bert) does not generate text."),
    ],
)
def test_wrong_settings_are_refused(corpus, tmp_path, options, kind, sentence):
    assert sentence in refusal(lambda: pretrain(str(corpus), tmp_path / "model", **{**SMALL, **options}), kind)
    assert not (tmp_path / "model").exists()


def test_a_corpus_without_texts_is_refused(tmp_path):
    assert "No such file or folder" in refusal(lambda: pretrain(str(tmp_path / "none"), tmp_path / "model", **SMALL), DataError)
    (tmp_path / "empty").mkdir()
    assert "holds no data file" in refusal(lambda: pretrain(str(tmp_path / "empty"), tmp_path / "model", **SMALL), DataError)


def test_a_decoder_has_no_masked_words(tmp_path):
    folder = save_decoder(tmp_path / "decoder", "llama")
    said = refusal(lambda: load_backbone(BackboneSpec(str(folder)), "mlm"), BackboneError)
    assert "(llama) is no masked language model that kshot can go on training." in said


def test_the_defaults_are_in_the_configuration():
    assert load_config(overrides={"pretraining.steps": 7}).pretraining == PretrainingConfig(steps=7)
