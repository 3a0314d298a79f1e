"""What labels are called, as texts that a language model understands."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SEPARATORS = re.compile(r"[\s_/.:|\\+-]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_MEANINGFUL = re.compile(r"[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # two letters, or one of a script of words


def label_texts(labels: Sequence[str]) -> tuple[str, ...]:
    """Return label names as readable texts, empty where the names say nothing.

    They say nothing where most have no word, and where two differ by their digits only, as numbered classes do.

    Example:
        >>> label_texts(["card_arrival", "PlayMusic", "sci.med"])
        ('card arrival', 'Play Music', 'sci med')
        >>> label_texts(["class_1", "class_2"])
        ()
    """
    texts = tuple(" ".join(_SEPARATORS.sub(" ", _CAMEL.sub(" ", label)).split()) for label in labels)
    without_digits = {re.sub(r"\d+", "", text).strip() for text in texts}
    meaningful = sum(bool(_MEANINGFUL.search(text)) for text in texts)
    return texts if len(without_digits) == len(texts) and 2 * meaningful > len(texts) and all(texts) else ()
