"""How it learns to learn: one algorithm a file, one contract."""

from kshot.meta.algorithm import Adapted, Algorithm
from kshot.meta.maml import MAML
from kshot.meta.protonet import ProtoNet
from kshot.meta.registry import ALGORITHMS, new_algorithm
from kshot.meta.reptile import Reptile

__all__ = ["ALGORITHMS", "MAML", "Adapted", "Algorithm", "ProtoNet", "Reptile", "new_algorithm"]
