"""What learns: pretrained backbones, heads, and learners that are pure in their parameters."""

from kshot.models.adapters import Adapter, AdapterSpec, add_adapter
from kshot.models.backbones import Backbone, BackboneSpec, load_backbone
from kshot.models.batch import Batch, EncodedEpisode
from kshot.models.learner import Learner, Params, new_learner

__all__ = [
    "Adapter",
    "AdapterSpec",
    "Backbone",
    "BackboneSpec",
    "Batch",
    "EncodedEpisode",
    "Learner",
    "Params",
    "add_adapter",
    "load_backbone",
    "new_learner",
]
