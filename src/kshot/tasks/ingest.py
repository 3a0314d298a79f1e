"""From labelled files to a corpus: rows are read once, judged, and written to the cache.

A corpus is cached under a fingerprint of the files' contents and the reading options.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kshot.errors import DataError, listing
from kshot.files import atomic_folder, cache_folder
from kshot.tasks.columns import peek
from kshot.tasks.corpus import Corpus, Group, text_hash
from kshot.tasks.readers import Record, Records, data_suffix, read_records, readable
from kshot.tasks.schema import EmptyFieldError, ReadOptions, Roles, Row, Schema, WrongRowError

_VERSION = 2  # raised whenever what a cached corpus holds changes
_BATCH = 16_384


@dataclass(frozen=True)
class SourceFile:
    """One file (or hub split) of a source, and what its place says about its rows.

    Args:
        path: the file; for a data set of the hub, a name for error sentences.
        task: the task's name.
        part: ``train``, ``validation``, ``test`` or "" where the file is not one of a split.
        label: the label of all its rows, where there is a file per label.
        records, fingerprint: the rows and what identifies them, for sources that are not files.
    """

    path: Path
    task: str
    part: str = ""
    label: str | None = None
    records: Callable[[], Records] | None = None
    fingerprint: str = ""

    def read(self, schema: Schema) -> Records:
        """Yield numbered records."""
        return read_records(self.path, schema.readers) if self.records is None else self.records()

    @property
    def unit(self) -> str:
        """What the records' numbers count."""
        return "line" if self.records is None and data_suffix(self.path) != ".parquet" else "row"

    def digest(self) -> bytes:
        """Return what identifies the contents."""
        if self.fingerprint:
            return self.fingerprint.encode()
        with readable(self.path), self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "blake2b").digest()


def build_corpus(name: str, files: Sequence[SourceFile], options: ReadOptions, schema: Schema) -> Corpus:
    """Read the files into a cached corpus, or open the one that was built of the same contents before.

    Args:
        name: what error sentences call it.
        files: what to read.
        options: columns and limits.
        schema: how a kind of task reads a record.

    Raises:
        DataError: whatever is wrong with the files, naming file and line.
    """
    fingerprint = _fingerprint(files, options, schema)
    folder = cache_folder() / "corpora" / fingerprint[:32]
    if not (folder / "corpus.json").exists():
        with atomic_folder(folder, keep_existing=True) as temporary:
            _write(temporary, name, files, options, schema, fingerprint)
    return Corpus(folder)


def _fingerprint(files: Sequence[SourceFile], options: ReadOptions, schema: Schema) -> str:
    kind = [] if schema.kind == "classification" else [schema.kind]
    digest = hashlib.blake2b(json.dumps([_VERSION, asdict(options), *kind]).encode(), digest_size=32)
    for file in files:
        digest.update(json.dumps([file.task, file.part, file.label, file.path.suffixes]).encode())
        digest.update(file.digest())
    return digest.hexdigest()


class _Problems:
    """Gathers bad rows, so that one message tells of all of a kind."""

    def __init__(self, options: ReadOptions) -> None:
        self._skip_empty = options.skip_empty
        self._wrong: dict[tuple[SourceFile, str], list[int]] = {}
        self._empty: dict[tuple[SourceFile, str, str], list[int]] = {}

    def wrong(self, file: SourceFile, line: int, what: str) -> None:
        """Note a row that cannot be read; the caller passes over it."""
        self._wrong.setdefault((file, what), []).append(line)

    def empty(self, file: SourceFile, line: int, missing: str, column: str) -> None:
        """Note a row without a text or a label; the caller passes over it."""
        self._empty.setdefault((file, missing, column), []).append(line)

    def raise_or_count(self, labelled: set[SourceFile]) -> dict[str, int]:
        """Refuse the bad rows, or return how many rows were passed over, by file.

        A file without any label beside labelled ones is passed over whole, as hidden test sets are.
        """
        skipped: Counter[str] = Counter()
        refused = dict(self._wrong)
        for (file, missing, column), lines in self._empty.items():
            if self._skip_empty or (missing == "label" and labelled and file not in labelled):
                skipped[file.path.name] += len(lines)
            else:
                refused[file, f"no {missing} in column '{column}'"] = lines
        if refused:
            said = [
                f"{file.path}, {file.unit}{'s' if len(lines) > 1 else ''} {listing(map(str, lines), 5)}: {what}."
                for (file, what), lines in refused.items()
            ]
            found = " ".join(said[:5]) + (f" And {len(said) - 5} more such findings." if len(said) > 5 else "")
            mend = "Mend or remove these rows" + (", or pass over them with --skip-empty." if self._empty else ".")
            raise DataError(found, "Every row needs a text and a label.", mend)
        return dict(skipped)


def _write(
    folder: Path, name: str, files: Sequence[SourceFile], options: ReadOptions, schema: Schema, fingerprint: str
) -> None:
    columns: dict[str, Roles] = {}
    label_columns: dict[str, str | None] = {}  # by task
    labelled: set[SourceFile] = set()
    repaired: Counter[str] = Counter()
    problems, kinds, index = _Problems(options), _LabelKinds(), _Index(schema.shared)
    with _RowWriter(folder / "rows.arrow", schema.annotated) as writer:
        for file in files:
            sample, rest = peek(file.read(schema))
            found = schema.columns(str(file.path), [record for _, record in sample], options, file.label)
            shown = file.path.name if file.path.name not in columns else f"{file.path.parent.name}/{file.path.name}"
            columns[shown] = found
            for line, record in chain(sample, rest):
                row = _row(file, line, record, found, schema, options, problems)
                if row is None:
                    continue
                task = _task(file, record, found)
                labelled.add(file)
                repaired[shown] += row.repaired
                if schema.least_labels > 1 and file.label is None:
                    kinds.add(task, file, line, row.labels[0])
                label_columns.setdefault(task, found.get("label"))
                index.add(row, task, file.part)
                writer.add(row)
    skipped = problems.raise_or_count(labelled)
    kinds.raise_if_mixed(options)
    _require_labels(name, schema, index.groups, label_columns)
    index.save(folder)
    meta = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "kind": schema.kind,
        "shared": schema.shared,
        "columns": columns,
        "skipped": skipped,
        "repaired": +repaired,
        "groups": [[group.task, group.part, group.label] for group in index.groups],
    }
    (folder / "corpus.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")


def _row(
    file: SourceFile,
    line: int,
    record: Record,
    found: Roles,
    schema: Schema,
    options: ReadOptions,
    problems: _Problems,
) -> Row | None:
    """Return a record as an example; None where there is a problem, which is noted."""
    try:
        row = schema.row(record, found, file.label)
    except EmptyFieldError as empty:
        problems.empty(file, line, empty.missing, empty.column)
        return None
    except WrongRowError as wrong:
        problems.wrong(file, line, str(wrong))
        return None
    if len(row.text) > options.max_text_characters:
        raise DataError(
            f"{file.path}, {file.unit} {line}: a text of {len(row.text):,} characters.",
            f"The limit is {options.max_text_characters:,}; such a length is often a quote that was never closed.",
            "Cut the text, or raise the limit with --max-text-characters.",
        )
    return row


class _RowWriter:
    """The Arrow file of texts and annotations, written by batches."""

    def __init__(self, path: Path, annotated: bool) -> None:
        self._names = ["text", "annotation"] if annotated else ["text"]
        self._schema = pa.schema([(column, pa.large_string()) for column in self._names])
        self._path, self._open, self._pending = path, ExitStack(), list[tuple[str, ...]]()

    def __enter__(self) -> _RowWriter:
        sink = self._open.enter_context(pa.OSFile(str(self._path), "wb"))
        self._file = self._open.enter_context(pa.ipc.new_file(sink, self._schema))
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        self._open.close()

    def add(self, row: Row) -> None:
        self._pending.append((row.text, row.annotation)[: len(self._names)])
        if len(self._pending) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        parts = zip(*self._pending, strict=True) if self._pending else [()] * len(self._names)
        self._file.write_batch(pa.record_batch([pa.array(part, pa.large_string()) for part in parts], self._schema))
        self._pending.clear()


class _Index:
    """Which rows belong to which task, part and label, and the hash of each row's text."""

    def __init__(self, shared: bool) -> None:
        self.groups: dict[Group, int] = {}
        self._shared, self._count = shared, 0
        self._members, self._rows, self._hashes = _Growing(np.int32), _Growing(np.int64), _Growing(np.uint64)

    def add(self, row: Row, task: str, part: str) -> None:
        for label in row.labels or ("",):
            self._members.append(self.groups.setdefault(Group(task, part, label), len(self.groups)))
            if self._shared:
                self._rows.append(self._count)
        self._hashes.append(text_hash(row.text))
        self._count += 1

    def save(self, folder: Path) -> None:
        members = self._members.array()
        order = np.argsort(members, kind="stable")
        np.save(folder / "order.npy", self._rows.array()[order] if self._shared else order)
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(np.bincount(members, minlength=len(self.groups)))]))
        np.save(folder / "hashes.npy", self._hashes.array())


class _Growing:
    """A numpy array that grows by blocks: a few bytes a row instead of a Python object a row."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype, self._blocks, self._tail = dtype, list[npt.NDArray[Any]](), list[int]()

    def append(self, value: int) -> None:
        self._tail.append(value)
        if len(self._tail) == _BATCH:
            self._blocks.append(np.array(self._tail, self._dtype))
            self._tail.clear()

    def array(self) -> npt.NDArray[Any]:
        return np.concatenate([*self._blocks, np.array(self._tail, self._dtype)])


def _task(file: SourceFile, record: Record, found: Roles) -> str:
    column = found.get("task")
    value = None if column is None else record.get(column)
    return ("" if value is None else str(value).strip()) or file.task


class _LabelKinds:
    """Remembers for each task where a label first was a number, and where first a word."""

    def __init__(self) -> None:
        self._first: dict[str, dict[bool, tuple[SourceFile, int, str]]] = {}

    def add(self, task: str, file: SourceFile, line: int, label: str) -> None:
        self._first.setdefault(task, {}).setdefault(_is_number(label), (file, line, label))

    def raise_if_mixed(self, options: ReadOptions) -> None:
        for task, first in self._first.items():
            if len(first) == 2 and not options.mixed_labels:
                (file, line, word), (other, number_line, number) = first[False], first[True]
                raise DataError(
                    f"The labels of the task '{task}' are mixed: a word '{word}' ({file.path}, {file.unit} {line}) "
                    f"and a number '{number}' ({other.path}, {other.unit} {number_line}).",
                    "Labels of one task are all words or all numbers.",
                    "Mend them, or accept both with --mixed-labels.",
                )


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))  # "nan" and "Infinity" are words
    except ValueError:
        return False


def _require_labels(name: str, schema: Schema, groups: Iterable[Group], label_columns: dict[str, str | None]) -> None:
    labels: dict[str, set[str]] = {}
    for group in groups:
        labels.setdefault(group.task, set()).update({group.label} - {""})
    for task, names in labels.items():
        if len(names) < schema.least_labels:
            column = label_columns[task]
            source = f"column '{column}'" if column else "the files' names"
            one = f"has one label only, '{names.pop()}' (from {source})" if names else "has no label"
            raise DataError(
                f"'{name}': the task '{task}' {one}.",
                f"A task needs at least {'two' if schema.least_labels == 2 else schema.least_labels}.",
                "Name another column with --label-column, or remove that task.",
            )
