"""Effects of token edits to first order: of every token of a cell at once, from one forward pass.

A bias on the key of a token, shared by all layers and heads, weighs the token: at zero it is there, at minus infinity
it is deleted. So the derivative with respect to the bias, at zero, is minus the effect of the deletion, to first order.
A token that is not there enters as a shadow: it attends to the tokens of the cell and to itself, while nobody attends
to it but through a gate that is zero, and the derivative with respect to the gate is the effect of inserting it.

Both are derivatives of the coordinates of the cell's embedding, at length 1, in some directions; each direction costs a
backward pass. All ways of `tahoe.model.network.attention` that are faster than these have no gradient.
Shapes are written as suffixes: N tokens of the cell, S shadows, J directions, D model width, H heads, K head size.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tahoe.model.network.attention import Spans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tahoe.model.network.network import Batch, Network

# Bytes of the scores between shadows and tokens that are held at a time.
SCORES = 16 << 20
# torch's fast attention wants heads of a multiple of this size.
HEAD_STEP = 8


@dataclass(frozen=True, eq=False)
class Effects:
    """What edits of one cell change, to first order."""

    embedding_D: Tensor
    """The cell's embedding as it is, of length 1."""
    deleted_JN: Tensor
    """Change of each coordinate if a token is deleted. That of the cell's own token means nothing."""
    inserted_JS: Tensor | None
    """Change of each coordinate if a token is inserted, in the order of the shadows."""


@dataclass(eq=False)
class Seen:
    """What one layer computed for the tokens of the cell, and the gradient at the output of its attention."""

    q_HNK: Tensor
    k_HNK: Tensor
    v_HNK: Tensor
    out_HNK: Tensor
    gradients_HJNK: Tensor = field(init=False)


@contextmanager
def gradients(device: torch.device) -> Iterator[None]:
    """Record gradients in the model's own precision, whatever the caller has set for its own work."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def first_order(
    network: Network, batch: Batch, directions_JD: Tensor, shadows: tuple[Tensor, Tensor] | None = None
) -> Effects:
    """Effects of deleting each token of the one cell in the batch, and of inserting others.

    Called within `gradients`, where the batch must have been made too.

    Parameters
    ----------
    network
        In a precision that has gradients.
    batch
        One cell.
    directions_JD
        In which directions the embedding is looked at, float32.
    shadows
        Token ids and values of what may be inserted: each by itself.
    """
    bias_N = torch.zeros(len(batch.ids_T), dtype=torch.float32, device=directions_JD.device, requires_grad=True)
    layers: list[Seen] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, masked: Tensor | None) -> Tensor:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        out_HNK = _biased(q, k, v, bias_N)
        layers.append(Seen(q, k, v, out_HNK))
        return out_HNK.transpose(0, 1)

    with torch.no_grad():
        x_ND = network.inputs(batch)
    *first, last = network.layers
    for layer in first:
        x_ND = layer(x_ND, batch.cells, attend)
    embedding_D = network.norm(last.forward_cls(x_ND, batch.cells, attend))[0]  # type: ignore[operator]
    unit_D, length = F.normalize(embedding_D, dim=0).detach(), embedding_D.detach().norm()
    wanted = [bias_N] if shadows is None else [bias_N, *(layer.out_HNK for layer in layers)]
    found = []
    for direction_D in directions_JD:
        cotangent_D = (direction_D - (direction_D @ unit_D) * unit_D) / length
        found.append(torch.autograd.grad(embedding_D, wanted, cotangent_D, retain_graph=True))
    deleted_JN = -torch.stack([each[0] for each in found])
    if shadows is None:
        return Effects(unit_D, deleted_JN, None)
    for number, seen in enumerate(layers, start=1):
        seen.gradients_HJNK = torch.stack([each[number] for each in found], dim=1)
    with torch.no_grad():
        return Effects(unit_D, deleted_JN, _inserted(network, layers, *shadows))


def _biased(q_HNK: Tensor, k_HMK: Tensor, v_HMK: Tensor, bias_M: Tensor) -> Tensor:
    """Attention with a bias on each key: one more coordinate, in which all queries are alike."""
    n_heads, n_queries, size = q_HNK.shape
    more = HEAD_STEP - size % HEAD_STEP
    alike = q_HNK.new_full((n_heads, n_queries, 1), size**0.5)
    keys = bias_M.to(k_HMK.dtype)[None, :, None].expand(n_heads, -1, 1)
    q = F.pad(torch.cat([q_HNK, alike], dim=-1), (0, more - 1))
    k = F.pad(torch.cat([k_HMK, keys], dim=-1), (0, more - 1))
    v = F.pad(v_HMK, (0, more))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=size**-0.5)[0][..., :size]


def _inserted(network: Network, layers: list[Seen], ids_S: Tensor, values_S: Tensor) -> Tensor:
    """Derivatives with respect to the gates of shadow tokens, some of them at a time: (J, S)."""
    n_heads, n_tokens, _ = layers[0].k_HNK.shape
    at_once = max(1, SCORES // (4 * n_heads * n_tokens))
    parts = []
    for ids, values in zip(ids_S.split(at_once), values_S.split(at_once), strict=True):
        parts.append(_gates(network, layers, network.gene_inputs(ids) + network.value(values)))
    return torch.cat(parts, dim=1)


def _gates(network: Network, layers: list[Seen], x_SD: Tensor) -> Tensor:
    total_JS = torch.zeros((layers[0].gradients_HJNK.shape[1], len(x_SD)), dtype=torch.float32, device=x_SD.device)
    seen = iter(layers)

    def attend(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, masked: Tensor | None) -> Tensor:
        layer = next(seen)
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        total_JS.add_(_gain(layer, k, v))
        return _shadows(layer, q, k, v).transpose(0, 1)

    shadows = Spans.single(len(x_SD), x_SD.device)
    for layer in network.layers:
        x_SD = layer(x_SD, shadows, attend)
    return total_JS


def _gain(layer: Seen, k_HSK: Tensor, v_HSK: Tensor) -> Tensor:
    """What the gates of this layer would change: the weight that a query gives to a shadow moves its output to it."""
    scale = layer.q_HNK.shape[-1] ** -0.5
    lse_HN1 = (layer.q_HNK @ layer.k_HNK.mT * scale).logsumexp(-1, keepdim=True)
    weights_HSN = (layer.q_HNK @ k_HSK.mT * scale - lse_HN1).exp_().mT
    toward_HJSK = weights_HSN[:, None] @ layer.gradients_HJNK
    own_HJN = (layer.gradients_HJNK * layer.out_HNK[:, None]).sum(-1)
    return ((toward_HJSK * v_HSK[:, None]).sum(-1) - own_HJN @ weights_HSN.mT).sum(0).float()


def _shadows(layer: Seen, q_HSK: Tensor, k_HSK: Tensor, v_HSK: Tensor) -> Tensor:
    """Attention of shadow tokens: to the tokens of the cell, and each to itself."""
    scale = q_HSK.shape[-1] ** -0.5
    scores = torch.cat([q_HSK @ layer.k_HNK.mT, (q_HSK * k_HSK).sum(-1, keepdim=True)], dim=-1)
    weights = (scores * scale).softmax(-1)
    return weights[..., :-1] @ layer.v_HNK + weights[..., -1:] * v_HSK
