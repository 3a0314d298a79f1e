"""What the figures of a report say, in words: the numbers, the verdicts and the headline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
Setting = tuple[Any, Any, Any]  # suite, ways, shots


def number(value: object) -> float:
    """Return a figure of the report; NaN for an absent one."""
    return float(value) if isinstance(value, int | float) else math.nan


def rank(value: object, absent: float = 2) -> float:
    """Return a share to sort by, with the absent ones last (or, at -1, first)."""
    return absent if math.isnan(number(value)) else number(value)


def percent(value: float, ci95: float = math.nan) -> str:
    """Return a share and its interval in percent, such as ``95.1 ± 0.4``."""
    if math.isnan(value):
        return "–"
    return f"{100 * value:.1f}" + ("" if math.isnan(ci95) else f" ± {100 * ci95:.1f}")


def points(difference: float, ci95: float = math.nan, sign: bool = True) -> str:
    """Return a difference of shares in percentage points, such as ``+1.4 ± 0.3``."""
    if math.isnan(difference):
        return "–"
    # a difference that rounds to its interval would not show on which side of zero the interval ends
    places = 2 if f"{100 * abs(difference):.1f}" == f"{100 * ci95:.1f}" else 1
    size = f"{100 * abs(difference):.{places}f}"
    mark = ("−" if difference < 0 else "+") if sign and float(size) else ""
    return f"{mark}{size}" + ("" if math.isnan(ci95) else f" ± {100 * ci95:.{places}f}")


def seconds(value: float) -> str:
    """Return a duration as a person says it."""
    if math.isnan(value):
        return "–"
    if value < 0.001:
        return "< 1 ms"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min"


def count(many: object, noun: str) -> str:
    """Return a number with its noun, such as ``1 shot`` or ``5 shots``."""
    return f"{many:,} {noun}{'' if many == 1 else 's'}" if isinstance(many, int) else f"? {noun}s"


def verdict(difference: float, ci95: float) -> str:
    """Return ``better`` or ``worse`` where the interval excludes zero, else ``unclear``; ``unknown`` without an interval."""
    if math.isnan(difference) or math.isnan(ci95):
        return "unknown"
    if abs(difference) <= ci95 or difference == 0:
        return "unclear"
    return "better" if difference > 0 else "worse"


class Findings:
    """What a report says about its first method, the meta-trained one.

    Args:
        report: the report's data.
    """

    def __init__(self, report: Row) -> None:
        self.report = report
        self.metric = str(report.get("protocol", {}).get("metric", "accuracy"))
        self.kind = str(report.get("protocol", {}).get("kind", "classification"))
        self.rows: list[Row] = list(report["rows"])
        self.main = str(self.rows[0]["method"]) if self.rows else ""
        places = list(dict.fromkeys(setting(row)[:2] for row in self.rows))
        self.settings = sorted({setting(row) for row in self.rows}, key=lambda key: (places.index(key[:2]), key[2] or 0))
        self._varied = [len({place[part] for place in places}) > 1 for part in (0, 1)]
        # the most shots of the first suite: where a few-shot method has the least to gain over its baselines
        known = [key for key in self.settings if not math.isnan(number(self.row(self.main, key).get("accuracy")))]
        self.chosen = next((key for key in reversed(known) if key[:2] == known[0][:2]), None)
        self.rest = [key for key in known if key != self.chosen]
        others = dict.fromkeys(str(row["method"]) for row in self.rows if row["method"] != self.main)
        self.methods = [self.main] if self.rows else []
        self.methods += sorted(others, key=lambda method: -rank(self.row(method, self.chosen).get("accuracy"), absent=-1))

    @property
    def of_words(self) -> str:
        """What figures by label count, where that is not texts."""
        return " of words" if self.kind == "tagging" else ""

    @property
    def title(self) -> str:
        """What the methods are measured by, as a heading."""
        return self.metric[0].upper() + self.metric[1:]

    def row(self, method: str, key: Setting | None) -> Row:
        """Return a method's figures in a setting; empty where it was not measured."""
        return next((row for row in self.rows if row["method"] == method and setting(row) == key), {})

    def of_main(self, part: str) -> list[Row]:
        """Return a part's rows of the main method at the headline's number of shots."""
        shots = self.chosen[2] if self.chosen else None
        return [row for row in self.report.get(part) or () if row["method"] == self.main and row["shots"] == shots]

    def name(self, key: Setting) -> str:
        """Return what to call a setting, with its ways and suite only where those vary."""
        suite, ways, shots = key
        return ", ".join(
            [count(shots, "shot")] + [f"{ways}-way"] * self._varied[1] + [str(suite)] * self._varied[0],
        )

    def pairs(self, key: Setting) -> list[Row]:
        """Return the differences to the baselines in a setting, the hardest to beat first."""
        found = [row for row in self.report["paired"] if row["method"] == self.main and setting(row) == key]
        found = [row for row in found if not math.isnan(number(row.get("difference")))]
        return sorted(found, key=lambda row: number(row["difference"]))

    def headline(self) -> str:
        """Return the report's one sentence: what was reached, and whether that is better than the best baseline."""
        if self.chosen is None:
            return f"No {self.metric} was measured."
        return f"{self.main} reaches {self.reached(self.chosen)}"

    def lead(self) -> list[str]:
        """Return the sentences below the headline: the other settings, and a caution where the comparison is thin."""
        if self.chosen is None:
            return []
        pairs, most = self.pairs(self.chosen), self.row(self.main, self.chosen).get("episodes")
        full = [row for row in pairs if row.get("episodes") == most]
        lines = []
        if full and full[0] is not pairs[0]:
            gain = points(number(full[0]["difference"]), number(full[0].get("ci95")))
            words = "" if self._clear(full[0]) else "; the interval includes 0"
            lines.append(
                f"Of the baselines that saw all {most} episodes, the best is {full[0]['baseline']}: {gain} points{words}."
            )
        return lines + [f"It reaches {self.reached(key)}" for key in self.rest]

    def _clear(self, pair: Row) -> bool:
        return verdict(number(pair["difference"]), number(pair.get("ci95"))) in {"better", "worse"}

    def reached(self, key: Setting) -> str:
        """Return the accuracy in a setting and its comparison with the best baseline, up to the full stop."""
        row = self.row(self.main, key)
        what = "" if self.metric == "accuracy" else f" {self.metric}"
        reached = f"{percent(number(row.get('accuracy')), number(row.get('ci95')))} %{what} at {self.name(key)}"
        pairs = self.pairs(key)
        if not pairs:
            return reached + self._unpaired(key)
        pair = pairs[0]
        difference, ci95, best = number(pair["difference"]), number(pair.get("ci95")), f"the best baseline, {pair['baseline']}"
        gain, few = points(difference, ci95), ""
        if pair.get("episodes") and pair["episodes"] != row.get("episodes"):
            few = f" on the {count(pair['episodes'], 'episode')} that both saw"
        return (
            reached
            + {
                "better": f": {gain} points over {best}{few}.",
                "worse": f": worse than {best}, by {points(difference, ci95, sign=False)} points{few}.",
                "unclear": f": no clear difference from {best} ({gain} points{few}; the 95 % interval includes 0).",
                "unknown": f": {gain} points against {best}{few}, without an interval, so it may be chance.",
            }[verdict(difference, ci95)]
        )

    def _unpaired(self, key: Setting) -> str:
        others = [row for row in self.rows if setting(row) == key and row["method"] != self.main]
        others = [row for row in others if not math.isnan(number(row.get("accuracy")))]
        if not others:
            return ". No baseline was measured beside it, so what meta-training gains is unknown."
        best = max(others, key=lambda row: number(row["accuracy"]))
        value = percent(number(best["accuracy"]), number(best.get("ci95")))
        return f"; the best baseline, {best['method']}, reaches {value} %, not compared episode by episode."


def setting(row: Row) -> Setting:
    """Return the suite, ways and shots that a row was measured with."""
    return row.get("suite"), row.get("ways"), row.get("shots")
