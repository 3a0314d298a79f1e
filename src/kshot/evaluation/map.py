"""A 2-D map of a held-out task's texts, before and after meta-training."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch.nn import functional as F

from kshot.models import Learner
from kshot.tasks import Task

_LABELS, _TEXTS_A_LABEL = 10, 25
_SAME = 1e-6  # t-SNE cannot spread texts that are all one to the encoder


def embedding_map(task: Task, before: Learner, after: Learner, seed: int = 0) -> dict[str, Any]:
    """Return positions of some of the task's texts under two encoders, by t-SNE (van der Maaten & Hinton 2008).

    Returns:
        ``task``, ``labels`` and ``points``, each with its ``label`` index and the positions ``before`` and ``after``.
    """
    rng = np.random.default_rng(seed)
    texts, labels = list[str](), list[int]()
    for label in range(min(_LABELS, len(task.labels))):
        rows = rng.permutation(task.rows(label))[:_TEXTS_A_LABEL]
        texts += task.corpus.texts(rows)
        labels += [label] * len(rows)
    positions = [_project(F.normalize(learner.embed_texts(texts), dim=-1).cpu().numpy(), seed) for learner in (before, after)]
    return {
        "task": task.name,
        "labels": list(task.labels[:_LABELS]),
        "points": [
            {"label": label, "before": a.round(4).tolist(), "after": b.round(4).tolist()}
            for label, a, b in zip(labels, *positions, strict=True)
        ],
    }


def _project(vectors: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if np.ptp(vectors, 0).max() < _SAME:
        return np.zeros((len(vectors), 2))
    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    with threadpool_limits(1):  # so few points: threads would only wait for each other
        points = TSNE(perplexity=perplexity, init="pca", method="exact", random_state=seed).fit_transform(vectors)
    return np.asarray((points - points.mean(0)) / np.abs(points).max())
