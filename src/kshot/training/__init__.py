"""The loops: meta-training with validation, checkpoints, exact resume, and what is told meanwhile."""

from kshot.training.config import TrainingConfig
from kshot.training.loop import TrainingResult, meta_train
from kshot.training.run import Run, load_run, save_run

__all__ = ["Run", "TrainingConfig", "TrainingResult", "load_run", "meta_train", "save_run"]
