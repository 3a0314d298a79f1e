"""Measuring: all contenders of a workload in one interleaved loop; memory in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from contenders import plain
from contenders.registry import OURS, Step, build, relative_error
from contenders.workload import Workload, make_tasks, new_model

ALONE = "--alone"


@dataclass
class Result:
    """What was measured of one contender: seconds by round, or why there are none."""

    contender: str
    precision: str
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    peak_mb: float | None = None
    baseline_mb: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.seconds)


def say(text: str) -> None:
    """Tell how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)


def compare(workload: Workload, entrants: Sequence[tuple[str, str]], repeats: int, second: str) -> list[Result]:
    """Return the contenders' times (A, B, C, A, B, C, ...) and errors; the first one is the reference.

    Every contender first takes one step that is not timed, whose meta-gradient is compared with the reference's.
    """
    results, steps = [], dict[int, Step]()
    reference = None
    for name, precision in entrants:
        result = Result(name, precision)
        try:
            step = build(name, workload, precision, second)
            gradient = step()
            reference = reference or {key: value.clone() for key, value in gradient.items()}
            result.error = relative_error(gradient, reference)
            steps[len(results)] = step
        except Exception as error:  # whatever a library says is what is reported of it
            result.note = sentence(error)
        results.append(result)
        say(f"{workload.kind:9} {name:19} {precision}  " + (result.note or f"error {result.error:.1e}"))
    for repeat in range(repeats):
        for index, step in steps.items():
            gc.collect()
            begin = time.perf_counter()
            step()
            results[index].seconds.append(time.perf_counter() - begin)
        say(
            f"{workload.kind:9} round {repeat + 1}: "
            + "  ".join(f"{r.contender} {r.seconds[-1]:.2f} s" for r in results if r.seconds)
        )
    return results


def sentence(error: Exception) -> str:
    """Return what an exception says, on one line."""
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "Unable" else f"{type(error).__name__}: {text[:160]}"


def first_order_share(workload: Workload, second: str) -> float:
    """Return the error of a first-order meta-gradient against the second-order one: what dropping second derivatives does.

    An error well below it shows that a contender does have them.
    """
    reference = build("plain", workload, "fp32", second)()
    shortcut, model = replace(workload, kind="fomaml"), new_model(workload, "sdpa")
    plain.step(model, make_tasks(workload), shortcut)
    gradient = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return relative_error(gradient, reference)


def faster_second(workload: Workload) -> str:
    """Return which attention makes plain second-order autograd faster here, of three short steps each."""
    short = replace(workload, kind="maml2", tasks=1, steps=1)
    steps = {second: build("plain", short, "fp32", second) for second in ("eager", "math")}
    seconds = dict.fromkeys(steps, float("inf"))
    for _ in range(3):
        for second, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[second] = min(seconds[second], time.perf_counter() - begin)
    return min(seconds, key=seconds.__getitem__)


def alone(
    name: str, workload: Workload, precision: str, second: str, threads: int, repeats: int = 0, keeps: bool | None = None
) -> dict[str, Any]:
    """Measure a contender in a fresh process: ``baseline_mb`` once loaded, ``peak_mb`` and, where repeated, ``seconds``.

    It keeps freed memory as ``keeps`` says; by default kshot does, as its training does, and the others do not.
    """
    keeps = name.startswith(OURS) if keeps is None else keeps
    order = {"name": name, "workload": asdict(workload), "precision": precision, "second": second, "keeps": keeps}
    script = Path(__file__).parent.parent / "meta_step.py"
    command = [sys.executable, str(script), ALONE, json.dumps(order | {"threads": threads, "repeats": repeats})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {
            "note": lines[-1].removeprefix("contenders.peers.Unable: ") if lines else f"ended with status {done.returncode}"
        }
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def serve_alone(order: str) -> None:
    """Do what `alone` asked for and print it."""
    asked = json.loads(order)
    torch.set_num_threads(asked["threads"])
    step = build(asked["name"], Workload(**asked["workload"]), asked["precision"], asked["second"])
    baseline, seconds = _status_mb("VmRSS"), []
    with _kept_memory() if asked["keeps"] else nullcontext():
        for _ in range(asked["repeats"] + 1):  # the first is not timed
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
    peak = _status_mb("VmHWM")  # rusage's would be the parent's at the fork, where that is larger
    timed = {"seconds": statistics.median(seconds[1:])} if seconds[1:] else {}
    print(json.dumps({"baseline_mb": round(baseline), "peak_mb": round(peak), **timed}))


def _kept_memory() -> AbstractContextManager[Any]:
    from kshot.training.allocator import kept_memory  # here, since contenders that do without it do not import kshot

    return kept_memory()


def _status_mb(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


class Neighbours:
    """The share of the processors that other processes used meanwhile: timings beside busy neighbours are worth little."""

    def __init__(self) -> None:
        self.begin = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        used = os.times()
        return time.monotonic(), busy, used.user + used.system + used.children_user + used.children_system

    def share(self) -> float:
        """Return it since this was made, 0 to 1."""
        wall, busy, own = (now - then for now, then in zip(self._now(), self.begin, strict=True))
        return max(0.0, busy - own) / max(wall, 1e-9) / (os.cpu_count() or 1)
