"""Rows over folds, and the tables of the README and of docs/benchmarks.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean, median
from typing import Any

Rows = list[dict[str, Any]]


def over_folds(rows: Iterable[dict[str, Any]]) -> Rows:
    """Return a row for each data set, method and number of shots: the mean over its folds, with the interval of that mean."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        key = (row["protocol"], row["dataset"], row["method"], row.get("baseline"), row["ways"], row["shots"])
        groups.setdefault(key, []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(group: Rows) -> dict[str, Any]:
    first = group[0]
    value = "difference" if "difference" in first else "accuracy"
    kept = {key: first[key] for key in ("dataset", "protocol", "method", "baseline", "ways", "shots") if key in first}
    folds = sorted(row["fold"] for row in group)
    ci95 = math.sqrt(sum(row["ci95"] ** 2 for row in group)) / len(group)
    result = {**kept, value: mean(row[value] for row in group), "ci95": ci95, "folds": folds}
    for name in ("adapt_seconds_median", "training_seconds", "ece"):
        if name in first:
            result[name] = median(row[name] for row in group)
    return result


def episodic_table(rows: Rows) -> str:
    """Return the table of 5-way accuracies: a line a method, a column a data set and number of shots."""
    chosen = [row for row in rows if row["protocol"] == "episodic" and "accuracy" in row]
    datasets = list(dict.fromkeys(row["dataset"] for row in chosen))
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    folds = {row["dataset"]: len(row["folds"]) for row in chosen}
    heads = [f"{dataset} ({folds[dataset]} fold{'s' if folds[dataset] > 1 else ''})" for dataset in datasets]
    lines = ["| 5-way, 1 / 5 shots | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method in methods:
        cells = []
        for dataset in datasets:
            own = [row for row in chosen if (row["dataset"], row["method"]) == (dataset, method)]
            cells.append(" / ".join(_percent(row) for row in sorted(own, key=lambda row: int(row["shots"]))) or "-")
        name = f"**{method}**" if method.startswith("kshot") else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trust_table(rows: Rows) -> str:
    """Return the table of calibration errors and of out-of-scope detection."""
    lines = [
        "| | ECE before | after | AUROC | FPR at 95 % TPR | in scope kept | out of scope kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scope = row.get("out_of_scope", {})
        cells = [row["ece_before"], row["ece_after"], row.get("oos_auroc"), row.get("fpr95")]
        cells += [scope.get("in_scope_kept"), scope.get("out_of_scope_kept")]
        shown = ["-" if cell is None else f"{100 * cell:.1f}" for cell in cells]
        lines.append(f"| {row['dataset']}, fold {row['fold']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} ± {100 * row['ci95']:.1f}"
