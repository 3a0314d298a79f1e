"""Texts as they arrive: from a file, or from a pipe whose other end writes now and then."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kshot.errors import DataError
from kshot.tasks.columns import find_columns
from kshot.tasks.readers import readable

_BYTES_AT_ONCE = 1 << 16


def arriving_lines(source: str, name: str) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the numbered lines that have come so far, so that one who writes a line and waits is answered."""
    number, rest = 1, b""
    with readable(Path(name)), nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb") as opened:
        stream: Any = opened
        while data := stream.read1(_BYTES_AT_ONCE):
            *lines, rest = (rest + data).split(b"\n")
            yield list(enumerate(lines, number))
            number += len(lines)
    yield [(number, rest)]


def input_value(name: str, number: int, line: bytes, column: str | None, whole: bool = False) -> Any:
    """Return what a line asks: the line as it is, or a field of a JSON object; nothing for a blank line.

    Args:
        name, number: where the line is from, for error sentences.
        line: its bytes.
        column: the field of the text; None to find it by name.
        whole: whether a JSON object is what is asked, for kinds that need more than a text.
    """
    where = f"{name}, line {number}"
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text.startswith("{"):
            return text
        record = json.loads(text)
        if whole:
            return record
        found = find_columns(where, [record], column, label_required=False)
        text = record[found.text]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: the field '{found.text}' is {text!r}.", "A text is expected.")
        text.encode()
    except UnicodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error}).", mend="Convert it to UTF-8 first.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: begins like JSON and is not valid JSON ({error}).") from error
    return text
