"""One configuration for every command: dataclasses, read from YAML, changed by flags."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from kshot.errors import ConfigError, listing, nearest
from kshot.evaluation import EvaluationConfig
from kshot.meta import ALGORITHMS, Algorithm, new_algorithm
from kshot.models import AdapterSpec, BackboneSpec
from kshot.tasks import EpisodeSpec, ReadOptions, SplitSpec, Task
from kshot.training import TrainingConfig
from kshot.training.pretraining import PretrainingConfig


@dataclass(frozen=True)
class EpisodeOptions:
    """The shape of training episodes; see `EpisodeSpec`.

    Args:
        ways: None for as many as the algorithm usually takes, as far as the tasks have them.
    """

    ways: int | tuple[int, int] | None = None
    shots: int | tuple[int, int] = 5
    queries: int = 5
    imbalance: bool = False

    def spec(self, algorithm: str, tasks: Sequence[Task]) -> EpisodeSpec:
        """Return the episodes' shape for an algorithm and the tasks that it trains on."""
        most = max((len(task.labels) for task in tasks), default=2)
        ways = max(2, min(ALGORITHMS[algorithm].ways, most)) if self.ways is None else self.ways
        return EpisodeSpec(ways, self.shots, self.queries, self.imbalance)


@dataclass(frozen=True)
class Config:
    """Everything that a command may be told.

    Args:
        tasks: the sources of tasks; see `kshot.tasks.load_tasks`.
        kind: what kind of tasks they are; see `kshot.models.kinds`.
        read: columns and limits of the files.
        split: how the tasks are divided.
        backbone: the pretrained encoder or decoder.
        adapter: the small weights added to it.
        algorithm: ``name`` and hyperparameters that differ from the algorithm's defaults.
        episodes: the shape of training episodes.
        validation: that of validation episodes.
        training: the outer loop.
        pretraining: how a language model goes on learning (`kshot pretrain`).
        evaluation: the protocol.
        label_names: whether a label's name is one more support example of it, where names say something.
        trim_vocabulary: keep the word vectors of the tokens alone that meta-training's and meta-validation's texts have; see
            `kshot.models.trimming`.
        device: ``cpu`` or ``cuda``.
        precision: of meta-training's products: ``fp32``, or ``bf16``, which rounds their factors.
        fast: use what is faster and the same: the packed forward pass where the backbone has one, and the route of fp32
            products that a probe finds exact.
    """

    tasks: tuple[str, ...] = ()
    kind: str = "classification"
    read: ReadOptions = field(default_factory=ReadOptions)
    split: SplitSpec = field(default_factory=SplitSpec)
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "protonet"})
    episodes: EpisodeOptions = field(default_factory=EpisodeOptions)
    validation: EpisodeSpec = field(default_factory=lambda: EpisodeSpec(ways=5, shots=1, queries=5))
    training: TrainingConfig = field(default_factory=TrainingConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    label_names: bool = True
    trim_vocabulary: bool = False
    device: str = "cpu"
    precision: str = "fp32"
    fast: bool = True

    def new_algorithm(self) -> tuple[str, dict[str, Any], Algorithm]:
        """Return the algorithm's name, its hyperparameters, and the algorithm."""
        options = dict(self.algorithm)
        name = options.pop("name", "protonet")
        if not isinstance(name, str):
            raise ConfigError(f"algorithm.name is {name!r}.", f"Expected one of {listing(ALGORITHMS)}.")
        return name, options, new_algorithm(name, options)

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        return asdict(self)


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration.

    Args:
        path: a YAML file; None for the defaults.
        overrides: values by dotted key, such as ``{"training.lr": 1e-4}``; they win over the file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (the nearest is named), or a value of the wrong type.

    Example:
        >>> load_config(overrides={"training.steps": 7}).training.steps
        7
    """
    tree = {} if path is None else _read_yaml(Path(path))
    for key, value in (overrides or {}).items():
        _put(tree, key, value)
    where = "" if path is None else f"{path}: "
    _check_keys(Config, tree, where)
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(where + "; ".join(_sentences(error))) from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` texts as overrides; the value is read as YAML.

    Example:
        >>> parse_assignments(["training.lr=1e-4", "episodes.ways=[5, 10]"])
        {'training.lr': 0.0001, 'episodes.ways': [5, 10]}
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set '{assignment}' has no '='.", "Expected key=value, such as --set training.lr=1e-4")
        try:
            overrides[key.strip()] = _parse(value)
        except yaml.YAMLError:
            overrides[key.strip()] = value
    return overrides


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: plain YAML 1.1 takes ``1e-4`` for a word, and ``off`` for false."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"No such configuration file: '{path}'.{nearest(path.name, siblings)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not readable as YAML ({getattr(error, 'problem', None) or error}).") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a YAML {type(value).__name__}.", f"Expected sections: {listing(_names(Config))}.")
    return value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"'{key}' cannot be set: '{section}' is a value, not a section.")
        tree = below
    tree[last] = value


def _names(kind: Any) -> list[str]:
    return [item.name for item in fields(kind)]


def _check_keys(kind: Any, tree: Mapping[str, Any], where: str, prefix: str = "") -> None:
    hints = get_type_hints(kind)
    for key, value in tree.items():
        if key not in hints:
            known = _names(kind)
            raise ConfigError(
                f"{where}unknown key '{prefix}{key}'.{nearest(str(key), known)}",
                f"Known here: {listing(known, 20)}.",
            )
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{where}'{prefix}{key}' is {value!r}.", f"Expected a section with {listing(_names(hints[key]))}."
                )
            _check_keys(hints[key], value, where, f"{prefix}{key}.")


def _sentences(error: ValidationError) -> list[str]:
    """Return one sentence a wrong key; a key of several allowed types is told once."""
    wrong: dict[str, Any] = {}
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        kind: Any = Config
        key: list[str] = []
        for part in parts:
            if not is_dataclass(kind):
                break
            key.append(part)
            kind = get_type_hints(kind)[part]
        wrong.setdefault(".".join(key), (item["input"], kind))
    return [f"{key} is {value!r}. Expected {_type_name(kind)}." for key, (value, kind) in wrong.items()]


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "nothing (null)"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        inner = [_type_name(argument) for argument in arguments if argument is not Ellipsis]
        return f"a list of {inner[0]}" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a section"}
    return names.get(origin or kind, str(kind))
