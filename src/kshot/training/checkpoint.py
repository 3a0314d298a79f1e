"""Checkpoints: one safetensors file with everything that the next step depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kshot.errors import RunError, listing
from kshot.files import aligned, atomic_file
from kshot.models import Params
from kshot.training.callbacks import History

CHECKPOINT_SCHEMA = 1
LAST = Path("checkpoints") / "last.safetensors"
BEST = Path("checkpoints") / "best.safetensors"


@dataclass
class State:
    """Where a training stands. Random numbers need no state: each step's are drawn from the seed and the step."""

    step: int = 0
    best: float = -1.0
    best_ci95: float = 0.0
    best_step: int = 0
    stopped: bool = False


def save_checkpoint(
    path: Path, params: Params, optimizer: torch.optim.Optimizer, state: State, history: History, config: dict[str, Any]
) -> None:
    """Write parameters, optimiser moments, state and history to one file, atomically."""
    tensors = {f"params/{name}": value.detach().contiguous() for name, value in params.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    meta = {"schema": CHECKPOINT_SCHEMA, "state": vars(state), "history": history, "config": config}
    _save(path, tensors, meta)


def save_params(path: Path, params: Params) -> None:
    """Write parameters alone, atomically."""
    _save(path, {name: value.detach().contiguous() for name, value in params.items()}, {"schema": CHECKPOINT_SCHEMA})


def _save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"kshot": json.dumps(meta)})


def load_params(path: Path) -> Params:
    """Read what `save_params` wrote."""
    tensors, _ = _load(path)
    return tensors


def load_checkpoint(path: Path) -> tuple[Params, dict[int, dict[str, Tensor]], State, History, dict[str, Any]]:
    """Return parameters, optimiser moments by parameter index, state, history and the configuration of a checkpoint.

    Raises:
        RunError: absent, damaged or of a newer schema.
    """
    tensors, meta = _load(path)
    params: Params = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, rest = name.split("/", 1)
        if kind == "params":
            params[rest] = value
        else:
            index, key = rest.split("/")
            moments.setdefault(int(index), {})[key] = value
    return params, moments, State(**meta["state"]), meta["history"], meta["config"]


def restore_checkpoint(
    path: Path, params: Params, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[State, History]:
    """Put a checkpoint into parameters and their optimiser, and return its state and history.

    Raises:
        RunError: absent, damaged, of a newer schema, or of a training with another identity.
    """
    stored, moments, state, history, before = load_checkpoint(path)
    changed = sorted(differences(before, identity))
    if changed:
        raise RunError(
            f"Cannot resume from '{path}': {listing(changed, 6)}.",
            "A resumed training must have the options of the one that was stopped.",
            "Repeat them, or start anew with --overwrite.",
        )
    with torch.no_grad():
        for name, value in stored.items():
            params[name].copy_(value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state, history


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise RunError(f"No checkpoint '{path}'.", mend="Train without --resume, or name the folder of a stopped training.")
    try:
        with safe_open(path, framework="pt") as file:
            meta: dict[str, Any] = json.loads(file.metadata()["kshot"])
            tensors = aligned({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a mapping
    except Exception as error:
        raise RunError(f"The checkpoint '{path}' is damaged: {error}.", mend="Train anew with --overwrite.") from error
    if meta["schema"] > CHECKPOINT_SCHEMA:
        raise RunError(f"The checkpoint '{path}' is of schema {meta['schema']}.", "", "Upgrade kshot to read it.")
    return tensors, meta


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield what differs between two configurations, as "key was this and is that"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif (list(old) if isinstance(old, tuple) else old) != (list(new) if isinstance(new, tuple) else new):
        yield f"{where} was {old} and is {new}"
