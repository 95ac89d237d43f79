"""What `tahoe embed` and `tahoe map-genes` do with files."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.matrix import choose_matrix
from tahoe._cells.opening import open_source
from tahoe._cells.slots import looking_at_rows
from tahoe._genes import mapping as _genes
from tahoe.errors import InputError, ModelError
from tahoe.model.causes import why_not_written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tahoe.model import TahoeModel

# Options that say how a store is written; an h5ad file has no use for them.
OF_STORES = {"workers", "scheduler", "resume", "keep_metadata", "stored_dtype", "cells_per_shard"}
OF_MAPPING = ("gene_key", "organism", "duplicates")
# What the provenance of a run must have, to repeat it, and of which kind each entry is.
ALWAYS = ("model", "model_sha256", "input")
TEXTS = ("model_folder", "model_revision", "source", "mask_var", "drug_key", *OF_MAPPING)
KINDS: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    ((*ALWAYS, *TEXTS, "device", "dtype", "attention"), str, "text"),
    (("max_length", "seed", "token_budget"), int, "a whole number"),
    (("min_coverage",), (int, float), "a number"),
    (("normalize",), bool, "true or false"),
)


def into_store(source: str, output: str, *, workers: int | None, scheduler: str | None, **options: Any) -> None:
    """CellBatches the cells of a file into a zarr store, here or on the workers of a cluster."""
    from tahoe._run.embed_file import embed_file

    with _cluster(workers, scheduler) as client:
        embed_file(source, output, client=client, **options)


def into_file(source: str, output: str, given: set[str], *, model: Any, **options: Any) -> None:
    """Read a file into memory, embed its cells, and write all of it again."""
    from tahoe._run.embed_file import embed_file

    useless = sorted(f"--{name.replace('_', '-')}" for name in given & OF_STORES)
    if useless:
        message = f"{', '.join(useless)} goes with a zarr store; --output {output} is written from memory, at once"
        raise InputError(message)
    embed_file(source, output, model, **{name: value for name, value in options.items() if name not in OF_STORES})


def _check_folder(output: str) -> None:
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        message = f"--output {output} cannot be written: the folder {str(folder)!r} does not exist; make it first"
        raise InputError(message)


def repeated(
    like: str, source: str | None, options: dict[str, Any], given: set[str]
) -> tuple[str | None, dict[str, Any]]:
    """Source and options of the run that wrote a file; those that are given now win."""
    records = records_of(like)
    key = options["key_added"] if "key_added" in given else next(iter(records), "")
    if key not in records:
        message = f"--like {like}: there is no embedding with provenance under uns[{key!r}]; it has {list(records)}"
        raise InputError(message)
    record = records[key]
    _check_record(record, like)
    names = ("mask_var", "drug_key", "max_length", "min_coverage", "normalize", "seed", "token_budget", *OF_MAPPING)
    before = {name: record[name] for name in (*names, "device", "dtype", "attention") if name in record}
    before |= {"key_added": key, "use_raw": record["input"] == "raw.X"}
    if record["input"].startswith("layers"):
        before["layer"] = record["input"].removeprefix('layers["').removesuffix('"]')
    options = {name: value if name in given else before.get(name, value) for name, value in options.items()}
    if str(options["mask_var"]).startswith("sha256:"):
        message = f"--like {like}: mask_var was an array, which the file does not have; pass --mask-var"
        raise InputError(message)
    if "model" not in given:
        where = {name: options.pop(name) for name in ("device", "dtype", "attention")}
        options["model"] = _same_model(record, where, like)
    return source or record.get("source"), options


def _check_record(record: dict[str, Any], like: str) -> None:
    """Refuse provenance that is not of the kinds that this package writes: a file may say anything."""
    for names, kind, told in KINDS:
        for name in names:
            value = record.get(name)
            value = value.item() if isinstance(value, np.generic) else value
            if name in ALWAYS and value is None:
                message = f"--like {like}: the provenance has no {name}, so the run cannot be repeated"
                raise InputError(message)
            if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                message = f"--like {like}: the provenance has {name} {str(value)[:40]!r}, which is not {told}"
                raise InputError(message)


def _same_model(record: dict[str, Any], where: dict[str, Any], like: str) -> TahoeModel:
    """Load the model of an earlier run, and see that it is still the same."""
    from tahoe.model import load_model

    name = record.get("model_folder", record["model"])
    model = load_model(name, revision=record.get("model_revision"), **where)
    if model.weights_sha256 != record["model_sha256"]:
        message = (
            f"--like {like}: the weights of {name!r} are not those of that run (sha256 {model.weights_sha256[:12]}…"
            f" instead of {record['model_sha256'][:12]}…); pass --model to insist"
        )
        raise ModelError(message)
    return model


def records_of(path: str) -> dict[str, dict[str, Any]]:
    """Provenance of all results of this package in a file, by key."""
    with open_source(path) as source:
        groups = (key for key in source.uns if not hasattr(source.uns.group[key], "shape"))
        return {key: source.uns[key] for key in groups if "tahoe_version" in source.uns.group[key]}


def mapped(source: str, gene_key: str | None, organism: str, duplicates: str, output: str | None) -> str:
    """Report of a gene mapping, as text."""
    if output is not None:
        _check_folder(output)
    with open_source(source) as opened:
        try:
            totals = choose_matrix(opened).totals
        except InputError:  # names alone can still be mapped
            totals = None
        var = opened.var
        with looking_at_rows(opened, organism):
            mapping = _genes.map_genes(var, totals, gene_key=gene_key, organism=organism, duplicates=duplicates)
    report = mapping.report
    table = pd.DataFrame({"genes": report["genes"]})
    if "counts" in report:
        table["counts"] = pd.Series(report["counts"]).map("{:.3%}".format)
    if output is not None:
        genes = pd.DataFrame({"tahoe_gene": mapping.gene, "tahoe_match": mapping.match}, index=var.index)
        try:
            genes.to_csv(output, index_label="gene")
        except OSError as error:
            message = f"--output {output} cannot be written: {why_not_written(error)}"
            raise InputError(message) from error
    lost = f"\nmost expressed of the lost: {', '.join(report['lost'])}" if report["lost"] else ""
    against = f"\n{report['contradiction']}" if report["contradiction"] else ""
    return f"{table[table['genes'] > 0].to_string()}\n\n{report['summary']}{lost}{against}"


@contextmanager
def _cluster(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Client of a cluster that is there, or that is started for this run; None without either."""
    if workers is None and scheduler is None:
        yield None
        return
    if workers is not None and scheduler is not None:
        message = "--workers starts a cluster and --scheduler goes to one that is there; pass only one of them"
        raise InputError(message)
    try:
        from distributed import Client
    except ImportError as error:
        message = 'this needs dask: pip install "tahoe-anndata[dask]"'
        raise InputError(message) from error
    with nullcontext() if workers is None else _local_cluster(workers) as started:
        address = started or scheduler
        is_file = isinstance(address, str) and Path(address).is_file()
        try:
            client = Client(scheduler_file=address) if is_file else Client(address, timeout="30s")
        except (OSError, ValueError) as error:
            message = f"--scheduler {scheduler}: no cluster answers there: {error}"
            raise InputError(message) from error
        with client:
            yield client


def _local_cluster(workers: int) -> Any:
    """Start worker processes that share the cores, or one process a GPU."""
    import dask
    import torch
    from distributed import LocalCluster

    from tahoe.model.cpu.threads import n_cores

    if torch.cuda.is_available():
        try:
            from dask_cuda import LocalCUDACluster
        except ImportError as error:
            message = "--workers on GPUs needs dask-cuda, which gives each worker one: pip install dask-cuda"
            raise InputError(message) from error
        return LocalCUDACluster(n_workers=workers)
    environment = "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS"
    with dask.config.set({environment: max(1, n_cores() // workers)}):
        return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
