"""Norms with what stands around them, in one pass over the tokens where the device is a GPU and nothing is learnt.

On a GPU a norm costs what its reading and writing costs: with the residual sum before it and the cast after it in one
kernel, half of that. Everywhere else torch does them one after the other. Shapes: T tokens, D model width.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tahoe.model.cuda.transfers import infers_on_cuda

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)


def norm(x_TD: Tensor, layer_norm: nn.LayerNorm, precision: torch.dtype) -> Tensor:
    """Norm of each token in float32, cast to a precision: (T, D)."""
    found = kernels() if infers_on_cuda(x_TD) else None
    if found is None:
        return layer_norm(x_TD).to(precision)
    return found.norm(x_TD, layer_norm.weight, layer_norm.bias, layer_norm.eps, precision)


def add_norm(
    x_TD: Tensor, update_TD: Tensor, layer_norm: nn.LayerNorm, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum, in the precision of `x_TD`, and its norm, cast to a precision: both (T, D)."""
    found = kernels() if infers_on_cuda(x_TD) else None
    if found is None:
        x_TD = x_TD + update_TD
        return x_TD, layer_norm(x_TD).to(precision)
    return found.add_norm(x_TD, update_TD, layer_norm.weight, layer_norm.bias, layer_norm.eps, precision)


@cache
def kernels() -> ModuleType | None:
    """The kernels, if they can be compiled here: Triton needs a C compiler, which not every machine has."""
    try:
        from tahoe.model.cuda import triton_norms

        one = torch.ones(1, 16, device="cuda", dtype=torch.float32)
        triton_norms.norm(one, one[0], one[0], 1e-5, torch.bfloat16)
    except Exception as error:  # noqa: BLE001 - Triton, the compiler and the driver each have errors of their own
        log.info("kernels are not fused: Triton does not run here (%s)", error)
        return None
    return triton_norms
