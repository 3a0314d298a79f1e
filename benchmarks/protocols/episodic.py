"""5-way episodes of classes that a fold keeps for testing: the protocol of the published tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot import api
from kshot.tasks.label_names import label_texts
from protocols.recipe import trained
from protocols.tables import TRANSDUCTIVE

INTENTS = ("banking77", "hwu64", "liu", "clinc150")
NEWS = ("huffpost", "20news")
BASELINES = ("prototype", "prototype+names", "logistic", "logistic+names", "tfidf")
EPISODES = {**dict.fromkeys(INTENTS, 600), **dict.fromkeys(NEWS, 1000)}
OURS, OURS_WITHOUT = "kshot", "kshot without label names"


def measure(data: Path, dataset: str, fold: int, runs: Path, episodes: int | None) -> list[dict[str, Any]]:
    """Return a row for each method and number of shots."""
    suite = api.load_suite(str(data / dataset), f"folds/{fold}.json", read__skip_empty=True)
    rows = []
    for name, names, baselines in ((OURS, True, BASELINES), (OURS_WITHOUT, False, ())):
        if not names and not any(label_texts(task.labels) for task in suite.train):
            continue  # the labels are numbered: it would be the same training again
        run = trained(suite, runs / f"{dataset}-{fold}-{'named' if names else 'plain'}", label_names=names)
        report = api.evaluate(
            run,
            suite,
            tell=print,
            episodes=episodes or EPISODES[dataset],
            slow_episodes=0,
            baselines=baselines,
            transductive=name == OURS,
        )
        rows += [_row(dataset, fold, run.card["metrics"]["seconds"], row, name) for row in report["rows"]]
        rows += [
            {"dataset": dataset, "fold": fold, "protocol": "episodic", "paired": True, "method": name, **_difference(pair)}
            for pair in report["paired"]
        ]
    return rows


def _row(dataset: str, fold: int, seconds: float, row: dict[str, Any], name: str) -> dict[str, Any]:
    ours = row["method"].endswith("(meta-trained)")
    own = {"(meta-trained)": name, "transductive": TRANSDUCTIVE}
    return {
        "dataset": dataset,
        "fold": fold,
        "protocol": "episodic",
        "method": own.get(row["method"].split()[-1], row["method"]),
        **{key: row[key] for key in ("ways", "shots", "accuracy", "ci95", "episodes", "adapt_seconds_median")},
        **({"ece": row["ece"], "training_seconds": seconds} if ours else {}),
    }


def _difference(pair: dict[str, Any]) -> dict[str, Any]:
    return {key: pair[key] for key in ("baseline", "ways", "shots", "difference", "ci95", "episodes")}
