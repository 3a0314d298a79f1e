"""Plain autograd over a Hugging Face model: what one writes without a library. It is the reference of every error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from contenders.workload import Task, TextClassifier, Workload


def step(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    """Leave the meta-gradient of one step in the parameters' ``grad``."""
    if workload.kind == "protonet":
        for support, query in tasks:
            prototype_loss(model, support.tokens, support.labels, query.tokens, query.labels, workload.ways).backward()
        return
    start = adapted_parameters(model, workload)
    for support, query in tasks:
        fast = dict(start)
        for _ in range(workload.steps):
            loss = F.cross_entropy(functional_call(model, fast, (support.tokens,)), support.labels)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=workload.kind != "fomaml")
            fast = {name: value - workload.rate * grad for (name, value), grad in zip(fast.items(), grads, strict=True)}
        loss = F.cross_entropy(functional_call(model, fast, (query.tokens,)), query.labels)
        (loss / len(tasks)).backward()


def cached_step(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    """The same for ANIL, where support texts are encoded once a task, since no inner step changes them."""
    for support, query in tasks:
        vectors = F.normalize(model.vectors(support.tokens), dim=-1)
        weight, bias = model.head.weight, model.head.bias
        for _ in range(workload.steps):
            loss = F.cross_entropy(F.linear(vectors, weight, bias), support.labels)
            grads = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - workload.rate * grads[0], bias - workload.rate * grads[1]
        scores = F.linear(F.normalize(model.vectors(query.tokens), dim=-1), weight, bias)
        (F.cross_entropy(scores, query.labels) / len(tasks)).backward()


def adapted_parameters(model: TextClassifier, workload: Workload) -> dict[str, Tensor]:
    """Return what the inner loop moves: the head alone in ANIL, else all that can be trained."""
    return {
        name: value
        for name, value in model.named_parameters()
        if value.requires_grad and (workload.kind != "anil" or name.startswith("head."))
    }


def prototype_loss(
    model: TextClassifier, support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor, ways: int
) -> Tensor:
    """Return the query texts' loss by squared distance to the class means, all texts encoded in one pass."""
    vectors, queries = model.vectors(torch.cat([support, query])).split([len(support), len(query)])
    members = F.one_hot(support_labels, ways).to(vectors.dtype)
    means = members.T @ vectors / members.sum(0).unsqueeze(1)
    return F.cross_entropy(-(queries.unsqueeze(1) - means).square().sum(-1), query_labels)
