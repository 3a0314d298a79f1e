"""Draw what `accuracy.py` measured: reliability diagrams, and accuracy against shots.

    python benchmarks/plot_accuracy.py benchmarks/results/accuracy.json docs/img

Writes ``reliability.svg`` and ``.png``, and ``accuracy.svg`` and ``.png``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLES = {
    "kshot": ("#c0392b", "-"),
    "kshot without label names": ("#e88b80", "-"),
    "logistic regression with label names": ("#1f5a94", "--"),
    "frozen prototype with label names": ("#8dc7a5", "--"),
    "logistic regression": ("#1f5a94", ":"),
    "frozen prototype": ("#8dc7a5", ":"),
    "TF-IDF regression": ("#a8a8a8", ":"),
}


def reliability(trust: list[dict[str, Any]]) -> Figure:
    """Return one panel a data set: accuracy against confidence, before and after calibration, with the share of predictions."""
    figure, panels = plt.subplots(1, len(trust), figsize=(4.6 * len(trust), 4.4), squeeze=False, layout="constrained")
    for panel, row in zip(panels[0], trust, strict=True):
        panel.plot([0, 1], [0, 1], color="#a8a8a8", linewidth=1)
        for when, colour in (("before", "#80b1d3"), ("after", "#c0392b")):
            bins = row["reliability"][when]
            sizes = [20 + 400 * one["share"] for one in bins]
            label = f"{when}: ECE {100 * row[f'ece_{when}']:.1f} %"
            panel.plot(*_points(bins), color=colour, linewidth=1)
            panel.scatter(*_points(bins), s=sizes, color=colour, alpha=0.7, label=label, linewidths=0)
        _finish(panel, row["dataset"], "confidence", "accuracy")
        panel.legend(frameon=False, markerscale=0.5, loc="upper left")
    return figure


def _points(bins: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    return [one["confidence"] for one in bins], [one["accuracy"] for one in bins]


def by_shots(rows: list[dict[str, Any]]) -> Figure:
    """Return one panel a data set: 5-way accuracy against the number of shots, with 95% intervals."""
    chosen = [row for row in rows if row["protocol"] == "episodic" and "accuracy" in row]
    datasets = list(dict.fromkeys(row["dataset"] for row in chosen))
    figure, panels = plt.subplots(1, len(datasets), figsize=(2.6 * len(datasets) + 1, 4.2), squeeze=False, layout="constrained")
    for panel, dataset in zip(panels[0], datasets, strict=True):
        for method, (colour, line) in STYLES.items():
            own = sorted((r for r in chosen if (r["dataset"], r["method"]) == (dataset, method)), key=lambda r: int(r["shots"]))
            places = range(len(own))
            values = [100 * row["accuracy"] for row in own]
            errors = [100 * row["ci95"] for row in own]
            panel.errorbar(places, values, errors, color=colour, linestyle=line, marker="o", markersize=3, label=method)
            panel.set_xticks(list(places), [str(row["shots"]) for row in own])
        _finish(panel, dataset, "shots", "accuracy, %" if panel is panels[0][0] else "")
        panel.set_xlim(-0.25, 1.25)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _finish(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set(title=title, xlabel=x, ylabel=y)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#eeeeee")
    panel.set_axisbelow(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    value = json.loads(arguments.result.read_text())
    for name, figure in (("reliability", reliability(value["trust"])), ("accuracy", by_shots(value["rows"]))):
        for suffix in ("svg", "png"):
            figure.savefig(arguments.folder / f"{name}.{suffix}", dpi=110)


if __name__ == "__main__":
    main()
