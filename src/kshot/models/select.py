"""Selectors: which parameters an argument such as ``head`` or ``top-2-layers`` names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kshot.errors import ConfigError, nearest

HEAD = "head."
BACKBONE = "backbone."
_LAYER = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")
_NAMED = ("all", "head", "body", "bias", "top-1-layers")


def select(names: Iterable[str], selector: str) -> tuple[str, ...]:
    """Return the parameter names that a selector means.

    Args:
        names: a learner's parameter names.
        selector: ``all``, ``head``, ``body`` (all but the head), ``bias`` (biases and the head), ``top-K-layers`` (the last K
            layers and the head), or ``re:PATTERN`` (names in which the regular expression is found).

    Raises:
        ConfigError: an unknown selector, or one that matches no parameter.
    """
    listed = [name for name in names if name.startswith((HEAD, BACKBONE))]
    if selector == "all":
        chosen = listed
    elif selector == "head":
        chosen = [name for name in listed if name.startswith(HEAD)]
    elif selector == "body":
        chosen = [name for name in listed if not name.startswith(HEAD)]
    elif selector == "bias":
        chosen = [name for name in listed if name.endswith(".bias") or name.startswith(HEAD)]
    elif match := re.fullmatch(r"top-([1-9]\d*)-layers?", selector):
        chosen = _top_layers(listed, int(match[1]))
    elif selector.startswith("re:"):
        chosen = _by_pattern(listed, selector.removeprefix("re:"))
    else:
        raise ConfigError(
            f"No parameter selector '{selector}'.{nearest(selector, _NAMED)}",
            "Expected all, head, body, bias, top-K-layers or re:PATTERN.",
        )
    if not chosen:
        raise ConfigError(f"The selector '{selector}' matches no parameter.", f"Names look like '{listed[0]}'.")
    return tuple(chosen)


def _top_layers(names: list[str], count: int) -> list[str]:
    layers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if not layers:
        raise ConfigError(f"The selector 'top-{count}-layers' finds no numbered layers in this backbone.")
    first = max(0, max(layers.values()) + 1 - count)
    return [name for name in names if name.startswith(HEAD) or layers.get(name, -1) >= first]


def _by_pattern(names: list[str], pattern: str) -> list[str]:
    try:
        return [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise ConfigError(f"The selector 're:{pattern}' is not a regular expression: {error}.") from error
