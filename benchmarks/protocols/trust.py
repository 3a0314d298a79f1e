"""Calibration and out-of-scope detection, on classes that meta-training never saw and clinc150's real out-of-scope queries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from kshot import api
from kshot.evaluation.metrics import calibration_error, reliability
from kshot.models.features import EncodedTexts, encode_once
from kshot.tasks import EpisodeSampler, EpisodeSpec, Examples
from kshot.training import Run
from kshot.training.trust import NEARNESS, SCORES, Trust
from protocols.recipe import trained

Confidences = list[tuple[float, bool]]
SHOTS = (1, 5)
WAYS_OUT_OF_SCOPE = 50  # all test classes of a fold of clinc150
DRAWS = 5
QUERIES = 20


def measure(data: Path, dataset: str, fold: int, runs: Path, episodes: int) -> dict[str, Any]:
    """Return the calibration error before and after, and for clinc150 how well out-of-scope queries are found."""
    suite = api.load_suite(str(data / dataset), f"folds/{fold}.json", read__skip_empty=True)
    run = trained(suite, runs / f"{dataset}-{fold}-named")
    assert run.trust is not None
    result: dict[str, Any] = {"dataset": dataset, "fold": fold, "trust": {"score": run.trust.score}}
    texts, before, after = EncodedTexts(run.learner), Confidences(), Confidences()
    for shots in SHOTS:
        drawn = EpisodeSampler(suite.test, EpisodeSpec(5, shots, 5), 0)[:episodes]
        for episode in texts.episodes(drawn):
            with torch.no_grad():
                logits = run.algorithm.logits(run.learner, run.algorithm.adapt(run.learner, episode.support), episode.query)
            for pool, trust in ((before, Trust()), (after, run.trust)):
                pool.extend(_confidences(trust.calibrated(logits, shots), episode.query.labels))
    result |= {"ece_before": calibration_error(before), "ece_after": calibration_error(after)}
    result["reliability"] = {"before": reliability(before), "after": reliability(after)}
    outside = data / dataset / "out_of_scope.jsonl"
    if outside.exists():
        result |= _out_of_scope(run, suite.test, [json.loads(line)["text"] for line in outside.open(encoding="utf-8")])
    return result


def _confidences(logits: Tensor, labels: Tensor) -> Confidences:
    probabilities = logits.softmax(-1)
    return list(zip(probabilities.amax(-1).tolist(), (probabilities.argmax(-1) == labels).tolist(), strict=True))


@torch.no_grad()
def _out_of_scope(run: Run, tasks: Any, outside: list[str]) -> dict[str, Any]:
    """Adapt to all test classes at five shots, and ask for texts in scope and out of it; means over draws."""
    trust, figures = run.trust, list[dict[str, float]]()
    assert trust is not None
    spec = EpisodeSpec(WAYS_OUT_OF_SCOPE, 5, QUERIES)
    for episode in EpisodeSampler(tasks, spec, 0)[:DRAWS]:
        count = len(episode.query)
        both = Examples(episode.query.texts + tuple(outside), episode.query.labels + (0,) * len(outside))
        (encoded,) = encode_once(run.learner, [replace(episode, query=both)])
        adapted = run.algorithm.adapt(run.learner, encoded.support)
        logits = trust.calibrated(run.algorithm.logits(run.learner, adapted, encoded.query), 5)
        inside = np.arange(len(both)) < count
        near, row = run.algorithm.nearness(run.learner, adapted, encoded.query), dict[str, float]()
        for name in [*SCORES, *([] if near is None else [NEARNESS])]:
            values = replace(trust, score=name).scores(logits, near).numpy()
            row[f"auroc_{name}"] = float(roc_auc_score(inside, values))
            rates = roc_curve(inside, values)
            row[f"fpr95_{name}"] = float(rates[0][np.searchsorted(rates[1], 0.95)])
        kept = (trust.scores(logits, near) >= trust.least(5, WAYS_OUT_OF_SCOPE)).numpy()
        right = (logits.argmax(-1) == encoded.query.labels).numpy()
        row |= {
            "in_scope_kept": float(kept[:count].mean()),
            "out_of_scope_kept": float(kept[count:].mean()),
            "in_scope_accuracy": float(right[:count].mean()),
            "in_scope_accuracy_at_threshold": float((right & kept)[:count].mean()),
        }
        figures.append(row)
    means = {name: float(np.mean([row[name] for row in figures])) for name in figures[0]}
    return {"oos_auroc": means[f"auroc_{trust.score}"], "fpr95": means[f"fpr95_{trust.score}"], "out_of_scope": means}
