"""Kill and resume equals the uninterrupted training, bit for bit; and what a checkpoint refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from safetensors.torch import load_file, save_file
from tiny import StopAt, law_episodes, needs_tiny, one_thread, same_bits, tiny_learner  # noqa: F401

from kshot.errors import RunError
from kshot.meta import ALGORITHMS, new_algorithm
from kshot.training import TrainingConfig, TrainingResult, meta_train
from kshot.training.callbacks import Callback
from kshot.training.checkpoint import BEST, LAST, differences, load_checkpoint

pytestmark = needs_tiny
QUICK: dict[str, Any] = {"inner_steps": 2}
RECORD = {"algorithm": {"name": "x", "inner_lr": 0.1}, "episodes": {"ways": (2, 5)}}


def train(
    folder: Path, name: str = "protonet", callback: Callback | None = None, resume: bool = False, record=None, **config: Any
) -> TrainingResult:
    episodes, validation = law_episodes()
    config = {"steps": 4, "tasks_per_step": 2, "validate_every": 2, "lr": 2e-3, **config}
    return meta_train(
        tiny_learner(),
        new_algorithm(name, QUICK if "inner_steps" in ALGORITHMS[name].options() else {}),
        episodes,
        validation,
        TrainingConfig(**config),
        folder,
        [callback] if callback else [],
        resume,
        RECORD if record is None else record,
    )


def assert_equal(a: TrainingResult, b: TrainingResult) -> None:
    assert a.history == b.history
    assert (a.best, a.best_step, a.interrupted) == (b.best, b.best_step, b.interrupted)
    assert same_bits(a.learner.params, b.learner.params)


def assert_same_files(a: Path, b: Path) -> None:
    for name in (LAST, BEST):
        assert same_bits(load_file(a / name), load_file(b / name))
    assert load_checkpoint(a / LAST)[2:] == load_checkpoint(b / LAST)[2:]


class Killed(BaseException):
    """What no code catches: stands for a process that is gone."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, record, episodes):
        if record["step"] == self.at:
            raise Killed


@pytest.mark.parametrize("dropout", ["off", "on"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_stopped_and_resumed_equals_uninterrupted(name, dropout, tmp_path):
    whole = train(tmp_path / "whole", name, dropout=dropout)

    stopped = train(tmp_path / "parts", name, StopAt(3), dropout=dropout)
    assert stopped.interrupted
    assert stopped.history == whole.history[:3]
    resumed = train(tmp_path / "parts", name, resume=True, dropout=dropout)

    assert_equal(resumed, whole)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("step", [2, 3])
def test_killed_without_a_word_and_resumed_equals_uninterrupted(step, tmp_path):
    """The last validation's checkpoint is there; what came after is done again, and comes out the same."""
    whole = train(tmp_path / "whole", dropout="on")
    with pytest.raises(Killed):
        train(tmp_path / "parts", callback=KillAt(step), dropout="on")
    assert load_checkpoint(tmp_path / "parts" / LAST)[2].step == 2

    assert_equal(train(tmp_path / "parts", resume=True, dropout="on"), whole)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training_resume import train
from kshot.training.callbacks import Callback
import torch
torch.set_num_threads(1)

class Tell(Callback):
    def step(self, record, episodes):
        if record["step"] == 3:
            if sys.argv[3] == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            handle, came = signal.getsignal(signal.SIGINT), []
            signal.signal(signal.SIGINT, lambda *given: (handle(*given), came.append(True)))
            print("three", flush=True)
            while not came:  # the signal is sent now, from outside
                time.sleep(0.01)

result = train(Path(sys.argv[2]), "maml", Tell(), dropout="on")
print(result.interrupted, len(result.history))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_process_that_got_a_signal_is_resumed_by_another(number, tmp_path):
    tests = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tests, str(tmp_path / "parts"), number.name],
        stdout=subprocess.PIPE,
        text=True,
    )
    if number == signal.SIGINT:
        assert process.stdout.readline() == "three\n"
        process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert (said, process.returncode) == (("True 3\n", 0) if number == signal.SIGINT else ("", -signal.SIGKILL))

    whole = train(tmp_path / "whole", "maml", dropout="on")
    resumed = train(tmp_path / "parts", "maml", resume=True, dropout="on")

    assert_equal(resumed, whole)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


def test_a_training_without_validation_leaves_checkpoints_too(tmp_path):
    episodes, _ = law_episodes()

    def run(folder: Path, resume: bool = False, callbacks: tuple[Callback, ...] = ()) -> TrainingResult:
        config = TrainingConfig(steps=4, validate_every=2, lr=1e-3)
        return meta_train(tiny_learner(), new_algorithm("protonet"), episodes, [], config, folder, callbacks, resume)

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", callbacks=(KillAt(3),))
    resumed = run(tmp_path / "parts", resume=True)

    assert resumed.history == whole.history
    assert same_bits(resumed.learner.params, whole.learner.params)


def test_stopped_twice(tmp_path):
    whole = train(tmp_path / "whole")
    for step in (1, 3):
        assert len(train(tmp_path / "parts", callback=StopAt(step), resume=step > 1).history) == step

    assert_equal(train(tmp_path / "parts", resume=True), whole)


def test_resuming_what_is_done_does_nothing_and_returns_the_same(tmp_path, monkeypatch):
    whole = train(tmp_path)
    monkeypatch.setattr("kshot.training.loop._step", lambda *_: pytest.fail("a step was taken"))

    assert_equal(train(tmp_path, resume=True), whole)


def test_a_training_that_stopped_early_stays_stopped(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("kshot.training.loop.episode_scores", lambda *_: [0.5, 0.5])
        stopped = train(tmp_path, steps=9, validate_every=1, patience=2)
    assert len(stopped.history) == 3

    assert_equal(train(tmp_path, steps=9, validate_every=1, patience=2, resume=True), stopped)


# --- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after its third step."""
    folder = tmp_path_factory.mktemp("stopped")
    train(folder, callback=StopAt(3))
    return folder


@pytest.mark.parametrize(
    ("record", "config", "difference"),
    [
        (None, {"lr": 3e-3}, "training.lr was 0.002 and is 0.003"),
        (None, {"steps": 6, "seed": 1}, "training.seed was 0 and is 1, training.steps was 4 and is 6"),
        (None, {"dropout": "on"}, "training.dropout was off and is on"),
        ({**RECORD, "algorithm": {"name": "x", "inner_lr": 0.2}}, {}, "algorithm.inner_lr was 0.1 and is 0.2"),
        ({**RECORD, "algorithm": {"name": "y", "inner_lr": 0.1}}, {}, "algorithm.name was x and is y"),
        ({"algorithm": RECORD["algorithm"]}, {}, "episodes was {'ways': [2, 5]} and is None"),
    ],
)
def test_resuming_with_another_configuration_names_the_difference(stopped, record, config, difference):
    assert refusal(lambda: train(stopped, resume=True, record=record, **config), RunError) == (
        f"Cannot resume from '{stopped / LAST}': {difference}. "
        "A resumed training must have the options of the one that was stopped. Repeat them, or start anew with --overwrite."
    )


def test_differences_of_configurations():
    assert not list(differences({"a": (1, 2), "b": {"c": None}}, {"a": [1, 2], "b": {"c": None}}))
    assert sorted(differences({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 3, "d": 2}, "e": 4})) == [
        "a was 1 and is None",
        "b.c was 1 and is 3",
        "e was None and is 4",
    ]


def test_no_checkpoint(tmp_path):
    assert refusal(lambda: train(tmp_path, resume=True), RunError) == (
        f"No checkpoint '{tmp_path / LAST}'. Train without --resume, or name the folder of a stopped training."
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign"])
def test_a_damaged_checkpoint(stopped, tmp_path, damage):
    path = tmp_path / LAST
    path.parent.mkdir()
    whole = (stopped / LAST).read_bytes()
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a checkpoint" * 9}[damage])

    sentence = refusal(lambda: train(tmp_path, resume=True), RunError)

    assert sentence.startswith(f"The checkpoint '{path}' is damaged: ")
    assert sentence.endswith(". Train anew with --overwrite.")


def test_a_checkpoint_of_a_newer_schema(stopped, tmp_path):
    path = tmp_path / LAST
    path.parent.mkdir()
    save_file(load_file(stopped / LAST), path, metadata={"kshot": json.dumps({"schema": 2})})

    assert refusal(lambda: train(tmp_path, resume=True), RunError) == (
        f"The checkpoint '{path}' is of schema 2. Upgrade kshot to read it."
    )


def test_the_best_parameters_must_be_there(tmp_path):
    train(tmp_path)
    (tmp_path / BEST).unlink()

    assert refusal(lambda: train(tmp_path, resume=True), RunError).startswith(f"No checkpoint '{tmp_path / BEST}'.")


class RustError(Exception):
    """As safetensors raises: a type of its own, the system's words inside."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "there is no space left on the disk. Free some space or choose another folder.",
        ),
        (
            RustError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "there is no space left on the disk. Free some space or choose another folder.",
        ),
        (
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
            "the disk quota is used up. Free some space or choose another folder.",
        ),
    ],
    ids=["full", "full in safetensors", "quota"],
)
def test_a_full_disk_leaves_the_checkpoint_before(error, reason, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    folder = tmp_path / "parts"
    with pytest.raises(Killed):
        train(folder, callback=KillAt(3))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half of a checkpoint")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("kshot.training.checkpoint.save_file", full)
        sentence = refusal(lambda: train(folder, resume=True), RunError)

    assert sentence == f"Cannot write to '{folder / sentence.split(str(folder) + '/')[1].split(chr(39))[0]}': {reason}"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert_equal(train(folder, resume=True), whole)


def test_a_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")

    assert refusal(lambda: train(tmp_path / "file" / "run"), RunError).startswith(
        f"Cannot write to '{tmp_path / 'file' / 'run' / 'checkpoints'}"
    )
