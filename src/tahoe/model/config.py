"""What a checkpoint's two YAML files say, as one checked, frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = ("relu", "gelu", "leaky_relu", "sigmoid", "silu", "tanh")
# Bins of a value, zero included. The quantile grades that the released models were trained with belong to this number.
N_BINS = 51


@dataclass(frozen=True)
class DrugEncoderConfig:
    """Shape of the encoder that turns a drug's fingerprint into the drug token."""

    n_drugs: int
    fingerprint_size: int
    activation: str


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a Tahoe-x1 network computes and how cells become tokens."""

    # the network
    d_model: int
    n_layers: int
    n_heads: int
    vocab_size: int
    expansion_ratio: int = 4
    activation: str = "gelu"
    pre_norm: bool = True
    gated: bool = False
    norm_eps: float = 1e-5
    gene_norm: bool = False
    value_norm: bool = False
    value_activation: str = "relu"
    max_value: float = 512.0
    decoder_layers: int = 2
    decoder_activation: str = "leaky_relu"
    mvc_decoder: bool = True
    mvc_activation: str = "sigmoid"
    mvc_scaled: bool = False
    drug_encoder: DrugEncoderConfig | None = None
    hide_masked: bool = True
    """In masked prediction, visible tokens see only visible ones, and a masked token those and itself."""
    precision: str = "fp32"

    # from a cell to tokens
    binning: bool = True
    log_transform: bool = False
    target_sum: float = 10_000.0
    max_length: int = 2048
    pad_value: float = -2.0
    mask_value: float = -1.0
    mask_probability: float = 0.5
    scaled_targets: bool = False

    def targets_of(self, bins: Tensor) -> Tensor:
        """What the decoders are to predict: bins, or bins 1…50 scaled to -1…1."""
        return (bins - 1) / (N_BINS - 2) * 2 - 1 if self.scaled_targets else bins

    def bins_of(self, targets: Tensor) -> Tensor:
        """Predictions on the scale of bins."""
        return 1 + (targets + 1) / 2 * (N_BINS - 2) if self.scaled_targets else targets

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads
