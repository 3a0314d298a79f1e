"""Files, folders and hub data sets become tasks; whatever is wrong with them becomes a sentence that helps."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import labelled, refusal, write_csv, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import DataError
from kshot.tasks import ReadOptions, SplitSpec, Task, load_tasks, split_tasks
from kshot.tasks import ingest as ingest_module
from kshot.tasks.readers import read_records

ROWS = [
    {"text": "the card was declined", "label": "card"},
    {"text": 'she said: "no", twice; then | left', "label": "card"},
    {"text": "first line\nsecond line", "label": "loan"},
    {"text": "汇率是多少 — café", "label": "loan"},
]
CONTENT = {"card": [ROWS[0]["text"], ROWS[1]["text"]], "loan": [ROWS[2]["text"], ROWS[3]["text"]]}


def content(task: Task) -> dict[str, list[str]]:
    return {name: task.corpus.texts(task.rows(label)) for label, name in enumerate(task.labels)}


def load_one(path: Path, **options: Any) -> Task:
    (task,) = load_tasks(path, ReadOptions(**options))
    return task


def refused(path: Path | str, **options: Any) -> str:
    return refusal(lambda: load_tasks(path, ReadOptions(**options)), DataError)


# Formats


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_json_array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def write_marked_jsonl(path: Path) -> Path:
    path.write_bytes(b"\xef\xbb\xbf" + write_jsonl(path, ROWS).read_bytes())
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "rows.jsonl": lambda path: write_jsonl(path, ROWS),
    "rows.ndjson": lambda path: write_jsonl(path, ROWS),
    "array.json": lambda path: write_json_array(path, ROWS),
    "lines.json": lambda path: write_jsonl(path, ROWS),
    "comma.csv": lambda path: write_csv(path, ROWS),
    "semicolon.csv": lambda path: write_csv(path, ROWS, ";"),
    "tab.csv": lambda path: write_csv(path, ROWS, "\t"),
    "pipe.csv": lambda path: write_csv(path, ROWS, "|"),
    "rows.tsv": lambda path: write_csv(path, ROWS, "\t"),
    "mark.csv": lambda path: write_csv(path, ROWS, encoding="utf-8-sig"),
    "mark.JSONL": write_marked_jsonl,
    "wide.csv": lambda path: write_csv(path, ROWS, encoding="utf-16"),
    "rows.parquet": lambda path: write_parquet(path, ROWS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts_and_labels(name: str, tmp_path: Path) -> None:
    task = load_one(FORMATS[name](tmp_path / name))
    assert content(task) == CONTENT
    assert task.name == name.partition(".")[0]
    assert task.counts() == {"card": 2, "loan": 2} and len(task) == 4


def zstandard(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", ["rows.jsonl", "array.json", "comma.csv", "mark.csv", "wide.csv", "rows.parquet"])
def test_every_format_is_read_compressed(name: str, suffix: str, tmp_path: Path) -> None:
    plain = FORMATS[name](tmp_path / name)
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](plain.read_bytes()))
    assert content(load_one(path)) == CONTENT


def test_big_endian_utf16_and_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for mark, encoding in ((b"\xfe\xff", "utf-16-be"), (b"", "utf-8")):
        path.write_bytes(mark + 'text,label\r\nüber,a\r\n"好\r\n\r\n吗",b\r\n'.encode(encoding))
        assert content(load_one(path)) == {"a": ["über"], "b": ["好\r\n\r\n吗"]}


def test_lines_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    csv_path = tmp_path / "rows.csv"
    csv_path.write_text('\ntext,label\n"one\n\ntwo",a\n\nthree,b\n"four\nfive",a\n', encoding="utf-8")
    assert [line for line, _ in read_records(csv_path)] == [3, 7, 8]
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text('\n{"a": 1}\n\n\n{"a": 2}\n', encoding="utf-8")
    assert [line for line, _ in read_records(jsonl)] == [2, 5]
    array = tmp_path / "rows.json"
    array.write_text('\n[\n {"a": [1,\n  2]}, {"a": 2},\n\n {\n"a": "]"}\n]\n', encoding="utf-8")
    assert list(read_records(array)) == [(3, {"a": [1, 2]}), (4, {"a": 2}), (6, {"a": "]"})]


def test_parquet_of_the_hub_has_its_class_names_decoded(tmp_path: Path) -> None:
    feature = {"names": ["negative", "positive"], "_type": "ClassLabel"}
    info = {"info": {"features": {"label": feature, "text": {"dtype": "string", "_type": "Value"}}}}
    rows = [{"text": f"review {index}", "label": index % 2} for index in range(6)]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert load_one(tmp_path / "rows.parquet").counts() == {"negative": 3, "positive": 3}
    # -1 is the hub's "no label", and a number without a name is none either
    for index, number in ((1, -1), (4, 7)):
        rows[index]["label"] = number
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "holes.parquet")
    assert "holes.parquet, rows 2, 5: no label in column 'label'." in refused(tmp_path / "holes.parquet")


def test_labels_that_are_numbers_or_booleans_become_words(tmp_path: Path) -> None:
    rows = [{"text": f"t{index}", "label": label} for index, label in enumerate([1, 2.0, 1.0, 2, 2.5])]
    assert load_one(write_jsonl(tmp_path / "numbers.jsonl", rows)).counts() == {"1": 2, "2": 2, "2.5": 1}
    rows = [{"text": f"t{index}", "label": index % 2 == 0} for index in range(4)]
    assert load_one(write_jsonl(tmp_path / "truth.jsonl", rows)).labels == ("true", "false")
    rows = [{"text": f"t{index}", "label": " nan " if index % 2 else "Infinity"} for index in range(4)]
    assert load_one(write_jsonl(tmp_path / "words.jsonl", rows)).labels == ("Infinity", "nan")


def test_columns_are_found_by_name_or_given(tmp_path: Path) -> None:
    rows = [{"id": index, "Utterance": f"u{index}", "note": f"n{index}", "Intent": "ab"[index % 2]} for index in range(4)]
    path = write_csv(tmp_path / "rows.csv", rows)
    assert content(load_one(path)) == {"a": ["u0", "u2"], "b": ["u1", "u3"]}
    assert content(load_one(path, text_column="note"))["a"] == ["n0", "n2"]
    assert content(load_one(path, text_column="Intent", label_column="note"))["n0"] == ["a"]
    assert load_one(path).corpus.columns == {"rows.csv": {"text": "Utterance", "label": "Intent", "task": None}}


# Folders


def test_a_folder_with_a_file_per_label(tmp_path: Path) -> None:
    for label in ("sport", "politics"):
        (tmp_path / f"{label}.txt").write_text(f"{label} one\n\n  {label} two \n", encoding="utf-8")
    task = load_one(tmp_path)
    assert content(task) == {"politics": ["politics one", "politics two"], "sport": ["sport one", "sport two"]}
    assert task.name == tmp_path.name
    assert task.corpus.columns["sport.txt"]["label"] is None


def test_texts_in_files_named_as_a_split_are_not_labels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("a text\nanother\n", encoding="utf-8")
    sentence = refused(tmp_path)
    assert "test.txt: no label column found. The columns are: text." in sentence
    assert "give a folder with a file per label" in sentence


@pytest.mark.parametrize(
    "names",
    [
        ["train.csv", "dev.csv", "test.csv"],
        ["training.csv", "val.csv", "testing.csv"],
        ["train_0.csv", "valid-0.csv", "test_public.csv"],
    ],
)
def test_a_folder_with_a_file_per_part(names: list[str], tmp_path: Path) -> None:
    for each, name in enumerate(names, 2):
        write_csv(tmp_path / name, labelled(["a", "b"], each, prefix=name))
    task = load_one(tmp_path)
    assert task.name == tmp_path.name and len(task) == 18
    assert [task.with_part(part).counts() for part in ("train", "validation", "test")] == [
        {"a": each, "b": each} for each in (2, 3, 4)
    ]


def test_the_layout_of_the_hub_is_read_without_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    for part in ("train", "test"):
        for shard in range(2):
            rows = labelled(["good", "bad"], 2, prefix=f"{part}{shard}")
            write_parquet(folder / "data" / f"{part}-0000{shard}-of-00002.parquet", rows)
    (folder / "README.md").write_text("# Reviews\n", encoding="utf-8")
    task = load_one(folder)
    assert task.name == "reviews" and task.counts() == {"good": 8, "bad": 8}
    assert task.with_part("test").counts() == {"good": 4, "bad": 4}
    # as one task among others too
    write_jsonl(tmp_path / "letters" / "all.jsonl", labelled(["a", "b"]))
    assert [task.name for task in load_tasks(tmp_path)] == ["letters", "reviews"]


def test_a_part_without_any_label_is_passed_over(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", labelled(["a", "b"]))
    write_csv(tmp_path / "test.csv", [{"text": f"hidden {index}", "label": ""} for index in range(3)])
    task = load_one(tmp_path)
    assert len(task) == 8 and not task.with_part("test").labels
    write_csv(tmp_path / "train.csv", [{"text": f"t{index}", "label": ""} for index in range(3)])
    assert "train.csv, lines 2, 3, 4: no label in column 'label'." in refused(tmp_path)


def test_a_folder_with_a_file_per_task_or_a_folder_per_task(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "finance.jsonl", labelled(["card", "loan"]))
    write_csv(tmp_path / "law.csv", labelled(["tort", "contract"]))
    write_csv(tmp_path / "news" / "data.csv", labelled(["sport", "politics"]))
    write_csv(tmp_path / "health" / "intents.csv", labelled(["visit", "bill"]))
    for name in ("draws", "eval"):
        write_jsonl(tmp_path / "airline" / f"{name}.jsonl", labelled(["late", "lost"], prefix=name))
        write_jsonl(tmp_path / "books" / f"{name}.jsonl", labelled(["1", "2"], prefix=name))
    found = {task.name: task.labels for task in load_tasks(tmp_path)}
    assert found == {
        "airline-draws": ("late", "lost"),
        "airline-eval": ("late", "lost"),
        "books-draws": ("1", "2"),
        "books-eval": ("1", "2"),
        "health": ("visit", "bill"),
        "news": ("sport", "politics"),
        "finance": ("card", "loan"),
        "law": ("tort", "contract"),
    }
    files = set(load_tasks(tmp_path)[0].corpus.columns)  # of the same name too
    assert {"finance.jsonl", "draws.jsonl", "books/draws.jsonl", "eval.jsonl", "books/eval.jsonl"} <= files


def test_files_that_are_no_rows_are_ignored(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", labelled(["a", "b"]))
    write_jsonl(tmp_path / "out_of_scope.jsonl", [{"text": "something else"}, {"text": "and more"}])
    for path, names in (
        ("folds/1.json", {"train": ["a"], "valid": [], "test": ["b"]}),
        ("domains.json", {"letters": ["a", "b"]}),
        ("categories.json", ["a", "b"]),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps(names), encoding="utf-8")
    (tmp_path / ".hidden.csv").write_text("", encoding="utf-8")
    assert load_one(tmp_path).counts() == {"a": 4, "b": 4}


def test_a_split_beside_other_labelled_files_is_refused(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        write_csv(tmp_path / f"{name}.csv", labelled(["a", "b"]))
    sentence = refused(tmp_path)
    assert "holds the files of a split (train), and others: extra.csv." in sentence and "rename them" in sentence


def test_a_task_column_divides_a_file_into_tasks(tmp_path: Path) -> None:
    rows = [{**row, "domain": domain} for domain in ("bank", "shop", 0) for row in labelled(["yes", "no"], prefix=f"{domain} ")]
    rows += [{"text": "left alone", "label": "yes", "domain": None}, {"text": "left alone too", "label": "no", "domain": " "}]
    tasks = load_tasks(write_jsonl(tmp_path / "all.jsonl", rows), ReadOptions(task_column="domain"))
    assert [(task.name, len(task)) for task in tasks] == [("bank", 8), ("shop", 8), ("0", 8), ("all", 2)]
    assert content(tasks[1])["no"][0] == "shop no number 0"


def test_tasks_of_one_file_may_be_labelled_by_words_and_by_numbers(tmp_path: Path) -> None:
    rows = [{**row, "domain": domain} for domain, labels in (("a", "xy"), ("b", "12")) for row in labelled(labels)]
    tasks = load_tasks(write_jsonl(tmp_path / "all.jsonl", rows), ReadOptions(task_column="domain"))
    assert [task.labels for task in tasks] == [("x", "y"), ("1", "2")]


def test_several_sources_keep_unique_names(tmp_path: Path) -> None:
    paths = [
        write_jsonl(tmp_path / str(index) / "x" / f"{name}.jsonl", labelled(["a", "b"], prefix=str(index)))
        for index, name in enumerate(["t", "t", "t-2", "t"])
    ]
    assert [task.name for task in load_tasks(paths)] == ["x/t", "x/t-2", "t-2", "x/t-3"]
    assert "No tasks were named." in refusal(lambda: load_tasks([]), DataError)


# Bundled tasks and the hub


def test_bundled_tasks_load_by_language_and_by_industry() -> None:
    english, chinese = load_tasks("bundled:en"), load_tasks("bundled:zh")
    assert len(english) >= 10 and len(chinese) >= 4
    (law,) = load_tasks("bundled:en/law")
    assert law.name == "law" and law.counts() == {task.name: task for task in english}["law"].counts()
    for task in english + chinese:
        assert len(task.labels) >= 5 and min(task.counts().values()) >= 10  # 5-way 5-shot with 5 queries


def test_a_wrong_bundled_name_is_told_the_nearest() -> None:
    assert "No bundled tasks 'en/finanse'. Did you mean 'en/finance'? There are: en, en/customer_service," in refused(
        "bundled:en/finanse"
    )
    assert "No bundled tasks ''." in refused("bundled:")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import datasets
    import huggingface_hub

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    return datasets


def test_a_data_set_of_the_hub_is_read(offline: Any, tmp_path: Path) -> None:
    features = offline.Features({"text": offline.Value("string"), "label": offline.ClassLabel(names=["neg", "pos"])})
    folder = tmp_path / "reviews" / "data"
    folder.mkdir(parents=True)
    for part, labels in (("train", [0, 1, 0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        rows = {"text": [f"{part} {index}" for index in range(len(labels))], "label": labels}
        offline.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))
    (task,) = load_tasks(f"hub:{tmp_path / 'reviews'}")
    assert task.name == "reviews"
    assert content(task.with_part("train")) == {"neg": ["train 0", "train 2"], "pos": ["train 1", "train 3"]}
    assert task.with_part("validation").counts() == {"neg": 1, "pos": 1}
    assert not task.with_part("test").labels  # its labels are hidden
    (again,) = load_tasks(f"hub:{tmp_path / 'reviews'}")
    assert again.corpus.fingerprint == task.corpus.fingerprint


def test_an_unknown_data_set_of_the_hub_is_one_sentence_soon(offline: Any) -> None:
    began = time.monotonic()
    sentence = refused("hub:no-such-name")
    assert "The hub's data set 'no-such-name' could not be loaded: Couldn't reach 'no-such-name' on the Hub" in sentence
    assert "Check the name (hub:owner/name or hub:owner/name:config) and the network" in sentence
    assert "\n" not in sentence
    assert time.monotonic() - began < 20


# Refusals


def test_an_absent_file_is_told_its_nearest_sibling(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "banking.jsonl", labelled(["a", "b"]))
    sentence = refused(tmp_path / "bankng.jsonl")
    assert f"No such file or folder: '{tmp_path / 'bankng.jsonl'}'. Did you mean 'banking.jsonl'?" in sentence
    assert "No such file or folder" in refused(tmp_path / "nowhere" / "at" / "all.csv")


def test_an_unknown_format_and_an_empty_folder_name_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.docx").write_bytes(b"PK")
    assert "rows.docx' has no known format. Known are .jsonl," in refused(tmp_path / "rows.docx")
    assert "holds no data file. Expected files ending in .jsonl," in refused(tmp_path)


def test_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "header.csv").write_text("text,label\n\n", encoding="utf-8")
    (tmp_path / "array.json").write_text("[]", encoding="utf-8")
    assert "empty.csv' is empty. It should hold at least two labels" in refused(tmp_path / "empty.csv")
    assert "header.csv' holds no rows. It should hold at least two labels" in refused(tmp_path / "header.csv")
    assert "array.json' holds no rows." in refused(tmp_path / "array.json")


def test_text_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("text,label\nfine,a\ncafé,b\n".encode("latin-1"))
    sentence = refused(path)
    assert f"{path}, line 3: byte 0xe9 at position 4 is not UTF-8." in sentence
    assert "iconv -f latin1 -t utf-8 'rows.csv'" in sentence


def test_utf16_without_a_mark_or_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("text,label\nfine,a\n".encode("utf-16-le"))
    sentence = refused(path)
    assert f"{path}, line 1: a zero byte" in sentence and "iconv -f utf-16le -t utf-8 'rows.csv'" in sentence
    path.write_bytes("text,label\nfine,a\nbad,b\n".encode("utf-16")[:-1])
    assert "begins with the mark of UTF-16, and is not UTF-16" in refused(path)
    path.write_bytes("text,label\nfine,a\n".encode("utf-32"))
    assert "a zero character, so this is not text." in refused(path)


def test_rows_without_text_or_label_are_reported_together(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = labelled(["a", "b"], 6)
    for index in (1, 2, 3, 5, 7, 8, 9):
        rows[index]["label"] = None
    rows[4] = {"label": "a"}
    rows[10]["text"] = "  "
    rows[11]["text"] = 17
    sentence = refused(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "rows.jsonl, lines 2, 3, 4, 6, 8 and 2 more: no label in column 'label'." in sentence
    assert "rows.jsonl, lines 5, 11: no text in column 'text'." in sentence
    assert "rows.jsonl, line 12: the text in column 'text' is of type int, not a string." in sentence
    mend = "Mend or remove these rows, or pass over them with --skip-empty."
    assert sentence.endswith(f"Every row needs a text and a label. {mend}")


@pytest.mark.parametrize("label", [["a", "b"], {"name": "a"}])
def test_a_list_as_label_is_refused(label: Any, tmp_path: Path) -> None:
    rows = [*labelled(["a", "b"]), {"text": "both", "label": label}]
    sentence = refused(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert (
        f"line 9: the label in column 'label' is a JSON {type(label).__name__}, and one label a text is expected." in sentence
    )


def test_a_given_column_that_is_absent_names_those_found(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"utterance": "u", "intent": "a"}, {"utterance": "v", "intent": "b"}])
    assert (
        f"{path}: no column 'utterence' (--text-column). The columns are: utterance, intent. Did you mean 'utterance'?"
        in refused(path, text_column="utterence")
    )
    assert "no column 'intend' (--label-column). The columns are: utterance, intent. Did you mean 'intent'?" in refused(
        path, label_column="intend"
    )
    assert "no column 'domain' (--task-column)." in refused(path, task_column="domain")


def test_columns_that_are_not_found_by_name_are_guessed(tmp_path: Path) -> None:
    rows = [{"no": index, "words": f"a longer remark {index}", "kind": "xy"[index % 2], "set": 1} for index in range(6)]
    path = write_csv(tmp_path / "rows.csv", rows)
    sentence = refused(path)
    assert "no text column found. The columns are: no, words, kind, set. Name it: --text-column 'words'" in sentence
    sentence = refused(path, text_column="words")
    assert "no label column found. The columns are: no, words, kind, set. Name it: --label-column 'kind'" in sentence
    (tmp_path / "alone.txt").write_text("a text\nanother\n", encoding="utf-8")
    assert "Add a column 'label', or give a folder with a file per label." in refused(tmp_path / "alone.txt")


def test_one_label_only_is_refused(tmp_path: Path) -> None:
    sentence = refused(write_jsonl(tmp_path / "rows.jsonl", labelled(["spam"])))
    assert "'rows': the task 'rows' has one label only, 'spam' (from column 'label'). A task needs at least two." in sentence
    rows = [{**row, "kind": kind} for kind, labels in (("x", "ab"), ("y", "a")) for row in labelled(labels)]
    sentence = refused(write_jsonl(tmp_path / "tasks.jsonl", rows), task_column="kind")
    assert "the task 'y' has one label only, 'a'" in sentence and "--label-column" in sentence


def test_words_and_numbers_as_labels_are_refused_unless_accepted(tmp_path: Path) -> None:
    rows = [*labelled(["yes", "no"], 2), {"text": "typo", "label": 1}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sentence = refused(path)
    assert f"mixed: a word 'yes' ({path}, line 1) and a number '1' ({path}, line 5)." in sentence
    assert "--mixed-labels" in sentence
    assert load_one(path, mixed_labels=True).labels == ("yes", "no", "1")


def test_a_text_of_a_million_characters_is_refused_unless_allowed(tmp_path: Path) -> None:
    rows = [*labelled(["a", "b"]), {"text": "x" * 1_000_000, "label": "a"}]
    for path in (write_jsonl(tmp_path / "rows.jsonl", rows), write_csv(tmp_path / "rows.csv", rows)):
        sentence = refused(path)
        assert f"line {9 + (path.suffix == '.csv')}: a text of 1,000,000 characters. The limit is 200,000;" in sentence
        assert "--max-text-characters" in sentence
        assert len(load_one(path, max_text_characters=1_000_000)) == 9


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", labelled(["a", "b"]))
    path.write_text(path.read_text(encoding="utf-8") + '{"text": "cut', encoding="utf-8")
    sentence = refused(path)
    assert f"{path}, line 9: not valid JSON (Unterminated string starting at, column 10)." in sentence
    assert 'should be an object such as {"text": "...", "label": "..."}' in sentence
    path = tmp_path / "array.json"
    path.write_text('[\n {"text": "x", "label": "a"},\n {"text": "y" "label": "b"}\n]', encoding="utf-8")
    assert f"{path}, line 3: not valid JSON (Expecting ',' delimiter, column 15)." in refused(path)
    path = write_jsonl(tmp_path / "lists.jsonl", [["text", "label"]])
    assert f"{path}, line 1: a JSON list, not an object." in refused(path)


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine \\ud83d\\ude00", "label": "a"}\n{"text": "cut \\ud83d", "label": "b"}\n', encoding="utf-8")
    assert f"{path}, line 2: '\\ud83d' is half a character (a lone surrogate)." in refused(path)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("one,a\ntwo,too,b\n", "line 3: 3 fields. The header has 2 (text, label). Put a text that contains the delimiter"),
        ('one,a\n"two\nlines",b\nthree\n', "line 5: 1 fields. The header has 2"),
        ('one,a\n"two,b\nthree,a\n', "line 3: a quote that is never closed."),
        ('one,a\ntwo,"b\nthree,a\n', "line 3: a quote that is never closed."),
        ("one,a\ntwo\rthree,b\n", "line 3: a carriage return outside of quotes."),
    ],
)
def test_a_malformed_line_of_csv_is_named(body: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + body.encode())
    assert f"{path}, {sentence}" in refused(path)


def test_a_header_with_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label,label\nx,a,b\n", encoding="utf-8")
    assert f"{path}, line 1: the header names the column 'label' twice." in refused(path)
    path.write_text("text,label,,\nx,a,,\ny,b,,\n", encoding="utf-8")  # a spreadsheet's empty columns do no harm
    assert load_one(path).labels == ("a", "b")
    path.write_bytes(b"text,label\rone,a\rtwo,b\r")
    assert "line 1: a carriage return outside of quotes." in refused(path)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_damaged_compressed_files_are_refused(suffix: str, damage: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(40).hex(), "label": "ab"[index % 2]} for index in range(400)]
    whole = COMPRESSIONS[suffix](write_jsonl(tmp_path / "rows.jsonl", rows).read_bytes())
    middle = len(whole) // 2
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(whole[:-200] if damage == "cut" else whole[:middle] + bytes(64) + whole[middle + 64 :])
    sentence = refused(path)
    assert "rows.jsonl" in sentence
    if damage == "cut":
        assert f"'{path}' cannot be decompressed:" in sentence and "Fetch or compress the file again." in sentence


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(40).hex(), "label": "ab"[index % 2]} for index in range(400)]
    whole = write_parquet(tmp_path / "rows.parquet", rows).read_bytes()
    middle = len(whole) // 3
    for bytes_ in (b"", whole[:-100], b"not a parquet file at all", whole[:middle] + bytes(2000) + whole[middle + 2000 :]):
        (tmp_path / "rows.parquet").write_bytes(bytes_)
        assert f"'{tmp_path / 'rows.parquet'}' is not a readable Parquet file: " in refused(tmp_path / "rows.parquet")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(FORMATS)), suffix=st.sampled_from(["", *COMPRESSIONS]))
def test_damage_anywhere_is_a_sentence_or_no_harm(
    data: st.DataObject, name: str, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    whole = FORMATS[name](folder / name).read_bytes()
    whole = COMPRESSIONS[suffix](whole) if suffix else whole
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 20)))
    path = folder / (name + suffix)
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:])
    try:
        list(read_records(path))
    except DataError as error:
        assert name in str(error)  # noqa: PT017


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", labelled(["a", "b"]))

    def no(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", no)
    assert refused(path) == f"'{path}' may not be read: permission is denied."


def test_nothing_half_written_is_left_after_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    rows = [*labelled(["a", "b"], 9_000), {"text": "no label"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    refused(path)
    refused(write_jsonl(tmp_path / "one.jsonl", labelled(["a"])))
    assert not [entry for entry in (tmp_path / "cache").rglob("*") if entry.name != "corpora"]
    load_one(write_jsonl(path, rows[:-1]))  # mended, it loads
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 1


# The corpus


def test_the_same_contents_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = labelled(["same", "contents"], prefix="read once ")
    first = load_one(write_jsonl(tmp_path / "one" / "rows.jsonl", rows)).corpus
    monkeypatch.setattr(ingest_module, "_write", lambda *_: pytest.fail("the rows were read again"))
    again = load_one(write_jsonl(tmp_path / "two" / "rows.jsonl", rows)).corpus
    assert again.fingerprint == first.fingerprint and again.folder == first.folder
    assert content(again.tasks()[0]) == content(first.tasks()[0])


def test_a_corpus_that_another_process_finished_first_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = ingest_module._write

    def overtaken(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        monkeypatch.setattr(ingest_module, "_write", write)
        load_one(path)  # the other process is quicker

    monkeypatch.setattr(ingest_module, "_write", overtaken)
    path = write_jsonl(tmp_path / "rows.jsonl", labelled(["a", "b"], prefix="overtaken "))
    assert load_one(path).counts() == {"a": 4, "b": 4}


def test_processes_that_read_the_same_files_at_once_agree(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", labelled(["a", "b"], 3_000))
    code = f"from kshot.tasks import load_tasks; (task,) = load_tasks({str(path)!r}); print(task.corpus.text(5_999), len(task))"
    environment = {**os.environ, "KSHOT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate()[0] for process in processes} == {"b number 2999 6000\n"}
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 1


@pytest.mark.parametrize("change", ["text", "label", "name", "column"])
def test_other_contents_are_another_corpus(change: str, tmp_path: Path) -> None:
    rows = [{**row, "other": row["text"]} for row in labelled(["a", "b"])]
    before = load_one(write_jsonl(tmp_path / "rows.jsonl", rows)).corpus.fingerprint
    changed = [dict(row) for row in rows]
    changed[0]["text"] += "!" if change == "text" else ""
    changed[0]["label"] = "b" if change == "label" else "a"
    path = write_jsonl(tmp_path / ("other.jsonl" if change == "name" else "rows.jsonl"), changed)
    after = load_one(path, text_column="other" if change == "column" else None).corpus.fingerprint
    assert after != before


def test_rows_lie_right_across_record_batches(tmp_path: Path) -> None:
    count = 2 * 16_384 + 5
    labels = [f"label {index % 7 % 3}" for index in range(count)]
    rows = [{"text": f"row {index}", "label": label} for index, label in enumerate(labels)]
    task = load_one(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert len(task) == len(task.corpus) == count
    for row in (0, 1, 16_383, 16_384, 16_385, 32_767, 32_768, count - 1):
        assert task.corpus.text(row) == f"row {row}"
    assert task.counts() == dict(Counter(labels))
    for index, name in enumerate(task.labels):
        np.testing.assert_array_equal(task.rows(index), [row for row, label in enumerate(labels) if label == name])
        assert task.count(index) == len(task.rows(index))


def test_rows_that_end_on_a_batch_border_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"row {index},{'ab'[index % 2]}\n" for index in range(16_384)), encoding="utf-8")
    task = load_one(path)
    assert len(task) == 16_384 and task.corpus.text(16_383) == "row 16383"


def test_labels_keep_their_order_and_parts_their_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", labelled(["zebra", "ant"], 2))
    write_jsonl(tmp_path / "test.jsonl", labelled(["ant", "bee"], 3, prefix="test "))
    task = load_one(tmp_path)
    assert task.counts() == {"ant": 5, "bee": 3, "zebra": 2}  # test.jsonl is read before train.jsonl
    assert content(task.with_part("test"))["ant"] == [f"test ant number {index}" for index in range(3)]
    chosen = task.with_labels({"zebra", "bee", "unknown"})
    assert chosen.labels == ("bee", "zebra") and content(chosen)["zebra"] == content(task)["zebra"]
    assert not task.with_part("validation").labels


def test_duplicates_are_kept_and_told_by_their_hash(tmp_path: Path) -> None:
    texts = ["Hello  World", "hello world", "ＨＥＬＬＯ world ", "hello, world"]
    rows = [{"text": text, "label": label} for label in "ab" for text in texts]
    task = load_one(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert len(task) == 8 and content(task)["a"] == texts
    assert len(set(task.corpus.hashes.tolist())) == 2


def test_rows_without_text_or_label_are_passed_over_on_request_and_counted(tmp_path: Path) -> None:
    rows = [*labelled(["a", "b"]), {"text": " ", "label": "a"}, {"text": "no label"}]
    path = write_jsonl(tmp_path / "gaps.jsonl", rows)
    with pytest.raises(DataError, match="pass over them with --skip-empty"):
        load_tasks(path)
    task = load_tasks(path, ReadOptions(skip_empty=True))[0]
    assert len(task) == len(labelled(["a", "b"]))
    assert task.corpus.skipped == {"gaps.jsonl": 2}
    broken = write_jsonl(tmp_path / "broken.jsonl", [*rows, {"text": 7, "label": "a"}])
    with pytest.raises(DataError, match="not a string"):
        load_tasks(broken, ReadOptions(skip_empty=True))


@pytest.mark.parametrize("count", range(6, 12))
def test_few_labels_are_split_with_two_in_every_part(tmp_path: Path, count: int) -> None:
    tasks = load_tasks(write_jsonl(tmp_path / "few.jsonl", labelled([f"l{i}" for i in range(count)])))
    suite = split_tasks(tasks, SplitSpec("class"))
    sizes = [len(suite[split][0].labels) for split in ("train", "validation", "test")]
    assert sum(sizes) == count
    assert min(sizes) >= 2
    assert sizes[0] == max(sizes)
