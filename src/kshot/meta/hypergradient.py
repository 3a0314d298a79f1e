"""How the meta-gradient gets through the inner loop: four methods of one signature, chosen by name.

Each runs T steps of an inner problem from its start and returns the fast weights phi_T as a function of theta, the tensors
that the inner problem depends on. They differ in what the derivative d phi_T / d theta is, and in what that costs:

================  ==================================  ====================  =====================================
method            derivative                          memory                time of a step
================  ==================================  ====================  =====================================
``graph``         exact                               grows with the steps  a forward and backward, and twice that
``checkpointed``  exact                               of one step           a forward and backward more
``implicit``      exact where the inner loop arrived  of one step           a forward and backward; CG's products once
``first-order``   the identity                        of one step           a forward and backward
================  ==================================  ====================  =====================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kshot.meta.trajectory import Trajectory
from kshot.models.learner import Params


class InnerProblem(Protocol):
    """What a task's inner loop minimises and how it steps. Pure in the tensors that it is given."""

    @property
    def moving(self) -> tuple[str, ...]:
        """The names in theta of what moves."""

    def objective(self, theta: Params, phi: Params) -> Tensor:
        """Return what the inner loop minimises at the fast weights phi, a scalar."""

    def step(self, t: int, theta: Params, phi: Params, state: Params, create_graph: bool) -> tuple[Params, Params]:
        """Return the fast weights and the inner optimiser's state after step t."""


@dataclass(frozen=True)
class Options:
    """What some of the methods take.

    Args:
        every: whether the result of every step is wanted, or that of the last alone (``implicit`` has no other).
        cg_steps: the most products with the Hessian, for ``implicit``.
        tolerance: the relative residual at which the conjugate gradients stop earlier.
    """

    every: bool = False
    cg_steps: int = 10
    tolerance: float = 1e-6


Hypergradient = Callable[[InnerProblem, Params, int, Options], Iterator[Params]]
"""``(problem, theta, T, options)`` yields phi_T last, and phi_1 ... before it where asked; each differentiable in theta."""


def graph(problem: InnerProblem, theta: Params, steps: int, options: Options) -> Iterator[Params]:
    """Let autograd keep every step: the ordinary way."""
    return _descend(problem, theta, steps, create_graph=True)


def first_order(problem: InnerProblem, theta: Params, steps: int, options: Options) -> Iterator[Params]:
    """Take every gradient of the inner loop as a constant (Finn et al. 2017, section 5.2). Learned rates keep theirs."""
    return _descend(problem, theta, steps, create_graph=False)


def _descend(problem: InnerProblem, theta: Params, steps: int, create_graph: bool) -> Iterator[Params]:
    phi, state = _start(problem, theta), Params()
    for t in range(steps):
        phi, state = problem.step(t, theta, phi, state, create_graph)
        yield phi


def _start(problem: InnerProblem, theta: Params) -> Params:
    return {name: theta[name] for name in problem.moving}


# --- checkpointed -----------------------------------------------------------------------------------------------------------


def checkpointed(problem: InnerProblem, theta: Params, steps: int, options: Options) -> Iterator[Params]:
    """Keep the fast weights of each step alone, on the disk, and build one step's graph at a time on the way back.

    The same derivative as `graph`. The adjoint goes from step T to 1: ``v_t = (d step_t / d phi_t)^T v_{t+1}``.
    """
    flat = _Checkpointed.apply(problem, steps, options.every, tuple(theta), *theta.values())  # type: ignore[no-untyped-call]
    width = len(problem.moving)
    for begin in range(0, len(flat), width):
        yield dict(zip(problem.moving, flat[begin : begin + width], strict=True))


class _Checkpointed(torch.autograd.Function):
    """phi_T, or phi_1 ... phi_T, flat, of theta, flat."""

    @staticmethod
    def forward(
        ctx: Any, problem: InnerProblem, steps: int, every: bool, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        theta = {name: tensor.detach() for name, tensor in zip(names, tensors, strict=True)}
        phi, state = _start(problem, theta), Params()
        ctx.problem, ctx.theta, ctx.path, ctx.random = problem, theta, Trajectory(), []
        results: list[Tensor] = []
        for t in range(steps):
            ctx.path.push(phi | state)
            ctx.random.append(_random_state())
            phi, state = problem.step(t, theta, phi, state, create_graph=False)
            if every or t == steps - 1:
                results += [value.detach() for value in phi.values()]
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        problem, given = ctx.problem, list(outer)
        wanted = [name for name, needed in zip(ctx.theta, ctx.needs_input_grad[4:], strict=True) if needed]
        total: Params = {}
        v: Params = {}  # the adjoint of the fast weights and of the optimiser's state
        for t in reversed(range(len(ctx.path))):
            _add(v, dict(zip(problem.moving, given[-len(problem.moving) :], strict=bool(given))))
            del given[-len(problem.moving) :]
            reached = leaves(ctx.path.pop())
            phi = {name: reached[name] for name in problem.moving}
            state = {name: value for name, value in reached.items() if name not in phi}
            theta = {name: value.detach().requires_grad_(name in wanted) for name, value in ctx.theta.items()}
            with torch.enable_grad(), _replayed(ctx.random[t]):
                moved, kept = problem.step(t, theta, phi, state, create_graph=True)
            inputs = {("theta", name): theta[name] for name in wanted} | {("step", n): x for n, x in (phi | state).items()}
            outputs = {name: value for name, value in (moved | kept).items() if name in v and value.requires_grad}
            directions = [v[name] for name in outputs]
            grads = torch.autograd.grad(list(outputs.values()), list(inputs.values()), directions, allow_unused=True)
            found = dict(zip(inputs, grads, strict=True))
            _add(total, {name: found["theta", name] for name in wanted})
            v = {name: g for name in (phi | state) if (g := found["step", name]) is not None}
        _add(total, {name: v.get(name) for name in problem.moving})  # phi_0 is theta
        return (None, None, None, None, *(total.get(name) if name in wanted else None for name in ctx.theta))


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


@contextmanager
def _replayed(states: list[Tensor]) -> Iterator[None]:
    """Draw the same dropout again, and leave the generators as they were."""
    with torch.random.fork_rng():
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state_all(states[1:])
        yield


# --- implicit ---------------------------------------------------------------------------------------------------------------


def implicit(problem: InnerProblem, theta: Params, steps: int, options: Options) -> Iterator[Params]:
    """Differentiate where the inner loop arrived, not how it came there (Rajeswaran et al. 2019, arXiv:1909.04630, lemma 1).

    At a stationary point of the objective G the implicit function theorem gives, for an outer gradient v::

        v^T d phi / d theta = -u^T (d^2 G / d phi d theta),   (d^2 G / d phi^2) u = v

    With the proximal term lambda/2 ||phi - theta||^2 in G this is the paper's (I + H / lambda)^-1 v. The system is solved by
    conjugate gradients, with products by the Hessian alone.
    """
    flat = _Implicit.apply(problem, steps, options, tuple(theta), *theta.values())  # type: ignore[no-untyped-call]
    yield dict(zip(problem.moving, flat, strict=True))


class _Implicit(torch.autograd.Function):
    """phi_T, flat, of theta, flat."""

    @staticmethod
    def forward(
        ctx: Any, problem: InnerProblem, steps: int, options: Options, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        theta = {name: tensor.detach() for name, tensor in zip(names, tensors, strict=True)}
        phi = _start(problem, theta)
        for reached in _descend(problem, theta, steps, create_graph=False):
            phi = reached
        ctx.problem, ctx.options, ctx.theta, ctx.phi = problem, options, theta, phi
        return tuple(value.detach() for value in phi.values())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[4:]
        phi = leaves(ctx.phi)
        theta = {n: x.detach().requires_grad_(needed) for (n, x), needed in zip(ctx.theta.items(), wanted, strict=True)}
        with torch.enable_grad():
            at = list(phi.values())
            slope = torch.autograd.grad(ctx.problem.objective(theta, phi), at, create_graph=True, materialize_grads=True)

        def hessian(u: list[Tensor]) -> list[Tensor]:
            return list(torch.autograd.grad(slope, at, u, retain_graph=True, materialize_grads=True))

        u = conjugate_gradients(hessian, list(outer), ctx.options)
        inputs = [value for value in theta.values() if value.requires_grad]
        grads = iter(torch.autograd.grad(slope, inputs, [-value for value in u], allow_unused=True))
        return (None, None, None, None, *(next(grads) if needed else None for needed in wanted))


def conjugate_gradients(product: Callable[[list[Tensor]], list[Tensor]], b: list[Tensor], options: Options) -> list[Tensor]:
    """Return x with A x = b, for a symmetric A given by its products (Hestenes & Stiefel 1952).

    Where A is not positive-definite, as the Hessian of an inner loop that has not arrived may be, a direction of negative
    curvature leads away from the solution. There the search ends (Dembo & Steihaug 1983, "Truncated-Newton algorithms for
    large-scale unconstrained optimization"): with what it has, and at once with a multiple of b.
    """
    x = [torch.zeros_like(part) for part in b]
    residual, direction = list(b), list(b)
    square = first = _dot(b, b)
    for _ in range(options.cg_steps):
        if float(square) <= options.tolerance**2 * float(first):
            break
        along = product(direction)
        curvature = _dot(direction, along)
        if float(curvature) <= 0:
            first_step = square / curvature.abs() if float(curvature) else torch.zeros_like(square)
            return [first_step * part for part in b] if square is first else x
        x = [part + square / curvature * d for part, d in zip(x, direction, strict=True)]
        residual = [part - square / curvature * a for part, a in zip(residual, along, strict=True)]
        before, square = square, _dot(residual, residual)
        direction = [r + square / before * d for r, d in zip(residual, direction, strict=True)]
    return x


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([torch.vdot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def leaves(values: Params) -> Params:
    """Return copies that share the numbers and no history, to differentiate by."""
    return {name: value.detach().requires_grad_() for name, value in values.items()}


def _add(total: Params, more: dict[str, Tensor | None]) -> None:
    for name, value in more.items():
        if value is not None:
            total[name] = total[name] + value if name in total else value


HYPERGRADIENTS: dict[str, Hypergradient] = {
    "graph": graph,
    "checkpointed": checkpointed,
    "implicit": implicit,
    "first-order": first_order,
}
