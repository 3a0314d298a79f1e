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
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from kshot.errors import DataError, listing

Record = dict[str, Any]
Records = Iterator[tuple[int, Record]]

TEXT_COLUMN_OF_PLAIN_TEXT = "text"
TAGGED = (".conll", ".bio", ".iob", ".bioes", ".bmes")  # a word and its tag a line
_LARGEST_NAMES_FILE = 4 << 20
_NEXT_VALUE = re.compile(r"[^\s,\[]")
_END = "\0"  # stands after the last line of a delimited file, where it tells an unclosed quote; no text holds it
_QUOTE = "Put a text that contains the delimiter or a line break between double quotes, and close every quote."


def _open_zstandard(path: Path) -> io.BufferedReader:
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


# gzip's, bz2's and xz's own readers are no BufferedReader by type, and read, peek and yield lines like one
_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}


def _open(path: Path) -> Any:
    """Open a file's bytes, decompressed where its suffix says that they are."""
    return _OPENERS[path.suffix.lower()](path) if _is_compressed(path) else path.open("rb")


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in _OPENERS


def data_suffix(path: Path) -> str:
    """Return the format's suffix (``.jsonl``, ``.csv``, ...) without that of the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def data_stem(path: Path) -> str:
    """Return the file's name without the suffixes of its format and compression."""
    name = path.name
    if _is_compressed(path):
        name = Path(name).stem
    return Path(name).stem if data_suffix(path) in (*READERS, *TAGGED) else name


def is_data_file(path: Path, more: Collection[str] = ()) -> bool:
    """Tell whether kshot has a reader for this file's name, one of its own for every kind or one of a kind's suffixes."""
    return path.is_file() and not path.name.startswith((".", "_")) and data_suffix(path) in (*READERS, *more)


def read_records(path: Path, readers: Mapping[str, Callable[[Path], Records]] | None = None) -> Records:
    """Yield ``(line number from 1, record)`` for each row of a data file.

    Args:
        path: the file.
        readers: those of a kind's own formats, by suffix, before the usual ones.

    Raises:
        DataError: no such file, unknown format, empty, not text in UTF-8 or UTF-16, or a row that does not parse.
    """
    if not path.exists():
        raise DataError(f"No such file: '{path}'.", mend="Check the path.")
    reader = {**READERS, **(readers or {})}.get(data_suffix(path))
    if reader is None:
        raise DataError(
            f"'{path}' has no known format.",
            f"Known are {listing(READERS)}, also compressed ({listing(_OPENERS)}).",
            "Tagged words are read with --kind tagging." if data_suffix(path) in TAGGED else "",
        )
    empty = True
    with readable(path):
        for numbered in reader(path):
            empty = False
            yield numbered
    if empty:
        found = "is empty" if path.stat().st_size == 0 else "holds no rows"
        raise DataError(f"'{path}' {found}.", "It should hold at least two labels with a few texts each.")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the bytes of a file into a `DataError` sentence."""
    try:
        yield
    except PermissionError as error:
        raise DataError(f"'{path}' may not be read: permission is denied.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # each compression has types of its own
        if _is_compressed(path):
            mend = "Fetch or compress the file again."
            raise DataError(f"'{path}' cannot be decompressed: {str(error).rstrip('.')}.", mend=mend) from error
        raise DataError(f"'{path}' cannot be read: {str(error).rstrip('.')}.") from error


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, its encoding told by a byte order mark, else UTF-8."""
    with _open(path) as stream:
        if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield from _lines_of_utf16(path, stream)
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
                byte = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
                raise DataError(
                    f"{path}, line {number}: {byte} is not UTF-8.",
                    mend=f"Convert the file, for instance: iconv -f latin1 -t utf-8 '{path.name}' > utf8-'{path.name}'",
                ) from error


def _lines_of_utf16(path: Path, stream: Any) -> Iterator[str]:
    try:
        for number, line in enumerate(io.TextIOWrapper(stream, "utf-16", newline="\n"), 1):
            if "\0" in line:
                raise DataError(
                    f"{path}, line {number}: a zero character, so this is not text.", mend="Save it again as UTF-8."
                )
            yield line
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' begins with the mark of UTF-16, and is not UTF-16: {error.reason}.", mend="Save it again as UTF-8."
        ) from error


def _json_value(path: Path, number: int, text: str) -> Any:
    """Parse JSON that begins on line ``number`` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number + error.lineno - 1}: not valid JSON ({error.msg}, column {error.colno}).",
            'Each row should be an object such as {"text": "...", "label": "..."}.',
        ) from error


def _require_object(path: Path, number: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, line {number}: a JSON {type(value).__name__}, not an object.",
            'Expected {"text": "...", "label": "..."}.',
        )
    try:
        "".join(cell for cell in value.values() if isinstance(cell, str)).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}, line {number}: '\\u{ord(error.object[error.start]):04x}' is half a character (a lone surrogate).",
            mend="Add the other half, or remove it.",
        ) from error
    return value


def _read_jsonl(path: Path) -> Records:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield number, _require_object(path, number, _json_value(path, number, line))


def _read_json(path: Path) -> Records:
    """A JSON array of objects, or JSON Lines under the name ``.json`` as many benchmarks have it."""
    first = next((line for line in lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from _read_jsonl(path)
        return
    text = "".join(lines(path))
    _json_value(path, 1, text)  # tells what is broken
    decoder, line, end = json.JSONDecoder(), 1, 0
    while (found := _NEXT_VALUE.search(text, end)) and found[0] != "]":
        line += text.count("\n", end, found.start())
        value, end = decoder.raw_decode(text, found.start())
        yield line, _require_object(path, line, value)
        line += text.count("\n", found.start(), end)


def _read_delimited(path: Path) -> Records:
    csv.field_size_limit(2**31 - 1)  # the length of texts is judged later, by one rule for all formats
    numbered = enumerate(lines(path), 1)
    first, header = next(((number, line) for number, line in numbered if line.strip()), (0, ""))
    if not header:
        return
    delimiter = "\t" if data_suffix(path) == ".tsv" else max(",;\t|", key=header.count)
    rows = csv.reader(chain([header], (line for _, line in numbered), [_END]), delimiter=delimiter)
    names: list[str] = []
    begin = first
    try:
        for row in rows:
            line, begin = begin, first + rows.line_num  # a quoted text may run over several lines
            if row == [_END] or not any(cell.strip() for cell in row):
                continue
            if row[-1].endswith(_END):
                raise DataError(f"{path}, line {line}: a quote that is never closed.", mend=_QUOTE)
            if not names:
                names = [name.strip() for name in row]
                _require_distinct(path, line, names)
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}, line {line}: {len(row)} fields.", f"The header has {len(names)} ({listing(names)}).", _QUOTE
                )
            yield line, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {first + rows.line_num - 1}: a carriage return outside of quotes.",
            mend=f"{_QUOTE} If the lines end in carriage returns alone, save the file with ordinary line ends.",
        ) from error


def _require_distinct(path: Path, line: int, names: list[str]) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:  # spreadsheets leave several columns without a name
        raise DataError(f"{path}, line {line}: the header names the column '{twice}' twice.", mend="Rename one of them.")


def _read_text(path: Path) -> Records:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield number, {TEXT_COLUMN_OF_PLAIN_TEXT: line.strip()}


def _read_parquet(path: Path) -> Records:
    import pyarrow.parquet as pq

    source = pa.BufferReader(_open(path).read()) if _is_compressed(path) else path
    number = 0
    try:
        file = pq.ParquetFile(source)
        names = class_names(file.schema_arrow.metadata or {})
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                yield number, decode_classes(record, names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"'{path}' is not a readable Parquet file: {str(error).rstrip('.')}.", mend="Fetch it again."
        ) from error


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
        if isinstance(value, int):
            record[column] = names[column][value] if 0 <= value < len(names[column]) else None
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
    """Tell a JSON file of names (a list of labels, or lists by key such as a split) from one of rows."""
    if path.suffix.lower() != ".json" or path.stat().st_size > _LARGEST_NAMES_FILE:
        return False
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    lists = [value] if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return bool(lists) and all(
        isinstance(names, list) and not any(isinstance(n, (list, dict)) for n in names) for names in lists
    )


def column_names(records: Iterable[Record]) -> list[str]:
    """Return the union of the records' keys, in order of first appearance."""
    return list(dict.fromkeys(key for record in records for key in record))
