"""How genes, values and drugs become vectors.

Shapes are written as suffixes: T tokens of the batch, C cells, D model width, L values of a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tahoe.model.config import N_BINS, DrugEncoderConfig, ModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Embedding(nn.Embedding):
    """A table whose rows come from a file, or from `new_network`: drawing them here would take a second of imports."""

    def reset_parameters(self) -> None:
        """Leave the rows as they are."""


class ValueEncoder(nn.Module):
    """Turn the value of a token (its bin, as a rule) into a vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model) if config.value_norm else nn.Identity()
        self.activation = ACTIVATIONS[config.value_activation]
        self.max_value = config.max_value
        self.lowest = int(min(config.pad_value, config.mask_value, 0))
        self.binned = config.binning

    def forward(self, values_T: Tensor) -> Tensor:
        """Vector of each value: (T, D) float32."""
        if not self.binned:
            return self.encode(values_T)
        # Bins are few and whole, so each is encoded once and looked up.
        table_LD = self.encode(torch.arange(self.lowest, N_BINS, device=values_T.device, dtype=values_T.dtype))
        return F.embedding((values_T - self.lowest).long(), table_LD)

    def encode(self, values_L: Tensor) -> Tensor:
        """The formula itself, value by value."""
        dtype = self.hidden.weight.dtype
        hidden_LD = self.activation(self.hidden(values_L.clamp(max=self.max_value)[:, None].to(dtype)))
        return self.norm(self.out(hidden_LD).float())


class DrugEncoder(nn.Module):
    """Turn the fingerprint of a drug into the drug token."""

    def __init__(self, d_model: int, config: DrugEncoderConfig) -> None:
        super().__init__()
        self.fingerprints = Embedding(config.n_drugs, config.fingerprint_size)
        self.fingerprints.padding_idx = 0  # drug 0 is none: training leaves its row as it is, which is zero
        self.hidden = nn.Linear(config.fingerprint_size, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, drugs_C: Tensor) -> Tensor:
        """Vector of each drug: (C, D) float32."""
        hidden_CD = self.activation(self.hidden(self.fingerprints(drugs_C)))
        return self.norm(self.out(hidden_CD).float())
