"""The peers: a meta-step in the way that each library's own documentation writes it, for the same model and tasks.

Each leaves the meta-gradient in the parameters' ``grad``. What a library has no way to do is an `Unable`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from contenders.plain import adapted_parameters
from contenders.workload import Task, TextClassifier, Workload, text_vectors

NOT_INSTALLABLE = {
    "learn2learn": "0.2.0 does not build on Python 3.11 and needs torchvision to import",
    "betty-ml": "0.2.1 wants Python below 3.11",
}


class Unable(Exception):  # noqa: N818  (an answer, not an error)
    """What a contender cannot do, in a sentence."""


def higher_step(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    """higher: patch the module and its optimiser (ANIL: the head alone), step the optimiser differentiably."""
    import higher

    if workload.kind == "protonet":
        raise Unable("higher has no metric-based method")
    inner: nn.Module = model.head if workload.kind == "anil" else model
    optimizer = torch.optim.SGD([p for p in inner.parameters() if p.requires_grad], lr=workload.rate)
    second_order = workload.kind != "fomaml"
    for support, query in tasks:
        with higher.innerloop_ctx(inner, optimizer, copy_initial_weights=False, track_higher_grads=second_order) as (
            fast,
            steps,
        ):
            inputs, queries = support.tokens, query.tokens
            if workload.kind == "anil":
                inputs, queries = (F.normalize(model.vectors(tokens), dim=-1) for tokens in (inputs, queries))
            for _ in range(workload.steps):
                steps.step(F.cross_entropy(fast(inputs), support.labels))
            loss = F.cross_entropy(fast(queries), query.labels) / len(tasks)
            if second_order:
                loss.backward()
                continue
            for parameter, grad in zip(inner.parameters(), torch.autograd.grad(loss, list(fast.parameters())), strict=True):
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def iteryne_step(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    """iteryne: a clone a task, its `adapt` on each support loss; `ANIL` runs the whole model in every inner step."""
    from iteryne import ANIL, MAML

    if workload.kind == "protonet":
        raise Unable("iteryne has no metric-based method")
    options = {"inner_lr": workload.rate, "inner_steps": workload.steps, "first_order": workload.kind == "fomaml"}
    names = list(adapted_parameters(model, workload)) if workload.kind == "lora2" else None  # frozen weights have no gradient
    learners = ANIL(model, model.head, **options) if workload.kind == "anil" else MAML(model, adapt_names=names, **options)
    for support, query in tasks:
        learner = learners.clone()
        for _ in range(workload.steps):
            learner.adapt(F.cross_entropy(learner(support.tokens), support.labels))
        (F.cross_entropy(learner(query.tokens), query.labels) / len(tasks)).backward()


def torchopt_step(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    """torchopt: `MetaSGD` on the module (ANIL: the head alone), whose state is put back after each task.

    `MetaSGD` knows neither a first order nor frozen weights; these go through torchopt's functional optimiser.
    """
    import torchopt

    if workload.kind == "protonet":
        raise Unable("torchopt has no metric-based method")
    if workload.kind in ("fomaml", "lora2"):
        _torchopt_functional(model, tasks, workload)
        return
    inner: nn.Module = model.head if workload.kind == "anil" else model
    optimizer = torchopt.MetaSGD(inner, lr=workload.rate)
    start, fresh = (torchopt.extract_state_dict(part, by="reference") for part in (inner, optimizer))
    try:
        for support, query in tasks:
            inputs, queries = support.tokens, query.tokens
            if workload.kind == "anil":
                inputs, queries = (F.normalize(model.vectors(tokens), dim=-1) for tokens in (inputs, queries))
            for _ in range(workload.steps):
                optimizer.step(F.cross_entropy(inner(inputs), support.labels))
            (F.cross_entropy(inner(queries), query.labels) / len(tasks)).backward()
            torchopt.recover_state_dict(inner, start)
            torchopt.recover_state_dict(optimizer, fresh)
    finally:
        torchopt.recover_state_dict(inner, start)


def _torchopt_functional(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    import torchopt

    names, start = zip(*adapted_parameters(model, workload).items(), strict=True)
    optimizer = torchopt.sgd(lr=workload.rate)
    for support, query in tasks:
        fast, state = start, optimizer.init(start)
        for _ in range(workload.steps):
            scores = functional_call(model, dict(zip(names, fast, strict=True)), (support.tokens,))
            loss = F.cross_entropy(scores, support.labels)
            grads = torch.autograd.grad(loss, fast, create_graph=workload.kind != "fomaml")
            updates, state = optimizer.update(grads, state, params=fast, inplace=False)
            fast = torchopt.apply_updates(fast, updates, inplace=False)
        scores = functional_call(model, dict(zip(names, fast, strict=True)), (query.tokens,))
        (F.cross_entropy(scores, query.labels) / len(tasks)).backward()


class _Backbone(nn.Module):
    """The encoder as parallel-metalearn's wrappers call it: with keywords of their own."""

    def __init__(self, model: TextClassifier, unit_length: bool):
        super().__init__()
        self.encoder, self.unit_length = model.encoder, unit_length

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        vectors = text_vectors(self.encoder, tokens)
        return F.normalize(vectors, dim=-1) if self.unit_length else vectors


class _Head(nn.Module):
    """The head as parallel-metalearn's wrapper calls it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, vectors: Tensor, **_: Any) -> Tensor:
        return self.linear(vectors)


def parallel_metalearn_step(model: TextClassifier, tasks: Sequence[Task], workload: Workload) -> None:
    """parallel-metalearn: its sequential backend, which its documentation recommends for Transformers and deep inner loops."""
    from metalearn.algorithms import MAML, PrototypicalNetwork
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy
    from metalearn.model_wrappers import MAML_Model, ProtoNet_Model

    loss = CrossEntropy(metric_fn=CategoricalAccuracy())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    still = torch.optim.SGD(trained, lr=0.0)  # its step takes an outer step too; this one leaves the parameters as they are
    backbone = _Backbone(model, unit_length=workload.kind != "protonet")
    if workload.kind == "protonet":
        width = model.head.in_features
        algorithm: Any = PrototypicalNetwork(
            model=ProtoNet_Model(backbone, max_classes=workload.ways, latent_dim=width),
            optimizer=still,
            loss_fn=loss,
            backend="sequential",
        )
    else:
        wrapped = MAML_Model(backbone, _Head(model.head), fast_weights_names="ANIL" if workload.kind == "anil" else None)
        inner = InnerSGD(
            wrapped.get_fast_weights(),
            first_order=workload.kind == "fomaml",
            inner_lr=workload.rate,
            max_inner_steps=workload.steps,
            learn_lr=False,
        )
        algorithm = MAML(
            model=wrapped,
            optimizer=still,
            inner_optimizer=inner,
            support_loss_fn=loss,
            inner_steps=workload.steps,
            backend="sequential",
        )
    algorithm.step(_batches(tasks), training=True)


def _batches(tasks: Sequence[Task]) -> Iterator[tuple[Any, ...]]:
    """Yield all tasks stacked, as parallel-metalearn's loaders do: inputs and a dictionary with the labels, for both sides."""
    sides: list[Any] = []
    for texts in zip(*tasks, strict=True):
        sides += [torch.stack([each.tokens for each in texts]), {"labels": torch.stack([each.labels for each in texts])}]
    yield tuple(sides)


PEERS: dict[str, tuple[str, Callable[[TextClassifier, Sequence[Task], Workload], None]]] = {
    "higher": ("higher", higher_step),
    "iteryne": ("iteryne", iteryne_step),
    "torchopt": ("torchopt", torchopt_step),
    "parallel-metalearn": ("metalearn", parallel_metalearn_step),
}
"""The module to import and the step, by the name of the distribution."""
