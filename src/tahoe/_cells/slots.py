"""The slots of an AnnData: look up what arguments point to, write results, record where they come from."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.matrix import in_memory, one_column
from tahoe._genes.mapping import are_genes, gene_columns, map_genes, own_ids_first, usable_totals
from tahoe.errors import GeneError, InputError, TahoeWarning

if TYPE_CHECKING:
    from anndata import AnnData

    from tahoe._cells.matrix import Matrix
    from tahoe._genes.mapping import GeneMapping
    from tahoe.model import TahoeModel

# No annotation has so many: names of more cells are not looked at.
MOST_GENES = 200_000


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
        near = difflib.get_close_matches(str(unknown[0]), adata.var_names.dropna(), n=3) if unknown else []
        message = f"genes={unknown[:5] or genes}: not in adata.var_names (near: {_listed(near)})"
        raise InputError(message)
    return np.flatnonzero(adata.var_names.isin(genes))


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
        rows = np.flatnonzero(adata.obs_names.isin([cell]))  # a comparison would fail on a missing name
        if len(rows) != 1:
            near = difflib.get_close_matches(cell, adata.obs_names.dropna(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near and not len(rows) else ""
            message = f"cell={cell!r} is the name of {len(rows)} cells in adata.obs_names{hint}"
            raise InputError(message)
        return int(rows[0])
    if not 0 <= cell < adata.n_obs:
        message = f"cell={cell} is out of range; adata has {adata.n_obs} cells, counted from 0"
        raise InputError(message)
    return int(cell)


def check_key(adata: AnnData, key: str, *slots: tuple[str, str]) -> None:
    """Check the name of a result, and warn of what its slots hold that is not known to be ours.

    These slots, and ``uns[key]``, will be overwritten, as scanpy does. The record in ``uns`` tells what is ours;
    anndata.concat drops it.
    """
    check_name(key)
    record = adata.uns.get(key)
    if isinstance(record, Mapping) and "tahoe_version" in record:
        return
    # a name that begins with "tahoe_" is nobody else's, as in an AnnData made from the obs of another
    named = [(slot, name) for slot, name in (*slots, ("uns", key)) if not name.startswith("tahoe_")]
    taken = [f"{slot}[{name!r}]" for slot, name in named if name in getattr(adata, slot)]
    if taken:
        message = (
            f"{' and '.join(taken)} will be overwritten, and uns[{key!r}] has no record that tahoe wrote what is there;"
            " to keep it, pass another key_added"
        )
        # check_key, the verb, its caller
        warnings.warn(message, TahoeWarning, stacklevel=3)


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


def organism_of(adata: AnnData) -> str:
    """Whose genes the columns are, as far as an earlier mapping tells."""
    return _asked_before(adata, "organism", "human")


def _asked_before(adata: AnnData, name: str, default: str) -> str:
    """What an earlier mapping was asked for."""
    report = adata.uns.get("tahoe_genes")
    return report.get(name, default) if isinstance(report, Mapping) else default


def genes_are_rows(adata: AnnData, organism: str) -> str:
    """Hint that the matrix lies on its side, "" if the cells do not have the names of genes."""
    if adata.n_obs > MOST_GENES or not are_genes(adata.obs_names, organism):
        return ""
    return "adata.obs_names are the names of genes: the matrix has genes as rows; pass the transposed one, adata.T"


@contextmanager
def looking_at_rows(adata: AnnData, organism: str) -> Iterator[None]:
    """Say with an error about the genes if the cells have their names."""
    try:
        yield
    except GeneError as error:
        hint = genes_are_rows(adata, organism)
        if not hint:
            raise
        message = f"{error} {hint}"
        raise GeneError(message) from error


def mapped_genes(
    adata: AnnData, matrix: Matrix, used: np.ndarray, **how: str | None
) -> tuple[np.ndarray, np.ndarray, GeneMapping | None]:
    """Ensembl id of each column, which columns are to be added to another one, and the mapping if it had to be made.

    A mapping that is there is taken, unless `how` asks for another by ``gene_key``, ``organism`` or ``duplicates``.
    Only the `used` columns must be mapped in it, and they keep a gene before the others in a new one.
    """
    asked = {name: value for name, value in how.items() if value is not None}
    if "tahoe_gene" in matrix.var and not asked:
        try:
            return *_genes_as_mapped(matrix.var, used), None
        except InputError:
            if matrix.slot != "raw.X":  # which no call maps again
                raise
    totals = matrix.totals if usable_totals(matrix.totals) is not None else np.where(used, matrix.totals, 0)
    asked = {"organism": organism_of(adata), "duplicates": _asked_before(adata, "duplicates", "best"), **asked}
    with looking_at_rows(adata, asked["organism"]):
        mapping = map_genes(matrix.var, totals, **asked, preferred=used)
    mapping.report["counts_from"] = matrix.slot
    if mapping.report["contradiction"]:
        # mapped_genes, read_inputs, the verb, its caller
        warnings.warn(mapping.report["contradiction"], TahoeWarning, stacklevel=4)
    return mapping.gene, np.asarray(mapping.match == "summed"), mapping


def genes_of_model(
    adata: AnnData, matrix: Matrix, genes: np.ndarray, mapping: GeneMapping | None, vocabulary: Container[str]
) -> np.ndarray:
    """The gene of each column as one model knows it; `mapping` is the one that was just made, if it was."""
    match: Any
    if mapping is not None:
        match, key = mapping.match, mapping.report["gene_key"]
    else:
        key = _asked_before(adata, "gene_key", "var_names")
        # without it the mapping is the user's own, and taken as it is
        match = matrix.var.get("tahoe_match", None)
    names = matrix.var.index if key == "var_names" else matrix.var.get(key, None)
    if match is None or names is None or names.ndim > 1:
        return genes
    return own_ids_first(genes, np.asarray(match, dtype=str), names, lambda: matrix.totals, vocabulary)


def _genes_as_mapped(var: pd.DataFrame, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The genes of an earlier mapping, and which columns it adds to another one of the same gene."""
    column = one_column(var, "tahoe_gene", "var")
    again = 'call tahoe.pp.map_genes(adata) again, or pass duplicates="best" to tahoe.embed_file'
    missing = int((column.isna() & used).sum())
    if missing:
        message = (
            f'var["tahoe_gene"] is missing for {missing} of {len(column)} genes, as after anndata.concat(join="outer");'
            f" {again}. A column that is to have no gene has an empty string, ''"
        )
        raise InputError(message)
    genes = column.astype(object).where(column.notna(), "").astype(str)
    elsewhere = ~gene_columns(var).are_genes & (genes != "")
    if not set(genes[elsewhere]) <= set(genes[used]):
        message = (
            f'var["tahoe_gene"] has genes for {elsewhere.sum()} columns that are not gene expression, as if they had'
            f" been mapped before that was known; {again}"
        )
        raise InputError(message)
    summed = np.asarray(var["tahoe_match"] == "summed") if "tahoe_match" in var else np.zeros(len(var), dtype=bool)
    own = genes[used & ~summed & (genes != "")]
    twice = own[own.duplicated()]
    if len(twice):
        message = (
            f'var["tahoe_gene"] has {twice.iloc[0]} in several columns, as after anndata.concat(axis="var"); {again}:'
            ' that settles which column keeps the gene. duplicates="sum" adds them up'
        )
        raise InputError(message)
    return genes.to_numpy(dtype=object), summed


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
    from tahoe.model.cpu.linear import rounded_to

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
