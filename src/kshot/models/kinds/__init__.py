"""The kinds of task, one a module: what its files hold, what its learner makes of them, and what it is measured by."""

from __future__ import annotations

from dataclasses import dataclass

from kshot.errors import ConfigError, listing, nearest
from kshot.models.kinds.generation import GenerationSchema, GenerativeLearner, LanguageLearner, LanguageSchema
from kshot.models.kinds.masking import MaskedLearner, MaskedSchema
from kshot.models.kinds.pair import PairLearner, PairSchema
from kshot.models.kinds.qa import QALearner, QASchema
from kshot.models.kinds.relation import RelationLearner, RelationSchema
from kshot.models.kinds.tagging import TaggingLearner, TaggingSchema
from kshot.models.learner import Learner
from kshot.tasks.schema import CLASSIFICATION, Schema


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Args:
        schema: how files are read as its examples, and how episodes are drawn.
        learner: what learns them.
        names: whether the name of a label may be an example of it.
        scoped: whether a text may be out of a task's scope, so that a run calibrates its confidence and a threshold.
    """

    schema: Schema
    learner: type[Learner]
    names: bool = False
    scoped: bool = False


KINDS: dict[str, Kind] = {
    "classification": Kind(CLASSIFICATION, Learner, names=True, scoped=True),
    "lm": Kind(LanguageSchema(), LanguageLearner),
    "mlm": Kind(MaskedSchema(), MaskedLearner),
    "pair": Kind(PairSchema(), PairLearner, scoped=True),
    "qa": Kind(QASchema(), QALearner),
    "relation": Kind(RelationSchema(), RelationLearner, scoped=True),
    "seq2seq": Kind(GenerationSchema(), GenerativeLearner),
    "tagging": Kind(TaggingSchema(), TaggingLearner),
}


def kind_of(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in KINDS:
        raise ConfigError(f"No kind of task '{name}'.{nearest(name, KINDS)}", f"There are: {listing(KINDS)}.")
    return KINDS[name]
