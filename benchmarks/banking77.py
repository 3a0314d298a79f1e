"""Meta-train every algorithm on banking77's fold 1 and measure it on the fold's test classes, with all baselines.

    python benchmarks/banking77.py DATA/classification/banking77 --out benchmarks/results/banking77.json

Protocol: 5-way, 1 and 5 shots, 5 queries a class, the same seeded episodes for every method (fewer, the first ones, for
methods that take seconds an episode). Hyperparameters are those of `recipes/`, chosen on the fold's validation classes.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kshot import api
from kshot.config import load_config
from kshot.files import write_json
from kshot.training import load_run
from kshot.training.callbacks import ProgressDisplay

RECIPES = Path(__file__).parent.parent / "recipes"
ALGORITHMS = ("protonet", "anil", "maml", "reptile")
MOVES_ALL = {"maml", "reptile"}
BASELINES = ("prototype", "logistic", "head", "tfidf", "full")  # measured once, beside the first algorithm


def say(text: str) -> None:
    print(text, flush=True)


def measure(data: Path, algorithm: str, runs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train (or take the run that is there) and evaluate one algorithm; return its report without the pictures' data."""
    overrides: dict[str, Any] = {"tasks": [str(data)], "split.by": f"folds/{arguments.fold}.json"}
    if arguments.steps:
        overrides |= {"training.steps": arguments.steps, "training.validate_every": arguments.steps}
    config = load_config(RECIPES / f"{algorithm}.yaml", overrides)
    suite = api.open_suite(config)
    out = runs / algorithm
    if (out / "kshot.json").exists():
        run = load_run(out)
    else:
        resume = (out / "checkpoints").exists()
        run = api.train(suite, out, config, resume=resume, callbacks=[ProgressDisplay()], tell=say)
    report = api.evaluate(
        run,
        suite,
        tell=say,
        episodes=arguments.slow_episodes if algorithm in MOVES_ALL else arguments.episodes,
        slow_episodes=arguments.baseline_episodes,
        baselines=BASELINES if algorithm == "protonet" else ("prototype",),
    )
    training = run.card["training"]
    return {
        "training_seconds": run.card["metrics"]["seconds"],
        "steps": len(training["history"]),
        "best_step": training["best_step"],
        **{key: report[key] for key in ("run", "protocol", "rows", "paired")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--slow-episodes", type=int, default=100, help="for algorithms that move the encoder in the inner loop")
    parser.add_argument("--steps", type=int, default=None, help="meta-updates, instead of the recipe's")
    parser.add_argument("--baseline-episodes", type=int, default=20, help="for full fine-tuning")
    parser.add_argument("--runs", type=Path, default=None, help="where to keep the runs; a temporary folder by default")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp())
    earlier = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"results": {}}
    results = earlier["results"]
    for algorithm in arguments.algorithms:
        results[algorithm] = measure(arguments.data, algorithm, runs, arguments)
        value = {
            "schema": 1,
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {name: version(name) for name in ("kshot", "torch", "transformers", "scikit-learn")},
            "python": platform.python_version(),
            "fold": arguments.fold,
            "results": results,
        }
        write_json(arguments.out, value)
    if arguments.runs is None:
        shutil.rmtree(runs)


if __name__ == "__main__":
    main()
