"""The table of a screen: a row for each edit in each group of cells.

Shapes are written as suffixes: U units, Q quantities, E edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._perturbation.statistics import matched, over_replicates, percentiles

if TYPE_CHECKING:
    from tahoe._perturbation.accumulators import GeneCounts

Edit = tuple[int, ...]
STATISTICS = ("percentile", "z", "p", "q")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What effects are compared with, and in which groups."""

    group_of_unit: np.ndarray
    counts: GeneCounts
    kind: str
    score: str
    """Of which quantity the statistics are: the projection, or without a goal the shift."""
    min_cells: int
    """In how many cells a gene must be edited for its statistics."""
    n_null: int
    seed: int

    def units_of_groups(self) -> list[tuple[int, np.ndarray]]:
        """Each group, and its units."""
        return [(int(group), np.flatnonzero(self.group_of_unit == group)) for group in np.unique(self.group_of_unit)]

    def features(self, genes: np.ndarray, units: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Share of the cells that express each gene, and its mean bin there."""
        n = self.counts.n_expressing[units][:, genes].sum(0)
        bins = self.counts.bins[units][:, genes].sum(0)
        mean_bin = np.divide(bins, n, out=np.zeros(len(genes)), where=n > 0)
        return n / max(1, self.counts.n_cells[units].sum()), mean_bin

    def editable(self, genes: np.ndarray) -> np.ndarray:
        """In how many cells of each group these genes can be edited: (groups, genes)."""
        per_unit = self.counts.n_expressing[:, genes]
        if self.kind == "activate":
            per_unit = self.counts.n_cells[:, None] - per_unit
        return np.stack([per_unit[units].sum(0) for _, units in self.units_of_groups()])


def effect_table(
    comparison: Comparison, edits: list[Edit], names: list[str], effects_UQE: np.ndarray, n_cells_UE: np.ndarray
) -> pd.DataFrame:
    """Effects of edits, whose quantities have these names, and what they are compared with.

    What no cell of a group was edited by has no row there. The column ``edit`` has the edits themselves.
    """
    parts = []
    for group, units in comparison.units_of_groups():
        n_cells = n_cells_UE[units].sum(0)
        seen = np.flatnonzero(n_cells)
        effects_UQR = effects_UQE[units][:, :, seen]
        part = pd.DataFrame({"edit": [edits[place] for place in seen], "group": group, "n_cells": n_cells[seen]})
        part = part.assign(**dict(zip(names, over_units(effects_UQR), strict=True)))
        parts.append(_with_statistics(comparison, part, effects_UQR[:, names.index(comparison.score)], units))
    return pd.concat(parts, ignore_index=True)


def _with_statistics(
    comparison: Comparison, part: pd.DataFrame, effects_UR: np.ndarray, units: np.ndarray
) -> pd.DataFrame:
    """The rows of one group with statistics; NaN for combinations, which nothing is like."""
    columns = {name: np.full(len(part), np.nan) for name in ("detection", "mean_bin", *STATISTICS)}
    is_gene = comparison.kind != "drug" and all(len(edit) == 1 for edit in part["edit"])
    if is_gene:
        genes = np.array([edit[0] for edit in part["edit"]], dtype=np.int64)
        columns["detection"], columns["mean_bin"] = comparison.features(genes, units)
    enough = np.flatnonzero(part["n_cells"] >= comparison.min_cells)
    if len(enough) and (is_gene or comparison.kind == "drug"):
        # drugs are compared with all others
        detection, mean_bin = (np.nan_to_num(columns[name][enough]) for name in ("detection", "mean_bin"))
        null = matched(detection, mean_bin, comparison.n_null if is_gene else len(enough), comparison.seed)
        percentile, z = percentiles(part[comparison.score].to_numpy()[enough], null)
        p, q = over_replicates(effects_UR[:, enough], null, comparison.seed)
        for name, values in zip(STATISTICS, (percentile, z, p, q), strict=True):
            columns[name][enough] = values
    return part.assign(**columns)


def with_exact(
    comparison: Comparison,
    table: pd.DataFrame,
    edits: list[Edit],
    names: list[str],
    effects_UQE: np.ndarray,
    n_cells_UE: np.ndarray,
) -> pd.DataFrame:
    """The table with exact effects of some edits in columns of their own."""
    parts = []
    for group, units in comparison.units_of_groups():
        means = dict(zip((f"{name}_exact" for name in names), over_units(effects_UQE[units]), strict=True))
        part = pd.DataFrame({"edit": edits, "group": group, **means, "n_cells_exact": n_cells_UE[units].sum(0)})
        parts.append(part)
    return table.merge(pd.concat(parts), on=["edit", "group"], how="left", sort=False)


def over_units(effects_UQE: np.ndarray) -> np.ndarray:
    """Mean over units, each of which counts alike, however many of its cells were edited: (Q, E)."""
    n_with = np.isfinite(effects_UQE).sum(0)
    return np.divide(np.nansum(effects_UQE, axis=0), n_with, out=np.full(n_with.shape, np.nan), where=n_with > 0)
