"""The commands `tahoe reference build`, `info` and `search`."""

from __future__ import annotations

from typing import Any

import click


@click.group()
def reference() -> None:
    """Build, describe and search references: embedded cells with labels.

    \b
    tahoe embed atlas.h5ad -o atlas-tahoe.zarr --model 70m --columns
    tahoe reference build atlas-tahoe.zarr -o atlas.tahoe --obs-key cell_type --groups donor
    tahoe annotate cells.h5ad --reference atlas.tahoe --key cell_type -o annotated.zarr
    """


@reference.command()
@click.argument("source")
@click.option("-o", "--output", required=True, help="Folder to write.")
@click.option("--obs-key", "obs_keys", multiple=True, help="Column of obs to keep; may be given several times.")
@click.option("--use-rep", default="X_tahoe", show_default=True, help="Where in obsm the embedding is.")
@click.option("--groups", help="Column of obs by which cells are held back for calibration, such as the donor.")
@click.option("--index/--no-index", default=None, help="Search through an index; by default from a million cells on.")
@click.option("--stored-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--n-held-back", default=5000, show_default=True, help="Cells that are held back.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of these.")
@click.option("--cells-per-shard", default=262_144, show_default=True, help="Cells that a killed build loses at most.")
@click.option("--resume", is_flag=True, help="Go on with a build that did not end.")
@click.option("--scheduler", help="Address, or scheduler file, of a dask cluster that is to do it.")
@click.option("--workers", type=click.IntRange(1), help="Spread the work over so many processes.")
def build(source: str, output: str, scheduler: str | None, workers: int | None, **options: Any) -> None:
    """Make a reference of the embedded cells in SOURCE, an h5ad file or a store that `tahoe embed` wrote."""
    from tahoe._reference.build import build_reference
    from tahoe.cli.embed import _cluster

    index = options.pop("index")
    with _cluster(workers, scheduler) as client:
        build_reference(source, output, index="auto" if index is None else index, client=client, **options)
    click.echo(output)


@reference.command()
@click.argument("reference")
@click.option("--check", is_flag=True, help="Also compare the content of all files with their digests.")
def info(reference: str, check: bool) -> None:
    """Say what is in REFERENCE: cells, labels, model, and how often labels of held-back cells were right."""
    from tahoe._reference.reference import load_reference
    from tahoe.cli.info import _aligned, _plain

    opened = load_reference(reference)
    if check:
        opened.check()
    manifest, embedding = opened.manifest, opened.embedding
    lines = {
        "reference": opened.name,
        "cells": f"{opened.n_cells:,} × {opened.width}, {manifest['stored_dtype']}",
        "without an embedding": f"{opened.n_cells - manifest['n_vectors']:,}",
        "model": embedding.get("model"),
        "model sha256": embedding.get("model_sha256"),
        "max_length, seed": f"{embedding.get('max_length')}, {embedding.get('seed')}",
        "held back": f"{manifest['n_held_back']:,} cells, by {manifest['groups'] or 'cell'}",
        "index": "none; search is exact" if opened.index is None else opened.index,
        "content": "as when it was built" if check else "not checked (--check)",
    }
    k = min(50, manifest["n_vectors"])
    for key in opened.obs_keys:
        accuracy = opened.calibration(key, k).accuracy
        lines[f"column {key}"] = f"{len(opened.labels(key)):,} labels; {accuracy:.1%} of held-back cells right at k={k}"
    click.echo(_aligned({name: _plain(value) for name, value in lines.items()}))


@reference.command()
@click.argument("source")
@click.option("-r", "--reference", required=True, help="Folder of a reference, or owner/name on the Hub.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="Table to write (CSV).")
@click.option("-k", default=10, show_default=True, help="How many cells to find for each.")
@click.option("--cell", "cells", multiple=True, help="Name of a cell; all by default. May be given several times.")
@click.option("--exact", is_flag=True, help="Compare with all cells also where there is an index.")
def search(source: str, reference: str, output: str, k: int, cells: tuple[str, ...], exact: bool) -> None:
    """Find the cells of a reference that are most like those of SOURCE, which is embedded (`tahoe embed`).

    The table has a row for each cell that was found, with what the reference knows of it.
    """
    from tahoe.cli.annotate import write_neighbors

    write_neighbors(source, reference, output, k=k, cells=cells, exact=exact)
    click.echo(output)


@click.command()
@click.argument("source")
@click.option("-r", "--reference", required=True, help="Folder of a reference, or owner/name on the Hub.")
@click.option("--key", "obs_keys", multiple=True, required=True, help="Column of the reference with the labels.")
@click.option("-o", "--output", required=True, help="NAME.zarr (store), NAME.csv (table), or NAME.h5ad (in memory).")
@click.option("-k", default=50, show_default=True, help="How many neighbours vote.")
@click.option("--alpha", default=0.05, show_default=True, help="Risk that is taken; see tl.transfer_labels.")
@click.option("--mostly-known", is_flag=True, help="Assume that most cells are of the labels they get.")
@click.option("--exact", is_flag=True, help="Compare with all cells also where the reference has an index.")
@click.option("-m", "--model", help="The reference's model, where it lies elsewhere now.")
@click.option("--layer", help="Read layers[LAYER] instead of X.")
@click.option("--use-raw", is_flag=True, help="Read raw, with its own genes.")
@click.option("--min-coverage", default=0.5, show_default=True, help="Least share of counts that the model must know.")
@click.option("--device", help="cpu, cuda, cuda:1 or mps; by default the best there is.")
@click.option("--dtype", help="float32, bfloat16, float16 or int8; by default what suits the device.")
@click.option("--resume", is_flag=True, help="Go on with a run that did not end.")
def annotate(source: str, output: str, reference: str, obs_keys: tuple[str, ...], **options: Any) -> None:
    """Label the cells of SOURCE by the most similar cells of a reference: label, confidence, novelty, set of labels.

    SOURCE is an h5ad file, a zarr store or a 10x .h5 file of any size; it is read a block at a time, unless the output
    is h5ad. What is not embedded yet, as the reference was, is embedded first, and that is what takes time: a run that
    was interrupted goes on with --resume.

    \b
    tahoe annotate cells.h5ad --reference atlas.tahoe --key cell_type -o annotated.zarr
    tahoe annotate cells.h5ad --reference owner/name --key cell_type -o labels.csv
    """
    from tahoe.cli.annotate import annotated

    annotated(source, reference, output, obs_keys=list(obs_keys), **options)
    click.echo(output)
