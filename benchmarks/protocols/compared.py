"""Methods compared on the same episodes of a kind of task."""

from __future__ import annotations

from typing import Any

import numpy as np

from kshot.evaluation import measuring
from kshot.evaluation.baselines import new_baselines
from kshot.evaluation.generative import generative_baselines
from kshot.evaluation.measuring import pretrained_learner
from kshot.evaluation.methods import MetaTrained, Method
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import Episode
from kshot.training import Run

Rows = list[dict[str, Any]]


def compare(
    run: Run, episodes: list[Episode], baselines: tuple[str, ...], slow: int, same: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each method, and its paired difference to kshot.

    Args:
        run: kshot's side; the baselines have the encoder that it started from.
        episodes: the same ones for all.
        baselines: names of `kshot.evaluation.baselines`.
        slow: on how many episodes slow ones are measured.
        same: what all rows say.
    """
    pretrained = pretrained_learner(run, [])
    assert pretrained is not None
    others = new_baselines(baselines, pretrained) if run.learner.labelled else generative_baselines(pretrained, run)
    methods: list[Method] = [MetaTrained(run), *others]
    methods[0].name = "kshot"
    texts, scores, rows = dict[int, EncodedTexts](), dict[str, list[float]](), Rows()
    for method in methods:
        outcome = measuring.measure(method, episodes[:slow] if method.slow else episodes, texts, run.learner)
        scores[method.name] = outcome.accuracies
        figure = mean(outcome.accuracies)
        row = {"method": method.name, "metric": run.learner.metric, "value": figure.value, "episodes": figure.count}
        row |= {"ci95": figure.ci95 if figure.count > 1 else None, "adapt_seconds_median": float(np.median(outcome.seconds))}
        rows.append(same | row)
        print(f"  {same['dataset']}, {same['shots']} shots, {method.name}: {100 * figure.value:.1f}", flush=True)
    for name in list(scores)[1:]:
        gain = mean([a - b for a, b in zip(scores["kshot"], scores[name], strict=False)])
        pair = {"method": "kshot", "baseline": name, "difference": gain.value, "episodes": gain.count}
        rows.append(same | pair | {"ci95": gain.ci95 if gain.count > 1 else None})
    return rows
