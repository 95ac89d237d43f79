"""What `tahoe embed` and `tahoe map-genes` do with files."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tahoe._cells.genes import hint_if_transposed
from tahoe._cells.matrix import choose_matrix
from tahoe._cells.opening import open_source
from tahoe._genes.mapping import map_genes
from tahoe._store.output import check_output, explain_disk_errors
from tahoe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Options that say how a store is written; an h5ad file has no use for them.
OF_STORES = {"workers", "scheduler", "resume", "keep_metadata", "stored_dtype", "cells_per_shard"}


def embed(
    source: str, output: str, given: set[str], *, workers: int | None, scheduler: str | None, **options: Any
) -> None:
    """Embed the cells of a file, here or on the workers of a cluster; `given` are the options of the command line."""
    from tahoe._store.embed_file import embed_file

    useless = sorted(f"--{name.replace('_', '-')}" for name in given & OF_STORES)
    if useless and output.lower().endswith(".h5ad"):
        message = f"{', '.join(useless)} goes with a zarr store; --output {output} is written from memory, at once"
        raise InputError(message)
    with _cluster(workers, scheduler) as client:
        embed_file(source, output, client=client, **options)


def describe_mapping(source: str, gene_key: str | None, organism: str, duplicates: str, output: str | None) -> str:
    """Report of a gene mapping, as text."""
    if output is not None:
        check_output("--output ", Path(output), replace=True)
    with open_source(source) as opened:
        try:
            totals = choose_matrix(opened).totals
        except InputError:  # names alone can still be mapped
            totals = None
        var = opened.var
        with hint_if_transposed(opened, organism):
            mapping = map_genes(var, totals, gene_key=gene_key, organism=organism, duplicates=duplicates)
    report = mapping.report
    table = pd.DataFrame({"genes": report["genes"]})
    if "counts" in report:
        table["counts"] = pd.Series(report["counts"]).map("{:.3%}".format)
    if output is not None:
        genes = pd.DataFrame({"tahoe_gene": mapping.gene, "tahoe_match": mapping.match}, index=var.index)
        with explain_disk_errors(f"--output {output!r}"):
            genes.to_csv(output, index_label="gene")
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
    # dask has workers give back whatever is free above 64 KiB, which is every tensor; the system then clears all pages
    # anew, and that took a quarter of the time of a small network
    environment = {
        "OMP_NUM_THREADS": max(1, n_cores() // workers),
        "MALLOC_TRIM_THRESHOLD_": 128 << 20,
        "MALLOC_MMAP_THRESHOLD_": 32 << 20,
    }
    with dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": each for name, each in environment.items()}):
        return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
