"""The protocol: many held-out episodes, every method on the same ones, means with 95% intervals, paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from kshot.errors import ConfigError, DataError, listing
from kshot.evaluation.baselines import new_baselines
from kshot.evaluation.generative import generative_baselines
from kshot.evaluation.map import embedding_map
from kshot.evaluation.measuring import Outcome, measure, pretrained_learner
from kshot.evaluation.methods import MetaTrained, Method, Transductive
from kshot.models import Learner
from kshot.models.features import EncodedTexts
from kshot.models.kinds import kind_of
from kshot.statistics import Mean, mean
from kshot.tasks import EpisodeSpec, Task, TaskSuite
from kshot.training import Run

REPORT_SCHEMA = 1
_MATRICES = 4  # tasks whose confusion matrix and map a report shows


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is measured.

    Args:
        split: the part of the suite to draw from; ``test`` once, at the end, and ``validation`` while choosing.
        ways, shots, queries: the episodes' shape; every number of shots is measured.
        episodes: how many a number of shots.
        slow_episodes: how many, the first of the same ones, for methods that take seconds an episode; 0 leaves those out.
        baselines: which to compare with: prototype, logistic, head, tfidf, full, setfit; with ``+names`` behind it, a baseline
            has the labels' names as further examples.
        transductive: whether to measure too what the run would say where it may see an episode's queries together; a row of
            its own, which no other is compared with.
        seed: of the episodes.
    """

    split: str = "test"
    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 5
    episodes: int = 600
    slow_episodes: int = 20
    baselines: tuple[str, ...] = ("prototype", "prototype+names", "logistic", "head", "tfidf", "full")
    transductive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shots:
            raise ConfigError("evaluation.shots is empty.", "At least one number of shots is expected, such as 1,5.")
        if self.episodes < 2:
            raise ConfigError(f"evaluation.episodes is {self.episodes}.", "At least 2 are needed for an interval.")
        if self.slow_episodes < 0:
            raise ConfigError(f"evaluation.slow_episodes is {self.slow_episodes}.", "At least 0 is expected.")
        for name, values in (("shots", self.shots), ("baselines", self.baselines)):
            if len(set(values)) < len(values):
                raise ConfigError(f"evaluation.{name} names something twice: {listing(map(str, values))}.")


def evaluate(
    run: Run, suite: TaskSuite, config: EvaluationConfig, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure a run and the baselines on the same episodes of held-out tasks.

    Args:
        run: what to measure.
        suite: the tasks with their split.
        config: the protocol.
        tell: is given a line for every method and number of shots as it is done.

    Returns:
        The report: ``rows`` (accuracy with interval by method and shots), ``paired`` (differences on episodes that both saw),
        figures by task and by label, confusion matrices, the training's history, a map of embeddings, warnings.

    Raises:
        DataError: the split has too few labels or examples for the protocol.
        ConfigError: an unknown baseline.
    """
    tasks, kind = suite[config.split], kind_of(run.learner.kind)
    require_kind(run, tasks)
    streams = {
        shots: kind.schema.episodes(tasks, EpisodeSpec(config.ways, shots, config.queries), config.seed)[: config.episodes]
        for shots in config.shots
    }
    warnings = _warnings(run, suite, config)
    pretrained = pretrained_learner(run, warnings)
    baselines = [] if pretrained is None else _baselines(run, pretrained, config, warnings)
    methods: list[Method] = [MetaTrained(run), *([Transductive(run)] if config.transductive else []), *baselines]
    outcomes: dict[tuple[str, int], Outcome] = {}
    texts: dict[int, EncodedTexts] = {}
    for shots, episodes in streams.items():
        for method in methods:
            chosen = episodes[: config.slow_episodes] if method.slow else episodes
            if not chosen:
                continue
            outcome = outcomes[method.name, shots] = measure(method, chosen, texts, run.learner)
            tell(f"{method.name}, {shots} shot(s): {mean(outcome.accuracies).percent()}%  ({len(chosen)} episodes)")
    largest = max(config.shots)
    ours = outcomes[methods[0].name, largest]
    mapped = tasks if kind.scoped else ()  # a map shows texts, each of one label
    return {
        "schema": REPORT_SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "kshot": version("kshot"),
        "run": {
            "algorithm": run.algorithm_name,
            "options": dict(run.options),
            "backbone": run.pretrained,
            "fingerprint": run.fingerprint,
        },
        "protocol": {
            "suite": suite.name,
            "kind": run.learner.kind,
            "metric": run.learner.metric,
            "split": config.split,
            "tasks": len(tasks),
            "labels": sum(len(task.labels) for task in tasks),
            **{name: getattr(config, name) for name in ("ways", "queries", "episodes", "seed")},
            "shots": list(config.shots),
        },
        "rows": [_row(name, shots, suite, config, outcome) for (name, shots), outcome in outcomes.items()],
        "paired": [
            _paired(methods[0].name, method.name, shots, suite, config, outcomes)
            for shots in config.shots
            for method in baselines
            if (method.name, shots) in outcomes
        ],
        "tasks": [
            {"method": name, "task": task, "shots": shots, **_figures(mean(values))}
            for (name, shots), outcome in outcomes.items()
            for task, values in outcome.by_task.items()
        ],
        "labels": [{"method": methods[0].name, "shots": largest, **row} for row in ours.confusions.labels()],
        "confusion": [
            {"method": methods[0].name, "shots": largest, **ours.confusions.matrix(task)}
            for task in list(ours.confusions.counts)[:_MATRICES]
        ],
        "entities": [{"method": methods[0].name, "shots": largest, **row} for row in ours.entities.rows()],
        "training": run.card.get("training"),
        "map": [embedding_map(task, pretrained, run.learner) for task in mapped[:_MATRICES]] if pretrained else [],
        "warnings": warnings,
    }


def _baselines(run: Run, pretrained: Learner, config: EvaluationConfig, warnings: list[str]) -> list[Method]:
    if run.learner.labelled:
        return new_baselines(config.baselines, pretrained, warnings)
    return generative_baselines(pretrained, run) if config.baselines else []


def require_kind(run: Run, tasks: Sequence[Task]) -> None:
    """Refuse tasks of another kind than the run learned.

    Raises:
        DataError: they are.
    """
    other = next((task for task in tasks if task.kind != run.learner.kind), None)
    if other is not None:
        raise DataError(
            f"The task '{other.name}' is of the kind {other.kind}, and the run was meta-trained on {run.learner.kind}.",
            mend=f"Read it with --kind {run.learner.kind}, or name another run.",
        )


def _warnings(run: Run, suite: TaskSuite, config: EvaluationConfig) -> list[str]:
    """What a reader must know before believing the figures."""
    warnings = []
    seen = [f"{task.name}: {label}" for task in suite[config.split] for label in sorted(run.seen(task))]
    if seen:
        warnings.append(
            f"{len(seen)} of the evaluated labels were meta-trained on ({listing(seen, 5)}): the figures are not of new tasks."
        )
    shared = suite.overlap() if config.split == "test" else ()
    if shared:
        warnings.append(f"{len(shared)} text(s) of meta-test also stand in meta-train (up to case and white space).")
    return warnings


def _row(name: str, shots: int, suite: TaskSuite, config: EvaluationConfig, outcome: Outcome) -> dict[str, Any]:
    return {
        "method": name,
        "suite": suite.name,
        "ways": config.ways,
        "shots": shots,
        **_figures(mean(outcome.accuracies)),
        "adapt_seconds_median": statistics.median(outcome.seconds),
        **outcome.figures(),
    }


def _figures(measured: Mean) -> dict[str, Any]:
    ci95 = None if measured.count < 2 else measured.ci95
    return {"accuracy": measured.value, "ci95": ci95, "episodes": measured.count}


def _paired(
    method: str,
    baseline: str,
    shots: int,
    suite: TaskSuite,
    config: EvaluationConfig,
    outcomes: dict[tuple[str, int], Outcome],
) -> dict[str, Any]:
    """Return the mean difference on the episodes that both methods saw."""
    ours, theirs = outcomes[method, shots].accuracies, outcomes[baseline, shots].accuracies
    figures = _figures(mean([a - b for a, b in zip(ours, theirs, strict=False)]))
    return {
        "method": method,
        "baseline": baseline,
        "suite": suite.name,
        "ways": config.ways,
        "shots": shots,
        "difference": figures.pop("accuracy"),
        **figures,
    }
