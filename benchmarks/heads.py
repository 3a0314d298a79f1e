"""Which head to adapt with: prototypes, regression, regression that may go by words, on data that is not for testing.

    python benchmarks/heads.py DATA/classification --runs RUNS --json benchmarks/results/heads.json

Validation classes of fold 1 (5-way, 5 queries a label), and the verticals' halves that are not measured elsewhere (all labels,
20 queries), by the same runs as `accuracy.py` makes. Differences are paired, over prototypes.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from protocols.draws import TEST_HALF, VERTICALS, drawn
from protocols.recipe import trained, trained_on_others
from protocols.tables import fill

from kshot import api
from kshot.files import write_json
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import Episode, EpisodeSampler, EpisodeSpec
from kshot.training import Run
from kshot.training.validation import episode_scores

FOLDS = ("banking77", "hwu64", "liu", "huffpost")
HEADS: dict[str, dict[str, Any]] = {
    "prototypes": {"head": "prototypes"},
    "regression": {"head": "regression", "regression_shots": 1, "lexical": False},
    "regression and words": {"head": "regression", "regression_shots": 1, "lexical": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=None, help="where to keep the runs; a temporary folder by default")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--docs", nargs="+", type=Path, default=[], help="documents whose table is written anew")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    runs, rows = asked.runs or Path(tempfile.mkdtemp()), list[dict[str, Any]]()
    for name in FOLDS:
        suite = api.load_suite(str(asked.data / name), "folds/1.json")
        run = trained(suite, runs / f"{name}-1-named", label_names=True)
        enough = min(count for task in suite.validation for count in task.counts().values())
        for shots in (shots for shots in (1, 2, 5) if shots + 5 <= enough):
            spec = EpisodeSpec(5, shots, 5)
            rows += compare(run, EpisodeSampler(suite.validation, spec, 1)[: asked.episodes], {"dataset": name, "shots": shots})
    for name in VERTICALS:
        run = trained_on_others(asked.data, name, runs)
        for shots in (5, 16):
            episodes = drawn(asked.data, name, shots, 20, asked.episodes // 10, 1 - TEST_HALF)
            rows += compare(run, episodes, {"dataset": name, "shots": shots})
    versions = {library: version(library) for library in ("kshot", "torch", "transformers", "scikit-learn")}
    write_json(asked.json, {"schema": 1, "date": datetime.now(UTC).date().isoformat(), "versions": versions, "rows": rows})
    print(table(rows))
    for path in asked.docs:
        path.write_text(fill(path.read_text(encoding="utf-8"), {"heads": table(rows)}), encoding="utf-8")


def compare(run: Run, episodes: list[Episode], same: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each head."""
    texts = EncodedTexts(run.learner)
    accuracies = {
        name: episode_scores(run.learner, replace(run.algorithm, **options), episodes, texts)  # type: ignore[call-arg]
        for name, options in HEADS.items()
    }
    base, rows = accuracies["prototypes"], []
    for name, values in accuracies.items():
        difference = mean([a - b for a, b in zip(values, base, strict=True)])
        row = same | {"head": name, "accuracy": mean(values).value, "ci95": mean(values).ci95}
        rows.append(row | {"difference": difference.value, "difference_ci95": difference.ci95, "episodes": len(episodes)})
        print(f"  {rows[-1]}", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of docs/benchmarks.md."""
    lines = ["| | prototypes | regression | and words |", "|---|---|---|---|"]
    for key in dict.fromkeys((row["dataset"], row["shots"]) for row in rows):
        first, *others = [row for row in rows if (row["dataset"], row["shots"]) == key]
        cells = [f"{100 * first['accuracy']:.1f} ± {100 * first['ci95']:.1f}"]
        cells += [
            f"{100 * r['accuracy']:.1f} ({100 * r['difference']:+.1f} ± {100 * r['difference_ci95']:.1f})" for r in others
        ]
        lines.append(f"| {key[0]}, {key[1]} shots | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
