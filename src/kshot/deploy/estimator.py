"""scikit-learn's interface to an adapted task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from kshot.deploy.adapted import AdaptedTask, adapt
from kshot.errors import DataError
from kshot.training import Run, load_run


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier that a meta-trained run adapts from a few examples a label.

    Args:
        run: a run's folder, or a loaded `Run`.
        device: where to compute, such as ``cpu`` or ``cuda``.

    Attributes:
        classes_: the labels, sorted.
        task_: the adapted task.

    Example:
        ``FewShotClassifier("runs/support").fit(texts, labels).predict_proba(more_texts)``
    """

    def __init__(self, run: str | Path | Run | None = None, device: str = "cpu") -> None:
        self.run = run
        self.device = device

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt the run to texts ``X`` (n,) and labels ``y`` (n,).

        Raises:
            DataError: (a `ValueError`) ``X`` is not a sequence of strings, ``y`` has one label only or holds what is no
                label, or their lengths differ.
        """
        texts, labels = _texts(X), np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise DataError(f"X has {len(texts)} texts and y the shape {labels.shape}.", f"Expected shape ({len(texts)},).")
        if self.run is None:
            raise DataError("FewShotClassifier has no run.", mend="Name one: FewShotClassifier(run='runs/name')")
        _require_labels(labels)
        classes, index = np.unique(labels, return_inverse=True)
        run = self.run if isinstance(self.run, Run) else load_run(self.run, self.device)
        self.task_: AdaptedTask = adapt(run, texts, [str(i) for i in index])
        self.classes_ = classes
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probabilities (n, N) of `classes_`."""
        check_is_fitted(self)
        probabilities = self.task_.probabilities(_texts(X)).double().numpy()
        columns = [self.task_.labels.index(str(i)) for i in range(len(self.classes_))]
        chosen: npt.NDArray[np.float64] = probabilities[:, columns]
        chosen /= chosen.sum(1, keepdims=True)
        return chosen

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most probable label of each text."""
        probabilities = self.predict_proba(X)
        labels: npt.NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


def _texts(X: Any) -> Sequence[str]:
    if isinstance(X, str):
        raise DataError("X is one string.", "Expected a sequence of strings, one a text.", "Write [text].")
    texts = np.asarray(X, dtype=object)
    if texts.ndim != 1:
        raise DataError(f"X has the shape {texts.shape}.", "Expected one dimension: a sequence of strings.")
    wrong = next((item for item in texts if not isinstance(item, str)), None)
    if wrong is not None or any(item is None for item in texts):
        raise DataError(f"X holds a {type(wrong).__name__}.", "Expected strings.")
    return [str(text) for text in texts]


def _require_labels(y: npt.NDArray[Any]) -> None:
    """Refuse what scikit-learn calls a continuous target, and missing labels."""
    if y.dtype.kind == "f" and (wrong := y[y != np.floor(y)]).size:
        raise DataError(f"y is continuous: it holds {wrong[0]}.", "Labels are expected: strings, or whole numbers.")
    if any(label is None or (isinstance(label, float) and math.isnan(label)) for label in y):
        raise DataError("y holds a missing label.", "Expected a label for each text.")
