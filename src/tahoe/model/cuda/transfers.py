"""Between host and device without waiting: what a GPU is given next is on its way while it still computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; on CUDA from pinned memory, so that the host goes on at once."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def start_copy(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy a result to the host; what comes back waits for the end of the copy and gives the array."""
    if tensor.device.type != "cuda":
        return lambda: tensor.cpu().numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def infers_on_cuda(tensor: Tensor) -> bool:
    """Whether this is inference on CUDA, where kernels without a gradient may be taken."""
    return tensor.is_cuda and torch.is_inference_mode_enabled()
