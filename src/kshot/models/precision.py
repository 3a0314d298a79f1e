"""The fastest exact route for fp32 matrix products on this machine, found by a probe."""

from __future__ import annotations

from functools import cache

import torch

_EXACT = 1e-6  # relative error of an fp32 product of this size; bf16 products are at 2e-3


@cache
def choose_matmul_route() -> str:
    """Probe whether PyTorch's ``medium`` route is exact here, set it if so, and say what was chosen.

    On AMD processors ``medium`` means oneDNN instead of MKL, at fp32 accuracy and about twice the speed. On processors with
    bf16 matrix units the same setting rounds to bf16, so the route is judged by its error, not by its name.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    error = float(((a @ b).double() - exact).norm() / exact.norm())
    if error <= _EXACT:
        return f"fp32 matrix products: oneDNN (probed error {error:.0e})"
    torch.set_float32_matmul_precision("highest")
    return f"fp32 matrix products: default route (oneDNN would round to bf16 here, probed error {error:.0e})"
