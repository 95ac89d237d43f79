"""The zarr store that a long run writes: embeddings in shards of cells, each there as a whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zarr
from anndata.io import write_elem

from tahoe._cells.slots import n_genes_name
from tahoe._store.lock import folder_of
from tahoe._store.output import explain_write_errors
from tahoe.errors import InputError
from tahoe.model.causes import why_not_written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from tahoe._cells.file import CellFile

RUN_FILE, STORE = "run.json", "store"
STORED_DTYPES = ("float32", "float16")
ENCODED = {"anndata": "0.1.0", "dict": "0.1.0", "dataframe": "0.2.0", "array": "0.2.0", "categorical": "0.2.0"}


@dataclass(frozen=True)
class Store:
    """An AnnData that is being written, in a folder beside the place where it will appear."""

    output: Path
    key: str
    n_cells: int
    width: int
    dtype: str
    cells_per_shard: int

    @property
    def unfinished(self) -> Path:
        """Folder of the store until it is complete, and of a note on what is in it."""
        return folder_of(self.output)

    @property
    def _place(self) -> Path:
        return self.unfinished / STORE

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_cells / self.cells_per_shard)

    @property
    def n_genes_name(self) -> str:
        """Column of obs with the numbers of genes."""
        return n_genes_name(self.key)

    def rows(self, shard: int) -> tuple[int, int]:
        """First cell of a shard, and the one behind its last."""
        return shard * self.cells_per_shard, min((shard + 1) * self.cells_per_shard, self.n_cells)

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [shard for shard in range(self.n_shards) if not self.has(shard)]

    def has(self, shard: int) -> bool:
        """Whether a shard was written; zarr lets a file appear only when it is whole."""
        return (self._place / "obsm" / self.key / "c" / str(shard) / "0").is_file()

    def begin(self, fingerprint: dict[str, Any], resume: bool) -> None:
        """Lay out the store, or find it laid out by an earlier run that did the same.

        Raises
        ------
        tahoe.errors.InputError
            If an earlier run is there and `resume` is not set, or if it did something else.
        """
        with self._explain_disk_errors():
            begin_run(self.unfinished, fingerprint, resume, self._lay_out)

    def write(self, shard: int, embeddings: np.ndarray, n_genes: np.ndarray) -> None:
        """Write one shard; the embeddings last, since they say that it is done."""
        rows = slice(*self.rows(shard))
        with self._explain_disk_errors():
            root = self._root()
            root["obs"][self.n_genes_name][rows] = n_genes
            root["obsm"][self.key][rows] = embeddings.astype(self.dtype)

    def describe(self, source: CellFile, var: pd.DataFrame, uns: dict[str, Any], keep_metadata: bool) -> None:
        """Write what is not per shard: before the shards, so that what cannot be written costs no work.

        Raises
        ------
        tahoe.errors.InputError
            If something cannot be written; a store without a shard is then removed.
        """
        try:
            with self._explain_disk_errors():
                self._describe(source, var, uns, keep_metadata)
        except Exception:
            if len(self.missing()) == self.n_shards:
                (self.unfinished / RUN_FILE).unlink(missing_ok=True)
                shutil.rmtree(self._place, ignore_errors=True)
            raise

    def _describe(self, source: CellFile, var: pd.DataFrame, uns: dict[str, Any], keep_metadata: bool) -> None:
        root = self._root()
        obs = root["obs"]
        names = source.copy_obs(obs, keep_metadata, without=self.n_genes_name)
        encode(obs, "dataframe", **{"column-order": [*names, self.n_genes_name]})
        write_element(root, "var", var)
        for key, value in uns.items():
            write_element(root["uns"], key, value)

    def finish(self) -> int:
        """Let the store appear; gives the number of cells without an embedding."""
        with self._explain_disk_errors():
            root = self._root()
            n_genes = root["obs"][self.n_genes_name]
            encode(root, "anndata")
            consolidate(root)
            n_empty = sum(int((n_genes[slice(*self.rows(shard))] == 0).sum()) for shard in range(self.n_shards))
            self._place.rename(self.output)
            (self.unfinished / RUN_FILE).unlink()
        return n_empty

    @contextmanager
    def _explain_disk_errors(self) -> Iterator[None]:
        """Say what an error of the file system means for the run."""
        try:
            yield
        except OSError as error:
            message = (
                f"{str(self.output)!r} cannot be written: {why_not_written(error)}. {self.state()}; when it is mended,"
                " go on with resume=True (--resume)"
            )
            raise InputError(message) from error

    def state(self) -> str:
        """How far the run has come."""
        return f"{self.n_shards - len(self.missing())} of {self.n_shards} shards are finished and stay"

    def _root(self) -> Any:
        return zarr.open_group(self._place, mode="r+", use_consolidated=False)

    def _lay_out(self) -> None:
        root = empty_store(self._place)
        inner = math.gcd(self.cells_per_shard, 512)
        embeddings = root["obsm"].create_array(
            self.key,
            shape=(self.n_cells, self.width),
            dtype=self.dtype,
            chunks=(inner, self.width),
            shards=(self.cells_per_shard, self.width),
            compressors=None,
        )
        n_genes = root.create_group("obs").create_array(
            self.n_genes_name, shape=(self.n_cells,), dtype="int64", chunks=(self.cells_per_shard,)
        )
        encode(embeddings, "array")
        encode(n_genes, "array")


def begin_run(folder: Path, fingerprint: dict[str, Any], resume: bool, lay_out: Callable[[], None]) -> None:
    """Lay out what a run writes into its folder, or find it laid out by an earlier run that did the same.

    Raises
    ------
    tahoe.errors.InputError
        If an earlier run is there and `resume` is not set, or if it did something else.
    """
    run_file, place = folder / RUN_FILE, folder / STORE
    if run_file.is_file():
        if not resume:
            message = f"{str(folder)!r} is an unfinished run; pass resume=True (--resume), or delete that folder"
            raise InputError(message)
        before = json.loads(run_file.read_text(encoding="utf-8"))
        if "shard_cells" in before:  # as earlier versions called it
            before["cells_per_shard"] = before.pop("shard_cells")
        check_same(before, fingerprint, str(folder))
        return
    # what a run left that ended before it began
    shutil.rmtree(place, ignore_errors=True)
    try:
        lay_out()
        # last and at once: a folder without it was never begun
        new = folder / f"{RUN_FILE}.new"
        new.write_text(json.dumps(fingerprint, indent=1), encoding="utf-8")
        new.replace(run_file)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def check_same(before: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Refuse to go on with a run that did something else, and say what."""
    differing = [key for key in now.keys() | before.keys() if before.get(key) != now.get(key)]
    if differing:
        changes = ", ".join(f"{key} ({before.get(key)} then, {now.get(key)} now)" for key in sorted(differing))
        message = (
            f"the run in {where!r} cannot go on, since something differs: {changes}. Make it the same, or delete that"
            " folder to start anew"
        )
        raise InputError(message)


def empty_store(place: Path) -> Any:
    """An AnnData in zarr, without obs, var and contents."""
    root: Any = zarr.create_group(place, zarr_format=3)
    for name in ("obsm", "uns", "layers", "varm", "obsp", "varp"):
        encode(root.create_group(name), "dict")
    return root


def encode(element: Any, kind: str, **attributes: Any) -> None:
    """Say what an element is, in the words of anndata's format."""
    element.attrs.update({"encoding-type": kind, "encoding-version": ENCODED[kind], **attributes})


def write_element(group: Any, name: str, value: Any) -> None:
    """Write an element as anndata does, or say why it cannot be written."""
    with warnings.catch_warnings(), explain_write_errors(name):
        # on the next version of anndata
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        write_elem(group, name, value)


def consolidate(root: Any) -> None:
    """Gather the metadata of a store in one file."""
    with warnings.catch_warnings():
        # on what zarr's specification does not have yet
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(root.store)
