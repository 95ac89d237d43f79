from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from tahoe._cells.file import absolute, identity
from tahoe._cells.objects import check_path
from tahoe._reference import index as indexes
from tahoe._reference.cells import Cells, opened
from tahoe._reference.embeddings import Embeddings, unit
from tahoe._reference.folder import COLUMNS, NAMES, VECTORS, open_arrays, plain, save_array, shard_file, write_manifest
from tahoe._reference.held_back import hold_back
from tahoe._reference.reference import Reference, load_reference
from tahoe._run.cluster import on_workers
from tahoe._store.lock import lock_output
from tahoe._store.output import check_output, explain_disk_errors
from tahoe._store.shards import RUN_FILE, STORE, STORED_DTYPES, begin_run
from tahoe.errors import InputError, check_at_least, check_choice, warn
from tahoe.settings import settings

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData

log = logging.getLogger(__name__)

# Cells of a shard that are read at once.
READ_AT_ONCE = 8192


def build_reference(
    source: AnnData | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    obs_keys: str | Sequence[str] = (),
    use_rep: str = "X_tahoe",
    groups: str | None = None,
    index: str | bool = "auto",
    stored_dtype: str = "float32",
    n_held_back: int = 5000,
    seed: int = 0,
    cells_per_shard: int = 262_144,
    resume: bool = False,
    client: Any = None,
) -> Reference:
    """Make a reference of embedded cells: a folder in which others are looked up, and from which they get labels.

    It holds the embeddings, scaled to length one, names and chosen columns of the cells, and the provenance of the
    embedding. Some of the cells are queried, once, as if they were not in it; by their answers
    `tahoe.tl.transfer_labels` knows how often it is right. The folder appears when it is complete. A build that was
    killed goes on with ``resume=True``.

    Parameters
    ----------
    source
        Cells with an embedding: an AnnData, or the path of a file or of a store, as `tahoe.embed_file` writes it, of
        which only a block at a time is in memory.
    path
        Folder to write, which must not exist yet.
    obs_keys
        Columns of ``obs`` to keep: labels to transfer, and what you want to know of a cell that was found (donor,
        tissue). Words or whole numbers; cells without a label stay, and have no vote.
    use_rep
        Where in ``obsm`` the embedding is. Its record in ``uns`` must be there.
    groups
        Column of ``obs`` by which cells are held back, such as the donor: a held-back cell is compared with the cells
        of other groups only. Without it, with all other cells, which is easier than new data will be.
    index
        Whether a search is to go through an index of the library faiss (``pip install "tahoe-anndata[search]"``),
        which finds nearly all of the nearest cells in a fraction of the time. ``"auto"`` makes one from a million cells
        on.
    stored_dtype
        ``"float32"``, or ``"float16"`` for half the size, which moves an embedding of length one by less than 0.0005.
    n_held_back
        How many cells are held back by chance; of each label 100 are added, if there are so many.
    seed
        Of the choice of held-back cells, and of the index.
    cells_per_shard
        Cells in a file of embeddings, and what a killed build loses at most.
    resume
        Go on with a build that did not end. It must have had the same source and parameters.
    client
        Client of a ``dask.distributed`` cluster, whose workers write the shards; for a source in a file, which they
        must see by the same path. `None` does all here.

    Returns
    -------
    The reference, opened. `adata` is not changed.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such embedding or column, if nothing says what the embedding was made with, if `path` exists or
        cannot be written, or if another build is in the way.
    tahoe.errors.ModelError
        If the model of the embedding was never saved.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If cells have no embedding; they stay in the reference and are never found.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> folder = tempfile.mkdtemp()
    >>> tahoe.build_reference(adata, f"{folder}/blood.tahoe", obs_keys="bulk_labels").n_cells
    700
    """
    check_path("path", path)
    check_at_least(n_held_back=(n_held_back, 1), cells_per_shard=(cells_per_shard, 1))
    target, keys = Path(path).absolute(), [obs_keys] if isinstance(obs_keys, str) else list(obs_keys)
    check_choice(stored_dtype=(stored_dtype, STORED_DTYPES))
    check_output("path=", target, resume=resume)
    with opened(source, use_rep) as cells, lock_output(target) as partial:
        if client is not None and cells.path is None:
            message = "client= goes with a source in a file, which the workers read; an AnnData is in this process"
            raise InputError(message)
        width, record = int(cells.rows.shape[1]), cells.record
        names = list(dict.fromkeys([*keys, *([] if groups is None else [groups])]))
        columns = {key: cells.column(key, "groups" if key not in keys else "obs_keys") for key in names}
        if groups is not None and len(columns[groups].categories) < 2:
            message = f"groups={groups!r} has one value only, so nothing could be held back by it; omit groups="
            raise InputError(message)
        parameters: dict[str, Any] = {
            "use_rep": use_rep,
            "stored_dtype": stored_dtype,
            "cells_per_shard": cells_per_shard,
        }
        work = Work(
            None if cells.path is None else absolute(cells.path), cells if cells.path is None else None,
            partial / STORE, cells.n_cells, **parameters,
        )  # fmt: skip
        indexed = indexes.wanted(index, cells.n_cells)
        with explain_disk_errors(f"path={str(path)!r}", "; then go on with resume=True"):
            begin_run(partial, _fingerprint(cells, record, columns, parameters), resume, work.place.mkdir)
            work.all(client)
            manifest = {"n_cells": cells.n_cells, "width": width, "embedding": plain(record)}
            manifest |= {**parameters, "groups": groups, "seed": seed, "tahoe_version": version("tahoe-anndata")}
            try:
                _finish(work, manifest, columns, keys, n_held_back, indexed, client)
            except InputError:  # which no resumed build would be spared
                (partial / RUN_FILE).unlink()
                shutil.rmtree(work.place)
                raise
            work.place.rename(target)
            (partial / RUN_FILE).unlink()
    return load_reference(target)


@dataclass(frozen=True)
class Work:
    """What is written of each shard; a worker of a cluster gets it by value, and reads and writes files by itself."""

    path: str | None
    cells: Cells | None
    place: Path
    n_cells: int
    use_rep: str
    stored_dtype: str
    cells_per_shard: int

    @property
    def n_shards(self) -> int:
        """How many shards there are."""
        return -(-self.n_cells // self.cells_per_shard)

    def one(self, number: int) -> int:
        """Write embeddings and names of the cells of a shard, unless they are there; gives how many cells it has."""
        start = number * self.cells_per_shard
        stop = min(start + self.cells_per_shard, self.n_cells)
        files = shard_file(self.place, NAMES, number), shard_file(self.place, VECTORS, number)
        if not files[1].exists():
            with opened(self.cells.adata if self.cells else self.path or "", self.use_rep) as cells:
                rows = cells.rows
                vectors = np.empty((stop - start, rows.shape[1]), dtype=self.stored_dtype)
                for first in range(start, stop, READ_AT_ONCE):
                    last = min(first + READ_AT_ONCE, stop)
                    vectors[first - start : last - start] = unit(rows[first:last])
                save_array(files[0], cells.names(start, stop))
            save_array(files[1], vectors)  # last, since it says that the shard is done
        return stop - start

    def all(self, client: Any) -> None:
        """Write all shards, here or on the workers of a cluster."""
        numbers = range(self.n_shards)
        with tqdm(total=self.n_cells, unit="cell", disable=not settings.progress) as bar:
            if client is None:
                for number in numbers:
                    bar.update(self.one(number))
                return
            for n_cells in on_workers(client, self, numbers):
                bar.update(n_cells)


def _finish(
    work: Work, manifest: dict[str, Any], columns: dict[str, Any], keys: list[str], n: int, indexed: bool, client: Any
) -> None:
    """Write what is of all shards together: columns, held-back cells, index, and at last the manifest."""
    place, vectors = work.place, Embeddings(open_arrays(work.place, VECTORS))
    for number, column in enumerate(columns.values()):
        save_array(shard_file(place, COLUMNS, number), column.codes)
    manifest["columns"] = [{"name": key, "labels": list(columns[key].categories)} for key in columns]
    manifest["obs_keys"] = keys
    n_vectors = sum(int(np.isfinite(shard[:, 0]).sum()) for shard in vectors.shards)
    if n_vectors < len(vectors):
        message = (
            f"{len(vectors) - n_vectors} of {len(vectors)} cells have no embedding (NaN, or of length 0); they stay in"
            " the reference, are never found and never vote"
        )
        warn(message)
    if n_vectors < 2:
        message = f"the reference would have {n_vectors} cells with an embedding; it needs two at least"
        raise InputError(message)
    by = manifest["groups"]
    held_back = hold_back(
        vectors, [columns[key].codes for key in keys], None if by is None else columns[by].codes, n, manifest["seed"]
    )
    held_back.save(place)
    manifest |= {"n_vectors": n_vectors, "n_held_back": int(held_back.is_sample.sum())}
    manifest["index"] = indexes.build(place, vectors, manifest["seed"], client) if indexed else None
    write_manifest(place, manifest)


def _fingerprint(
    cells: Cells, record: dict[str, Any], columns: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    """All that decides what is in a shard, and how rows are counted."""
    of_columns = hashlib.sha256(b"".join(f"{key}{list(each.categories)}".encode() for key, each in columns.items()))
    return {
        **parameters,
        **(identity(absolute(cells.path)) if cells.path else {}),
        "n_cells": cells.n_cells,
        "vectors": hashlib.sha256(cells.sample()).hexdigest(),
        "model_sha256": record["model_sha256"],
        "columns": of_columns.hexdigest(),
    }
