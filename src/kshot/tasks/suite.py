"""A suite: tasks with a meta-train, meta-validation and meta-test split, by class, by task, or as given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kshot.errors import ConfigError, DataError, listing, nearest
from kshot.tasks.sources import PARTS
from kshot.tasks.task import Task

SPLITS = ("train", "validation", "test")
_FEWEST_TASKS_TO_SPLIT_BY_TASK = 5
_EXPECTED_SPLIT = 'Expected {"train": [...], "valid": [...], "test": [...]} with the names of labels or of tasks.'


@dataclass(frozen=True)
class SplitSpec:
    """How tasks are divided for meta-learning.

    Args:
        by: ``class`` (each task's labels are divided), ``task`` (whole tasks are), ``given`` (by the files train, validation
            and test that the data came in), ``auto`` (by task where there are at least five, else by class), or the path
            of a JSON file ``{"train": [...], "valid": [...], "test": [...]}`` that names labels or tasks.
        ratios: the shares of train, validation and test, for ``class`` and ``task``.
        seed: shuffles labels or tasks before they are divided.
    """

    by: str = "auto"
    ratios: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.ratios) != 3 or min(self.ratios) < 0 or self.ratios[0] <= 0:
            raise ConfigError(f"split.ratios is {self.ratios}.", "Three shares of at least 0 are expected, the first above 0.")
        if self.seed < 0:
            raise ConfigError(f"split.seed is {self.seed}.", "A number from 0 up is expected.")


@dataclass(frozen=True)
class TaskSuite:
    """Tasks divided into meta-train, meta-validation and meta-test."""

    name: str
    train: tuple[Task, ...]
    validation: tuple[Task, ...]
    test: tuple[Task, ...]

    def __getitem__(self, split: str) -> tuple[Task, ...]:
        if split not in SPLITS:
            raise ConfigError(f"No split '{split}'.{nearest(split, SPLITS)}", f"There are: {listing(SPLITS)}.")
        tasks: tuple[Task, ...] = getattr(self, split)
        return tasks

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each task's data, by task name; they identify the contents and reveal none."""
        return {task.name: task.corpus.fingerprint[:16] for split in SPLITS for task in self[split]}

    def overlap(self) -> tuple[str, ...]:
        """Return the texts of meta-test that also stand in meta-train, up to case, width and white space."""
        seen = _hashes(self.train)
        shared = []
        for task in self.test:
            rows = task.all_rows()
            shared += task.corpus.texts(rows[np.isin(task.corpus.hashes[rows], seen)])
        return tuple(dict.fromkeys(shared))


def _hashes(tasks: Sequence[Task]) -> npt.NDArray[np.uint64]:
    parts = [task.corpus.hashes[task.all_rows()] for task in tasks]
    return np.unique(np.concatenate(parts)) if parts else np.array([], np.uint64)


def split_tasks(tasks: Sequence[Task], spec: SplitSpec, name: str = "", folder: Path | None = None) -> TaskSuite:
    """Divide tasks into a suite.

    Args:
        tasks: the tasks, with unique names.
        spec: how to divide.
        name: the suite's name; by default that of its tasks.
        folder: where a relative path of a split file is looked up first (the data's own folder).

    Raises:
        DataError: too few labels or tasks for the split, or a split file that names unknown ones.
    """
    by, labelled = spec.by, any(task.labels for task in tasks)
    if by == "auto":
        by = "task" if len(tasks) >= _FEWEST_TASKS_TO_SPLIT_BY_TASK or not labelled else "class"
    if by == "class":
        if not labelled:
            raise DataError(
                f"Tasks of the kind {tasks[0].kind} have no labels to divide by --split class.",
                mend="Use --split task, or --split given for data that comes in train and test files.",
            )
        parts = _by_class(tasks, spec)
    elif by == "task":
        parts = _by_task(tasks, spec)
    elif by == "given":
        parts = _as_given(tasks)
    else:
        parts = _from_file(tasks, _split_file(by, folder))
    return TaskSuite(name or "+".join(task.name for task in tasks[:3]), *parts)


_Parts = tuple[tuple[Task, ...], tuple[Task, ...], tuple[Task, ...]]


def _shares(count: int, ratios: Sequence[float]) -> tuple[int, int]:
    """Return the two cut positions that divide ``count`` things by the ratios."""
    total = sum(ratios)
    return round(count * ratios[0] / total), round(count * (ratios[0] + ratios[1]) / total)


def _class_cuts(count: int, ratios: Sequence[float]) -> tuple[int, int]:
    """Return the cuts with at least two things in every part that has a share, as far as there are enough."""
    needed = [2 if ratio > 0 else 0 for ratio in ratios]
    if count < sum(needed):
        return _shares(count, ratios)
    rest = count - sum(needed)
    first, second = _shares(count, ratios)
    sizes = [first, second - first, count - second]
    spare = [max(0, size - need) for size, need in zip(sizes, needed, strict=True)]
    first_spare = min(spare[0], rest)
    second_spare = min(spare[1], rest - first_spare)
    return needed[0] + first_spare, needed[0] + first_spare + needed[1] + second_spare


def _by_class(tasks: Sequence[Task], spec: SplitSpec) -> _Parts:
    parts: tuple[list[Task], list[Task], list[Task]] = ([], [], [])
    for task in tasks:
        names = [task.labels[i] for i in np.random.default_rng([spec.seed, len(task.labels)]).permutation(len(task.labels))]
        first, second = _class_cuts(len(names), spec.ratios)
        chosen = [set(names[:first]), set(names[first:second]), set(names[second:])]
        for part, labels, ratio in zip(parts, chosen, spec.ratios, strict=True):
            if ratio > 0 and len(labels) < 2:
                raise DataError(
                    f"The task '{task.name}' has {len(task.labels)} labels.",
                    f"Divided by class {spec.ratios} a part would have {len(labels)}, and at least two are needed.",
                    "Give more labels, several tasks with --split task, other --split-ratios, or --split given for data "
                    "that comes in train and test files.",
                )
            if ratio > 0:
                part.append(task.with_labels(labels))
    return tuple(parts[0]), tuple(parts[1]), tuple(parts[2])


def _by_task(tasks: Sequence[Task], spec: SplitSpec) -> _Parts:
    shuffled = [tasks[i] for i in np.random.default_rng([spec.seed, len(tasks)]).permutation(len(tasks))]
    first, second = _shares(len(tasks), spec.ratios)
    parts = tuple(shuffled[:first]), tuple(shuffled[first:second]), tuple(shuffled[second:])
    for part, split, ratio in zip(parts, SPLITS, spec.ratios, strict=True):
        if ratio > 0 and not part:
            raise DataError(
                f"{len(tasks)} task(s) divided by task {spec.ratios} leave none for meta-{split}.",
                mend="Give more tasks, other --split-ratios, or --split class.",
            )
    return parts


def _as_given(tasks: Sequence[Task]) -> _Parts:
    parts = tuple(tuple(kept for task in tasks if len(kept := task.with_part(split))) for split in SPLITS)
    if not parts[0]:
        raise DataError(
            "--split given: no file is named train.",
            "The data should come in files such as train.csv, validation.csv and test.csv.",
            "Use --split class or --split task.",
        )
    return parts[0], parts[1], parts[2]


def _split_file(by: str, folder: Path | None) -> Path:
    candidates = [folder / by] if folder is not None else []
    candidates.append(Path(by))
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(
        f"--split '{by}' is neither a way to split nor a file.{nearest(by, ('auto', 'class', 'task', 'given'))}",
        f"Ways are auto, class, task and given; looked for the file at {listing(map(str, candidates))}.",
    )


def _from_file(tasks: Sequence[Task], path: Path) -> _Parts:
    """Read ``{"train": [...], "valid": [...], "test": [...]}``, which names labels or tasks."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"The split file '{path}' is not valid JSON: {error}.") from error
    names: dict[str, set[str]] = {split: set() for split in SPLITS}
    for key, listed in value.items() if isinstance(value, dict) else ():
        if isinstance(listed, list):
            if key not in PARTS:
                raise DataError(f"The split file '{path}' has the key '{key}'.{nearest(key, PARTS)}", _EXPECTED_SPLIT)
            names[PARTS[key]] |= {str(name) for name in listed}
    if not names["train"]:
        raise DataError(f"The split file '{path}' names nothing for 'train'.", _EXPECTED_SPLIT)
    task_names, label_names = {task.name for task in tasks}, {label for task in tasks for label in task.labels}
    wanted = set().union(*names.values())
    known = max((task_names, label_names), key=lambda names: len(wanted & names))
    for split in SPLITS:
        unknown = sorted(names[split] - known)
        if unknown:
            raise DataError(
                f"The split file '{path}' names under '{split}' what the data does not have: {listing(unknown, 5)}."
                f"{nearest(unknown[0], task_names | label_names)}"
            )
    twice = sorted(names["train"] & names["test"] | names["train"] & names["validation"] | names["validation"] & names["test"])
    if twice:
        raise DataError(f"The split file '{path}' names in more than one part: {listing(twice, 5)}.")
    if known is task_names:
        chosen = [tuple(task for task in tasks if task.name in names[split]) for split in SPLITS]
    else:
        chosen = [tuple(kept for task in tasks if (kept := task.with_labels(names[split])).labels) for split in SPLITS]
    return chosen[0], chosen[1], chosen[2]
