"""Attention among the tokens of each cell, over cells that lie end to end: plain functions in a dict.

All take ``(q, k, v, queries, keys, masked)``: packed tensors of shape (tokens, heads, head size), the boundaries of the
cells in the queries and in the keys, and which tokens are masked (or None). All return a packed tensor like ``q``.
Shapes are written as suffixes: T tokens, H heads, K head size, N tokens of one cell.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tahoe.errors import DeviceError
from tahoe.model.cpu.linear import NARROW, computed_in, has_bfloat16, has_numba, has_onednn, product, runs_in_onednn
from tahoe.model.cuda import fused
from tahoe.model.cuda.transfers import infers_on_cuda, to_device

# Bytes of the scores of one head that are held at a time: about what a second-level cache takes. Measured on Zen 5.
BLOCK = 1536 << 10


@dataclass(frozen=True)
class Spans:
    """Where each cell begins and ends in a packed tensor."""

    bounds: list[int]
    """Boundaries on the host: cell ``i`` is ``bounds[i]:bounds[i + 1]``."""
    device_bounds: Tensor
    """The same as int32 on the device, as the packed kernels want them."""

    @classmethod
    def of(cls, bounds: list[int], device: torch.device) -> Spans:
        """Put boundaries on a device."""
        return cls(bounds, to_device(np.array(bounds, dtype=np.int32), device))

    @classmethod
    def single(cls, n_cells: int, device: torch.device) -> Spans:
        """One token for each cell."""
        return cls(list(range(n_cells + 1)), torch.arange(n_cells + 1, dtype=torch.int32, device=device))

    @property
    def starts_C(self) -> Tensor:
        """Index of the first token of each cell."""
        return self.device_bounds[:-1].long()

    @property
    def longest(self) -> int:
        """Tokens of the longest cell."""
        return max(self.lengths, default=0)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each cell."""
        return [end - start for start, end in itertools.pairwise(self.bounds)]


Attention = Callable[[Tensor, Tensor, Tensor, Spans, Spans, Tensor | None], Tensor]


def allowed(masked_N: Tensor) -> Tensor:
    """Who may see whom, (N, N): everybody sees the visible tokens, and each token itself."""
    return ~masked_N[None, :] | torch.eye(len(masked_N), dtype=torch.bool, device=masked_N.device)


def _cells(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    # One split, not many slices: the gradient of each slice would be as large as the whole.
    parts = (q_THK.split(queries.lengths), k_THK.split(keys.lengths), v_THK.split(keys.lengths))
    masked = itertools.repeat(None) if masked_T is None else masked_T.split(keys.lengths)
    return zip(*parts, masked, strict=False)


def sdpa(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """Run torch's scaled_dot_product_attention on one cell at a time."""
    outputs = []
    for q_NHK, k_NHK, v_NHK, masked_N in _cells(q_THK, k_THK, v_THK, queries, keys, masked_T):
        mask = None if masked_N is None else allowed(masked_N)[: len(q_NHK)]
        q, k, v = (t.transpose(0, 1)[None] for t in (q_NHK, k_NHK, v_NHK))
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def blocked(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """Write the formula out in blocks of queries, with oneDNN's matrix products: x86 CPUs, in inference.

    What is summed is divided by the sum of its weights in the end, where it is narrow.
    """
    if masked_T is not None or not runs_in_onednn(q_THK) or not has_numba():
        return sdpa(q_THK, k_THK, v_THK, queries, keys, masked_T)
    from tahoe.model.cpu.compiling import entries
    from tahoe.model.cpu.softmax import exponentials

    output_THK = torch.empty(q_THK.shape, dtype=q_THK.dtype, device=q_THK.device)
    scale = np.float32(q_THK.shape[-1] ** -0.5)
    cells = zip(output_THK.split(queries.lengths), _cells(q_THK, k_THK, v_THK, queries, keys, None), strict=True)
    for output_NHK, (q_NHK, k_NHK, v_NHK, _) in cells:
        rows = max(1, BLOCK // (len(k_NHK) * k_NHK.itemsize * 64)) * 64
        totals_N1 = torch.empty((len(q_NHK), 1), dtype=torch.float32, device=q_THK.device)
        for head in range(q_THK.shape[1]):
            q_NK, k_NK, v_NK = (t[:, head].contiguous() for t in (q_NHK, k_NHK, v_NHK))
            v_KN = v_NK.T.contiguous()
            for start in range(0, len(q_NK), rows):
                block = slice(start, start + rows)
                scores = product(q_NK[block], k_NK)
                exponentials(entries(scores), scale, totals_N1[block, 0].numpy())
                torch.div(product(scores, v_KN), totals_N1[block], out=output_NHK[block, head])
    return output_THK


def weights(q_NHK: Tensor, k_NHK: Tensor, masked_N: Tensor | None = None) -> Tensor:
    """Attention weights of one cell, (heads, queries, keys) float32; each row sums to one."""
    scores_HNN = torch.einsum("qhk,nhk->hqn", q_NHK, k_NHK) / q_NHK.shape[-1] ** 0.5
    if masked_N is not None:
        scores_HNN = scores_HNN.masked_fill(~allowed(masked_N)[: len(q_NHK)], -torch.inf)
    return scores_HNN.float().softmax(-1)


def eager(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """Write the formula out, one cell at a time: the path on which the weights can be seen."""
    outputs = []
    for q_NHK, k_NHK, v_NHK, masked_N in _cells(q_THK, k_THK, v_THK, queries, keys, masked_T):
        outputs.append(torch.einsum("hqn,nhk->qhk", weights(q_NHK, k_NHK, masked_N).to(v_NHK.dtype), v_NHK))
    return torch.cat(outputs)


def varlen(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """All cells in one kernel: CUDA from Ampere on, 16-bit."""
    if masked_T is not None:
        return sdpa(q_THK, k_THK, v_THK, queries, keys, masked_T)
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q_THK, k_THK, v_THK, queries.device_bounds, keys.device_bounds, queries.longest, keys.longest)  # type: ignore[return-value]


def triton(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """All cells in one kernel of our own: CUDA on Hopper, 16-bit, in inference."""
    if masked_T is not None or queries is not keys or not infers_on_cuda(q_THK):
        return varlen(q_THK, k_THK, v_THK, queries, keys, masked_T)
    from tahoe.model.cuda import triton_attention

    if q_THK.shape[-1] not in triton_attention.HEAD_SIZES:
        return varlen(q_THK, k_THK, v_THK, queries, keys, masked_T)
    return triton_attention.attention(q_THK, k_THK, v_THK, queries.device_bounds, queries.longest)


def flash(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """Call the flash-attn package, where a user has it and asks for it."""
    if masked_T is not None:
        return sdpa(q_THK, k_THK, v_THK, queries, keys, masked_T)
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q_THK, k_THK, v_THK, queries.device_bounds, keys.device_bounds, queries.longest, keys.longest
    )


ATTENTION: dict[str, Attention] = {
    "sdpa": sdpa,
    "blocked": blocked,
    "varlen": varlen,
    "triton": triton,
    "eager": eager,
    "flash": flash,
}


def choose_attention(name: str | None, device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Name of the attention function to use; None and ``"auto"`` choose by device and by the width of the network.

    Raises
    ------
    tahoe.errors.DeviceError
        If a function that was requested by name cannot run here.
    """
    dtype = computed_in(dtype)
    if name in (None, "auto"):
        if _why_not_packed(device, dtype) is None:
            return "varlen" if _why_not_triton(device) else "triton"
        return "blocked" if width >= NARROW and _why_not_blocked(device, dtype) is None else "sdpa"
    if name not in ATTENTION:
        message = f"attention={name!r} is unknown; choose from auto, {', '.join(ATTENTION)}"
        raise DeviceError(message)
    why_not, instead = None, "sdpa"
    if name == "blocked":
        why_not = _why_not_blocked(device, dtype)
    elif name in ("varlen", "triton", "flash"):
        why_not = _why_not_packed(device, dtype)
    if name in ("triton", "flash") and why_not is None:
        why_not, instead = _why_not_triton(device) if name == "triton" else _why_not_flash(), "varlen"
    if why_not:
        message = f"attention={name!r} cannot run here: {why_not}; use attention={instead!r}"
        raise DeviceError(message)
    return str(name)


def _why_not_packed(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is {device.type!r}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an Ampere GPU or newer"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits, and dtype is {str(dtype).removeprefix('torch.')}"
    return None


def _why_not_triton(device: torch.device) -> str | None:
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "its blocks were chosen for Hopper GPUs"
    if fused.kernels() is None:
        return "Triton does not compile on this machine"
    return None


def _why_not_flash() -> str | None:
    return None if importlib.util.find_spec("flash_attn") else "it needs the package flash-attn, which is not installed"


def _why_not_blocked(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu" or not has_onednn():
        return "it needs an x86 CPU, and a torch with oneDNN"
    if not has_numba():
        return "it needs the package numba, and NUMBA_DISABLE_JIT not to be set"
    if dtype == torch.float32 or dtype == torch.bfloat16 and has_bfloat16():
        return None
    return f"this CPU does not compute in {str(dtype).removeprefix('torch.')} by itself"
