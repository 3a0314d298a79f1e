"""An adapted task: the small result of adapting a run to a few labelled examples."""

from __future__ import annotations

import json
import math
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

from kshot.deploy.answers import Entity, Prediction, Reason
from kshot.errors import DataError, RunError
from kshot.files import aligned, atomic_folder
from kshot.meta import Adapted
from kshot.meta.algorithm import adapted_safely
from kshot.models.kinds import kind_of
from kshot.models.kinds.generation import Decoding, GenerativeLearner
from kshot.models.kinds.qa import QALearner
from kshot.models.kinds.tagging import TaggingLearner, TaggingSchema, predicted_entities
from kshot.tasks import Examples, Schema
from kshot.tasks.schema import EmptyFieldError, Row, WrongRowError
from kshot.training import Run, load_run
from kshot.training.trust import NEARNESS

ADAPTED_SCHEMA = 1
CARD = "task.json"
_TENSORS = "adapted.safetensors"
_VECTORS = "support.vectors"


@dataclass(frozen=True)
class AdaptedTask:
    """A run adapted to a task, ready to predict.

    Args:
        run: the meta-trained run.
        labels: the task's labels.
        support: the examples it was adapted from.
        adapted: what moved (fast weights or prototypes), by name.
        vectors: the support texts' vectors of unit length (n, H); none of a kind whose units are parts of texts.
    """

    run: Run
    labels: tuple[str, ...]
    support: Examples
    adapted: Adapted
    vectors: Tensor

    @property
    def schema(self) -> Schema:
        """How examples of the task's kind are read."""
        return kind_of(self.run.learner.kind).schema

    def answers(
        self, values: Sequence[Any], nearest: int = 0, batch_size: int = 64, decoding: Decoding | None = None
    ) -> list[dict[str, Any]]:
        """Return what the task says, as plain values.

        A label with its probability, the entities of a sentence, a target for a source, or how well a text is foreseen.

        Args:
            values: texts, or records of what the kind needs beside a text (``text_pair``, or ``head`` and ``tail``).
            nearest: how many support examples to give as the reason of each label.
            batch_size: texts that go through the encoder at a time.
            decoding: how a target is made.

        Raises:
            DataError: a value is not what the kind reads.
        """
        if isinstance(self.run.learner, GenerativeLearner):
            return self._generated(self.run.learner, values, decoding)
        if isinstance(self.run.learner, QALearner):
            return self._answered(self.run.learner, values, batch_size)
        if isinstance(self.run.learner, TaggingLearner):
            found = self.entities(values, batch_size)
            return [{"entities": [asdict(e) | {"probability": round(e.probability, 4)} for e in each]} for each in found]
        return [prediction.to_json() for prediction in self.predict(values, nearest, batch_size)]

    @torch.no_grad()
    def _generated(self, learner: GenerativeLearner, values: Sequence[Any], how: Decoding | None) -> list[dict[str, Any]]:
        """Return a target for each source, or of plain texts their perplexity and bits a byte."""
        texts, algorithm = read_values(self.schema, values), self.run.algorithm
        if self.schema.annotated:
            return [{"target": text} for text in learner.generate(learner.params | self.adapted, texts, how)]
        found = list[dict[str, Any]]()
        for text in texts:
            batch = learner.batch(Examples((text,), (0,)), ())
            nats = float(learner.loss_of(algorithm.logits(learner, self.adapted, batch), batch))
            bits = nats * len(batch) / math.log(2) / len(text.encode())
            found.append({"perplexity": round(math.exp(nats), 2), "bits_per_byte": round(bits, 4)})
        return found

    @torch.no_grad()
    def _answered(self, learner: QALearner, values: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
        """Return the answer to each question, and where in its text it begins."""
        texts, found = read_values(self.schema, values), list[dict[str, Any]]()
        for start in range(0, len(texts), batch_size):
            chunk = tuple(texts[start : start + batch_size])
            batch = learner.batch(Examples(chunk, (0,) * len(chunk)), ())
            scores = self.run.algorithm.logits(learner, self.adapted, batch)
            found += [{"answer": text, "start": at} for text, at in learner.answers_of(scores, batch)]
        return found

    def predict(self, texts: Sequence[Any], nearest: int = 0, batch_size: int = 64) -> list[Prediction]:
        """Label texts.

        Args:
            texts: any number of texts; records for a kind that needs more than a text.
            nearest: how many support examples to give as the reason of each prediction.
            batch_size: texts that go through the encoder at a time.
        """
        texts, predictions = read_values(self.schema, texts), list[Prediction]()
        for start in range(0, len(texts), batch_size):
            logits, vectors, in_scope = self._forward(list(texts[start : start + batch_size]))
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

    def entities(self, sentences: Sequence[Any], batch_size: int = 64) -> list[list[Entity]]:
        """Return the entities of sentences, given as texts or as lists of words.

        Raises:
            DataError: the task is not of the kind tagging, or a sentence is neither.
        """
        learner, schema = self.run.learner, self.schema
        if not isinstance(learner, TaggingLearner) or not isinstance(schema, TaggingSchema):
            raise DataError(f"The task is of the kind {learner.kind}.", "Entities are found by a task of the kind tagging.")
        stored, found = read_values(schema, sentences), list[list[Entity]]()
        for start in range(0, len(stored), batch_size):
            chunk = list(stored[start : start + batch_size])
            probabilities = self._forward(chunk)[0].softmax(-1).cpu()
            sizes = [learner.units_of(text) for text in chunk]
            for value, part in zip(sentences[start:], torch.split(probabilities, sizes), strict=False):
                text, places = schema.shown_words(value)
                (spans,) = predicted_entities(part.argmax(-1), [len(part)])
                found.append([self._entity(text, places, part, *span) for span in sorted(spans)])
        return found

    def _entity(
        self, text: str, places: Sequence[tuple[int, int]], probabilities: Tensor, first: int, end: int, number: int
    ) -> Entity:
        a, b = places[first][0], places[end - 1][1]
        return Entity(text[a:b], self.labels[number - 1], a, b, float(probabilities[first:end, number].min()))

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
        text = self.schema.shown(self.support.texts[index])
        return Reason(text, self.labels[self.support.labels[index]], similarity)

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
            "kind": self.run.learner.kind,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": {"path": origin, "fingerprint": self.run.fingerprint},
            "labels": list(self.labels),
            "support": _support_json(self.support, self.labels),
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.adapted.items()}
        with atomic_folder(folder) as temporary:
            save_file(tensors | {_VECTORS: self.vectors.cpu().contiguous()}, temporary / _TENSORS)
            (temporary / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder


def read_values(schema: Schema, values: Sequence[Any]) -> tuple[str, ...]:
    """Return values that a user asks about as they are kept.

    Raises:
        DataError: one is not what the kind reads.
    """
    texts = list[str]()
    for number, value in enumerate(values, 1):
        try:
            texts.append(schema.asked(value))
        except (WrongRowError, EmptyFieldError) as error:
            raise DataError(f"Text {number}: {error}.") from error
    return tuple(texts)


def _support_json(support: Examples, labels: Sequence[str]) -> list[dict[str, str]]:
    if support.annotations:
        both = zip(support.texts, support.annotations, strict=True)
        return [{"text": text, "annotation": annotation} for text, annotation in both]
    if not labels:
        return [{"text": text} for text in support.texts]
    return [{"text": text, "label": labels[label]} for text, label in zip(support.texts, support.labels, strict=True)]


def _support_of(rows: Sequence[dict[str, str]], labels: tuple[str, ...]) -> Examples:
    texts = tuple(row["text"] for row in rows)
    if any("annotation" in row for row in rows):
        return Examples(texts, (0,) * len(rows), annotations=tuple(row["annotation"] for row in rows))
    return Examples(texts, tuple(labels.index(row["label"]) if labels else 0 for row in rows))


def adapt(run: Run, texts: Sequence[Any], labels: Sequence[Any] | None = None) -> AdaptedTask:
    """Adapt a run to a few labelled texts.

    Args:
        run: the meta-trained run.
        texts: the support set's texts; for other kinds of task than classification what they read, such as a dictionary with
            ``text`` and ``text_pair``, or a list of words.
        labels: their labels, at least two different ones, any number of examples each; for tagging a list of tags for each
            list of words, or of ``{"start", "end", "label"}`` for each text; targets for sources; None for plain texts.

    Raises:
        DataError: no examples, one label only, or not as many labels as texts.
        TrainingError: the inner steps diverged.
    """
    labels = [None] * len(texts) if labels is None else labels
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} texts and {len(labels)} labels were given.", "One label a text is expected.")
    schema, rows = kind_of(run.learner.kind).schema, list[Row]()
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        try:
            rows.append(schema.example(text, label))
        except (WrongRowError, EmptyFieldError) as error:
            raise DataError(f"Example {number}: {error}.") from error
    names = tuple(dict.fromkeys(name for row in rows for name in row.labels))
    stored, numbers = tuple(row.text for row in rows), tuple(names.index(row.labels[0]) if row.labels else 0 for row in rows)
    annotations = tuple(row.annotation for row in rows) if schema.annotated else ()
    return adapt_to(run, names, Examples(stored, numbers, annotations=annotations))


def adapt_to(run: Run, names: tuple[str, ...], support: Examples) -> AdaptedTask:
    """Adapt a run to examples as they are kept.

    Args:
        run: the meta-trained run.
        names: the task's labels.
        support: its examples.

    Raises:
        DataError: too few labels.
        TrainingError: the inner steps diverged.
    """
    schema = kind_of(run.learner.kind).schema
    if not support.texts and not schema.least_labels:
        raise DataError("There are no examples.", "To adapt, at least one is needed.")
    if len(names) < schema.least_labels:
        raise DataError(
            f"The examples have {len(names)} label(s){': ' + repr(names[0]) if names else ''}.",
            f"To adapt, at least {'two are' if schema.least_labels == 2 else 'one is'} needed.",
        )
    learner = run.prepared().learner
    with torch.no_grad():
        batch = learner.batch(support.named(names) if learner.names else support, names)
        encoded = learner.featurised(batch)
        adapted = adapted_safely(run.algorithm, learner, batch if run.algorithm.moves_backbone else encoded)
    vectors = torch.empty(0, 0)
    if encoded.features is not None:
        vectors = F.normalize(encoded.features[: 0 if batch.sizes else len(support)], dim=-1)
    return AdaptedTask(run, names, support, {name: value.detach() for name, value in adapted.items()}, vectors)


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
        support = _support_of(card["support"], labels)
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
