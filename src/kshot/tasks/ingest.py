"""From labelled files to a corpus: rows are read once, judged, and written to the cache.

A corpus is cached under a fingerprint of the files' contents and the reading options.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kshot.errors import DataError, listing
from kshot.files import atomic_folder, cache_folder
from kshot.tasks.columns import Columns, find_columns, peek
from kshot.tasks.corpus import Corpus, Group, text_hash
from kshot.tasks.readers import Records, data_suffix, read_records, readable

_VERSION = 2  # raised whenever what a cached corpus holds changes
_BATCH = 16_384
MAX_TEXT_CHARACTERS = 200_000


@dataclass(frozen=True)
class ReadOptions:
    """How labelled files are read.

    Args:
        text_column, label_column: the columns' names; None to find them by name.
        task_column: a column that says to which task (domain) a row belongs.
        mixed_labels: accept numbers and words side by side as labels.
        skip_empty: pass over rows without a text or a label, and count them.
        max_text_characters: a longer text is refused, since it is most often an unclosed quote.
    """

    text_column: str | None = None
    label_column: str | None = None
    task_column: str | None = None
    mixed_labels: bool = False
    skip_empty: bool = False
    max_text_characters: int = MAX_TEXT_CHARACTERS


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

    def read(self) -> Records:
        """Yield numbered records."""
        return read_records(self.path) if self.records is None else self.records()

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


def build_corpus(name: str, files: Sequence[SourceFile], options: ReadOptions) -> Corpus:
    """Read the files into a cached corpus, or open the one that was built of the same contents before.

    Raises:
        DataError: whatever is wrong with the files, naming file and line.
    """
    fingerprint = _fingerprint(files, options)
    folder = cache_folder() / "corpora" / fingerprint[:32]
    if not (folder / "corpus.json").exists():
        with atomic_folder(folder, keep_existing=True) as temporary:
            _write(temporary, name, files, options, fingerprint)
    return Corpus(folder)


def _fingerprint(files: Sequence[SourceFile], options: ReadOptions) -> str:
    digest = hashlib.blake2b(json.dumps([_VERSION, asdict(options)]).encode(), digest_size=32)
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


def _write(folder: Path, name: str, files: Sequence[SourceFile], options: ReadOptions, fingerprint: str) -> None:
    schema = pa.schema([("text", pa.large_string())])
    groups: dict[Group, int] = {}
    group_of_row, hashes = _Growing(np.int32), _Growing(np.uint64)
    columns: dict[str, dict[str, str | None]] = {}
    label_columns: dict[str, str | None] = {}  # by task
    labelled: set[SourceFile] = set()
    problems, kinds = _Problems(options), _LabelKinds()
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        pending: list[str] = []
        for file in files:
            sample, rest = peek(file.read())
            found = find_columns(
                str(file.path),
                [record for _, record in sample],
                options.text_column,
                None if file.label is not None else options.label_column,
                options.task_column,
                label_required=file.label is None,
            )
            shown = file.path.name if file.path.name not in columns else f"{file.path.parent.name}/{file.path.name}"
            columns[shown] = {"text": found.text, "label": found.label, "task": found.task}
            any_label = False
            for line, record in chain(sample, rest):
                task = _task(file, record, found)
                text = _text(file, line, record, found, options, problems)
                label = _label(file, line, record, found, problems) if file.label is None else file.label
                any_label = any_label or label is not None
                if text is None or label is None:
                    continue
                if file.label is None:
                    kinds.add(task, file, line, label)
                label_columns.setdefault(task, found.label)
                group_of_row.append(groups.setdefault(Group(task, file.part, label), len(groups)))
                hashes.append(text_hash(text))
                pending.append(text)
                if len(pending) == _BATCH:
                    writer.write_batch(pa.record_batch([pa.array(pending, pa.large_string())], schema))
                    pending.clear()
            if any_label:
                labelled.add(file)
        writer.write_batch(pa.record_batch([pa.array(pending, pa.large_string())], schema))
    skipped = problems.raise_or_count(labelled)
    kinds.raise_if_mixed(options)
    _require_two_labels(name, groups, label_columns)
    members = group_of_row.array()
    np.save(folder / "order.npy", np.argsort(members, kind="stable"))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(np.bincount(members, minlength=len(groups)))]))
    np.save(folder / "hashes.npy", hashes.array())
    meta = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "columns": columns,
        "skipped": skipped,
        "groups": [[group.task, group.part, group.label] for group in groups],
    }
    (folder / "corpus.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")


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


def _task(file: SourceFile, record: dict[str, Any], found: Columns) -> str:
    value = None if found.task is None else record.get(found.task)
    return ("" if value is None else str(value).strip()) or file.task


def _text(
    file: SourceFile, line: int, record: dict[str, Any], found: Columns, options: ReadOptions, problems: _Problems
) -> str | None:
    value = record.get(found.text)
    if value is None or not str(value).strip():
        problems.empty(file, line, "text", found.text)
        return None
    if not isinstance(value, str):
        problems.wrong(file, line, f"the text in column '{found.text}' is of type {type(value).__name__}, not a string")
        return None
    if len(value) > options.max_text_characters:
        raise DataError(
            f"{file.path}, {file.unit} {line}: a text of {len(value):,} characters.",
            f"The limit is {options.max_text_characters:,}; such a length is often a quote that was never closed.",
            "Cut the text, or raise the limit with --max-text-characters.",
        )
    return value


def _label(file: SourceFile, line: int, record: dict[str, Any], found: Columns, problems: _Problems) -> str | None:
    assert found.label is not None  # find_columns required it
    value = record.get(found.label)
    if isinstance(value, (list, dict)):
        what = f"the label in column '{found.label}' is a JSON {type(value).__name__}, and one label a text is expected"
        problems.wrong(file, line, what)
        return None
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    label = "" if missing else str(value).strip()
    if not label:
        problems.empty(file, line, "label", found.label)
        return None
    return label


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


def _require_two_labels(name: str, groups: Iterable[Group], label_columns: dict[str, str | None]) -> None:
    labels: dict[str, set[str]] = {}
    for group in groups:
        labels.setdefault(group.task, set()).add(group.label)
    for task, names in labels.items():
        if len(names) < 2:
            column = label_columns[task]
            source = f"column '{column}'" if column else "the files' names"
            raise DataError(
                f"'{name}': the task '{task}' has one label only, '{names.pop()}' (from {source}).",
                "A task needs at least two.",
                "Name another column with --label-column, or remove that task.",
            )
