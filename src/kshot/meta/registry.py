"""Algorithms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kshot.errors import ConfigError, listing, nearest
from kshot.meta.algorithm import Algorithm
from kshot.meta.cavia import CAVIA
from kshot.meta.maml import MAML
from kshot.meta.mamlpp import MAMLPlusPlus
from kshot.meta.matching import Matching
from kshot.meta.metasgd import MetaSGD
from kshot.meta.protonet import ProtoNet
from kshot.meta.relation import Relation
from kshot.meta.reptile import Reptile
from kshot.meta.ridge import R2D2


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
    "matching": Entry(Matching, ways=20, tasks_per_step=1),
    "relation": Entry(Relation, ways=20, tasks_per_step=1),
    "r2d2": Entry(R2D2, ways=20, tasks_per_step=1),
    "maml": Entry(MAML),
    "fomaml": Entry(MAML, {"hypergradient": "first-order"}),
    "maml++": Entry(MAMLPlusPlus, {"first_order_steps": 5}),
    "metasgd": Entry(MetaSGD),
    "anil": Entry(MAML, {"adapts": "head"}),
    "boil": Entry(MAML, {"adapts": "body", "head_start": "learned"}),
    "protomaml": Entry(MAML, {"head_start": "prototypes"}),
    # a pull that ten steps come near to the end of, since the implicit gradient is that of an inner loop which has arrived
    "imaml": Entry(MAML, {"hypergradient": "implicit", "l2_to_start": 0.2, "inner_steps": 10, "inner_lr": 0.1, "head_lr": 3.0}),
    "cavia": Entry(CAVIA),
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
        >>> new_algorithm("anil", {"inner_steps": 10}).adapts
        'head'
    """
    if name not in ALGORITHMS:
        raise ConfigError(
            f"No algorithm '{name}'.{nearest(name, ALGORITHMS)}", f"There are: {listing(ALGORITHMS, len(ALGORITHMS))}."
        )
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
    wanted: dict[type, tuple[type, ...]] = {float: (float, int), type(None): (int, type(None))}
    kinds = wanted.get(type(default), (type(default),))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("empty" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{where} is {value!r}.", f"Expected {names}, such as {default!r}.")
