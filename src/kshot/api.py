"""The main job from Python: load a suite, meta-train, evaluate, adapt. The commands are thin over these functions."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from kshot.config import Config, load_config
from kshot.deploy import adapt
from kshot.errors import ConfigError, DataError, Interrupted, listing
from kshot.evaluation import EvaluationConfig
from kshot.evaluation import evaluate as evaluate_run
from kshot.folders import replaced, require_free
from kshot.meta import ALGORITHMS, Algorithm, new_algorithm
from kshot.meta.inner import InnerLoop
from kshot.models import AdapterSpec, Learner, add_adapter, load_backbone, new_learner
from kshot.models.kinds import Kind, kind_of
from kshot.models.precision import choose_matmul_route, default_matmul_route, require_precision
from kshot.models.select import ADAPTER, BACKBONE
from kshot.models.trimming import trimmed
from kshot.tasks import EpisodeSpec, Task, TaskSuite, load_tasks, split_tasks
from kshot.tasks.label_names import label_texts
from kshot.tasks.sources import BUNDLED, HUB
from kshot.tasks.suite import SPLITS
from kshot.training import Run, load_run, meta_train, save_run
from kshot.training.callbacks import Callback
from kshot.training.checkpoint import LAST
from kshot.training.head import choose_head
from kshot.training.run import CARD, label_digests
from kshot.training.trust import fit_trust

__all__ = ["adapt", "evaluate", "load_suite", "open_suite", "train"]

Tell = Callable[[str], None]
_VALIDATION_SEED = 104_729  # apart from the training stream, which uses the training's own seed


def _quiet(text: str) -> None:
    """Say nothing."""


def open_suite(config: Config) -> TaskSuite:
    """Read and divide the tasks that a configuration names."""
    if not config.tasks:
        raise ConfigError("No tasks were named.", mend="Name at least one: --tasks PATH (or bundled:en, hub:NAME)")
    tasks = load_tasks(config.tasks, config.read, kind_of(config.kind).schema)
    first = Path(config.tasks[0])
    folder = first if first.is_dir() else first.parent
    return split_tasks(tasks, config.split, _suite_name(config.tasks), folder)


def _suite_name(sources: Sequence[str]) -> str:
    """Return what reports call a suite: its sources' own names, without where they lie."""
    names = [source if source.startswith((BUNDLED, HUB)) else Path(source).resolve().name for source in sources]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_suite(tasks: str | Sequence[str], split: str = "auto", **options: Any) -> TaskSuite:
    """Read and divide tasks.

    Args:
        tasks: files, folders, ``hub:name`` or ``bundled:en``.
        split: ``auto``, ``class``, ``task``, ``given``, or a file.
        options: other settings by dotted key with ``__`` for the dot, such as ``read__text_column="body"``.
    """
    listed = [tasks] if isinstance(tasks, str) else list(tasks)
    return open_suite(load_config(None, {"tasks": listed, "split.by": split, **_dotted(options)}))


def _dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in options.items()}


def train(
    suite: TaskSuite,
    out: str | Path,
    config: Config | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    tell: Tell = _quiet,
    **options: Any,
) -> Run:
    """Meta-train a run on a suite and write it into a folder.

    Args:
        suite: the tasks with their split.
        out: the run's folder.
        config: the configuration; None for the defaults.
        resume: go on from the folder's last checkpoint.
        overwrite: replace the run that is there.
        callbacks: who is told of every step.
        tell: is given a line now and then.
        options: settings by dotted key with ``__`` for the dot, such as ``algorithm__name="maml"``.

    Raises:
        KshotError: whatever a user can mend, as a sentence.
        Interrupted: stopped by Ctrl-C; a checkpoint was written.
    """
    config = replace_config(config or Config(), _dotted(options))
    out = Path(out)
    name, hyperparameters, algorithm = config.new_algorithm()
    adapter = config.adapter.named_by(getattr(algorithm, "adapts", ""), config.training.trains)
    require_device(config.device)
    require_precision(config.precision, config.device)
    require_free(out, resume, overwrite, CARD, "run")
    kind = kind_of(_kind(suite))
    require_served(kind, name, algorithm)
    shape = config.episodes.spec(name, suite.train)
    episodes = kind.schema.episodes(suite.train, shape, config.training.seed)
    outer = replace(config.training, tasks_per_step=config.training.tasks_per_step or ALGORITHMS[name].tasks_per_step)
    validation = _validation(suite, config, kind)
    _tell_suite(suite, tell)
    learner = _new_learner(config, adapter, suite, kind, algorithm, tell)
    backbone = learner.backbone
    tell(f"{name}: {kind.schema.described(shape)}; {outer.tasks_per_step} episode(s) a step, {outer.steps} steps")
    identity = {
        **({} if kind.learner is Learner else {"kind": learner.kind}),
        "algorithm": {"name": name, **hyperparameters},
        "backbone": public_config(config)["backbone"] | {"pooling": backbone.spec.pooling},
        **({"adapter": asdict(adapter)} if backbone.adapter is not None else {}),
        "episodes": asdict(shape),
        "validation": asdict(config.validation),
        "precision": config.precision,
        "label_names": config.label_names,
        "trim_vocabulary": config.trim_vocabulary,
        "tasks": {split: _digest(suite[split]) for split in ("train", "validation")},
    }
    begin = time.perf_counter()
    with replaced(out) if overwrite and out.exists() else nullcontext():
        try:
            result = meta_train(learner, algorithm, episodes, validation, outer, out, callbacks, resume, identity)
        finally:
            if not (out / LAST).exists():  # nothing to go on from: leave no half-made folder in the way
                shutil.rmtree(out, ignore_errors=True)
    if result.interrupted:
        raise Interrupted(
            f"Stopped after step {len(result.history)} of {outer.steps}. The checkpoint is in '{out}': "
            "repeat the command with --resume to go on."
        )
    trained, episodes_kept = _with_untouched(result.learner, learner, algorithm), outer.calibration_episodes
    hyperparameters |= choose_head(trained, algorithm, suite.validation, episodes_kept, kind.schema)
    algorithm = new_algorithm(name, hyperparameters)
    trained = _with_untouched(trained, learner, algorithm)
    trust = fit_trust(trained, algorithm, suite.validation, episodes_kept) if kind.scoped else None
    card = {
        "config": public_config(config),
        "episodes": asdict(shape),
        "data": [
            {
                "task": task.name,
                "split": split,
                "labels": len(task.labels),
                "examples": len(task),
                "fingerprint": task.corpus.fingerprint[:16],
            }
            for split in SPLITS
            for task in suite[split]
        ],
        "seen": sorted({digest for task in suite.train for digest in label_digests(task)}),
        "metrics": {
            "validation": None if not validation else result.best.value,
            "validation_ci95": None if not validation else result.best.ci95,
            "seconds": round(time.perf_counter() - begin, 1),
        },
        "training": {"history": result.history, "best_step": result.best_step or None},
    }
    made = Run(trained, algorithm, name, hyperparameters, config.backbone.name, card, trust=trust)
    return save_run(made, out)


def _new_learner(
    config: Config, adapter: AdapterSpec, suite: TaskSuite, kind: Kind, algorithm: Algorithm, tell: Tell
) -> Learner:
    """Return the learner that training starts from, and tell what it is."""
    backbone = load_backbone(config.backbone, kind.learner.head)
    if config.trim_vocabulary:
        whole = backbone.model.config.vocab_size
        backbone = trimmed(backbone, _texts((*suite.train, *suite.validation)))
        tell(f"Vocabulary: {backbone.model.config.vocab_size:,} of {whole:,} tokens.")
    backbone = add_adapter(backbone, adapter, config.training.seed)
    tell(choose_matmul_route() if config.fast else default_matmul_route())
    learner = replace(new_learner(backbone, config.device, kind.learner), fast=config.fast, precision=config.precision)
    learner = replace(learner, names=config.label_names and kind.names)
    packed = config.fast and backbone.packed is not None
    tell(f"Forward pass: {'packed' if packed else 'that of the model'}, {config.precision}")
    corpora = {task.corpus.fingerprint: task.corpus for task in (*suite.train, *suite.validation)}
    learner = learner.with_stores(list(corpora.values()))
    if backbone.adapter is not None:
        added = [value.numel() for name, value in learner.params.items() if name.startswith(ADAPTER)]
        tell(f"Adapter: {adapter.kind}, {sum(added):,} weights in {len(added)} tensor(s).")
    if algorithm.twice_differentiable and not packed:
        tell("Attention: the plain form, since this algorithm differentiates twice and the fused one cannot.")
    return learner


def _with_untouched(trained: Learner, start: Learner, algorithm: Algorithm) -> Learner:
    """Return a trained learner with the backbone's weights that it started from, where a task may go back to them."""
    may = getattr(algorithm, "go_back", False) and getattr(algorithm, "head", "") != "prototypes"
    if not may or type(trained) is not Learner or start.backbone.adapter is not None:
        return replace(trained, untouched=None)
    moved = {n: start.params[n].detach() for n, v in trained.params.items() if n.startswith(BACKBONE)}
    moved = {n: value for n, value in moved.items() if not torch.equal(value, trained.params[n])}
    return replace(trained, untouched=moved or None)


def _tell_suite(suite: TaskSuite, tell: Tell) -> None:
    shared = suite.overlap()
    if shared:
        tell(f"Warning: {len(shared)} text(s) of meta-test also stand in meta-train, such as {shared[0][:80]!r}.")
    tell(f"{suite.name}: " + ", ".join(f"meta-{split} {_size(suite[split])}" for split in SPLITS))


def replace_config(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a configuration with some values changed, by dotted key."""
    if not overrides:
        return config
    tree = config.plain()
    return load_config(None, {**_flat(tree), **overrides})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _kind(suite: TaskSuite) -> str:
    """Return what kind a suite's tasks are of.

    Raises:
        DataError: of several.
    """
    kinds = sorted({task.kind for split in SPLITS for task in suite[split]})
    if len(kinds) > 1:
        raise DataError(
            f"The suite mixes tasks of the kinds {listing(kinds)}.",
            "One run learns tasks of one kind.",
            "Train a run for each kind, from tasks that are read with the same --kind.",
        )
    return kinds[0] if kinds else "classification"


def require_served(kind: Kind, name: str, algorithm: Algorithm) -> None:
    """Refuse an algorithm that a kind of task has no use for.

    Raises:
        ConfigError: it tells labels apart, and the kind has none.
    """
    if kind.learner.labelled or _served(kind, algorithm):
        return
    able = [other for other in ALGORITHMS if _served(kind, new_algorithm(other))]
    raise ConfigError(
        f"The algorithm '{name}' tells labels apart, and tasks of the kind {kind.learner.kind} have none.",
        f"For these there are: {listing(able)}.",
        f"Choose one, such as --algorithm {able[0]}.",
    )


def _served(kind: Kind, algorithm: Algorithm) -> bool:
    """Tell whether an algorithm takes gradient steps that need no labels, nor a head where the kind has none."""
    if not isinstance(algorithm, InnerLoop) or algorithm.head_start != "shared":
        return False
    return kind.learner.parts > 0 or algorithm.adapts != "head"


def _validation(suite: TaskSuite, config: Config, kind: Kind) -> list[Any]:
    """Draw the validation episodes; narrower ones where the tasks have fewer labels."""
    if not suite.validation or not config.training.validate_every:
        return []
    most = max(len(task.labels) for task in suite.validation)
    ways = config.validation.ways
    shape: EpisodeSpec = (
        replace(config.validation, ways=max(2, min(ways, most))) if isinstance(ways, int) else config.validation
    )
    sampler = kind.schema.episodes(suite.validation, shape, _VALIDATION_SEED)
    return [sampler[index] for index in range(config.training.validation_episodes)]


def _digest(tasks: Sequence[Task]) -> str:
    """Return what identifies tasks, and reveals neither texts nor labels."""
    digests = [digest for task in tasks for digest in label_digests(task)]
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


def _texts(tasks: Sequence[Task]) -> list[str]:
    """Return the texts and labels' names of tasks."""
    texts = [text for task in tasks for text in task.corpus.texts(task.all_rows())]
    return texts + [name for task in tasks for name in label_texts(task.labels)]


def _size(tasks: Sequence[Task]) -> str:
    return f"{len(tasks)} task(s), {sum(len(t.labels) for t in tasks)} labels, {sum(len(t) for t in tasks):,} texts"


def require_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use here.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The device '{device}' cannot be used here: {reason}", mend="Use --device cpu.") from error


def public_config(config: Config) -> dict[str, Any]:
    """Return the configuration without where anything lies on this machine."""
    plain = config.plain()
    del plain["tasks"]
    plain["split"]["by"] = Path(plain["split"]["by"]).name
    plain["backbone"]["name"] = (
        Path(plain["backbone"]["name"]).name if Path(plain["backbone"]["name"]).exists() else plain["backbone"]["name"]
    )
    return plain


def evaluate(
    run: Run | str | Path, suite: TaskSuite, config: EvaluationConfig | None = None, tell: Tell = _quiet, **options: Any
) -> dict[str, Any]:
    """Measure a run on held-out tasks against the baselines; see `kshot.evaluation.evaluate`.

    Args:
        options: fields of `EvaluationConfig`, such as ``shots=(1, 5)``.
    """
    choose_matmul_route()
    loaded = run if isinstance(run, Run) else load_run(run)
    whole = Config(evaluation=config or EvaluationConfig())
    chosen = replace_config(whole, {f"evaluation.{name}": value for name, value in options.items()}).evaluation
    return evaluate_run(loaded, suite, chosen, tell)
