"""Algorithms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kshot.errors import ConfigError, listing, nearest
from kshot.meta.algorithm import Algorithm
from kshot.meta.maml import MAML
from kshot.meta.protonet import ProtoNet
from kshot.meta.reptile import Reptile


@dataclass(frozen=True)
class Entry:
    """A named algorithm.

    Args:
        build: its class.
        preset: the hyperparameters that the name stands for.
        ways: labels of its usual training episodes (metric methods learn more from wide ones).
        tasks_per_step: episodes of its usual meta-update.
    """

    build: Callable[..., Algorithm]
    preset: Mapping[str, Any] = field(default_factory=dict)
    ways: int = 5
    tasks_per_step: int = 4

    def options(self) -> dict[str, Any]:
        """Return the hyperparameters with their defaults."""
        kind: Any = self.build
        return {item.name: item.default for item in fields(kind)} | dict(self.preset)


ALGORITHMS: dict[str, Entry] = {
    "protonet": Entry(ProtoNet, ways=20, tasks_per_step=1),
    "maml": Entry(MAML),
    "fomaml": Entry(MAML, {"order": 1}),
    "anil": Entry(MAML, {"adapts": "head"}),
    "reptile": Entry(Reptile),
}


def new_algorithm(name: str, options: Mapping[str, Any] | None = None) -> Algorithm:
    """Return the algorithm of that name.

    Args:
        name: one of `ALGORITHMS`.
        options: hyperparameters that differ from the defaults.

    Raises:
        ConfigError: an unknown name or hyperparameter (the nearest is named), or a value of the wrong type.

    Example:
        >>> new_algorithm("anil", {"inner_steps": 10})
        MAML(inner_lr=0.01, head_lr=10.0, inner_steps=10, adapt_steps=None, order=2, adapts='head')
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"No algorithm '{name}'.{nearest(name, ALGORITHMS)}", f"There are: {listing(ALGORITHMS)}.")
    entry = ALGORITHMS[name]
    known = entry.options()
    for option, value in (options or {}).items():
        if option not in known:
            raise ConfigError(
                f"The algorithm '{name}' has no hyperparameter '{option}'.{nearest(option, known)}",
                f"It has: {listing(known)}.",
            )
        _require_type(f"algorithm.{option}", value, known[option])
    return entry.build(**{**entry.preset, **(options or {})})


def _require_type(where: str, value: Any, default: Any) -> None:
    wanted: tuple[type, ...] = {float: (float, int), int: (int,), str: (str,), type(None): (int, type(None))}[type(default)]
    if not isinstance(value, wanted) or isinstance(value, bool):
        names = " or ".join("empty" if kind is type(None) else kind.__name__ for kind in wanted)
        raise ConfigError(f"{where} is {value!r}.", f"Expected {names}, such as {default!r}.")
