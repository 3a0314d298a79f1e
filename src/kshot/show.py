"""What commands print for people: tables of data, runs and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kshot.api import open_suite
from kshot.config import Config
from kshot.errors import KshotError, listing
from kshot.models.kinds import kind_of
from kshot.statistics import Mean
from kshot.tasks import load_tasks
from kshot.tasks.check import TaskSummary, summarise
from kshot.tasks.suite import SPLITS
from kshot.training import Run

_TASKS_SHOWN, _LABELS_SHOWN = 40, 12


def _console() -> Console:
    """A console that wraps no line, and that is wide enough for a table where it is no terminal (a file, a pipe)."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=160)


def print_check(config: Config) -> None:
    """Print what was understood of the data."""
    console = _console()
    tasks = load_tasks(config.tasks, config.read, kind_of(config.kind).schema)
    for corpus in {id(task.corpus): task.corpus for task in tasks}.values():
        for file, columns in list(corpus.columns.items())[:5]:
            named = ", ".join(f"{role} '{name}'" for role, name in columns.items() if name)
            of_name = columns.get("label", "") is None
            console.print(f"{escape(file)}: {escape(named)}" + (", label from the file's name" if of_name else ""))
        for file, count in corpus.repaired.items():
            console.print(
                f"{escape(file)}: {count} sentence(s) with an I- tag that no B- begins; it was read as B-", style="yellow"
            )
        for file, count in corpus.skipped.items():
            console.print(f"{escape(file)}: {count} row(s) without a text or a label were passed over", style="yellow")
    table = Table(
        "task", "labels", "examples", "a label (min-max)", "characters (min/median/max)", "language", "duplicates", "conflicts"
    )
    summaries = [summarise(task) for task in tasks[:_TASKS_SHOWN]]
    for summary in summaries:
        _add_task(table, summary)
    console.print(table)
    if len(tasks) > len(summaries):
        console.print(f"and {len(tasks) - len(summaries)} more tasks")
    for summary in (summary for summary in summaries if summary.labels):
        shown = listing([f"{label} ({count})" for label, count in summary.labels.items()], _LABELS_SHOWN)
        console.print(f"[bold]{escape(summary.name)}[/bold]: {escape(shown)}")
        for text, labels in summary.conflicts:
            console.print(f"  conflict: {escape(repr(text[:80]))} is labelled {escape(listing(labels))}", style="yellow")
    _print_split(console, config)


def _add_task(table: Table, summary: TaskSummary) -> None:
    counts = summary.labels.values()
    table.add_row(
        escape(summary.name),
        str(len(counts)),
        f"{summary.examples:,}",
        f"{min(counts)}-{max(counts)}" if counts else "-",
        "/".join(f"{length:,}" for length in summary.lengths),
        summary.language,
        str(summary.duplicates),
        str(summary.conflict_count),
    )


def _print_split(console: Console, config: Config) -> None:
    """Print what a split would leave; that the data cannot be split is told, and is no error here."""
    try:
        suite = open_suite(config)
    except KshotError as error:
        console.print(f"Split '{config.split.by}': {escape(str(error))}", style="yellow")
        return
    for split in SPLITS:
        tasks = suite[split]
        fewest = min((count for task in tasks for count in task.counts().values()), default=0)
        labels, texts = sum(len(task.labels) for task in tasks), sum(len(task) for task in tasks)
        console.print(
            f"Split '{escape(config.split.by)}', meta-{split}: {len(tasks)} task(s), "
            + (f"{labels} labels, {texts:,} texts, at least {fewest} a label" if labels else f"{texts:,} texts")
        )
    shared = suite.overlap()
    if shared:
        console.print(
            f"{len(shared)} text(s) of meta-test stand in meta-train, such as {escape(repr(shared[0][:80]))}",
            style="yellow",
        )


def print_run(run: Run) -> None:
    """Print what a training reached."""
    metrics, training = run.card["metrics"], run.card["training"]
    reached = ""
    if metrics["validation"] is not None:
        score = Mean(metrics["validation"], metrics["validation_ci95"], 0).percent()
        reached = f", validation {run.learner.metric} {score}% at step {training['best_step']}"
    _console().print(f"Meta-trained in {metrics['seconds']:.0f} s{reached}: {escape(str(run.folder))}")


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report's accuracies and paired differences."""
    console = _console()
    protocol = report["protocol"]
    shots = protocol["shots"]
    shape = f"{protocol['ways']}-way, {protocol['queries']} queries a label, " if protocol["labels"] else ""
    title = f"{protocol['suite']}, {shape}{protocol.get('metric', 'accuracy')} in %"
    table = Table("method", *(f"{shot}-shot" for shot in shots), "episodes", "adapts in (s)", title=escape(title))
    rows = {(row["method"], row["shots"]): row for row in report["rows"]}
    for method in dict.fromkeys(row["method"] for row in report["rows"]):
        cells = [rows.get((method, shot)) for shot in shots]
        last = next(cell for cell in reversed(cells) if cell)
        figures = [_percent(cell["accuracy"], cell["ci95"]) if cell else "-" for cell in cells]
        table.add_row(escape(method), *figures, str(last["episodes"]), f"{last['adapt_seconds_median']:.3f}")
    console.print(table)
    for pair in report["paired"]:
        sign = "+" if pair["difference"] >= 0 else ""
        console.print(
            f"{pair['shots']}-shot, vs {escape(pair['baseline'])}: {sign}{_percent(pair['difference'], pair['ci95'])} points "
            f"({pair['episodes']} paired episodes)"
        )
    for warning in report["warnings"]:
        console.print(f"Warning: {escape(warning)}", style="yellow")


def _percent(value: float, ci95: float | None) -> str:
    return Mean(value, float("nan") if ci95 is None else ci95, 0).percent()
