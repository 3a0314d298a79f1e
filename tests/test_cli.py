"""The command line: every mistake is one sentence and exit status 2 and leaves nothing behind; stopping and streaming."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import write_csv, write_jsonl
from runs import LABELS, SMALL_FLAGS, in_process, rows, trained, tree  # noqa: F401
from tiny import needs_tiny, one_thread  # noqa: F401

from kshot.deploy import load_adapted

HOME = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
KSHOT = [sys.executable, "-m", "kshot.cli"]


def process(*arguments: object, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*KSHOT, *map(str, arguments)],
        env={**ENVIRONMENT, "KSHOT_CACHE": os.environ["KSHOT_CACHE"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "data.csv", rows())


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "examples.csv", rows(LABELS[:3], 2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one's own, to be damaged."""
    return Path(shutil.copytree(trained(), tmp_path / "run"))


@pytest.fixture
def adapted(kshot, run, examples, tmp_path) -> Path:
    kshot.done("adapt", run, examples, "--out", tmp_path / "task")
    return tmp_path / "task"


# --- help -------------------------------------------------------------------------------------------------------------------

HELP = """
import json, sys
from click.testing import CliRunner
from kshot.cli import cli

def pages(command, path=()):
    yield path, CliRunner().invoke(cli, [*path, "--help"]).output
    for name, below in getattr(command, "commands", {}).items():
        yield from pages(below, (*path, name))

found = {" ".join(path): text for path, text in pages(cli)}
heavy = {"torch", "transformers", "sklearn", "pyarrow", "numpy", "datasets"} & set(sys.modules)
print(json.dumps({"pages": found, "heavy": sorted(heavy)}))
"""


def test_help_waits_for_no_heavy_library_and_shows_examples():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    pages = found["pages"]
    assert {"", "train", "evaluate", "adapt", "predict", "report", "demo", "data", "data check"} <= pages.keys()
    for name, text in pages.items():
        assert text.startswith("Usage: ")
        if name != "data":
            assert f"kshot {name}".strip() in text.split("\n\n", 1)[1]  # an example


def test_what_is_called_with_nothing_says_how_to_call_it(kshot):
    answer = kshot()
    assert "kshot train --tasks" in answer.out + answer.err
    assert kshot("--version").out.startswith("kshot") or "version" in kshot("--version").out


# --- options that are wrong -------------------------------------------------------------------------------------------------


def test_an_unknown_option_and_command(kshot, tmp_path):
    assert "--algorithm" in kshot.refused("train", "--algoritm", "maml", near=tmp_path)
    assert "trian" in kshot.refused("trian")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--set", "training.stepz=3"), "unknown key 'training.stepz'. Did you mean 'steps'?"),
        (("--set", "training.steps"), "has no '='"),
        (("--set", "algorithm.scael=3"), "Did you mean 'scale'?"),
        (("--algorithm", "prototnet"), "No algorithm 'prototnet'. Did you mean 'protonet'?"),
        (("--set", "algorithm.name=5"), "algorithm.name is 5"),
        (("--steps", "many"), "training.steps is 'many'. Expected a whole number."),
        (("--ways", "5-"), "episodes.ways is '5-'"),
        (("--shots", "0"), "shots is 0"),
        (("--lr", "-1"), "training.lr is -1"),
        (("--split", "clas"), "Did you mean 'class'?"),
        (("--split-ratios", "1,1"), "split.ratios"),
        (("--pooling", "men"), "Did you mean 'mean'?"),
        (("--device", "cudda"), "The device 'cudda' cannot be used here"),
        (("--config", "absent.yaml"), "No such configuration file: 'absent.yaml'."),
        (("--resume",), "has no checkpoint"),
        (("--resume", "--overwrite"), "exclude each other"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_a_wrong_option_of_train(kshot, data, tmp_path, flags, said):
    command = ("train", "--tasks", data, *SMALL_FLAGS, "--out", tmp_path / "out")
    assert said in kshot.refused(*command, *flags, near=tmp_path)


@pytest.mark.parametrize("name", ["tiney", "./no/such/folder", "/no/such/folder"])
def test_an_unknown_backbone(kshot, data, tmp_path, name):
    said = kshot.refused("train", "--tasks", data, *SMALL_FLAGS, "--backbone", name, "--out", tmp_path / "out", near=tmp_path)
    assert f"No backbone '{name}'" in said
    assert ("Did you mean 'tiny'?" in said) == (name == "tiney")


def test_a_backbone_of_the_hub_without_network(data, tmp_path):
    before = tree(tmp_path)
    arguments = ("train", "--tasks", data, *SMALL_FLAGS, "--backbone", "nobody/no-such-model", "--out", tmp_path / "out")
    child = process(*arguments, cwd=tmp_path)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 2, said
    assert "Traceback" not in said
    assert "Error: The backbone 'nobody/no-such-model' is not on this machine and could not be fetched" in said
    assert "--backbone minilm" in said
    assert tree(tmp_path) == before


# --- data that is wrong -----------------------------------------------------------------------------------------------------


def bad_data(folder: Path, kind: str) -> Path:
    path = folder / "data.csv"
    if kind == "absent":
        write_csv(folder / "date.csv", rows())
    elif kind == "empty":
        path.write_text("")
    elif kind == "latin1":
        path.write_bytes("text,label\ncafé,a\n".encode("latin1"))
    elif kind == "no label":
        write_csv(path, [*rows(), {"text": "nobody knows", "label": ""}])
    elif kind == "no column":
        write_csv(path, [{"text": row["text"], "meaning": row["label"]} for row in rows()])
    elif kind == "one class":
        write_csv(path, rows(LABELS[:1]))
    elif kind == "few labels":
        write_csv(path, rows(LABELS[:3]))
    elif kind == "few examples":
        write_csv(path, [*rows(), *rows(("tax",), 3), *rows(("visa",), 2)])
    elif kind == "mixed":
        write_csv(path, [*rows(), *rows(("7",))])
    elif kind == "long":
        write_csv(path, [*rows(), {"text": "x" * 1_000_000, "label": "refund"}])
    elif kind == "folder":
        path.mkdir()
    return path


BAD_DATA = {
    "absent": "No such file or folder",
    "empty": "is empty",
    "latin1": "line 2: byte 0xe9",
    "no label": "line 62: no label in column 'label'",
    "no column": "no label column found. The columns are: text, meaning. Name it: --label-column 'meaning'",
    "one class": "has one label only, 'refund' (from column 'label')",
    "few labels": "The task 'data' has 3 labels",
    "mixed": "a word 'refund' ({path}, line 2) and a number '7' ({path}, line 62)",
    "long": "line 62: a text of 1,000,000 characters",
    "folder": "holds no data file",
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_refused(kshot, tmp_path, kind):
    path = bad_data(tmp_path, kind)
    said = kshot.refused("train", "--tasks", path, *SMALL_FLAGS, "--out", tmp_path / "out", near=tmp_path)
    assert BAD_DATA[kind].format(path=path) in said
    assert str(path) in said or f"'{path.stem}'" in said
    hidden = [entry.name for entry in (Path(os.environ["KSHOT_CACHE"]) / "corpora").glob(".*")]
    assert hidden == []


@pytest.mark.parametrize("kind", [kind for kind in BAD_DATA if kind != "few labels"])
def test_data_check_refuses_the_same(kshot, tmp_path, kind):
    path = bad_data(tmp_path, kind)
    assert BAD_DATA[kind].format(path=path) in kshot.refused("data", "check", path, near=tmp_path)


def test_data_check_tells_that_the_data_cannot_be_split_and_is_content(kshot, tmp_path):
    answer = kshot.done("data", "check", bad_data(tmp_path, "few labels"))
    assert "The task 'data' has 3 labels" in answer.out


def test_fewer_examples_than_shots_tells_which_labels_and_how_many(kshot, tmp_path):
    path = bad_data(tmp_path, "few examples")
    flags = (*SMALL_FLAGS, "--shots", "4", "--queries", "1", "--split", tmp_path / "split.json")
    names = {"train": [*LABELS[:4], "tax", "visa"], "test": LABELS[4:]}
    (tmp_path / "split.json").write_text(json.dumps(names))
    said = kshot.refused("train", "--tasks", path, *flags, "--out", tmp_path / "out", near=tmp_path)
    assert "too few examples: 'tax' has 3, 'visa' has 2." in said
    assert "4 shots and 1 queries need 5" in said


def test_no_tasks(kshot, tmp_path):
    assert "No tasks were named" in kshot.refused("train", "--out", tmp_path / "out", near=tmp_path)
    assert "Did you mean 'en'?" in kshot.refused("data", "check", "bundled:eng")


# --- where to write ---------------------------------------------------------------------------------------------------------


def test_an_output_folder_that_exists(kshot, data, adapted, examples, run, tmp_path):
    train = ("train", "--tasks", data, *SMALL_FLAGS, "--out", run)
    assert "exists and is not empty" in kshot.refused(*train, near=tmp_path)
    assert "is finished: there is nothing to resume" in kshot.refused(*train, "--resume", near=tmp_path)
    assert "exists" in kshot.refused("adapt", run, examples, "--out", adapted, near=tmp_path)
    assert "exists" in kshot.refused("evaluate", run, "--tasks", data, "--out", adapted, near=tmp_path)
    assert "exists" in kshot.refused("demo", "--out", run, near=tmp_path)


def test_overwrite_leaves_alone_what_is_no_run_or_task(kshot, data, examples, run, tmp_path):
    precious = tmp_path / "precious"
    (precious / "run").mkdir(parents=True)
    (precious / "thesis.txt").write_text("years of work")
    train = ("train", "--tasks", data, *SMALL_FLAGS, "--overwrite", "--out")
    assert "is not a run of kshot" in kshot.refused(*train, precious, near=tmp_path)
    adapt = ("adapt", run, examples, "--overwrite", "--out")
    assert "is not an adapted task" in kshot.refused(*adapt, precious, near=tmp_path)
    assert "is not an adapted task" in kshot.refused(*adapt, run, near=tmp_path)
    assert "is not of a demonstration" in kshot.refused("demo", "--overwrite", "--out", precious, near=tmp_path)


def test_overwrite_leaves_alone_where_one_is(kshot, data, run, monkeypatch):
    monkeypatch.chdir(run)
    train = ("train", "--tasks", data, *SMALL_FLAGS, "--overwrite", "--out")
    for out in (".", run, run / "backbone" / ".."):
        assert "is where you are" in kshot.refused(*train, out, near=run.parent)


@pytest.mark.parametrize("place", ["data.csv", "data.csv/out", "data.csv/a/out", "/proc/out", "/proc/a/out", "x" * 300])
def test_a_place_that_cannot_be_written(kshot, data, examples, run, tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        ("train", "--tasks", data, *SMALL_FLAGS, "--overwrite"),
        ("adapt", run, examples, "--overwrite"),
        ("evaluate", run, "--tasks", data, "--overwrite"),
        ("demo", "--overwrite", "--backbone", "tiny"),
    ):
        said = kshot.refused(*command, "--out", place, near=tmp_path)
        assert place in said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(kshot, data, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    said = kshot.refused("train", "--tasks", data, *SMALL_FLAGS, "--out", tmp_path / "closed" / "out", near=tmp_path)
    assert "permission is denied" in said


@needs_tiny
@pytest.mark.parametrize("module", ["kshot.training.checkpoint", "kshot.training.run", "kshot.deploy.adapted"])
def test_a_full_disk(kshot, data, examples, run, tmp_path, monkeypatch, module):
    def full(*given, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"{module}.save_file", full)
    if module == "kshot.deploy.adapted":
        said = kshot.refused("adapt", run, examples, "--out", tmp_path / "out", near=tmp_path)
    else:
        near = tmp_path if module == "kshot.training.checkpoint" else None  # else a checkpoint to go on from is left
        said = kshot.refused("train", "--tasks", data, *SMALL_FLAGS, "--out", tmp_path / "out", near=near)
    assert "there is no space left on the disk" in said
    monkeypatch.undo()


@needs_tiny
def test_a_disk_that_is_really_full(kshot, data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        said = kshot.refused("train", "--tasks", data, *SMALL_FLAGS, "--out", disk / "out", near=disk)
        assert f"Cannot write to '{disk / 'out'}" in said
        assert "no space left" in said
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- runs and tasks that are wrong ------------------------------------------------------------------------------------------


@needs_tiny
def test_a_run_that_is_none(kshot, data, examples, run, tmp_path):
    for command in (("evaluate", tmp_path / "no", "--tasks", data), ("adapt", tmp_path / "no", examples)):
        assert "No run" in kshot.refused(*command, near=tmp_path)
    card = run / "kshot.json"
    value = json.loads(card.read_text())

    card.write_text(json.dumps({**value, "schema": 99}))
    said = kshot.refused("evaluate", run, "--tasks", data, near=tmp_path)
    assert "schema 99" in said
    assert "pip install -U kshot" in said

    card.write_text("{")
    assert "is damaged" in kshot.refused("adapt", run, examples, near=tmp_path)

    card.unlink()
    said = kshot.refused("evaluate", run, "--tasks", data, near=tmp_path)
    assert "is not finished" in said
    assert "--resume" in said

    assert "is not a run" in kshot.refused("evaluate", data.parent, "--tasks", data, near=tmp_path)


@needs_tiny
def test_resume_with_other_options(kshot, tmp_path):
    command = ("train", "--tasks", "bundled:en/law", *SMALL_FLAGS, "--out", tmp_path / "out")
    kshot.done(*command)
    (tmp_path / "out" / "kshot.json").unlink()  # as a training that was stopped after its last step
    for flags, key in (
        (("--lr", "1"), "training.lr was 5e-05 and is 1.0"),
        (("--algorithm", "reptile"), "algorithm.name was protonet and is reptile"),
        (("--shots", "3"), "episodes.shots was 2 and is 3"),
        (("--tasks", "bundled:en/finance"), "tasks.train"),
    ):
        assert key in kshot.refused(*command, "--resume", *flags, near=tmp_path)
    kshot.done(*command, "--resume")
    assert (tmp_path / "out" / "kshot.json").is_file()


@needs_tiny
def test_a_loss_that_is_no_number_leaves_nothing_or_the_run_that_was_there(kshot, data, tmp_path, run):
    command = ("train", "--tasks", data, *SMALL_FLAGS, "--steps", "6", "--lr", "1e30")
    said = kshot.refused(*command, "--out", tmp_path / "out", near=tmp_path)
    assert "became nan at step " in said
    assert "training.lr" in said
    kshot.refused(*command, "--out", run, "--overwrite", near=tmp_path)


@needs_tiny
def test_a_loss_that_is_no_number_leaves_a_checkpoint_that_can_be_read(kshot, data, tmp_path, monkeypatch):
    from kshot.training.checkpoint import LAST, load_checkpoint

    out = tmp_path / "out"
    command = ("train", "--tasks", data, *SMALL_FLAGS, "--steps", "6", "--set", "training.validate_every=1", "--lr", "1e30")
    assert "became nan at step " in kshot.refused(*command, "--out", out)
    state = load_checkpoint(out / LAST)[2]
    assert state.step >= 1
    assert "is not finished" in kshot.refused("evaluate", out, "--tasks", data)
    assert "became nan at step " in kshot.refused(*command, "--out", out, "--resume")
    kshot.done("train", "--tasks", data, *SMALL_FLAGS, "--out", out, "--overwrite")
    assert tree(tmp_path).keys() & {".out.old", "out/kshot.json"} == {"out/kshot.json"}


@needs_tiny
def test_a_task_whose_run_is_gone_or_another(kshot, adapted, run, tmp_path):
    moved = run.rename(tmp_path / "moved")
    said = kshot.refused("predict", adapted, stdin="where is it\n", near=tmp_path)
    assert f"is not at '{run}'" in said
    assert "--run FOLDER" in said
    assert kshot.done("predict", adapted, "--run", moved, stdin="where is it\n").out.count("\n") == 1

    shutil.copytree(trained("reptile"), run)
    said = kshot.refused("predict", adapted, stdin="where is it\n", near=tmp_path)
    assert "is not the one that" in said


@needs_tiny
def test_a_task_that_is_none(kshot, adapted, run, tmp_path):
    assert "is not an adapted task" in kshot.refused("predict", run, stdin="x\n")
    (adapted / "adapted.safetensors").write_bytes(b"x" * 20)
    assert "is damaged" in kshot.refused("predict", adapted, stdin="x\n")
    (adapted / "adapted.safetensors").unlink()
    assert "is damaged" in kshot.refused("predict", adapted, stdin="x\n")
    card = json.loads((adapted / "task.json").read_text())
    (adapted / "task.json").write_text(json.dumps({**card, "schema": 99}))
    assert "pip install -U kshot" in kshot.refused("predict", adapted, stdin="x\n")
    (adapted / "task.json").write_text(json.dumps({**card, "labels": ["other"]}))
    assert "is damaged" in kshot.refused("predict", adapted, stdin="x\n")


@needs_tiny
def test_adapting_to_what_is_not_one_task(kshot, run, examples, tmp_path):
    folder = tmp_path / "many"
    for name in ("a", "b"):
        write_jsonl(folder / f"{name}.jsonl", rows(LABELS[:2], 2))
    assert "holds 2 tasks" in kshot.refused("adapt", run, folder, "--out", tmp_path / "t", near=tmp_path)
    write_csv(examples, rows(LABELS[:1]))
    assert "one label only" in kshot.refused("adapt", run, examples, "--out", tmp_path / "t", near=tmp_path)


@needs_tiny
def test_an_unknown_baseline_and_part(kshot, run, tmp_path):
    command = ("evaluate", run, "--tasks", "bundled:en/law", "--ways", "2", "--shots", "1", "--episodes", "2")
    assert "Did you mean 'tfidf'?" in kshot.refused(*command, "--baselines", "tf-idf", near=tmp_path)
    assert "Did you mean 'test'?" in kshot.refused(*command, "--part", "tets", near=tmp_path)
    assert "largest of 1 task(s) has 2 labels" in kshot.refused(*command, "--ways", "9", near=tmp_path)
    assert "The device 'cudda'" in kshot.refused(*command, "--device", "cudda", near=tmp_path)


def test_a_report_that_is_none(kshot, tmp_path):
    assert "There is no report" in kshot.refused("report", tmp_path / "no", near=tmp_path)
    (tmp_path / "report.json").write_text("{}")
    assert "is not a report" in kshot.refused("report", tmp_path, near=tmp_path)


# --- predicting -------------------------------------------------------------------------------------------------------------


@needs_tiny
def test_texts_that_cannot_be_labelled(kshot, adapted, tmp_path):
    said = kshot.refused("predict", adapted, tmp_path / "no.txt")
    assert f"No such file: '{tmp_path / 'no.txt'}'" in said
    assert "The device 'cudda'" in kshot.refused("predict", adapted, "--device", "cudda")
    for given, said in {
        b'fine\n\n{"text": "x"\n': "standard input, line 3: begins like JSON and is not valid JSON",
        b'{"body2": 1}\n': "standard input, line 1: no text column found",
        b'{"text": null}\n': "standard input, line 1: the field 'text' is None. A text is expected.",
        b'{"text": 5}\n': "the field 'text' is 5",
        b'{"text": "\\ud800"}\n': "line 1: not UTF-8",
        b"fine\ncaf\xe9\n": "standard input, line 2: not UTF-8",
    }.items():
        assert said in kshot.refused("predict", adapted, stdin=given)


@needs_tiny
def test_predict_takes_lines_and_json_and_tells_why(kshot, adapted, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_bytes('﻿where is my refund\r\n\r\n{"message": "送货 {}", "id": 5}\nlast line'.encode())
    lines = [json.loads(line) for line in kshot.done("predict", adapted, texts, "--nearest", "2").out.splitlines()]
    assert [line["text"] for line in lines] == ["where is my refund", "送货 {}", "last line"]
    for line in lines:
        assert line["label"] in LABELS[:3]
        assert line["probability"] == max(line["probabilities"].values())
        assert len(line["nearest"]) == 2
    chosen = kshot.done("predict", adapted, "--text-column", "id", stdin='{"text": "a", "id": "b"}').out
    assert json.loads(chosen)["text"] == "b"
    assert kshot.done("predict", adapted, stdin="").out == ""


@needs_tiny
def test_predict_answers_each_line_as_it_comes_and_ends_quietly_when_nobody_listens(adapted, tmp_path):
    child = process("predict", adapted, stdin=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    for text in ("where is my refund", "再来一次"):
        child.stdin.write(text + "\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["text"] == text  # before the input has ended
    child.stdout.close()
    try:
        child.stdin.write("and again\n" * 500)
        child.stdin.close()
    except BrokenPipeError:
        pass
    assert child.wait(120) != 0
    said = child.stderr.read()
    child.stderr.close()
    assert "Traceback" not in said
    assert "Exception" not in said


# --- stopping ---------------------------------------------------------------------------------------------------------------


@needs_tiny
def test_ctrl_c_and_resume_gives_the_same_weights_as_no_interruption(kshot, tmp_path):
    """The command is stopped from outside, as a terminal does it; its words say how to go on."""
    train = ("train", "--tasks", "bundled:en/law", *SMALL_FLAGS, "--steps", "16", "--lr", "1e-3", "--out")
    child = process(*train, tmp_path / "stopped")
    assert child.stderr is not None
    said = []
    while (line := child.stderr.readline()) and not line.startswith("step "):
        said.append(line)
    assert line.startswith("step "), "".join(said)
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=120)
    assert child.returncode == 130, rest
    assert "Traceback" not in rest
    last = rest.strip().splitlines()[-1]
    assert last.startswith("Stopped after step ")
    assert last.endswith("repeat the command with --resume to go on.")
    assert "Aborted" not in rest

    assert "--resume" in kshot.refused("evaluate", tmp_path / "stopped", "--tasks", "bundled:en/law")
    kshot.done(*train, tmp_path / "stopped", "--resume")
    kshot.done(*train, tmp_path / "whole")
    for name in ("backbone/model.safetensors", "head.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_elsewhere_is_a_word_and_130(kshot, tmp_path, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("kshot.show.print_check", stop)
    answer = kshot("data", "check", "bundled:en")
    assert (answer.status, answer.err.strip()) == (130, "Stopped.")


# --- what succeeds ----------------------------------------------------------------------------------------------------------


@needs_tiny
def test_an_evaluation_beside_other_files_leaves_them(kshot, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = ("evaluate", run, "--tasks", "bundled:en/law", "--ways", "2", "--shots", "1", "--episodes", "2")
    kshot.done(*command, "--baselines", "none", "--out", out, "--overwrite")
    assert (out / "notes.txt").read_text() == "mine"
    assert {"report.json", "report.html"} <= {entry.name for entry in out.iterdir()}


@needs_tiny
def test_an_adapted_task_is_replaced_by_another(kshot, run, adapted, examples):
    write_csv(examples, rows(LABELS[3:5], 2))
    kshot.done("adapt", run, examples, "--out", adapted, "--overwrite")
    assert load_adapted(adapted).labels == LABELS[3:5]
    assert sorted(entry.name for entry in adapted.parent.iterdir() if entry.name.startswith(".")) == []


@pytest.mark.slow
@needs_tiny
def test_the_demonstration(kshot, tmp_path):
    out = tmp_path / "demo"
    demo = ("demo", "--backbone", "tiny", "--steps", "2", "--episodes", "2", "--out", out)
    answer = kshot.done(*demo)
    assert "Done in" in answer.err
    assert {entry.name for entry in out.iterdir()} == {"run", "report", "task", "demo.json"}
    assert "exists" in kshot.refused(*demo)
    kshot.done(*demo, "--overwrite")


def test_the_words_of_the_group_name_every_command(kshot):
    said = textwrap.dedent(kshot.done("--help").out)
    assert all(f"kshot {name}" in said for name in ("demo", "data check", "train", "evaluate", "adapt", "predict"))
