"""How it learns to learn: one algorithm a file, one contract."""

from kshot.meta.algorithm import Adapted, Algorithm
from kshot.meta.cavia import CAVIA
from kshot.meta.maml import MAML
from kshot.meta.mamlpp import MAMLPlusPlus
from kshot.meta.matching import Matching
from kshot.meta.metasgd import MetaSGD
from kshot.meta.protonet import ProtoNet
from kshot.meta.registry import ALGORITHMS, new_algorithm
from kshot.meta.relation import Relation
from kshot.meta.reptile import Reptile
from kshot.meta.ridge import R2D2

__all__ = [
    "ALGORITHMS",
    "CAVIA",
    "MAML",
    "R2D2",
    "Adapted",
    "Algorithm",
    "MAMLPlusPlus",
    "Matching",
    "MetaSGD",
    "ProtoNet",
    "Relation",
    "Reptile",
    "new_algorithm",
]
