"""Small runs on the tiny real model, trained once for all test files, and the command line within this process."""

from __future__ import annotations

import atexit
import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kshot import api
from kshot.cli import main
from kshot.tasks import TaskSuite
from kshot.training import Run, load_run

LABELS = ("refund", "delivery", "login", "invoice", "warranty", "returns", "voucher", "address", "careers", "privacy")
CHINESE = {
    "退款": ["我想退款", "钱什么时候退回来", "申请退回货款", "退款到账了吗"],
    "物流": ["包裹到哪里了", "快递还没有送到", "物流信息不更新", "什么时候发货"],
    "发票": ["请给我开发票", "发票抬头写错了", "电子发票在哪里下载", "需要增值税发票"],
}
SMALL = {"episodes__ways": 3, "episodes__shots": 2, "episodes__queries": 2}
SMALL |= {"training__tasks_per_step": 1, "training__calibration_episodes": 8}
SMALL_FLAGS = ("--backbone", "tiny", "--steps", "2", "--ways", "3", "--shots", "2", "--queries", "2")
SMALL_FLAGS += ("--no-tensorboard", "--set", "training.validation_episodes=3")
SMALL_FLAGS += ("--set", "training.calibration_episodes=8")


def small_suite() -> TaskSuite:
    return api.load_suite("bundled:en/law", "class")


@cache
def trained(algorithm: str = "protonet") -> Path:
    """The folder of a small run; not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="kshot-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options: dict[str, Any] = {**SMALL, "training__steps": 2, "training__validation_episodes": 3, "training__lr": 1e-3}
    if algorithm != "protonet":
        options |= {"algorithm__inner_steps": 2, "episodes__ways": 2}
    api.train(small_suite(), folder / "run", backbone__name="tiny", algorithm__name=algorithm, **options)
    return folder / "run"


@cache
def loaded(algorithm: str = "protonet") -> Run:
    return load_run(trained(algorithm))


def rows(labels=LABELS, each: int = 6) -> list[dict[str, Any]]:
    """Texts that tell their label by a word of it."""
    ways = ("where is my", "i have a question about the", "please help with", "no news of the", "it is about", "the wrong")
    ends = ("today", "again", "since monday")
    texts = [(f"{way} {{}} {end}").strip() for end in ends for way in ways][:each]
    return [{"text": text.format(label), "label": label} for label in labels for text in texts]


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    status: int
    out: str
    err: str


class Shell:
    """Runs commands within this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object, stdin: str | bytes = b"") -> Answer:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "argv", ["kshot", *map(str, arguments)])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        self._capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        said = self._capsys.readouterr()
        return Answer(status, said.out, said.err)

    def done(self, *arguments: object, stdin: str | bytes = b"") -> Answer:
        """Run a command that must succeed."""
        answer = self(*arguments, stdin=stdin)
        assert answer.status == 0, answer.err
        return answer

    def refused(self, *arguments: object, stdin: str | bytes = b"", near: Path | None = None) -> str:
        """Run a command that must be refused, with one sentence, leaving everything below ``near`` as it was."""
        before = tree(near)
        answer = self(*arguments, stdin=stdin)
        assert answer.status == 2, answer
        assert "Traceback" not in answer.err
        said = [line for line in answer.err.splitlines() if line.startswith("Error: ")]
        assert len(said) == 1, answer.err
        assert answer.err.rstrip().endswith(said[0])  # nothing after the sentence
        assert tree(near) == before
        return said[0].removeprefix("Error: ")


def tree(folder: Path | None) -> dict[str, bytes | None]:
    """Everything below a folder, with the contents of files."""
    if folder is None:
        return {}
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(name="kshot")
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)
