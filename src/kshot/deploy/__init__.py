"""Using a run: tasks adapted from a few examples, and scikit-learn's interface to them."""

from kshot.deploy.adapted import AdaptedTask, adapt, load_adapted
from kshot.deploy.answers import Entity, Prediction, Reason
from kshot.deploy.estimator import FewShotClassifier

__all__ = ["AdaptedTask", "Entity", "FewShotClassifier", "Prediction", "Reason", "adapt", "load_adapted"]
