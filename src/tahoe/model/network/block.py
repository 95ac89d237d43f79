"""One layer of the network.

Tokens of all cells of a batch lie end to end. Shapes are written as suffixes: T tokens of the batch, N tokens of one
cell, C cells, D model width, H heads, K head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tahoe.model.cpu.linear import Linear
from tahoe.model.cuda import fused
from tahoe.model.network.attention import Attention, Spans, weights
from tahoe.model.network.encoders import ACTIVATIONS

if TYPE_CHECKING:
    from tahoe.model.config import ModelConfig


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward block, each with its norm before (or after) it and a residual path around it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.expansion_ratio * config.d_model
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = Linear(width, 3 * width)
        self.attention_out = Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.up = Linear(width, hidden)
        self.gate = Linear(width, hidden) if config.gated else None
        self.down = Linear(hidden, width)
        self.activation = ACTIVATIONS[config.activation]
        self.pre_norm = config.pre_norm
        self.head_size = config.head_size

    def forward(self, x_TD: Tensor, cells: Spans, attend: Attention, masked_T: Tensor | None = None) -> Tensor:
        """All tokens through the layer."""
        return add(*self.forward_parts(x_TD, None, cells, attend, masked_T))

    def forward_parts(
        self, x_TD: Tensor, update_TD: Tensor | None, cells: Spans, attend: Attention, masked_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The two parts of the layer's output, from those of its input: the next norm adds them in the same kernel."""
        x_TD, h_TD = self._before(x_TD, update_TD, self.attention_norm)
        q_TD, k_TD, v_TD = self.qkv(h_TD).chunk(3, dim=-1)
        context_TD = self._attend(q_TD, k_TD, v_TD, cells, cells, attend, masked_T)
        return self._finish(x_TD, context_TD)

    def forward_cls(
        self,
        x_TD: Tensor,
        cells: Spans,
        attend: Attention,
        masked_T: Tensor | None = None,
        update_TD: Tensor | None = None,
    ) -> Tensor:
        """Only the first token of each cell, which still looks at all tokens of its cell: (C, D)."""
        n_cells, width = len(cells.bounds) - 1, x_TD.shape[-1]
        x_TD, h_TD = self._before(x_TD, update_TD, self.attention_norm)
        q_CD = self.qkv.features(h_TD[cells.starts_C], slice(width))
        k_TD, v_TD = self.qkv.features(h_TD, slice(width, None)).chunk(2, dim=-1)
        queries = Spans.single(n_cells, x_TD.device)
        context_CD = self._attend(q_CD, k_TD, v_TD, queries, cells, attend, masked_T)
        return add(*self._finish(x_TD[cells.starts_C], context_CD))

    def heads(self, x_TD: Tensor) -> Tensor:
        """Split the width into heads: (T, H, K)."""
        return x_TD.unflatten(-1, (-1, self.head_size))

    def attention_weights(self, x_TD: Tensor, cells: Spans, cell: int, masked_T: Tensor | None = None) -> Tensor:
        """Weights of one cell in this layer, (heads, tokens, tokens)."""
        start, end = cells.bounds[cell : cell + 2]
        _, h_ND = self._before(x_TD[start:end], None, self.attention_norm)
        q_ND, k_ND, _ = self.qkv(h_ND).chunk(3, dim=-1)
        return weights(self.heads(q_ND), self.heads(k_ND), None if masked_T is None else masked_T[start:end])

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, attend: Attention, masked_T: Tensor | None
    ) -> Tensor:
        return attend(self.heads(q), self.heads(k), self.heads(v), queries, keys, masked_T).flatten(-2)

    def _before(self, x_TD: Tensor, update_TD: Tensor | None, layer_norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The sum, and what the linear layers get: its norm where that comes first, cast; the sum stays float32."""
        precision = self.qkv.precision
        if not self.pre_norm:
            x_TD = add(x_TD, update_TD)
            return x_TD, x_TD.to(precision)
        if update_TD is None:
            return x_TD, fused.norm(x_TD, layer_norm, precision)
        return fused.add_norm(x_TD, update_TD, layer_norm, precision)

    def _finish(self, x_TD: Tensor, context_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        update_TD = self.attention_out(context_TD)
        if not self.pre_norm:
            x_TD, update_TD = self.attention_norm(x_TD + update_TD), None
        x_TD, h_TD = self._before(x_TD, update_TD, self.feed_forward_norm)
        if self.gate is None:
            hidden_TD = self.up(h_TD, self.activation)
        else:
            hidden_TD = self.gate(h_TD, self.activation) * self.up(h_TD)
        update_TD = self.down(hidden_TD)
        return (x_TD, update_TD) if self.pre_norm else (self.feed_forward_norm(x_TD + update_TD), None)


def add(x_TD: Tensor, update_TD: Tensor | None) -> Tensor:
    """The sum of both, where there is a second."""
    return x_TD if update_TD is None else x_TD + update_TD
