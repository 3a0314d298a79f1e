"""Writing so that nothing half-written is left behind: to a temporary sibling first, then one rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import KshotError, RunError

if TYPE_CHECKING:
    from torch import Tensor

_REASONS = {
    errno.ENOSPC: ("there is no space left on the disk", "Free some space or choose another folder."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space or choose another folder."),
    errno.EACCES: ("permission is denied", "Choose a folder that you may write to."),
    errno.EPERM: ("the operation is not permitted", "Choose a folder that you may write to."),
    errno.EROFS: ("the file system is read-only", "Choose a folder that you may write to."),
    errno.EFBIG: ("the file would be larger than is allowed", "Choose another folder."),
    errno.ENOENT: ("nothing can be made there", "Choose another path."),
    errno.ENOTDIR: ("a part of that path is a file, not a folder", "Choose another path."),
    errno.EEXIST: ("a part of that path is a file, not a folder", "Choose another path."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one."),
    errno.EISDIR: ("that path is a folder", "Name a file."),
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below ``path`` into a `RunError` sentence."""
    try:
        yield
    except Exception as error:
        # safetensors and Arrow raise types of their own, with the system's words inside
        number = getattr(error, "errno", None) or next((n for n in _REASONS if os.strerror(n) in str(error)), None)
        if number not in _REASONS or isinstance(error, KshotError):
            raise
        reason, mend = _REASONS[number]
        raise RunError(f"Cannot write to '{path}': {reason}.", mend=mend) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place on success, remove it otherwise."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, otherwise it is removed.

    Args:
        keep_existing: leave a folder that stands at ``path`` by then as it is: of a cache, where another process with the
            same contents may have been quicker.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if keep_existing and path.exists():
                return
            old = temporary.with_name(temporary.name + ".old")
            if path.exists():
                os.replace(path, old)
            _rename(temporary, path, keep_existing)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, path: Path, keep_existing: bool) -> None:
    try:
        os.replace(temporary, path)
    except OSError as error:
        if not (keep_existing and error.errno in (errno.ENOTEMPTY, errno.EEXIST)):
            raise


def require_writable(path: Path) -> None:
    """Find out before long work whether something can be written at ``path``, where nothing need exist yet.

    Raises:
        RunError: the nearest existing folder takes no file.
    """
    with disk_errors(path):
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        tempfile.TemporaryFile(dir=existing).close()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Return kshot's cache folder: ``KSHOT_CACHE``, or ``kshot`` in the user's cache folder."""
    base = os.environ.get("KSHOT_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kshot"


def aligned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors read from a file as copies where the allocator puts them.

    In a file they follow one another at any address, and on some processors the last bit of a matrix product depends on the
    address of its factors: what was saved and loaded would not compute what it did before.
    """
    return {name: value.clone() for name, value in tensors.items()}
