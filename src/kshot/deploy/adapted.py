"""An adapted task: the small result of adapting a run to a few labelled examples."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from kshot.errors import DataError, RunError
from kshot.files import aligned, atomic_folder
from kshot.meta import Adapted
from kshot.meta.algorithm import adapted_safely
from kshot.tasks import Examples
from kshot.training import Run, load_run
from kshot.training.trust import NEARNESS

ADAPTED_SCHEMA = 1
CARD = "task.json"
_TENSORS = "adapted.safetensors"
_VECTORS = "support.vectors"


@dataclass(frozen=True)
class Reason:
    """A support example that lies near a text.

    Args:
        text, label: the example.
        similarity: the cosine of the two texts' vectors.
    """

    text: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Prediction:
    """What an adapted task says of a text.

    Args:
        label: the most probable label.
        probability: of that label.
        probabilities: of every label.
        reasons: the nearest support examples, nearest first.
        in_scope: whether the text seems to belong to any of the labels; None where the run has no threshold.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    reasons: tuple[Reason, ...] = ()
    in_scope: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain values, rounded for reading."""
        return {
            "label": self.label,
            "probability": round(self.probability, 4),
            "probabilities": {label: round(value, 4) for label, value in self.probabilities.items()},
            "in_scope": self.in_scope,
            "nearest": [{**asdict(reason), "similarity": round(reason.similarity, 4)} for reason in self.reasons],
        }


@dataclass(frozen=True)
class AdaptedTask:
    """A run adapted to a task, ready to predict.

    Args:
        run: the meta-trained run.
        labels: the task's labels.
        support: the examples it was adapted from.
        adapted: what moved (fast weights or prototypes), by name.
        vectors: the support texts' vectors of unit length (n, H).
    """

    run: Run
    labels: tuple[str, ...]
    support: Examples
    adapted: Adapted
    vectors: Tensor

    def predict(self, texts: Sequence[str], nearest: int = 0, batch_size: int = 64) -> list[Prediction]:
        """Label texts.

        Args:
            texts: any number of texts.
            nearest: how many support examples to give as the reason of each prediction.
            batch_size: texts that go through the encoder at a time.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(texts), batch_size):
            chunk = list(texts[start : start + batch_size])
            logits, vectors, in_scope = self._forward(chunk)
            similarities = vectors @ self.vectors.T
            for row, distribution in enumerate(logits.softmax(-1)):
                best = int(distribution.argmax())
                order = similarities[row].argsort(descending=True)[:nearest].tolist()
                predictions.append(
                    Prediction(
                        self.labels[best],
                        float(distribution[best]),
                        dict(zip(self.labels, distribution.tolist(), strict=True)),
                        tuple(self._reason(index, float(similarities[row, index])) for index in order),
                        in_scope[row],
                    )
                )
        return predictions

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return the probabilities (n, N) of the labels in their order."""
        chunks = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return torch.cat([torch.empty(0, len(self.labels)), *(self._forward(chunk)[0].softmax(-1).cpu() for chunk in chunks)])

    @torch.no_grad()
    def _forward(self, texts: list[str]) -> tuple[Tensor, Tensor, list[bool | None]]:
        """Return class scores (B, N), calibrated where the run is, meta-trained vectors (B, H) of unit length, and which are
        in scope, where the run has a threshold.
        """
        learner, algorithm = self.run.learner, self.run.algorithm
        if not algorithm.reads_untouched(self.adapted):
            learner = replace(learner, untouched=None)  # no text is encoded in vain
        batch = learner.batch(Examples(tuple(texts), (0,) * len(texts)), self.labels)
        encoded = learner.featurised(batch)
        query = batch if algorithm.moves_backbone else encoded
        assert encoded.features is not None
        logits = algorithm.logits(learner, self.adapted, query)
        in_scope: list[bool | None] = [None] * len(texts)
        if (trust := self.run.trust) is not None:
            logits = trust.calibrated(logits, self._shots)
            near = algorithm.nearness(learner, self.adapted, query) if trust.score == NEARNESS else None
            scores = trust.scores(logits, near)
            in_scope = (scores >= trust.least(self._shots, len(self.labels))).tolist()
        return logits, F.normalize(encoded.features, dim=-1), in_scope

    @property
    def _shots(self) -> float:
        """The mean number of examples a label."""
        return len(self.support) / len(self.labels)

    def _reason(self, index: int, similarity: float) -> Reason:
        return Reason(self.support.texts[index], self.labels[self.support.labels[index]], similarity)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write the task into a folder of its own, whole or not at all.

        It refers to the run by relative path and fingerprint, and holds the support texts.

        Raises:
            RunError: the folder exists and ``overwrite`` is not set, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise RunError(f"The folder '{folder}' exists.", mend="Choose another, or add --overwrite.")
        if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not (folder / CARD).is_file()):
            raise RunError(f"'{folder}' is not an adapted task, so --overwrite leaves it alone.", mend="Choose another.")
        origin = None if self.run.folder is None else os.path.relpath(self.run.folder.resolve(), folder.resolve())
        card = {
            "schema": ADAPTED_SCHEMA,
            "kshot": version("kshot"),
            "kind": "classification",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": {"path": origin, "fingerprint": self.run.fingerprint},
            "labels": list(self.labels),
            "support": [
                {"text": text, "label": self.labels[label]}
                for text, label in zip(self.support.texts, self.support.labels, strict=True)
            ],
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.adapted.items()}
        with atomic_folder(folder) as temporary:
            save_file(tensors | {_VECTORS: self.vectors.cpu().contiguous()}, temporary / _TENSORS)
            (temporary / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder


def adapt(run: Run, texts: Sequence[str], labels: Sequence[str]) -> AdaptedTask:
    """Adapt a run to a few labelled texts.

    Args:
        run: the meta-trained run.
        texts: the support set's texts.
        labels: their labels, at least two different ones, any number of examples each.

    Raises:
        DataError: no examples, one label only, or not as many labels as texts.
        TrainingError: the inner steps diverged.
    """
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} texts and {len(labels)} labels were given.", "One label a text is expected.")
    names = tuple(dict.fromkeys(labels))
    if len(names) < 2:
        raise DataError(
            f"The examples have {len(names)} label(s){': ' + repr(names[0]) if names else ''}.",
            "To adapt, at least two are needed.",
        )
    learner = run.prepared().learner
    support = Examples(tuple(texts), tuple(names.index(label) for label in labels))
    with torch.no_grad():
        batch = learner.batch(support.named(names) if learner.names else support, names)
        encoded = learner.featurised(batch)
        adapted = adapted_safely(run.algorithm, learner, batch if run.algorithm.moves_backbone else encoded)
    assert encoded.features is not None
    detached = {name: value.detach() for name, value in adapted.items()}
    return AdaptedTask(run, names, support, detached, F.normalize(encoded.features[: len(support)], dim=-1))


def load_adapted(folder: str | Path, run: Run | None = None, device: str = "cpu") -> AdaptedTask:
    """Load an adapted task, and the run it refers to unless that is given.

    Raises:
        RunError: absent, damaged, of a newer schema, or its run is absent or another one.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        schema, origin, labels = int(card["schema"]), card["run"]["path"], tuple(card["labels"])
        fingerprint = card["run"]["fingerprint"]
        support = Examples(
            tuple(example["text"] for example in card["support"]),
            tuple(labels.index(example["label"]) for example in card["support"]),
        )
    except FileNotFoundError as error:
        raise RunError(
            f"'{folder}' is not an adapted task: it has no {CARD}.", "A folder that 'kshot adapt' wrote is expected."
        ) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(f"'{folder / CARD}' is damaged: {error}.") from error
    if schema > ADAPTED_SCHEMA:
        raise RunError(f"The adapted task '{folder}' has schema {schema}.", mend="Upgrade kshot: pip install -U kshot")
    run = run or _run_of(folder, origin, device)
    if run.fingerprint != fingerprint:
        raise RunError(
            f"The run '{run.folder}' is not the one that '{folder}' was adapted from.",
            mend="Name the right one with --run, or adapt again.",
        )
    try:
        tensors = aligned(load_file(folder / _TENSORS, device=device))
        vectors = tensors.pop(_VECTORS)
    except (OSError, KeyError, SafetensorError) as error:
        raise RunError(f"'{folder / _TENSORS}' is damaged: {error}.", mend="Copy the task whole, or adapt again.") from error
    return AdaptedTask(run, labels, support, tensors, vectors)


def _run_of(folder: Path, origin: str | None, device: str) -> Run:
    if origin is None:
        raise RunError(f"'{folder}' was adapted from a run that was not saved.", mend="Name a run with --run FOLDER.")
    path = Path(os.path.normpath(folder.resolve() / origin))
    if not path.is_dir():
        raise RunError(
            f"The run that '{folder}' was adapted from is not at '{path}'.", mend="Say where it is now: --run FOLDER"
        )
    return load_run(path, device)
