"""Meta-gradients against what can be known of them otherwise: finite differences, closed forms, an independent SGD loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tiny import finite_difference_error, flat, gradient_of, one_thread, random_episode, random_learner, relative, snapshot  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

from kshot.meta import MAML, ProtoNet, Reptile
from kshot.models import Batch, EncodedEpisode
from kshot.models.batch import join
from kshot.models.select import select

STEEP = {"inner_lr": 0.1, "head_lr": 1.0}  # large inner rates, so that second-order terms matter
TOLERANCE = 1e-8  # measured: 1.3e-9 and below


def meta_gradient(algorithm, learner, episode) -> dict[str, Tensor]:
    loss, _ = algorithm.meta_loss(learner, [episode])
    return gradient_of(loss, learner.params)


@pytest.mark.parametrize(
    "algorithm",
    [
        ProtoNet("cosine"),
        ProtoNet("euclidean"),
        *(MAML(**STEEP, inner_steps=steps, adapts=adapts) for steps in (1, 3) for adapts in ("all", "top-1-layers", "bias")),
        *(MAML(**STEEP, inner_steps=steps, adapts="head") for steps in (1, 3)),
        MAML(**STEEP, inner_steps=2, adapts="re:attention|head"),
    ],
    ids=str,
)
def test_meta_gradient_is_the_derivative_of_the_meta_loss(algorithm):
    learner, episode = random_learner(ways=3), random_episode(counts=(1, 2, 3))

    error = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(params), [episode])[0],
        learner.params,
        meta_gradient(algorithm, learner, episode),
    )

    print(f"finite-difference error {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("adapts", ["all", "head", "top-1-layers", "bias"])
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_is_the_query_gradient_at_the_fast_weights_and_not_the_second_order(adapts, steps):
    learner, episode = random_learner(ways=3), random_episode(counts=(1, 2, 3))
    algorithm = MAML(**STEEP, inner_steps=steps, adapts=adapts, hypergradient="first-order")

    found = meta_gradient(algorithm, learner, episode)

    phi = learner.start(3) | algorithm.adapt(learner, episode.support)
    assert finite_difference_error(lambda at: learner.loss(at, episode.query), phi, found) < TOLERANCE
    second = meta_gradient(replace(algorithm, hypergradient="graph"), learner, episode)
    assert relative(found, second) > 0.05


def test_orders_agree_on_the_loss_and_on_the_fast_weights():
    learner, episode = random_learner(ways=3), random_episode()
    first, second = (MAML(**STEEP, inner_steps=3, hypergradient=method) for method in ("first-order", "graph"))

    assert torch.equal(first.meta_loss(learner, [episode])[0], second.meta_loss(learner, [episode])[0])
    assert relative(first.adapt(learner, episode.support), second.adapt(learner, episode.support)) < 1e-14


# --- closed forms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuadraticLearner:
    """Support loss 1/2 (w - b)' A (w - b), query logits linear in w: the meta-gradient of T steps is (I - alpha A)^T grad."""

    a: Tensor
    b: Tensor
    params: dict[str, Tensor] = field(default_factory=dict)
    metric: str = "accuracy"

    def start(self, ways: int) -> dict[str, Tensor]:
        return dict(self.params)

    def featurised(self, batch: Batch) -> Batch:
        return batch

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        distance = params["head.w"] - self.b
        return distance @ self.a @ distance / 2

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.labels)

    def score(self, logits: Tensor, batch: Batch) -> float:
        return 0.0

    def logits(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return batch.features @ params["head.w"].reshape(batch.features.shape[1], batch.ways)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("method", ["graph", "checkpointed", "first-order"])
def test_maml_on_a_quadratic(steps, method):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a, b, w = root @ root.T / 6, *(torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = torch.randn(4, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    learner = QuadraticLearner(a, b, {"head.w": w.clone().requires_grad_()})
    query = Batch(y, 2, features=x)
    alpha = 0.2

    algorithm = MAML(head_lr=alpha, inner_steps=steps, hypergradient=method)
    loss, _ = algorithm.meta_loss(learner, [EncodedEpisode(query, query)])
    (found,) = torch.autograd.grad(loss, [learner.params["head.w"]])

    shrink = torch.linalg.matrix_power(torch.eye(6, dtype=torch.float64) - alpha * a, steps)
    phi = b + shrink @ (w - b)
    probabilities = torch.softmax(x @ phi.reshape(3, 2), -1)
    at_phi = (x.T @ (probabilities - F.one_hot(y, 2))).reshape(-1) / len(y)
    expected = at_phi if method == "first-order" else shrink.T @ at_phi
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_anil_of_one_step_on_a_linear_softmax_by_hand():
    """(I - alpha H_S) grad L_Q, with H_S = mean over the support of (diag(p) - p p') (x) [z 1][z 1]'."""
    learner, episode = random_learner(ways=3), random_episode(counts=(2, 3, 1))
    alpha = 0.7

    def rows(batch: Batch) -> Tensor:
        z = F.normalize(learner.features(learner.params, batch), dim=-1).detach()
        return torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)

    def residual(w: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.softmax(z @ w.T, -1)
        return p, (p - F.one_hot(y, 3)).T @ z / len(z)

    w = torch.cat([learner.params["head.weight"], learner.params["head.bias"][:, None]], 1).detach()
    z, q = rows(episode.support), rows(episode.query)
    p, g = residual(w, z, episode.support.labels)
    hessian = sum(
        torch.kron(torch.diag(p_i) - torch.outer(p_i, p_i), torch.outer(z_i, z_i)) for p_i, z_i in zip(p, z, strict=True)
    ) / len(z)
    _, at_phi = residual(w - alpha * g, q, episode.query.labels)
    expected = (at_phi.reshape(-1) - alpha * hessian @ at_phi.reshape(-1)).reshape(3, 17)

    found = meta_gradient(MAML(adapts="head", head_lr=alpha, inner_steps=1), learner, episode)

    torch.testing.assert_close(found["head.weight"], expected[:, :16], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found["head.bias"], expected[:, 16], rtol=1e-10, atol=1e-13)


# --- an independent SGD loop ------------------------------------------------------------------------------------------------


def sgd(learner, batch: Batch, steps: int, adapts: str, inner_lr: float, head_lr: float) -> dict[str, Tensor]:
    """Train the backbone's module and a linear layer with torch.optim.SGD, a text at a time: no code of kshot's inner loop."""
    module = learner.backbone.model
    before = snapshot(dict(module.named_parameters()))
    head = torch.nn.Linear(16, batch.ways, dtype=torch.float64)
    start = learner.start(batch.ways)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start["backbone." + name])
        head.weight.copy_(start["head.weight"])
        head.bias.copy_(start["head.bias"])
    named = {"backbone." + n: p for n, p in module.named_parameters()} | {"head." + n: p for n, p in head.named_parameters()}
    moving = select(named, adapts)
    optimizer = torch.optim.SGD(
        [{"params": [named[name]], "lr": head_lr if name.startswith("head.") else inner_lr} for name in moving]
    )
    for _ in range(steps):
        logits = []
        for ids, mask in zip(batch.input_ids, batch.mask, strict=True):
            states = module(input_ids=ids[mask.bool()][None]).last_hidden_state[0]
            vector = states.mean(0)
            logits.append(head(vector / vector.norm()))
        optimizer.zero_grad()
        F.cross_entropy(torch.stack(logits), batch.labels).backward()
        optimizer.step()
    result = {name: named[name].detach().clone() for name in moving}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
    return result


@pytest.mark.parametrize("adapts", ["all", "bias", "top-1-layers", "re:attention|head"])
@pytest.mark.parametrize("algorithm", [MAML(**STEEP, inner_steps=4), Reptile(**STEEP, inner_steps=4)], ids=["maml", "reptile"])
def test_adapting_is_plain_gradient_descent(algorithm, adapts):
    learner, episode = random_learner(ways=3), random_episode(counts=(1, 3, 2))

    adapted = replace(algorithm, adapts=adapts).adapt(learner, episode.support)

    assert relative(adapted, sgd(learner, episode.support, 4, adapts, **STEEP)) < 1e-10


@pytest.mark.parametrize("adapts", ["all", "bias", "top-1-layers"])
def test_reptile_gradient_is_theta_minus_the_result_of_sgd(adapts):
    learner, episode = random_learner(ways=3), random_episode(counts=(1, 3, 2))
    algorithm = Reptile(**STEEP, inner_steps=3, adapts=adapts)

    found = meta_gradient(algorithm, learner, episode)

    u = sgd(learner, join(episode.support, episode.query), 3, adapts, **STEEP)
    expected = {
        name: theta.detach() - u[name] if name in u else torch.zeros_like(theta) for name, theta in learner.params.items()
    }
    assert relative(found, expected) < 1e-9


def test_reptile_of_one_step_is_the_sgd_direction():
    learner, episode = random_learner(ways=3), random_episode()
    joint = gradient_of(learner.loss(learner.start(3), join(episode.support, episode.query)), learner.params)

    found = meta_gradient(Reptile(inner_lr=0.1, head_lr=3.0, inner_steps=1), learner, episode)

    expected = {name: (3.0 if name.startswith("head.") else 0.1) * g for name, g in joint.items()}
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("method", ["graph", "checkpointed", "first-order"])
@pytest.mark.parametrize("adapts", ["all", "head"])
def test_maml_of_no_steps_is_the_plain_loss(method, adapts):
    learner, episode = random_learner(ways=3), random_episode()
    algorithm = MAML(inner_steps=0, hypergradient=method, adapts=adapts)

    loss, _ = algorithm.meta_loss(learner, [episode])

    plain = learner.loss(learner.start(3), episode.query)
    assert float(loss.detach()) == float(plain.detach())
    assert relative(gradient_of(loss, learner.params), gradient_of(plain, learner.params)) < 1e-14


def test_the_shared_class_vector_cancels_in_the_softmax():
    """Whatever vector all classes start from, the loss is the same, so that no class and no start is preferred."""
    learner, episode = random_learner(), random_episode()
    other = learner.with_params(random_learner(seed=5).params | {n: v for n, v in learner.params.items() if "head" not in n})

    for algorithm in (MAML(**STEEP, inner_steps=3), MAML(**STEEP, inner_steps=3, adapts="head")):
        loss, _ = algorithm.meta_loss(learner, [episode])
        assert float(loss.detach()) == pytest.approx(float(algorithm.meta_loss(other, [episode])[0].detach()), rel=1e-12)
        grads = gradient_of(loss, learner.params)
        assert float(flat({n: g for n, g in grads.items() if n.startswith("head.")}).norm()) < 1e-13


def test_first_order_keeps_no_graph_below_the_lowest_layer_that_moves():
    """With top-1-layers, one inner step of first order saves the top layer's activations alone."""
    learner, episode = random_learner(ways=3), random_episode()
    saved: dict[str, int] = {}

    def count(name: str, algorithm: Any) -> None:
        def pack(tensor: Tensor) -> Tensor:
            saved[name] = saved.get(name, 0) + 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.no_grad():
            algorithm.adapt(learner, episode.support)

    count("top", MAML(inner_steps=1, adapts="top-1-layers"))
    count("all", MAML(inner_steps=1, adapts="all"))
    assert saved["top"] < 0.7 * saved["all"]
