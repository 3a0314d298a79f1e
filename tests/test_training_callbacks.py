"""What is told while a training runs: the display, TensorBoard, Weights & Biases."""

from __future__ import annotations

import io
import re
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import refusal
from rich.console import Console
from tiny import StopAt, law_episodes, needs_tiny, one_thread, tiny_learner  # noqa: F401

from kshot.errors import KshotError, MissingExtraError, TrainingError
from kshot.meta import ProtoNet
from kshot.training import TrainingConfig, TrainingResult, meta_train
from kshot.training.callbacks import Callback, ProgressDisplay, TensorBoardLogger, WandbLogger

HOST = "private-host.example.org"
needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None, reason="Weights & Biases is not installed: pip install 'kshot[wandb]'"
)


def train(callbacks: list[Callback], folder: Path, resume: bool = False, **config) -> TrainingResult:
    episodes, validation = law_episodes()
    config = {"steps": 4, "validate_every": 2, "lr": 1e-3, **config}
    return meta_train(tiny_learner(), ProtoNet(), episodes, validation, TrainingConfig(**config), folder, callbacks, resume)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this machine a name that is easy to find again."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr("platform.node", lambda: HOST)


# --- the display ------------------------------------------------------------------------------------------------------------


def shown(terminal: bool, records: list[dict[str, float]], steps: int, monkeypatch: pytest.MonkeyPatch, done: int = 0) -> str:
    """What the display prints of records that come a second apart, each over four episodes."""
    seconds = iter(range(1000))
    monkeypatch.setattr("kshot.training.callbacks.time.perf_counter", lambda: float(next(seconds)))
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, force_terminal=terminal, width=60))
    display.start(steps, done)
    for record in records:
        display.step(record, 4)
    display.end()
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
    records: list[dict[str, float]] = [{"step": step, "loss": 1 / step} for step in range(1, 26)]
    records[11] |= {"validation": 0.8125, "validation_ci95": 0.034}
    records[24] |= {"validation": 0.9, "validation_ci95": float("nan")}

    said = shown(False, records, 100, monkeypatch).splitlines()

    assert said == [
        "step 10/100  loss 0.1000  validation -  4.00 episodes/s  90 s left",
        "step 12/100  loss 0.0833  validation 81.2 ± 3.4%  4.00 episodes/s  88 s left",
        "step 20/100  loss 0.0500  validation 81.2 ± 3.4%  4.00 episodes/s  80 s left",
        "step 25/100  loss 0.0400  validation 90.0%  4.00 episodes/s  75 s left",
    ]


def test_after_a_resume_the_rate_is_that_of_the_new_steps(monkeypatch):
    record = {"step": 51, "loss": 0.5, "validation": 0.5, "validation_ci95": 0.1}

    said = shown(False, [record], 100, monkeypatch, done=50)

    assert said == "step 51/100  loss 0.5000  validation 50.0 ± 10.0%  4.00 episodes/s  49 s left\n"


def test_a_live_line_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, force_terminal=True, width=140, color_system=None))
    display.start(4, 0)
    display.step({"step": 1, "loss": 0.25, "validation": 0.5, "validation_ci95": 0.125}, 2)
    display.end()

    assert re.search(r"1/4 steps.*loss 0\.250  validation 50\.0 ± 12\.5%.*episodes/s.*left", stream.getvalue())


@needs_tiny
def test_the_display_of_a_training(tmp_path):
    stream = io.StringIO()

    train([ProgressDisplay(Console(file=stream))], tmp_path)

    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/4", "step 2/4", "step 3/4", "step 4/4"]
    pattern = r"step \d/4  loss \d+\.\d{4}  validation (-|\d+\.\d ± \d+\.\d%)  \d+\.\d\d episodes/s  \d+ s left"
    assert all(re.fullmatch(pattern, line) for line in lines)


# --- TensorBoard ------------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def expected_scalars(result: TrainingResult) -> dict[str, list[tuple[int, float]]]:
    names = dict.fromkeys(name for record in result.history for name in record if name != "step")
    return {
        name: [(int(record["step"]), pytest.approx(record[name])) for record in result.history if name in record]
        for name in names
    }


@needs_tiny
def test_tensorboard_shows_the_history(tmp_path, host):
    result = train([TensorBoardLogger(tmp_path / "tensorboard")], tmp_path)

    found = scalars(tmp_path / "tensorboard")
    assert {"loss", "accuracy", "lr", "gradient_norm", "validation", "validation_ci95"} == found.keys()
    assert found == expected_scalars(result)


@needs_tiny
def test_tensorboard_shows_a_resumed_training_as_one(tmp_path, host):
    """Also where the three parts come within one second, in one process, and steps were told that were done again."""

    class FailAt(Callback):
        def step(self, record, episodes):
            if record["step"] == 3:
                raise RuntimeError

    board = TensorBoardLogger(tmp_path / "tensorboard")
    train([board, StopAt(1)], tmp_path)
    with pytest.raises(RuntimeError):
        train([board, FailAt()], tmp_path, resume=True)
    result = train([board], tmp_path, resume=True)

    files = [file.name for file in (tmp_path / "tensorboard").iterdir()]
    assert len(files) == 3
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d+\.kshot\.\d+\.\d+", name) for name in files)
    found = scalars(tmp_path / "tensorboard")
    assert found["loss"] == expected_scalars(result)["loss"]


@needs_tiny
def test_tensorboards_files_do_not_tell_the_machine(tmp_path, host):
    train([TensorBoardLogger(tmp_path / "tensorboard")], tmp_path)

    for file in tmp_path.rglob("*"):
        assert HOST not in file.name
        assert file.is_dir() or HOST.encode() not in file.read_bytes()


def test_tensorboards_folder_may_not_be_writable(tmp_path):
    (tmp_path / "file").write_text("in the way")

    sentence = refusal(lambda: TensorBoardLogger(tmp_path / "file" / "tensorboard").start(3, 0), KshotError)

    assert sentence.startswith(f"Cannot write to '{tmp_path / 'file' / 'tensorboard'}': a part of that path is a file")


# --- Weights & Biases -------------------------------------------------------------------------------------------------------


@needs_wandb
@needs_tiny
def test_weights_and_biases_offline(tmp_path, host, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger("my-project", tmp_path / "wandb", {"training": {"lr": 0.125}})

    train([logger], tmp_path)

    (log,) = (tmp_path / "wandb").rglob("run-*.wandb")
    content = log.read_bytes()
    assert all(word in content for word in (b"my-project", b"0.125", b"validation_ci95", b"gradient_norm"))
    assert not any(word in content for word in (HOST.encode(), sys.executable.encode(), str(Path.cwd()).encode()))


@needs_wandb
def test_weights_and_biases_without_a_login(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)

    assert refusal(lambda: WandbLogger("p", tmp_path, {}).start(1, 0), TrainingError) == (
        "Weights & Biases could not start: No API key configured. Use `wandb login` to log in. "
        "Log in with 'wandb login', or set WANDB_MODE=offline to keep everything on this machine."
    )


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)

    assert refusal(lambda: WandbLogger("p", tmp_path, {}), MissingExtraError) == (
        "The package 'wandb', needed for --wandb, is not installed. Install it with: pip install 'kshot[wandb]'"
    )
