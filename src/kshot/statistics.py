"""Means with their 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Mean:
    """A mean over episodes.

    Args:
        value: the mean.
        ci95: half the width of its 95% interval (Student's t); NaN for fewer than two values.
        count: the number of values.
    """

    value: float
    ci95: float
    count: int

    def percent(self) -> str:
        """Return the mean and its interval in percent, such as ``95.1 ± 0.4``."""
        half = "" if np.isnan(self.ci95) else f" ± {100 * self.ci95:.1f}"
        return f"{100 * self.value:.1f}{half}"


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of independent values with its 95% interval.

    Example:
        >>> mean([0.8, 0.9, 1.0]).percent()
        '90.0 ± 24.8'
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return Mean(float(array.mean()) if len(array) else float("nan"), float("nan"), len(array))
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Mean(float(array.mean()), float(half), len(array))
