"""The matrix of an AnnData: choose it, check it, walk it in blocks of rows, whatever the storage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.rows import BLOCK_CELLS, by_rows, in_file, is_lazy, row_blocks
from tahoe._cells.sparse_checks import explain_read_errors
from tahoe.errors import InputError, similar_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData
    from scipy import sparse

# Sums of genes go over so many blocks at the most: 8,192 cells tell which share of the counts a model can read.
SAMPLE_BLOCKS = 16
# A block without zeros is not what a sequencer gives. Fewer cells, or a small panel of genes, say nothing.
DENSE_SHARE, LEAST_CELLS, LEAST_GENES, LEAST_GENES_OF_COUNTS = 0.98, 5, 50, 500
NO_REMEDY = "Pass layer= or use_raw= to point to such a matrix, or load the counts again."


@dataclass(frozen=True)
class Slot:
    """Which matrix of an AnnData: X, one of its layers, or that of raw."""

    kind: str
    """``X``, ``layers`` or ``raw``."""
    name: str = ""
    """Of the layer."""

    def __str__(self) -> str:
        """As a user would write it; the provenance has it so."""
        return {"X": "X", "raw": "raw.X"}.get(self.kind, f'layers["{self.name}"]')

    @classmethod
    def from_text(cls, text: str) -> Slot:
        """The slot that the provenance of a result names."""
        before, after = 'layers["', '"]'
        if text.startswith(before) and text.endswith(after):
            return cls("layers", text.removeprefix(before).removesuffix(after))
        if text not in ("X", "raw.X"):
            message = f"{text!r} is no matrix of an AnnData; there are X, raw.X and layers[...]"
            raise InputError(message)
        return cls(text.removesuffix(".X"))

    @property
    def how_to_read(self) -> str:
        """What to pass to a verb so that it reads this matrix."""
        if self.kind == "layers":
            return f'pass layer="{self.name}"'
        # functions that write to the columns of X cannot read those of raw
        in_raw = "pass use_raw=True, or, to a function without use_raw=, adata.raw.to_adata()"
        return in_raw if self.kind == "raw" else "omit layer= and use_raw="

    def values(self, adata: AnnData) -> Any:
        """The matrix itself."""
        if self.kind == "layers":
            return adata.layers[self.name]
        return adata.raw.X if self.kind == "raw" else adata.X

    def matrix(self, adata: AnnData) -> Matrix:
        """The matrix with its genes, not checked."""
        var = adata.raw.var if self.kind == "raw" else adata.var
        return Matrix(self.values(adata), in_memory(var), self, adata)


@dataclass(frozen=True)
class Matrix:
    """One expression matrix of an AnnData, with the genes that its columns stand for."""

    values: Any
    var: pd.DataFrame
    slot: Slot
    adata: AnnData

    @property
    def n_cells(self) -> int:
        return self.values.shape[0]

    @property
    def is_lazy(self) -> bool:
        """Whether the values are a dask array."""
        return is_lazy(self.values)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[sparse.csr_array]:
        """Walk rows in order, a few at a time, as canonical CSR in float32: no duplicates, no stored zeros."""
        return row_blocks(self._by_rows, start, self.n_cells if stop is None else stop)

    def checked_blocks(self, used: np.ndarray, start: int = 0, stop: int | None = None) -> Iterator[sparse.csr_array]:
        """Walk as `blocks` does, and refuse the first block with values in the used columns that will not do."""
        for block in self.blocks(start, stop):
            self.check(block, used)
            yield block

    def check(self, block: sparse.csr_array, used: np.ndarray) -> None:
        """Refuse rows whose values in the used columns will not do."""
        check_values(block, used, str(self.slot), lambda: self.remedy(used))

    @cached_property
    def _by_rows(self) -> Any:
        return by_rows(self.values, str(self.slot))

    @cached_property
    def totals(self) -> np.ndarray:
        """Sum of each column (float64), over all cells, or in a large matrix over blocks spread evenly over it.

        The blocks do not depend on the storage, so that nothing that is decided by them does.
        """
        totals = np.zeros(self.values.shape[1])
        for start in self._sample:
            for block in self.blocks(start, min(start + BLOCK_CELLS, self.n_cells)):
                totals += np.bincount(block.indices, weights=block.data, minlength=len(totals))
        return totals

    @property
    def _sample(self) -> list[int]:
        """First rows of the blocks that stand for the whole matrix: all blocks, if they are few."""
        starts = range(0, self.n_cells, BLOCK_CELLS)
        if len(starts) <= SAMPLE_BLOCKS:
            return list(starts)
        return np.linspace(0, self.n_cells - BLOCK_CELLS, SAMPLE_BLOCKS).astype(int).tolist()

    def expressed(self) -> np.ndarray:
        """Which columns have a value in any cell, in one pass over all of them."""
        seen = np.zeros(self.values.shape[1], dtype=bool)
        for block in self.blocks():
            seen[block.indices] = True
        return seen

    def remedy(self, used: np.ndarray | None = None) -> str:
        """Say which other matrix would do, by a look at the first rows of each."""
        for slot in slots_of(self.adata):
            if slot != self.slot and _first_rows_fit(slot.matrix(self.adata), used if slot.kind != "raw" else None):
                return f"{slot} would do: {slot.how_to_read}."
        return NO_REMEDY


def choose_matrix(adata: AnnData, *, layer: str | None = None, use_raw: bool = False) -> Matrix:
    """The matrix that `layer` and `use_raw` point to.

    Raises
    ------
    tahoe.errors.InputError
        If both are given, if there is no such slot, or if the matrix has no cells, no genes, or no real numbers, or
        cannot be read by rows.
    """
    if layer is not None and use_raw:
        message = f"layer={layer!r} and use_raw=True point to two matrices; pass only one of them"
        raise InputError(message)
    if layer is not None and layer not in adata.layers:
        message = f"layers[{layer!r}] does not exist; adata.layers has {similar_names(layer, named_layers(adata))}"
        raise InputError(message)
    if use_raw and adata.raw is None:
        message = "use_raw=True, but adata.raw is None; omit use_raw to use adata.X"
        raise InputError(message)
    slot = Slot("layers", layer) if layer is not None else Slot("raw" if use_raw else "X")
    with explain_read_errors(str(slot), adata.isbacked):  # of a view, scipy must take the part now
        matrix = slot.matrix(adata)
    if matrix.values is None:
        message = f"adata.X is None. {matrix.remedy()}"
        raise InputError(message)
    with explain_read_errors(str(slot), adata.isbacked):
        _refuse_shape(matrix)
        readable = _is_readable(matrix)
    if not readable:
        message = f"{matrix.slot} holds {matrix.values.dtype}, which is not a real number. {matrix.remedy()}"
        raise InputError(message)
    _refuse_columns(matrix)
    return matrix


def in_memory(frame: Any) -> pd.DataFrame:
    """``obs`` or ``var`` as pandas has it, also that of a lazy AnnData."""
    return frame if isinstance(frame, pd.DataFrame) else frame.to_memory()


def named_layers(adata: AnnData) -> list[str]:
    """Layers that `layer=` can name; from anndata 0.13 on, ``layers[None]`` is X once more."""
    return [name for name in adata.layers if isinstance(name, str)]


def slots_of(adata: AnnData) -> list[Slot]:
    """The matrices that an AnnData has; layers called counts first: where several would do, counts are the safest."""
    layers = sorted(named_layers(adata), key=lambda name: "count" not in name.lower())
    slots = [Slot("layers", name) for name in layers] + [Slot("raw")] * (adata.raw is not None)
    return slots + [Slot("X")] * (adata.X is not None)


def one_column(frame: pd.DataFrame, key: str, slot: str) -> pd.Series:
    """A column of ``obs`` or ``var`` by its name, which several may bear after a join."""
    column = frame[key]
    if column.ndim > 1:
        message = f"{slot} has {column.shape[1]} columns of the name {key!r}; rename or drop all but one"
        raise InputError(message)
    return column


def _refuse_shape(matrix: Matrix) -> None:
    """Refuse what has no rows, no columns, or others than the AnnData: a file may say anything."""
    shape, expected = tuple(matrix.values.shape), (matrix.adata.n_obs, len(matrix.var))
    if shape != expected:
        message = f"{matrix.slot} says that its shape is {shape}, and adata has {expected}; the file is damaged"
        raise InputError(message)
    if 0 in shape:
        message = f"{matrix.slot} has {shape[0]} cells and {shape[1]} genes; both must be at least 1"
        raise InputError(message)


def _refuse_columns(matrix: Matrix) -> None:
    """Refuse storage in which each row would cost a pass over the whole matrix."""
    values, fix = matrix.values, ""
    if in_file(values) and values.format == "csc":
        fix = "read it with adata.to_memory(), or write it by rows: X.tocsr()"
    if matrix.is_lazy and getattr(values._meta, "format", "") == "csc" and values.numblocks[1] > 1:
        fix = "write it by rows, from memory: adata.to_memory(), then X.tocsr()"
    if fix:
        message = (
            f"{matrix.slot} lies in a file that stores it by columns (CSC), and each cell would cost a pass over all of"
            f" it; {fix}"
        )
        raise InputError(message)


def check_values(block: sparse.csr_array, used: np.ndarray, slot: str, remedy: Callable[[], str]) -> None:
    """Refuse values whose order within a cell no longer says how much of each gene was measured.

    Only those of the used columns, one boolean for each: others may hold anything.
    """
    seen = describe_invalid_values(block, used)
    if seen:
        message = (
            f"{slot} holds {seen}; Tahoe-x1 ranks the expressed genes of each cell, so it needs counts, or"
            f" counts that were only normalised by cell or log-transformed. {remedy()}"
        )
        raise InputError(message)


def describe_invalid_values(block: sparse.csr_array, used: np.ndarray | None = None) -> str:
    """What is wrong with some rows, or with the used columns of them, "" if nothing is.

    Counts, size-normalised and log-transformed values pass: Tahoe-x1 reads ranks. Negative, missing and infinite
    values, and matrices with hardly a zero (imputed or smoothed data), do not.
    """
    values = block.data if used is None or used.all() else block.data[used[block.indices]]
    n_genes = block.shape[1] if used is None else int(used.sum())
    if not np.isfinite(values).all():
        return "NaN" if np.isnan(values).any() else "infinite values"
    if values.size and values.min() < 0:
        return f"negative values (as low as {values.min():.3g}), as scaled, regressed-out or batch-corrected data has"
    return "hardly a zero, as imputed or smoothed data has" if _is_dense(values, block.shape[0], n_genes) else ""


def _is_dense(values: np.ndarray, n_cells: int, n_genes: int) -> bool:
    if n_cells < LEAST_CELLS or n_genes < LEAST_GENES or len(values) < DENSE_SHARE * n_cells * n_genes:
        return False
    return n_genes >= LEAST_GENES_OF_COUNTS or bool((values != np.rint(values)).mean() > 0.5)


def _is_readable(matrix: Matrix) -> bool:
    dtype = getattr(matrix.values, "dtype", None)
    return dtype is not None and np.dtype(dtype).kind in "biuf"


def _first_rows_fit(matrix: Matrix, used: np.ndarray | None = None) -> bool:
    """Whether the first rows can be read and are fit for the model."""
    try:
        with explain_read_errors(str(matrix.slot)):
            if 0 in matrix.values.shape or not _is_readable(matrix):
                return False
        block = next(matrix.blocks())
        return block.nnz > 0 and not describe_invalid_values(block, used)
    except InputError:
        return False
