"""The command line: thin commands over `kshot.api`."""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click

from kshot.errors import DataError, Interrupted, KshotError
from kshot.flags import DATA, EVALUATE, PRETRAIN, TRAIN, config_from, keys, source, tolerance

_TEXTS_AT_ONCE = 32


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
    kshot pretrain my_texts/ --kind mlm --out model     go on training a language model on your texts, if you have many
    kshot train --tasks my_data/ --out runs/mine        meta-train on your many small tasks
    kshot evaluate runs/mine --tasks my_data/           how good it is on tasks it never saw
    kshot adapt runs/mine examples.csv --out new_task/  a new task from a few examples
    kshot predict new_task/ texts.txt                   labels, probabilities and reasons
    """


def _tell(text: str) -> None:
    click.echo(text, err=True)


@cli.group()
def data() -> None:
    """Look at labelled data."""


@data.command(epilog="Example: kshot data check tickets.csv --split class")
@click.argument("sources", nargs=-1, required=True)
@keys(DATA)
@tolerance
def check(sources: tuple[str, ...], **options: Any) -> None:
    """Print what kshot understands of SOURCES: tasks, labels, counts, lengths, language, duplicates, conflicts, splits."""
    from kshot.show import print_check

    print_check(config_from({"tasks": sources, **options}))


@cli.command(epilog="Example: kshot train --tasks banking77/ --split folds/1.json --algorithm protonet --out runs/banking")
@source
@keys(TRAIN)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/run"), show_default=True, help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a stopped training.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is there.")
@click.option("--tensorboard/--no-tensorboard", default=True, show_default=True, help="Write curves into the run's folder.")
@click.option("--wandb", "project", default=None, metavar="PROJECT", help="Log to Weights & Biases, too.")
def train(out: Path, resume: bool, overwrite: bool, tensorboard: bool, project: str | None, **options: Any) -> None:
    """Meta-train a run on many small tasks."""
    config = config_from(options)
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


@cli.command(epilog="Example: kshot pretrain notes/ --kind mlm --backbone bert-base-uncased --out models/notes")
@click.argument("texts", nargs=-1, required=True)
@keys(PRETRAIN)
@click.option("--config", "config_file", type=click.Path(), help="A YAML file; see recipes/.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any key, such as pretraining.patience=0.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("models/pretrained"), show_default=True, help="The folder."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a stopped training.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier training left there.")
def pretrain(texts: tuple[str, ...], out: Path, resume: bool, overwrite: bool, **options: Any) -> None:
    """Go on training a language model on TEXTS (files or folders of plain texts, of any size)."""
    config = config_from(options)
    from kshot.pretrain import pretrain as go_on
    from kshot.training.callbacks import ProgressDisplay

    found = go_on(texts, out, config, resume=resume, overwrite=overwrite, callbacks=[ProgressDisplay()], tell=_tell)
    before, after = found["perplexity"]
    said = "" if before is None else f" Perplexity of held-out texts: {before:.2f} before, {after:.2f} after."
    click.echo(f"Trained on {found['tokens']:,} tokens in {found['seconds']:.0f} s.{said} The model is {out}")


@cli.command(epilog="Example: kshot evaluate runs/banking --tasks banking77/ --split folds/1.json --shots 1,5")
@click.argument("run", type=click.Path(path_type=Path))
@source
@keys(EVALUATE)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The report's folder; RUN-report by default.")
@click.option("--overwrite", is_flag=True, help="Replace the report that is there.")
def evaluate(run: Path, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure RUN on tasks it never saw, against the baselines, on the same episodes."""
    config = config_from(options)
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
@click.option("--text-column", "read__text_column", default=None, help=DATA["read.text_column"][1])
@click.option("--label-column", "read__label_column", default=None, help=DATA["read.label_column"][1])
@tolerance
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def adapt(run: Path, examples: str, out: Path | None, overwrite: bool, device: str, **options: Any) -> None:
    """Adapt RUN to a new task from a few labelled EXAMPLES (JSONL, CSV, ...)."""
    import time

    from kshot.api import require_device
    from kshot.deploy.adapted import adapt_to
    from kshot.models.kinds import kind_of
    from kshot.tasks import Examples, load_tasks
    from kshot.tasks.readers import data_stem
    from kshot.training import load_run
    from kshot.training.run import read_card

    config = config_from(options)
    out = out or Path(data_stem(Path(examples)) + "-task")
    _require_new(out, overwrite)
    kind = kind_of(read_card(run).get("kind", "classification"))
    tasks = load_tasks(examples, config.read, kind.schema)
    if len(tasks) != 1:
        raise DataError(f"'{examples}' holds {len(tasks)} tasks.", "To adapt, name the examples of one.")
    support = Examples.of(tasks[0])
    require_device(device)
    loaded = load_run(run, device)
    begin = time.perf_counter()
    adapted = adapt_to(loaded, tasks[0].labels, support)
    seconds = time.perf_counter() - begin
    folder = adapted.save(out, overwrite)
    of = f"{len(adapted.labels)} labels from " if adapted.labels else ""
    click.echo(f"Adapted to {of}{len(support)} examples in {seconds:.2f} s: {folder}")


@cli.command(epilog="Example: echo 'my card was swallowed' | kshot predict tasks/new_intents")
@click.argument("task", type=click.Path(path_type=Path))
@click.argument("texts", default="-")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), default=None, help="Where the run is, if it was moved.")
@click.option("--text-column", default=None, help="The field of the text, for JSON Lines.")
@click.option("--nearest", default=3, show_default=True, type=click.IntRange(0), help="Support examples to show as the reason.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="Of a target that is generated.")
@click.option("--beams", default=1, show_default=True, type=click.IntRange(1), help="Alternatives to follow; 1 for none.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="Above 0 draws at random.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def predict(
    task: Path,
    texts: str,
    run_folder: Path | None,
    text_column: str | None,
    nearest: int,
    max_tokens: int,
    beams: int,
    temperature: float,
    device: str,
) -> None:
    """Answer TEXTS (a file with a text or a JSON object a line; standard input by default), as a stream of JSON Lines."""
    from kshot.api import require_device
    from kshot.deploy import load_adapted
    from kshot.deploy.stream import arriving_lines, input_value
    from kshot.models.kinds.generation import Decoding
    from kshot.training import load_run

    require_device(device)
    if texts != "-" and not Path(texts).is_file():
        raise DataError(f"No such file: '{texts}'.", mend="Name a file with a text a line, or - for standard input.")
    adapted = load_adapted(task, None if run_folder is None else load_run(run_folder, device), device)
    name, decoding = "standard input" if texts == "-" else texts, Decoding(max_tokens, beams=beams, temperature=temperature)
    for lines in arriving_lines(texts, name):
        whole = adapted.run.learner.kind not in ("classification", "lm")
        given = (value for number, line in lines if (value := input_value(name, number, line, text_column, whole)))
        while chunk := list(islice(given, _TEXTS_AT_ONCE)):
            for value, answer in zip(chunk, adapted.answers(chunk, nearest, decoding=decoding), strict=True):
                asked = value if isinstance(value, dict) else {"text": value}
                click.echo(json.dumps({**asked, **answer}, ensure_ascii=False))


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
