"""The command line's flags: each sets a key of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

# Flags that set a key of the configuration, by key; what a flag says wins over --config, and --set wins over flags.
_F = TypeVar("_F", bound=Callable[..., Any])
DATA = {
    "kind": ("--kind", "classification, tagging or another kind of task; see docs/kinds.md."),
    "split.by": ("--split", "auto, class, task, given, or a JSON file of names (looked up in the data's folder first)."),
    "split.ratios": ("--split-ratios", "Shares of train, validation and test, such as 0.6,0.2,0.2."),
    "split.seed": ("--split-seed", "Seed of the split."),
    "read.text_column": ("--text-column", "The column of the text, where it is not found by name."),
    "read.label_column": ("--label-column", "The column of the label, where it is not found by name."),
    "read.task_column": ("--task-column", "A column that tells to which task a row belongs."),
    "read.max_text_characters": ("--max-text-characters", "A longer text is refused."),
}
TRAIN = {
    "algorithm.name": ("--algorithm", "protonet, maml, anil, reptile or another; see docs/algorithms.md."),
    "backbone.name": ("--backbone", "minilm, tiny, a model's folder, or a hub name."),
    "backbone.pooling": ("--pooling", "auto, mean, cls, max or last."),
    "backbone.max_length": ("--max-length", "Tokens after which a text is cut."),
    "episodes.ways": ("--ways", "Labels a training episode, such as 20 or 5-20."),
    "episodes.shots": ("--shots", "Support examples a label, such as 5 or 1-10."),
    "episodes.queries": ("--queries", "Query examples a label."),
    "training.steps": ("--steps", "Meta-updates."),
    "training.lr": ("--lr", "Peak rate of the outer optimiser."),
    "training.seed": ("--seed", "Seed of episodes and dropout."),
    "label_names": ("--label-names", "true or false: whether a label's name is one more support example of it."),
    "trim_vocabulary": ("--trim-vocabulary", "true or false: leave out the tokens that no text of the tasks has."),
    "device": ("--device", "cpu or cuda."),
    "precision": ("--precision", "fp32, or bf16 for products of rounded factors."),
}
PRETRAIN = {
    "kind": ("--kind", "mlm for an encoder (masked words), lm for a decoder."),
    "backbone.name": TRAIN["backbone.name"],
    "backbone.max_length": ("--max-length", "Tokens of a row."),
    "read.text_column": DATA["read.text_column"],
    "pretraining.steps": ("--steps", "Updates."),
    "pretraining.tokens": ("--tokens", "About so many a step."),
    "pretraining.lr": ("--lr", "Peak rate."),
    "pretraining.held_out": ("--held-out", "The share of texts that perplexity is measured on."),
    "pretraining.seed": ("--seed", "Seed of the order of texts and of what is masked."),
    "device": TRAIN["device"],
    "precision": TRAIN["precision"],
}
EVALUATE = {
    "evaluation.split": ("--part", "The part to draw episodes from: test, validation or train."),
    "evaluation.ways": ("--ways", "Labels an episode."),
    "evaluation.shots": ("--shots", "Numbers of shots, such as 1,5."),
    "evaluation.queries": ("--queries", "Query examples a label."),
    "evaluation.episodes": ("--episodes", "Episodes a number of shots."),
    "evaluation.slow_episodes": ("--slow-episodes", "Episodes for methods that take seconds each; 0 leaves those out."),
    "evaluation.baselines": (
        "--baselines",
        "Of prototype, logistic, head, tfidf, full, setfit, also NAME+names; or none.",
    ),
    "evaluation.transductive": ("--transductive", "true or false: measure also with an episode's queries seen together."),
    "evaluation.seed": ("--seed", "Seed of the episodes."),
    "device": ("--device", "cpu or cuda."),
}
_LISTS = {"evaluation.shots", "evaluation.baselines", "split.ratios"}


def keys(table: dict[str, tuple[str, str]]) -> Callable[[_F], _F]:
    """Add the flags of a table; the command receives them as ``overrides`` by dotted key."""

    def decorate(command: _F) -> _F:
        for key, (flag, text) in reversed(table.items()):
            command = click.option(flag, key.replace(".", "__"), default=None, help=text)(command)
        return command

    return decorate


def source(command: _F) -> _F:
    """Add the options that every command over a suite has."""
    command = click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any key, such as training.clip=0.5."
    )(command)
    command = click.option("--config", "config_file", type=click.Path(), help="A YAML file; see recipes/.")(command)
    command = keys(DATA)(command)
    command = tolerance(command)
    return click.option("--tasks", multiple=True, help="A file, a folder, hub:NAME or bundled:en; may be repeated.")(command)


def tolerance(command: _F) -> _F:
    """Add the flags that accept what is refused by default."""
    empty = click.option("--skip-empty", is_flag=True, help="Pass over rows without a text or a label.")
    mixed = click.option("--mixed-labels", is_flag=True, help="Accept numbers and words side by side as labels.")
    return empty(mixed(command))


def config_from(options: dict[str, Any]) -> Any:
    """Return the configuration that a command's options, its file and its assignments make."""
    from kshot.config import load_config, parse_assignments

    overrides: dict[str, Any] = {}
    if options.get("tasks"):
        overrides["tasks"] = list(options["tasks"])
    for flag in ("mixed_labels", "skip_empty"):
        if options.get(flag):
            overrides[f"read.{flag}"] = True
    for name, value in options.items():
        key = name.replace("__", ".")
        if value is not None and key in {**DATA, **TRAIN, **PRETRAIN, **EVALUATE}:
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
