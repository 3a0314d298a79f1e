"""The command line: thin commands over `kshot.api`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click

from kshot.errors import DataError, Interrupted, KshotError

# Flags that set a key of the configuration, by key; what a flag says wins over --config, and --set wins over flags.
_F = TypeVar("_F", bound=Callable[..., Any])
_DATA = {
    "split.by": ("--split", "auto, class, task, given, or a JSON file of names (looked up in the data's folder first)."),
    "split.ratios": ("--split-ratios", "Shares of train, validation and test, such as 0.6,0.2,0.2."),
    "split.seed": ("--split-seed", "Seed of the split."),
    "read.text_column": ("--text-column", "The column of the text, where it is not found by name."),
    "read.label_column": ("--label-column", "The column of the label, where it is not found by name."),
    "read.task_column": ("--task-column", "A column that tells to which task a row belongs."),
    "read.max_text_characters": ("--max-text-characters", "A longer text is refused."),
}
_TRAIN = {
    "algorithm.name": ("--algorithm", "protonet, maml, fomaml, anil or reptile."),
    "backbone.name": ("--backbone", "minilm, tiny, a model's folder, or a hub name."),
    "backbone.pooling": ("--pooling", "mean, cls or max."),
    "backbone.max_length": ("--max-length", "Tokens after which a text is cut."),
    "episodes.ways": ("--ways", "Labels a training episode, such as 20 or 5-20."),
    "episodes.shots": ("--shots", "Support examples a label, such as 5 or 1-10."),
    "episodes.queries": ("--queries", "Query examples a label."),
    "training.steps": ("--steps", "Meta-updates."),
    "training.lr": ("--lr", "Peak rate of the outer optimiser."),
    "training.seed": ("--seed", "Seed of episodes and dropout."),
    "device": ("--device", "cpu or cuda."),
}
_EVALUATE = {
    "evaluation.split": ("--part", "The part to draw episodes from: test, validation or train."),
    "evaluation.ways": ("--ways", "Labels an episode."),
    "evaluation.shots": ("--shots", "Numbers of shots, such as 1,5."),
    "evaluation.queries": ("--queries", "Query examples a label."),
    "evaluation.episodes": ("--episodes", "Episodes a number of shots."),
    "evaluation.slow_episodes": ("--slow-episodes", "Episodes for methods that take seconds each; 0 leaves those out."),
    "evaluation.baselines": ("--baselines", "Of prototype, logistic, head, tfidf, full, setfit; or none."),
    "evaluation.seed": ("--seed", "Seed of the episodes."),
    "device": ("--device", "cpu or cuda."),
}
_LISTS = {"evaluation.shots", "evaluation.baselines", "split.ratios"}
_TEXTS_AT_ONCE, _BYTES_AT_ONCE = 32, 1 << 16


class _Group(click.Group):
    """Commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="kshot")
def cli() -> None:
    """Teach a language model to learn new text tasks from a handful of examples.

    \b
    kshot demo                                          the whole job on bundled tasks, in minutes
    kshot data check my_data/                           what kshot understands of your files
    kshot train --tasks my_data/ --out runs/mine        meta-train on your many small tasks
    kshot evaluate runs/mine --tasks my_data/           how good it is on tasks it never saw
    kshot adapt runs/mine examples.csv --out new_task/  a new task from a few examples
    kshot predict new_task/ texts.txt                   labels, probabilities and reasons
    """


def _keys(table: dict[str, tuple[str, str]]) -> Callable[[_F], _F]:
    """Add the flags of a table; the command receives them as ``overrides`` by dotted key."""

    def decorate(command: _F) -> _F:
        for key, (flag, text) in reversed(table.items()):
            command = click.option(flag, key.replace(".", "__"), default=None, help=text)(command)
        return command

    return decorate


def _source(command: _F) -> _F:
    """Add the options that every command over a suite has."""
    command = click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any key, such as training.clip=0.5."
    )(command)
    command = click.option("--config", "config_file", type=click.Path(), help="A YAML file; see recipes/.")(command)
    command = _keys(_DATA)(command)
    command = _tolerance(command)
    return click.option("--tasks", multiple=True, help="A file, a folder, hub:NAME or bundled:en; may be repeated.")(command)


def _tolerance(command: _F) -> _F:
    """Add the flags that accept what is refused by default."""
    empty = click.option("--skip-empty", is_flag=True, help="Pass over rows without a text or a label.")
    mixed = click.option("--mixed-labels", is_flag=True, help="Accept numbers and words side by side as labels.")
    return empty(mixed(command))


def _config(options: dict[str, Any]) -> Any:
    from kshot.config import load_config, parse_assignments

    overrides: dict[str, Any] = {}
    if options.get("tasks"):
        overrides["tasks"] = list(options["tasks"])
    for flag in ("mixed_labels", "skip_empty"):
        if options.get(flag):
            overrides[f"read.{flag}"] = True
    for name, value in options.items():
        key = name.replace("__", ".")
        if value is not None and key in {**_DATA, **_TRAIN, **_EVALUATE}:
            overrides[key] = _flag_value(key, str(value))
    overrides |= parse_assignments(options.get("assignments", ()))
    return load_config(options.get("config_file"), overrides)


def _flag_value(key: str, text: str) -> Any:
    if key in _LISTS:
        return [] if text == "none" else [part.strip() for part in text.split(",") if part.strip()]
    low, dash, high = text.partition("-")
    if key in ("episodes.ways", "episodes.shots") and dash and low.isdigit() and high.isdigit():
        return [int(low), int(high)]
    return text


def _tell(text: str) -> None:
    click.echo(text, err=True)


@cli.group()
def data() -> None:
    """Look at labelled data."""


@data.command(epilog="Example: kshot data check tickets.csv --split class")
@click.argument("sources", nargs=-1, required=True)
@_keys(_DATA)
@_tolerance
def check(sources: tuple[str, ...], **options: Any) -> None:
    """Print what kshot understands of SOURCES: tasks, labels, counts, lengths, language, duplicates, conflicts, splits."""
    from kshot.show import print_check

    print_check(_config({"tasks": sources, **options}))


@cli.command(epilog="Example: kshot train --tasks banking77/ --split folds/1.json --algorithm protonet --out runs/banking")
@_source
@_keys(_TRAIN)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/run"), show_default=True, help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a stopped training.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is there.")
@click.option("--tensorboard/--no-tensorboard", default=True, show_default=True, help="Write curves into the run's folder.")
@click.option("--wandb", "project", default=None, metavar="PROJECT", help="Log to Weights & Biases, too.")
def train(out: Path, resume: bool, overwrite: bool, tensorboard: bool, project: str | None, **options: Any) -> None:
    """Meta-train a run on many small tasks."""
    config = _config(options)
    from kshot import api
    from kshot.training.callbacks import Callback, ProgressDisplay, TensorBoardLogger, WandbLogger

    callbacks: list[Callback] = [ProgressDisplay()]
    if tensorboard:
        callbacks.append(TensorBoardLogger(out / "tensorboard"))
    if project is not None:
        callbacks.append(WandbLogger(project, out / "wandb", api.public_config(config)))
    suite = api.open_suite(config)
    run = api.train(suite, out, config, resume=resume, overwrite=overwrite, callbacks=callbacks, tell=_tell)
    from kshot.show import print_run

    print_run(run)


@cli.command(epilog="Example: kshot evaluate runs/banking --tasks banking77/ --split folds/1.json --shots 1,5")
@click.argument("run", type=click.Path(path_type=Path))
@_source
@_keys(_EVALUATE)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The report's folder; RUN-report by default.")
@click.option("--overwrite", is_flag=True, help="Replace the report that is there.")
def evaluate(run: Path, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure RUN on tasks it never saw, against the baselines, on the same episodes."""
    config = _config(options)
    from kshot import api
    from kshot.evaluation.report import write_report
    from kshot.show import print_report
    from kshot.training import load_run

    out = out or run.with_name(f"{run.name}-report")
    _require_new(out, overwrite)
    api.require_device(config.device)
    loaded = load_run(run, config.device)
    report = api.evaluate(loaded, api.open_suite(config), config.evaluation, _tell)
    page = write_report(report, out)
    print_report(report)
    _tell(f"The report is {page}")


def _require_new(folder: Path, overwrite: bool) -> None:
    from kshot.errors import RunError
    from kshot.files import require_writable

    require_writable(folder)
    if folder.exists() and not overwrite:
        raise RunError(f"The folder '{folder}' exists.", mend="Choose another with --out, or add --overwrite.")


@cli.command(epilog="Example: kshot adapt runs/banking examples.csv --out tasks/new_intents")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("examples")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The adapted task's folder; named after EXAMPLES.")
@click.option("--overwrite", is_flag=True, help="Replace the task that is there.")
@click.option("--text-column", "read__text_column", default=None, help=_DATA["read.text_column"][1])
@click.option("--label-column", "read__label_column", default=None, help=_DATA["read.label_column"][1])
@_tolerance
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def adapt(run: Path, examples: str, out: Path | None, overwrite: bool, device: str, **options: Any) -> None:
    """Adapt RUN to a new task from a few labelled EXAMPLES (JSONL, CSV, ...)."""
    import time

    from kshot.api import require_device
    from kshot.deploy import adapt as adapt_run
    from kshot.tasks import load_tasks
    from kshot.tasks.readers import data_stem
    from kshot.training import load_run

    config = _config(options)
    out = out or Path(data_stem(Path(examples)) + "-task")
    _require_new(out, overwrite)
    tasks = load_tasks(examples, config.read)
    if len(tasks) != 1:
        raise DataError(f"'{examples}' holds {len(tasks)} tasks.", "To adapt, name the examples of one.")
    pairs = [(text, name) for i, name in enumerate(tasks[0].labels) for text in tasks[0].corpus.texts(tasks[0].rows(i))]
    require_device(device)
    loaded = load_run(run, device)
    begin = time.perf_counter()
    adapted = adapt_run(loaded, [text for text, _ in pairs], [label for _, label in pairs])
    seconds = time.perf_counter() - begin
    folder = adapted.save(out, overwrite)
    click.echo(f"Adapted to {len(adapted.labels)} labels from {len(pairs)} examples in {seconds:.2f} s: {folder}")


@cli.command(epilog="Example: echo 'my card was swallowed' | kshot predict tasks/new_intents")
@click.argument("task", type=click.Path(path_type=Path))
@click.argument("texts", default="-")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), default=None, help="Where the run is, if it was moved.")
@click.option("--text-column", default=None, help="The field of the text, for JSON Lines.")
@click.option("--nearest", default=3, show_default=True, type=click.IntRange(0), help="Support examples to show as the reason.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def predict(task: Path, texts: str, run_folder: Path | None, text_column: str | None, nearest: int, device: str) -> None:
    """Label TEXTS (a file with a text or a JSON object a line; standard input by default), as a stream of JSON Lines."""
    from kshot.api import require_device
    from kshot.deploy import load_adapted
    from kshot.training import load_run

    require_device(device)
    if texts != "-" and not Path(texts).is_file():
        raise DataError(f"No such file: '{texts}'.", mend="Name a file with a text a line, or - for standard input.")
    adapted = load_adapted(task, None if run_folder is None else load_run(run_folder, device), device)
    name = "standard input" if texts == "-" else texts
    for lines in _arriving_lines(texts, name):
        given = (text for number, line in lines if (text := _input_text(name, number, line, text_column)))
        while chunk := list(islice(given, _TEXTS_AT_ONCE)):
            for text, prediction in zip(chunk, adapted.predict(chunk, nearest), strict=True):
                click.echo(json.dumps({"text": text, **prediction.to_json()}, ensure_ascii=False))


def _arriving_lines(source: str, name: str) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the numbered lines that have come so far, so that one who writes a line and waits is answered."""
    from kshot.tasks.readers import readable

    number, rest = 1, b""
    with readable(Path(name)), click.open_file(source, "rb") as opened:
        stream: Any = opened
        while data := stream.read1(_BYTES_AT_ONCE):
            *lines, rest = (rest + data).split(b"\n")
            yield list(enumerate(lines, number))
            number += len(lines)
    yield [(number, rest)]


def _input_text(name: str, number: int, line: bytes, column: str | None) -> str:
    """Return the text of a line: the line as it is, or a field of a JSON object; nothing for a blank line."""
    from kshot.tasks.columns import find_columns

    where = f"{name}, line {number}"
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text.startswith("{"):
            return text
        record = json.loads(text)
        found = find_columns(where, [record], column, label_required=False)
        text = record[found.text]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: the field '{found.text}' is {text!r}.", "A text is expected.")
        text.encode()
    except UnicodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error}).", mend="Convert it to UTF-8 first.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: begins like JSON and is not valid JSON ({error}).") from error
    return text


@cli.command(epilog="Example: kshot report runs/banking-report")
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Print a report and write its page anew. FOLDER is what 'kshot evaluate' wrote."""
    from kshot.evaluation.report import load_report, write_report
    from kshot.show import print_report

    loaded = load_report(folder / "report.json" if folder.is_dir() else folder)
    page = write_report(loaded, folder if folder.is_dir() else folder.parent)
    print_report(loaded)
    _tell(f"The report is {page}")


@cli.command(epilog="Example: kshot demo --out demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Where to write everything."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier demonstration.")
@click.option("--backbone", default="minilm", show_default=True, help="minilm, tiny, a model's folder, or a hub name.")
@click.option("--steps", default=40, show_default=True, type=click.IntRange(1), help="Meta-updates.")
@click.option("--episodes", default=200, show_default=True, type=click.IntRange(2), help="Test episodes.")
def demo(out: Path, overwrite: bool, backbone: str, steps: int, episodes: int) -> None:
    """The whole job on the bundled tasks: meta-train on some industries, measure on others, adapt, predict, report."""
    from kshot.demo import run_demo

    run_demo(out, overwrite, backbone, steps, episodes, _tell)


def main() -> None:
    """Run the command line: a user's mistake is one sentence and exit status 2, an interruption 130."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KshotError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as stopped:  # click raises Abort from what it caught
        click.echo(str(stopped.__cause__) if isinstance(stopped.__cause__, Interrupted) else "Stopped.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
