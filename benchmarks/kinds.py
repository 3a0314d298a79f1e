"""Every kind of task against what users would pick instead, on the same backbone and examples; a row set at a time.

    python benchmarks/kinds.py DATA --json benchmarks/results/kinds.json
    python benchmarks/kinds.py DATA --kind tagging --dataset politics --json FILE

Tagging: meta-trained on conll2003 and snips; support sets of 1 and 5 mentions a type from the training part of a data set of
another field, drawn greedily, and sentences of its test part, all of its types at once. Relations: meta-trained on FewRel's
val_wiki, and on the first half of finre's relations; 5-way episodes of val_nyt, and of finre's other half. What was chosen was
chosen on dev parts (politics, bc5cdr) and on meta-validation relations. Questions: meta-trained on the articles of xquad, 16
and 64 questions of policyqa's training part, questions of its test part.
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

from protocols import questions, relations, tagging
from protocols.tables import fill, kinds_table

from kshot.files import write_json

PROTOCOLS: dict[str, Any] = {"tagging": tagging, "relation": relations, "qa": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with a folder for each kind of data")
    parser.add_argument("--kind", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--dataset", nargs="+", default=None, help="by default all of a kind")
    parser.add_argument("--runs", type=Path, default=None, help="where to keep the runs; a temporary folder by default")
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    parser.add_argument("--docs", nargs="+", type=Path, default=[], help="documents whose table is written anew")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    known = {name for kind in asked.kind for name in PROTOCOLS[kind].DATASETS}
    if unknown := sorted(set(asked.dataset or ()) - known):
        parser.error(f"--dataset: no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    value: dict[str, Any] = {"schema": 1, "rows": [], "paired": [], "done": {}}
    value |= json.loads(asked.json.read_text()) if asked.json.exists() else {}
    runs = asked.runs or Path(tempfile.mkdtemp())
    for kind in [] if asked.table else asked.kind:
        for dataset in [name for name in PROTOCOLS[kind].DATASETS if name in (asked.dataset or known)]:
            need(value, f"{kind} {dataset}", lambda k=kind, d=dataset: PROTOCOLS[k].measure(asked.data, d, runs))
            write_json(asked.json, value)
    table = kinds_table(value)
    print(table)
    for path in asked.docs:
        path.write_text(fill(path.read_text(encoding="utf-8"), {"kinds": table}), encoding="utf-8")


def need(value: dict[str, Any], name: str, measure: Callable[[], list[dict[str, Any]]]) -> None:
    """Measure a row set unless it is there."""
    if name in value["done"]:
        return
    print(f"{name} ...", flush=True)
    for row in measure():
        value["paired" if "baseline" in row else "rows"].append(row)
    libraries = {library: version(library) for library in ("kshot", "torch", "transformers", "scikit-learn")}
    date = datetime.now(UTC).date().isoformat()
    value["done"][name] = {"date": date, "python": platform.python_version(), "seed": 0, **libraries}


if __name__ == "__main__":
    main()
