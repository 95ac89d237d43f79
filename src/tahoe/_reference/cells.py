"""Embedded cells that become a reference: in an AnnData, or in a file, which is read a block at a time."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata, check_path
from tahoe._cells.opening import open_source
from tahoe._cells.slots import column_of
from tahoe._genes.clean import as_text
from tahoe._reference.match import record_of
from tahoe.errors import InputError, listed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from anndata import AnnData

# Cells whose embeddings are looked at to see whether a resumed build has the same before it.
SAMPLED = 4096


@dataclass(frozen=True)
class Cells:
    """An AnnData with an embedding, or a file of one."""

    adata: Any
    use_rep: str
    path: str | None = None

    @property
    def who(self) -> str:
        """How errors call it."""
        return "source" if self.path is None else f"source={self.path!r}"

    @property
    def n_cells(self) -> int:
        """How many there are."""
        return int(self.adata.n_obs)

    @property
    def rows(self) -> Any:
        """The embedding, not read yet."""
        obsm = self.adata.obsm if self.path is None else self.adata.root.get("obsm", {})
        if self.use_rep not in obsm:
            message = (
                f"{self.who} has no obsm[{self.use_rep!r}], only {listed(sorted(obsm))}; embed the cells first"
                " (tahoe.tl.embed, tahoe.embed_file), or name another slot with use_rep="
            )
            raise InputError(message)
        rows = obsm[self.use_rep]
        if len(getattr(rows, "shape", ())) != 2 or rows.shape[0] != self.n_cells:
            message = f"{self.who}: obsm[{self.use_rep!r}] is no array of cells × coordinates"
            raise InputError(message)
        return rows

    @property
    def record(self) -> dict[str, Any]:
        """Provenance of the embedding."""
        return record_of(self.adata.uns, self.use_rep, self.who)

    def names(self, start: int, stop: int) -> np.ndarray:
        """Names of some cells, as bytes."""
        if self.path is None:
            names = [str(name) for name in self.adata.obs_names[start:stop]]
        else:
            frame = self.adata.root["obs"]
            element = frame[as_text(frame.attrs["_index"])]
            element = element["values"] if not hasattr(element, "dtype") else element
            is_text = isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype) is not None
            names = [str(name) for name in (element.asstr() if is_text else element)[start:stop]]
        return np.array([name.encode() for name in names], dtype=np.bytes_)

    def column(self, key: str, argument: str) -> Any:
        """A column of obs, as a `pandas.Categorical` of strings."""
        column = column_of(self.adata, key, argument)
        if pd.api.types.is_float_dtype(column.dtype):
            message = f"{argument}={key!r} has decimal numbers, not labels; cut it into groups first (pandas.cut)"
            raise InputError(message)
        column = column.astype("category").cat.remove_unused_categories()
        if not len(column.cat.categories):
            message = f"{argument}={key!r} is missing for all cells of {self.who}"
            raise InputError(message)
        labels = pd.Index([str(name) for name in column.cat.categories])
        return pd.Categorical.from_codes(column.cat.codes.to_numpy(dtype=np.int64), labels)

    def sample(self) -> bytes:
        """Some embeddings, spread over all, by which these cells are recognised."""
        first = np.linspace(0, self.n_cells, 17, dtype=int)[:-1]
        return b"".join(np.asarray(self.rows[start : start + SAMPLED // 16]).tobytes() for start in first)


@contextmanager
def opened(source: AnnData | str | os.PathLike[str], use_rep: str) -> Iterator[Cells]:
    """The cells of an AnnData or of a file."""
    if hasattr(source, "obsm"):
        check_adata(source)
        yield Cells(source, use_rep)
        return
    check_path("source", source)
    with open_source(source) as file:
        yield Cells(file, use_rep, file.path)
