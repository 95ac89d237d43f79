"""The whole Tahoe-x1 network.

Tokens of all cells of a batch lie end to end, without padding, so that nothing of one cell can reach another.
Shapes are written as suffixes: T tokens of the batch, N tokens of one cell, C cells, D model width, H heads,
K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tahoe.errors import ModelError
from tahoe.model.cpu.linear import Linear, computed_in
from tahoe.model.cuda.transfers import infers_on_cuda
from tahoe.model.network.attention import ATTENTION, Attention, Spans
from tahoe.model.network.block import TransformerBlock, add
from tahoe.model.network.decoders import ExpressionDecoder, MVCDecoder
from tahoe.model.network.encoders import DrugEncoder, Embedding, ValueEncoder

if TYPE_CHECKING:
    from tahoe.model.config import ModelConfig

# Called with (layer, number of the cell, weights of shape (heads, tokens, tokens)).
Observer = Callable[[int, int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some cells as packed tokens, on one device."""

    ids_T: Tensor
    """Token ids (int64)."""
    values_T: Tensor
    """Their bins, or log-transformed values (float32)."""
    cells: Spans
    """Where each cell begins and ends."""
    masked_T: Tensor | None = None
    """Tokens whose value is hidden from the network, which is to predict it."""
    drugs_C: Tensor | None = None
    """Row of the drug table for each cell. The second token of each cell is then the drug token."""

    @property
    def starts_C(self) -> Tensor:
        """Index of the first token of each cell."""
        return self.cells.starts_C


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Compute in the model's own precision and without gradients, whatever the caller has set for its own work."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


class Network(nn.Module):
    """Tahoe-x1: encoders for genes, values and drugs, a stack of layers, and two decoders."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.d_model
        self.config = config
        self.genes = Embedding(config.vocab_size, width)
        self.gene_norm = nn.LayerNorm(width) if config.gene_norm else nn.Identity()
        self.value = ValueEncoder(config)
        self.flag = Embedding(2, width)
        self.drug = DrugEncoder(width, config.drug_encoder) if config.drug_encoder else None
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.expression = ExpressionDecoder(config)
        self.mvc = MVCDecoder(config) if config.mvc_decoder else None
        self.is_quantized = False
        self.n_parameters = sum(weight.numel() for weight in self.parameters())

    def forward(self, batch: Batch, attention: str | Attention = "sdpa", *, recompute: bool = False) -> Tensor:
        """Outputs of all tokens, (T, D) float32: each cell's embedding at its CLS token, then its genes.

        With `recompute` the layers keep nothing for the way back.
        """
        masked_T = self._hidden_keys(batch)
        attend = ATTENTION[attention] if isinstance(attention, str) else attention
        return self.norm(add(*self._through(self.layers, batch, attend, masked_T, recompute)))

    def observe(
        self,
        batch: Batch,
        observer: Observer,
        layers: Sequence[int] | None = None,
        attention: str = "sdpa",
        *,
        first_cell: int = 0,
    ) -> None:
        """Show the attention weights of each cell in `layers`, by default in all of them.

        What lies above the last of these layers is not computed. Cells are numbered from `first_cell`.
        """
        layers = range(len(self.layers)) if layers is None else layers
        masked_T = self._hidden_keys(batch)
        x_TD = self.inputs(batch)
        for number, layer in enumerate(self.layers[: max(layers) + 1]):
            if number in layers:
                for cell in range(len(batch.cells.bounds) - 1):
                    weights_HNN = layer.attention_weights(x_TD, batch.cells, cell, masked_T)  # type: ignore[operator]
                    observer(number, first_cell + cell, weights_HNN)
            if number < max(layers):
                x_TD = layer(x_TD, batch.cells, ATTENTION[attention], masked_T)

    def embed_cells(self, batch: Batch, attention: str = "sdpa") -> Tensor:
        """Embeddings of the cells, (C, D) float32, not normalised: what `forward` gives at each first token.

        Nothing reads the other outputs of the last layer, so they are not computed.
        """
        masked_T, attend = self._hidden_keys(batch), ATTENTION[attention]
        x_TD, update_TD = self._through(self.layers[:-1], batch, attend, masked_T)
        return self.norm(self.layers[-1].forward_cls(x_TD, batch.cells, attend, masked_T, update_TD))  # type: ignore[operator]

    def _through(
        self, layers: nn.ModuleList, batch: Batch, attend: Attention, masked_T: Tensor | None, again: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The two parts of what comes out of these layers, each of which may be computed again on the way back.

        A layer that has hooks is called, as they expect.
        """
        x_TD, update_TD = self.inputs(batch), None
        for layer in layers:
            if infers_on_cuda(x_TD) and not (layer._forward_hooks or layer._forward_pre_hooks):
                x_TD, update_TD = layer.forward_parts(x_TD, update_TD, batch.cells, attend, masked_T)  # type: ignore[operator]
                continue
            inputs = (add(x_TD, update_TD), batch.cells, attend, masked_T)
            x_TD, update_TD = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs), None
        return x_TD, update_TD

    def inputs(self, batch: Batch) -> Tensor:
        """What enters the first layer: gene plus value, or the flag in place of a masked value, and the drug."""
        if self.is_quantized and len(batch.cells.lengths) > 1:
            message = (
                f"in int8 each cell goes through the network alone, since it has a scale of its own, and this batch has"
                f" {len(batch.cells.lengths)}; call the methods of TahoeModel, or load it with dtype='float32'"
            )
            raise ModelError(message)
        value_TD = self.value(batch.values_T)
        if batch.masked_T is not None:
            value_TD = torch.where(batch.masked_T[:, None], self.flag.weight[1].float(), value_TD)
        x_TD = self.gene_inputs(batch.ids_T) + value_TD
        if batch.drugs_C is not None:
            if self.drug is None:
                message = "this network has no drug encoder"
                raise ModelError(message)
            x_TD = x_TD.index_copy(0, batch.starts_C + 1, self.drug(batch.drugs_C))
        return x_TD

    def gene_inputs(self, ids_T: Tensor) -> Tensor:
        """Input embedding of each gene, (T, D) float32: no context, no value."""
        return self.gene_norm(self.genes(ids_T).float())

    def decode(self, output_TD: Tensor) -> Tensor:
        """Predicted value of each token from its own output, (T,)."""
        return self.expression(output_TD)

    def decode_mvc(self, output_TD: Tensor, batch: Batch) -> Tensor:
        """Predicted value of each token from its cell's embedding, (T,)."""
        if self.mvc is None:
            message = "this network has no MVC decoder"
            raise ModelError(message)
        lengths_C = batch.cells.device_bounds.diff().long()
        return self.mvc(output_TD[batch.starts_C], self.gene_inputs(batch.ids_T), lengths_C)

    def _hidden_keys(self, batch: Batch) -> Tensor | None:
        return batch.masked_T if self.config.hide_masked else None

    def set_precision(self, precision: torch.dtype) -> Network:
        """Cast all weights but those of the norms, which stay float32 as the residual stream does.

        In int8 are the linear layers of all layers but the last, and from there no way leads back.
        """
        self.check_weights()
        if precision == torch.int8:
            self._round_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.to(computed_in(precision))
            elif isinstance(module, nn.LayerNorm):
                module.to(torch.float32)
        return self

    @property
    def precision(self) -> torch.dtype:
        """Precision of the linear layers."""
        return torch.int8 if self.is_quantized else self.expression.out.weight.dtype

    def check_weights(self) -> None:
        """Refuse what needs the weights themselves.

        Raises
        ------
        tahoe.errors.ModelError
            If only their rounded values are left.
        """
        if self.is_quantized:
            message = "this model has its weights in int8, which is for inference only; load it with dtype='float32'"
            raise ModelError(message)

    def _round_weights(self) -> None:
        from tahoe.model.cpu.int8 import Int8Linear

        for layer in self.layers[:-1]:
            for name, module in list(layer.named_children()):
                if isinstance(module, Linear):
                    setattr(layer, name, Int8Linear(module))
        self.is_quantized = True
