"""Cells for training, drawn on the device where their counts lie: thinned, on a panel of genes, binned and masked.

A view of a cell is what another experiment might have seen of it. All views of a batch have the same number of tokens,
to which a cell with fewer genes is padded, so that a network takes them at once.
Shapes are written as suffixes: E entries of all cells, C cells, P panels, V tokens of the vocabulary, R views of a
batch, S entries of these views, N tokens of one view, Q quantile quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tahoe.model.network.attention import Spans
from tahoe.model.network.network import Batch
from tahoe.model.tokens.tokenizer import QUANTILES

# Counts are sorted within views as the lower bits of one whole number, and chance likewise.
COUNT_BITS, CHANCE_BITS = 24, 30


@dataclass(frozen=True)
class CellCounts:
    """Counts of many cells on one device."""

    ids_E: Tensor
    """Token id of each entry (int32)."""
    counts_E: Tensor
    """Its count (float32)."""
    bounds_C: np.ndarray
    """On the host: cell ``i`` is ``bounds_C[i]:bounds_C[i + 1]`` (int64)."""

    @property
    def device(self) -> torch.device:
        """Where the counts lie."""
        return self.ids_E.device


@dataclass(frozen=True)
class Views:
    """Views of cells as tokens, the same number for each, of which the last `n_queried` are to be predicted."""

    ids_RN: Tensor
    """Token ids (int64): CLS, visible genes, then those whose value is hidden; each part filled up with padding."""
    values_RN: Tensor
    """Their bins (float32)."""
    is_gene_RN: Tensor
    """Which tokens are genes: neither CLS nor padding."""
    n_queried: int
    """How many tokens at the end of each view hide their value, padding included."""

    @property
    def batch(self) -> Batch:
        """What enters a network. No token sees a hidden one but itself, and padding is hidden too."""
        hidden_RN = ~self.is_gene_RN
        hidden_RN[:, 0] = False
        hidden_RN[:, self.ids_RN.shape[1] - self.n_queried :] = True
        n_views, length = self.ids_RN.shape
        spans = Spans.of([length * view for view in range(n_views + 1)], self.ids_RN.device)
        return Batch(self.ids_RN.flatten(), self.values_RN.flatten(), spans, hidden_RN.flatten())


def draw_views(
    cells: CellCounts,
    rows_R: np.ndarray,
    generator: torch.Generator,
    *,
    length: int,
    cell_token: int,
    pad_value: float = -2.0,
    mask_share: float = 0.5,
    thin_to_R: np.ndarray | None = None,
    panels_PV: Tensor | None = None,
    panel_R: np.ndarray | None = None,
) -> Views:
    """Draw one view of each cell in `rows_R`.

    Parameters
    ----------
    cells
        Where the cells are taken from.
    rows_R
        Which cells.
    generator
        On the device of the cells.
    length
        Tokens of each view. Cells with more keep a random choice of their genes; bins are those of all.
    cell_token, pad_value
        CLS token, and its value.
    mask_share
        Share of each view's genes whose value is hidden.
    thin_to_R
        Share of the molecules of each cell that its view has counted; `None` for all.
    panels_PV, panel_R
        Genes that are measured by each panel (boolean), and the panel of each view; `None` for all genes.
    """
    device = cells.device
    sizes_R = cells.bounds_C[rows_R + 1] - cells.bounds_C[rows_R]
    firsts_R = np.cumsum(sizes_R) - sizes_R
    n_entries = int(sizes_R.sum())
    sizes, firsts, sources = (torch.from_numpy(a).to(device) for a in (sizes_R, firsts_R, cells.bounds_C[rows_R]))
    view_S = torch.repeat_interleave(sizes, output_size=n_entries)
    entry_S = torch.arange(n_entries, dtype=torch.int64, device=device) + (sources - firsts)[view_S]
    ids_S, counts_S = cells.ids_E[entry_S].long(), cells.counts_E[entry_S]
    if thin_to_R is not None:
        shares = torch.from_numpy(thin_to_R.astype(np.float32)).to(device)
        counts_S = torch.binomial(counts_S, shares[view_S], generator=generator)
    measured_S = counts_S > 0
    if panels_PV is not None and panel_R is not None:
        measured_S &= panels_PV[torch.from_numpy(panel_R).to(device)[view_S], ids_S]
    n_genes_R = torch.zeros(len(rows_R), dtype=torch.int64, device=device).index_add_(0, view_S, measured_S.long())
    firsts = firsts.clamp(max=max(n_entries - 1, 0))
    edges_RQ = quantile_edges(view_S, counts_S, measured_S, firsts, n_genes_R)
    place_RN, is_gene_RN, n_queried = _places(n_genes_R, length - 1, mask_share)
    chosen_RN = _by_chance(view_S, measured_S, generator)[(firsts[:, None] + place_RN).clamp(max=n_entries - 1)]
    bins_RN = 1 + torch.searchsorted(edges_RQ, counts_S[chosen_RN]).float()
    return Views(
        F.pad(torch.where(is_gene_RN, ids_S[chosen_RN], 0), (1, 0), value=cell_token),
        F.pad(torch.where(is_gene_RN, bins_RN, 0), (1, 0), value=pad_value),
        F.pad(is_gene_RN, (1, 0), value=False),
        n_queried,
    )


def quantile_edges(view_S: Tensor, counts_S: Tensor, measured_S: Tensor, firsts_R: Tensor, n_genes_R: Tensor) -> Tensor:
    """Fifty quantiles of the counts of each view, (R, Q), as the tokenizer takes them: float32 throughout."""
    # what is not measured comes last in its view
    keys_S = torch.where(measured_S, counts_S.long(), (1 << COUNT_BITS) - 1)
    ranked_S = ((view_S << COUNT_BITS | keys_S).sort().values & ((1 << COUNT_BITS) - 1)).float()
    grades_Q = torch.from_numpy(QUANTILES).to(counts_S.device)
    ranks_RQ = grades_Q * (n_genes_R - 1).clamp(min=0).float()[:, None]
    low_RQ = ranks_RQ.floor()
    below_RQ = ranked_S[firsts_R[:, None] + low_RQ.long()]
    above_RQ = ranked_S[firsts_R[:, None] + ranks_RQ.ceil().long()]
    return torch.lerp(below_RQ, above_RQ, ranks_RQ - low_RQ)


def _by_chance(view_S: Tensor, measured_S: Tensor, generator: torch.Generator) -> Tensor:
    """Entries in random order within each view, those that are not measured last."""
    chance_S = torch.randint(1 << CHANCE_BITS, view_S.shape, generator=generator, device=view_S.device)
    return (view_S << (CHANCE_BITS + 1) | ~measured_S * (1 << CHANCE_BITS) | chance_S).argsort()


def _places(n_genes_R: Tensor, room: int, mask_share: float) -> tuple[Tensor, Tensor, int]:
    """Which of the randomly ordered genes stands at each place of a view, whether any does, and how many are hidden."""
    n_queried = int(room * mask_share)
    n_R = n_genes_R.clamp(max=room)
    queried_R = (n_R * mask_share).long()
    column_N = torch.arange(room, dtype=torch.int64, device=n_genes_R.device)
    is_queried_N = column_N >= room - n_queried
    nth_N = torch.where(is_queried_N, column_N - (room - n_queried), column_N)
    limit_RN = torch.where(is_queried_N, queried_R[:, None], (n_R - queried_R)[:, None])
    place_RN = torch.where(is_queried_N, (n_R - queried_R)[:, None] + nth_N, nth_N)
    return place_RN, nth_N < limit_RN, n_queried
