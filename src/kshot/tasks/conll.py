"""Reading tagged words: a word and its tag a line, sentences apart by empty lines."""

from __future__ import annotations

import re
from pathlib import Path

from kshot.errors import DataError
from kshot.tasks.readers import Record, Records, lines

_TAG = re.compile(r"^(O|[BIESLUM]([-_].+)?)$")


def read_conll(path: Path) -> Records:
    """Yield ``(first line, {"words": [...], "tags": [...]})`` for each sentence.

    Columns are apart by tabs, or by blanks; the first is the word, the last its tag. Lines that begin with ``-DOCSTART-`` and
    comments (``# intent = PlayMusic``) are passed over.

    Raises:
        DataError: a line with a word alone, naming file and line.
    """
    first, record = 0, Record(words=[], tags=[])
    for number, line in enumerate(lines(path), 1):
        columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
        if not any(columns):
            if record["words"]:
                yield first, record
                record = Record(words=[], tags=[])
            continue
        if columns[0].startswith("-DOCSTART-") or _is_comment(line, columns[-1]):
            continue
        if len(columns) < 2 or not columns[0]:
            raise DataError(
                f"{path}, line {number}: {line.strip()!r} is one column.",
                "A word and its tag are expected, apart by a tab or a blank, such as 'Paris\tB-place'.".replace("\t", "\\t"),
                "Give the word a tag (O for none), or put an empty line between sentences.",
            )
        first = first if record["words"] else number
        record["words"].append(columns[0])
        record["tags"].append(columns[-1])
    if record["words"]:
        yield first, record


def _is_comment(line: str, last: str) -> bool:
    return line.startswith("# ") and not ("\t" in line or _TAG.match(last))
