"""The report's plots, each a function from data to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kshot.evaluation.findings import number
from kshot.evaluation.svg import (
    ACCENT,
    INK,
    MISTAKE,
    MUTED,
    PANEL,
    RULE,
    canvas,
    fit,
    inline,
    pane,
    plain_style,
    text_width,
    write,
)

_HUES = ("#3f7fc4", "#d9822b", "#2e9d78", "#cf4d4a", "#8a6bc4", "#a37a55", "#d670a9", "#7d8894", "#9aa02a", "#22a5bb")
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"))


class Bar(NamedTuple):
    """One accuracy of the forest plot; ``main`` marks the method that the report is about."""

    method: str
    setting: str
    value: float
    ci95: float
    main: bool


def _span(bars: Sequence[Bar]) -> tuple[float, float]:
    """Return the accuracies to show. A method far below the others would squeeze them together, and is left out."""
    values = sorted(bar.value for bar in bars if math.isfinite(bar.value))
    if not values:
        return 0.0, 1.0
    halves = [bar.ci95 if math.isfinite(bar.ci95) else 0.0 for bar in bars]
    middle = values[len(values) // 2]
    far = middle - max(0.15, 3 * (values[-1] - middle))
    low = min(bar.value - half for bar, half in zip(bars, halves, strict=True) if bar.main or bar.value >= far)
    high = min(1.0, max(bar.value + half for bar, half in zip(bars, halves, strict=True) if math.isfinite(bar.value)))
    low = max(0.0, min(low, high - 0.02))
    return low, max(high, low + 0.02)


@plain_style()
def accuracy(bars: Sequence[Bar], name: str = "accuracy", title: str = "Accuracy") -> str:
    """Return the accuracies, method below method, each with its 95% interval. Bars of one method stand together."""
    low, high = _span(bars)
    proposed = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(100 * low, 100 * high)
    ticks = [float(tick) / 100 for tick in proposed if -1e-9 <= tick <= 100 + 1e-9]
    width, line, left = 390.0, 15.0, 14 + max((min(text_width(bar.setting, 8.5), 110) for bar in bars), default=0)
    starts = [index for index, bar in enumerate(bars) if index == 0 or bar.method != bars[index - 1].method]
    height = 30 + line * len(bars) + 25 * len(starts)
    figure, axes = canvas(width, height)

    def across(value: float) -> float:
        return left + 8 + (width - left - 86) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    for tick in ticks:
        write(axes, across(tick), height - 8, f"{100 * tick:g} %", MUTED, fontsize=8.5, ha="center")
    y = 0.0
    for index, bar in enumerate(bars):
        colour = ACCENT if bar.main else MUTED
        if index in starts:
            y += 19 if index == 0 else 25
            weight = "bold" if bar.main else "normal"
            write(axes, 4, y, fit(bar.method, 11 if bar.main else 10, width - 8), fontsize=10, fontweight=weight)
        y += line
        for tick in ticks:
            axes.plot([across(tick)] * 2, [y - 3 - line / 2, y - 3 + line / 2], color=RULE, linewidth=0.7)
        write(axes, left, y, fit(bar.setting, 8.5, 110), MUTED, fontsize=8.5, ha="right")
        if not math.isfinite(bar.value):
            continue
        half = bar.ci95 if math.isfinite(bar.ci95) else 0.0
        ends = [across(min(ticks[-1], max(ticks[0], bar.value + sign * half))) for sign in (-1, 1)]
        axes.plot(ends, [y - 3, y - 3], color=colour, linewidth=2.4, alpha=0.5, solid_capstyle="butt")
        inside, size = bar.value >= ticks[0], 5.5 if bar.main else 4.5
        axes.plot([across(max(ticks[0], bar.value))], [y - 3], "o" if inside else "<", color=colour, markersize=size)
        text = f"{100 * bar.value:.1f}" + (f" ± {100 * half:.1f}" if math.isfinite(bar.ci95) else "")
        write(axes, width - 4, y, text, INK if bar.main else MUTED, fontsize=9, ha="right")
    if any(bar.value < ticks[0] for bar in bars):
        write(axes, width - 4, height - 8, "◂ lower", MUTED, fontsize=8.5, ha="right")
    best = max((bar for bar in bars if math.isfinite(bar.value)), key=lambda bar: bar.value, default=None)
    best_words = f" The highest is {best.method} at {100 * best.value:.1f} percent, {best.setting}." if best else ""
    return inline(figure, name, f"{title} of {len(starts)} methods with 95% intervals.{best_words}")


@plain_style()
def training(history: Sequence[Mapping[str, Any]], best_step: int | None, name: str = "training") -> str:
    """Return the loss of meta-training and, where it was measured, the accuracy on the validation tasks."""
    steps, loss = _series(history, "loss")
    when, validation = _series(history, "validation")
    half = np.array([number(row.get("validation_ci95")) for row in history if math.isfinite(number(row.get("validation")))])
    tall, width, left = 104.0, 390.0, 34.0
    figure, page = canvas(width, 2 * tall + 98 if len(when) else tall + 50)
    above = pane(figure, left, 26, width - left - 12, tall)
    write(page, 4, 13, "Loss", fontweight="bold", fontsize=9.5)
    smooth = _smoothed(loss, max(1, len(loss) // 20))
    stride = max(1, len(loss) // 600)  # more points than pixels make the page heavy and nothing clearer
    above.plot(steps[::stride], loss[::stride], color=ACCENT, alpha=0.3, linewidth=0.9)
    above.plot(steps[::stride], smooth[::stride], color=ACCENT, linewidth=1.8)
    panes = [above]
    if len(when):
        below = pane(figure, left, tall + 72, width - left - 12, tall)
        below.sharex(above)
        write(page, 4, tall + 59, "Validation accuracy, %", fontweight="bold", fontsize=9.5)
        below.fill_between(when, 100 * (validation - half), 100 * (validation + half), color=ACCENT, alpha=0.16, linewidth=0)
        below.plot(when, 100 * validation, "o-", color=ACCENT, linewidth=1.8, markersize=4)
        panes.append(below)
    best = f" The best validation was at step {best_step}." if best_step is not None else ""
    for axes in panes:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.02)
        if best_step is not None:
            axes.axvline(best_step, color=MISTAKE, linewidth=1, linestyle=(0, (4, 3)))
    if best:
        write(page, width - 12, 13, f"- - best step: {best_step}", MISTAKE, fontsize=9, ha="right")
    return inline(figure, name, f"Meta-training loss over {len(steps)} recorded steps.{best}")


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[Any, Any]:
    pairs = [(row["step"], number(row.get(key))) for row in history if math.isfinite(number(row.get(key)))]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def _smoothed(values: Sequence[float], span: int) -> Any:
    """Return the exponential moving average, corrected for its start at zero."""
    keep, total, weight, result = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return np.array(result)


@plain_style()
def confusion(labels: Sequence[str], matrix: Sequence[Sequence[float]], name: str = "confusion") -> str:
    """Return a confusion matrix: rows true, columns predicted, a cell the deeper the larger its share of the row."""
    counts = np.nan_to_num(np.array(matrix, float)).reshape(len(labels), len(labels))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = min(38.0, max(15.0, 400 / max(1, len(labels))))
    size = min(9.5, max(7.5, 0.6 * cell))
    rows = [fit(label, size, 150) for label in labels]
    columns = [fit(label, size, 110) for label in labels]
    slant = 0.7 * max((text_width(label, size) for label in columns), default=0)
    left, top = 20 + max([text_width(row, size) for row in rows] + [70]), 30 + slant
    side = cell * len(labels)
    figure, axes = canvas(left + side + max(slant, 16), top + side + 8)
    write(axes, left - 8, top - 9, "true ↓   predicted →", MUTED, fontsize=8, ha="right")
    tips = {}
    letters = max(6.0, min(9.5, cell / (0.68 * max((len(f"{most:g}") for most in counts.flat), default=1))))
    for i in range(len(labels)):
        middle = top + (i + 0.5) * cell
        write(axes, left - 8, middle, rows[i], fontsize=size, ha="right", va="center_baseline")
        turned: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "va": "center_baseline"}
        write(axes, left + (i + 0.5) * cell, top - 8, columns[i], fontsize=size, **turned)
        for j in map(int, np.flatnonzero(counts[i])):
            text, share, x = f"{counts[i, j]:g}", shares[i, j], left + j * cell
            gid = f"cell-{i}-{j}"
            tips[gid] = f"{labels[i]} → {labels[j]}: {text} ({100 * share:.0f} %)"
            depth = 0.05 + 0.95 * share
            box = {"facecolor": ACCENT if i == j else MISTAKE, "alpha": depth, "linewidth": 0, "gid": gid}
            axes.add_patch(Rectangle((x + 0.5, top + i * cell + 0.5), cell - 1, cell - 1, **box))
            if 0.6 * letters * len(text) <= 0.9 * cell:
                ink = PANEL if depth > 0.55 else INK
                write(axes, x + cell / 2, middle, text, ink, fontsize=letters, ha="center", va="center_baseline")
    for edge in range(len(labels) + 1):
        axes.plot([left, left + side], [top + edge * cell] * 2, color=RULE, linewidth=0.5, zorder=0)
        axes.plot([left + edge * cell] * 2, [top, top + side], color=RULE, linewidth=0.5, zorder=0)
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    return inline(
        figure, name, f"Confusion matrix of {len(labels)} labels; {right:.0f} percent on the diagonal.", tips, shrink=7.5 / size
    )


def hue(label: int) -> tuple[str, str]:
    """Return the colour and the sign that stand for a label's index in a map and its legend."""
    return _HUES[label % len(_HUES)], _MARKERS[label // len(_HUES) % len(_MARKERS)][1]


@plain_style()
def embedding_map(points: Sequence[Mapping[str, Any]], when: str, name: str = "map") -> str:
    """Return the places of one task's texts ``before`` or ``after`` meta-training, a colour a label (see `hue`)."""
    side = 270.0
    figure, _ = canvas(side, side)
    axes = pane(figure, 1, 1, side - 2, side - 2)
    axes.spines[:].set(visible=True, color=RULE)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.06)
    placed = [point for point in points if point.get(when)]
    for label in sorted({point["label"] for point in placed}):
        places = np.array([point[when] for point in placed if point["label"] == label], float)
        colour, marker = _HUES[label % len(_HUES)], _MARKERS[label // len(_HUES) % len(_MARKERS)][0]
        axes.plot(*places.T, linestyle="none", color=colour, marker=marker, markersize=4, alpha=0.75, markeredgewidth=0)
    axes.set_aspect("equal", adjustable="datalim")
    count = len({point["label"] for point in placed})
    description = f"Two-dimensional map of {len(placed)} texts of {count} labels, {when} meta-training."
    return inline(figure, name, description, shrink=0.5)


def interval(difference: float, ci95: float, limit: float) -> str:
    """Return a difference with its interval around zero, for a table's cell; an arrow where it is beyond ``limit``."""

    def across(value: float) -> float:
        return round(60 + 54 * max(-1.0, min(1.0, value / limit)), 1)

    half = ci95 if math.isfinite(ci95) else 0.0
    colour = "var(--muted)" if abs(difference) <= half or not half else f"var(--{'good' if difference > 0 else 'bad'})"
    x, way = across(difference), 4 if difference > 0 else -4
    mark = f'<circle cx="{x}" cy="7" r="2.8" style="fill: {colour}"/>'
    if abs(difference) > limit:
        mark = f'<path d="M{x - way} 3L{x + way} 7L{x - way} 11Z" style="fill: {colour}"/>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="120" height="14" viewBox="0 0 120 14" aria-hidden="true">'
        '<path d="M60 0V14" style="stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 2"/>'
        f'<path d="M{across(difference - half)} 7H{across(difference + half)}" style="stroke: {colour}; stroke-width: 2.5"/>'
        f"{mark}</svg>"
    )
