"""The objective that Tahoe-x1 itself was trained with: predict the values of masked genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tahoe.errors import InputError, warn
from tahoe.model.network.attention import Spans
from tahoe.model.network.network import Batch, Network

if TYPE_CHECKING:
    from tahoe.model.config import ModelConfig
    from tahoe.model.tokens.tokenizer import Tokens
    from tahoe.model.training.attention import Visibility


@dataclass(frozen=True)
class Losses:
    """Mean squared error of the masked values, on the scale of the bins, for each decoder."""

    expression: Tensor
    mvc: Tensor | None

    @property
    def total(self) -> Tensor:
        """What is minimised, the mean over the decoders."""
        return self.expression if self.mvc is None else (self.expression + self.mvc) / 2


def mask_tokens(tokens: Tokens, generator: np.random.Generator, probability: float) -> np.ndarray:
    """Choose which tokens of each cell to mask: a share of its genes, never the CLS token or that of the drug."""
    return mask_by(tokens, generator.random(len(tokens.ids)), probability)


def mask_by(tokens: Tokens, draws: np.ndarray, probability: float) -> np.ndarray:
    """Mask the tokens of each cell with the smallest of these numbers, which lie between 0 and 1."""
    cells, is_gene = tokens.cell_of_token, tokens.is_gene
    # Special tokens are drawn last, so the first ranks of each cell are a random choice of its genes.
    draws = np.where(is_gene, draws, 2.0)
    rank = np.empty(len(cells), dtype=np.int64)
    rank[np.lexsort((draws, cells))] = np.arange(len(cells)) - tokens.bounds[cells]
    n_genes = np.bincount(cells[is_gene], minlength=len(tokens))
    return rank < np.floor(n_genes * probability)[cells]


def masked_batch(tokens: Tokens, masked: np.ndarray, config: ModelConfig, device: torch.device) -> tuple[Batch, Tensor]:
    """Make a batch whose masked values are hidden, and the values that are to be predicted."""
    if not masked.any():
        raise InputError(_nothing_to_mask(tokens, config))
    if config.drug_encoder is not None and tokens.drugs is None:
        message = "a model with a drug encoder sees cells without a drug token; pass drugs= to tokenize(), 0 for none"
        warn(message)
    values = torch.from_numpy(np.where(masked, np.float32(config.mask_value), tokens.values)).to(device)
    batch = Batch(
        torch.from_numpy(tokens.ids).to(device),
        values,
        Spans.of(tokens.bounds.tolist(), device),
        torch.from_numpy(masked).to(device),
        None if tokens.drugs is None else torch.from_numpy(tokens.drugs).to(device),
    )
    return batch, config.targets_of(torch.from_numpy(tokens.values[masked]).to(device))


def _nothing_to_mask(tokens: Tokens, config: ModelConfig) -> str:
    share = f"a share of {config.mask_probability} of their genes, rounded down, is none"
    return f"there is nothing to mask in these {len(tokens)} cells: {share}; take cells with more genes"


def masked_losses(network: Network, batch: Batch, targets: Tensor, attention: str = "sdpa") -> Losses:
    """Errors of both decoders at the masked tokens."""
    expression, mvc = _predictions(network, batch, network(batch, attention))
    return Losses(F.mse_loss(expression, targets), None if mvc is None else F.mse_loss(mvc, targets))


def _predictions(network: Network, batch: Batch, output_TD: Tensor) -> tuple[Tensor, Tensor | None]:
    """What both decoders say at the masked tokens."""
    masked_T = batch.masked_T
    expression = network.decode(output_TD[masked_T])
    if network.mvc is None:
        return expression, None
    cells = torch.repeat_interleave(batch.cells.device_bounds.diff().long())
    per_cell = torch.bincount(cells[masked_T], minlength=len(batch.starts_C))
    genes_TD = network.gene_inputs(batch.ids_T[masked_T])
    return expression, network.mvc(output_TD[batch.starts_C], genes_TD, per_cell)


class Objective(nn.Module):
    """The network and its objective as one module: sums of squared errors, which may be added up over passes.

    Attention is that of `tahoe.model.training.attention`.
    """

    def __init__(self, network: Network, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.network = network
        self.activation_checkpointing = activation_checkpointing

    def forward(self, batch: Batch, targets: Tensor, who: Visibility) -> Tensor:
        """Sums of the squared errors of the expression decoder and of the MVC decoder (or twice the first), (2,)."""
        output_TD = self.network(batch, who.attend, recompute=self.activation_checkpointing)
        expression, mvc = _predictions(self.network, batch, output_TD)
        predictions = (expression, expression if mvc is None else mvc)
        return torch.stack([F.mse_loss(each, targets, reduction="sum") for each in predictions])


@torch.inference_mode()
def evaluate(network: Network, tokens: Tokens, *, seed: int = 0, cells_per_batch: int = 32) -> dict[str, float]:
    """Mean squared errors on masked genes of cells that were held out, for both decoders.

    Which genes are masked depends on `seed` and on the cells. The network may be in the middle of its training.

    Returns
    -------
    ``"expression_mse"`` and ``"mvc_mse"``, the errors of the decoders, and ``"constant_mse"``, that of the best
    constant, the mean of the masked values, which knows nothing of gene or cell.

    Raises
    ------
    tahoe.errors.InputError
        If no cell has enough genes to mask one.
    """
    device = next(network.parameters()).device
    generator = np.random.default_rng(seed)
    sums, values = np.zeros(2), []
    for start in range(0, len(tokens), cells_per_batch):
        part = tokens.cells(start, min(start + cells_per_batch, len(tokens)))
        masked = mask_tokens(part, generator, network.config.mask_probability)
        if not masked.any():
            continue  # one or two genes a cell leave nothing to hide
        batch, targets = masked_batch(part, masked, network.config, device)
        with torch.autocast(device.type, enabled=False):
            losses = masked_losses(network, batch, targets)
        mvc = losses.mvc if losses.mvc is not None else losses.expression
        sums += np.array([losses.expression.item(), mvc.item()]) * len(targets)
        values.append(targets.cpu().numpy())
    if not values:
        raise InputError(_nothing_to_mask(tokens, network.config))
    truth = np.concatenate(values)
    return {
        "expression_mse": sums[0] / len(truth),
        "mvc_mse": sums[1] / len(truth),
        "constant_mse": float(truth.var()),
    }
