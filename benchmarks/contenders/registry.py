"""All contenders by name, and which of them enter a workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from contenders import plain
from contenders.peers import PEERS
from contenders.workload import Attention, Workload, canonical, make_tasks, new_model

Step = Callable[[], dict[str, Tensor]]
"""One meta-step; it answers with the meta-gradient by parameter name."""

OURS = "kshot"
_PLAIN = {"plain": plain.step, "plain-cached": plain.cached_step}


def build(name: str, workload: Workload, precision: str = "fp32", second: str = "eager") -> Step:
    """Return a contender's meta-step, ready to be called.

    Args:
        name: ``kshot``, ``kshot-checkpointed`` and so on by hypergradient, ``plain``, ``plain-cached``, or a peer's.
        second: the attention of plain models that are differentiated twice, ``eager`` or ``math``.
    """
    if name.startswith(OURS):
        from contenders import ours

        return ours.build(workload, precision, name.removeprefix(OURS).removeprefix("-") or "graph")
    take = _PLAIN[name] if name in _PLAIN else PEERS[name][1]
    attention = Attention(workload, second)
    model, tasks = new_model(workload, attention.implementation), make_tasks(workload)

    def step() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        torch.set_float32_matmul_precision("highest")  # PyTorch's default, where kshot may have chosen another route
        with attention.active(), torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            take(model, tasks, workload)
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    return step


def entrants(workload: Workload, precisions: Sequence[str], peers: Sequence[str]) -> list[tuple[str, str]]:
    """Return who enters, as (name, precision), the reference first: peers run at fp32, as their users run them."""
    plains = ["plain", "plain-cached"] if workload.kind == "anil" else ["plain"]
    names = [("plain", "fp32")]
    for precision in precisions:
        names += [(name, precision) for name in (*plains, OURS)]
    return list(dict.fromkeys([*names, *((peer, "fp32") for peer in peers)]))


def present(peers: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the peers that can be imported, and a note about each that cannot."""
    absent = {peer: "not installed (see benchmarks/peers.txt)" for peer in peers if find_spec(PEERS[peer][0]) is None}
    return [peer for peer in peers if peer not in absent], absent


def relative_error(gradient: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return how far a meta-gradient is from the reference, over all meta-parameters: ``|g - r| / |r|``.

    Raises:
        KeyError: one has a parameter that the other lacks.
    """
    named, wanted = ({canonical(name): value for name, value in each.items()} for each in (gradient, reference))
    if named.keys() != wanted.keys():
        raise KeyError(f"meta-parameters differ: {sorted(named.keys() ^ wanted.keys())[:3]}")
    apart = sum(float((named[name].double() - value.double()).square().sum()) for name, value in wanted.items())
    size = sum(float(value.double().square().sum()) for value in wanted.values())
    return float((apart / size) ** 0.5)
