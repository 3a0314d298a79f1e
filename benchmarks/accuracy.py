"""Accuracy over all data sets, against what users would pick instead: resumable, a row set for each data set and fold.

    python benchmarks/accuracy.py DATA/classification --json benchmarks/results/accuracy.json
    python benchmarks/accuracy.py DATA/classification --dataset banking77 --folds 1 --json FILE

Test classes are only ever measured here; the recipe (`protocols/recipe.py`) was chosen on the validation classes of fold 1.
What is in the file already is not measured again. The tables are printed at the end; `--table` prints them alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from protocols import episodic, trust
from protocols.recipe import RECIPE
from protocols.tables import episodic_table, over_folds, paired_table, trust_table

from kshot.files import write_json

DATASETS = (*episodic.INTENTS, *episodic.NEWS)
TRUSTED = ("banking77", "clinc150")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with a folder for each data set")
    parser.add_argument("--dataset", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--episodes", type=int, default=None, help="instead of the protocol's 600 (intents) or 1,000 (news)")
    parser.add_argument("--runs", type=Path, default=None, help="where to keep the runs; a temporary folder by default")
    parser.add_argument("--table", action="store_true", help="print the tables and measure nothing")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    state = Results(arguments.json)
    runs = arguments.runs or Path(tempfile.mkdtemp())
    for fold in [] if arguments.table else arguments.folds:  # one fold of everything first
        for dataset in arguments.dataset:
            state.need(
                f"episodic {dataset} {fold}",
                "by_fold",
                lambda d=dataset, f=fold: episodic.measure(arguments.data, d, f, runs, arguments.episodes),
            )
            if dataset in TRUSTED and fold == 1:
                state.need(
                    f"trust {dataset} {fold}",
                    "trust",
                    lambda d=dataset, f=fold: [trust.measure(arguments.data, d, f, runs, arguments.episodes or 600)],
                )
    state.write()
    print(episodic_table(state.value["rows"]))
    print(paired_table(state.value["paired"]))
    print(trust_table(state.value["trust"]))


class Results:
    """The result file, written after each row set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        empty: dict[str, Any] = {"schema": 1, "rows": [], "paired": [], "trust": [], "by_fold": [], "done": {}}
        self.value: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty

    def need(self, name: str, part: str, measure: Callable[[], list[dict[str, Any]]]) -> None:
        """Measure a row set unless it is there, and write it."""
        if name in self.value["done"]:
            return
        print(f"{name} ...", flush=True)
        self.value[part] += measure()
        self.value["done"][name] = {
            "date": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "recipe": RECIPE,
            "seed": 0,
            **{library: version(library) for library in ("kshot", "torch", "transformers", "scikit-learn")},
        }
        self.write()

    def write(self) -> None:
        """Work out the means over folds, and write the file."""
        for part, value in (("rows", "accuracy"), ("paired", "difference")):
            self.value[part] = over_folds(row for row in self.value["by_fold"] if value in row)
        write_json(self.path, self.value)


if __name__ == "__main__":
    main()
