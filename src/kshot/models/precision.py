"""Which matrix products: the fastest exact route for fp32 on this machine, found by a probe; bf16 where it is asked for."""

from __future__ import annotations

from functools import cache

import torch

from kshot.errors import ConfigError, listing, nearest

PRECISIONS = ("fp32", "bf16")
_EXACT = 1e-6  # relative error of an fp32 product of this size; bf16 products are at 2e-3


def choose_matmul_route() -> str:
    """Probe whether PyTorch's ``medium`` route is exact here, set it if so, and say what was chosen.

    On AMD processors ``medium`` means oneDNN instead of MKL, at fp32 accuracy and about twice the speed. On processors with
    bf16 matrix units the same setting rounds to bf16, so the route is judged by its error, not by its name.
    """
    error = _error_of_medium()
    if error <= _EXACT:
        torch.set_float32_matmul_precision("medium")
        return f"fp32 matrix products: oneDNN (probed error {error:.0e})"
    torch.set_float32_matmul_precision("highest")
    return f"fp32 matrix products: default route (oneDNN would round to bf16 here, probed error {error:.0e})"


@cache
def _error_of_medium() -> float:
    """Return the relative error of a product by the ``medium`` route: a fact of the machine, while the route may be reset."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        return float(((a @ b).double() - exact).norm() / exact.norm())
    finally:
        torch.set_float32_matmul_precision(before)


def default_matmul_route() -> str:
    """Set PyTorch's default route, and say so."""
    torch.set_float32_matmul_precision("highest")
    return "fp32 matrix products: default route (fast is off, nothing was probed)"


def require_precision(precision: str, device: str) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        ConfigError: an unknown one, or bf16 where products in it are not computed or only emulated.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision is '{precision}'.{nearest(precision, PRECISIONS)}", f"Expected one of {listing(PRECISIONS)}."
        )
    if precision == "bf16" and not _has_bf16(device):
        raise ConfigError(f"The device '{device}' has no bf16 products.", mend="Use --precision fp32.")


def _has_bf16(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
