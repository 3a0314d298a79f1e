"""Pretrained weights that come inside Python packages: found without executing the package, and checked by their SHA-256."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from kshot.errors import BackboneError


def packaged_file(name: str) -> Path | None:
    """Return where a package's file lies, given as ``package/path``; None where either is absent."""
    package, _, rest = name.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / rest
    return path if path.is_file() else None


def require_digest(path: Path, digest: str, install: str) -> None:
    """Refuse another file than the one that was checked.

    Args:
        path: the file.
        digest: what its SHA-256 begins with.
        install: the packages, with their versions.

    Raises:
        BackboneError: it is another one.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(digest):
        raise BackboneError(
            f"'{path.name}' of the package '{path.parent.name}' has the SHA-256 {found[:16]}...",
            f"{digest}... is expected.",
            f"Install the versions that were checked: pip install --no-deps {install}",
        )
