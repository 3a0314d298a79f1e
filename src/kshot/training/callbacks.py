"""What is told while a training runs: a live display, TensorBoard, Weights & Biases. Each is one small class."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kshot.errors import MissingExtraError, TrainingError
from kshot.files import disk_errors
from kshot.statistics import Mean

History = list[dict[str, float]]
"""A record a step: ``step``, ``loss``, ``lr``, the algorithm's metrics, and at times ``validation`` and ``validation_ci95``."""


class Callback:
    """Is told what happens; does nothing by default."""

    def start(self, steps: int, done: int) -> None:
        """Training begins, or goes on after ``done`` steps."""

    def step(self, record: Mapping[str, float], episodes: int) -> None:
        """A step is done, over so many episodes. ``record`` is the newest one of the history."""

    def end(self) -> None:
        """Training has ended, was stopped, or failed."""


class ProgressDisplay(Callback):
    """A live line on a terminal (loss, validation, episodes a second, time left); a plain line now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._validation = "-"
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total} steps"),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}  {task.fields[rate]} episodes/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def start(self, steps: int, done: int) -> None:
        self._steps, self._began, self._episodes = steps, time.perf_counter(), 0
        self._every = max(1, steps // 10)  # for plain lines, where there is no validation to tell of
        self._task = self._progress.add_task("", total=steps, completed=done, loss="-", validation="-", rate="-")
        self._progress.start()

    def step(self, record: Mapping[str, float], episodes: int) -> None:
        self._episodes += episodes
        rate = self._episodes / (time.perf_counter() - self._began)
        if "validation" in record:
            self._validation = Mean(record["validation"], record["validation_ci95"], 0).percent() + "%"
        if not self._console.is_terminal and ("validation" in record or record["step"] % self._every == 0):
            left = (self._steps - record["step"]) * episodes / rate
            self._console.print(
                f"step {record['step']:.0f}/{self._steps}  loss {record['loss']:.4f}  validation {self._validation}  "
                f"{rate:.2f} episodes/s  {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
        self._progress.update(
            self._task,
            completed=record["step"],
            loss=f"{record['loss']:.3f}",
            validation=self._validation,
            rate=f"{rate:.1f}",
        )

    def end(self) -> None:
        self._progress.stop()


class TensorBoardLogger(Callback):
    """Writes scalars to a folder that ``tensorboard --logdir`` shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, steps: int, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with disk_errors(self._folder):
            self._writer: Any = SummaryWriter(str(self._folder), purge_step=done + 1 if done else None)

    def step(self, record: Mapping[str, float], episodes: int) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def end(self) -> None:
        self._writer.close()
        for file in self._folder.glob("events.out.tfevents.*"):
            # the library writes the machine's name between time and process into the file's name; a run must not tell it
            file.rename(file.with_name(re.sub(r"^(events\.out\.tfevents\.\d+)\..*(\.\d+\.\d+)$", r"\1.kshot\2", file.name)))


class WandbLogger(Callback):
    """Logs to Weights & Biases; ``WANDB_MODE=offline`` keeps everything on this machine."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("wandb", "wandb", "for --wandb") from error
        self._wandb, self._project, self._folder, self._config = wandb, project, folder, dict(config)

    def start(self, steps: int, done: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # the machine's name and the program's path and environment are nobody's business
        settings = self._wandb.Settings(host="kshot", x_disable_meta=True, quiet=True)
        try:
            self._run: Any = self._wandb.init(
                project=self._project, dir=str(self._folder), config=self._config, settings=settings
            )
        except self._wandb.errors.Error as error:
            raise TrainingError(
                f"Weights & Biases could not start: {error}",
                mend="Log in with 'wandb login', or set WANDB_MODE=offline to keep everything on this machine.",
            ) from error

    def step(self, record: Mapping[str, float], episodes: int) -> None:
        self._run.log({name: value for name, value in record.items() if name != "step"}, step=int(record["step"]))

    def end(self) -> None:
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
