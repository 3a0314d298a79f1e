"""The folder that a training writes: what may lie in its way, and what is set aside while another is made in its place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kshot.errors import ConfigError, RunError
from kshot.files import disk_errors, require_writable
from kshot.training.checkpoint import LAST


def require_free(out: Path, resume: bool, overwrite: bool, card: str, what: str) -> None:
    """Refuse an output folder that is in the way, that holds something else, or that cannot be written.

    Args:
        out: the folder.
        resume: whether a stopped training in it goes on.
        overwrite: whether what is there is replaced.
        card: the file that a finished training leaves.
        what: what it makes, such as "run".
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other.")
    require_writable(out)
    if overwrite and out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise RunError(f"The folder '{out}' is where you are, so --overwrite leaves it alone.", mend="Choose another.")
    if resume:
        if (out / card).exists():
            raise RunError(f"The {what} '{out}' is finished: there is nothing to resume.")
        if not (out / LAST).exists():
            raise RunError(
                f"Cannot resume: '{out}' has no checkpoint.",
                mend="Train without --resume, or name the folder of a stopped run.",
            )
    elif out.exists() and any(out.iterdir()):
        if not overwrite:
            raise RunError(
                f"The output folder '{out}' exists and is not empty.",
                mend="Choose another, go on with --resume, or replace it with --overwrite.",
            )
        if not ((out / card).exists() or (out / LAST).exists()):
            raise RunError(
                f"The folder '{out}' is not a {what} of kshot, so --overwrite leaves it alone.", mend="Choose another."
            )


@contextmanager
def replaced(out: Path) -> Iterator[None]:
    """Set a folder aside while another is made in its place; it comes back where nothing was made."""
    old = out.with_name(f".{out.name}.old")
    with disk_errors(out):
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    try:
        yield
    finally:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out)
