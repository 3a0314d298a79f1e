"""Every algorithm at an equal budget: banking77, fold 1, the same training episodes and the same test episodes.

    python benchmarks/algorithms.py DATA/classification/banking77 --out benchmarks/results/algorithms.json

Budget: 15 meta-updates of 4 episodes (5-way, 1 to 5 shots, 5 queries), the same ones for each, MiniLM, AdamW 5e-5, the last
weights. The hyperparameters are each algorithm's defaults, none tuned here. Products in bf16 while training, fp32 afterwards;
where the processor has no bf16, give `--precision fp32` (each result says which). Interrupted, it goes on with the algorithms
that are not in the file yet. The table for the README is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kshot import api
from kshot.files import write_json
from kshot.meta import ALGORITHMS

SETTINGS = {
    "episodes.ways": 5,
    "episodes.shots": [1, 5],
    "episodes.queries": 5,
    "training.tasks_per_step": 4,
    "training.lr": 5e-5,
    "training.validate_every": 0,
    "label_names": False,
}
BASELINE = "frozen prototype"


def measure(data: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one algorithm."""
    options = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
    suite = api.load_suite(str(data), f"folds/{arguments.fold}.json")
    with tempfile.TemporaryDirectory() as folder:
        run = api.train(
            suite,
            Path(folder) / "run",
            algorithm__name=name,
            training__steps=arguments.steps,
            precision=arguments.precision,
            **options,
        )
        report = api.evaluate(run, suite, tell=print, episodes=arguments.episodes, slow_episodes=0, baselines=("prototype",))
    history = run.card["training"]["history"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "precision": arguments.precision,
        "training_seconds": run.card["metrics"]["seconds"],
        "training_accuracy": sum(entry["accuracy"] for entry in history[-5:]) / len(history[-5:]),
        "options": report["run"]["options"],
        "rows": report["rows"],
        "paired": report["paired"],
    }


def table(results: dict[str, Any]) -> str:
    """Return the README's table."""
    lines = [
        "| | 1 shot | 5 shots | over the frozen prototype (1 / 5 shots) | training, min | adapts in, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        rows = {(row["method"], row["shots"]): row for row in result["rows"]}
        own = [row for (method, _), row in rows.items() if method != BASELINE]
        paired = [f"{100 * p['difference']:+.1f} ± {100 * p['ci95']:.1f}" for p in result["paired"]]
        cells = [f"{100 * row['accuracy']:.1f} ± {100 * row['ci95']:.1f}" for row in own]
        minutes, seconds = result["training_seconds"] / 60, own[-1]["adapt_seconds_median"]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {' / '.join(paired)} | {minutes:.1f} | {seconds:.2f} |")
    base = [row for row in next(iter(results.values()))["rows"] if row["method"] == BASELINE]
    cells = " | ".join(f"{100 * row['accuracy']:.1f} ± {100 * row['ci95']:.1f}" for row in base)
    return "\n".join([*lines, f"| frozen prototype | {cells} | - | - | {base[-1]['adapt_seconds_median']:.2f} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else {}
    for name in arguments.algorithms:
        if name not in results:
            results[name] = measure(arguments.data, name, arguments)
            write_json(
                arguments.out,
                {
                    "schema": 1,
                    "versions": {name: version(name) for name in ("kshot", "torch", "transformers")},
                    "python": platform.python_version(),
                    "fold": arguments.fold,
                    "steps": arguments.steps,
                    "settings": SETTINGS,
                    "results": results,
                },
            )
    print(table(results))


if __name__ == "__main__":
    main()
