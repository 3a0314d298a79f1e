"""Time one meta-step of kshot against plain autograd and other meta-learning libraries, on the same tensors.

    python benchmarks/meta_step.py --json benchmarks/results/meta_step.json
    python benchmarks/meta_step.py --json benchmarks/results/meta_step.json --growth
    python benchmarks/meta_step.py --json benchmarks/results/meta_step.json --kept-memory
    python benchmarks/plot_meta_step.py benchmarks/results/meta_step.json docs/img

Workloads, all on MiniLM with unit-length mean-pooled text vectors and a linear head, in evaluation mode, texts of 5 to 32
random tokens (58% of the padded ones are real), 5 inner steps of gradient descent at 1e-2:

- maml2: second-order MAML, 4 tasks, 5-way 5-shot with 5 query texts a class;
- fomaml: first-order MAML, 1 task; anil: the head alone adapts, 4 tasks;
- lora2: rank 8 adapters (PEFT) on every linear layer and the head adapt, second order, 1 task;
- protonet: prototypical networks, one task of 20 ways with 5 support and 5 query texts a class.

The meta-gradient of every contender is compared with plain autograd's at fp32; a row's error is ``|g - r| / |r|`` over all
meta-parameters. Contenders run in one interleaved loop; medians, extremes, and ratios within rounds. Peak memory, and all
that `--growth` measures, is that of a fresh process. There kshot keeps freed memory, as its training does; in the shared loop
nobody does, since that is a setting of the process. Peers are measured where installed: ``pip install --no-deps -r
benchmarks/peers.txt``. learn2learn 0.2.0 does not build on Python 3.11 and needs torchvision, betty-ml 0.2.1 wants Python
below 3.11: neither can be measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from contenders.arithmetic import check_counts, peak_gflops, useful_operations
from contenders.growth import growth_rows, kept_memory_rows, memory_rows
from contenders.measuring import ALONE, Neighbours, Result, alone, compare, faster_second, first_order_share, say, serve_alone
from contenders.peers import NOT_INSTALLABLE, PEERS
from contenders.registry import entrants, present
from contenders.report import contender_rows, markdown, our_rows
from contenders.workload import WORKLOADS, Workload

from kshot.files import write_json

PACKAGES = ("kshot", "torch", "transformers", "peft", *PEERS)


def machine(threads: int, peak: dict[str, float], seed: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    information = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next(
            (line.split(":", 1)[1].strip() for line in information if line.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "peak_gflops": {precision: round(value, 1) for precision, value in peak.items()},
    }


def add_memory(workload: Workload, results: list[Result], second: str, threads: int) -> None:
    """Measure every contender's peak memory in a fresh process."""
    for result in results:
        if result.seconds:
            figures = alone(result.contender, workload, result.precision, second, threads)
            result.peak_mb, result.baseline_mb = figures.get("peak_mb"), figures.get("baseline_mb")
            result.note = result.note or figures.get("note", "")
            say(f"{workload.kind:9} {result.contender:19} {result.precision}  peak {result.peak_mb} MB")


def add(part: str, measure: Callable[..., list[dict[str, Any]]], asked: argparse.Namespace) -> None:
    """Measure something more, and put that and the machine it was measured on into the result file."""
    value = json.loads(asked.json.read_text())
    neighbours = Neighbours()
    rows = measure(faster_second(WORKLOADS["maml2"]), asked.threads, min(asked.repeats, 2), asked.quick)
    seen = machine(asked.threads, {"fp32": peak_gflops(torch.float32)}, WORKLOADS["maml2"].seed)
    seen["used_by_others"] = round(neighbours.share(), 3)
    write_json(asked.json, value | {part: rows, f"{part}_machine": seen})


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--peers", default=",".join(PEERS), help="which libraries to measure, or none")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--growth", action="store_true", help="measure instead how time and memory grow, into an existing file")
    parser.add_argument(
        "--kept-memory", action="store_true", help="measure instead what keeping freed memory brings, into an existing file"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of kshot's hypergradients")
    parser.add_argument("--quick", action="store_true", help="one task of few texts, one round: does everything run?")
    asked = parser.parse_args(arguments)
    asked.peers = "" if asked.peers == "none" else asked.peers
    for option, known in (("workloads", WORKLOADS), ("precisions", ("fp32", "bf16")), ("peers", PEERS)):
        names = [name for name in getattr(asked, option).split(",") if name]
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--{option}: no {', '.join(unknown)}; there are {', '.join(known)}")
        setattr(asked, option, names)
    return asked


def main(arguments: list[str]) -> None:
    """Measure what was asked for, write it and print the tables."""
    if arguments[:1] == [ALONE]:
        serve_alone(arguments[1])
        return
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    if asked.growth:
        add("growth", growth_rows, asked)
    if asked.kept_memory:
        add("kept_memory", kept_memory_rows, asked)
    if asked.growth or asked.kept_memory:
        return
    chosen = [WORKLOADS[name] for name in asked.workloads]
    if asked.quick:
        asked.repeats = 1
        chosen = [replace(workload, tasks=1, shots=1, queries=1, steps=2) for workload in chosen]
    peers, absent = present(asked.peers)
    neighbours = Neighbours()
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peak = {precision: peak_gflops(formats[precision]) for precision in asked.precisions}  # emulated bf16 takes minutes
    value: dict[str, Any] = {"schema": 1, "machine": machine(asked.threads, peak, chosen[0].seed)}
    second = faster_second(chosen[0])
    value["plain_second_order_attention"] = second
    value["counted_per_derived_operations"] = check_counts()
    value["not_measured"] = absent | NOT_INSTALLABLE
    value |= {"workloads": {}, "rows": [], "contenders": [], "memory": [], "growth": []}
    for workload in chosen:
        results = compare(workload, entrants(workload, asked.precisions, peers), asked.repeats, second)
        add_memory(workload, results, second, asked.threads)
        value["rows"] += our_rows(workload, results, peak)
        value["contenders"] += contender_rows(workload, results)
        value["workloads"][workload.kind] = asdict(workload) | {"useful_gflop": round(useful_operations(workload) / 1e9, 2)}
        if workload.twice:
            value["workloads"][workload.kind]["first_order_error"] = first_order_share(workload, second)
        write_json(asked.json, value)
    if not asked.no_memory:
        value["memory"] = memory_rows(second, asked.threads, min(asked.repeats, 3), asked.quick)
        write_json(asked.json, value)
    value["machine"]["used_by_others"] = round(neighbours.share(), 3)
    write_json(asked.json, value)
    print(markdown(value))


if __name__ == "__main__":
    main(sys.argv[1:])
