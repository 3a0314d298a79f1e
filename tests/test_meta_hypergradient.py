"""The four ways through the inner loop: each exact where it claims to be, on a random encoder and in closed form."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from test_meta_gradients import QuadraticLearner
from tiny import (
    finite_difference_error,
    gradient_of,
    learner_for,
    one_thread,  # noqa: F401
    random_episode,
    random_learner,
    relative,
    same_bits,
)
from torch import Tensor
from torch.nn import functional as F

from kshot.meta import MAML, optimizers, trajectory
from kshot.meta.cavia import CAVIA
from kshot.meta.hypergradient import HYPERGRADIENTS, Options, conjugate_gradients
from kshot.meta.mamlpp import MAMLPlusPlus
from kshot.meta.metasgd import MetaSGD
from kshot.meta.trajectory import Trajectory
from kshot.models import Batch, EncodedEpisode

STEEP = {"inner_lr": 0.1, "head_lr": 1.0, "inner_steps": 3}
GENTLE = {"inner_lr": 0.02, "head_lr": 0.2, "inner_steps": 3}
TOLERANCE = 1e-8  # measured: 7.7e-9 (CAVIA) and below

EXACT = {
    "momentum": MAML(**STEEP, optimizer="momentum"),
    "adam": MAML(inner_lr=0.02, head_lr=0.1, inner_steps=3, optimizer="adam"),
    "l2": MAML(**STEEP, l2_to_start=0.3),
    "l2-head": MAML(**STEEP, l2_to_start=0.3, adapts="head"),
    "zero-start": MAML(**STEEP, head_start="zero"),
    "prototypes": MAML(**GENTLE, head_start="prototypes"),
    "prototypes-momentum": MAML(**GENTLE, head_start="prototypes", optimizer="momentum", adapts="bias"),
    "learned-start": MAML(inner_lr=0.002, head_lr=0.02, inner_steps=2, head_start="learned"),
    "body": MAML(inner_lr=0.002, inner_steps=2, adapts="body", head_start="learned"),
    "head": MAML(**STEEP, adapts="head"),
    "metasgd": MetaSGD(**GENTLE),
    "metasgd-top": MetaSGD(**GENTLE, adapts="top-1-layers"),
    "maml++": MAMLPlusPlus(**GENTLE),
    "maml++-half": MAMLPlusPlus(**GENTLE, multi_step=0.5, optimizer="momentum"),
    "cavia": CAVIA(inner_lr=0.1, inner_steps=2),
}


def meta_gradient(algorithm, learner, episode) -> dict[str, Tensor]:
    return gradient_of(algorithm.meta_loss(learner, [episode])[0], learner.params)


@pytest.mark.parametrize("method", ["graph", "checkpointed"])
@pytest.mark.parametrize("name", EXACT)
def test_graph_and_checkpointed_are_the_derivative(name, method, monkeypatch):
    monkeypatch.setattr(optimizers, "EPSILON", 0.03)  # Adam's own makes a step of sign where the gradient is near 0
    algorithm = replace(EXACT[name], hypergradient=method)
    learner, episode = learner_for(algorithm, nudge=0.2), random_episode(counts=(1, 2, 3))

    found = meta_gradient(algorithm, learner, episode)

    error = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(params), [episode])[0], learner.params, found
    )
    print(f"finite-difference error {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("name", EXACT)
def test_checkpointed_is_graph_to_the_last_bits(name):
    learner, episode = learner_for(EXACT[name], nudge=0.1), random_episode(counts=(1, 2, 3))

    found = [
        meta_gradient(replace(EXACT[name], hypergradient=method), learner, episode) for method in ("graph", "checkpointed")
    ]

    assert relative(*found) < 1e-12


@pytest.mark.parametrize("name", ["momentum", "prototypes", "metasgd", "maml++", "cavia"])
def test_first_order_is_cheaper_and_not_the_derivative(name):
    learner, episode = learner_for(EXACT[name], nudge=0.1), random_episode(counts=(1, 2, 3))

    exact, first = (meta_gradient(replace(EXACT[name], hypergradient=m), learner, episode) for m in ("graph", "first-order"))

    assert 0.001 < relative(first, exact) < 3


def test_learned_rates_are_trained_to_the_first_order_too():
    algorithm = replace(EXACT["metasgd"], hypergradient="first-order")
    learner, episode = learner_for(algorithm), random_episode()

    found = meta_gradient(algorithm, learner, episode)

    assert all(float(g.norm()) > 0 for name, g in found.items() if name.startswith("meta.rate.") and "key.bias" not in name)


@pytest.mark.parametrize("algorithm", [MAML(**STEEP), MAML(**GENTLE, head_start="prototypes")], ids=str)
def test_checkpointed_draws_the_same_dropout_again(algorithm):
    learner, episode = random_learner(dropout=0.3), random_episode()
    own = {name: value.requires_grad_() for name, value in algorithm.meta_parameters(learner).items()}
    learner = learner.with_params(learner.params | own)
    found, after = [], []
    for method in ("graph", "checkpointed"):
        torch.manual_seed(5)
        found.append(meta_gradient(replace(algorithm, hypergradient=method), learner, episode))
        after.append(torch.rand(1))

    assert relative(*found) < 1e-12
    assert torch.equal(*after)  # and leaves the generator as the ordinary way does


def test_checkpointed_keeps_no_graph_of_the_steps():
    """What autograd holds after the meta-loss does not grow with the steps."""
    learner, episode = random_learner(), random_episode()

    class Held:
        numbers = 0

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # an output that its own node holds would never be freed
            Held.numbers += tensor.numel()

        def __del__(self) -> None:
            Held.numbers -= self.tensor.numel()

    def held(method: str, steps: int) -> int:
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            loss, _ = MAML(inner_steps=steps, hypergradient=method).meta_loss(learner, [episode])
            assert loss.requires_grad
            return Held.numbers

    assert held("graph", 5) > 3 * held("graph", 1)
    assert held("checkpointed", 5) == held("checkpointed", 1)


@pytest.mark.parametrize("name", ["momentum", "maml++", "head"])
def test_what_lies_on_the_disk_comes_back_as_it_was(name, monkeypatch):
    learner, episode = learner_for(EXACT[name], nudge=0.1), random_episode(counts=(1, 2, 3))
    algorithm = replace(EXACT[name], hypergradient="checkpointed")
    in_memory = meta_gradient(algorithm, learner, episode)

    monkeypatch.setattr(trajectory, "_SMALL", 0)

    assert same_bits(meta_gradient(algorithm, learner, episode), in_memory)


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_a_trajectory_is_a_stack(small, monkeypatch):
    monkeypatch.setattr(trajectory, "_SMALL", small)
    generator = torch.Generator().manual_seed(0)
    steps = [
        {
            "wide": torch.randn(3, 5, generator=generator, dtype=torch.float64).t(),
            "narrow": torch.randn(7, generator=generator).bfloat16(),
            "one": torch.tensor(float(number)),
            "none": torch.empty(0, 4),
        }
        for number in range(4)
    ]
    path = Trajectory()
    for step in steps[:3]:
        path.push(step)
    assert same_bits(path.pop(), steps[2])
    path.push(steps[3])
    path.push({})
    assert len(path) == 4
    assert path.pop() == {}
    for step in (steps[3], steps[1], steps[0]):
        assert same_bits(path.pop(), step)


def test_a_full_disk_keeps_the_steps_in_memory(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            super().write(bytes(data)[:3])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trajectory, "_SMALL", 0)
    monkeypatch.setattr(trajectory.tempfile, "TemporaryFile", Full)
    path, steps = Trajectory(), [{"w": torch.full((4,), float(number))} for number in range(3)]
    for step in steps:
        path.push(step)
    for step in reversed(steps):
        assert same_bits(path.pop(), step)


# --- implicit ---------------------------------------------------------------------------------------------------------------


def test_conjugate_gradients_end_where_the_curvature_is_negative():
    """With what they have, and at once with a multiple of b: never against the first-order gradient."""
    b = torch.tensor([1.0, 1e-3, 0.5], dtype=torch.float64)

    def solved(diagonal: list[float]) -> torch.Tensor:
        a = torch.tensor(diagonal, dtype=torch.float64)
        (x,) = conjugate_gradients(lambda parts: [a * parts[0]], [b], Options(cg_steps=20))
        return x

    at_once, later = solved([-2.0, -1.0, -1.0]), solved([2.0, -1.0, 3.0])

    torch.testing.assert_close(at_once, b * float(b @ b) / float(b @ (torch.tensor([2.0, 1.0, 1.0]).double() * b)))
    assert float(later @ b) > 0
    assert float(later.norm()) < 2 * float(b.norm())


def test_conjugate_gradients_solve_a_linear_system():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)

    def product(parts: list[Tensor]) -> list[Tensor]:
        whole = matrix @ torch.cat([parts[0].flatten(), parts[1]])
        return [whole[:4].reshape(2, 2), whole[4:]]

    x = conjugate_gradients(product, [b[:4].reshape(2, 2), b[4:]], Options(cg_steps=20, tolerance=1e-13))

    torch.testing.assert_close(torch.cat([x[0].flatten(), x[1]]), torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-12)


def test_imaml_on_a_quadratic_is_its_closed_form():
    """With L = 1/2 (w-b)'A(w-b) the arrived weights are (A + lambda I)^-1 (A b + lambda theta): a matrix times the gradient."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a, b, w = root @ root.T / 6, *(torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = torch.randn(4, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    learner, query = QuadraticLearner(a, b, {"head.w": w.clone().requires_grad_()}), Batch(y, 2, features=x)
    weight = 0.5
    algorithm = MAML(head_lr=0.2, inner_steps=400, l2_to_start=weight, hypergradient="implicit", cg_steps=20)

    loss, _ = algorithm.meta_loss(learner, [EncodedEpisode(query, query)])
    (found,) = torch.autograd.grad(loss, [learner.params["head.w"]])

    inverse = torch.linalg.inv(a + weight * torch.eye(6, dtype=torch.float64))
    phi = inverse @ (a @ b + weight * w)
    probabilities = torch.softmax(x @ phi.reshape(3, 2), -1)
    at_phi = (x.T @ (probabilities - F.one_hot(y, 2))).reshape(-1) / len(y)
    torch.testing.assert_close(found, weight * inverse @ at_phi, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("adapts", ["head", "top-1-layers"])
def test_imaml_is_the_derivative_where_the_inner_loop_arrived(adapts):
    rates = {"inner_lr": 0.05, "head_lr": 0.2, "inner_steps": 200, "l2_to_start": 2.0}
    algorithm = MAML(**rates, adapts=adapts, hypergradient="implicit", cg_steps=200)
    learner, episode = random_learner(), random_episode(counts=(1, 2, 1))

    found = meta_gradient(algorithm, learner, episode)

    error = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(params), [episode])[0], learner.params, found
    )
    print(f"finite-difference error {error:.1e}")
    assert error < 1e-5  # the solver's tolerance is 1e-6


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_frozen_parameters_move_and_take_no_gradient(name):
    algorithm = MAML(**STEEP, hypergradient=name, l2_to_start=0.1)
    learner, episode = random_learner(), random_episode()
    part = {n for n in learner.params if "layer.1." in n}
    whole = meta_gradient(algorithm, learner, episode)
    params = {n: value.detach().clone().requires_grad_(n in part) for n, value in learner.params.items()}

    loss, _ = algorithm.meta_loss(learner.with_params(params), [episode])
    found = gradient_of(loss, {n: params[n] for n in part})

    assert relative(found, {n: whole[n] for n in part}) < 1e-11


# --- identities -------------------------------------------------------------------------------------------------------------


def test_metasgd_and_maml_pp_at_their_start_are_maml():
    plain = MAML(**STEEP)
    for algorithm in (MetaSGD(**STEEP), MAMLPlusPlus(**STEEP, multi_step=0.0)):
        learner, episode = learner_for(algorithm), random_episode()
        shared = {n: v for n, v in learner.params.items() if not n.startswith("meta.")}
        grads = meta_gradient(algorithm, learner, episode)
        assert relative({n: grads[n] for n in shared}, meta_gradient(plain, learner.with_params(shared), episode)) < 1e-13


def test_maml_pp_counts_every_step_and_then_the_last_alone():
    algorithm = MAMLPlusPlus(**STEEP, multi_step=0.6, multi_step_steps=4, first_order_steps=2)
    learner, episode = learner_for(algorithm), random_episode()
    losses = []
    for steps in (1, 2, 3):
        plain = MAML(**{**STEEP, "inner_steps": steps})
        losses.append(float(plain.meta_loss(learner, [episode])[0].detach()))

    loss, _ = algorithm.meta_loss(learner, [episode])

    assert float(loss.detach()) == pytest.approx(0.6 * sum(losses) / 3 + 0.4 * losses[-1], rel=1e-12)
    assert [algorithm.at(step).multi_step for step in (0, 2, 4, 9)] == pytest.approx([0.6, 0.3, 0, 0])
    assert [algorithm.at(step).hypergradient for step in (0, 1, 2)] == ["first-order", "first-order", "graph"]
    assert algorithm.twice_differentiable


def test_protomaml_of_no_steps_is_protonet_up_to_what_the_classes_share():
    learner, episode = random_learner(), random_episode(counts=(1, 2, 3))
    algorithm = MAML(inner_steps=0, head_start="prototypes")

    logits = algorithm.logits(learner, algorithm.adapt(learner, episode.support), episode.query)

    z, q = (F.normalize(learner.features(learner.params, side), dim=-1) for side in (episode.support, episode.query))
    c = torch.stack([z[episode.support.labels == k].mean(0) for k in range(3)])
    distances = -10 * (q[:, None] - c).square().sum(-1)
    torch.testing.assert_close(logits.log_softmax(-1), distances.log_softmax(-1), rtol=1e-10, atol=1e-12)


def test_adam_and_momentum_step_as_torch_s_own():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    for name, make in {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    }.items():
        theirs = start.clone().requires_grad_()
        optimizer = make([theirs])
        phi, state = {"w": start}, {}
        for t in range(6):
            optimizer.zero_grad()
            (theirs**4).sum().backward()
            optimizer.step()
            phi, state = optimizers.OPTIMIZERS[name](phi, {"w": 4 * phi["w"] ** 3}, {"w": 0.1}, state, t)
        torch.testing.assert_close(phi["w"], theirs.detach(), rtol=1e-6, atol=1e-7)  # Adam: to epsilon
