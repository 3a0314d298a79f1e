"""From what the user names (a file, a folder, ``hub:name``, ``bundled:en``) to tasks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files as package_files
from itertools import chain, count
from pathlib import Path
from typing import Any

from kshot.errors import DataError, listing, nearest
from kshot.tasks.cloze import cloze_records
from kshot.tasks.columns import LABEL_NAMES, find_columns, peek
from kshot.tasks.ingest import SourceFile, build_corpus
from kshot.tasks.readers import (
    READERS,
    Records,
    column_names,
    data_stem,
    decode_classes,
    holds_names,
    is_data_file,
    read_records,
)
from kshot.tasks.schema import CLASSIFICATION, ReadOptions, Schema
from kshot.tasks.task import Task

PARTS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
BUNDLED = "bundled:"
CLOZE = "cloze:"
HUB = "hub:"
_NOT_LABELS = {"id", "idx", "index", "uid", "guid", "source", "date"}


def load_tasks(
    sources: str | Path | Sequence[str | Path], options: ReadOptions | None = None, schema: Schema = CLASSIFICATION
) -> list[Task]:
    """Read one or more sources into tasks.

    A source is a data file (one task, or several with ``task_column``), a folder, a data set of the hub (``hub:name``
    or ``hub:name:config``), the bundled tasks (``bundled:en``, ``bundled:zh``, ``bundled:en/finance``), or texts without
    labels, of which a task of hidden words is made (``cloze:path``; see `kshot.tasks.cloze`). A folder holds a file per part
    (``train.csv``, ``test.csv``), a file per label (files without a label column), a file per task, or a sub-folder per
    task. Files without labels beside labelled ones are passed over.

    Args:
        sources: what to read.
        options: columns and limits.
        schema: the kind of the tasks, and how it is read; see `kshot.models.kinds`.

    Returns:
        The tasks in the order of the sources, with unique names.

    Raises:
        DataError: a source is absent or holds no readable task; the sentence names file and line.

    Example:
        >>> [task.name for task in load_tasks("bundled:zh")][0]
        'customer_service'
    """
    options = options or ReadOptions()
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise DataError("No tasks were named.", mend="Name at least one: --tasks PATH")
    return _unique_names([(str(source), task) for source in listed for task in _load(str(source), options, schema)])


def _load(source: str, options: ReadOptions, schema: Schema) -> list[Task]:
    if source.startswith(HUB):
        return _load_hub(source.removeprefix(HUB), options, schema)
    if source.startswith(CLOZE):
        return _load_cloze(Path(source.removeprefix(CLOZE)), options)
    path = _bundled(source.removeprefix(BUNDLED)) if source.startswith(BUNDLED) else Path(source)
    if not path.exists():
        raise DataError(f"No such file or folder: '{source}'.{_near_path(path)}", mend="Check --tasks.")
    name = path.resolve().name if path.is_dir() else data_stem(path)
    files = list(_folder_files(path, options, schema)) if path.is_dir() else [SourceFile(path, name)]
    return build_corpus(name, files, options, schema).tasks()


def _load_cloze(path: Path, options: ReadOptions) -> list[Task]:
    """Make a task of hidden words from texts without labels: a file, or a folder's files, each with a text a row."""
    if not path.exists():
        raise DataError(f"No such file or folder: '{path}'.{_near_path(path)}", mend="Check --tasks.")
    files = sorted(entry for entry in path.rglob("*") if is_data_file(entry)) if path.is_dir() else [path]

    def texts() -> Iterator[str]:
        for file in files:
            sample, rest = peek(read_records(file))
            found = find_columns(str(file), [r for _, r in sample], options.text_column, label_required=False).text
            yield from (str(record[found]) for _, record in chain(sample, rest) if str(record.get(found) or "").strip())

    digest = hashlib.blake2b(b"cloze")
    for file in files:
        digest.update(SourceFile(file, "").digest())
    name = path.resolve().name if path.is_dir() else data_stem(path)
    source = SourceFile(Path(f"{CLOZE}{path}"), name, records=lambda: cloze_records(texts), fingerprint=digest.hexdigest())
    return build_corpus(name, [source], replace(options, text_column="text", label_column="label"), CLASSIFICATION).tasks()


def _near_path(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, siblings)


def _bundled(name: str) -> Path:
    """Return where bundled tasks lie: ``en``, ``en/law``, and of other kinds than classification ``tagging/en/law``."""
    root = Path(str(package_files("kshot.tasks") / "bundled"))
    for path in (root / name, root / f"{name}.jsonl", root / f"{name}.json"):
        if name and path.exists() and (path.is_file() or any(path.glob("*.json*"))):
            return path
    files = [path.relative_to(root).with_suffix("") for path in root.glob("**/*.json*")]
    known = sorted({str(path.parent) for path in files} | {str(path) for path in files})
    raise DataError(f"No bundled tasks '{name}'.{nearest(name, known)}", f"There are: {listing(known, 30)}.")


def _folder_files(folder: Path, options: ReadOptions, schema: Schema, inside: str = "") -> Iterator[SourceFile]:
    """Yield the folder's data files, with what their place says: part, label or task.

    Args:
        inside: the sub-folder's name, where ``folder`` is one that was found within the source's folder.
    """
    here = _data_files(folder, schema)
    subfolders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "_"))]
    subfolders = [entry for entry in subfolders if _data_files(entry, schema) or _data_files(entry / "data", schema)]
    if not here and [entry.name for entry in subfolders] == ["data"]:  # the hub's layout
        here, subfolders = _data_files(subfolders[0], schema), []
    if not here and not subfolders:
        known = {**READERS, **schema.readers}
        raise DataError(
            f"The folder '{folder}' holds no data file.", f"Expected files ending in {listing(known)}, also compressed."
        )
    for subfolder in subfolders:
        yield from _folder_files(subfolder, options, schema, subfolder.name)
    if not here:
        return
    name = folder.resolve().name
    parts = {path: part_of(path) for path in here}
    labelled = here
    if schema.label_files:
        columns = {path: _column_names(path) for path in here}
        if not options.label_column and len(here) > 1 and all(map(_unlabelled, columns.values())) and not all(parts.values()):
            yield from (SourceFile(path, name, label=data_stem(path)) for path in here)
            return
        # texts without labels (unlabelled, out of scope) may lie beside the labelled ones
        wanted = {options.label_column.lower()} if options.label_column else set(LABEL_NAMES)
        labelled = [path for path in here if columns[path] & wanted] or here
    if all(parts[path] for path in labelled):
        yield from (SourceFile(path, name, parts[path]) for path in labelled)
    elif "train" in (parts[path] for path in labelled):
        others = [path.name for path in labelled if not parts[path]]
        raise DataError(
            f"The folder '{folder}' holds the files of a split (train), and others: {listing(others)}.",
            "A folder holds the files of one task's split, or a file per task.",
            "Move the others to a folder of their own, or rename them so that they begin with train, validation or test.",
        )
    elif len(labelled) == 1 and (inside or data_stem(labelled[0]) in ("data", "all")):
        yield SourceFile(labelled[0], name)
    else:
        yield from (SourceFile(path, f"{inside}-{data_stem(path)}" if inside else data_stem(path)) for path in labelled)


def _data_files(folder: Path, schema: Schema) -> list[Path]:
    if not folder.is_dir():
        return []
    entries = sorted(folder.iterdir())
    return [entry for entry in entries if is_data_file(entry, schema.readers) and not holds_names(entry)]


def _column_names(path: Path) -> set[str]:
    sample, _ = peek(read_records(path))
    return {name.lower() for name in column_names(record for _, record in sample)}


def _unlabelled(columns: set[str]) -> bool:
    """Tell whether a file holds texts and nothing that could be a label."""
    return len(columns - _NOT_LABELS) <= 1 and not columns & set(LABEL_NAMES)


def part_of(path: Path) -> str:
    """Return the part that a file's name tells: ``train-00000-of-00003.parquet`` and ``train_0.json`` are ``train``."""
    return PARTS.get(data_stem(path).lower().replace("-", "_").split("_")[0], "")


def _load_hub(name: str, options: ReadOptions, schema: Schema) -> list[Task]:
    """Read a data set of the Hugging Face hub (or a local folder of its layout) with the ``datasets`` library."""
    import datasets

    datasets.disable_progress_bars()
    path, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library raises many types; the first lines of what it says are what matters
        said = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
        raise DataError(
            f"The hub's data set '{name}' could not be loaded: {said.rstrip('.')}.",
            mend="Check the name (hub:owner/name or hub:owner/name:config) and the network, or download its Parquet "
            "files and give their folder to --tasks.",
        ) from error

    def records(part: Any) -> Records:
        names = {column: kind.names for column, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)}
        for number, record in enumerate(part, 1):
            yield number, decode_classes(record, names)

    short = Path(path).resolve().name
    files = [
        SourceFile(
            Path(f"{HUB}{name}") / split,
            short,
            PARTS.get(split.split("_")[0], ""),
            records=partial(records, part),
            fingerprint=part._fingerprint,
        )
        for split, part in loaded.items()
    ]
    return build_corpus(short, files, options, schema).tasks()


def _unique_names(loaded: list[tuple[str, Task]]) -> list[Task]:
    """Name tasks that are called alike after their sources (``en/finance``, ``zh/finance``), and number what is left."""
    often = Counter(task.name for _, task in loaded)
    taken: set[str] = set()
    unique = []
    for source, task in loaded:
        name = task.name if often[task.name] == 1 else f"{_source_name(source)}/{task.name}"
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        taken.add(name := next(candidate for candidate in names if candidate not in taken))
        unique.append(replace(task, name=name))
    return unique


def _source_name(source: str) -> str:
    path = Path(source.removeprefix(BUNDLED).removeprefix(HUB)).resolve()
    return path.parent.name if path.is_file() else path.name
