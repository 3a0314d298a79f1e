"""Kinds without labels: targets for sources, and plain texts, with tiny random decoders and an encoder-decoder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refusal
from decoders import WORDS, double_precision, save_decoder  # noqa: F401
from runs import Shell, in_process  # noqa: F401
from tiny import finite_difference_error, gradient_of, one_thread, snapshot  # noqa: F401
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from kshot import api
from kshot.deploy import adapt, load_adapted
from kshot.errors import BackboneError, ConfigError, DataError
from kshot.meta import new_algorithm
from kshot.models import AdapterSpec, BackboneSpec, Learner, add_adapter, load_backbone, new_learner
from kshot.models.batch import join
from kshot.models.kinds import KINDS
from kshot.models.kinds.generation import Decoding
from kshot.tasks import EpisodeSpec, Examples, load_tasks

SEQ2SEQ, LM = KINDS["seq2seq"], KINDS["lm"]
EXAMPLES = Examples(("a loan", "how do i appeal"), (0, 0), annotations=("the tenant pays", "the agreement"))


def sentences(count: int = 12) -> list[str]:
    return [" ".join(WORDS[(i + j * (1 + i % 3)) % len(WORDS)] for j in range(5)) for i in range(count)]


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request, tmp_path) -> Path:
    return save_decoder(tmp_path / request.param, request.param)


def saved_t5(folder: Path) -> Path:
    save_decoder(folder, "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<unk>"
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learner_of(folder: Path, kind=SEQ2SEQ, adapter: str = "none", double: bool = False) -> Learner:
    backbone = load_backbone(BackboneSpec(str(folder), max_length=24), "lm")
    if double:
        backbone.model.double()
    return new_learner(add_adapter(backbone, AdapterSpec(adapter, rank=2)), kind=kind.learner)


def write(path: Path, rows) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


# --- what is predicted ------------------------------------------------------------------------------------------------------


def test_the_loss_is_hugging_faces_on_the_targets_tokens(decoder):
    learner = learner_of(decoder)
    batch = learner.batch(EXAMPLES, ())
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.spans.rows, batch.spans.offsets + 1] = batch.labels
    theirs = learner.backbone.model(input_ids=batch.input_ids, attention_mask=batch.mask, labels=labels).loss
    torch.testing.assert_close(learner.loss(learner.params, batch), theirs)
    tokenizer = learner.backbone.tokenizer
    assert tokenizer.decode(batch.labels) == "the tenant pays</s> the agreement</s>".replace("</s>", " </s>")
    assert learner.score(learner.logits(learner.params, batch), batch) == pytest.approx(math.exp(-float(theirs)), rel=1e-5)


def test_of_plain_texts_every_token_is_predicted_and_long_ones_take_several_rows(decoder):
    learner = learner_of(decoder, LM)
    short = learner.batch(Examples(("the tenant pays",), (0,)), ())
    assert len(short.labels) == 4  # and the end
    long = learner.batch(Examples((" ".join(sentences(9)),), (0,)), ())
    assert len(long.input_ids) == 2
    assert len(long.labels) == 46
    assert long.input_ids.shape[1] <= 24


def test_the_loss_of_an_encoder_decoder_is_hugging_faces(tmp_path):
    learner = learner_of(saved_t5(tmp_path / "t5"))
    batch = learner.batch(EXAMPLES, ())
    labels = torch.full_like(batch.decoder_ids, -100)
    labels[batch.spans.rows, batch.spans.offsets] = batch.labels
    theirs = learner.backbone.model(input_ids=batch.input_ids, attention_mask=batch.mask, labels=labels).loss
    torch.testing.assert_close(learner.loss(learner.params, batch), theirs)


@pytest.mark.parametrize("made", [lambda path: save_decoder(path / "m", "llama"), lambda path: saved_t5(path / "m")])
def test_two_batches_are_joined(tmp_path, made):
    learner = learner_of(made(tmp_path))
    pairs = zip(EXAMPLES.texts, EXAMPLES.annotations, strict=True)
    one, other = (learner.batch(Examples((text,), (0,), annotations=(target,)), ()) for text, target in pairs)
    both, whole = join(one, other), learner.batch(EXAMPLES, ())
    torch.testing.assert_close(learner.loss(learner.params, both), learner.loss(learner.params, whole))


@pytest.mark.parametrize("name", ["maml", "fomaml", "metasgd", "maml++", "imaml", "reptile"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_meta_gradients_are_the_derivatives_of_the_meta_loss(tmp_path, name, adapter, double_precision):  # noqa: F811
    learner = learner_of(save_decoder(tmp_path / "m", "llama"), adapter=adapter, double=True)
    learner.backbone.use_attention(twice_differentiable=True)
    options = {"inner_steps": 2, "inner_lr": 0.05} | ({"adapts": "lora"} if adapter == "lora" else {})
    algorithm = new_algorithm(name, options)
    own = {n: v.double().requires_grad_() for n, v in algorithm.meta_parameters(learner).items()}
    learner = learner.with_params(learner.params | own)
    episode = learner.encode(_episode())
    chosen = [
        n
        for n in learner.params
        if ("lora" in n if adapter == "lora" else n.endswith(("up_proj.weight", "embed_tokens.weight")))
    ]
    at = {n: learner.params[n] for n in chosen[:4]}

    def loss(params):
        return algorithm.meta_loss(learner.with_params(learner.params | params), [episode])[0]

    gradient = gradient_of(loss(at), at)
    if name in ("fomaml", "reptile", "imaml"):  # which leave something out, or hold the end constant
        assert all(torch.isfinite(value).all() for value in gradient.values())
        assert max(float(value.abs().max()) for value in gradient.values()) > 0
    else:
        assert finite_difference_error(loss, snapshot(at), gradient) < 1e-6


def _episode():
    from kshot.tasks import Episode

    query = Examples(("the loan", "a tenant"), (0, 0), annotations=("i appeal", "how pays"))
    return Episode("t", "", (), EXAMPLES, query)


def test_steps_on_a_support_set_make_it_likelier(decoder):
    learner = learner_of(decoder)
    batch, algorithm = learner.batch(EXAMPLES, ()), new_algorithm("fomaml", {"inner_steps": 20, "inner_lr": 0.1})
    with torch.no_grad():
        adapted = algorithm.adapt(learner, batch)
        before, after = (
            learner.score(learner.logits(params, batch), batch) for params in (learner.params, learner.params | adapted)
        )
    assert after > 2 * before


def test_what_was_learned_by_heart_is_generated_and_the_model_is_as_it_was(decoder):
    learner = learner_of(decoder)
    batch, algorithm = learner.batch(EXAMPLES, ()), new_algorithm("fomaml", {"inner_steps": 300, "inner_lr": 0.1})
    before = snapshot(dict(learner.backbone.model.named_parameters()))
    with torch.no_grad():
        adapted = algorithm.adapt(learner, batch)
    for how in (Decoding(8), Decoding(8, beams=2)):
        assert learner.generate(learner.params | adapted, EXAMPLES.texts, how) == list(EXAMPLES.annotations)
    drawn = [learner.generate(learner.params, EXAMPLES.texts, Decoding(8, temperature=2.0, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(torch.equal(value, before[name]) for name, value in learner.backbone.model.named_parameters())


# --- reading ----------------------------------------------------------------------------------------------------------------


def test_sources_and_targets_and_the_turns_of_a_chat_are_read(tmp_path):
    pairs = write(tmp_path / "a.jsonl", [{"dialogue": "hi", "summary": "a greeting"}] * 2)
    (task,) = load_tasks(pairs, None, SEQ2SEQ.schema)
    assert (task.labels, len(task), task.corpus.annotations([0])) == ((), 2, ["a greeting"])
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "bye"}]
    (chat,) = load_tasks(write(tmp_path / "b.jsonl", [{"messages": turns}]), None, SEQ2SEQ.schema)
    assert chat.corpus.text(0) == "user: hi\nassistant: hello"
    assert chat.corpus.annotations([0]) == ["bye"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"source": "a", "target": ""}, "line 1: no target in column 'target'."),
        ({"source": "a"}, "no source and target found. The columns are: source;"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "line 1: 'messages' holds no list of two turns or more."),
    ],
)
def test_what_has_no_target_is_refused(tmp_path, row, sentence):
    path = write(tmp_path / "a.jsonl", [row])
    assert sentence in refusal(lambda: load_tasks(path, None, SEQ2SEQ.schema), DataError)


def test_an_empty_document_and_too_few_texts_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a loan"}, {"text": " "}])
    assert "line 2: no text in column 'text'." in refusal(lambda: load_tasks(path, None, LM.schema), DataError)
    (task,) = load_tasks(write(tmp_path / "b.jsonl", [{"text": "a loan"}] * 3), None, LM.schema)
    said = refusal(lambda: LM.schema.episodes([task], EpisodeSpec(2, 1, 1)), DataError)
    assert "The task 'b' has 1 different texts. 1 shots and 1 queries need 2." in said


def test_a_target_longer_than_the_model_is_refused(decoder):
    long = replace(EXAMPLES, annotations=(" ".join(sentences(6)), "the loan"))
    said = refusal(lambda: learner_of(decoder).batch(long, ()), DataError)
    assert "has 31 tokens, and the model takes 24 with its source." in said


def test_an_encoder_does_not_generate():
    said = refusal(lambda: load_backbone(BackboneSpec("tiny"), "lm"), BackboneError)
    assert "The backbone 'tiny' (bert) does not generate text. A causal decoder such as SmolLM2" in said


@pytest.mark.parametrize("name", ["protonet", "anil", "protomaml", "cavia", "r2d2"])
def test_algorithms_that_tell_labels_apart_are_refused(tmp_path, decoder, name):
    folder = tmp_path / "data"
    folder.mkdir()
    for domain in ("x", "y", "z"):
        write(folder / f"{domain}.jsonl", [{"text": f"{domain} {text}"} for text in sentences()])
    suite = api.load_suite(str(folder), "task", kind="lm", split__ratios=(1.0, 0.0, 0.0))
    said = refusal(lambda: api.train(suite, tmp_path / "run", algorithm__name=name, backbone__name=str(decoder)), ConfigError)
    assert f"The algorithm '{name}' tells labels apart, and tasks of the kind lm have none." in said
    assert "For these there are: maml, fomaml, maml++, metasgd, imaml, reptile." in said


# --- the whole job ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["seq2seq", "lm"])
def test_a_run_is_trained_measured_adapted_and_asked(tmp_path, kshot, kind):
    model, data = save_decoder(tmp_path / "model", "llama"), tmp_path / "data"
    data.mkdir()
    for domain in range(4):
        texts = sentences(10)[domain:]
        rows = [{"source": text, "target": text.split()[0]} if kind == "seq2seq" else {"text": text} for text in texts]
        write(data / f"domain{domain}.jsonl", rows)
    given = ("--tasks", data, "--kind", kind, "--split", "task", "--split-ratios", "1,0,1", "--shots", 2, "--queries", 2)
    run = tmp_path / "run"
    kshot.done(
        "train", *given, "--algorithm", "fomaml", "--backbone", model, "--max-length", 24, "--steps", 2, "--out", run,
        "--no-tensorboard", "--set", "training.validate_every=0", "--set", "algorithm.inner_steps=2",
        "--set", "algorithm.adapts=lora", "--set", "training.trains=lora",
    )  # fmt: skip
    kshot.done("evaluate", run, *given, "--episodes", 3, "--out", tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["protocol"]["metric"] == "token likelihood"
    assert {row["method"] for row in report["rows"]} == {"fomaml (meta-trained)", "untouched", "fine-tuning"}
    assert all(row["perplexity"] > 1 and row["bits_per_byte"] > 0 for row in report["rows"])
    assert "token likelihood" in (tmp_path / "report" / "report.html").read_text().lower()
    kshot.done("adapt", run, data / "domain0.jsonl", "--out", tmp_path / "task")
    asked = json.dumps({"source": "a loan"}) if kind == "seq2seq" else "a loan"
    answer = json.loads(kshot.done("predict", tmp_path / "task", "--max-tokens", 4, stdin=asked).out)
    assert set(answer) == ({"source", "target"} if kind == "seq2seq" else {"text", "perplexity", "bits_per_byte"})
    again = load_adapted(tmp_path / "task")
    examples = again.support
    fresh = adapt(again.run, examples.texts, examples.annotations or None)
    assert all(torch.equal(fresh.adapted[name], again.adapted[name]) for name in again.adapted)
