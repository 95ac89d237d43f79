"""How the outputs of tokens and cells become predicted values.

Shapes are written as suffixes: T tokens of the batch, C cells, D model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tahoe.model.network.encoders import ACTIVATIONS

if TYPE_CHECKING:
    from tahoe.model.config import ModelConfig


class ExpressionDecoder(nn.Module):
    """Predict the value of a token from its own output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(config.d_model, config.d_model) for _ in range(config.decoder_layers))
        self.out = nn.Linear(config.d_model, 1)
        self.activation = ACTIVATIONS[config.decoder_activation]

    def forward(self, x_TD: Tensor) -> Tensor:
        """Prediction at each token: (T,) float32."""
        x_TD = x_TD.to(self.out.weight.dtype)
        for hidden in self.hidden:
            x_TD = self.activation(hidden(x_TD))
        return self.out(x_TD)[:, 0].float()


class MVCDecoder(nn.Module):
    """Predict the value of a gene from the cell's embedding: the dot product with a query made from the gene."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.d_model, config.d_model)
        self.weight = nn.Linear(config.d_model, config.d_model, bias=False)
        self.activation = ACTIVATIONS[config.mvc_activation]
        self.scale = config.d_model**-0.5 if config.mvc_scaled else 1.0

    def forward(self, cell_CD: Tensor, gene_TD: Tensor, lengths_C: Tensor | int) -> Tensor:
        """Prediction at each token, where cell i has the next ``lengths_C[i]`` tokens: (T,) float32.

        Where all cells have as many, one number will do, and a GPU need not be waited for.
        """
        queries_TD = self.weight(self.activation(self.query(gene_TD.to(self.query.weight.dtype)))).float()
        cell_TD = cell_CD.float().repeat_interleave(lengths_C, dim=0, output_size=len(gene_TD))
        return (queries_TD * cell_TD).sum(-1) * self.scale
