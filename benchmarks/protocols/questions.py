"""Questions about privacy policies, after meta-training on encyclopedic articles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kshot import api
from kshot.config import load_config
from kshot.models.kinds import KINDS
from kshot.tasks import Episode, Examples, ReadOptions, TaskSuite, load_tasks
from kshot.training import Run, load_run
from protocols.compared import compare

DATASETS = ("policyqa",)
SHOTS = (16, 64)
DRAWS = 4
QUESTIONS = 150  # of the test part, drawn anew for every draw
SCHEMA = KINDS["qa"].schema


def measure(data: Path, dataset: str, runs: Path) -> list[dict[str, Any]]:
    """Return the rows of a data set."""
    run, rows = trained(data, runs / "qa"), []
    for shots in SHOTS:
        rows += compare(run, drawn(data, dataset, shots), (), DRAWS, {"kind": "qa", "dataset": dataset, "shots": shots})
    return rows


def trained(data: Path, folder: Path) -> Run:
    """Return the run: an article of xquad is a task."""
    if (folder / "kshot.json").exists():
        return load_run(folder)
    tasks = load_tasks(str(data / "qa" / "xquad" / "en.json"), ReadOptions(task_column="title"), SCHEMA)
    config = load_config(Path(__file__).parents[2] / "recipes" / "qa.yaml")
    suite = TaskSuite("xquad", tuple(task for task in tasks if len(task) >= 16), (), ())
    return api.train(suite, folder, config, resume=(folder / "checkpoints").exists(), tell=print)


def drawn(data: Path, dataset: str, shots: int) -> list[Episode]:
    """Draw support sets from the training part, and questions of the test part."""
    sides = [load_tasks(str(data / "qa" / dataset / f"{part}.json"), None, SCHEMA)[0] for part in ("train", "test")]
    episodes = []
    for index in range(DRAWS):
        rng, parts = np.random.default_rng([shots, index]), list[Examples]()
        for task, count in zip(sides, (shots, QUESTIONS), strict=True):
            parts.append(Examples.of_rows(task, rng.permutation(task.all_rows())[:count].tolist()))
        episodes.append(replace(Episode(dataset, "", (), *parts), index=index))
    return episodes
