"""Self-supervised pre-training: a language model goes on learning from a user's texts, before or after meta-training.

Texts stream from files of any size, in an order that depends on the seed alone; a share of them, told by their hash, is held
out. A decoder reads texts end to end in full rows; an encoder's rows need no padding anyway (`kshot.models.packed`), and its
output layer sees masked words alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot.errors import ConfigError, DataError, Interrupted, TrainingError
from kshot.files import disk_errors, write_json
from kshot.models import Learner
from kshot.models.batch import Batch
from kshot.models.kinds.generation import LanguageLearner
from kshot.models.kinds.masking import MaskedLearner
from kshot.tasks.corpus import text_hash
from kshot.training.allocator import kept_memory
from kshot.training.callbacks import Callback, History
from kshot.training.checkpoint import LAST, State, restore_checkpoint, save_checkpoint
from kshot.training.config import TrainingConfig
from kshot.training.interrupt import stop_requests
from kshot.training.run import save_backbone

CARD = "pretraining.json"
_SHUFFLED = 4_096  # texts that are shuffled together
_HASHES = 1 << 32


@dataclass(frozen=True)
class PretrainingConfig:
    """How a language model goes on learning.

    Args:
        steps: updates.
        tokens: about so many a step.
        lr, warmup, schedule, clip, weight_decay: see `TrainingConfig`.
        held_out: the share of texts that perplexity is measured on and that is never learned from.
        validate_every: steps between measurements; 0 for never.
        validation_texts: the most held-out texts to measure.
        patience: measurements without a better perplexity after which training stops; 0 for never.
        checkpoint_every: steps between checkpoints.
        seed: of the order of texts, of what is masked, and of dropout.
    """

    steps: int = 1_000
    tokens: int = 4_096
    lr: float = 5e-5
    warmup: float = 0.05
    schedule: str = "linear"
    clip: float = 1.0
    weight_decay: float = 0.01
    held_out: float = 0.02
    validate_every: int = 100
    validation_texts: int = 200
    patience: int = 3
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pretraining.{name} is {getattr(self, name)}.", "At least 1 is expected.")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"pretraining.held_out is {self.held_out}.", "A share of at least 0 and below 1 is expected.")
        self.outer()

    def outer(self) -> TrainingConfig:
        """Return the rates as those of an outer loop."""
        return TrainingConfig(
            self.steps, lr=self.lr, warmup=self.warmup, schedule=self.schedule, clip=self.clip, weight_decay=self.weight_decay
        )


Texts = Callable[[], Iterator[str]]
"""Starts a corpus from its beginning."""


def pretrain(
    learner: Learner,
    texts: Texts,
    out: Path,
    config: PretrainingConfig,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    record: dict[str, Any] | None = None,
) -> tuple[Learner, History]:
    """Go on training a language model, and write it as a Hugging Face model into a folder.

    A stopped training goes on where it was: step t has the same texts, masked words and dropout, interrupted or not.

    Args:
        learner: of the kind ``mlm`` or ``lm``; it is not changed.
        texts: the corpus, any size.
        out: where to write.
        config: the training.
        callbacks: who is told of every step.
        resume: go on from the folder's last checkpoint.
        record: what identifies this training beside its configuration.

    Raises:
        DataError: the corpus has no text to learn from.
        TrainingError: the loss is not a finite number.
        RunError: ``resume`` without a checkpoint of the same configuration.
        Interrupted: stopped by Ctrl-C; a checkpoint was written.
    """
    params = {name: value.detach().clone().requires_grad_() for name, value in learner.params.items()}
    learner, outer = replace(learner, params=params), config.outer()
    decayed, others = ([v for v in params.values() if (v.dim() > 1) is wide] for wide in (True, False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    identity = {"pretraining": asdict(config), **(record or {})}
    state, history, held = State(), History(), list(islice(_held_out(texts, config), config.validation_texts))
    if resume:
        state, history = restore_checkpoint(out / LAST, params, optimizer, identity)
    batches = _batches(learner, texts, config, state.step)
    with ExitStack() as stack:
        for callback in callbacks:
            callback.start(config.steps, state.step)
            stack.callback(callback.end)
        stop = stack.enter_context(stop_requests())
        stack.enter_context(kept_memory(learner.fast and learner.device.type == "cpu"))
        while (running := state.step < config.steps and not state.stopped) and not stop.is_set():
            entry = _step(learner, next(batches), optimizer, outer, state.step, config.seed)
            state.step += 1
            history.append(entry)
            last = state.step == config.steps
            if held and config.validate_every and (last or state.step % config.validate_every == 0):
                _validate(learner, held, entry, state, config)
            if last or state.stopped or state.step % config.checkpoint_every == 0:
                save_checkpoint(out / LAST, params, optimizer, state, history, identity)
            for callback in callbacks:
                callback.step(entry, 1)
        if running:
            save_checkpoint(out / LAST, params, optimizer, state, history, identity)
    if running:
        raise Interrupted(
            f"Stopped after step {state.step} of {config.steps}. The checkpoint is in '{out}': "
            "repeat the command with --resume to go on."
        )
    with disk_errors(out):
        save_backbone(learner, out)  # the card comes last
        write_json(out / CARD, {"config": asdict(config), "kind": learner.kind, "history": history})
    return learner, history


def _step(
    learner: Learner, batch: Batch, optimizer: torch.optim.Optimizer, outer: TrainingConfig, step: int, seed: int
) -> dict[str, float]:
    begin = time.perf_counter()
    torch.manual_seed(seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = outer.rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss = learner.loss(learner.params, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"The loss became {value} at step {step + 1}.", mend="Try a smaller pretraining.lr.")
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(torch.nn.utils.clip_grad_norm_(learner.params.values(), outer.clip or math.inf))
    optimizer.step()
    assert batch.mask is not None
    tokens = int(batch.mask.sum())
    seconds = time.perf_counter() - begin
    return {
        "step": step + 1,
        "loss": value,
        "lr": outer.rate(step),
        "gradient_norm": norm,
        "tokens": tokens,
        "seconds": seconds,
    }


@torch.no_grad()
def perplexity(learner: Learner, texts: Sequence[str], most: int = 16) -> float:
    """Return the perplexity of texts, of their masked words or of all their tokens."""
    nats, tokens = 0.0, 0
    quiet = replace(learner, dropout=False)
    for start in range(0, len(texts), most):
        batch = _batch(quiet, texts[start : start + most], 0)
        nats += float(quiet.loss(quiet.params, batch)) * len(batch)
        tokens += len(batch)
    return math.exp(nats / max(1, tokens))


def held_out_perplexity(learner: Learner, texts: Texts, config: PretrainingConfig) -> float | None:
    """Return the perplexity of a corpus's held-out texts; None where none are."""
    held = list(islice(_held_out(texts, config), config.validation_texts))
    return perplexity(learner, held) if held else None


def _validate(learner: Learner, held: Sequence[str], entry: dict[str, float], state: State, config: PretrainingConfig) -> None:
    entry["perplexity"] = perplexity(learner, held)
    score = 1 / entry["perplexity"]
    if score > state.best:
        state.best, state.best_step = score, state.step
    elif config.patience and state.step - state.best_step >= config.patience * config.validate_every:
        state.stopped = True


def _is_held_out(text: str, config: PretrainingConfig) -> bool:
    return text_hash(text) % _HASHES < config.held_out * _HASHES


def _held_out(texts: Texts, config: PretrainingConfig) -> Iterator[str]:
    return (text for text in texts() if _is_held_out(text, config)) if config.held_out else iter(())


def _shuffled(texts: Texts, config: PretrainingConfig) -> Iterator[str]:
    """Yield the texts to learn from again and again, shuffled block by block."""
    epoch = 0
    while True:
        stream, number = (text for text in texts() if not _is_held_out(text, config)), 0
        while block := list(islice(stream, _SHUFFLED)):
            yield from (block[i] for i in np.random.default_rng([config.seed, epoch, number]).permutation(len(block)))
            number += 1
        if not number:
            raise DataError(
                "The corpus has no text to learn from.", "At least one that is not held out is expected.", "Check --texts."
            )
        epoch += 1


def _batches(learner: Learner, texts: Texts, config: PretrainingConfig, done: int) -> Iterator[Batch]:
    """Yield a batch a step; those of steps that are done are passed over without being made."""
    stream, step = _shuffled(texts, config), 0
    while True:
        chunk, size = list[str](), 0
        while size < config.tokens:
            text = next(stream)
            chunk.append(text)
            size += min(len(learner.backbone.tokenizer(text)["input_ids"]), 64 * learner.backbone.max_length)
        if step >= done:
            yield _batch(learner, chunk, config.seed * 1_000_003 + step)
        step += 1


def _batch(learner: Learner, texts: Sequence[str], seed: int) -> Batch:
    if isinstance(learner, MaskedLearner):
        return learner.masked(texts, seed)
    assert isinstance(learner, LanguageLearner)
    return learner.rows_of(texts)
