"""Drawing with matplotlib into inline SVG: text stays text, colours follow the page's light or dark scheme."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE, PANEL, ACCENT, MISTAKE = "#1d2126", "#626a73", "#e3e0d9", "#ffffff", "#2c5f9e", "#c2512f"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PANEL: "panel", ACCENT: "accent", MISTAKE: "mistake"}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw alike on every machine, whatever its matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # matplotlib's own font lacks most scripts; the browser, which draws the letters, does not
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9, "axes.formatter.useoffset": False})
        yield


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that many points with one empty pane over it, measured in points from its top left."""
    figure = Figure(figsize=(width / 72, height / 72))
    figure.patch.set_visible(False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def pane(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes at a place measured in points from the figure's top left, with a light horizontal grid."""
    across, down = figure.get_size_inches() * 72
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.patch.set_visible(False)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=8.5, pad=5)
    return axes


def write(axes: Axes, x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
    """Write a text that may be data: a dollar sign in it starts no formula."""
    axes.text(x, y, text, color=colour, parse_math=False, **style)


def text_width(text: str, size: float) -> float:
    """Return about how many points wide a browser draws a text of that font size."""
    return size * sum(1.0 if unicodedata.east_asian_width(sign) in "WF" else 0.56 for sign in text)


def fit(text: str, size: float, room: float) -> str:
    """Return the text on one line, cut with an ellipsis where it is wider than ``room`` points."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def inline(figure: Figure, name: str, description: str, tips: Mapping[str, str] | None = None, shrink: float = 0.8) -> str:
    """Return a figure as an SVG element.

    Args:
        figure: what was drawn.
        name: what its ids begin with, so that several plots stand on one page.
        description: what a screen reader says.
        tips: texts to show over the artists of those gids.
        shrink: how small a narrow window may draw it before it scrolls.
    """
    buffer = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        for child in list(element):
            if _local(child.tag) in {"metadata", "style"}:
                element.remove(child)
    # only what is referred to keeps its id
    linked = set(re.findall(r'(?:href="|url\()#([^")]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        _tidy(element, name, linked, tips or {})
    box = root.attrib["viewBox"]
    width = float(box.split()[2])
    size = f"max-width: {1.45 * width:.0f}px; min-width: {shrink * width:.0f}px"
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": box,
        "role": "img",
        "aria-label": description,
        "style": f"{size}; font-family: {_FONTS}; stroke-linejoin: round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element, name: str, linked: set[str], tips: Mapping[str, str]) -> None:
    element.tail = None
    if element.tag not in {"text", "title"}:
        element.text = None
    identity = element.attrib.pop("id", "")
    if identity in linked:
        element.attrib["id"] = f"{name}-{identity}"
    if identity in tips:
        title = ElementTree.Element("title")
        title.text = tips[identity]
        element.insert(0, title)
    for key in {"href", "clip-path"} & set(element.attrib):
        element.attrib[key] = element.attrib[key].replace("#", f"#{name}-")
    if "style" in element.attrib:
        style = re.sub(r"font-family: [^;]+;? ?", "", element.attrib["style"])
        element.attrib["style"] = re.sub(r"#[0-9a-f]{6}", lambda found: _themed(found.group()), style)


def _local(name: str) -> str:
    """Return an XML name without its namespace, which HTML does not have."""
    return name.rpartition("}")[2]


def _themed(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]}, {colour})" if colour in _VARIABLES else colour
