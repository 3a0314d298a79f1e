"""Reading labelled files row by row: JSON Lines, JSON, CSV, TSV, plain text and Parquet, compressed too.

Every reader yields ``(line, record)``, so that an error can name the file and the line.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from kshot.errors import DataError, MissingExtraError, listing

Record = dict[str, Any]
Records = Iterator[tuple[int, Record]]

TEXT_COLUMN_OF_PLAIN_TEXT = "text"
_LARGEST_NAMES_FILE = 4 << 20


def _open_zstandard(path: Path) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "zstd", f"to read '{path.name}'") from error
    return cast(BinaryIO, zstandard.open(path, "rb"))


_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, gzip.open(path, "rb")),
    ".bz2": lambda path: cast(BinaryIO, bz2.open(path, "rb")),
    ".xz": lambda path: cast(BinaryIO, lzma.open(path, "rb")),
    ".zst": _open_zstandard,
}


def data_suffix(path: Path) -> str:
    """Return the format's suffix (``.jsonl``, ``.csv``, ...) without that of the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def data_stem(path: Path) -> str:
    """Return the file's name without the suffixes of its format and compression."""
    name = path.name
    if Path(name).suffix.lower() in _OPENERS:
        name = Path(name).stem
    return Path(name).stem if data_suffix(path) in READERS else name


def is_data_file(path: Path) -> bool:
    """Tell whether kshot has a reader for this file's name."""
    return path.is_file() and not path.name.startswith((".", "_")) and data_suffix(path) in READERS


def read_records(path: Path) -> Records:
    """Yield ``(line number from 1, record)`` for each row of a data file.

    Raises:
        DataError: no such file, unknown format, empty, not text in UTF-8 or UTF-16, or a row that does not parse.
    """
    if not path.exists():
        raise DataError(f"No such file: '{path}'.", mend="Check the path.")
    reader = READERS.get(data_suffix(path))
    if reader is None:
        raise DataError(
            f"'{path}' has no known format.", f"Known are {listing(READERS)}, also compressed ({listing(_OPENERS)})."
        )
    empty = True
    try:
        for numbered in reader(path):
            empty = False
            yield numbered
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError) as error:
        raise DataError(f"'{path}' cannot be decompressed: {error}.", mend="Fetch or compress the file again.") from error
    except PermissionError as error:
        raise DataError(f"'{path}' may not be read: permission is denied.") from error
    if empty:
        raise DataError(f"'{path}' is empty.", "It should hold at least two labels with a few texts each.")


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, its encoding told by a byte order mark, else UTF-8."""
    with _OPENERS.get(path.suffix.lower(), lambda p: p.open("rb"))(path) as stream:
        start = stream.read(4)
        stream.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield from io.TextIOWrapper(cast(Any, stream), "utf-16")
            return
        for number, raw in enumerate(stream, 1):
            if b"\0" in raw:
                raise DataError(
                    f"{path}, line {number}: a zero byte, so this is not UTF-8 text.",
                    mend="If it is UTF-16 without a byte order mark, convert it: "
                    f"iconv -f utf-16le -t utf-8 '{path.name}' > utf8-'{path.name}'",
                )
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: byte 0x{raw[error.start]:02x} at position {error.start + 1} is not UTF-8.",
                    mend=f"Convert the file, for instance: iconv -f latin1 -t utf-8 '{path.name}' > utf8-'{path.name}'",
                ) from error


def _json_value(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}).",
            'Each line should be an object such as {"text": "...", "label": "..."}.',
        ) from error


def _require_object(path: Path, number: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, line {number}: a JSON {type(value).__name__}, not an object.",
            'Expected {"text": "...", "label": "..."}.',
        )
    return value


def _read_jsonl(path: Path) -> Records:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, _require_object(path, number, _json_value(path, number, line))


def _read_json(path: Path) -> Records:
    """A JSON array of objects, or JSON Lines under the name ``.json`` as many benchmarks have it."""
    first = next((line for line in _lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from _read_jsonl(path)
        return
    for index, value in enumerate(_json_value(path, 1, "".join(_lines(path))), 1):
        yield index, _require_object(path, index, value)


def _read_delimited(path: Path) -> Records:
    csv.field_size_limit(sys.maxsize)  # the length of texts is judged later, by one rule for all formats
    lines = enumerate(_lines(path), 1)
    header_line, header = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not header:
        return
    delimiter = "\t" if data_suffix(path) == ".tsv" else max(",;\t|", key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    rows = csv.reader((line for _, line in lines), delimiter=delimiter)
    end = header_line
    for row in rows:
        line, end = end + 1, header_line + rows.line_num  # a quoted text may run over several lines
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields.",
                f"The header has {len(names)} ({listing(names)}).",
                "Put a text that contains the delimiter or a line break between double quotes, and close every quote.",
            )
        yield line, dict(zip(names, row, strict=True))


def _read_text(path: Path) -> Records:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, {TEXT_COLUMN_OF_PLAIN_TEXT: line.strip()}


def _read_parquet(path: Path) -> Records:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except Exception as error:
        raise DataError(f"'{path}' is not a readable Parquet file: {error}.") from error
    names = class_names(file.schema_arrow.metadata or {})
    number = 0
    for batch in file.iter_batches(batch_size=4096):
        for record in batch.to_pylist():
            number += 1
            yield number, decode_classes(record, names)


def class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the label names that a Hugging Face data set stores in its Arrow schema, by column."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def decode_classes(record: Record, names: dict[str, list[str]]) -> Record:
    """Replace class numbers by their names; -1 is the hub's word for "no label"."""
    for column in names.keys() & record.keys():
        value = record[column]
        record[column] = None if value is None or value < 0 else names[column][value]
    return record


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}


def holds_names(path: Path) -> bool:
    """Tell a JSON file of names by key (a split, the labels of a domain) from one of rows."""
    if path.suffix.lower() != ".json" or path.stat().st_size > _LARGEST_NAMES_FILE:
        return False
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value) and all(isinstance(names, list) for names in value.values())


def column_names(records: Iterable[Record]) -> list[str]:
    """Return the union of the records' keys, in order of first appearance."""
    return list(dict.fromkeys(key for record in records for key in record))
