"""Draw what `meta_step.py` measured: seconds by workload and contender, and how cost grows.

    python benchmarks/plot_meta_step.py benchmarks/results/meta_step.json docs/img

Writes ``meta_step.svg``, ``meta_step.png`` and, where growth was measured, ``meta_step_growth.svg`` and ``.png``.
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

COLOURS = {
    "plain": "#6b6b6b",
    "plain-cached": "#a8a8a8",
    "plain bf16": "#c9c2b2",
    "plain-cached bf16": "#ddd8cc",
    "higher": "#d8b365",
    "iteryne": "#80b1d3",
    "torchopt": "#b39bc8",
    "parallel-metalearn": "#8dc7a5",
    "kshot": "#c0392b",
    "kshot bf16": "#e88b80",
    "kshot-checkpointed": "#1f5a94",
}
AXES = {
    "steps": "inner steps",
    "tasks": "tasks a step",
    "shots": "support texts a class",
    "length": "tokens a text at most",
}
TITLES = {
    "maml2": "second-order MAML\n4 tasks",
    "fomaml": "first-order MAML\n1 task",
    "anil": "ANIL\n4 tasks",
    "lora2": "LoRA, second order\n1 task",
    "protonet": "prototypes\n20 ways, 1 task",
}


def label(row: dict[str, Any]) -> str:
    """Return a contender's name in the legend."""
    return row["contender"] + (" bf16" if row["precision"] == "bf16" else "")


def bars(value: dict[str, Any]) -> Figure:
    """Return one panel a workload, a bar a contender, whiskers from the fastest to the slowest round."""
    workloads = [name for name in TITLES if any(row["workload"] == name and row["seconds"] for row in value["contenders"])]
    figure, panels = plt.subplots(1, len(workloads), figsize=(12, 4.6), squeeze=False, layout="constrained")
    for panel, workload in zip(panels[0], workloads, strict=True):
        rows = [row for row in value["contenders"] if row["workload"] == workload and row["seconds"]]
        rows.sort(key=lambda row: list(COLOURS).index(label(row)))
        for position, row in enumerate(rows):
            whiskers = [[row["seconds"] - row["min"]], [row["max"] - row["seconds"]]]
            panel.bar(position, row["seconds"], color=COLOURS[label(row)], yerr=whiskers, capsize=2, error_kw={"lw": 0.8})
            panel.annotate(
                f"{row['seconds']:.2g}",
                (position, row["max"]),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        panel.set_title(TITLES[workload], fontsize=10)
        panel.set_xticks([])
        panel.margins(y=0.1)
        _quiet(panel)
    panels[0][0].set_ylabel("seconds a meta-step")
    shown = [name for name in COLOURS if any(label(row) == name and row["seconds"] for row in value["contenders"])]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    return figure


def growth(value: dict[str, Any]) -> Figure:
    """Return seconds (above) and peak memory (below) along each axis."""
    figure, panels = plt.subplots(2, len(AXES), figsize=(12, 6), sharex="col", layout="constrained")
    for column, (axis, name) in enumerate(AXES.items()):
        for panel, key, scale in ((panels[0][column], "seconds", 1), (panels[1][column], "peak_mb", 1024)):
            for contender in ("plain", "kshot", "kshot-checkpointed"):
                rows = [
                    row
                    for row in value["growth"]
                    if (row["axis"], row["contender"]) == (axis, contender) and row[key] is not None
                ]
                x, y = [row["value"] for row in rows], [row[key] / scale for row in rows]
                if rows:
                    panel.plot(x, y, marker="o", ms=4, color=COLOURS[contender], label=contender)
                    panel.set_xticks(x)
            panel.set_ylim(bottom=0)
            _quiet(panel)
        panels[1][column].set_xlabel(name)
    panels[0][0].set_ylabel("seconds a meta-step")
    panels[1][0].set_ylabel("peak memory, GiB")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def _quiet(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", lw=0.4, color="#dddddd")
    panel.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG and as PNG of 1200 pixels' width (twice that for sharp screens)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 200})):
        figure.savefig(path.with_suffix(suffix), facecolor="white", **options)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("out", type=Path, help="the folder for the pictures")
    arguments = parser.parse_args()
    mpl.rcParams.update({"font.size": 10, "svg.hashsalt": "kshot", "svg.fonttype": "none"})
    value = json.loads(arguments.json.read_text())
    save(bars(value), arguments.out / "meta_step")
    if value["growth"]:
        save(growth(value), arguments.out / "meta_step_growth")


if __name__ == "__main__":
    main()
