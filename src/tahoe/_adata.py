"""The slots of an AnnData: look up what arguments point to, write results, record where they come from."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._genes import map_genes
from tahoe._matrix import in_memory
from tahoe.errors import InputError, TahoeWarning

if TYPE_CHECKING:
    from anndata import AnnData

    from tahoe._genes import GeneMapping
    from tahoe._matrix import Matrix
    from tahoe.model import TahoeModel


def groups_of(adata: AnnData, groupby: str | None) -> tuple[np.ndarray, list[str]]:
    """Number of each cell's group, and the names of the groups; without `groupby`, one group of all cells."""
    if groupby is None:
        return np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    if groupby not in adata.obs:
        message = f"groupby={groupby!r} is not a column of adata.obs, which has {_listed(adata.obs.columns)}"
        raise InputError(message)
    column = column_of(adata, groupby).astype("category").cat.remove_unused_categories()
    if column.isna().any():
        message = f"obs[{groupby!r}] is missing for {column.isna().sum()} cells; fill it in, or leave these cells out"
        raise InputError(message)
    return column.cat.codes.to_numpy(dtype=np.int64), [str(name) for name in column.cat.categories]


def column_of(adata: AnnData, key: str) -> pd.Series:
    """A column of ``adata.obs``, also that of a lazy AnnData."""
    column = adata.obs[key] if isinstance(adata.obs, pd.DataFrame) else in_memory(adata.obs[[key]])[key]
    if isinstance(column.dtype, np.dtype) and not column.dtype.isnative:  # pandas groups no other byte order
        column = pd.Series(column.to_numpy().astype(column.dtype.newbyteorder("=")), column.index, name=key)
    return column


def columns_of(adata: AnnData, genes: Sequence[str] | None) -> np.ndarray:
    """Column numbers of genes that are given by their names; all without `genes`."""
    if genes is None:
        return np.arange(adata.n_vars)
    if isinstance(genes, str):
        genes = [genes]
    columns = adata.var_names.get_indexer_for(list(genes))
    unknown = [gene for gene, column in zip(genes, columns, strict=False) if column < 0]
    if unknown or not len(columns):
        near = difflib.get_close_matches(unknown[0], adata.var_names, n=3) if unknown else []
        message = f"genes={unknown[:5] or list(genes)}: not in adata.var_names (near: {_listed(near)})"
        raise InputError(message)
    return np.unique(columns)


def drugs_of(adata: AnnData, drug_key: str, known: Mapping[str, int]) -> np.ndarray:
    """Id of each cell's drug, 0 where the column has a missing value."""
    if drug_key not in adata.obs:
        message = f"drug_key={drug_key!r} is not a column of adata.obs, which has {_listed(adata.obs.columns)}"
        raise InputError(message)
    column = column_of(adata, drug_key)
    ids = np.zeros(adata.n_obs, dtype=np.int64)
    present = column.notna().to_numpy()
    names = column[present].astype(str)
    unknown = [name for name in names.unique() if name not in known]
    if unknown:
        near = [f"{name!r} (near: {_listed(difflib.get_close_matches(name, known, n=3))})" for name in unknown[:5]]
        message = f"obs[{drug_key!r}] has {len(unknown)} drugs that the model does not know: {', '.join(near)}"
        raise InputError(message)
    ids[present] = names.map(known).to_numpy(dtype=np.int64)
    return ids


def row_of(adata: AnnData, cell: str | int) -> int:
    """Row number of a cell that is given by its name or by its number."""
    if isinstance(cell, str):
        rows = np.flatnonzero(adata.obs_names == cell)
        if len(rows) != 1:
            near = difflib.get_close_matches(cell, adata.obs_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and not len(rows) else ""
            message = f"cell={cell!r} is the name of {len(rows)} cells in adata.obs_names{hint}"
            raise InputError(message)
        return int(rows[0])
    if not 0 <= cell < adata.n_obs:
        message = f"cell={cell} is out of range; adata has {adata.n_obs} cells, counted from 0"
        raise InputError(message)
    return int(cell)


def check_key(adata: AnnData, key: str, *slots: tuple[str, str]) -> None:
    """Check the name of a result, and warn of what it will overwrite if that has no record of this package.

    Called by a verb itself, so that the warning points to the line of the user.
    """
    check_name(key)
    ours = isinstance(adata.uns.get(key), Mapping) and "tahoe_version" in adata.uns[key]
    taken = [f"{slot}[{name!r}]" for slot, name in (*slots, ("uns", key)) if name in getattr(adata, slot)]
    if taken and not ours:
        message = (
            f"{' and '.join(taken)} will be overwritten: uns[{key!r}] does not say that tahoe wrote it (anndata.concat"
            " leaves uns out). To keep it, pass another key_added"
        )
        warnings.warn(message, TahoeWarning, stacklevel=3)


def check_name(key: str) -> None:
    """Refuse what cannot be the name of a result."""
    if not isinstance(key, str) or not key or "/" in key or key == "tahoe_genes":
        message = f"key_added={key!r}; it must be the name of a slot, without '/', such as 'X_tahoe'"
        raise InputError(message)


def to_change(adata: AnnData, copy: bool) -> AnnData:
    """The AnnData that results go into; refuses, before the work, what anndata cannot do with one in a file."""
    if adata.isbacked and (copy or adata.is_view):
        what = "copy=True" if copy else "a view"
        message = f"adata is backed by a file, and {what} would load it; call adata.to_memory() if it fits"
        raise InputError(message)
    return adata.copy() if copy else adata


def slot_names(key: str, groups: Sequence[str], groupby: str | None) -> list[str]:
    """Slot of each group's result. HDF5 takes a slash for a folder, so it becomes an underscore."""
    names = [key] if groupby is None else [f"{key}_{group}".replace("/", "_") for group in groups]
    if len(set(names)) < len(names):
        message = f"groups of obs[{groupby!r}] differ only by '/' and '_'; rename one of them"
        raise InputError(message)
    return names


def organism_of(adata: AnnData) -> str:
    """Whose genes the columns are, as far as an earlier mapping tells."""
    report = adata.uns.get("tahoe_genes")
    return report.get("organism", "human") if isinstance(report, Mapping) else "human"


def mapped_genes(
    adata: AnnData, matrix: Matrix, gene_key: str | None = None, organism: str | None = None
) -> tuple[np.ndarray, GeneMapping | None]:
    """Ensembl id of each column, and the mapping if it had to be made, to be written with the results.

    A mapping that is there is taken, unless `gene_key` or `organism` ask for another.
    """
    if "tahoe_gene" not in matrix.var or gene_key is not None or organism is not None:
        mapping = map_genes(matrix.var, matrix.totals, gene_key=gene_key, organism=organism or organism_of(adata))
        mapping.report["counts_from"] = matrix.slot
        return mapping.gene, None if matrix.slot == "raw.X" else mapping
    column = matrix.var["tahoe_gene"]
    genes = column.astype(object).where(column.notna(), "").astype(str)
    twice = genes[(genes != "") & genes.duplicated()]
    if len(twice):
        message = (
            f'var["tahoe_gene"] has {twice.iloc[0]} in several columns, as after anndata.concat(axis="var"); call'
            " tahoe.pp.map_genes(adata) again, which settles which column keeps the gene"
        )
        raise InputError(message)
    return genes.to_numpy(dtype=object), None


def write(
    adata: AnnData,
    *,
    obs: Mapping[str, Any] | None = None,
    var: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    varm: Mapping[str, Any] | None = None,
    varp: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    mapping: GeneMapping | None = None,
) -> None:
    """Write finished results. Called last by every verb, so that an error before leaves `adata` as it was."""
    if mapping is not None:
        adata.var["tahoe_gene"] = mapping.gene
        adata.var["tahoe_match"] = mapping.match
        adata.uns["tahoe_genes"] = mapping.report
    slots = {"obs": obs, "var": var, "obsm": obsm, "varm": varm, "varp": varp, "layers": layers, "uns": uns}
    for name, content in slots.items():
        for key, value in (content or {}).items():
            getattr(adata, name)[key] = value


def provenance(model: TahoeModel, matrix: Matrix, **parameters: Any) -> dict[str, Any]:
    """What is needed to repeat a result, as plain values that survive h5ad and zarr; None is left out."""
    from tahoe.model.linear import rounded_to

    record = {
        "tahoe_version": version("tahoe-anndata"),
        "model": model.name,
        "model_revision": model.revision,
        "model_folder": str(model.folder.resolve()) if model.folder and not model.is_registered else None,
        "model_sha256": model.weights_sha256,
        "vocabulary_sha256": model.vocabulary.sha256,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "float32_rounded_to": rounded_to(model.device) if model.dtype.itemsize == 4 else None,
        "attention": model.attention,
        "input": matrix.slot,
        "n_cells": matrix.n_cells,
        **parameters,
        "versions": [f"{name} {version(name)}" for name in ("anndata", "numpy", "scipy", "torch")],
    }
    return {key: value for key, value in record.items() if value is not None}


def add_to_record(adata: AnnData, key: str, **more: Any) -> None:
    """Add to the provenance of a result what only the caller of a verb knows."""
    adata.uns[key] = {**adata.uns[key], **more}


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
