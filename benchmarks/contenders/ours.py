"""kshot's side: the same model and tasks as a learner and its episodes, stepped as `kshot.training.loop` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from contenders.workload import LORA, Task, Workload, make_tasks, start_value
from kshot.meta import MAML, Algorithm, ProtoNet
from kshot.models import AdapterSpec, BackboneSpec, Batch, EncodedEpisode, Learner, add_adapter, load_backbone, new_learner
from kshot.models.precision import choose_matmul_route
from kshot.training.gradient import episode_gradients, usual_threads

ADAPTS = {"anil": "head", "lora2": "lora+head"}
ADAPTER = AdapterSpec("lora", rank=int(LORA["r"]), alpha=float(LORA["lora_alpha"]))


def build(workload: Workload, precision: str, hypergradient: str = "graph") -> Callable[[], dict[str, Tensor]]:
    """Return one meta-step of kshot, which answers with the meta-gradient by parameter name."""
    algorithm = new_algorithm(workload, hypergradient)
    learner = replace(learner_at_start(workload), precision=precision)
    learner.backbone.use_attention(algorithm.twice_differentiable)
    route, tasks = matmul_route(), make_tasks(workload)
    trained = [name for name, value in learner.params.items() if value.requires_grad]
    threads = usual_threads(learner, algorithm)

    def step() -> dict[str, Tensor]:
        torch.set_float32_matmul_precision(route)
        episodes = [encoded(task, workload.ways) for task in tasks]  # new to every step: nothing is kept between rounds
        total: dict[str, Tensor] = {}
        for found in episode_gradients(learner, algorithm, episodes, trained, threads):
            for name, grad in zip(trained, found.grads, strict=True):
                if grad is not None:
                    total[name] = total[name].add_(grad, alpha=1 / len(tasks)) if name in total else grad / len(tasks)
        return total

    return step


def new_algorithm(workload: Workload, hypergradient: str) -> Algorithm:
    """Return the algorithm of a workload."""
    if workload.kind == "protonet":
        return ProtoNet(metric="euclidean")
    return MAML(
        inner_lr=workload.rate,
        head_lr=workload.rate,
        inner_steps=workload.steps,
        adapts=ADAPTS.get(workload.kind, "all"),
        hypergradient="first-order" if workload.kind == "fomaml" else hypergradient,
    )


def learner_at_start(workload: Workload) -> Learner:
    """Return a learner whose head and adapters start where the plain model's do, the head with a row for every class."""
    backbone = load_backbone(BackboneSpec("minilm", max_length=workload.length))
    if workload.kind == "lora2":
        backbone = add_adapter(backbone, ADAPTER)
    learner = new_learner(backbone)
    params = {name: value for name, value in learner.params.items() if not name.startswith("head.")}
    shapes = {name: value.shape for name, value in params.items()}
    if workload.kind != "protonet":
        shapes |= {"head.weight": torch.Size((workload.ways, backbone.hidden_size)), "head.bias": torch.Size((workload.ways,))}
    for name, shape in shapes.items():
        if (value := start_value(name, shape, workload)) is not None:
            params[name] = value.requires_grad_()
        else:
            params[name].requires_grad_(workload.kind != "lora2")
    if workload.kind == "protonet":  # no head: its start says the width alone
        params |= {name: value.detach() for name, value in learner.params.items() if name.startswith("head.")}
    return learner.with_params(params)


def encoded(task: Task, ways: int) -> EncodedEpisode:
    """Return a task as a learner reads it."""
    return EncodedEpisode(*(Batch(each.labels, ways, each.tokens[:, 0], each.tokens[:, 1]) for each in task))


@cache
def matmul_route() -> str:
    """Return how kshot multiplies fp32 matrices on this machine, as PyTorch's setting of the process."""
    choose_matmul_route()
    return torch.get_float32_matmul_precision()
