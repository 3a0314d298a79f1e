"""The report's page: what it claims, that it stands alone, and that no data can break it."""

import json
import math
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from kshot.errors import RunError
from kshot.evaluation import plots, report
from kshot.evaluation.findings import Findings, points, seconds
from kshot.evaluation.markup import tag
from kshot.evaluation.report import load_report, render, write_report

OURS, FROZEN, SLOW = "protonet (meta-trained)", "frozen prototype", "full fine-tuning"
ENGLISH = ["card arrival", "exchange rate", "costs $5 or $6", "_hidden", "age limit"]
HOSTILE = "<script>alert('标签')</script>"
CHINESE = ["医保报销", "处方续开", HOSTILE, '急诊" onload="x', "疫苗接种"]


def row(method, shots, accuracy, ci95=0.004, episodes=600, **more):
    figures = {"macro_precision": accuracy, "macro_recall": accuracy, "macro_f1": accuracy, "adapt_seconds_median": 0.004}
    place = {"method": method, "suite": "banking77", "ways": 5, "shots": shots}
    return {**place, "accuracy": accuracy, "ci95": ci95, "episodes": episodes, **figures, **more}


def pair(baseline, shots, difference, ci95=0.003, episodes=600):
    place = {"method": OURS, "baseline": baseline, "suite": "banking77", "ways": 5, "shots": shots}
    return {**place, "difference": difference, "ci95": ci95, "episodes": episodes}


def task(name, labels):
    size = len(labels)
    matrix = [[90 if i == j else (10 if j == (i + 1) % size else 0) for j in range(size)] for i in range(size)]
    label = {"method": OURS, "task": name, "shots": 5, "precision": 0.9, "recall": 0.9, "queries": 100}
    places = [(i, k) for i in range(size) for k in range(4)]
    return {
        "tasks": [
            {"method": method, "task": name, "shots": shots, "accuracy": 0.9, "ci95": 0.01, "episodes": 300}
            for method in (OURS, FROZEN)
            for shots in (1, 5)
        ],
        "labels": [{**label, "label": text, "f1": 0.9 - 0.1 * i} for i, text in enumerate(labels)],
        "confusion": [{"method": OURS, "task": name, "shots": 5, "labels": labels, "matrix": matrix}],
        "map": [
            {
                "task": name,
                "labels": labels,
                "points": [{"label": i, "before": [k, (i * k) % 3], "after": [i + 0.1 * k, i]} for i, k in places],
            }
        ],
    }


def example(names=ENGLISH, **changes):
    history = [{"step": step, "loss": 1 / step + 0.1 * (step % 3), "lr": 5e-6, "gradient_norm": 1.0} for step in range(1, 61)]
    for entry in history[19::20]:
        entry |= {"validation": 0.9 + entry["step"] / 1000, "validation_ci95": 0.01}
    parts = [task(name, names) for name in ("law", "medicine")]
    made = {
        "schema": 1,
        "created": "2026-11-22T00:23:19+00:00",
        "kshot": "0.1.0",
        "run": {"algorithm": "protonet", "options": {"distance": "cosine"}, "backbone": "minilm", "fingerprint": "5517"},
        "protocol": {"suite": "banking77", "split": "test", "tasks": 2, "labels": 10, "ways": 5, "shots": [1, 5]}
        | {"queries": 5, "episodes": 600, "seed": 0},
        "rows": [
            row(OURS, 1, 0.891, 0.008),
            row(FROZEN, 1, 0.848),
            row(OURS, 5, 0.965),
            row("logistic regression", 5, 0.949),
            row(FROZEN, 5, 0.951),
        ],
        "paired": [pair(FROZEN, 1, 0.043), pair("logistic regression", 5, 0.016), pair(FROZEN, 5, 0.014)],
        **{name: [entry for part in parts for entry in part[name]] for name in ("tasks", "labels", "confusion", "map")},
        "training": {"history": history, "best_step": 60},
        "warnings": ["3 texts stand in both splits."],
    }
    return made | changes


def lean(**changes):
    """The example without the plots that take long to draw."""
    return example(**{"confusion": [], "map": [], "training": None} | changes)


@cache
def page_of(language):
    return render(example(CHINESE if language == "chinese" else ENGLISH))


class Page(HTMLParser):
    """The tags, attributes and texts of a page, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.names, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names += [name for name, _ in attrs]
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href", "action", "data"}]

    def handle_data(self, data):
        self.texts.append(data)


def pictures(page):
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def local(element):
    return element.tag.rpartition("}")[2]


# what it claims


def test_headline_names_the_best_baseline_and_the_gain():
    sentence = f"{OURS} reaches 96.5 ± 0.4 % at 5 shots: +1.4 ± 0.3 points over the best baseline, {FROZEN}."
    assert Findings(example()).headline() == sentence
    assert f"<h1>{sentence}</h1>" in page_of("english").replace("\u00a0", " ")


def test_other_shots_follow_the_headline():
    assert Findings(example()).lead() == [
        f"It reaches 89.1 ± 0.8 % at 1 shot: +4.3 ± 0.3 points over the best baseline, {FROZEN}."
    ]


@pytest.mark.parametrize(
    ("difference", "ci95", "words"),
    [
        (
            0.002,
            0.006,
            f": no clear difference from the best baseline, {FROZEN} (+0.2 ± 0.6 points; the 95 % interval includes 0).",
        ),
        (-0.02, 0.005, f": worse than the best baseline, {FROZEN}, by 2.0 ± 0.5 points."),
        (0.014, None, f": +1.4 points against the best baseline, {FROZEN}, without an interval, so it may be chance."),
        (0.014, math.nan, f": +1.4 points against the best baseline, {FROZEN}, without an interval, so it may be chance."),
        (0.0, 0.0, "no clear difference"),
    ],
)
def test_headline_never_flatters(difference, ci95, words):
    changed = example(paired=[pair("logistic regression", 5, 0.2), pair(FROZEN, 5, difference, ci95)])
    assert words in Findings(changed).headline()
    assert "points over" not in Findings(changed).headline()


def test_headline_without_baselines_says_so():
    alone = lean(rows=[row(OURS, 5, 0.965)], paired=[])
    assert Findings(alone).headline() == (
        f"{OURS} reaches 96.5 ± 0.4 % at 5 shots. No baseline was measured beside it, so what meta-training gains is unknown."
    )
    assert "Differences from the baselines" not in render(alone)


def test_headline_of_unpaired_baselines_claims_no_difference():
    headline = Findings(example(paired=[])).headline()
    assert f"the best baseline, {FROZEN}, reaches 95.1 ± 0.4 %, not compared episode by episode." in headline


def test_headline_tells_of_a_baseline_on_fewer_episodes():
    rows = [*example()["rows"], row(SLOW, 5, 0.97, 0.02, 20)]
    found = Findings(example(rows=rows, paired=[*example()["paired"], pair(SLOW, 5, 0.01, 0.02, 20)]))
    assert f"{SLOW} (+1.0 ± 2.0 points on the 20 episodes that both saw; the 95 % interval includes 0)." in found.headline()
    assert f"Of the baselines that saw all 600 episodes, the best is {FROZEN}: +1.4 ± 0.3 points." in found.lead()


def test_headline_of_nothing():
    assert Findings(example(rows=[], paired=[])).headline() == "No accuracy was measured."
    assert Findings(example(rows=[row(OURS, 5, None)], paired=[])).headline() == "No accuracy was measured."


def test_figures_in_words():
    assert points(0.0034, 0.0031) == "+0.34 ± 0.31"  # at one place it would seem to touch zero
    assert points(-0.02, 0.005) == "−2.0 ± 0.5"
    assert [seconds(value) for value in (0.0002, 0.004, 0.9996, 75)] == ["< 1 ms", "4 ms", "1.0 s", "1.2 min"]


def test_differences_are_marked_by_their_intervals():
    changed = lean(paired=[pair("a", 5, 0.02), pair("b", 5, -0.02), pair("c", 5, 0.002), pair("d", 5, 0.02, None)])
    texts = Page(render(changed)).texts
    marks = {name: texts[texts.index(name) + 3] for name in "abcd"}
    assert marks == {"a": "▲ better", "b": "▼ worse", "c": "○ unclear", "d": "○ no interval"}


def test_settings_that_vary_are_named():
    rows = [row(OURS, 5, 0.9), row(OURS, 5, 0.8, ways=10), row(OURS, 5, 0.7, suite="clinc150")]
    lines = Findings(example(rows=rows, paired=[])).lead()
    assert "It reaches 80.0 ± 0.4 % at 5 shots, 10-way, banking77." in lines[0]
    assert "at 5 shots, 5-way, clinc150." in lines[1]


# that it stands alone


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_page_refers_to_nothing_outside(language):
    page = page_of(language)
    read = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "base"} & set(read.tags)
    assert all(link.startswith("#") for link in read.links)
    assert set(re.findall(r"https?://[^\"' ]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", page)


def test_attributes_are_escaped():
    assert tag("p", "a & b", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;">a &amp; b</p>'


def test_labels_are_escaped_and_shown():
    read = Page(page_of("chinese"))
    assert "script" not in read.tags
    assert not [name for name in read.names if name.startswith("on")]
    assert HOSTILE in read.texts  # whole, in the legend and in the table
    assert '急诊" onload="x' in read.texts


@pytest.mark.parametrize("part", ["warnings", "suite", "option", "method", "task"])
def test_every_other_text_is_escaped(part):
    made = lean() if part in {"warnings", "suite", "option"} else example()
    if part == "warnings":
        made["warnings"] = [HOSTILE]
    elif part == "suite":
        made["protocol"]["suite"] = HOSTILE
    elif part == "option":
        made["run"]["options"] = {HOSTILE: HOSTILE}
    elif part == "method":
        made = json.loads(json.dumps(made, ensure_ascii=False).replace(FROZEN, HOSTILE))
    else:
        made = json.loads(json.dumps(made, ensure_ascii=False).replace('"law"', json.dumps(HOSTILE, ensure_ascii=False)))
    page = render(made)
    assert "script" not in Page(page).tags
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_pictures_are_well_formed_and_do_not_clash(language):
    drawn = pictures(page_of(language))
    plotted = [picture for picture in drawn if picture.get("role") == "img"]
    assert len(plotted) == 1 + 1 + 2 * 2 + 2  # accuracy, training, two maps before and after, two matrices
    assert all(picture.get("aria-label") for picture in plotted)
    identities = [element.get("id") for picture in drawn for element in picture.iter() if element.get("id")]
    assert len(identities) == len(set(identities))
    for picture in drawn:
        text = ElementTree.tostring(picture, encoding="unicode")
        own = {element.get("id") for element in picture.iter()}
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= own
        assert not {"style", "metadata"} & {local(element) for element in picture.iter()}


def test_letters_stay_letters_in_any_script():
    matrix = next(picture for picture in pictures(page_of("chinese")) if "Confusion" in picture.get("aria-label", ""))
    texts = [element.text for element in matrix.iter() if local(element) == "text"]
    assert texts.count("医保报销") == 2  # as a row and as a column
    assert "90" in texts


def test_dollar_signs_start_no_formula():
    texts = [element.text for picture in pictures(page_of("english")) for element in picture.iter()]
    assert "costs $5 or $6" in texts


def test_page_is_deterministic_whatever_the_users_settings():
    page = page_of("english")
    with matplotlib.rc_context({"font.size": 21, "lines.linewidth": 9, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert render(example()) == page
        assert dict(matplotlib.rcParams) == before


# that no data can break it


@pytest.mark.parametrize(
    "changes",
    [
        {"training": None},
        {"training": {"history": [], "best_step": 0}},
        {"training": {"history": [{"step": 1, "loss": math.nan}], "best_step": None}},
        {"training": {"history": [{"step": 1, "loss": 0.5, "validation": 0.9, "validation_ci95": None}], "best_step": 1}},
        {"map": []},
        {"map": [{"task": "law", "labels": ["a"], "points": [{"label": 0, "before": [0, 0], "after": None}]}]},
        {"rows": [row(OURS, 5, 0.9, None, 1, adapt_seconds_median=None, macro_f1=None)], "paired": []},
        {"rows": [row(OURS, 5, 1.0, 0.0), row(FROZEN, 5, 1.0, 0.0)], "paired": [pair(FROZEN, 5, 0.0, 0.0)]},
        {"rows": [row(OURS, 5, 0.0, 0.0), row(FROZEN, 5, math.nan, None)], "paired": [pair(FROZEN, 5, math.nan)]},
        {"rows": [], "paired": [], "tasks": [], "labels": [], "confusion": [], "map": [], "warnings": []},
        {"confusion": [{"method": OURS, "task": "law", "shots": 5, "labels": [], "matrix": []}]},
        {"labels": [{**example()["labels"][0], "f1": math.nan, "precision": None}]},
    ],
)
def test_absent_figures_are_dashes(changes):
    page = render(lean(**changes))
    pictures(page)
    visible = " ".join(Page(page).texts)
    assert not re.search(r"\b(nan|None|inf)\b", visible)
    assert not re.search(r'[\s"]nan[\s"]', page)


def test_many_long_names_are_cut_in_plots_and_whole_in_tables():
    name = "a_baseline_without_any_place_to_break_" * 4
    page = render(lean(rows=[*example()["rows"], row(name, 5, 0.3)]))
    accuracy = pictures(page)[0]
    texts = [element.text for element in accuracy.iter() if local(element) == "text"]
    assert any(text.endswith("…") and name.startswith(text[:-1]) for text in texts)
    assert name in Page(page).texts
    assert "◂ lower" in texts  # far below the others


@pytest.mark.parametrize("size", [2, 30])
def test_matrix_of_few_and_many_labels(size):
    labels = [f"label {index}" for index in range(size)]
    counts = [[30 if i == j else 20 * (j == i + 1) for j in range(size)] for i in range(size)]
    drawn = ElementTree.fromstring(plots.confusion(labels, counts))
    texts = [element.text for element in drawn.iter() if local(element) == "text"]
    assert texts.count("30") == size and texts.count("20") == size - 1
    tips = [element.text for element in drawn.iter() if local(element) == "title"]
    assert {"label 0 → label 0: 30 (60 %)", "label 0 → label 1: 20 (40 %)"} <= set(tips)  # shares of the true label


def test_matrix_of_too_many_labels_keeps_those_with_mistakes():
    labels = [f"label {index}" for index in range(50)]
    counts = [[9 if i == j else 5 * (i == 49 and j == 0) for j in range(50)] for i in range(50)]
    changed = lean(confusion=[{"method": OURS, "task": "law", "shots": 5, "labels": labels, "matrix": counts}])
    page = render(changed)
    assert "Shown are the 30 of 50 labels with the most mistakes." in page
    assert "Most often mistaken: label 49 for label 0 (36\u00a0%)." in page
    assert "label 49 → label 0: 5" in page


def test_map_keeps_a_labels_colour():
    places = example()["map"][0]["points"]

    def colours(when):
        return re.findall(r"fill: (#[0-9a-f]{6})", plots.embedding_map(places, when))

    assert colours("before") == colours("after")
    assert set(colours("before")) == {plots.hue(label)[0] for label in range(5)}


def test_a_legends_sign_is_its_own_for_forty_labels():
    assert len({plots.hue(label) for label in range(40)}) == 40


def test_training_marks_the_best_step_and_its_band():
    history = example()["training"]["history"]
    texts = [element.text for element in ElementTree.fromstring(plots.training(history, 60)).iter()]
    assert "- - best step: 60" in texts and "Validation accuracy, %" in texts
    plain = [{"step": entry["step"], "loss": entry["loss"]} for entry in history]
    texts = [element.text for element in ElementTree.fromstring(plots.training(plain, None)).iter()]
    assert "Validation accuracy, %" not in texts
    assert not any("best step" in (text or "") for text in texts)


def test_long_tables_are_folded_weakest_first():
    page = render(lean(names=[f"label {index}" for index in range(9)]))
    folded = page[page.index("Label by label") :]
    assert re.search(r"<details><summary>18 labels at 5 shots, the lowest F1 first", folded)
    assert folded.index(">label 8<") < folded.index(">label 0<")
    assert '<details open=""><summary>2 tasks' in page


# that it is written and read


def test_writing_leaves_two_files_and_reading_returns_the_report(tmp_path):
    page = write_report(lean(), tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]
    assert load_report(tmp_path / "out") == load_report(tmp_path / "out" / "report.json") == lean()
    assert render(load_report(tmp_path / "out")) == page.read_text(encoding="utf-8")


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_report(lean(rows=[row(OURS, 5, 0.9, math.nan)], paired=[]), tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["rows"][0]["ci95"] is None


def test_a_failed_writing_keeps_the_old_report(tmp_path, monkeypatch):
    write_report(example(map=[]), tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RunError, match="there is no space left on the disk"):
            write_report(lean(), tmp_path)
    monkeypatch.setattr(report, "_PAGE", (lambda found: 1 / 0,))
    with pytest.raises(ZeroDivisionError):
        write_report(lean(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_absent_report(tmp_path):
    path = tmp_path / "report.json"
    for asked in (path, tmp_path):
        with pytest.raises(RunError) as caught:
            load_report(asked)
        assert str(caught.value) == f"There is no report at '{path}'. Write one with: kshot evaluate"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"schema": 1', "cannot be read: "),
        ("\udcff", "cannot be read: "),
        ("[1]", "is not a report: it names no schema."),
        ('{"rows": []}', "is not a report: it names no schema."),
        (
            '{"schema": 2}',
            "has schema 2, from a newer kshot; this one reads up to 1. Upgrade with: pip install --upgrade kshot",
        ),
        (
            json.dumps({**example(), "rows": {}, "paired": None}),
            "is damaged: rows, paired is absent or of another type. "
            "JSON as 'kshot evaluate' writes it is expected. Evaluate again, or restore the file.",
        ),
    ],
)
def test_damaged_report(tmp_path, text, sentence):
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError) as caught:
        load_report(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)
