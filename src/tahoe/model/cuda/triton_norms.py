"""The fused norms as Triton kernels: one program a token. Imported only where Triton is."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, update_ptr, weight_ptr, bias_ptr, sum_ptr, output_ptr, width, eps, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if update_ptr is not None:
        x += tl.load(update_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(sum_ptr + row + column, x, mask=inside)
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
    output = centred * scale * weight + bias
    tl.store(output_ptr + row + column, output.to(output_ptr.dtype.element_ty), mask=inside)


def norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, precision: torch.dtype) -> Tensor:
    """Norm of each token, cast to a precision: (T, D)."""
    x_TD = x_TD.contiguous()
    output_TD = torch.empty(x_TD.shape, dtype=precision, device=x_TD.device)
    _launch(x_TD, None, weight_D, bias_D, None, output_TD, eps)
    return output_TD


def add_norm(
    x_TD: Tensor, update_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum in the precision of `x_TD`, and its norm, cast to a precision: both (T, D)."""
    x_TD, update_TD = x_TD.contiguous(), update_TD.contiguous()
    sum_TD = torch.empty_like(x_TD)
    output_TD = torch.empty(x_TD.shape, dtype=precision, device=x_TD.device)
    _launch(x_TD, update_TD, weight_D, bias_D, sum_TD, output_TD, eps)
    return sum_TD, output_TD


def _launch(
    x_TD: Tensor,
    update_TD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    sum_TD: Tensor | None,
    output_TD: Tensor,
    eps: float,
) -> None:
    width = x_TD.shape[-1]
    n_tokens = x_TD.numel() // width
    block = triton.next_power_of_2(width)
    warps = min(16, max(1, block // 256))
    _norm_kernel[(n_tokens,)](
        x_TD, update_TD, weight_D, bias_D, sum_TD, output_TD, width, eps, BLOCK=block, num_warps=warps
    )
