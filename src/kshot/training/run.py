"""A run: the folder that meta-training writes and that adapting, evaluating and serving read.

It holds the backbone in Hugging Face's form, the head, the adapter and the algorithm's own meta-parameters, the backbone's
weights before meta-training where a task may go back to them, and ``kshot.json`` with the adaptation mechanism. It holds no
text, no label and no path of the data that it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kshot.errors import RunError, listing
from kshot.files import aligned, disk_errors, write_json
from kshot.meta import Algorithm, new_algorithm
from kshot.models import AdapterSpec, BackboneSpec, Learner, Params, add_adapter, load_backbone, new_learner
from kshot.models.kinds import kind_of
from kshot.models.select import ADAPTER, BACKBONE
from kshot.tasks import Task
from kshot.training.trust import Trust

RUN_SCHEMA = 1
CARD = "kshot.json"
_BACKBONE = "backbone"
_HEAD = "head.safetensors"
_UNTOUCHED = "untouched.safetensors"
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Run:
    """A meta-trained run.

    Args:
        learner: backbone, adapter and head at their meta-trained values.
        algorithm: how the learner adapts.
        algorithm_name: the algorithm's name and
        options: hyperparameters, from which it is made again.
        pretrained: the name of the backbone that training started from.
        card: the rest of ``kshot.json``: configuration, metrics, the data's fingerprints, versions.
        folder: where it lies; None before it is saved.
        trust: its calibration; None where there was nothing to fit it on.
    """

    learner: Learner
    algorithm: Algorithm
    algorithm_name: str
    options: Mapping[str, Any]
    pretrained: str
    card: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    trust: Trust | None = None

    @property
    def fingerprint(self) -> str:
        """What identifies the weights and the mechanism."""
        return str(self.card.get("fingerprint", ""))

    def prepared(self) -> Run:
        """Return the run with its backbone ready to be adapted without meta-gradients."""
        self.learner.backbone.use_attention(twice_differentiable=False)
        return self

    def seen(self, task: Task) -> set[str]:
        """Return the labels of a task that the run was meta-trained on."""
        known = set(self.card.get("seen", ()))
        return {label for label, digest in zip(task.labels or ("",), label_digests(task), strict=True) if digest in known}


def label_digests(task: Task) -> list[str]:
    """Return what stands for each label of some data, or for the task where it has none, and reveals neither."""
    first = [groups[0] for groups in task.groups] or list(task.rest[:1])
    groups = [task.corpus.groups[group] for group in first]  # named as in the data, whatever the suite calls them
    said = [f"{task.corpus.fingerprint}\0{group.task}\0{group.label}" for group in groups]
    return [hashlib.blake2b(text.encode(), digest_size=6).hexdigest() for text in said]


def save_run(run: Run, folder: Path) -> Run:
    """Write a run into a folder; ``kshot.json`` comes last, so that a folder without it is known to be incomplete."""
    learner, backbone = run.learner, run.learner.backbone
    tensors = {name: value.detach().cpu().contiguous() for name, value in learner.params.items()}
    with disk_errors(folder):
        (folder / CARD).unlink(missing_ok=True)
        save_backbone(learner, folder / _BACKBONE)
        save_file({n: value for n, value in tensors.items() if not n.startswith(BACKBONE)}, folder / _HEAD)
        (folder / _UNTOUCHED).unlink(missing_ok=True)
        if learner.untouched is not None:
            save_file({name: value.cpu().contiguous() for name, value in learner.untouched.items()}, folder / _UNTOUCHED)
    made = {
        "schema": RUN_SCHEMA,
        "kshot": version("kshot"),
        "kind": learner.kind,
        "fingerprint": _fingerprint(run),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "algorithm": {"name": run.algorithm_name, **run.options},
        "backbone": {**asdict(backbone.spec), "name": _seen_from(folder, run.pretrained)},
        "label_names": learner.names,
        "untouched": learner.untouched is not None,
        "trust": None if run.trust is None else asdict(run.trust),
        "adapter": None if backbone.adapter is None else asdict(backbone.adapter.spec),
        "versions": {name: version(name) for name in _LIBRARIES + (("peft",) if backbone.adapter else ())},
    }
    card = {**made, **run.card, **made}  # a run that is saved again is made again
    write_json(folder / CARD, card)
    return replace(run, card=card, folder=folder)


def save_backbone(learner: Learner, folder: Path) -> None:
    """Write a learner's backbone and tokenizer in Hugging Face's form, without where they were loaded from."""
    model = learner.backbone.model
    known = dict(model.named_parameters(remove_duplicate=False))
    state = {n: value for n, value in model.state_dict().items() if n not in known}  # what is no parameter
    own = {n: value for n, value in learner.params.items() if n.startswith(BACKBONE)}
    state |= {n.removeprefix(BACKBONE): value.detach().cpu().contiguous() for n, value in own.items()}
    model.save_pretrained(folder, state_dict=state)
    learner.backbone.tokenizer.save_pretrained(folder)
    _forget_origin(folder / "config.json")


def _seen_from(folder: Path, name: str) -> str:
    """Return a backbone's name, or where its folder lies as seen from the run's."""
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if Path(name).is_dir() else name


def _forget_origin(config: Path) -> None:
    """Remove the path that the backbone was loaded from."""
    value = json.loads(config.read_text(encoding="utf-8"))
    value.pop("_name_or_path", None)
    write_json(config, value)


def _fingerprint(run: Run) -> str:
    before = {f"untouched.{name}": value for name, value in (run.learner.untouched or {}).items()}
    params = run.learner.params | before
    adapter = run.learner.backbone.adapter
    mechanism = [run.algorithm_name, dict(run.options), *([asdict(adapter.spec)] if adapter else [])]
    mechanism += ["label_names"] if run.learner.names else []
    mechanism += [] if run.learner.kind == "classification" else [run.learner.kind]
    mechanism += [asdict(run.trust)] if run.trust else []
    digest = hashlib.blake2b(json.dumps(mechanism, sort_keys=True).encode(), digest_size=16)
    for name in sorted(params):
        digest.update(name.encode() + params[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_card(folder: Path) -> dict[str, Any]:
    """Return a run's ``kshot.json``.

    Raises:
        RunError: absent, incomplete, not JSON, or of a newer schema.
    """
    path = folder / CARD
    if not folder.is_dir():
        raise RunError(f"No run '{folder}'.", "A folder that 'kshot train' wrote is expected.", "Check the path.")
    if not path.is_file():
        if (folder / "checkpoints").is_dir():
            raise RunError(
                f"The run '{folder}' is not finished: it has checkpoints and no {CARD}.",
                mend="Repeat its 'kshot train' command with --resume.",
            )
        raise RunError(f"'{folder}' is not a run: it has no {CARD}.", "A folder that 'kshot train' wrote is expected.")
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = int(card["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path}' is damaged: {error}.") from error
    if schema > RUN_SCHEMA:
        raise RunError(
            f"The run '{folder}' has schema {schema}, written by kshot {card.get('kshot', 'of a newer version')}.",
            f"This is kshot {version('kshot')}, which reads up to schema {RUN_SCHEMA}.",
            "Upgrade it: pip install -U kshot",
        )
    return card


def load_run(folder: str | Path, device: str = "cpu") -> Run:
    """Load a run.

    Raises:
        RunError: not a complete run, or of a newer schema.
    """
    folder = Path(folder)
    card = read_card(folder)
    wanted = (_BACKBONE, _HEAD, *([_UNTOUCHED] if card.get("untouched") else []))
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise RunError(f"The run '{folder}' is incomplete: it has no {listing(missing)}.", mend="Copy it whole, or train anew.")
    options = dict(card["algorithm"])
    name = options.pop("name")
    pretrained = card["backbone"]["name"]
    if (folder / pretrained).is_dir():
        pretrained = str(folder / pretrained)
    spec = BackboneSpec(**{**card["backbone"], "name": str(folder / _BACKBONE)})
    kind = kind_of(card.get("kind", "classification"))
    backbone = load_backbone(spec, kind.learner.head)
    learner = new_learner(add_adapter(backbone, _adapter_of(card)), device, kind.learner)
    rest = _tensors(folder / _HEAD, device)
    untouched = _tensors(folder / _UNTOUCHED, device) if card.get("untouched") else None
    absent = [n for n in learner.params if n.startswith(ADAPTER) and n not in rest]
    if absent:
        raise RunError(
            f"'{folder / _HEAD}' lacks {len(absent)} weights of the run's adapter, such as '{absent[0]}'.",
            mend="Copy the run whole, or train anew.",
        )
    learner = learner.with_params(learner.params | {n: v.requires_grad_() for n, v in rest.items()})
    learner = replace(learner, names=card.get("label_names", False), untouched=untouched)  # older runs have neither
    algorithm = new_algorithm(name, options)
    return Run(learner, algorithm, name, options, pretrained, card, folder, _trust_of(card)).prepared()


def _tensors(path: Path, device: str) -> Params:
    try:
        return aligned(load_file(path, device=device))
    except (OSError, SafetensorError) as error:
        raise RunError(f"'{path}' is damaged: {error}.", mend="Copy the run whole, or train anew.") from error


def _trust_of(card: Mapping[str, Any]) -> Trust | None:
    value = card.get("trust")
    return None if value is None else Trust(tuple(value["temperature"]), value["score"], tuple(value["threshold"]))


def _adapter_of(card: Mapping[str, Any]) -> AdapterSpec:
    """Return what a card says of the adapter; one from before there were adapters says nothing."""
    value = card.get("adapter")
    if value is None:
        return AdapterSpec("none")
    return AdapterSpec(**{**value, "targets": None if value["targets"] is None else tuple(value["targets"])})
