"""The outer loop's options."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kshot.errors import ConfigError, listing, nearest

DROPOUTS = ("off", "on")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """The outer loop.

    Args:
        steps: meta-updates.
        tasks_per_step: episodes a meta-update; None for the algorithm's usual number.
        lr: the peak rate of AdamW.
        meta_lr: that for the algorithm's own parameters: learned rates, scales, metrics, class vectors. They start from
            nothing, and a rate that suits pretrained weights would leave them there.
        weight_decay: of AdamW, on matrices (not on biases, norms and the head's start).
        warmup: the share of the steps over which the rate rises linearly.
        schedule: how it falls afterwards: ``linear`` to zero, ``cosine`` to zero, or ``constant``.
        clip: the largest norm of the meta-gradient; 0 for none.
        dropout: ``on`` uses the backbone's dropout in the inner and outer loop, ``off`` nowhere.
        trains: the selector of what the outer loop trains.
        validate_every: steps between validations; 0 for never.
        validation_episodes: how many; always the same ones.
        calibration_episodes: episodes of meta-validation tasks on which the head is chosen (where the algorithm leaves it to be
            chosen), and the temperature and the out-of-scope threshold are fitted, at the end; 0 for none.
        patience: validations without a better accuracy after which training stops; 0 for never.
        seed: of episodes and dropout.
        threads: episodes of a meta-update that are differentiated side by side, each on one core; None for as many as there are
            cores where that is faster. Each needs the memory of one.
    """

    steps: int = 100
    tasks_per_step: int | None = None
    lr: float = 5e-5
    meta_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "linear"
    clip: float = 1.0
    dropout: str = "off"
    trains: str = "all"
    validate_every: int = 10
    validation_episodes: int = 100
    calibration_episodes: int = 100
    patience: int = 5
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("schedule", self.schedule, SCHEDULES), ("dropout", self.dropout, DROPOUTS)):
            if value not in known:
                raise ConfigError(f"training.{name} is '{value}'.{nearest(value, known)}", f"Expected {listing(known)}.")
        for name in ("steps", "lr", "meta_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}.", "A number above 0 is expected.")
        for name in ("weight_decay", "clip", "validate_every", "validation_episodes", "calibration_episodes", "patience"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}.", "At least 0 is expected.")
        if self.tasks_per_step is not None and self.tasks_per_step < 1:
            raise ConfigError(f"training.tasks_per_step is {self.tasks_per_step}.", "At least 1 is expected.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"training.threads is {self.threads}.", "At least 1 is expected.")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"training.warmup is {self.warmup}.", "A share of the steps between 0 and 1 is expected.")

    def rate(self, step: int) -> float:
        """Return AdamW's rate at a step, counted from 0."""
        return self.lr * self.factor(step)

    def factor(self, step: int) -> float:
        """Return the share of the peak rates at a step, counted from 0."""
        rising = self.warmup * self.steps
        if step < rising:
            return (step + 1) / math.ceil(rising)
        along = (step - rising) / max(1, self.steps - rising)
        return {"linear": 1 - along, "cosine": (1 + math.cos(math.pi * along)) / 2, "constant": 1.0}[self.schedule]
