"""The slots of an AnnData: look up what arguments point to, and write results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.matrix import in_memory, one_column
from tahoe.errors import InputError, similar_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from tahoe._genes.mapping import GeneMapping


def groups_of(adata: AnnData, groupby: str | None, argument: str = "groupby") -> tuple[np.ndarray, list[str]]:
    """Number of each cell's group, and the names of the groups; without `groupby`, one group of all cells."""
    if groupby is None:
        return np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    column = column_of(adata, groupby, argument).astype("category").cat.remove_unused_categories()
    if column.isna().any():
        message = f"obs[{groupby!r}] is missing for {column.isna().sum()} cells; fill it in, or leave these cells out"
        raise InputError(message)
    return column.cat.codes.to_numpy(dtype=np.int64), [str(name) for name in column.cat.categories]


def column_of(adata: AnnData, key: str, argument: str) -> pd.Series:
    """A column of ``adata.obs``, also that of a lazy AnnData; the argument that names it is for the error.

    Raises
    ------
    tahoe.errors.InputError
        If there is none.
    """
    if key not in adata.obs:
        present = similar_names(key, adata.obs.columns, most=8)
        message = f"{argument}={key!r} is not a column of adata.obs, which has {present}"
        raise InputError(message)
    obs = adata.obs if isinstance(adata.obs, pd.DataFrame) else in_memory(adata.obs[[key]])
    column = one_column(obs, key, "obs")
    if isinstance(column.dtype, np.dtype) and not column.dtype.isnative:  # pandas groups no other byte order
        column = pd.Series(column.to_numpy().astype(column.dtype.newbyteorder("=")), column.index, name=key)
    return column


def columns_of(adata: AnnData, genes: Sequence[str] | None) -> np.ndarray:
    """Column numbers of genes that are given by their names; all without `genes`.

    Of a name that several columns bear, all of them.
    """
    if genes is None:
        return np.arange(adata.n_vars)
    genes = [genes] if isinstance(genes, str) else list(genes)
    unknown = [gene for gene in genes if gene not in adata.var_names]
    if unknown or not genes:
        near = similar_names(unknown[0], adata.var_names.dropna()) if unknown else "none"
        message = f"genes={unknown[:5] or genes}: not in adata.var_names (near: {near})"
        raise InputError(message)
    return np.flatnonzero(adata.var_names.isin(genes))


def drugs_of(adata: AnnData, drug_key: str, known: Mapping[str, int]) -> np.ndarray:
    """Id of each cell's drug, 0 where the column has a missing value."""
    column = column_of(adata, drug_key, "drug_key")
    ids = np.zeros(adata.n_obs, dtype=np.int64)
    present = column.notna().to_numpy()
    names = column[present].astype(str)
    unknown = [name for name in names.unique() if name not in known]
    if unknown:
        near = [f"{name!r} (near: {similar_names(name, known)})" for name in unknown[:5]]
        message = f"obs[{drug_key!r}] has {len(unknown)} drugs that the model does not know: {', '.join(near)}"
        raise InputError(message)
    ids[present] = names.map(known).to_numpy(dtype=np.int64)
    return ids


def row_of(adata: AnnData, cell: str | int) -> int:
    """Row number of a cell that is given by its name or by its number."""
    if isinstance(cell, str):
        rows = np.flatnonzero(adata.obs_names.isin([cell]))  # a comparison would fail on a missing name
        if len(rows) != 1:
            hint = "" if len(rows) else f" (near: {similar_names(cell, adata.obs_names.dropna())})"
            message = f"cell={cell!r} is the name of {len(rows)} cells in adata.obs_names{hint}"
            raise InputError(message)
        return int(rows[0])
    if not 0 <= cell < adata.n_obs:
        message = f"cell={cell} is out of range; adata has {adata.n_obs} cells, counted from 0"
        raise InputError(message)
    return int(cell)


def check_name(key: str) -> None:
    """Refuse what cannot be the name of a result."""
    if not isinstance(key, str) or not key or "/" in key or key == "tahoe_genes":
        message = f"key_added={key!r}; it must be the name of a slot, without '/', such as 'X_tahoe'"
        raise InputError(message)


def copy_or_self(adata: AnnData, copy: bool) -> AnnData:
    """The AnnData that results go into; refuses, before the work, what anndata cannot do with one in a file."""
    if adata.isbacked and (copy or adata.is_view):
        what = "copy=True" if copy else "a view"
        message = f"adata is backed by a file, and {what} would load it; call adata.to_memory() if it fits"
        raise InputError(message)
    return adata.copy() if copy else adata


def n_genes_name(key: str) -> str:
    """Column of ``obs`` that says how many genes each cell of an embedding has, named as scanpy does: without "X_"."""
    return f"{key.removeprefix('X_')}_n_genes"


def slot_names(key: str, groups: Sequence[str], groupby: str | None, *, taken: str | None = None) -> list[str]:
    """Slot of each group's result, none of which may be `taken`. HDF5 takes a slash for a folder, so it becomes _."""
    if groupby is None:
        return [key]
    names = [f"{key}_{group}".replace("/", "_") for group in groups]
    if len(set(names)) < len(names):
        message = f"groups of obs[{groupby!r}] have the same name, or differ only by '/' and '_'; rename one of them"
        raise InputError(message)
    if taken in names:
        group = groups[names.index(taken)]
        message = (
            f"the group {group!r} of obs[{groupby!r}] would go to {taken!r}, which holds something else; rename it"
        )
        raise InputError(message)
    return names


def write(adata: AnnData, *, mapping: GeneMapping | None = None, **slots: Mapping[str, Any] | None) -> None:
    """Write finished results, by slot. Called last by every verb, so that an error before leaves `adata` as it was."""
    if mapping is not None:
        adata.var["tahoe_gene"] = mapping.gene
        adata.var["tahoe_match"] = mapping.match
        adata.uns["tahoe_genes"] = mapping.report
    for name, content in slots.items():
        for key, value in (content or {}).items():
            getattr(adata, name)[key] = value
