from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_path
from tahoe._reference import folder as contents
from tahoe._reference import hub
from tahoe._reference import index as indexes
from tahoe._reference.embeddings import Embeddings
from tahoe._reference.exact import by_distance, nearest
from tahoe._reference.held_back import HeldBack
from tahoe._reference.labels import Calibration
from tahoe.errors import InputError, listed

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch

# Neighbours that are looked for beyond k, in case that the cell itself is among them.
ITSELF = 4
# How near the same cell is: what half precision rounds away, or what another device does if it has the same name.
SAME_CONTENT = {"float16": 1e-3, "float32": 1e-5}
SAME_NAME = 0.05


@dataclass(eq=False, repr=False)
class Reference:
    """Embedded cells with labels, in a folder: to look cells up in, and to take labels from.

    Made by `build_reference` and opened by `load_reference`. Embeddings, names and columns are mapped into memory,
    and read where they are needed. `tahoe.tl.search` and `tahoe.tl.transfer_labels` take one.
    """

    folder: Path
    """Where it lies."""
    manifest: dict[str, Any]
    """What it says of itself."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def n_cells(self) -> int:
        """How many cells it has; results count its rows from 0."""
        return int(self.manifest["n_cells"])

    @property
    def width(self) -> int:
        """Coordinates of an embedding."""
        return int(self.manifest["width"])

    @property
    def use_rep(self) -> str:
        """Name of the slot that the embeddings came from, and in which those of a query are looked for."""
        return str(self.manifest["use_rep"])

    @property
    def embedding(self) -> dict[str, Any]:
        """Provenance of the embeddings: model, its hashes, parameters."""
        return dict(self.manifest["embedding"])

    @property
    def obs_keys(self) -> list[str]:
        """Columns of the cells."""
        return [column["name"] for column in self.manifest["columns"]]

    @property
    def index(self) -> dict[str, Any] | None:
        """What the index is, if there is one."""
        return self.manifest["index"]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that is in it."""
        return hashlib.sha256((self.folder / contents.MANIFEST).read_bytes()).hexdigest()

    @cached_property
    def vectors(self) -> Embeddings:
        """The embeddings, of length one; NaN for a cell without one."""
        return Embeddings(contents.open_arrays(self.folder, contents.VECTORS))

    def __repr__(self) -> str:
        columns = ", ".join(self.obs_keys) or "none"
        index = "" if self.index is None else f", index {self.index['library']}"
        return f"Reference({self.name!r}: {self.n_cells:,} cells × {self.width}, {columns}{index})"

    def labels(self, obs_key: str) -> list[str]:
        """Labels in a column.

        Raises
        ------
        tahoe.errors.InputError
            If there is no such column.
        """
        return list(self.manifest["columns"][self._number(obs_key)]["labels"])

    def codes(self, obs_key: str) -> np.ndarray:
        """Number of each cell's label in `labels`, -1 where it is missing."""
        return np.load(
            contents.shard_file(self.folder, contents.COLUMNS, self._number(obs_key)), mmap_mode="r", allow_pickle=False
        )

    def _number(self, obs_key: str) -> int:
        if obs_key not in self.obs_keys:
            present = listed(self.obs_keys)
            message = f"obs_key={obs_key!r} is not a column of the reference {self.name!r}; it has {present}"
            raise InputError(message)
        return self.obs_keys.index(obs_key)

    def obs_names(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Names of some cells, in the shape of their row numbers; "" for a number below 0."""
        rows = np.asarray(rows)
        shards, starts, names = (
            contents.open_arrays(self.folder, contents.NAMES),
            self.vectors.starts,
            np.full(rows.size, "", object),
        )
        of_shard = np.searchsorted(starts, rows.ravel(), side="right") - 1
        for place, (row, shard) in enumerate(zip(rows.ravel(), of_shard, strict=True)):
            if row >= 0:
                names[place] = bytes(shards[shard][row - starts[shard]]).decode()
        return names.reshape(rows.shape)

    def obs(self, rows: np.ndarray | Sequence[int]) -> pd.DataFrame:
        """Columns of some cells, by their row numbers, as a data frame with their names."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or (rows.size and not 0 <= rows.min() <= rows.max() < self.n_cells):
            message = f"rows must be row numbers of the reference, from 0 to {self.n_cells - 1}, in one dimension"
            raise InputError(message)
        codes = {key: self.codes(key)[rows].astype(np.int64) for key in self.obs_keys}
        columns = {key: pd.Categorical.from_codes(codes[key], pd.Index(self.labels(key))) for key in codes}
        return pd.DataFrame(columns, index=pd.Index(self.obs_names(rows).astype(str)))

    @cached_property
    def held_back(self) -> HeldBack:
        """Cells that were queried as if they were not in the reference."""
        return HeldBack.load(self.folder)

    def calibration(self, obs_key: str, k: int) -> Calibration:
        """What the held-back cells tell of the labels in a column."""
        return Calibration.of(self.held_back, np.asarray(self.codes(obs_key)), len(self.labels(obs_key)), k)

    def check_k(self, k: int) -> None:
        """Refuse more neighbours than there are cells."""
        if not 1 <= k <= self.manifest["n_vectors"]:
            message = (
                f"k={k}, and the reference {self.name!r} has {self.manifest['n_vectors']:,} cells with an embedding; k"
                " must be between 1 and that"
            )
            raise InputError(message)

    def nearest(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        exact: bool = False,
        names: Sequence[str] | np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the nearest cells of each vector, and their Euclidean distances.

        Parameters
        ----------
        vectors
            Of length one (cells × width), float32, made as those of the reference were; NaN finds nothing.
        k
            How many.
        exact
            Do without the index.
        names
            Names of the cells, by which, and by their content, they are left out themselves if they are in the
            reference. `None` leaves them in.
        device
            Where an exact search computes.

        Returns
        -------
        Row numbers (cells × k, int64), -1 where there are not so many, and distances (float64), infinite there.
        """
        self.check_k(k)
        wanted = min(self.n_cells, k + (0 if names is None else ITSELF))
        if exact or self.index is None:
            rows, distances = nearest(vectors, self.vectors, wanted, device=device)
        else:
            candidates = indexes.search(self.folder, self.index, vectors, wanted)
            rows, squares = by_distance(vectors, self.vectors, candidates)
            rows, distances = rows[:, :wanted], np.sqrt(squares[:, :wanted])
        if names is None:
            return rows, distances
        return self._without_themselves(rows, distances, np.asarray(names).astype(str), k)

    def _without_themselves(
        self, rows: np.ndarray, distances: np.ndarray, names: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Remove a cell itself: the same vector, under whatever name, or nearly the same under the same name."""
        itself = distances <= SAME_CONTENT[self.manifest["stored_dtype"]]
        near = np.nonzero((distances <= SAME_NAME) & ~itself)
        itself[near] = self.obs_names(rows[near]) == names[near[0]]
        order = np.argsort(itself, axis=1, kind="stable")[:, :k]
        taken = np.take_along_axis(itself, order, 1)
        rows = np.where(taken, -1, np.take_along_axis(rows, order, 1))
        distances = np.where(taken, np.inf, np.take_along_axis(distances, order, 1))
        short = k - rows.shape[1]
        if short > 0:
            rows = np.pad(rows, ((0, 0), (0, short)), constant_values=-1)
            distances = np.pad(distances, ((0, 0), (0, short)), constant_values=np.inf)
        return rows, distances

    def check(self) -> None:
        """Compare all files with the digests that were noted when it was built.

        Raises
        ------
        tahoe.errors.InputError
            If one of them changed.
        """
        contents.check_content(self.folder, self.manifest)

    def push_to_hub(self, repository: str, *, private: bool | None = None, about: str = "") -> str:
        """Upload it to the Hugging Face Hub as a data set, with a card.

        Parameters
        ----------
        repository
            ``"owner/name"``; made if it does not exist. Log in before with ``hf auth login``, or set ``HF_TOKEN``.
        private
            Whether only you see it; `None` is your account's default.
        about
            A text for the card: where the cells come from, and under which licence.

        Returns
        -------
        The commit. ``tahoe.load_reference(repository, revision=commit)`` opens it.

        Raises
        ------
        tahoe.errors.InputError
            If the upload fails.
        """
        n_labels = {key: len(self.labels(key)) for key in self.obs_keys}
        card = hub.reference_card(self.manifest, n_labels, repository, about)
        return hub.push(self.folder, self.manifest, repository, card, private=private)


def load_reference(reference: str | os.PathLike[str] | Reference, *, revision: str | None = None) -> Reference:
    """Open a reference, mapped into memory.

    Parameters
    ----------
    reference
        A folder that `build_reference` wrote; ``"owner/name"`` of one on the Hugging Face Hub, which is downloaded
        once; or an open one, which comes back as it is.
    revision
        Commit or branch on the Hub.

    Returns
    -------
    The reference.

    Raises
    ------
    tahoe.errors.InputError
        If it is not there, not complete, damaged, or cannot be downloaded.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> folder = tempfile.mkdtemp() + "/blood.tahoe"
    >>> _ = tahoe.build_reference(adata, folder, obs_keys="bulk_labels")
    >>> tahoe.load_reference(folder).labels("bulk_labels")[-1]
    'Dendritic'
    """
    if isinstance(reference, Reference):
        return reference
    check_path("reference", reference)
    folder = Path(reference)
    if not folder.exists() and isinstance(reference, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", reference):
        from tahoe._store.lock import folder_of

        if not folder_of(folder).exists() and not folder.parent.is_dir():
            folder = hub.download(reference, revision)
    elif revision is not None:
        message = f"revision={revision!r} goes with a reference on the Hub, and {str(reference)!r} is here"
        raise InputError(message)
    return Reference(folder.absolute(), contents.read_manifest(folder))
