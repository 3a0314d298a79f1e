"""Selectors: which parameters an argument such as ``head``, ``top-2-layers`` or ``lora+bias`` names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches

from kshot.errors import ConfigError, listing, nearest

HEAD = "head."
BACKBONE = "backbone."
ADAPTER = "adapter."
ADAPTERS = {
    "lora": re.compile(r"^adapter\..+\.lora_[AB]\.weight$"),
    "ia3": re.compile(r"^adapter\..+\.ia3_l$"),
    "prompt": re.compile(r"^adapter\.prompt\.weight$"),
}
_LAYER = re.compile(r"\.(?:layer|layers|h|block|blocks)\.(\d+)\.")
_NAMED = ("all", "head", "body", "bias", "top-1-layers", *ADAPTERS)


def select(names: Iterable[str], selector: str) -> tuple[str, ...]:
    """Return the parameter names that a selector means, in their given order.

    Args:
        names: a learner's parameter names.
        selector: ``all``, ``head``, ``body`` (all but the head, adapters included), ``bias`` (biases and the head),
            ``top-K-layers`` (the last K layers with their adapters, and the head), ``lora``, ``ia3`` or ``prompt`` (the adapter
            of that kind and the head), ``re:PATTERN`` (names in which the regular expression is found); or several of these
            joined by ``+``, a pattern last, since it may hold a ``+`` itself.

    Raises:
        ConfigError: an unknown selector, or one that matches no parameter; near names are told.

    Example:
        >>> select(["backbone.layer.0.weight", "backbone.layer.0.bias", "head.weight"], "head+re:bias")
        ('backbone.layer.0.bias', 'head.weight')
    """
    listed = [name for name in names if name.startswith((HEAD, BACKBONE, ADAPTER))]
    chosen = {name for part in parts(selector) for name in _select(listed, part)}
    return tuple(name for name in listed if name in chosen)


def parts(selector: str) -> list[str]:
    """Return the selectors that ``+`` joins.

    Example:
        >>> parts("lora + head+re:a+b")
        ['lora', 'head', 're:a+b']
    """
    pattern = re.search(r"(?:^|\+)\s*(re:.*)", selector, re.DOTALL)
    plain = selector[: pattern.start()] if pattern else selector
    listed = [part.strip() for part in plain.split("+")] if plain or not pattern else []
    return [*listed, pattern[1]] if pattern else listed


def _select(names: Sequence[str], selector: str) -> Sequence[str]:
    """Return the names that a selector without ``+`` means: one or more."""
    if selector == "all":
        chosen = list(names)
    elif selector == "head":
        chosen = [name for name in names if name.startswith(HEAD)]
    elif selector == "body":
        chosen = [name for name in names if not name.startswith(HEAD)]
    elif selector == "bias":
        chosen = [name for name in names if name.endswith(".bias") or name.startswith(HEAD)]
    elif selector in ADAPTERS:
        return _adapter(names, selector)
    elif match := re.fullmatch(r"top-([1-9]\d*)-layers?", selector):
        return _top_layers(names, int(match[1]))
    elif selector.startswith("re:"):
        return _by_pattern(names, selector.removeprefix("re:"))
    else:
        raise ConfigError(
            f"No parameter selector '{selector}'.{nearest(selector, _NAMED)}",
            f"Expected all, head, body, bias, top-K-layers, {listing(ADAPTERS)} or re:PATTERN, or several joined by '+'.",
        )
    if not chosen:
        raise ConfigError(f"The selector '{selector}' matches no parameter.", f"Names look like '{names[0]}'.")
    return chosen


def _adapter(names: Sequence[str], kind: str) -> list[str]:
    found = [name for name in names if ADAPTERS[kind].search(name)]
    if not found:
        other = [each for each, pattern in ADAPTERS.items() if any(pattern.search(name) for name in names)]
        raise ConfigError(
            f"The selector '{kind}' finds no {kind} adapter: the learner has {other[0] if other else 'none'}.",
            mend=f"Add it with --set adapter.kind={kind}, or add_adapter(backbone, AdapterSpec('{kind}')) from Python.",
        )
    return [*found, *(name for name in names if name.startswith(HEAD))]


def _top_layers(names: Sequence[str], count: int) -> list[str]:
    layers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if not layers:
        raise ConfigError(
            f"The selector 'top-{count}-layers' finds no numbered layers in this backbone.",
            f"Its parameters are: {listing((name for name in names if not name.startswith(HEAD)), 3)}.",
            "Select some by name with re:PATTERN.",
        )
    first = max(0, max(layers.values()) + 1 - count)
    return [name for name in names if name.startswith(HEAD) or layers.get(name, -1) >= first]


def _by_pattern(names: Sequence[str], pattern: str) -> list[str]:
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise ConfigError(f"The selector 're:{pattern}' is not a regular expression: {error}.") from error
    if not found:
        near = _near(names, pattern)
        raise ConfigError(
            f"The selector 're:{pattern}' matches no parameter.",
            f"The nearest are {listing(near)}." if near else f"Names look like '{names[0]}'.",
        )
    return found


def _near(names: Sequence[str], pattern: str) -> list[str]:
    """Return up to three names that share the most nearly equal words with a pattern that matches none."""
    words = {word for name in names for word in name.split(".")}
    close = {near for word in re.findall(r"\w{3,}", pattern) for near in get_close_matches(word, words, 1)}
    shared = {name: len(close & set(name.split("."))) for name in names}
    likeness = {name: SequenceMatcher(None, pattern, name).ratio() for name in names if shared[name]}
    return sorted(likeness, key=lambda name: (-shared[name], -likeness[name]))[:3]
