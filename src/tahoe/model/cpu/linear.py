"""Matrix products on a CPU: through oneDNN where that is the fastest exact way, else as torch does them.

In float32, torch gives matrix products to MKL, which runs at less than half the speed of oneDNN on AMD processors. The
operator used here is the one that torch.compile emits. It has no gradient, so training goes the ordinary way.
Shapes are written as suffixes: M rows, K features in, N features out.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tahoe.model.cuda.transfers import infers_on_cuda

if TYPE_CHECKING:
    from collections.abc import Callable

# oneDNN compiles a kernel for each number of rows, so for each length of a cell. In networks that are narrower than
# this it takes longer than it saves.
NARROW = 256
# What oneDNN computes on the way out of a matrix product, and its names for them.
FUSED: dict[Callable[[Tensor], Tensor] | None, str] = {F.relu: "relu", F.gelu: "gelu"}


@cache
def has_onednn() -> bool:
    """Whether oneDNN can be called here: x86, and a torch that was built with it."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by itself."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return has_onednn() and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_numba() -> bool:
    """Whether numba can compile here: it is installed, fits the installed numpy, and NUMBA_DISABLE_JIT is not set."""
    try:
        import numba
    except (ImportError, AttributeError, SystemError):  # what it raises beside a numpy that it does not know
        return False
    return not getattr(numba.config, "DISABLE_JIT", False)


def has_int8() -> bool:
    """Whether this CPU multiplies matrices of eight bits by itself, and there is numba to round what goes in."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    known = has_onednn() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return known and native and has_numba()


def rounded_to(device: torch.device) -> str | None:
    """To what torch rounds the factors of products in float32, where the process asked for that: tf32 or bf16.

    As with ``torch.set_float32_matmul_precision("high")``.
    """
    backend = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(device.type)
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", "none")
    return None if precision in ("none", "ieee") else precision


def computed_in(precision: torch.dtype) -> torch.dtype:
    """The precision of what goes in and out of the linear layers."""
    if precision == torch.int8:
        return torch.bfloat16 if has_bfloat16() else torch.float32
    return precision


def runs_in_onednn(x: Tensor) -> bool:
    """Whether `product` computes with this tensor: on a CPU, in inference, in a precision that it knows."""
    if x.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return False
    return has_bfloat16() if x.dtype == torch.bfloat16 else x.dtype == torch.float32 and has_onednn()


def product(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, activation: str = "none") -> Tensor:
    """``activation(x @ weight.T + bias)`` by oneDNN. Both must be contiguous: it is very slow otherwise."""
    return torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, activation, [], "none")


def linear(
    x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """A linear layer, and an activation after it, the fastest exact way: (M, N)."""
    if activation is F.relu and infers_on_cuda(x_MK):
        # cuBLAS applies it on the way out
        return torch._addmm_activation(bias_N, x_MK, weight_NK.T)
    narrow = min(weight_NK.shape) < NARROW
    if narrow or not runs_in_onednn(x_MK) or x_MK.dtype != weight_NK.dtype:
        y_MN = F.linear(x_MK, weight_NK, bias_N)
    elif activation in FUSED:
        return product(x_MK, weight_NK, bias_N, FUSED[activation])
    else:
        y_MN = product(x_MK, weight_NK, bias_N)
    return y_MN if activation is None else activation(y_MN)


class Linear(nn.Linear):
    """A linear layer, and an activation after it, that go through oneDNN in inference on a CPU."""

    @property
    def precision(self) -> torch.dtype:
        """What the input must be in."""
        return self.weight.dtype

    def forward(self, x_MK: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Apply the layer: (M, N)."""
        return linear(x_MK, self.weight, self.bias, activation)

    def features(self, x_MK: Tensor, some: slice) -> Tensor:
        """Some of the features that come out."""
        return linear(x_MK, self.weight[some], self.bias[some])
