"""The meta-training loop: one for every algorithm and task kind."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kshot.errors import ConfigError, TrainingError
from kshot.meta import Algorithm
from kshot.models import Learner
from kshot.models.select import ADAPTER, HEAD, select
from kshot.statistics import Mean, mean
from kshot.tasks import Episode, Sampler
from kshot.training.allocator import kept_memory
from kshot.training.callbacks import Callback, History
from kshot.training.checkpoint import (
    BEST,
    LAST,
    State,
    load_params,
    restore_checkpoint,
    save_checkpoint,
    save_params,
)
from kshot.training.config import TrainingConfig
from kshot.training.gradient import episode_gradients, usual_threads
from kshot.training.interrupt import stop_requests
from kshot.training.validation import episode_scores


@dataclass(frozen=True)
class TrainingResult:
    """What training ended with.

    Args:
        learner: at the best parameters by validation (the last ones where there is no validation).
        best: the best validation accuracy; NaN where there is no validation.
        best_step: when it was reached.
        history: a record a step.
        interrupted: whether it was stopped from outside before its end; a checkpoint is left to resume from.
    """

    learner: Learner
    best: Mean
    best_step: int
    history: History
    interrupted: bool = False


def meta_train(
    learner: Learner,
    algorithm: Algorithm,
    episodes: Sampler,
    validation: Sequence[Episode],
    config: TrainingConfig,
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    record: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Meta-train a learner.

    Step t uses the episodes ``t * B .. t * B + B - 1`` of the sampler, and seeds PyTorch's generator with (seed, t); so a
    resumed training equals an uninterrupted one bit for bit on one machine.

    Args:
        learner: where to start; it is not changed.
        algorithm: what to optimise.
        episodes: the stream of training episodes.
        validation: fixed episodes of meta-validation tasks; may be empty.
        config: the outer loop.
        folder: where to keep checkpoints; None for a temporary place.
        callbacks: who is told.
        resume: go on from the folder's last checkpoint.
        record: what identifies this training; a checkpoint with another record is not resumed.

    Raises:
        TrainingError: the loss or its gradient is not a finite number.
        ConfigError: ``config.trains`` names nothing that the algorithm uses.
        RunError: ``resume`` without a checkpoint of the same configuration, or the folder cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return meta_train(learner, algorithm, episodes, validation, config, Path(name), callbacks, resume, record)
    learner = _trainable(learner, algorithm, config)
    names = select_trained(learner, config)
    if not algorithm.moves_backbone and all(name.startswith((HEAD, "meta.")) for name in names):
        learner = learner.with_vectors(_texts_drawn(episodes, validation, config))
    optimizer = _optimizer(learner, names, config)
    state, history = State(), History()
    identity = {"training": asdict(config), **(record or {})}
    if resume:
        state, history = restore_checkpoint(folder / LAST, learner.params, optimizer, identity)
    batch_size = config.tasks_per_step or 1

    def save_last() -> None:
        save_checkpoint(folder / LAST, learner.params, optimizer, state, history, identity)

    with ExitStack() as stack:
        for callback in callbacks:
            callback.start(config.steps, state.step)
            stack.callback(callback.end)
        stop = stack.enter_context(stop_requests())
        stack.enter_context(kept_memory(learner.fast and learner.device.type == "cpu"))
        while (running := state.step < config.steps and not state.stopped) and not stop.is_set():
            torch.manual_seed(config.seed * 1_000_003 + state.step)
            entry = _step(learner, algorithm, episodes, optimizer, names, config, state.step, batch_size)
            state.step += 1
            history.append(entry)
            if state.step == config.steps or (config.validate_every and state.step % config.validate_every == 0):
                if validation and config.validate_every:
                    _validate(learner, algorithm, validation, config, state, entry, folder)
                save_last()
            for callback in callbacks:
                callback.step(entry, batch_size)
        if running:
            save_last()
    return TrainingResult(
        learner=_final(learner, None if running else state, folder),
        best=Mean(state.best, state.best_ci95, len(validation)) if state.best_step else mean([]),
        best_step=state.best_step,
        history=history,
        interrupted=running,
    )


def _trainable(learner: Learner, algorithm: Algorithm, config: TrainingConfig) -> Learner:
    """Return a copy with parameters of its own, the algorithm's among them, and the attention that it needs."""
    learner.backbone.use_attention(algorithm.twice_differentiable)
    params = learner.params | {n: v for n, v in algorithm.meta_parameters(learner).items() if n not in learner.params}
    learner = replace(
        learner, params={name: value.detach().clone() for name, value in params.items()}, dropout=config.dropout == "on"
    )
    for name in select_trained(learner, config):  # the rest takes no gradient, so that frozen lower layers keep no graph
        learner.params[name].requires_grad_()
    return learner


def select_trained(learner: Learner, config: TrainingConfig) -> tuple[str, ...]:
    """Return the names of what the outer loop trains: the selected parameters, and all that the algorithm added."""
    names = (*select(learner.params, config.trains), *(name for name in learner.params if name.startswith("meta.")))
    if all(name.startswith(HEAD) for name in names):
        raise ConfigError(
            f"training.trains is '{config.trains}', and the head's start, which all classes share, cancels in the softmax.",
            "A selector of the backbone's parameters is expected, such as all or top-2-layers.",
        )
    return names


def _texts_drawn(episodes: Sampler, validation: Sequence[Episode], config: TrainingConfig) -> int:
    """Return about how many texts a training encodes where it does so episode by episode."""
    first = episodes[0]
    each = len(first.support.texts) + len(first.query.texts)
    checks = config.steps // config.validate_every if config.validate_every else 0
    return config.steps * (config.tasks_per_step or 1) * each + checks * sum(len(e.support.texts) for e in validation)


def _optimizer(learner: Learner, names: Sequence[str], config: TrainingConfig) -> torch.optim.AdamW:
    # a head that is the same for all tasks starts from nothing, as the algorithm's own parameters do
    own = [name for name in names if name.startswith("meta.") or (name.startswith(HEAD) and not learner.labelled)]
    decayed = [name for name in names if learner.params[name].dim() > 1 and not _is_away_from_zero(name)]
    others = [name for name in names if name not in {*own, *decayed}]
    groups = [
        {"params": [learner.params[name] for name in listed], "weight_decay": decay, "lr": lr, "peak": lr}
        for listed, decay, lr in (
            (decayed, config.weight_decay, config.lr),
            (others, 0.0, config.lr),
            (own, 0.0, config.meta_lr),
        )
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def _is_away_from_zero(name: str) -> bool:
    """Tell whether a parameter's neutral value is not 0, so that decay would pull it off."""
    return name.startswith((HEAD, "meta.", ADAPTER + "prompt.")) or name.endswith(".ia3_l")


def _step(
    learner: Learner,
    algorithm: Algorithm,
    episodes: Sampler,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    config: TrainingConfig,
    step: int,
    batch_size: int,
) -> dict[str, float]:
    """One meta-update, by the mean of the episodes' gradients."""
    rate = config.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * config.factor(step)
    optimizer.zero_grad(set_to_none=True)
    trained = [learner.params[name] for name in names]
    algorithm = algorithm.at(step)
    totals: dict[str, float] = {}
    batch = [learner.encode(episodes[index]) for index in range(step * batch_size, (step + 1) * batch_size)]
    for found in episode_gradients(learner, algorithm, batch, names, config.threads or usual_threads(learner, algorithm)):
        _require_finite(found.loss, "loss", step, rate)
        if all(grad is None for grad in found.grads):
            raise ConfigError(
                f"training.trains is '{config.trains}', and the algorithm uses nothing of it.",
                "A selector of parameters that its loss depends on is expected, such as all or top-1-layers.",
            )
        for parameter, grad in zip(trained, found.grads, strict=True):
            if grad is not None:
                parameter.grad = (
                    grad / batch_size if parameter.grad is None else parameter.grad.add_(grad, alpha=1 / batch_size)
                )
        for name, value in {"loss": found.loss, **found.metrics}.items():
            totals[name] = totals.get(name, 0.0) + value / batch_size
    norm = float(torch.nn.utils.clip_grad_norm_(trained, config.clip or math.inf))
    _require_finite(norm, "gradient", step, rate)
    optimizer.step()
    return {"step": step + 1, **totals, "lr": rate, "gradient_norm": norm}


def _require_finite(value: float, what: str, step: int, rate: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"The {what} became {value} at step {step + 1}, with the learning rate {rate:.2g}.",
            mend="Try a smaller training.lr, or smaller algorithm.inner_lr and algorithm.head_lr. "
            "The last checkpoint, if one was written, is from before.",
        )


def _validate(
    learner: Learner,
    algorithm: Algorithm,
    validation: Sequence[Episode],
    config: TrainingConfig,
    state: State,
    entry: dict[str, float],
    folder: Path,
) -> None:
    """Measure, remember the best, and decide whether to stop early."""
    measured = mean(episode_scores(learner, algorithm, validation))
    entry |= {"validation": measured.value, "validation_ci95": measured.ci95}
    if measured.value > state.best:
        state.best, state.best_ci95, state.best_step = measured.value, measured.ci95, state.step
        save_params(folder / BEST, learner.params)
    elif config.patience and state.step - state.best_step >= config.patience * config.validate_every:
        state.stopped = True


def _final(learner: Learner, state: State | None, folder: Path) -> Learner:
    """Return the learner at the best parameters of a finished training, at the last ones where none were measured."""
    params = load_params(folder / BEST) if state is not None and state.best_step else learner.params
    params = {name: value.detach().to(learner.device).requires_grad_() for name, value in params.items()}
    return replace(learner, params=params, dropout=False, precision="fp32", vectors={})
