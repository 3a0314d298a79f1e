"""Rows over folds, and the tables of the README and of docs/benchmarks.md."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from statistics import mean, median
from typing import Any

Rows = list[dict[str, Any]]
TRANSDUCTIVE = "kshot, transductive"
TARGETS = {
    "banking77": ("92.5 / 97.3", "91.2 / 96.4"),
    "hwu64": ("88.5 / 94.5", "86.6 / 92.6"),
    "liu": ("88 / 95.5", "86.1 / 93.7"),
    "clinc150": ("97.5 / 99.3", "96.6 / 98.7"),
    "huffpost": ("54 / 71", "53.1 / 65.3"),
    "20news": ("75 / 84.5", "71.7 / 81.6; 79.6 / 83.9"),
}
"""By data set: what we want, and the best published means over five folds, of BERT-base (110M parameters)."""


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
    """Return the table of 5-way accuracies: a line a method, a column a data set, its cells by number of shots.

    What sees the queries together is no method among these (`targets_table` has it).
    """
    rows = [row for row in rows if row["method"] != TRANSDUCTIVE]
    folds = {row["dataset"]: len(row["folds"]) for row in rows}
    heads = {dataset: f"{dataset} ({count} fold{'s' if count > 1 else ''})" for dataset, count in folds.items()}
    return _table(rows, "method", "5-way, 1 / 5 shots", heads, _percent)


def paired_table(rows: Rows) -> str:
    """Return the table of paired differences of kshot to each baseline, in points."""
    heads = {row["dataset"]: row["dataset"] for row in rows}
    return _table(rows, "baseline", "kshot over ..., points, 1 / 5 shots", heads, _points)


def _table(rows: Rows, by: str, title: str, heads: dict[str, str], cell: Callable[[dict[str, Any]], str]) -> str:
    lines = [f"| {title} | " + " | ".join(heads.values()) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(row[by] for row in rows):
        cells = []
        for dataset in heads:
            own = sorted((r for r in rows if (r["dataset"], r[by]) == (dataset, name)), key=lambda r: int(r["shots"]))
            cells.append(" / ".join(cell(row) for row in own) or "-")
        shown = f"**{name}**" if name.startswith("kshot") else name
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def targets_table(rows: Rows) -> str:
    """Return the table of what is wanted, what was published, and what was reached."""
    lines = [
        "| 5-way, 1 / 5 shots | target | published best, mean of 5 folds, BERT-base (110M) | reached | transductive |",
        "|---|---|---|---|---|",
    ]
    for dataset, (target, published) in TARGETS.items():
        cells = [_reached(rows, dataset, method) for method in ("kshot", TRANSDUCTIVE)]
        lines.append(f"| {dataset} | {target} | {published} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(rows: Rows, dataset: str, method: str) -> str:
    own = sorted((r for r in rows if (r["dataset"], r["method"]) == (dataset, method)), key=lambda r: int(r["shots"]))
    if not own:
        return "not measured yet"
    count = len(own[0]["folds"])
    return " / ".join(f"{100 * row['accuracy']:.1f}" for row in own) + f" ({count} fold{'s' if count > 1 else ''})"


def fill(document: str, tables: dict[str, str]) -> str:
    """Return a document with each table between ``<!-- its name -->`` and ``<!-- end -->`` replaced."""
    for name, table in tables.items():
        between = re.compile(rf"(<!-- {name} -->)\n.*?(<!-- end -->)", re.DOTALL)
        document = between.sub(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", document)
    return document


def draws_table(value: dict[str, Any], protocol: str) -> str:
    """Return the table of a protocol: a line a data set and number of shots, a column a method, and kshot over the best one.

    A method that was measured on the first draws alone has kshot's paired difference beside it, and no part in the last column.
    """
    rows, paired = ([row for row in value[part] if row["protocol"] == protocol] for part in ("rows", "paired"))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| {protocol} | {' | '.join(methods)} | kshot over the best |", "|---" * (len(methods) + 2) + "|"]
    for key in dict.fromkeys((row["dataset"], row["ways"], row["shots"]) for row in rows):
        own = {row["method"]: row for row in rows if (row["dataset"], row["ways"], row["shots"]) == key}
        over = {row["baseline"]: row for row in paired if (row["dataset"], row["ways"], row["shots"]) == key}
        draws = own["kshot"]["draws"]
        cells = {name: _percent(row) for name, row in own.items()}
        for name, row in own.items():
            if row["draws"] < draws:
                cells[name] = f"{100 * row['accuracy']:.1f} in {row['draws']} draws, kshot {_points(over[name])}"
        best = max((name for name in over if own[name]["draws"] == draws), key=lambda name: float(own[name]["accuracy"]))
        shown = [cells.get(name, "-") for name in methods]
        lines.append(f"| {key[0]}, {key[1]} labels, {key[2]:g} shots | {' | '.join(shown)} | {_points(over[best])} ({best}) |")
    return "\n".join(lines)


def kinds_table(value: dict[str, Any]) -> str:
    """Return the table of the kinds: a line a data set and number of shots, a column a method, and kshot over the best one."""
    methods = list(dict.fromkeys(row["method"] for row in value["rows"]))
    lines = [f"| kind, data set, shots | measured by | {' | '.join(methods)} | kshot over the best |"]
    lines.append("|---" * (len(methods) + 3) + "|")
    for key in dict.fromkeys((row["kind"], row["dataset"], row["shots"]) for row in value["rows"]):
        own, over = (
            [row for row in value[part] if (row["kind"], row["dataset"], row["shots"]) == key] for part in ("rows", "paired")
        )
        by_method = {row["method"]: row for row in own}
        best = max(over, key=lambda row: float(by_method[row["baseline"]]["value"]))
        cells = [_share(by_method[name]) if name in by_method else "-" for name in methods]
        kind, dataset, shots = key
        shown = f"{kind}, {dataset}, {shots} | {own[0]['metric']} | {' | '.join(cells)}"
        lines.append(f"| {shown} | {_points(best)} ({best['baseline']}) |")
    return "\n".join(lines)


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['value']:.1f}" + _interval(row)


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
    return f"{100 * row['accuracy']:.1f}" + _interval(row)


def _points(row: dict[str, Any]) -> str:
    return f"{100 * row['difference']:+.1f}" + _interval(row)


def _interval(row: dict[str, Any]) -> str:
    return "" if row["ci95"] is None else f" ± {100 * row['ci95']:.1f}"
