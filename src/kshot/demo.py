"""The whole job on the bundled tasks, step by step, as a user would do it by commands."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from kshot import api
from kshot.config import load_config
from kshot.deploy import adapt
from kshot.errors import RunError
from kshot.evaluation.report import write_report
from kshot.files import require_writable, write_json
from kshot.show import print_report
from kshot.training.callbacks import ProgressDisplay

_SHOTS = 5
_MADE = {"run", "report", "task", "demo.json"}


def run_demo(out: Path, overwrite: bool, backbone: str, steps: int, episodes: int, tell: Callable[[str], None]) -> None:
    """Meta-train on six industries, choose on two, measure on two that were never seen, adapt, predict, and write the report.

    Raises:
        RunError: the folder exists and is not to be replaced.
    """
    require_writable(out)
    if out.exists():
        if not overwrite:
            raise RunError(f"The folder '{out}' exists.", mend="Choose another with --out, or add --overwrite.")
        if not out.is_dir() or not {entry.name for entry in out.iterdir()} <= _MADE:
            raise RunError(f"The folder '{out}' is not of a demonstration, so --overwrite leaves it alone.")
        shutil.rmtree(out)
    begin = time.perf_counter()
    config = load_config(
        None,
        {
            "tasks": ["bundled:en"],
            "split.by": "task",
            "backbone.name": backbone,
            "training.steps": steps,
            "training.validate_every": max(1, steps // 4),
            "training.validation_episodes": 60,
            "evaluation.episodes": episodes,
            "evaluation.baselines": ["prototype", "prototype+names", "logistic+names", "tfidf"],  # others take minutes
        },
    )
    suite = api.open_suite(config)
    for split in ("train", "validation", "test"):
        tell(f"meta-{split}: {', '.join(task.name for task in suite[split])}")
    tell(f"\n1. Meta-train ({steps} steps)")
    run = api.train(suite, out / "run", config, callbacks=[ProgressDisplay()], tell=tell)
    tell("\n2. Measure on the industries that it never saw")
    report = api.evaluate(run, suite, config.evaluation, tell)
    page = write_report(report, out / "report")
    print_report(report)
    new = suite.test[0]
    tell(f"\n3. Adapt to a new task: '{new.name}', {len(new.labels)} labels, {_SHOTS} examples each")
    examples = [(text, label) for i, label in enumerate(new.labels) for text in new.corpus.texts(new.rows(i)[:_SHOTS])]
    start = time.perf_counter()
    adapted = adapt(run, [text for text, _ in examples], [label for _, label in examples])
    tell(f"adapted in {time.perf_counter() - start:.2f} s")
    adapted.save(out / "task")
    tell("\n4. Predict texts that it was not given")
    rest = [(text, label) for i, label in enumerate(new.labels) for text in new.corpus.texts(new.rows(i)[_SHOTS:])]
    predictions = adapted.predict([text for text, _ in rest], nearest=1)
    right = sum(prediction.label == label for prediction, (_, label) in zip(predictions, rest, strict=True))
    for (text, label), prediction in list(zip(rest, predictions, strict=True))[:: max(1, len(rest) // 5)]:
        mark = "right" if prediction.label == label else f"wrong, it is {label}"
        tell(json.dumps(text[:90], ensure_ascii=False))
        tell(f"   {prediction.label} ({prediction.probability:.0%}, {mark}); nearest: {prediction.reasons[0].text[:60]!r}")
    tell(f"{right} of {len(rest)} right, among {len(new.labels)} labels")
    seconds = time.perf_counter() - begin
    write_json(out / "demo.json", {"seconds": round(seconds, 1), "right": right, "of": len(rest), "labels": len(new.labels)})
    tell(f"\nDone in {seconds / 60:.1f} minutes. Look at {page}")
