"""Build, open and sample a large corpus; print rows, seconds and the process's own (anonymous) memory.

    python benchmarks/scale.py --rows 10000000 --tasks 10000 --out benchmarks/results/scale.json

The texts are synthetic (random words), since only their number and length matter here. Each stage runs in a process of its own,
so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from kshot.files import write_json

LABELS_A_TASK = 10
EPISODES = 200


def write_rows(path: Path, rows: int, tasks: int) -> None:
    """Write ``rows`` lines of about 17 words, over tasks of ten labels."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as stream:
        for row in range(rows):
            text = " ".join(rng.choices(words, k=max(3, int(rng.lognormvariate(2.8, 0.45)))))
            task = row % tasks
            stream.write(f'{{"text": "{text}", "label": "l{row // tasks % LABELS_A_TASK}", "task": "t{task}"}}\n')


def anonymous_mb() -> float:
    """Return the process's anonymous memory in MB (memory-mapped files do not count)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def stage(name: str, path: Path) -> None:
    """Run one stage and print its figures as JSON."""
    from kshot.models import load_backbone
    from kshot.models.backbones import BackboneSpec
    from kshot.models.tokens import token_store
    from kshot.tasks import EpisodeSampler, EpisodeSpec, ReadOptions, load_tasks

    backbone = load_backbone(BackboneSpec("tiny")) if name == "tokenise" else None
    before, begin = anonymous_mb(), time.perf_counter()
    tasks = load_tasks(path, ReadOptions(task_column="task"))
    opened = time.perf_counter() - begin
    if backbone is not None:
        store = token_store(tasks[0].corpus, backbone)
        assert len(store.rows([0, 1])) == 2
    begin = time.perf_counter()
    sampler = EpisodeSampler(tasks, EpisodeSpec(5, 5, 5), seed=1)
    prepared = time.perf_counter() - begin
    begin = time.perf_counter()
    for index in range(EPISODES):
        sampler[index]
    sampled = (time.perf_counter() - begin) / EPISODES
    figures = {
        "stage": name,
        "tasks": len(tasks),
        "rows": sum(len(task) for task in tasks),
        "open_seconds": round(opened, 2),
        "sampler_seconds": round(prepared, 2),
        "episode_milliseconds": round(1000 * sampled, 2),
        "memory_mb": round(anonymous_mb() - before, 1),
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        stage(arguments.stage[0], Path(arguments.stage[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, arguments.rows, arguments.tasks)
        size = path.stat().st_size / 2**20
        results = []
        for name in ("build", "open", "tokenise", "open again"):
            command = [sys.executable, __file__, "--stage", name, str(path)]
            environment = {**os.environ, "KSHOT_CACHE": f"{folder}/cache"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
            print(results[-1], flush=True)
    value = {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("kshot", "pyarrow", "numpy")},
        "python": platform.python_version(),
        "rows": arguments.rows,
        "tasks": arguments.tasks,
        "file_mb": round(size),
        "stages": results,
    }
    if arguments.out:
        write_json(arguments.out, value)


if __name__ == "__main__":
    main()
