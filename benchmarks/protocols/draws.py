"""Tasks of all their labels at several numbers of shots: support sets that are drawn, or given by the benchmark itself.

Every draw is an episode with all of a task's labels; its test texts are never trained on or chosen by. Texts of the data sets
without a test part are divided by their hash: what was tried was tried on the one half, and the other is measured here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kshot.evaluation import measuring
from kshot.evaluation.baselines import new_baselines
from kshot.evaluation.measuring import Outcome, pretrained_learner
from kshot.evaluation.methods import MetaTrained, Method
from kshot.models.features import EncodedTexts
from kshot.statistics import mean
from kshot.tasks import Episode, Examples
from kshot.training import Run
from protocols.recipe import trained_on_others

FULL_WAY = ("banking77", "hwu64", "clinc150")
VERTICALS = ("financial_phrasebank", "medical_abstracts", "legal_rhetorical", "edu_bloom")
LEOPARD = (
    "airline", "conll", "disaster", "political_audience", "political_bias", "political_message",
    "rating_books", "restaurant", "scitail", "sentiment_books", "sentiment_dvd", "sentiment_kitchen",
)  # fmt: skip
FEWCLUE = ("eprstmt", "csldcp", "tnews", "iflytek")
PROTOCOLS = {"full-way": FULL_WAY, "vertical": VERTICALS, "leopard": LEOPARD, "fewclue": FEWCLUE}
SHOTS = {"full-way": (1, 3, 5, 10), "vertical": (5, 16), "leopard": (4, 8, 16)}
DRAWS = {"full-way": 5, "vertical": 30}
QUERIES = {"full-way": 10, "vertical": 20}
TEST_HALF = 1
BASELINES = ("prototype", "prototype+names", "logistic", "logistic+names", "head", "tfidf")
SLOW = ("full", "setfit")
SLOW_TEXTS = 64  # SetFit learns from pairs, so its minutes grow with the square of the texts

Rows = list[dict[str, Any]]
Pairs = list[tuple[str, str]]


def measure(data: Path, protocol: str, dataset: str, runs: Path, slow: int) -> Rows:
    """Return the rows of a data set: each method, and its paired difference to kshot, at each number of shots."""
    run = trained_on_others(data, dataset, runs, "e5-multilingual" if protocol == "fewclue" else "minilm")
    rows = Rows()
    for shots in SHOTS.get(protocol, (0,)):  # FewCLUE's own draws are of one size
        if protocol == "fewclue":
            episodes = fewclue(data, dataset)
        elif protocol == "leopard":
            episodes = leopard(data, dataset, shots)
        else:
            half = TEST_HALF if protocol == "vertical" else None
            episodes = drawn(data, dataset, shots, QUERIES[protocol], DRAWS[protocol], half)
        ways = episodes[0].ways
        same = {"dataset": dataset, "protocol": protocol, "ways": ways, "shots": shots or len(episodes[0].support) / ways}
        rows += compare(run, episodes, slow if len(episodes[0].support) <= SLOW_TEXTS else 0, same)
        figures = [
            f"{row['method']} {100 * row['accuracy']:.1f}"
            for row in rows
            if row["shots"] == same["shots"] and "accuracy" in row
        ]
        print(f"  {dataset}, {same['shots']:g} shots: {', '.join(figures)}", flush=True)
    return rows


def compare(run: Run, episodes: list[Episode], slow: int, same: dict[str, Any]) -> Rows:
    """Return a row for each method on the draws, and its paired difference to kshot; slow ones on the first few draws.

    Args:
        run: kshot's side; the baselines have the encoder that it started from.
        episodes: the draws.
        slow: how many draws full fine-tuning and SetFit are measured on.
        same: what all rows say.
    """
    pretrained = pretrained_learner(run, [])
    assert pretrained is not None
    methods: list[Method] = [MetaTrained(run), *new_baselines((*BASELINES, *(SLOW if slow else ())), pretrained)]
    methods[0].name = "kshot"
    texts: dict[int, EncodedTexts] = {}
    outcomes = {
        method.name: measuring.measure(method, episodes[:slow] if method.slow else episodes, texts, run.learner)
        for method in methods
    }
    ours = outcomes["kshot"].accuracies
    rows = [same | {"method": name, **_figures(outcome)} for name, outcome in outcomes.items()]
    for name, outcome in list(outcomes.items())[1:]:
        differences = mean([a - b for a, b in zip(ours, outcome.accuracies, strict=False)])
        rows.append(same | {"method": "kshot", "baseline": name, "paired": True, "difference": differences.value}
                    | {"ci95": differences.ci95 if differences.count > 1 else None, "draws": differences.count})  # fmt: skip
    return rows


def _figures(outcome: Outcome) -> dict[str, Any]:
    figure = mean(outcome.accuracies)
    return {
        "accuracy": figure.value,
        "ci95": figure.ci95 if figure.count > 1 else None,
        "draws": figure.count,
        "adapt_seconds_median": float(np.median(outcome.seconds)),
    }


def drawn(data: Path, dataset: str, shots: int, queries: int, draws: int, half: int | None = None) -> list[Episode]:
    """Draw support and query sets of all labels of a data set.

    Args:
        data: the folder with a folder for each data set.
        dataset: its name.
        shots, queries: texts a label.
        draws: how many.
        half: which half of the texts, by their hash; None for all.
    """
    by_label: dict[str, dict[str, None]] = {}
    for row in _rows(data / dataset / "data.jsonl"):
        if half is None or int(hashlib.md5(row["text"].encode()).hexdigest(), 16) % 2 == half:
            by_label.setdefault(row["label"], {})[row["text"]] = None
    labels, episodes = tuple(sorted(by_label)), []
    for index in range(draws):
        generator = np.random.default_rng([shots, index])
        support, query = Pairs(), Pairs()
        for label in labels:
            texts = list(by_label[label])
            chosen = [texts[i] for i in generator.permutation(len(texts))[: shots + queries]]
            support += [(text, label) for text in chosen[:shots]]
            query += [(text, label) for text in chosen[shots:]]
        episodes.append(_episode(dataset, labels, support, query, index))
    return episodes


def leopard(data: Path, task: str, shots: int) -> list[Episode]:
    """Return a LEOPARD task's own ten draws, with its evaluation set. A pair's second text is joined to the first."""
    folder = data / "leopard" / task
    query = [(_text(row), row["label"]) for row in _rows(folder / "eval.jsonl.gz")]
    labels = tuple(sorted({label for _, label in query}))
    supports: dict[int, Pairs] = {}
    for row in _rows(folder / "draws.jsonl.gz"):
        if row["shots"] == shots:
            supports.setdefault(row["draw"], []).append((_text(row), row["label"]))
    return [_episode(task, labels, support, query, index) for index, support in sorted(supports.items())]


def fewclue(data: Path, task: str) -> list[Episode]:
    """Return a FewCLUE task's five training draws with its public test set."""
    folder = data / "fewclue" / task
    query = list(_chinese(folder / "test_public.json"))
    supports = [list(_chinese(folder / f"train_{index}.json")) for index in range(5)]
    labels = tuple(sorted({label for pairs in (query, *supports) for _, label in pairs}))
    return [_episode(task, labels, support, query, index) for index, support in enumerate(supports)]


def _episode(task: str, labels: tuple[str, ...], support: Pairs, query: Pairs, index: int) -> Episode:
    sides = []
    for pairs in (support, query):
        sides.append(Examples(tuple(text for text, _ in pairs), tuple(labels.index(label) for _, label in pairs)))
    return Episode(task=task, corpus="", labels=labels, support=sides[0], query=sides[1], index=index)


def _text(row: dict[str, Any]) -> str:
    return " ".join(part for part in (row["text"], row.get("text_pair")) if part)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as stream:
        for line in stream:
            yield json.loads(line)


def _chinese(path: Path) -> Iterator[tuple[str, str]]:
    """Yield text and label of FewCLUE's files, whose columns differ by task."""
    for row in _rows(path):
        text = row.get("sentence") or row.get("content")
        label = row.get("label_desc") or row.get("label_des") or row["label"]
        yield str(text), str(label)
