"""The run's folder: saved and loaded the same, complete or refused, and silent about the data and the machine."""

from __future__ import annotations

import errno
import getpass
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refusal
from decoders import save_decoder
from runs import SMALL, small_suite
from safetensors.torch import load_file, save_file
from tiny import StopAt, law_episodes, needs_tiny, one_thread, same_bits, snapshot, tiny_learner  # noqa: F401
from transformers import AutoModel

from kshot import api
from kshot.deploy.adapted import load_adapted
from kshot.errors import ConfigError, Interrupted, RunError
from kshot.meta import ALGORITHMS, ProtoNet, new_algorithm
from kshot.models import AdapterSpec, BackboneSpec, add_adapter, load_backbone, new_learner
from kshot.models.backbones import locate
from kshot.statistics import mean
from kshot.tasks import EpisodeSampler, EpisodeSpec, ReadOptions, load_tasks
from kshot.training import Run, TrainingConfig, load_run, meta_train, save_run
from kshot.training.callbacks import TensorBoardLogger
from kshot.training.run import CARD, label_digests, read_card

pytestmark = needs_tiny


def trained_run(name: str = "protonet", pretrained: str = "tiny", **card) -> Run:
    """A run after one large step."""
    options = {"inner_steps": 2} if "inner_steps" in ALGORITHMS[name].options() else {}
    algorithm = new_algorithm(name, options)
    episodes, _ = law_episodes()
    result = meta_train(tiny_learner(), algorithm, episodes, [], TrainingConfig(steps=1, lr=1e-2))
    return Run(result.learner, algorithm, name, options, pretrained, card)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "protonet"
    save_run(trained_run(), folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_loaded_run_gives_identical_logits(name, tmp_path):
    run = save_run(trained_run(name), tmp_path / "run").prepared()
    loaded = load_run(tmp_path / "run")
    _, validation = law_episodes()

    assert same_bits(loaded.learner.params, run.learner.params)
    assert loaded.algorithm == run.algorithm
    assert loaded.learner.backbone.spec == replace(run.learner.backbone.spec, name=str(tmp_path / "run" / "backbone"))
    assert (loaded.pretrained, loaded.card, loaded.folder) == ("tiny", run.card, tmp_path / "run")
    assert loaded.fingerprint == run.fingerprint != ""
    for episode in validation:
        logits = []
        for each in (run, loaded):
            encoded = each.learner.encode(episode)
            with torch.no_grad():
                logits.append(
                    each.algorithm.logits(each.learner, each.algorithm.adapt(each.learner, encoded.support), encoded.query)
                )
        assert torch.equal(*logits)


def test_an_algorithms_own_meta_parameters_are_kept(tmp_path):
    run = trained_run()
    run = replace(run, learner=run.learner.with_params(run.learner.params | {"meta.rates": torch.arange(3.0)}))

    save_run(run, tmp_path / "run")

    assert load_run(tmp_path / "run").learner.params["meta.rates"].tolist() == [0.0, 1.0, 2.0]


def test_saving_changes_nothing(tmp_path):
    run = trained_run()
    module, params = snapshot(dict(run.learner.backbone.model.named_parameters())), snapshot(run.learner.params)

    save_run(run, tmp_path / "run")

    assert same_bits(module, dict(run.learner.backbone.model.named_parameters()))
    assert same_bits(params, run.learner.params)


def test_the_saved_backbone_is_a_plain_hugging_face_model(saved):
    run, plain = load_run(saved), new_learner(load_backbone(BackboneSpec(str(saved / "backbone"), max_length=16)))

    assert torch.equal(plain.embed_texts(["a will", "a lease"]), run.learner.embed_texts(["a will", "a lease"]))


def test_the_card_tells_the_mechanism(tmp_path):
    run = save_run(trained_run("maml", config={"x": 1}, metrics={"validation": 0.5}), tmp_path / "run")
    card = json.loads((tmp_path / "run" / CARD).read_text(encoding="utf-8"))

    assert card == run.card == read_card(tmp_path / "run")
    assert card["schema"] == 1
    assert card["kind"] == "classification"
    assert card["algorithm"] == {"name": "maml", "inner_steps": 2}
    assert card["backbone"] == {"name": "tiny", "pooling": "mean", "max_length": 16, "prefix": ""}
    assert (card["config"], card["metrics"]) == ({"x": 1}, {"validation": 0.5})
    assert {"torch", "transformers", "tokenizers", "numpy"} == card["versions"].keys()


def test_a_run_that_is_changed_and_saved_again_has_another_fingerprint(saved, tmp_path):
    run = load_run(saved)
    moved = {name: value + 1 for name, value in run.learner.params.items()}

    again = save_run(replace(run, learner=run.learner.with_params(moved)), tmp_path / "moved")

    assert again.fingerprint != run.fingerprint
    assert load_run(tmp_path / "moved").fingerprint == again.fingerprint
    assert save_run(run, tmp_path / "same").fingerprint == run.fingerprint


def test_what_a_run_was_trained_on_is_recognised_by_digests():
    (task,) = load_tasks("bundled:en/law")
    seen = set(task.labels[:4])
    run = Run(tiny_learner(), ProtoNet(), "protonet", {}, "tiny", {"seen": label_digests(task.with_labels(set(seen)))})

    assert run.seen(task) == seen
    assert run.seen(load_tasks("bundled:en/finance")[0]) == set()


def test_a_backbone_of_a_folder_is_found_again_from_the_run(tmp_path, monkeypatch):
    """Its place is kept as seen from the run, so that both may move together; an absolute path would tell of the machine."""
    model = Path(shutil.copytree(locate("tiny"), tmp_path / "here" / "models" / "legal"))
    monkeypatch.chdir(tmp_path)
    save_run(trained_run(pretrained=os.path.relpath(model)), tmp_path / "here" / "runs" / "law")
    (tmp_path / "here").rename(tmp_path / "there")

    run = load_run(tmp_path / "there" / "runs" / "law")

    assert run.card["backbone"]["name"] == "../../models/legal"
    assert load_backbone(BackboneSpec(run.pretrained)).hidden_size == 128


# --- adapters ---------------------------------------------------------------------------------------------------------------


def run_with(kind: str) -> Run:
    """A run whose adapter has moved, and nothing else but the head."""
    learner = new_learner(add_adapter(tiny_learner().backbone, AdapterSpec(kind, rank=2, tokens=3, alpha=3)))
    algorithm = new_algorithm("maml", {"inner_steps": 1, "adapts": kind})
    episodes, _ = law_episodes()
    result = meta_train(learner, algorithm, episodes, [], TrainingConfig(steps=1, lr=1e-2, trains=kind))
    return Run(result.learner, algorithm, "maml", {"inner_steps": 1, "adapts": kind}, "tiny")


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt"])
def test_a_run_with_an_adapter_comes_back_the_same(kind, tmp_path):
    run = run_with(kind)
    saved = save_run(run, tmp_path / "run").prepared()
    loaded = load_run(tmp_path / "run")

    assert same_bits(loaded.learner.params, run.learner.params)
    assert loaded.learner.backbone.adapter.spec == AdapterSpec(kind, rank=2, tokens=3, alpha=3)
    _, validation = law_episodes()
    logits = []
    for each in (saved, loaded):
        encoded = each.learner.encode(validation[0])
        with torch.no_grad():
            adapted = each.algorithm.adapt(each.learner, encoded.support)
            logits.append(each.algorithm.logits(each.learner, adapted, encoded.query))
    assert torch.equal(*logits)
    assert any(name.startswith("adapter.") for name in load_file(tmp_path / "run" / "head.safetensors"))
    again = save_run(loaded, tmp_path / "again")
    assert again.fingerprint == saved.fingerprint
    spec = replace(loaded.learner.backbone.adapter.spec, alpha=7.0)
    backbone = replace(loaded.learner.backbone, adapter=replace(loaded.learner.backbone.adapter, spec=spec))
    other = replace(loaded, learner=replace(loaded.learner, backbone=backbone))
    assert save_run(other, tmp_path / "other").fingerprint != saved.fingerprint  # the same weights, scaled otherwise


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt"])
def test_the_backbone_of_a_run_with_an_adapter_is_the_plain_one(kind, tmp_path):
    save_run(run_with(kind), tmp_path / "run")

    names = load_file(tmp_path / "run" / "backbone" / "model.safetensors").keys()
    pretrained = new_learner(load_backbone(BackboneSpec("tiny", max_length=16)))
    assert not any(word in name for name in names for word in ("adapter", "base_layer", "lora", "ia3", "prompt"))
    plain = new_learner(load_backbone(BackboneSpec(str(tmp_path / "run" / "backbone"), max_length=16)))
    assert same_bits(plain.params, pretrained.params)
    model, info = AutoModel.from_pretrained(tmp_path / "run" / "backbone", add_pooling_layer=False, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.hidden_size == 128


def test_the_card_tells_the_adapter(tmp_path):
    card = save_run(run_with("lora"), tmp_path / "run").card

    expected = {"kind": "lora", "rank": 2, "alpha": 3, "dropout": 0.0, "targets": None, "init_std": 0.02, "tokens": 3}
    assert json.loads((tmp_path / "run" / CARD).read_text(encoding="utf-8"))["adapter"] == card["adapter"] == expected
    assert "peft" in card["versions"]
    assert save_run(trained_run(), tmp_path / "plain").card["adapter"] is None


def test_targets_of_an_adapter_are_kept(tmp_path):
    learner = new_learner(add_adapter(tiny_learner().backbone, AdapterSpec("lora", targets=("query", "value"))))
    save_run(Run(learner, ProtoNet(), "protonet", {}, "tiny"), tmp_path / "run")

    assert same_bits(load_run(tmp_path / "run").learner.params, learner.params)


def test_a_run_from_before_there_were_adapters(copy):
    run, card = load_run(copy), json.loads((copy / CARD).read_text())
    del card["adapter"]
    (copy / CARD).write_text(json.dumps(card))

    assert same_bits(load_run(copy).learner.params, run.learner.params)
    assert load_run(copy).learner.backbone.adapter is None


def test_a_run_without_the_weights_of_its_adapter(tmp_path):
    save_run(run_with("ia3"), tmp_path)
    head = tmp_path / "head.safetensors"
    kept = {name: value for name, value in load_file(head).items() if not name.endswith("query.ia3_l")}
    save_file(kept, head)

    assert refusal(lambda: load_run(tmp_path), RunError) == (
        f"'{head}' lacks 2 weights of the run's adapter, such as 'adapter.encoder.layer.0.attention.self.query.ia3_l'. "
        "Copy the run whole, or train anew."
    )


def test_training_adds_the_adapter_that_a_selector_names(tmp_path):
    told = []
    options = {**SMALL, "algorithm__name": "maml", "algorithm__inner_steps": 1, "algorithm__adapts": "lora"}
    options |= {"backbone__name": "tiny", "training__steps": 1, "training__validate_every": 0, "adapter__rank": 4}
    run = api.train(small_suite(), tmp_path / "run", tell=told.append, **options)

    assert run.learner.backbone.adapter.spec == AdapterSpec("lora", rank=4)
    assert run.card["config"]["adapter"]["kind"] == "auto"
    assert "Adapter: lora, 18,432 weights in 24 tensor(s)." in told
    task = api.adapt(load_run(tmp_path / "run"), ["a will", "a lease"], ["succession", "tenancy"])
    assert task.save(tmp_path / "task").is_dir()
    first, second = (each.predict(["who inherits?"])[0].probabilities for each in (task, load_adapted(tmp_path / "task")))
    assert first == pytest.approx(second, abs=1e-6)  # products may round by where a tensor lies in memory


def test_training_refuses_two_adapters(tmp_path):
    options = {"algorithm__name": "maml", "algorithm__adapts": "lora", "training__trains": "ia3", "backbone__name": "tiny"}

    assert refusal(lambda: api.train(small_suite(), tmp_path / "run", **options), ConfigError) == (
        "The selectors name the adapters lora and ia3. One kind of adapter at a time is expected."
    )
    assert not (tmp_path / "run").exists()


def test_a_stopped_training_with_an_adapter_goes_on(tmp_path):
    options = {
        **SMALL,
        "backbone__name": "tiny",
        "training__steps": 3,
        "training__validate_every": 0,
        "training__trains": "lora",
    }
    with pytest.raises(Interrupted):
        api.train(small_suite(), tmp_path / "run", callbacks=[StopAt(1)], **options)

    said = refusal(lambda: api.train(small_suite(), tmp_path / "run", resume=True, adapter__rank=2, **options), RunError)
    assert "adapter.rank was 8 and is 2" in said
    resumed = api.train(small_suite(), tmp_path / "run", resume=True, **options)
    assert same_bits(resumed.learner.params, api.train(small_suite(), tmp_path / "whole", **options).learner.params)


def test_a_decoder_in_a_run(tmp_path):
    model = save_decoder(tmp_path / "model", "gpt2")
    learner = new_learner(load_backbone(BackboneSpec(str(model))))
    run = save_run(Run(learner, ProtoNet(), "protonet", {}, str(model)), tmp_path / "run").prepared()

    loaded = load_run(tmp_path / "run")

    assert run.card["backbone"]["pooling"] == loaded.learner.backbone.spec.pooling == "last"
    texts = ["a loan agreement", "", "the tenant"]
    assert torch.equal(loaded.learner.embed_texts(texts), run.learner.embed_texts(texts))


# --- privacy ----------------------------------------------------------------------------------------------------------------

SECRETS = [f"secretword{letter}" for letter in "abcdef"]


def strings(value) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    else:
        yield str(value)


def test_a_run_tells_nothing_of_the_data_and_the_machine(tmp_path, monkeypatch):
    host = "private-host.example.org"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    data = tmp_path / "confidential-client.jsonl"
    rows = [{"text": f"{word} sentence {i}", "label": f"{word}-label"} for word in SECRETS for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = load_tasks(data)
    model = Path(shutil.copytree(locate("tiny"), tmp_path / "models" / "legal"))
    learner = new_learner(load_backbone(BackboneSpec(str(model), max_length=16)))
    learner = learner.with_stores([tasks[0].corpus])
    episodes = EpisodeSampler(tasks, EpisodeSpec(3, 1, 2))
    out = tmp_path / "runs" / "law"
    config = TrainingConfig(steps=3, validate_every=1)
    arguments = (learner, ProtoNet(), episodes, episodes[50:53], config, out)
    meta_train(*arguments, callbacks=[TensorBoardLogger(out / "tensorboard"), StopAt(1)])
    result = meta_train(*arguments, callbacks=[TensorBoardLogger(out / "tensorboard")], resume=True)
    card = {"seen": label_digests(tasks[0]), "training": {"history": result.history}}

    save_run(Run(result.learner, ProtoNet(), "protonet", {}, str(model), card), out)

    private = [*SECRETS, "confidential-client", host, str(tmp_path), str(Path.cwd()), str(Path.home()) + "/"]
    files = [file for file in out.rglob("*") if file.is_file()]
    assert len(files) > 7
    for file in files:
        content = file.read_bytes()
        for word in private:
            assert word not in str(file.relative_to(out)), file
            assert word.encode() not in content, (file, word)
    told = list(strings(json.loads((out / CARD).read_text(encoding="utf-8"))))
    assert not any(word.startswith("/") or getpass.getuser() == word for word in told)


# --- refusals ---------------------------------------------------------------------------------------------------------------


def test_no_run(tmp_path):
    folder = tmp_path / "absent"

    assert refusal(lambda: load_run(folder), RunError) == (
        f"No run '{folder}'. A folder that 'kshot train' wrote is expected. Check the path."
    )


def test_a_folder_that_is_no_run(tmp_path):
    assert refusal(lambda: load_run(tmp_path), RunError) == (
        f"'{tmp_path}' is not a run: it has no kshot.json. A folder that 'kshot train' wrote is expected."
    )


def test_a_run_that_is_not_finished(tmp_path):
    episodes, validation = law_episodes()
    meta_train(tiny_learner(), ProtoNet(), episodes, validation, TrainingConfig(steps=3), tmp_path, callbacks=[StopAt(1)])

    assert refusal(lambda: load_run(tmp_path), RunError) == (
        f"The run '{tmp_path}' is not finished: it has checkpoints and no kshot.json. "
        "Repeat its 'kshot train' command with --resume."
    )


def test_a_run_of_a_newer_schema(copy):
    from importlib.metadata import version

    card = json.loads((copy / CARD).read_text()) | {"schema": 7, "kshot": "9.9"}
    (copy / CARD).write_text(json.dumps(card))

    assert refusal(lambda: load_run(copy), RunError) == (
        f"The run '{copy}' has schema 7, written by kshot 9.9. This is kshot {version('kshot')}, which reads up to schema 1. "
        "Upgrade it: pip install -U kshot"
    )


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": "x"}', "null"])
def test_a_damaged_card(copy, content):
    (copy / CARD).write_text(content)

    assert refusal(lambda: load_run(copy), RunError).startswith(f"'{copy / CARD}' is damaged: ")


@pytest.mark.parametrize("missing", ["backbone", "head.safetensors"])
def test_an_incomplete_run(copy, missing):
    shutil.rmtree(copy / missing) if (copy / missing).is_dir() else (copy / missing).unlink()

    assert refusal(lambda: load_run(copy), RunError) == (
        f"The run '{copy}' is incomplete: it has no {missing}. Copy it whole, or train anew."
    )


def test_a_damaged_head(copy):
    path = copy / "head.safetensors"
    path.write_bytes(path.read_bytes()[:40])

    sentence = refusal(lambda: load_run(copy), RunError)
    assert sentence.startswith(f"'{path}' is damaged: ")
    assert sentence.endswith(". Copy the run whole, or train anew.")


def test_a_disk_that_is_full_leaves_no_run_that_looks_complete(copy, monkeypatch):
    run = load_run(copy)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kshot.training.run.save_file", full)

    assert refusal(lambda: save_run(run, copy), RunError) == (
        f"Cannot write to '{copy}': there is no space left on the disk. Free some space or choose another folder."
    )
    assert not (copy / CARD).exists()


def test_the_head_holds_what_is_not_the_backbone(saved):
    assert load_file(saved / "head.safetensors").keys() == {"head.weight", "head.bias", "meta.scale"}


# --- statistics of what is told ---------------------------------------------------------------------------------------------


def test_means_and_their_intervals_by_hand():
    two = mean([0.0, 1.0])
    assert (two.value, two.count) == (0.5, 2)
    assert two.ci95 == pytest.approx(12.7062 * 0.5, rel=1e-4)  # t(0.975, 1) * sd / sqrt(2), with sd = sqrt(1/2)
    assert (mean([0.25]).percent(), mean([]).count) == ("25.0", 0)
    assert mean([0.5] * 9).percent() == "50.0 ± 0.0"


def test_equal_labels_of_different_tasks_in_one_file_are_not_taken_for_each_other(tmp_path):
    rows = [
        {"text": f"{d} {y} {i}", "label": y, "domain": d} for d in ("books", "music") for y in ("good", "bad") for i in range(3)
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    books, music = load_tasks(path, ReadOptions(task_column="domain"))
    run = Run(tiny_learner(), ProtoNet(), "protonet", {}, "tiny", {"seen": label_digests(books)})
    assert run.seen(books) == {"good", "bad"}
    assert run.seen(music) == set()
    assert run.seen(replace(books, name="another name")) == {"good", "bad"}
