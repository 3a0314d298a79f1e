"""Operations of a transformer layer that are exact to the second derivative, with hand-written derivatives.

PyTorch would derive the same numbers; written out, each derivative reuses what the one before it computed, and several
passes over memory become one. Every operation is a pair of autograd functions: the second is the derivative of the first, and
its own `backward` is the second derivative. A third derivative is refused by PyTorch with an error.

In the docstrings N is the number of tokens, ``u`` the cotangent of a gradient, and products are of two matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_aten = torch.ops.aten


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], narrow: torch.dtype | None = None) -> Tensor:
    """Return the outputs of several linear layers of one input side by side, in one product.

    Args:
        x: (N, I).
        weights: (O_i, I) each.
        biases: (O_i,) each, or none at all.
        narrow: the number format of the factors of every product, those of both derivatives included; None for that of ``x``.
            A product adds up wide and is rounded to it once; biases are added, and results returned, in the format of ``x``.

    Returns:
        (N, sum of O_i).
    """
    result: Tensor = _Linear.apply(x, narrow, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
    return result


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, narrow: torch.dtype | None, count: int, *affine: Tensor) -> Tensor:
        weights, biases = affine[:count], affine[count:]
        factor, matrix = _narrowed(x, narrow), _narrowed(_joined(weights), narrow)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, factor, matrix, *weights)
        return _plus(_joined(biases) if biases else None, factor, matrix.t()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * len(ctx.needs_input_grad)
        x, factor, matrix, *weights = ctx.saved_tensors
        count = len(weights)
        needs = ctx.needs_input_grad
        wanted = (needs[0], any(needs[3 : 3 + count]), any(needs[3 + count :]))
        gradients = _LinearGradient.apply(g, x, factor, matrix, wanted, *weights)  # type: ignore[no-untyped-call]
        return gradients[0], None, None, *gradients[1 : len(needs) - 2]


class _LinearGradient(Function):
    """With G (N, O) the gradient at the output: G W, G^T x and the sum of G over tokens."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, factor: Tensor, matrix: Tensor, wanted: tuple[bool, bool, bool], *weights: Tensor
    ) -> tuple[Tensor | None, ...]:
        narrow = _narrowed(g, factor.dtype)
        ctx.set_materialize_grads(False)
        ctx.sizes = [len(weight) for weight in weights]
        ctx.save_for_backward(narrow, factor, matrix)
        nothing = [None] * len(weights)
        return (
            (narrow @ matrix).to(g.dtype) if wanted[0] else None,
            *(torch.split((narrow.t() @ factor).to(g.dtype), ctx.sizes) if wanted[1] else nothing),
            *(torch.split(g.sum(0), ctx.sizes) if wanted[2] else nothing),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        """The derivative of <u, G W> + <U, G^T x> + <b, sum of G>, with U and b the cotangents of the other two."""
        g, factor, matrix = ctx.saved_tensors
        sizes, wide = ctx.sizes, next((c.dtype for c in (u, *rest) if c is not None), None)
        by_weights, by_biases = _filled(rest[: len(sizes)], sizes), _filled(rest[len(sizes) :], sizes)
        to_g: Tensor | None = by_biases
        to_x: Tensor | None = None
        to_weights: Sequence[Tensor | None] = [None] * len(sizes)
        if u is not None:
            u = _narrowed(u, factor.dtype)
            to_g = _plus(to_g, u, matrix.t())
            to_weights = torch.split((g.t() @ u).to(wide), sizes) if any(ctx.needs_input_grad[5:]) else to_weights
        if by_weights is not None:
            by_weights = _narrowed(by_weights, factor.dtype)
            to_g = _plus(to_g, factor, by_weights.t())
            to_x = (g @ by_weights).to(wide) if ctx.needs_input_grad[1] else None
        if to_g is not None and to_g.dim() == 1:
            to_g = to_g.expand(len(g), -1)
        return (None if to_g is None else to_g.to(wide)), to_x, None, None, None, *to_weights


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _narrowed(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)


def _filled(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Join cotangents one below the other, with zeros for those that are absent; None where all are."""
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    return _joined([some.new_zeros(size, *some.shape[1:]) if p is None else p for p, size in zip(parts, sizes, strict=True)])


def _plus(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return ``total + a b``; a product of narrow factors is widened before it is added to a wide total."""
    if total is None:
        return a @ b
    return torch.addmm(total, a, b) if total.dtype == a.dtype else (a @ b).to(total.dtype).add_(total)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return ``weight * y + bias`` with y = (x - mean) / sqrt(variance + eps) over the last dimension; x is (N, H)."""
    result: Tensor = _LayerNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return result


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, scale, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _LayerNormGradient.apply(g, *ctx.saved_tensors, ctx.needs_input_grad[:3])  # type: ignore[no-untyped-call]
        return *gradients, None


class _LayerNormGradient(Function):
    """With J h = scale * (h - mean h - y * mean(h y)), the derivative of y: J(g w), the sum of g y, the sum of g."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        found = _aten.native_layer_norm_backward(g, x, weight.shape, mean, scale, weight, bias, list(wanted))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, mean, scale, weight, found[0])
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        """The derivative of <g, w J u + y p + q>, with u, p and q the cotangents.

        J is symmetric and depends on x through y and scale: with h = g w, the derivative of <h, J u> by x is
        -scale * (y * mean(h J u) + J h * mean(u y) + J u * mean(h y)).
        """
        g, x, mean, scale, weight, first = ctx.saved_tensors
        size = x.shape[-1]
        y = (x - mean).mul_(scale)
        to_g = to_x = to_weight = None
        if u is not None:
            ju = _normalised_change(u, x, mean, scale, None)
            h = g * weight
            to_weight = (g * ju).sum(0) if ctx.needs_input_grad[4] else None
            to_g = ju * weight
            if ctx.needs_input_grad[1]:
                first = torch.zeros_like(x) if first is None else first
                shares = (torch.linalg.vecdot(a, b).unsqueeze(1).mul_(scale / -size) for a, b in ((h, ju), (u, y), (h, y)))
                to_x = (y * next(shares)).addcmul_(first, next(shares)).addcmul_(ju, next(shares))
        if by_weight is not None:
            to_g = y * by_weight if to_g is None else to_g.addcmul_(y, by_weight)
            if ctx.needs_input_grad[1]:
                jgp = _normalised_change(g, x, mean, scale, by_weight)
                to_x = jgp if to_x is None else to_x.add_(jgp)
        if by_bias is not None:
            to_g = by_bias.expand_as(x) if to_g is None else to_g.add_(by_bias)
        return to_g, to_x, None, None, to_weight, None, None


def _normalised_change(h: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None) -> Tensor:
    """Return J (h w)."""
    found = _aten.native_layer_norm_backward(h, x, x.shape[-1:], mean, scale, weight, None, [True, False, False])
    change: Tensor = found[0]
    return change


@dataclass(frozen=True)
class Activation:
    """An activation f: its value, ``g f'(x)`` in one pass, and f''."""

    value: Callable[[Tensor], Tensor]
    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor], Tensor]


def _gelu_second(x: Tensor) -> Tensor:
    """f(x) = x Phi(x), so f'' = phi(x) (2 - x^2), with phi the normal density."""
    square = x * x
    return torch.exp(square * -0.5).mul_(square.neg_().add_(2)).mul_(1 / math.sqrt(2 * math.pi))


def _tanh_gelu_second(x: Tensor) -> Tensor:
    """f(x) = x (1 + t) / 2 with t = tanh(v), v = c (x + a x^3): f'' = (1 - t^2) (v' + x v'' / 2 - x t v'^2)."""
    a, c = 0.044715, math.sqrt(2 / math.pi)
    square = x * x
    t, v1 = torch.tanh(c * x * (1 + a * square)), c * (1 + 3 * a * square)
    return (1 - t * t) * (v1 + 3 * a * c * square - x * t * v1 * v1)


_EXACT_GELU = Activation(F.gelu, _aten.gelu_backward, _gelu_second)
_TANH_GELU = Activation(
    lambda x: F.gelu(x, approximate="tanh"), lambda g, x: _aten.gelu_backward(g, x, approximate="tanh"), _tanh_gelu_second
)
_RELU = Activation(F.relu, lambda g, x: g * (x > 0), torch.zeros_like)
ACTIVATIONS = {
    "gelu": _EXACT_GELU,
    "gelu_python": _EXACT_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": _RELU,
}
"""By the names that Hugging Face configurations use."""


def activate(x: Tensor, name: str) -> Tensor:
    """Return the activation of that name in `ACTIVATIONS`, elementwise."""
    result: Tensor = _Activate.apply(x, ACTIVATIONS[name])  # type: ignore[no-untyped-call]
    return result


class _Activate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: Activation) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(x)
        return kind.value(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _ActivateGradient.apply(g, *ctx.saved_tensors, ctx.kind), None  # type: ignore[no-untyped-call]


class _ActivateGradient(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, kind: Activation) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(g, x)
        return kind.first(g, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        return ctx.kind.first(u, x), ctx.kind.second(x).mul_(g).mul_(u), None
