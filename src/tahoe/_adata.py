"""The only file that knows AnnData storage: choose the matrix, check it, walk it in blocks of rows, write results."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tahoe._genes import map_genes
from tahoe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from tahoe._genes import GeneMapping
    from tahoe.model import TahoeModel

# Rows read at once: a block of 512 cells with 3,000 genes each is about 12 MB.
BLOCK_CELLS = 512
# The slots under which single-cell files keep raw counts, looked at only to write better error messages.
COUNT_LAYERS = ("counts", "raw_counts", "count", "raw", "spliced")


@dataclass(frozen=True)
class Matrix:
    """One expression matrix of an AnnData, with the genes that its columns stand for."""

    values: Any
    var: pd.DataFrame
    slot: str
    """Where it lies, as a user would write it: ``X``, ``layers["counts"]``, ``raw.X``."""
    remedy: str
    """What to pass instead if the values will not do."""

    @property
    def n_cells(self) -> int:
        return self.values.shape[0]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[sparse.csr_array]:
        """Walk rows in order, a few at a time, as canonical CSR: sorted, without duplicates or stored zeros."""
        stop = self.n_cells if stop is None else stop
        for first in range(start, stop, BLOCK_CELLS):
            yield _canonical_csr(self._by_rows[first : min(first + BLOCK_CELLS, stop)])

    def checked_blocks(self, start: int = 0, stop: int | None = None) -> Iterator[sparse.csr_array]:
        """Walk as `blocks` does, and refuse the first block with values that will not do."""
        for block in self.blocks(start, stop):
            check_values(block, self)
            yield block

    @cached_property
    def _by_rows(self) -> Any:
        # Slicing the rows of a CSC matrix costs a pass over the whole of it, so it is turned once.
        return self.values.tocsr() if sparse.issparse(self.values) and self.values.format != "csr" else self.values

    @cached_property
    def totals(self) -> np.ndarray:
        """Sum of each column (float64), in one pass."""
        totals = np.zeros(self.values.shape[1])
        for block in self.blocks():
            totals += np.bincount(block.indices, weights=block.data, minlength=len(totals))
        return totals


def choose_matrix(adata: AnnData, *, layer: str | None = None, use_raw: bool = False) -> Matrix:
    """The matrix that `layer` and `use_raw` point to.

    Raises
    ------
    tahoe.errors.InputError
        If both are given, if there is no such slot, or if the matrix has no cells, no genes, or no real numbers.
    """
    if layer is not None and use_raw:
        message = f"layer={layer!r} and use_raw=True point to two matrices; pass only one of them"
        raise InputError(message)
    if layer is not None:
        if layer not in adata.layers:
            message = f"layers[{layer!r}] does not exist; adata.layers has {_listed(adata.layers)}"
            raise InputError(message)
        matrix = Matrix(adata.layers[layer], adata.var, f"layers[{layer!r}]", _remedy(adata, layer))
    elif use_raw:
        if adata.raw is None:
            message = "use_raw=True, but adata.raw is None; leave use_raw away to use adata.X"
            raise InputError(message)
        matrix = Matrix(adata.raw.X, adata.raw.var, "raw.X", _remedy(adata, "raw.X"))
    else:
        if adata.X is None:
            message = f"adata.X is None; {_remedy(adata, None)}"
            raise InputError(message)
        matrix = Matrix(adata.X, adata.var, "X", _remedy(adata, None))
    if 0 in matrix.values.shape:
        n_cells, n_genes = matrix.values.shape
        message = f"{matrix.slot} has {n_cells} cells and {n_genes} genes; both must be at least 1"
        raise InputError(message)
    if np.dtype(matrix.values.dtype).kind not in "biuf":
        message = f"{matrix.slot} holds {matrix.values.dtype}, which is not a real number. {matrix.remedy}"
        raise InputError(message)
    return matrix


def check_values(block: sparse.csr_array, matrix: Matrix) -> None:
    """Refuse values whose order within a cell no longer says how much of each gene was measured.

    Counts, size-normalised and log-transformed values pass: Tahoe-x1 reads ranks. Negative, missing and infinite
    values, and real numbers without a single zero (imputed or smoothed data), do not.
    """
    values = block.data
    if not np.isfinite(values).all():
        seen = "NaN" if np.isnan(values).any() else "infinite values"
    elif values.size and values.min() < 0:
        seen = f"negative values (as low as {values.min():.3g}), as scaled, regressed-out or batch-corrected data has"
    elif _is_imputed(block):
        seen = "real numbers and hardly a zero, as imputed or smoothed data has"
    else:
        return
    message = (
        f"{matrix.slot} holds {seen}; Tahoe-x1 ranks the expressed genes of each cell, so it needs counts, or counts"
        f" that were only normalised by cell or log-transformed. {matrix.remedy}"
    )
    raise InputError(message)


def selected_genes(matrix: Matrix, mask_var: str | np.ndarray | None) -> np.ndarray:
    """Which columns `mask_var` selects, as booleans."""
    n_genes = len(matrix.var)
    if mask_var is None:
        return np.ones(n_genes, dtype=bool)
    if isinstance(mask_var, str):
        if mask_var not in matrix.var:
            message = f"mask_var={mask_var!r} is not a column of var, which has {_listed(matrix.var)}"
            raise InputError(message)
        name, mask = f"var[{mask_var!r}]", matrix.var[mask_var].to_numpy()
    else:
        name, mask = "mask_var", np.asarray(mask_var)
    if mask.dtype != bool or mask.shape != (n_genes,) or not mask.any():
        seen = (
            f"{mask.dtype} of shape {mask.shape}"
            if mask.dtype != bool or mask.ndim != 1
            else f"{mask.sum()} of {len(mask)}"
        )
        message = f"{name} is {seen}; it must be {n_genes} booleans, one for each gene, not all of them False"
        raise InputError(message)
    return mask


def groups_of(adata: AnnData, groupby: str | None) -> tuple[np.ndarray, list[str]]:
    """Number of each cell's group, and the names of the groups; without `groupby`, one group of all cells."""
    if groupby is None:
        return np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    if groupby not in adata.obs:
        message = f"groupby={groupby!r} is not a column of adata.obs, which has {_listed(adata.obs)}"
        raise InputError(message)
    column = adata.obs[groupby].astype("category").cat.remove_unused_categories()
    if column.isna().any():
        message = f"obs[{groupby!r}] is missing for {column.isna().sum()} cells; fill it in, or leave these cells out"
        raise InputError(message)
    return column.cat.codes.to_numpy(dtype=np.int64), [str(name) for name in column.cat.categories]


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
        message = f"drug_key={drug_key!r} is not a column of adata.obs, which has {_listed(adata.obs)}"
        raise InputError(message)
    column = adata.obs[drug_key]
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


def check_key(adata: AnnData, key: str, slot: str = "obsm") -> None:
    """Refuse to overwrite what this package did not write."""
    if not isinstance(key, str) or not key:
        message = f"key_added={key!r}; it must be the name of a slot, such as 'X_tahoe'"
        raise InputError(message)
    ours = isinstance(adata.uns.get(key), Mapping) and "tahoe_version" in adata.uns[key]
    taken = [f"{slot}[{key!r}]" for slot in (slot, "uns") if key in getattr(adata, slot)]
    if taken and not ours:
        message = f"{taken[0]} exists and was not written by tahoe; choose another key_added, or delete it first"
        raise InputError(message)


def mapped_genes(adata: AnnData, matrix: Matrix) -> tuple[np.ndarray, GeneMapping | None]:
    """Ensembl id of each column, and the mapping if it had to be made, to be written with the results."""
    if "tahoe_gene" in matrix.var:
        return matrix.var["tahoe_gene"].astype(str).to_numpy(dtype=object), None
    mapping = map_genes(matrix.var, matrix.totals)
    return mapping.gene, None if matrix.slot == "raw.X" else mapping


def write(
    adata: AnnData,
    *,
    obs: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    varm: Mapping[str, Any] | None = None,
    varp: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    mapping: GeneMapping | None = None,
) -> None:
    """Write finished results. Called last by every verb, so that an error before leaves `adata` as it was."""
    if mapping is not None:
        adata.var["tahoe_gene"] = mapping.gene
        adata.var["tahoe_match"] = mapping.match
        adata.uns["tahoe_genes"] = mapping.report
    for name, content in {"obs": obs, "obsm": obsm, "varm": varm, "varp": varp, "uns": uns}.items():
        for key, value in (content or {}).items():
            getattr(adata, name)[key] = value


def provenance(model: TahoeModel, matrix: Matrix, **parameters: Any) -> dict[str, Any]:
    """What is needed to repeat a result, as plain values that survive h5ad and zarr; None is left out."""
    record = {
        "tahoe_version": version("tahoe-anndata"),
        "model": model.name,
        "model_revision": model.revision,
        "model_sha256": model.weights_sha256,
        "vocabulary_sha256": model.vocabulary.sha256,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.attention,
        "input": matrix.slot,
        "n_cells": matrix.n_cells,
        **parameters,
        "versions": [f"{name} {version(name)}" for name in ("anndata", "numpy", "scipy", "torch")],
    }
    return {key: value for key, value in record.items() if value is not None}


def _is_imputed(block: sparse.csr_array) -> bool:
    n_cells, n_genes = block.shape
    if n_genes < 50 or block.nnz < 0.98 * n_cells * n_genes:
        return False
    return bool((block.data != np.rint(block.data)).mean() > 0.5)


def _canonical_csr(rows: Any) -> sparse.csr_array:
    """Any slice of rows as CSR, without touching the user's arrays."""
    if not sparse.issparse(rows):
        dense = np.asarray(rows)
        # scipy has no sparse half precision
        return sparse.csr_array(dense.astype(np.float32) if dense.dtype == np.float16 else dense)
    block = sparse.csr_array(rows)
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    if block.nnz and not block.data.all():
        block = block.copy()
        block.eliminate_zeros()
    return block


def _remedy(adata: AnnData, refused: str | None) -> str:
    """Which slot to try instead of the refused one."""
    for layer in COUNT_LAYERS:
        if layer in adata.layers and layer != refused:
            return f'layers["{layer}"] exists: pass layer="{layer}".'
    if adata.raw is not None and refused != "raw.X":
        return "adata.raw exists: pass use_raw=True if it holds counts or log-normalised values."
    return "Pass layer= or use_raw= to point to such a matrix, or load the counts again."


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
