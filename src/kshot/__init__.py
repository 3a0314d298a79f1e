"""kshot: meta-train a language model on many small text tasks, adapt it to a new one from a handful of examples.

>>> import kshot
>>> suite = kshot.load_suite("bundled:en", split="task")
>>> len(suite.train), len(suite.validation), len(suite.test)
(6, 2, 2)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.api import adapt, evaluate, load_suite, train
    from kshot.deploy import AdaptedTask, FewShotClassifier, load_adapted
    from kshot.training import Run, load_run

__all__ = [
    "AdaptedTask",
    "FewShotClassifier",
    "Run",
    "adapt",
    "evaluate",
    "load_adapted",
    "load_run",
    "load_suite",
    "train",
]

_HOMES = {
    "kshot.api": ("adapt", "evaluate", "load_suite", "train"),
    "kshot.deploy": ("AdaptedTask", "FewShotClassifier", "load_adapted"),
    "kshot.training": ("Run", "load_run"),
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that ``kshot --help`` does not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'kshot' has no attribute '{name}'")
