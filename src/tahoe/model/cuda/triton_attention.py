"""Attention over cells that lie end to end, as a Triton kernel: one program for a block of queries of a head of a cell.

On Hopper it takes two thirds to three quarters of the time of the kernel that torch has for this (see the guide on
speed). Imported only where Triton is.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attention_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, output_ptr, bounds_ptr, scale,
    q_stride, k_stride, v_stride, output_stride,
    SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    start = tl.load(bounds_ptr + tl.program_id(2)).to(tl.int64)
    length = (tl.load(bounds_ptr + tl.program_id(2) + 1) - start).to(tl.int32)
    first = tl.program_id(0) * QUERIES
    if first >= length:
        return
    head = tl.program_id(1) * SIZE
    column = tl.arange(0, SIZE)
    query = first + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    q_rows = (start + query)[:, None]
    q = tl.load(q_ptr + q_rows * q_stride + head + column[None, :], mask=query[:, None] < length, other=0.0)
    k_ptrs = k_ptr + (start + key)[None, :] * k_stride + head + column[:, None]
    v_ptrs = v_ptr + (start + key)[:, None] * v_stride + head + column[None, :]
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    summed = tl.zeros([QUERIES, SIZE], tl.float32)
    whole = length // KEYS * KEYS
    for _ in range(0, whole, KEYS):
        scores = tl.dot(q, tl.load(k_ptrs))
        risen = tl.maximum(largest, tl.max(scores, 1) * scale)
        powers = tl.exp2(scores * scale - risen[:, None])
        shrink = tl.exp2(largest - risen)
        total = total * shrink + tl.sum(powers, 1)
        summed = tl.dot(powers.to(q.dtype), tl.load(v_ptrs), summed * shrink[:, None])
        largest = risen
        k_ptrs += KEYS * k_stride
        v_ptrs += KEYS * v_stride
    if whole < length:
        there = whole + key < length
        scores = tl.dot(q, tl.load(k_ptrs, mask=there[None, :], other=0.0))
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        risen = tl.maximum(largest, tl.max(scores, 1))
        powers = tl.exp2(scores - risen[:, None])
        shrink = tl.exp2(largest - risen)
        total = total * shrink + tl.sum(powers, 1)
        values = tl.load(v_ptrs, mask=there[:, None], other=0.0)
        summed = tl.dot(powers.to(q.dtype), values, summed * shrink[:, None])
    output = summed / total[:, None]
    target = output_ptr + q_rows * output_stride + head + column[None, :]
    tl.store(target, output.to(output_ptr.dtype.element_ty), mask=query[:, None] < length)


# Queries and keys of a block, warps and stages of the pipeline: the best of those that were measured on an H200.
BLOCKS = (128, 64, 8, 3)
HEAD_SIZES = (16, 32, 64, 128)


def attention(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THK: Tensor,
    bounds: Tensor,
    longest: int,
    blocks: tuple[int, int, int, int] = BLOCKS,
) -> Tensor:
    """Attention of each token to the tokens of its cell: (T, H, K)."""
    queries, keys, warps, stages = blocks
    _, n_heads, size = q_THK.shape
    output_THK = torch.empty(q_THK.shape, dtype=q_THK.dtype, device=q_THK.device)
    grid = (triton.cdiv(longest, queries), n_heads, len(bounds) - 1)
    _attention_kernel[grid](
        *(q_THK, k_THK, v_THK, output_THK, bounds, size**-0.5 * math.log2(math.e)),
        *(q_THK.stride(0), k_THK.stride(0), v_THK.stride(0), output_THK.stride(0)),
        SIZE=size, QUERIES=queries, KEYS=keys, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return output_THK
