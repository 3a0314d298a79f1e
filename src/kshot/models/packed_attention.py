"""Self-attention over packed texts, exact to the second derivative.

Texts of like length are padded to the longest of their group for attention alone. With Q, K, V of one head (w, d), s the
scale, D the dropout's factors, and P = softmax(s Q K^T) set to zero wherever query or key is padding::

    A = P * D,   O = A V

Padded slots hold copies of some token: what they hold never counts, for every term below has P as a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kshot.models.packed_batch import Group


def attention(qkv: Tensor, groups: Sequence[Group], heads: int, scale: float, dropout: Sequence[Tensor] = ()) -> Tensor:
    """Return the attention's outputs (N, H).

    Args:
        qkv: queries, keys and values side by side (N, 3 H).
        groups: texts of like length; together all N tokens.
        heads: the number of heads that share H.
        scale: the factor of the products of queries and keys.
        dropout: for each group the factors of the attention weights (texts * heads, width, width); none without dropout.
    """
    result: Tensor = _Attention.apply(qkv, groups, heads, scale, dropout)  # type: ignore[no-untyped-call]
    return result


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: Sequence[Group], heads: int, scale: float, dropout: Sequence[Tensor]) -> Tensor:
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        saved = []
        for number, group in enumerate(groups):
            q, k, v = parts = _by_head(qkv, group, heads, 3)
            p = _softmax(torch.bmm(q, k.transpose(1, 2)).mul_(scale), group, heads)
            _by_token(torch.bmm(p * dropout[number] if dropout else p, v).unsqueeze(0), group, heads, out)
            saved += [parts, p]
        ctx.setting = (groups, heads, scale, dropout)
        ctx.save_for_backward(qkv, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *saved = ctx.saved_tensors
        return _AttentionGradient.apply(g, qkv, ctx.setting, *saved), None, None, None, None  # type: ignore[no-untyped-call]


class _AttentionGradient(Function):
    """With G the gradient at O: gV = A^T G, gP = (G V^T) * D, gS = P * (gP - r) with r the sums of P * gP over keys,
    gQ = s gS K, gK = s gS^T Q.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, qkv: Tensor, setting: tuple[Any, ...], *saved: Tensor) -> Tensor:
        groups, heads, scale, dropout = setting
        out = torch.empty_like(qkv)
        kept = []
        for number, group in enumerate(groups):
            (q, k, v), p = saved[2 * number : 2 * number + 2]
            (go,) = _by_head(g, group, heads, 1)
            gp = torch.bmm(go, v.transpose(1, 2))
            a = p
            if dropout:
                gp.mul_(dropout[number])
                a = p * dropout[number]
            gs = _through_softmax(p, gp)
            gradients = torch.stack([torch.bmm(gs, k).mul_(scale), torch.bmm(gs.mT, q).mul_(scale), torch.bmm(a.mT, go)])
            _by_token(gradients, group, heads, out)
            kept += [go, gp, gs]
        ctx.setting = setting
        ctx.save_for_backward(*saved, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The derivative of <u, gQ> + <w, gK> + <z, gV>, which is <G, O'> with O' the change of O along (u, w, z).

        S' = s (u K^T + Q w^T), P' = P * (S' - rho) with rho the sums of P * S' over keys, O' = (P' * D) V + A z. So to G: O';
        to V: (P' * D)^T G; to S': gS; to P: T = gP * (S' - rho) - r * S' + (G z^T) * D; whence to S: P * (T - sums of P * T).
        """
        groups, heads, scale, dropout = ctx.setting
        saved, kept = ctx.saved_tensors[: 2 * len(groups)], ctx.saved_tensors[2 * len(groups) :]
        to_g = cotangent.new_empty(len(cotangent), cotangent.shape[1] // 3)
        to_qkv = torch.empty_like(cotangent)
        for number, group in enumerate(groups):
            (q, k, v), p = saved[2 * number : 2 * number + 2]
            go, gp, gs = kept[3 * number : 3 * number + 3]
            u, w, z = _by_head(cotangent, group, heads, 3)
            s1 = torch.bmm(u, k.mT).baddbmm_(q, w.mT).mul_(scale)
            rho = torch.linalg.vecdot(p, s1).unsqueeze(-1)
            r = torch.linalg.vecdot(p, gp).unsqueeze(-1)
            t = torch.bmm(go, z.mT)
            p1, a = p * (s1 - rho), p
            if dropout:
                t.mul_(dropout[number])
                a = p * dropout[number]
            t.addcmul_(gp, s1 - rho).addcmul_(r, s1, value=-1)
            a1 = p1 * dropout[number] if dropout else p1
            to_s = _through_softmax(p, t)
            _by_token(torch.bmm(a1, v).baddbmm_(a, z).unsqueeze(0), group, heads, to_g)
            to_q = torch.bmm(gs, w).baddbmm_(to_s, k).mul_(scale)
            to_k = torch.bmm(gs.mT, u).baddbmm_(to_s.mT, q).mul_(scale)
            _by_token(torch.stack([to_q, to_k, torch.bmm(a1.mT, go)]), group, heads, to_qkv)
        return to_g, to_qkv, None, *(None for _ in saved)


def _softmax(scores: Tensor, group: Group, heads: int) -> Tensor:
    """Return the softmax over the keys of scores (texts * heads, w, w), zero wherever query or key is padding."""
    if group.slots is None:
        return torch.softmax(scores, -1)
    by_text = scores.view(group.texts, heads, group.width, group.width)
    real = group.mask.to(scores.dtype)
    by_text.add_(real.log()[:, None, None, :])  # adding minus infinity is ten times as fast as filling
    return torch.softmax(by_text, -1).mul_(real[:, None, :, None]).view_as(scores)


def _through_softmax(p: Tensor, g: Tensor) -> Tensor:
    """Return P * (g - sums of P * g over keys), the softmax's derivative."""
    return torch._softmax_backward_data(g, p, -1, p.dtype)


def _by_head(x: Tensor, group: Group, heads: int, parts: int) -> Tensor:
    """Return a group's rows of x (N, parts * H) as (parts, texts * heads, w, d)."""
    pieces = x.reshape(len(x) * parts * heads, -1)
    return pieces.index_select(0, group.gather[parts]).view(parts, group.texts * heads, group.width, -1)


def _by_token(x: Tensor, group: Group, heads: int, out: Tensor) -> None:
    """Write (parts, texts * heads, w, d) into the group's rows of ``out`` (N, parts * H)."""
    pieces = out[group.start : group.stop].view(group.tokens * len(x) * heads, -1)
    torch.index_select(x.view(-1, x.shape[-1]), 0, group.scatter[len(x)], out=pieces)
