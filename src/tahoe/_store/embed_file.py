from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from tahoe._cells.file import absolute, identity
from tahoe._cells.objects import check_path
from tahoe._cells.opening import open_source
from tahoe._cells.rows import row_blocks
from tahoe._cells.slots import check_name
from tahoe._run.cluster import EmbeddingTask, cluster, on_workers
from tahoe._run.inputs import Inputs, read_inputs
from tahoe._run.parameters import accept_former_names, document_parameters
from tahoe._run.provenance import with_slots
from tahoe._store.embed_whole import embed_whole
from tahoe._store.lock import lock_output
from tahoe._store.output import check_output
from tahoe._store.shards import STORED_DTYPES, Store
from tahoe.errors import InputError, TahoeError, check_at_least, check_choice, warn
from tahoe.model.causes import first_line
from tahoe.settings import settings

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import pandas as pd
    import torch

    from tahoe._cells.matrix import Slot
    from tahoe.model import TahoeModel

log = logging.getLogger(__name__)


@accept_former_names(columns="keep_metadata", shard_cells="cells_per_shard")
@document_parameters
def embed_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    normalize: bool = True,
    gene_key: str | None = None,
    organism: str | None = None,
    duplicates: str | None = None,
    keep_metadata: bool = False,
    stored_dtype: str = "float32",
    cells_per_shard: int = 4096,
    resume: bool = False,
    client: Any = None,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    seed: int = 0,
    key_added: str = "X_tahoe",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Embed the cells of a file into a zarr store, a block at a time: for files larger than memory, and long runs.

    The embeddings are those of `tahoe.tl.embed`. They are written in shards of cells. A shard is there as a whole or
    not at all, and is never computed twice: a run that was interrupted, or killed, goes on with ``resume=True`` where
    it stopped. Until all shards are there, the store is in a folder beside `output` whose name ends in ``.partial``.
    One run at a time writes an output; a second one is told so.

    With an `output` in h5ad the file is read into memory, and written again with what `tahoe.tl.embed` adds.

    Parameters
    ----------
    source
        An h5ad file, a zarr store (v2 or v3, a folder or a zip archive), a 10x ``.h5`` file, or the URL of one that
        fsspec can open. Cells by rows (CSR, or dense).
    output
        What to write, which must not exist yet: ``NAME.zarr``, or ``NAME.h5ad`` if all of it fits into memory.
    organism
        ``"human"`` or ``"mouse"``, as for `tahoe.pp.map_genes`. If neither `gene_key`, `organism` nor `duplicates` is
        given, genes that `source` has mapped already are taken as they are.
    duplicates
        ``"best"`` or ``"sum"``, as for `tahoe.pp.map_genes`.
    keep_metadata
        Copy the columns of ``obs`` and ``var`` too. Their indexes always are.
    stored_dtype
        ``"float32"``, or ``"float16"`` for half the size, which moves a coordinate by less than 0.05 % of itself.
    cells_per_shard
        Cells in a shard: what a killed run loses at most, for each process that computes.
    resume
        Go on with a run that did not end, which must have had the same input, model and parameters.
    client
        Client of a ``dask.distributed`` cluster, whose workers take the shards. `None` takes the current client, if
        there is one, else this process does all. Workers must see `source`, `output` and the model by the same paths.
        One of them chooses `device` and `dtype` if they are `None`, and the others follow.
    mask_var
        Name of a boolean column of ``var`` that says which genes to use; `None` takes all.
    key_added
        Name of the embeddings in ``obsm`` and of their record in ``uns``.

    Returns
    -------
    Nothing. An h5ad file is `source` with what `tahoe.tl.embed` sets. A zarr store is an AnnData without ``X`` for
    `anndata.read_zarr` and `anndata.experimental.read_lazy`:

    ``obsm[key_added]`` : array (`stored_dtype`, cells × d_model)
        The embeddings; NaN for cells that express no gene of the vocabulary.
    ``obs["tahoe_n_genes"]`` : column (int64)
        How many genes of the vocabulary each cell expresses: the name is `key_added` without ``X_``, and ``_n_genes``.
    ``var["tahoe_gene"]``, ``var["tahoe_match"]``, ``uns["tahoe_genes"]``
        The mapping of the genes, as `tahoe.pp.map_genes` has it.
    ``uns[key_added]`` : `dict`
        What is needed to repeat this.

    Raises
    ------
    tahoe.errors.InputError
        If `source` cannot be read, if `output` exists or cannot be written, if another run is writing it, if an earlier
        run is in the way or did something else, or as `tahoe.tl.embed`. Finished shards stay.
    tahoe.errors.TahoeError
        If the connection to the cluster is lost. Finished shards stay.
    tahoe.errors.GeneError, tahoe.errors.ModelError, tahoe.errors.DeviceError
        As `tahoe.tl.embed`.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If cells express no gene of the vocabulary.

    Examples
    --------
    >>> import anndata, tahoe, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> tahoe.datasets.pbmc68k()[:50].write_h5ad(f"{folder}/cells.h5ad")
    >>> tahoe.embed_file(f"{folder}/cells.h5ad", f"{folder}/embedded.zarr", "demo")
    >>> anndata.read_zarr(f"{folder}/embedded.zarr").obsm["X_tahoe"].shape
    (50, 128)
    """
    check_path("source", source)
    check_path("output", output)
    check_name(key_added)
    check_at_least(max_length=(max_length, 2), cells_per_shard=(cells_per_shard, 1))
    target = Path(output).absolute()
    _check_output(Path(output), stored_dtype, resume)
    what: dict[str, Any] = {"layer": layer, "use_raw": use_raw, "mask_var": mask_var, "min_coverage": min_coverage}
    what |= {"drug_key": drug_key, "drugs": drugs}
    mapping: dict[str, Any] = {"gene_key": gene_key, "organism": organism, "duplicates": duplicates}
    mapping = {name: value for name, value in mapping.items() if value is not None}
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    how: dict[str, Any] = {"max_length": max_length, "normalize": normalize, "seed": seed}
    if target.suffix.lower() == ".h5ad":
        of_stores = {"keep_metadata": keep_metadata, "resume": resume, "client": client is not None}
        of_stores |= {"stored_dtype": stored_dtype != "float32", "cells_per_shard": cells_per_shard != 4096}
        _refuse_for_h5ad(of_stores)
        embed_whole(source, target, model, key_added=key_added, mapping=mapping, **what, **where, **how)
        return
    with open_source(source) as opened, lock_output(target):
        inputs = read_inputs(opened, model, **mapping, **what, **where, client=client or cluster())
        width = inputs.model.config.d_model
        store = Store(target, key_added, opened.n_obs, width, stored_dtype, cells_per_shard)
        work = Work(absolute(opened.path), inputs.matrix.slot, inputs.task(**how), store)
        record = inputs.record(**how, **mapping, source=work.source)
        record = with_slots(record, obsm=[key_added], obs=[store.n_genes_name])
        store.begin(_fingerprint(work, inputs, record), resume)
        store.describe(opened, _var(inputs, keep_metadata), _uns(inputs, key_added, record), keep_metadata)
        work.all(inputs.client)
        n_empty = store.finish()
    if n_empty:
        message = f"{n_empty} of {store.n_cells} cells express no gene of the vocabulary; their embeddings are NaN"
        warn(message)


@dataclass(frozen=True)
class Work:
    """What is to be done with each shard; a worker gets it by value, and reads and writes files by itself."""

    source: str
    slot: Slot
    task: EmbeddingTask
    store: Store

    def one(self, shard: int, bar: tqdm | None = None) -> int:
        """Embed the cells of a shard and write it, unless it is there; gives how many cells it has."""
        start, stop = self.store.rows(shard)
        if not self.store.has(shard):
            with open_source(self.source) as source:
                blocks = row_blocks(self.slot.values(source), start, stop)
                self.store.write(shard, *self.task.embed(blocks, start, stop, bar))
        return stop - start

    def all(self, client: Any) -> None:
        """Do all shards that are not there yet, here or on the workers of a cluster."""
        missing = self.store.missing()
        n_missing = sum(stop - start for start, stop in map(self.store.rows, missing))
        n_done = self.store.n_cells - n_missing
        log.info("%d of %d shards to do in %s", len(missing), self.store.n_shards, self.store.unfinished)
        with tqdm(total=self.store.n_cells, initial=n_done, unit="cell", disable=not settings.progress) as bar:
            if client is None:
                for shard in missing:
                    self.one(shard, bar)
            else:
                self._on_workers(client, missing, bar)

    def _on_workers(self, client: Any, missing: list[int], bar: tqdm) -> None:
        try:
            for n_cells in on_workers(client, self, missing):
                bar.update(n_cells)
        except OSError as error:  # workers say themselves what they cannot read or write
            message = (
                f"the run stopped: the cluster or the network failed ({type(error).__name__}: {first_line(error)})."
                f" {self.store.state()}; go on with resume=True (--resume)"
            )
            raise TahoeError(message) from error


def _check_output(output: Path, stored_dtype: str, resume: bool) -> None:
    check_choice(stored_dtype=(stored_dtype, STORED_DTYPES))
    check_output("output=", output, resume=resume)
    if output.suffix.lower() not in (".zarr", ".h5ad"):
        message = (
            f"output={str(output)!r}: the name must end in .zarr, for a store that is written by shards, or in .h5ad,"
            " for a file that is written from memory"
        )
        raise InputError(message)


def _refuse_for_h5ad(given: dict[str, Any]) -> None:
    useless = [f"{name}=" for name, is_given in given.items() if is_given]
    if useless:
        message = f"{', '.join(useless)} goes with a zarr store; an h5ad file is written from memory, at once"
        raise InputError(message)


def _fingerprint(work: Work, inputs: Inputs, record: dict[str, Any]) -> dict[str, Any]:
    """All that decides what is in a shard."""
    names = (
        *("model_sha256", "vocabulary_sha256", "dtype", "float32_rounded_to", "input", "n_cells"),
        *("max_length", "normalize", "seed", "drug_key", "mask_var"),
    )
    store, drugs = work.store, work.task.drugs
    return {
        **{name: record.get(name) for name in names},
        "model": inputs.model.fingerprint(),
        "kind of device": str(record["device"]).partition(":")[0],
        "tokens of the genes": hashlib.sha256(work.task.column_tokens.tobytes()).hexdigest(),
        "drugs": None if drugs is None else hashlib.sha256(drugs.tobytes()).hexdigest(),
        "sums of the genes": hashlib.sha256(inputs.matrix.totals.tobytes()).hexdigest(),
        **identity(work.source),
        "key_added": store.key,
        "stored_dtype": store.dtype,
        "cells_per_shard": store.cells_per_shard,
    }


def _var(inputs: Inputs, keep_metadata: bool) -> pd.DataFrame:
    """Genes of the store, with their mapping."""
    var = inputs.matrix.var
    mapped = [name for name in ("tahoe_gene", "tahoe_match") if name in var]
    var = var.copy() if keep_metadata else var[mapped].copy()
    # no key of a store may have a slash
    var.index.name = None if var.index.name is None else str(var.index.name).replace("/", "_")
    if inputs.mapping is not None:
        var["tahoe_gene"], var["tahoe_match"] = inputs.mapping.gene, inputs.mapping.match
    return var


def _uns(inputs: Inputs, key: str, record: dict[str, Any]) -> dict[str, Any]:
    report = inputs.mapping.report if inputs.mapping is not None else inputs.matrix.adata.uns.get("tahoe_genes")
    return {key: record} | ({} if report is None else {"tahoe_genes": report})
