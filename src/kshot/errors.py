"""Mistakes that a user can mend, each told as a sentence: what was found, what was expected, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KshotError(Exception):
    """A user's mistake or a missing thing. The command line prints it without a traceback and exits with status 2.

    Args:
        found: what was found, naming the file and line or the option.
        expected: what was expected instead.
        mend: what to do about it.
    """

    def __init__(self, found: str, expected: str = "", mend: str = "") -> None:
        self.found, self.expected, self.mend = found, expected, mend
        super().__init__(" ".join(part for part in (found, expected, mend) if part))


class DataError(KshotError, ValueError):
    """The labelled files are not what kshot can learn from."""


class ConfigError(KshotError):
    """An option or a key of a configuration file is wrong."""


class BackboneError(KshotError):
    """A pretrained model cannot be found or is of an unsuited kind."""


class RunError(KshotError):
    """A run or adapted-task folder is absent, incomplete, of another version, or in the way."""


class TrainingError(KshotError):
    """Training cannot go on, for instance since the loss is not a number."""


class MissingExtraError(KshotError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"The package '{package}', needed {purpose}, is not installed.",
            mend=f"Install it with: pip install 'kshot[{extra}]'",
        )


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest candidate, or an empty string when none is close."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def listing(names: Iterable[str], most: int = 12) -> str:
    """Join names for a sentence, cutting a long list with a count of the rest."""
    items = list(names)
    shown = ", ".join(items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside, and what was done is kept. The message says how to go on."""
