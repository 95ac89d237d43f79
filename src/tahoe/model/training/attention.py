"""Attention for training: masked tokens are hidden without a mask, and gradients come from the fast kernels.

Whoever is hidden is seen by itself alone. So every query attends to the visible keys of its cell, which are fewer and
need no mask, and the score of a masked token with itself is added to its softmax afterwards. The kernels' gradient
needs the sum of the exponentials of each query and nothing else of the softmax; with the completed sum it is that of
the whole.
Shapes are written as suffixes: T tokens of the batch, S visible tokens, M masked tokens, G tokens of a group of cells,
H heads, K head size, B cells of a group, N queries, V keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tahoe.model.cuda.transfers import to_device
from tahoe.model.network.attention import Spans

# Cells in a group are padded to the longest of them, by this share at the most.
PADDING = 1 / 16
# Scores of a group on the path that holds them: bounds its memory.
MOST_SCORES = 1 << 24

# Where torch has a kernel for dense batches that gives the sums of exponentials; elsewhere the formula is written out.
WITH_KERNEL = {"cpu"}

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Group:
    """Cells of like length, as indices into packed tokens; what is padding points to the first token of its cell."""

    queries_BN: Tensor
    keys_BV: Tensor
    bias_B11V: Tensor | None
    """Zero at keys and -inf at padding; None without padding."""
    is_query_BN: Tensor | None
    """Which queries are tokens; None if all are."""


@dataclass(frozen=True, eq=False)
class Visibility:
    """Who sees whom in a batch: made once, and used by all layers."""

    cells: Spans
    masked_M: Tensor
    visible_S: Tensor
    keys: Spans
    """Where each cell begins and ends among the visible tokens."""
    groups: list[Group] | None
    """For the kernels that take dense batches; None for the packed ones."""

    @classmethod
    def of(cls, bounds: np.ndarray, masked_T: np.ndarray | None, device: torch.device, packed: bool) -> Visibility:
        """Find the visible tokens of each cell; None hides nothing."""
        visible_T = np.ones(bounds[-1], dtype=bool) if masked_T is None else ~masked_T
        visible_S = np.flatnonzero(visible_T)
        keys = np.concatenate([[0], np.cumsum(visible_T)])[bounds]
        groups = None if packed else [_group(some, bounds, keys, visible_S, device) for some in _alike(bounds, keys)]
        return cls(
            Spans.of(bounds.tolist(), device),
            to_device(np.flatnonzero(~visible_T), device),
            to_device(visible_S, device),
            Spans.of(keys.tolist(), device),
            groups,
        )

    def attend(
        self, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, _: Spans, __: Spans, ___: Tensor | None = None
    ) -> Tensor:
        """Attention as the layers call it; who sees whom is known already."""
        return _Attention.apply(q_THK, k_THK, v_THK, self)


def is_packed(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether one kernel takes all cells as they lie: CUDA from Ampere on, in 16 bits."""
    if device.type != "cuda" or head_size % 8 or head_size > 256:
        return False
    return dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0)


def _alike(bounds: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Cells of like length, in groups, which depend on the lengths alone."""
    lengths, n_keys = np.diff(bounds), np.diff(keys)
    groups: list[list[int]] = []
    for cell in np.argsort(lengths, kind="stable"):
        shortest = lengths[groups[-1][0]] if groups else 0
        scores = (len(groups[-1]) + 1) * lengths[cell] * n_keys[cell] if groups else 0
        if groups and lengths[cell] <= (1 + PADDING) * shortest and scores <= MOST_SCORES:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return [np.array(group) for group in groups]


def _group(
    some: np.ndarray, bounds: np.ndarray, keys: np.ndarray, visible_S: np.ndarray, device: torch.device
) -> Group:
    queries_BN, is_query_BN = _padded(bounds, some)
    places_BV, is_key_BV = _padded(keys, some)
    bias_BV = np.where(is_key_BV, np.float32(0), np.float32(-np.inf))
    return Group(
        to_device(queries_BN, device),
        to_device(visible_S[places_BV], device),
        None if is_key_BV.all() else to_device(bias_BV, device)[:, None, None],
        None if is_query_BN.all() else to_device(is_query_BN, device),
    )


def _padded(bounds: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the tokens of some cells, padded with those of their first tokens, and which are no padding."""
    starts, lengths = bounds[some], bounds[some + 1] - bounds[some]
    place = np.arange(lengths.max())
    inside = place < lengths[:, None]
    return starts[:, None] + np.where(inside, place, 0), inside


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, who: Visibility) -> Tensor:
        with torch.autocast(q_THK.device.type, enabled=False):
            out_THK, sums_TH = _forward(q_THK, k_THK, v_THK, who)
            if len(who.masked_M):
                _add_own(q_THK, k_THK, v_THK, who, out_THK, sums_TH)
        ctx.save_for_backward(q_THK, k_THK, v_THK, out_THK, sums_TH)
        ctx.who = who
        return out_THK

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_THK, k_THK, v_THK, out_THK, sums_TH = ctx.saved_tensors
        with torch.autocast(q_THK.device.type, enabled=False):
            grads = _backward(grad_THK.contiguous(), q_THK, k_THK, v_THK, out_THK, sums_TH, ctx.who)
            if len(ctx.who.masked_M):
                _add_own_gradient(grad_THK, q_THK, k_THK, v_THK, out_THK, sums_TH, ctx.who.masked_M, grads)
        return *grads, None


def _add_own(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, who: Visibility, out_THK: Tensor, sums_TH: Tensor) -> None:
    """Let masked tokens see themselves too, in place; `sums_TH` are logarithms of sums of exponentials."""
    q_MHK, k_MHK, v_MHK, out_MHK = (t[who.masked_M].to(_wide(t)) for t in (q_THK, k_THK, v_THK, out_THK))
    before_MH, own_MH = sums_TH[who.masked_M], (q_MHK * k_MHK).sum(-1) * q_THK.shape[-1] ** -0.5
    after_MH = torch.logaddexp(before_MH, own_MH)
    out_MHK.mul_((before_MH - after_MH).exp()[..., None]).addcmul_(v_MHK, (own_MH - after_MH).exp()[..., None])
    out_THK[who.masked_M] = out_MHK.to(out_THK.dtype)
    sums_TH[who.masked_M] = after_MH


def _add_own_gradient(
    grad_THK: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THK: Tensor,
    out_THK: Tensor,
    sums_TH: Tensor,
    masked_M: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The part of the gradients that comes from each masked token's look at itself, in place."""
    grad, q, k, v, out = (t[masked_M].to(_wide(t)) for t in (grad_THK, q_THK, k_THK, v_THK, out_THK))
    scale = q.shape[-1] ** -0.5
    share_MH1 = ((q * k).sum(-1) * scale - sums_TH[masked_M]).exp()[..., None]
    score_MH1 = share_MH1 * (grad * (v - out)).sum(-1, keepdim=True) * scale
    for total_THK, part_MHK in zip(grads, (score_MH1 * k, score_MH1 * q, share_MH1 * grad), strict=True):
        total_THK.index_add_(0, masked_M, part_MHK.to(total_THK.dtype))


def _forward(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, who: Visibility) -> tuple[Tensor, Tensor]:
    """What each token sees of the visible ones, and the logarithms of the sums of its exponentials, (T, H) float32."""
    if who.groups is None:
        q, k, v = _packed(q_THK, k_THK, v_THK, who)
        out_THK, sums_HT, *_ = aten._flash_attention_forward(
            q, k, v, *_bounds(who), 0.0, False, False, scale=q.shape[-1] ** -0.5
        )
        return out_THK, sums_HT.T.contiguous()
    out_THK = torch.empty(q_THK.shape, dtype=q_THK.dtype, device=q_THK.device)
    sums_TH = torch.empty(q_THK.shape[:2], dtype=_wide(q_THK), device=q_THK.device)
    for group in who.groups:
        out_BHNK, sums_BHN = _group_forward(*_dense(q_THK, k_THK, v_THK, group), group)
        for packed, dense in ((out_THK, out_BHNK.transpose(1, 2)), (sums_TH, sums_BHN.transpose(1, 2))):
            if group.is_query_BN is None:
                packed[group.queries_BN.flatten()] = dense.flatten(0, 1)
            else:
                packed[group.queries_BN[group.is_query_BN]] = dense[group.is_query_BN]
    return out_THK, sums_TH


def _backward(
    grad_THK: Tensor, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, out_THK: Tensor, sums_TH: Tensor, who: Visibility
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by way of the visible keys."""
    grads = tuple(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (q_THK, k_THK, v_THK))
    if who.groups is None:
        q, k, v = _packed(q_THK, k_THK, v_THK, who)
        none = torch.zeros(2, dtype=torch.uint64, device=q.device)
        q_grad, k_grad, v_grad = aten._flash_attention_backward(
            grad_THK, q, k, v, out_THK, sums_TH.T.contiguous(), *_bounds(who), 0.0, False, none,
            torch.empty(0, dtype=torch.float32, device=q.device), scale=q.shape[-1] ** -0.5,
        )  # fmt: skip
        grads[1][who.visible_S], grads[2][who.visible_S] = k_grad, v_grad
        return q_grad, grads[1], grads[2]
    for group in who.groups:
        grad, out = (_taken(t, group.queries_BN) for t in (grad_THK, out_THK))
        sums_BHN = sums_TH[group.queries_BN].transpose(1, 2)
        if group.is_query_BN is not None:
            grad = grad * group.is_query_BN[:, None, :, None]  # what no token asked has no gradient
        found = _group_backward(grad, *_dense(q_THK, k_THK, v_THK, group), out, sums_BHN, group)
        places = (group.queries_BN, group.keys_BV, group.keys_BV)
        for total_THK, part_BHNK, place in zip(grads, found, places, strict=True):
            total_THK.index_add_(0, place.flatten(), part_BHNK.transpose(1, 2).flatten(0, 1).to(total_THK.dtype))
    return grads  # type: ignore[return-value]


def _packed(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, who: Visibility) -> tuple[Tensor, Tensor, Tensor]:
    return q_THK.contiguous(), k_THK[who.visible_S], v_THK[who.visible_S]


def _bounds(who: Visibility) -> tuple[Tensor, Tensor, int, int]:
    return who.cells.device_bounds, who.keys.device_bounds, who.cells.longest, who.keys.longest


def _dense(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    return _taken(q_THK, group.queries_BN), _taken(k_THK, group.keys_BV), _taken(v_THK, group.keys_BV)


def _wide(t: Tensor) -> torch.dtype:
    """The precision of a softmax: float32 at least."""
    return torch.promote_types(t.dtype, torch.float32)


def _taken(packed_THK: Tensor, places_BN: Tensor) -> Tensor:
    """Tokens of a group, (B, H, N, K)."""
    return packed_THK[places_BN].transpose(1, 2)


def _group_forward(q: Tensor, k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    if q.device.type in WITH_KERNEL:
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=_bias(group, q))
    scores = _scores(q, k, group)
    sums = scores.logsumexp(-1)
    return ((scores - sums[..., None]).exp().to(v.dtype) @ v), sums


def _group_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type in WITH_KERNEL:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, sums, 0.0, False, attn_mask=_bias(group, q)
        )
    shares = (_scores(q, k, group) - sums[..., None]).exp()
    own = (grad.to(shares.dtype) * out.to(shares.dtype)).sum(-1, keepdim=True)
    scores = (shares * ((grad @ v.mT).to(shares.dtype) - own) * q.shape[-1] ** -0.5).to(q.dtype)
    return scores @ k, scores.mT @ q, shares.to(grad.dtype).mT @ grad


def _scores(q: Tensor, k: Tensor, group: Group) -> Tensor:
    scores = (q @ k.mT).to(_wide(q)) * q.shape[-1] ** -0.5
    return scores if group.bias_B11V is None else scores + group.bias_B11V


def _bias(group: Group, q: Tensor) -> Tensor | None:
    """The bias as the kernel for CPUs takes it: in the precision of the queries, and as if it had rows."""
    if group.bias_B11V is None:
        return None
    return group.bias_B11V.to(q.dtype).expand(-1, -1, q.shape[2], -1)
