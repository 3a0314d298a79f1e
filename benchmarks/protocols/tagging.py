"""Entities of fields that meta-training never saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kshot import api
from kshot.config import load_config
from kshot.models.kinds import KINDS
from kshot.tasks import Episode, EpisodeSpec, Examples, Task, TaskSuite, load_tasks
from kshot.training import Run, load_run
from protocols.compared import compare

DATASETS = ("politics", "music", "literature", "bc5cdr", "ncbi_disease")
TRAINED_ON = ("conll2003", "snips")
SHOTS = (1, 5)
DRAWS = 4
SENTENCES = 200  # of the test part, the same number in every draw, drawn anew
BASELINES = ("prototype", "head", "full")
SCHEMA = KINDS["tagging"].schema


def measure(data: Path, dataset: str, runs: Path) -> list[dict[str, Any]]:
    """Return the rows of a data set."""
    run, rows = trained(data, runs / "tagging"), []
    for shots in SHOTS:
        episodes = drawn(load_tasks(str(data / "ner" / dataset), None, SCHEMA)[0], shots, DRAWS)
        same = {"kind": "tagging", "dataset": dataset, "shots": shots}
        rows += compare(run, episodes, BASELINES, DRAWS, same)
    return rows


def trained(data: Path, folder: Path) -> Run:
    """Return the run, by the recipe for tagging."""
    if (folder / "kshot.json").exists():
        return load_run(folder)
    tasks = [load_tasks(str(data / "ner" / name), None, SCHEMA)[0] for name in TRAINED_ON]
    suite = TaskSuite("conll2003, snips", tuple(task.with_part("train") for task in tasks), (), ())
    config = load_config(Path(__file__).parents[2] / "recipes" / "tagging.yaml")
    return api.train(suite, folder, config, resume=(folder / "checkpoints").exists(), tell=print)


def drawn(task: Task, shots: int, draws: int, part: str = "test") -> list[Episode]:
    """Draw support sets from the training part, and sentences of another part to be tagged, whatever is in them.

    Types with too few mentions in the training part are left out, and words of these in the test part are not counted.
    """
    mentions = SCHEMA.usable(task.with_part("train"))
    task = task.with_labels({label for label, count in mentions.items() if count > shots})
    other = task.with_part(part)
    sampler = SCHEMA.episodes([task.with_part("train")], EpisodeSpec(max(2, len(task.labels)), shots, 1), 0)
    episodes = []
    for index in range(draws):
        rows = np.random.default_rng([shots, index]).permutation(other.all_rows())[:SENTENCES].tolist()
        episodes.append(replace(sampler[index], query=Examples.of_rows(other, rows)))
    return episodes
