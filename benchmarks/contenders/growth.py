"""How cost grows: memory and time of second-order MAML against inner steps, tasks, support size and text length."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from contenders.measuring import alone, say
from contenders.workload import WORKLOADS, Workload

AXES = {"steps": (1, 2, 5, 10), "tasks": (1, 2, 4, 8), "shots": (1, 2, 5, 10), "length": (16, 32, 64, 128)}
CONTENDERS = ("plain", "kshot", "kshot-checkpointed")
METHODS = {"graph": "kshot", "checkpointed": "kshot-checkpointed"}
STEPS = (1, 5, 10, 20)
PAIRS = 3
ONE_TASK = replace(WORKLOADS["maml2"], tasks=1)
SMALL = replace(ONE_TASK, shots=1, queries=1, steps=1)


def memory_rows(second: str, threads: int, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Return seconds and peak memory of kshot's exact hypergradients against the inner steps, one task."""
    rows, base = [], SMALL if quick else ONE_TASK
    for steps in STEPS[:2] if quick else STEPS:
        for method, name in METHODS.items():
            row = {"hypergradient": method, "steps": steps} | _measured(
                name, replace(base, steps=steps), second, threads, repeats
            )
            rows.append(row)
            say(f"memory    {row}")
    return rows


def growth_rows(second: str, threads: int, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Return seconds and peak memory along each axis, the others as in W1 with one task."""
    rows, base = [], SMALL if quick else ONE_TASK
    for axis, values in AXES.items():
        for value in values[:2] if quick else values:
            for name in CONTENDERS:
                row = {"axis": axis, "value": value, "contender": name}
                row |= _measured(name, replace(base, **{axis: value}), second, threads, repeats)
                rows.append(row)
                say(f"growth    {row}")
    return rows


def kept_memory_rows(second: str, threads: int, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Return seconds and peak memory with freed memory kept and without, by pairs of processes, for kshot and for plain."""
    rows = []
    chosen = [replace(WORKLOADS["maml2"], tasks=2), *(WORKLOADS[kind] for kind in ("fomaml", "lora2", "protonet"))]
    if quick:
        chosen = [replace(workload, tasks=1, shots=1, queries=1, steps=1) for workload in chosen]
    for workload, name, pair in product(chosen, CONTENDERS[:2], range(1 if quick else PAIRS)):
        for keeps in (pair % 2 == 0, pair % 2 == 1):
            row = {"workload": workload.kind, "tasks": workload.tasks, "contender": name, "pair": pair, "kept": keeps}
            rows.append(row | _measured(name, workload, second, threads, repeats, keeps))
            say(f"kept      {rows[-1]}")
    return rows


def _measured(
    name: str, workload: Workload, second: str, threads: int, repeats: int, keeps: bool | None = None
) -> dict[str, Any]:
    figures = {"seconds": None, "peak_mb": None} | alone(name, workload, "fp32", second, threads, repeats, keeps)
    if figures["seconds"] is not None:
        figures["seconds"] = round(figures["seconds"], 4)
    return figures
