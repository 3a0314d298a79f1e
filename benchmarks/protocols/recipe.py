"""How kshot is meta-trained for every data set of the accuracy benchmark: one recipe, chosen on meta-validation classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot import api
from kshot.config import Config, load_config
from kshot.tasks import TaskSuite
from kshot.training import Run, load_run

RECIPE: dict[str, Any] = {
    "algorithm.name": "protonet",
    "algorithm.leave_one_out": True,
    "episodes.shots": [1, 5],
    "episodes.queries": 1,
    "training.steps": 60,
    "training.lr": 3e-5,
    "training.meta_lr": 2e-2,
    "training.validate_every": 0,
}
GENERAL = ("banking77", "hwu64", "liu", "clinc150")  # licensed for any use
RELATED = (("hwu64", "liu"),)  # from one source


def trained(suite: TaskSuite, folder: Path, **changes: Any) -> Run:
    """Return the run of a folder, meta-trained first where it is not there yet; an interrupted training goes on."""
    if (folder / "kshot.json").exists():
        return load_run(folder)
    return api.train(suite, folder, config(**changes), resume=(folder / "checkpoints").exists(), tell=_say)


def trained_on_others(data: Path, dataset: str, runs: Path, backbone: str = "minilm") -> Run:
    """Return the general run for a data set: meta-trained on the intent sets that have nothing to do with it."""
    related = next((group for group in RELATED if dataset in group), (dataset,))
    names = [name for name in GENERAL if name not in related]
    folder = runs / "-".join(["general", backbone, *names])
    if (folder / "kshot.json").exists():
        return load_run(folder)
    # some labels of each are kept back, to choose the head and to calibrate on
    suite = api.load_suite([str(data / name) for name in names], "class", split__ratios=(0.85, 0.15, 0.0))
    return trained(suite, folder, training__steps=150, backbone__name=backbone)


def config(**changes: Any) -> Config:
    """Return the recipe with some settings changed, given with ``__`` for the dot."""
    return load_config(None, {**RECIPE, **{name.replace("__", "."): value for name, value in changes.items()}})


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
