"""Accuracy over all data sets, against what users would pick instead: resumable, a row set at a time.

    python benchmarks/accuracy.py DATA/classification --json benchmarks/results/accuracy.json
    python benchmarks/accuracy.py DATA/classification --dataset banking77 --folds 1 --json FILE
    python benchmarks/accuracy.py DATA/classification --protocol full-way vertical --json FILE

Protocols: ``episodic`` is 5-way episodes of test classes by fold; ``full-way``, ``vertical`` and ``leopard`` are tasks of all
their labels, by a general run that was meta-trained on other data sets (`protocols/recipe.py`), and ``fewclue`` the same in
Chinese on multilingual-e5-small. Test classes and texts are only ever measured here; what was chosen was chosen on the
validation classes of fold 1 and on the other half of the verticals' texts. What is in the file already is not measured again.
The tables are printed at the end, and written into documents between ``<!-- name -->`` and ``<!-- end -->`` (`--docs`);
`--table` prints them alone.
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

from protocols import draws, episodic, trust
from protocols.recipe import RECIPE
from protocols.tables import draws_table, episodic_table, fill, over_folds, paired_table, targets_table, trust_table

from kshot.files import write_json

DATASETS = (*episodic.INTENTS, *episodic.NEWS)
TRUSTED = ("banking77", "clinc150")
PROTOCOLS = ("episodic", *draws.PROTOCOLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with a folder for each data set")
    parser.add_argument("--protocol", nargs="+", default=["episodic"], choices=PROTOCOLS)
    parser.add_argument("--dataset", nargs="+", default=None, help="by default all of a protocol")
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--episodes", type=int, default=None, help="instead of the protocol's 600 (intents) or 1,000 (news)")
    parser.add_argument("--slow", type=int, default=0, help="draws on which full fine-tuning and SetFit are measured too")
    parser.add_argument("--runs", type=Path, default=None, help="where to keep the runs; a temporary folder by default")
    parser.add_argument("--table", action="store_true", help="print the tables and measure nothing")
    parser.add_argument("--docs", nargs="+", type=Path, default=[], help="documents whose tables are written anew")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    known = {name for names in (DATASETS, *draws.PROTOCOLS.values()) for name in names}
    if unknown := sorted(set(asked.dataset or ()) - known):
        parser.error(f"--dataset: no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    state, runs = Results(asked.json), asked.runs or Path(tempfile.mkdtemp())
    if not asked.table:
        for protocol in asked.protocol:
            if protocol == "episodic":
                measure_folds(state, asked, runs)
            else:
                measure_draws(state, asked, runs, protocol)
    state.write()
    found = tables(state.value)
    print("\n\n".join(found.values()))
    for path in asked.docs:
        path.write_text(fill(path.read_text(encoding="utf-8"), found), encoding="utf-8")


def tables(value: dict[str, Any]) -> dict[str, str]:
    """Return the tables by name."""
    rows, paired = ([row for row in value[part] if row["protocol"] == "episodic"] for part in ("rows", "paired"))
    found = {"episodic": episodic_table(rows), "paired": paired_table(paired), "targets": targets_table(rows)}
    measured = {row["protocol"] for row in value["rows"]}
    found |= {protocol: draws_table(value, protocol) for protocol in draws.PROTOCOLS if protocol in measured}
    return found | {"trust": trust_table(value["trust"])}


def measure_folds(state: Results, asked: argparse.Namespace, runs: Path) -> None:
    """Measure the episodic protocol, one fold of everything first."""
    for fold in asked.folds:
        for dataset in [name for name in DATASETS if name in (asked.dataset or DATASETS)]:
            state.need(
                f"episodic {dataset} {fold}",
                "by_fold",
                lambda d=dataset, f=fold: episodic.measure(asked.data, d, f, runs, asked.episodes),
            )
            if dataset in TRUSTED and fold == 1:
                state.need(
                    f"trust {dataset} {fold}",
                    "trust",
                    lambda d=dataset, f=fold: [trust.measure(asked.data, d, f, runs, asked.episodes or 600)],
                )


def measure_draws(state: Results, asked: argparse.Namespace, runs: Path, protocol: str) -> None:
    """Measure the tasks of a protocol whose support sets are drawn or given."""
    known = draws.PROTOCOLS[protocol]
    for dataset in [name for name in known if name in (asked.dataset or known)]:
        state.need(
            f"{protocol} {dataset}",
            "by_draw",
            lambda d=dataset: draws.measure(asked.data, protocol, d, runs, asked.slow),
        )


class Results:
    """The result file, written after each row set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        empty: dict[str, Any] = {"schema": 1, "rows": [], "paired": [], "trust": [], "by_fold": [], "by_draw": [], "done": {}}
        self.value: dict[str, Any] = empty | (json.loads(path.read_text()) if path.exists() else {})

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
            by_fold, by_draw = ([row for row in self.value[rows] if value in row] for rows in ("by_fold", "by_draw"))
            self.value[part] = over_folds(by_fold) + by_draw
        write_json(self.path, self.value)


if __name__ == "__main__":
    main()
