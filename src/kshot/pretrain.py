"""Self-supervised pre-training from Python: a language model goes on learning from a user's texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from kshot.api import public_config, replace_config, require_device
from kshot.config import Config
from kshot.errors import ConfigError, DataError, listing
from kshot.folders import replaced, require_free
from kshot.models import load_backbone, new_learner
from kshot.models.kinds import kind_of
from kshot.models.precision import choose_matmul_route, default_matmul_route, require_precision
from kshot.tasks.columns import peek
from kshot.tasks.readers import READERS, is_data_file, read_records
from kshot.tasks.schema import EmptyFieldError, Schema
from kshot.training.callbacks import Callback
from kshot.training.pretraining import CARD, held_out_perplexity
from kshot.training.pretraining import pretrain as go_on

KINDS = ("mlm", "lm")


def pretrain(
    texts: str | Sequence[str],
    out: str | Path,
    config: Config | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> dict[str, Any]:
    """Go on training a language model on texts, and write it as a Hugging Face model, to be named as a backbone.

    Args:
        texts: files or folders of plain texts: lines, or a column of a table.
        out: the model's folder.
        config: the configuration; its ``kind`` is ``mlm`` (masked words) or ``lm`` (a decoder).
        resume: go on from the folder's last checkpoint.
        overwrite: replace what is there.
        callbacks: who is told of every step.
        tell: is given a line now and then.
        options: settings by dotted key with ``__`` for the dot, such as ``pretraining__steps=100``.

    Returns:
        ``perplexity`` (of held-out texts before and after; None where none are held out), ``tokens`` and ``seconds``.

    Raises:
        KshotError: whatever a user can mend, as a sentence.
        Interrupted: stopped by Ctrl-C; a checkpoint was written.
    """
    config, out = replace_config(config or Config(), {n.replace("__", "."): v for n, v in options.items()}), Path(out)
    if config.kind not in KINDS:
        raise ConfigError(f"--kind is '{config.kind}'.", "To pre-train, mlm (an encoder) or lm (a decoder) is expected.")
    kind, begin = kind_of(config.kind), time.perf_counter()
    require_device(config.device)
    require_precision(config.precision, config.device)
    require_free(out, resume, overwrite, CARD, "pre-training")
    files = text_files([texts] if isinstance(texts, str) else texts)
    backbone = load_backbone(config.backbone, kind.learner.head)
    tell(choose_matmul_route() if config.fast else default_matmul_route())
    learner = new_learner(backbone, config.device, kind.learner)
    learner = replace(learner, fast=config.fast, precision=config.precision, dropout=config.training.dropout == "on")

    def stream() -> Iterator[str]:
        return read_texts(files, kind.schema, config)

    before = held_out_perplexity(learner, stream, config.pretraining)
    if before is not None:
        tell(f"Perplexity of held-out texts before: {before:.2f}")
    record = {"kind": config.kind, "backbone": public_config(config)["backbone"], "precision": config.precision}
    with replaced(out) if overwrite and out.exists() else nullcontext():
        trained, history = go_on(learner, stream, out, config.pretraining, callbacks, resume, record)
    after = held_out_perplexity(trained, stream, config.pretraining)
    tokens = int(sum(entry["tokens"] for entry in history))
    return {"perplexity": (before, after), "tokens": tokens, "seconds": time.perf_counter() - begin}


def text_files(sources: Sequence[str]) -> list[Path]:
    """Return the data files of files and folders, folders searched to the bottom.

    Raises:
        DataError: one is absent, or a folder has none.
    """
    found = list[Path]()
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if is_data_file(path))
            if not inside:
                raise DataError(f"The folder '{source}' holds no data file.", f"Expected files ending in {listing(READERS)}.")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise DataError(f"No such file or folder: '{source}'.", mend="Check the texts' names.")
    return found


def read_texts(files: Sequence[Path], schema: Schema, config: Config) -> Iterator[str]:
    """Yield the texts of files as they are read; rows without a text are passed over."""
    for path in files:
        sample, rest = peek(read_records(path))
        roles = schema.columns(str(path), [record for _, record in sample], config.read, None)
        for _, record in chain(sample, rest):
            try:
                yield schema.row(record, roles, None).text
            except EmptyFieldError:
                continue
