"""Linear layers in whole numbers of eight bits: twice the rate of bfloat16 on CPUs that multiply them by themselves.

Weights have a scale for each feature that comes out, what goes in has one for the whole cell. Sums are exact.
Shapes are written as suffixes: M rows, K features in, N features out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tahoe.errors import ModelError
from tahoe.model.cpu.compiling import ALL_BUT_SIGN, bits_of, compiled, entries, float_of
from tahoe.model.cpu.linear import FUSED, computed_in

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST_STEP, ZERO_POINT = 127, 128


class Int8Linear(nn.Module):
    """What replaces a linear layer, and an activation after it, in inference."""

    precision = computed_in(torch.int8)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_NK = linear.weight.detach().float()
        self.scale_N = (weight_NK.abs().amax(1) / LARGEST_STEP).clamp(min=torch.finfo(torch.float32).tiny)
        self.zero_N = torch.zeros(len(weight_NK), dtype=torch.int64, device=weight_NK.device)
        self.bias_N = linear.bias.detach().float()
        rounded_NK = (weight_NK / self.scale_N[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded_NK, None)

    def __getstate__(self) -> dict[str, Any]:
        message = "a model in int8 cannot be sent to another process; load it there, by its name or its folder"
        raise ModelError(message)

    def forward(self, x_MK: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Apply the layer to the tokens of one cell: (M, N), in the precision of what goes in."""
        x_MK = x_MK.contiguous()
        rounded_MK = torch.empty(x_MK.shape, dtype=torch.uint8, device=x_MK.device)
        step = round_to_steps(entries(x_MK).reshape(-1), rounded_MK.numpy().reshape(-1))
        weight, fused = (self.packed, self.scale_N, self.zero_N, self.bias_N), FUSED.get(activation, "none")
        y_MN = torch.ops.onednn.qlinear_pointwise(
            rounded_MK, step, ZERO_POINT, *weight, 1.0, 0, x_MK.dtype, fused, [], "none"
        )
        return y_MN if activation is None or activation in FUSED else activation(y_MN)


@compiled("reassoc", "contract")
def round_to_steps(x: Any, rounded: Any) -> Any:
    """Write how many steps from zero each entry is, plus `ZERO_POINT`; give the step, of which the largest has 127."""
    bits = np.int32(0)
    for i in range(x.shape[0]):
        bits = max(bits, np.int32(bits_of(x[i]) & ALL_BUT_SIGN))
    largest = float_of(bits)
    per_entry = np.float32(LARGEST_STEP) / largest if largest > 0 else np.float32(0)
    for i in range(x.shape[0]):
        rounded[i] = np.uint8(np.int32(np.rint(float_of(bits_of(x[i])) * per_entry) + np.float32(ZERO_POINT)))
    return largest / np.float32(LARGEST_STEP)
