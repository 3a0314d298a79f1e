"""The main job as a user does it: the commands and the Python code of the README, on files that the test writes."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import write_csv
from runs import LABELS, in_process, rows  # noqa: F401
from safetensors.torch import load_file
from tiny import needs_tiny, one_thread  # noqa: F401

import kshot as package
from kshot.evaluation.report import load_report

pytestmark = needs_tiny
README = Path(__file__).parent.parent / "README.md"
BANK = ("card", "loan", "transfer", "balance", "savings", "mortgage", "fee", "branch", "pension", "insurance")
# what makes each command of the README small enough for a test
SMALLER = {
    "data": "--split class",
    "train": "--split class --backbone tiny --steps 2 --ways 3 --shots 2 --queries 2 --set training.validation_episodes=3",
    "evaluate": "--split class --ways 2 --shots 1,5 --queries 2 --episodes 3 --slow-episodes 1",
    "adapt": "",
    "predict": "--nearest 1",
}
SMALLER_PYTHON = {
    'kshot.load_suite("my_data/")': 'kshot.load_suite("my_data/", split="class")',
    'algorithm__name="protonet")': 'algorithm__name="protonet", backbone__name="tiny", training__steps=2, episodes__ways=3, '
    "episodes__shots=2, episodes__queries=2, training__validation_episodes=3)",
    "shots=(1, 5))": "shots=(1, 5), ways=2, queries=2, episodes=3, slow_episodes=1)",
}


def block(call: str) -> str:
    """The README's one block of code that holds a call."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = [text for text in blocks if call in text]
    return found


def csv_files(folder: Path) -> None:
    """Two tasks whose files name their columns differently."""
    shop = [{"id": i, "utterance": row["text"], "intent": row["label"]} for i, row in enumerate(rows(LABELS, 8))]
    bank = [{"category": row["label"], "message": f"{row['text']}; please"} for row in rows(BANK, 8)]
    write_csv(folder / "shop.csv", shop)
    write_csv(folder / "bank.tsv", bank, delimiter="\t")


def parquet_files(folder: Path) -> None:
    """One task as the hub stores it: a file per part, with class numbers and their names in the schema."""
    names = [*LABELS, *BANK]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    given = rows(names, 8)
    (folder / "data").mkdir(parents=True)
    for part, chosen in (("train", given[::2]), ("test", given[1::2])):
        columns = {"text": [row["text"] for row in chosen], "label": [names.index(row["label"]) for row in chosen]}
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(str(folder / "data" / f"{part}-00000-of-00001.parquet"))


class Page(HTMLParser):
    """Counts the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("still no package!\n退货\n", encoding="utf-8")
    write_csv(tmp_path / "examples.csv", rows(("harbour", "airport", "station"), 3))
    return tmp_path


def require_report(folder: Path, tasks: set[str]) -> None:
    report = load_report(folder)
    methods = [row["method"] for row in report["rows"]]
    assert methods[0] == "protonet (meta-trained)"
    assert len(set(methods)) == 7
    assert {row["shots"] for row in report["rows"]} == {1, 5}
    assert {row["task"] for row in report["tasks"]} <= tasks
    assert all(0 <= row["accuracy"] <= 1 for row in report["rows"])
    assert report["warnings"] == []
    tags = Page((folder / "report.html").read_text(encoding="utf-8")).tags
    assert {"html", "table", "svg"} <= set(tags)


@pytest.mark.parametrize("files", [csv_files, parquet_files])
def test_the_commands_of_the_readme(kshot, place, files):
    files(place / "my_data")
    commands = [shlex.split(line, comments=True)[1:] for line in block("kshot adapt").splitlines() if line.startswith("kshot ")]
    assert [command[0] for command in commands] == list(SMALLER)
    said = {command[0]: kshot.done(*command, *SMALLER[command[0]].split()) for command in commands}

    tasks = {"shop", "bank"} if files is csv_files else {"my_data"}
    for task in tasks:
        assert re.search(rf"{task}\W+(10|20)\W", said["data"].out)
    assert "Meta-trained in " in said["train"].out
    made = {entry.name for entry in (place / "runs" / "mine").iterdir()}
    card = json.loads((place / "runs" / "mine" / "kshot.json").read_text(encoding="utf-8"))
    kept = {"untouched.safetensors"} if card["untouched"] else set()  # where the head was chosen that may go back
    assert made == {"kshot.json", "backbone", "head.safetensors", "checkpoints", "tensorboard"} | kept
    card = (place / "runs" / "mine" / "kshot.json").read_text(encoding="utf-8")
    assert str(place) not in card
    assert not any(f'"{label}"' in card for label in (*LABELS, *BANK))
    require_report(place / "runs" / "mine-report", tasks)
    assert "Adapted to 3 labels from 9 examples" in said["adapt"].out
    assert load_file(place / "new_task" / "adapted.safetensors")
    lines = [json.loads(line) for line in said["predict"].out.splitlines()]
    assert [line["text"] for line in lines] == ["still no package!", "退货"]
    for line in lines:
        assert line["label"] in ("harbour", "airport", "station")
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-3)
        assert len(line["nearest"]) == 1
    again = kshot.done("report", "runs/mine-report")
    assert "protonet (meta-trained)" in again.out


@pytest.mark.parametrize("files", [csv_files, parquet_files])
def test_the_python_code_of_the_readme(place, files, capsys):
    files(place / "my_data")
    code = block("kshot.adapt(")
    for found, smaller in SMALLER_PYTHON.items():
        assert code.count(found) == 1, f"the README's code has no {found}"
        code = code.replace(found, smaller)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)

    assert (place / "runs" / "mine" / "kshot.json").is_file()
    assert len(names["suite"].train) == (2 if files is csv_files else 1)
    assert {row["shots"] for row in names["report"]["rows"]} == {1, 5}
    assert names["task"].labels == ("delivery", "refund")
    assert "Prediction(label=" in capsys.readouterr().out

    texts, labels, more_texts = ["where is my parcel", "i want my money back"], ["delivery", "refund"], ["still no package!"]
    (line,) = re.findall(r"`(kshot\.FewShotClassifier\(.*?)`", README.read_text(encoding="utf-8"))
    probabilities = eval(line, {"kshot": package, "texts": texts, "labels": labels, "more_texts": more_texts})
    assert probabilities.shape == (1, 2)


def test_everything_that_the_package_names_is_there():
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = package.nothing_like_it
