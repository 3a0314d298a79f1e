"""The rows of one data source in a memory-mapped Arrow file, with an index of rows by task, part and label.

Texts stay on disk: 10 million rows cost the process no more memory than the pages it touches.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kshot.tasks.task import Rows, Task


@dataclass(frozen=True)
class Group:
    """Rows of one task, part and label."""

    task: str
    part: str
    label: str


class Corpus:
    """Memory-mapped rows: ``text`` by row number, and row numbers by group."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.fingerprint: str = meta["fingerprint"]
        self.groups = tuple(Group(*group) for group in meta["groups"])
        self.columns: dict[str, dict[str, str | None]] = meta["columns"]
        self.skipped: dict[str, int] = meta["skipped"]
        self._offsets: Rows = np.load(folder / "offsets.npy")
        self._order: Rows = np.load(folder / "order.npy", mmap_mode="r")
        self.hashes: npt.NDArray[np.uint64] = np.load(folder / "hashes.npy", mmap_mode="r")

    @cached_property
    def _chunks(self) -> tuple[list[Any], list[int]]:
        table = pa.ipc.open_file(pa.memory_map(str(self.folder / "rows.arrow"))).read_all()
        chunks = table.column("text").chunks
        return chunks, list(np.cumsum([0] + [len(chunk) for chunk in chunks]))

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.folder,)  # another process maps the same files

    def __len__(self) -> int:
        return len(self.hashes)

    def text(self, row: int) -> str:
        """Return the text of one row."""
        chunks, starts = self._chunks
        index = bisect_right(starts, row) - 1
        return str(chunks[index][row - starts[index]].as_py())

    def texts(self, rows: Iterable[int]) -> list[str]:
        """Return the texts of some rows."""
        return [self.text(int(row)) for row in rows]

    def group(self, index: int) -> Rows:
        """Return the row numbers of a group, int64 of shape (n,), without reading them into memory."""
        return self._order[self._offsets[index] : self._offsets[index + 1]]

    def group_size(self, index: int) -> int:
        """Return the number of rows of a group."""
        return int(self._offsets[index + 1] - self._offsets[index])

    def tasks(self) -> list[Task]:
        """Return the corpus's tasks, their labels in order of first appearance."""
        by_task: dict[str, dict[str, list[int]]] = {}
        for index, group in enumerate(self.groups):
            by_task.setdefault(group.task, {}).setdefault(group.label, []).append(index)
        return [
            Task(name, tuple(labels), self, tuple(tuple(groups) for groups in labels.values()))
            for name, labels in by_task.items()
        ]


def normalise(text: str) -> str:
    """Return the form in which two texts count as identical: NFKC, case folded, white space squeezed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hash(text: str) -> int:
    """Return a 64-bit hash of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalise(text).encode(), digest_size=8).digest(), "little")
