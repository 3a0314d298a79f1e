"""The rows of one data source in a memory-mapped Arrow file, with an index of rows by task, part and label.

A row is a text, and an annotation where a label cannot say what is to be learned of it (the tags of its words, an answer).

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
    """Rows of one task, part and label; "" for rows without a label."""

    task: str
    part: str
    label: str


class Corpus:
    """Memory-mapped rows: ``text`` and ``annotation`` by row number, and row numbers by group."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.fingerprint: str = meta["fingerprint"]
        self.kind: str = meta.get("kind", "classification")
        self.shared: bool = meta.get("shared", False)  # whether a row may be in several groups
        self.repaired: dict[str, int] = meta.get("repaired", {})  # rows that were mended, by file
        self.groups = tuple(Group(*group) for group in meta["groups"])
        self.columns: dict[str, dict[str, str | None]] = meta["columns"]
        self.skipped: dict[str, int] = meta["skipped"]
        self._offsets: Rows = np.load(folder / "offsets.npy")
        self._order: Rows = np.load(folder / "order.npy", mmap_mode="r")
        self.hashes: npt.NDArray[np.uint64] = np.load(folder / "hashes.npy", mmap_mode="r")

    @cached_property
    def _chunks(self) -> tuple[dict[str, list[Any]], list[int]]:
        table = pa.ipc.open_file(pa.memory_map(str(self.folder / "rows.arrow"))).read_all()
        columns = {name: table.column(name).chunks for name in table.column_names}
        return columns, list(np.cumsum([0] + [len(chunk) for chunk in columns["text"]]))

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.folder,)  # another process maps the same files

    def __len__(self) -> int:
        return len(self.hashes)

    def _value(self, column: str, row: int) -> str:
        columns, starts = self._chunks
        index = bisect_right(starts, row) - 1
        return str(columns[column][index][row - starts[index]].as_py())

    def text(self, row: int) -> str:
        """Return the text of one row."""
        return self._value("text", row)

    def annotations(self, rows: Iterable[int]) -> list[str]:
        """Return the annotations of some rows; none where the kind has none."""
        return [self._value("annotation", int(row)) for row in rows] if "annotation" in self._chunks[0] else []

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
        rest = {name: tuple(labels.pop("", ())) for name, labels in by_task.items()}
        return [
            Task(name, tuple(labels), self, tuple(tuple(groups) for groups in labels.values()), self.kind, rest[name])
            for name, labels in by_task.items()
        ]


def normalise(text: str) -> str:
    """Return the form in which two texts count as identical: NFKC, case folded, white space squeezed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hash(text: str) -> int:
    """Return a 64-bit hash of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalise(text).encode(), digest_size=8).digest(), "little")
