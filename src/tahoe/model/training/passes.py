"""Cut the cells of a step into what goes through the network at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.model.tokens.packed import Tokens
from tahoe.model.training.attention import Visibility, is_packed
from tahoe.model.training.objective import masked_batch

if TYPE_CHECKING:
    from torch import Tensor

    from tahoe.model.config import ModelConfig
    from tahoe.model.network.network import Batch
    from tahoe.model.training.plan import TrainingPlan
    from tahoe.model.training.processes import Processes


@dataclass(frozen=True)
class Pass:
    """Cells that go through the network at once."""

    batch: Batch
    targets: Tensor
    who: Visibility
    counts: float = 1.0
    """0 for a pass that only keeps other processes company."""


def share_of(plan: TrainingPlan, config: ModelConfig) -> float:
    """Share of the genes whose value is hidden."""
    return config.mask_probability if plan.mask_share is None else plan.mask_share


def cut(
    tokens: Tokens,
    masked: np.ndarray,
    plan: TrainingPlan,
    config: ModelConfig,
    device: torch.device,
    processes: Processes,
) -> list[Pass]:
    """The passes of a step: cells by their length, so that those of a pass are alike, and of as many tokens as allowed.

    All processes make as many, since they wait for each other in each.
    """
    parts = [(tokens, masked)]
    if plan.tokens_per_pass is not None and plan.tokens_per_pass < len(tokens.ids):
        tokens, masked = by_length(tokens, masked)
        parts = [
            (tokens.cells(start, stop), masked[tokens.bounds[start] : tokens.bounds[stop]])
            for start, stop in _cuts(tokens.bounds, plan.tokens_per_pass)
        ]
    # a pass with nothing to predict has no gradient; if there is no other one, masked_batch says what is wrong
    parts = [part for part in parts if part[1].any()] or parts[:1]
    own = [made(*part, plan, config, device) for part in parts]
    company = Pass(own[-1].batch, own[-1].targets, own[-1].who, 0.0)
    return own + [company] * (processes.most(len(own), device) - len(own))


def made(tokens: Tokens, masked: np.ndarray, plan: TrainingPlan, config: ModelConfig, device: torch.device) -> Pass:
    """Some cells as a pass, on the device."""
    batch, targets = masked_batch(tokens, masked, config, device)
    computed_in = torch.bfloat16 if plan.bfloat16 else torch.float32
    hidden = masked if config.hide_masked else None
    who = Visibility.of(tokens.bounds, hidden, device, is_packed(device, computed_in, config.head_size))
    return Pass(batch, targets, who)


def by_length(tokens: Tokens, masked: np.ndarray) -> tuple[Tokens, np.ndarray]:
    """The same cells, the shortest first."""
    order = np.argsort(tokens.lengths, kind="stable")
    lengths = tokens.lengths[order]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(bounds[-1]) + np.repeat(tokens.bounds[order] - bounds[:-1], lengths)
    drugs = None if tokens.drugs is None else tokens.drugs[order]
    ordered = Tokens(tokens.ids[places], tokens.values[places], bounds, tokens.n_genes[order], drugs)
    return ordered, masked[places]


def _cuts(bounds: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cells in their order, in parts of at most so many tokens; a longer cell goes alone."""
    cuts, n_cells = [0], len(bounds) - 1
    while cuts[-1] < n_cells:
        fits = int(np.searchsorted(bounds, bounds[cuts[-1]] + most, side="right")) - 1
        cuts.append(max(fits, cuts[-1] + 1))
    return list(zip(cuts[:-1], cuts[1:], strict=True))
