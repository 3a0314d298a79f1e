"""The rows of the result file, and the table for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from contenders.arithmetic import useful_operations
from contenders.measuring import Result
from contenders.registry import OURS
from contenders.workload import Workload


def contender_rows(workload: Workload, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return what was measured of every contender."""
    return [
        {
            "workload": workload.kind,
            "contender": result.contender,
            "precision": result.precision,
            "seconds": _rounded(result.median if result.seconds else None),
            "min": _rounded(min(result.seconds, default=None)),
            "max": _rounded(max(result.seconds, default=None)),
            "error": result.error,
            "peak_mb": result.peak_mb,
            "baseline_mb": result.baseline_mb,
            "note": result.note,
        }
        for result in results
    ]


def our_rows(workload: Workload, results: Sequence[Result], peak: dict[str, float]) -> list[dict[str, Any]]:
    """Return kshot's rows: ratios are medians over rounds of another's seconds to kshot's in the same round.

    ``ratio_plain`` and ``ratio_best_peer`` are against the fastest of either kind at fp32, whatever kshot's precision is;
    ``ratio_plain_same`` is against plain autograd at the same precision, which for bf16 is PyTorch's autocast.
    """
    measured = [result for result in results if result.seconds]
    peers = [result for result in measured if not _is_plain(result) and result.contender != OURS]
    rows = []
    for ours in (result for result in measured if result.contender == OURS):
        plain = [result for result in measured if _is_plain(result)]
        best_peer = min(peers, key=lambda result: result.median, default=None)
        rows.append(
            {
                "workload": workload.kind,
                "precision": ours.precision,
                "seconds": _rounded(ours.median),
                "ratio_plain": _ratio([result for result in plain if result.precision == "fp32"], ours),
                "ratio_plain_same": _ratio([result for result in plain if result.precision == ours.precision], ours),
                "ratio_best_peer": _ratio(peers, ours),
                "best_peer": best_peer.contender if best_peer else None,
                "error": ours.error,
                "peak_mb": ours.peak_mb,
                "utilisation": round(useful_operations(workload) / ours.median / (1e9 * peak[ours.precision]), 4),
            }
        )
    return rows


def _is_plain(result: Result) -> bool:
    return result.contender.startswith("plain")


def _ratio(others: Sequence[Result], ours: Result) -> float | None:
    if not others:
        return None
    best = min(others, key=lambda result: result.median)
    return _rounded(statistics.median(a / b for a, b in zip(best.seconds, ours.seconds, strict=True)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def markdown(value: dict[str, Any]) -> str:
    """Return the tables for a README."""
    lines = [
        "| workload | contender | precision | seconds (min to max) | error | peak MB | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in value["contenders"]:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.3g} ({row['min']:.3g} to {row['max']:.3g})"
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        cells = (row["workload"], row["contender"], row["precision"], seconds, error, row["peak_mb"] or "", row["note"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "| workload | kshot | seconds | to plain | same precision | to the best peer | error | peak MB | utilisation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in value["rows"]:
        ratios = ("" if row[key] is None else f"{row[key]:.2f}x" for key in ("ratio_plain", "ratio_plain_same"))
        peer = "" if row["ratio_best_peer"] is None else f"{row['ratio_best_peer']:.2f}x ({row['best_peer']})"
        cells = (row["workload"], row["precision"], f"{row['seconds']:.3g}", *ratios, peer, f"{row['error']:.0e}")
        lines.append("| " + " | ".join(map(str, (*cells, row["peak_mb"] or "", f"{row['utilisation']:.0%}"))) + " |")
    return "\n".join(lines)
