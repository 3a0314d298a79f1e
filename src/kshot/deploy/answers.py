"""What an adapted task says of a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """A support example that lies near a text.

    Args:
        text, label: the example.
        similarity: the cosine of the two texts' vectors.
    """

    text: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Prediction:
    """What an adapted task says of a text.

    Args:
        label: the most probable label.
        probability: of that label.
        probabilities: of every label.
        reasons: the nearest support examples, nearest first.
        in_scope: whether the text seems to belong to any of the labels; None where the run has no threshold.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    reasons: tuple[Reason, ...] = ()
    in_scope: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain values, rounded for reading."""
        return {
            "label": self.label,
            "probability": round(self.probability, 4),
            "probabilities": {label: round(value, 4) for label, value in self.probabilities.items()},
            "in_scope": self.in_scope,
            "nearest": [{**asdict(reason), "similarity": round(reason.similarity, 4)} for reason in self.reasons],
        }


@dataclass(frozen=True)
class Entity:
    """An entity found in a text.

    Args:
        text, type: what it is.
        start, end: its characters in the text.
        probability: of the least sure of its words.
    """

    text: str
    type: str
    start: int
    end: int
    probability: float
