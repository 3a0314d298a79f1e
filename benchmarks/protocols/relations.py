"""Relations that meta-training never saw: of other texts (val_nyt), and of another half of a data set (finre)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot import api
from kshot.config import load_config
from kshot.models.kinds import KINDS
from kshot.tasks import EpisodeSpec, TaskSuite, load_tasks, split_tasks
from kshot.tasks.suite import SplitSpec
from kshot.training import Run, load_run
from protocols.compared import compare

DATASETS = ("val_nyt", "finre")
SHOTS = (1, 5)
EPISODES = {"val_nyt": 300, "finre": 150}
SLOW = 15
BASELINES = ("prototype", "logistic", "full")
SCHEMA = KINDS["relation"].schema


def measure(data: Path, dataset: str, runs: Path) -> list[dict[str, Any]]:
    """Return the rows of a data set."""
    suite, rows = _suite(data, dataset), []
    run = trained(suite, runs / f"relation-{dataset}", "e5-multilingual" if dataset == "finre" else "minilm")
    for shots in SHOTS:
        episodes = SCHEMA.episodes(suite.test, EpisodeSpec(5, shots, 5), 0)[: EPISODES[dataset]]
        same = {"kind": "relation", "dataset": dataset, "shots": shots}
        rows += compare(run, episodes, BASELINES, SLOW, same)
    return rows


def trained(suite: TaskSuite, folder: Path, backbone: str) -> Run:
    """Return the run of a suite, by the recipe for relations."""
    if (folder / "kshot.json").exists():
        return load_run(folder)
    config = load_config(Path(__file__).parents[2] / "recipes" / "relation.yaml", {"backbone.name": backbone})
    return api.train(suite, folder, config, resume=(folder / "checkpoints").exists(), tell=print)


def _suite(data: Path, dataset: str) -> TaskSuite:
    if dataset == "finre":
        (task,) = load_tasks(str(data / "relation" / "finre"), None, SCHEMA)
        usual = {label for label, count in SCHEMA.usable(task).items() if count >= 15 and label != "unknown"}
        return split_tasks([task.with_labels(usual)], SplitSpec("class", (0.5, 0.1, 0.4)))
    wiki, nyt = (
        load_tasks(str(data / "relation" / "fewrel" / f"{name}.json"), None, SCHEMA)[0] for name in ("val_wiki", "val_nyt")
    )
    kept = split_tasks([wiki], SplitSpec("class", (0.7, 0.3, 0.0)))
    return TaskSuite("val_wiki", kept.train, kept.validation, (nyt,))
