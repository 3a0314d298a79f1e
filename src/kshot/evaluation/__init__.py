"""The protocol: episodes with confidence intervals, metrics, baselines, reports and plots."""

from kshot.evaluation.baselines import BASELINES
from kshot.evaluation.protocol import EvaluationConfig, evaluate

__all__ = ["BASELINES", "EvaluationConfig", "evaluate"]
