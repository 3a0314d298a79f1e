"""Meta-train, meta-validation and meta-test share no label or task, hold everything, and are reproduced by a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import labelled, refusal, write_csv, write_jsonl
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kshot.errors import ConfigError, DataError
from kshot.tasks import SplitSpec, Task, TaskSuite, load_tasks, split_tasks
from kshot.tasks.suite import SPLITS


def new_tasks(folder: Path, count: int, labels: int = 10, each: int = 2) -> list[Task]:
    """Tasks ``task-0``, ``task-1``, ... with labels of their own, in a folder with a file per task."""
    for index in range(count):
        names = [f"t{index}-{label}" for label in range(labels)]
        write_jsonl(folder / f"task-{index}.jsonl", labelled(names, each))
    return load_tasks(folder)


def labels(suite: TaskSuite, split: str) -> set[str]:
    return {label for task in suite[split] for label in task.labels}


@pytest.fixture(scope="module")
def intents(tmp_path_factory: pytest.TempPathFactory) -> Task:
    (task,) = new_tasks(tmp_path_factory.mktemp("intents"), 1, labels=20)
    return task


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    return new_tasks(tmp_path_factory.mktemp("domains"), 10, labels=4)


@settings(max_examples=60, deadline=None)
@given(
    train=st.integers(1, 6),
    validation=st.integers(0, 6),
    test=st.integers(0, 6),
    seed=st.integers(0, 1000),
    count=st.integers(4, 20),
)
def test_by_class_every_label_lands_in_one_part(
    intents: Task, train: int, validation: int, test: int, seed: int, count: int
) -> None:
    task = intents.with_labels(set(intents.labels[:count]))
    spec = SplitSpec("class", (train, validation, test), seed)
    try:
        suite = split_tasks([task], spec)
    except DataError:  # too few labels for these shares
        reject()
    parts = [labels(suite, split) for split in SPLITS]
    assert set().union(*parts) == set(task.labels) and sum(map(len, parts)) == count
    assert [bool(part) for part in parts] == [share > 0 for share in spec.ratios]
    assert suite == split_tasks([task], spec)
    for part in suite["train"]:  # the rows of a label are those that it had
        for index, name in enumerate(part.labels):
            assert part.rows(index).tolist() == task.rows(task.labels.index(name)).tolist()


def test_by_class_follows_ratios_and_seed(intents: Task, domains: list[Task]) -> None:
    suite = split_tasks([intents], SplitSpec("class"))
    assert [len(labels(suite, split)) for split in SPLITS] == [12, 4, 4]
    others = {frozenset(labels(split_tasks([intents], SplitSpec("class", seed=seed)), "test")) for seed in range(5)}
    assert len(others) > 1
    suite = split_tasks(domains, SplitSpec("class", (0.5, 0, 0.5)))
    assert [len(suite[split]) for split in SPLITS] == [10, 0, 10]
    assert suite.train[0].name == suite.test[0].name == "task-0"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(3, 10))
def test_by_task_every_task_lands_in_one_part(domains: list[Task], seed: int, count: int) -> None:
    spec = SplitSpec("task", (0.4, 0.3, 0.3), seed)
    suite = split_tasks(domains[:count], spec)
    names = [task.name for split in SPLITS for task in suite[split]]
    assert sorted(names) == sorted(task.name for task in domains[:count])
    assert all(suite[split] for split in SPLITS)
    assert suite == split_tasks(domains[:count], spec)


def test_seeds_divide_tasks_differently(domains: list[Task]) -> None:
    suites = [split_tasks(domains, SplitSpec("task", seed=seed)) for seed in range(5)]
    assert len({frozenset(task.name for task in suite.test) for suite in suites}) > 1


def test_auto_goes_by_task_where_there_are_five(domains: list[Task]) -> None:
    suite = split_tasks(domains[:5], SplitSpec())
    assert [len(suite[split]) for split in SPLITS] == [3, 1, 1]
    assert split_tasks(domains[:4], SplitSpec(ratios=(0.5, 0, 0.5))) == split_tasks(
        domains[:4], SplitSpec("class", (0.5, 0, 0.5))
    )


def test_as_given_follows_the_files(tmp_path: Path) -> None:
    for domain in ("books", "films"):
        write_csv(tmp_path / domain / "train.csv", labelled(["good", "bad"], 4, prefix=f"{domain} "))
        write_csv(tmp_path / domain / "dev.csv", labelled(["good", "bad"], 2, prefix=f"{domain} dev "))
    write_csv(tmp_path / "books" / "test.csv", labelled(["fair", "poor"], 3))
    suite = split_tasks(load_tasks(tmp_path), SplitSpec("given"), name="reviews")
    assert suite.name == "reviews"
    assert [[(task.name, task.counts()) for task in suite[split]] for split in SPLITS] == [
        [("books", {"good": 4, "bad": 4}), ("films", {"good": 4, "bad": 4})],
        [("books", {"good": 2, "bad": 2}), ("films", {"good": 2, "bad": 2})],
        [("books", {"fair": 3, "poor": 3})],
    ]


def test_given_without_a_train_file_is_refused(intents: Task) -> None:
    sentence = refusal(lambda: split_tasks([intents], SplitSpec("given")), DataError)
    assert "--split given: no file is named train." in sentence and "Use --split class or --split task." in sentence


# A split file


def split_file(folder: Path, value: Any, name: str = "split.json") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_a_split_file_names_labels(intents: Task, tmp_path: Path) -> None:
    chosen = {"train": ["t0-3", "t0-1"], "valid": ["t0-2", "t0-5"], "test": ["t0-19", "t0-0"]}
    suite = split_tasks([intents], SplitSpec(str(split_file(tmp_path, chosen))))
    assert [labels(suite, split) for split in SPLITS] == [set(names) for names in chosen.values()]
    assert suite.train[0].labels == ("t0-1", "t0-3")  # in the order of the data


def test_a_split_file_names_tasks_and_may_leave_parts_out(domains: list[Task], tmp_path: Path) -> None:
    path = split_file(tmp_path, {"train": ["task-4", "task-1"], "test": ["task-2"], "note": "by hand"})
    suite = split_tasks(domains, SplitSpec(str(path)))
    assert [[task.name for task in suite[split]] for split in SPLITS] == [["task-1", "task-4"], [], ["task-2"]]
    assert suite.test[0].counts() == domains[2].counts()


def test_a_split_file_of_labels_drops_tasks_that_keep_none(domains: list[Task], tmp_path: Path) -> None:
    path = split_file(tmp_path, {"train": ["t1-0", "t1-1", "t2-3"], "test": ["t2-0", "t2-1"]})
    suite = split_tasks(domains, SplitSpec(str(path)))
    assert [[(task.name, task.labels) for task in suite[split]] for split in SPLITS] == [
        [("task-1", ("t1-0", "t1-1")), ("task-2", ("t2-3",))],
        [],
        [("task-2", ("t2-0", "t2-1"))],
    ]


def test_a_split_file_lies_in_the_data_folder_first(intents: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, here = tmp_path / "data", tmp_path / "here"
    split_file(data, {"train": ["t0-0", "t0-1"], "test": ["t0-2"]}, "1.json")
    split_file(here, {"train": ["t0-7", "t0-8"], "test": ["t0-9"]}, "1.json")
    monkeypatch.chdir(here)
    assert labels(split_tasks([intents], SplitSpec("1.json"), folder=data), "train") == {"t0-0", "t0-1"}
    assert labels(split_tasks([intents], SplitSpec("1.json")), "train") == {"t0-7", "t0-8"}
    sentence = refusal(lambda: split_tasks([intents], SplitSpec("2.json"), folder=data), DataError)
    assert f"looked for the file at {data / '2.json'}, 2.json." in sentence


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"train": ["t0-0"], "test": ["t0-3", "to-4"]},
            "names under 'test' what the data does not have: to-4. Did you mean 't0-4'?",
        ),
        ({"train": ["t0-0", "t0-1"], "valid": ["t0-1", "t0-2"]}, "names in more than one part: t0-1."),
        ({"train": ["task-0"], "test": ["tusk-0"]}, "names under 'test' what the data does not have: tusk-0."),
        ({"test": ["t0-0"]}, "names nothing for 'train'. Expected {\"train\": [...]"),
        (["t0-0"], "names nothing for 'train'."),
        ({"train": ["t0-0"], "tset": ["t0-1"]}, "has the key 'tset'. Did you mean 'test'?"),
        ("{'train': ", "is not valid JSON: Expecting property name"),
    ],
)
def test_a_wrong_split_file_is_refused(value: Any, sentence: str, intents: Task, tmp_path: Path) -> None:
    path = split_file(tmp_path, value)
    said = refusal(lambda: split_tasks([intents], SplitSpec(str(path))), DataError)
    assert said.startswith(f"The split file '{path}' ") and sentence in said


# Refusals


def test_too_few_labels_or_tasks_are_told(intents: Task, domains: list[Task]) -> None:
    few = intents.with_labels(set(intents.labels[:5]))
    sentence = refusal(lambda: split_tasks([few], SplitSpec("class")), DataError)
    assert "The task 'task-0' has 5 labels. Divided by class (0.6, 0.2, 0.2) a part would have 1" in sentence
    assert "other --split-ratios" in sentence
    sentence = refusal(lambda: split_tasks(domains[:2], SplitSpec("task")), DataError)
    assert "2 task(s) divided by task (0.6, 0.2, 0.2) leave none for meta-" in sentence and "--split class" in sentence


def test_neither_a_way_nor_a_file_is_told_the_nearest(intents: Task) -> None:
    sentence = refusal(lambda: split_tasks([intents], SplitSpec("clas")), DataError)
    assert "--split 'clas' is neither a way to split nor a file. Did you mean 'class'?" in sentence
    assert "Ways are auto, class, task and given" in sentence


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0, 0.5, 0.5), (0.8, -0.1, 0.3)])
def test_wrong_shares_are_refused(ratios: Any) -> None:
    assert "Three shares of at least 0 are expected, the first above 0." in refusal(
        lambda: SplitSpec(ratios=ratios), ConfigError
    )


def test_a_negative_seed_and_an_unknown_split_are_refused(intents: Task) -> None:
    assert "split.seed is -1." in refusal(lambda: SplitSpec(seed=-1), ConfigError)
    suite = split_tasks([intents], SplitSpec("class"))
    assert "No split 'tets'. Did you mean 'test'?" in refusal(lambda: suite["tets"], ConfigError)


# Overlap


def test_overlap_finds_texts_that_differ_in_case_width_and_space_only(tmp_path: Path) -> None:
    seen = ["Where is my card?", "Straße 5", "ｆｕｌｌ　ｗｉｄｔｈ", "unlike\tanything"]
    again = ["  where IS my   card? ", "STRASSE 5", "Full Width", "unlike any thing", "Where is my cart?"]
    rows = [{"text": text, "label": label} for label in ("a", "b") for text in seen]
    rows += [{"text": text, "label": label} for label in ("c", "d") for text in again]
    task = load_tasks(write_jsonl(tmp_path / "rows.jsonl", rows))
    path = split_file(tmp_path, {"train": ["a", "b"], "test": ["c", "d"]})
    suite = split_tasks(task, SplitSpec(str(path)))
    assert suite.overlap() == tuple(again[:3])
    assert TaskSuite("alone", (), (), suite.test).overlap() == ()


def test_fingerprints_identify_the_data_by_task(domains: list[Task]) -> None:
    suite = split_tasks(domains, SplitSpec("task"))
    assert suite.fingerprints() == {task.name: task.corpus.fingerprint[:16] for task in domains}
