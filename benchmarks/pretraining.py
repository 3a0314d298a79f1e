"""Tokens a second of `kshot pretrain` against Hugging Face's Trainer: the same model, texts, batch of texts and optimiser.

    python benchmarks/pretraining.py TEXTS --json benchmarks/results/pretraining.json

Masked words of an encoder of MiniLM's shape, from a random output layer; batches of the same number of texts, padded to their
longest by the Trainer's collator, packed by kshot. Interleaved rounds in one process; perplexities are of held-out texts.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from kshot.files import write_json
from kshot.models import BackboneSpec, Learner, load_backbone, new_learner
from kshot.models.backbones import locate
from kshot.models.kinds import KINDS
from kshot.models.precision import choose_matmul_route, default_matmul_route
from kshot.tasks.readers import read_records
from kshot.training.pretraining import PretrainingConfig, perplexity, pretrain

LENGTH = 128
TEXTS = 32  # a step
LR = 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="a file with a text a row")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    column = "text"
    texts = [str(record[column]) for _, record in read_records(asked.texts)][: asked.steps * TEXTS + 200]
    held, texts = texts[:200], texts[200:]
    with tempfile.TemporaryDirectory() as name:
        model = _model(Path(name) / "model")
        rows = {who: list[dict[str, float]]() for who in ("trainer", "kshot")}
        for _ in range(asked.rounds):
            default_matmul_route()
            rows["trainer"].append(by_trainer(model, texts, asked.steps, held))
            choose_matmul_route()
            rows["kshot"].append(by_kshot(model, texts, asked.steps, held))
            print(
                {who: {key: round(value, 2) for key, value in listed[-1].items()} for who, listed in rows.items()}, flush=True
            )
    ratios = [k["tokens_per_second"] / t["tokens_per_second"] for k, t in zip(rows["kshot"], rows["trainer"], strict=True)]
    result: dict[str, Any] = {"schema": 1, "date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    result |= {"versions": {name: version(name) for name in ("kshot", "torch", "transformers")}, "seed": 0, "rows": rows}
    result |= {"length": LENGTH, "texts_a_step": TEXTS, "steps": asked.steps, "threads": torch.get_num_threads()}
    result |= {"ratio_median": statistics.median(ratios), "ratios": ratios}
    write_json(asked.json, result)
    print(f"kshot / Trainer, tokens a second: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def _model(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(locate("minilm"))
    config = BertConfig.from_pretrained(locate("minilm"))
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    model.bert.load_state_dict(load_backbone(BackboneSpec("minilm")).model.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_trainer(model: Path, texts: list[str], steps: int, held: list[str]) -> dict[str, float]:
    """Return tokens a second and the held-out perplexity of Hugging Face's Trainer."""
    tokenizer, own = AutoTokenizer.from_pretrained(model), BertForMaskedLM.from_pretrained(model)
    encoded = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=TEXTS, max_steps=steps, learning_rate=LR, weight_decay=0.01, warmup_steps=1,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
        )  # fmt: skip
        trainer = Trainer(own, arguments, DataCollatorForLanguageModeling(tokenizer, whole_word_mask=False), encoded)
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    tokens = sum(len(row["input_ids"]) for row in encoded[: steps * TEXTS])
    learner = _learner(model)
    params = {f"backbone.{name}": value.detach() for name, value in own.named_parameters()}
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "perplexity": perplexity(learner.with_params(params), held),
    }


def by_kshot(model: Path, texts: list[str], steps: int, held: list[str]) -> dict[str, float]:
    """Return the same of kshot, at about as many tokens a step."""
    learner = _learner(model)
    tokens = sum(len(ids) for ids in learner.backbone.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"])
    config = PretrainingConfig(
        steps=steps, tokens=int(tokens * TEXTS / len(texts)), lr=LR, held_out=0.0, checkpoint_every=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        trained, history = pretrain(learner, lambda: iter(texts), Path(folder) / "out", config)
        seconds = time.perf_counter() - begin
    return {
        "tokens_per_second": sum(entry["tokens"] for entry in history) / seconds,
        "seconds": seconds,
        "perplexity": perplexity(trained, held),
    }


def _learner(model: Path) -> Learner:
    learner = new_learner(load_backbone(BackboneSpec(str(model), max_length=LENGTH), "mlm"), kind=KINDS["mlm"].learner)
    return replace(learner, dropout=True)


if __name__ == "__main__":
    main()
