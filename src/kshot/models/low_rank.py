"""Low-rank updates of linear layers (LoRA), exact to the second derivative, with hand-written derivatives.

With x (N, I), A (R, I) and B (R, O), the transpose of LoRA's, the update is ``s x A^T B``. Its products are thin, so their
number costs more than their operations: several layers of one input are one update, with their A one below the other and
their B as blocks of a diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def low_rank(
    y: Tensor, x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor], scaling: float, narrow: torch.dtype | None = None
) -> Tensor:
    """Add the low-rank updates of linear layers of one input to the layers' outputs, in place, and return those.

    Args:
        y: the layers' outputs without them side by side (N, sum of O_i), not needed by a derivative of what made them.
        x: their input (N, I).
        downs: LoRA's A of each layer (R_i, I); of no rows for a layer without an update.
        ups: LoRA's B of each (O_i, R_i).
        scaling: the factor of every update.
        narrow: the number format of the factors of every product; None for that of ``x``.

    References:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, equation 3.
    """
    down = downs[0] if len(downs) == 1 else torch.cat(list(downs))
    up = ups[0].t() if len(ups) == 1 else torch.block_diag(*(matrix.t() for matrix in ups))  # type: ignore[no-untyped-call]
    result: Tensor = _LowRank.apply(y, x, down, up, scaling, narrow)  # type: ignore[no-untyped-call]
    return result


class _LowRank(Function):
    """With t = x A^T (N, R): y + s t B."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor, scaling: float, narrow: torch.dtype | None) -> Tensor:
        ctx.setting = (scaling, narrow or x.dtype)
        t = x.to(ctx.setting[1]) @ down.t().to(ctx.setting[1])
        ctx.save_for_backward(x, down, up, t)
        ctx.mark_dirty(y)
        return y.addmm_(t, up, alpha=scaling) if t.dtype == y.dtype else y.add_((t @ up.to(t.dtype)).to(y.dtype), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = _LowRankGradient.apply(g, *ctx.saved_tensors, ctx.setting, ctx.needs_input_grad[1:4])  # type: ignore[no-untyped-call]
        return g, *found, None, None


class _LowRankGradient(Function):
    """With G (N, O) the gradient at the output and h = s G B^T (N, R): h A, h^T x and s t^T G."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, down: Tensor, up: Tensor, t: Tensor, setting: Any, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        scaling, narrow = ctx.setting = setting
        factor, h = g.to(narrow), None
        if wanted[0] or wanted[1]:
            h = (factor @ up.t().to(narrow)).mul_(scaling)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(factor, x, down, up, t, h)
        return (
            (h @ down.to(narrow)).to(g.dtype) if h is not None and wanted[0] else None,
            (h.t() @ x.to(narrow)).to(g.dtype) if h is not None and wanted[1] else None,
            (t.t() @ factor).to(g.dtype).mul_(scaling) if wanted[2] else None,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, by_down: Tensor | None, by_up: Tensor | None) -> tuple[Tensor | None, ...]:
        """The derivative of <u, h A> + <P, h^T x> + <Q, s t^T G>, with u, P and Q the cotangents.

        With p = u A^T + x P^T, the change of t, and k = s G Q^T: to G: s (p B + t Q); to x: h P + k A; to A: h^T u + k^T x; to
        B: s p^T G.
        """
        g, x, down, up, t, h = ctx.saved_tensors
        scaling, narrow = ctx.setting
        needs_g, needs_x, needs_down, needs_up = ctx.needs_input_grad[:4]
        wide = x.dtype
        x, down, up = x.to(narrow), down.to(narrow), up.to(narrow)
        p = to_g = to_x = to_down = None
        if u is not None:
            u = u.to(narrow)
            p = u @ down.t()
            to_down = h.t() @ u if needs_down else None
        if by_down is not None:
            by_down = by_down.to(narrow)
            p = x @ by_down.t() if p is None else p.addmm_(x, by_down.t())
            to_x = h @ by_down if needs_x else None
        if by_up is not None:
            by_up = by_up.to(narrow)
            k = (g @ by_up.t()).mul_(scaling)
            to_g = (t @ by_up).mul_(scaling) if needs_g else None
            to_x = _sum(to_x, k, down) if needs_x else None
            to_down = _sum(to_down, k.t(), x) if needs_down else None
        to_up = (p.t() @ g).mul_(scaling) if p is not None and needs_up else None
        if p is not None and needs_g:
            to_g = _sum(to_g, p.mul_(scaling), up)
        return *(None if each is None else each.to(wide) for each in (to_g, to_x, to_down, to_up)), None, None, None


def _sum(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if total is None else total.addmm_(a, b)
