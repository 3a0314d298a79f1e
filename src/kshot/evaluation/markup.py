"""HTML from Python: every text is escaped unless it is HTML already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_MOST = 400  # rows before a table is cut


class Html(str):
    """Text that is HTML already. Every other text is escaped by `tag` and `join`."""


def tag(name: str, *content: object, **attributes: str) -> Html:
    """Return an element. A trailing underscore of an attribute's name is dropped, another one is a hyphen.

    Example:
        >>> tag("p", "1 < 2", class_="lead")
        '<p class="lead">1 &lt; 2</p>'
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Iterable[object]) -> Html:
    """Return the parts one after another, escaped unless they are HTML."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in content))


def section(title: str, about: str, *content: Html) -> Html:
    """Return a titled part of the page with a line about how to read it."""
    return tag("section", tag("h2", title), *([tag("p", about, class_="about")] if about else []), *content)


def figure(svg: str, caption: str, title: str = "", legend: Html | None = None, beside: bool = False) -> Html:
    """Return a plot with its caption, which stands beside it where there is room for that."""
    drawn = tag("div", Html(svg), class_="scroll")
    parts = [tag("div", tag("h3", title) if title else "", drawn, legend or Html()), tag("figcaption", caption)]
    return tag("figure", *parts, **({"class_": "beside"} if beside else {}))


def folded(summary: str, *content: Html, is_open: bool = False) -> Html:
    """Return content below a line that folds it away."""
    return tag("details", tag("summary", summary), *content, **({"open": ""} if is_open else {}))


def first(figures: Sequence[Html], noun: str, many: int) -> list[Html]:
    """Return the first figures, and the rest folded away."""
    rest = figures[many:]
    return [*figures[:many], *([folded(f"More {noun} ({len(rest)})", *rest)] if rest else [])]


def table(
    corner: str,
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[object]]],
    groups: Sequence[str] = ("",),
    marked: str = "",
) -> Html:
    """Return a table in a box that scrolls sideways.

    Args:
        corner: what the first column holds.
        heads: the other columns; all of them again for every group.
        rows: the first cell and the others.
        groups: titles above the columns.
        marked: the first cell of the row that the page is about.
    """
    top = [tag("th", corner, scope="col", class_="text", rowspan="2" if groups != ("",) else "1")]
    below = [tag("th", head, scope="col") for _ in groups for head in heads]
    lines = [tag("tr", *top, *below)]
    if groups != ("",):
        above = [tag("th", group, scope="colgroup", class_="group", colspan=str(len(heads))) for group in groups]
        lines = [tag("tr", *top, *above), tag("tr", *below)]
    body = []
    for name, cells in rows[:_MOST]:
        line = [tag("th", name, scope="row"), *(tag("td", cell) for cell in cells)]
        body.append(tag("tr", *line, **({"class_": "main"} if name == marked else {})))
    box = tag(
        "div",
        tag("table", tag("thead", *lines), tag("tbody", *body)),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=f"Table by {corner.lower()}",
    )
    cut = f"The other {len(rows) - _MOST} rows are in report.json." if len(rows) > _MOST else ""
    return join([box, tag("p", cut, class_="about")]) if cut else box
