"""The report of an evaluation: its data as JSON, and one self-contained page to look at."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from kshot.errors import RunError
from kshot.evaluation import page
from kshot.evaluation.findings import Findings
from kshot.files import atomic_file, write_json

SCHEMA = 1
_PARTS = {"run": dict, "protocol": dict, "rows": list, "paired": list, "tasks": list, "labels": list, "confusion": list}
_PAGE = (
    page.head,
    page.cards,
    page.accuracies,
    page.differences,
    page.training,
    page.maps,
    page.confusions,
    page.exact_match,
    page.perplexity,
    page.by_type,
    page.by_task,
    page.by_label,
    page.provenance,
)


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder and return the latter's path."""
    text = render(report)
    write_json(folder / "report.json", _finite(report))
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "report.html"


def load_report(path: Path) -> dict[str, Any]:
    """Return the report in a file, or in a folder's ``report.json``.

    Raises:
        RunError: there is none, it is damaged, or a newer kshot wrote it.
    """
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"There is no report at '{path}'.", mend="Write one with: kshot evaluate")
    expected, again = "JSON as 'kshot evaluate' writes it is expected.", "Evaluate again, or restore the file."
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"The report '{path}' cannot be read: {error}.", expected, again) from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(schema, int):
        raise RunError(f"The file '{path}' is not a report: it names no schema.", expected, "Name another file.")
    if schema > SCHEMA:
        found = f"The report '{path}' has schema {schema}, from a newer kshot; this one reads up to {SCHEMA}."
        raise RunError(found, mend="Upgrade with: pip install --upgrade kshot")
    wrong = [name for name, kind in _PARTS.items() if not isinstance(report.get(name), kind)]
    if wrong:
        raise RunError(f"The report '{path}' is damaged: {', '.join(wrong)} is absent or of another type.", expected, again)
    return dict(report)


def render(report: Mapping[str, Any]) -> str:
    """Return the report as an HTML page that needs no other file."""
    found = Findings(report)
    body = "\n".join(part for part in (draw(found) for draw in _PAGE) if part)
    title = f"kshot report: {found.main or 'nothing measured'}, {report['protocol'].get('suite', '')}"
    package = files("kshot.evaluation")
    css = package.joinpath("report.css").read_text(encoding="utf-8")
    template = Template(package.joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), css=css, body=body)


def _finite(value: Any) -> Any:
    """Return the data with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
