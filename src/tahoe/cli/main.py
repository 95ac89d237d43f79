"""The command line: `tahoe embed`, `map-genes`, `download`, `info`, `evaluate`, `train` and `demo`."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

from tahoe.cli.evaluate import evaluate
from tahoe.cli.reference import annotate, reference
from tahoe.cli.train import train
from tahoe.errors import TahoeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What takes time to import (torch, scanpy, dask) is imported where it is used, so that --help does not wait for it.
MODEL_HELP = "70m, 1b or 3b (downloaded once), demo (built in, not for science), or the folder of a checkpoint."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 after an error of one line, 2 for a wrong call, 130 if interrupted."""
    state = {"debug": False}
    args = None if arguments is None else list(arguments)
    with warnings.catch_warnings():
        try:
            return commands.main(args=args, standalone_mode=False, obj=state) or 0
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            click.echo("tahoe: interrupted", err=True)
            return 130
        except Exception as error:
            if state["debug"]:
                raise
            unexpected = (
                "" if isinstance(error, TahoeError) else f"{type(error).__name__} (tahoe --debug shows where): "
            )
            click.echo(f"tahoe: {unexpected}{error}", err=True)
            return 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show where an error was raised.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no log, only warnings and errors.")
@click.version_option(package_name="tahoe-anndata", message="%(version)s")
@click.pass_obj
def commands(state: dict[str, Any], debug: bool, quiet: bool) -> None:
    """Tahoe-x1 embeddings for single-cell RNA-seq.

    \b
    tahoe info                                    what is installed, which device, which models are there
    tahoe map-genes cells.h5ad                    how many genes and counts a model can read
    tahoe download 70m                            fetch a model ahead of time
    tahoe embed cells.h5ad -o embedded.h5ad       add the embedding to a file that fits into memory
    tahoe embed atlas.zarr -o atlas-tahoe.zarr    embed a file of any size, a block at a time
    tahoe reference build atlas-tahoe.zarr …      make a reference of it
    tahoe annotate cells.h5ad …                   take labels from a reference
    tahoe perturb cells.h5ad -o genes.csv         knock every expressed gene out in silico
    tahoe train config.yaml                       continue the training of a model
    tahoe evaluate embedded.h5ad --label-key cell_type --rep X_tahoe -o report   is it better than PCA
    """
    from tahoe.settings import settings

    state["debug"] = debug
    settings.progress = settings.progress and not quiet
    log = logging.getLogger("tahoe")
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stderr)]
    warnings.showwarning = lambda message, *_, **__: click.echo(f"tahoe: warning: {message}", err=True)


def _grouped(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in their order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


what_to_read = _grouped(
    click.option("--layer", help="Read layers[LAYER] instead of X."),
    click.option("--use-raw", is_flag=True, help="Read raw, with its own genes."),
    click.option("--mask-var", help="Boolean column of var with the genes to use. All by default, as in training."),
    click.option("--gene-key", help="Column of var with gene names or ids; by default the one that resolves most."),
    click.option("--organism", type=click.Choice(["human", "mouse"]), help="mouse goes through orthologs."),
    click.option("--duplicates", type=click.Choice(["best", "sum"]), help="Of several columns of one gene."),
)
how_to_embed = _grouped(
    click.option("-m", "--model", default="70m", show_default=True, help=MODEL_HELP),
    click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale embeddings to length 1."),
    click.option("--drug-key", help="Column of obs with each cell's drug, for a model with a drug encoder (3b)."),
    click.option("--drugs", type=click.Path(exists=True, dir_okay=False), help="JSON file with the ids of the drugs."),
    click.option("--max-length", default=2048, show_default=True, help="Maximum number of tokens per cell."),
    click.option(
        "--min-coverage", default=0.5, show_default=True, help="Minimum share of the counts that the model must know."
    ),
    click.option("--seed", default=0, show_default=True, help="Random seed for choosing genes in cells with too many."),
    click.option("--key-added", default="X_tahoe", show_default=True, help="Name of the embedding in obsm."),
)
where_to_run = _grouped(
    click.option("--device", help="cpu, cuda, cuda:1 or mps; by default the best there is."),
    click.option("--dtype", help="float32, bfloat16, float16 or int8; by default what suits the device."),
    click.option("--attention", help="How attention is computed: sets TAHOE_ATTENTION for this run."),
    click.option(
        "--token-budget", type=click.IntRange(1), help="Maximum number of tokens at once: TAHOE_TOKEN_BUDGET."
    ),
    click.option("--workers", type=click.IntRange(1), help="Spread the work over so many processes (zarr output)."),
    click.option("--scheduler", help="Address, or scheduler file, of a dask cluster that is to do it (zarr output)."),
)
how_to_store = _grouped(
    click.option("--resume", is_flag=True, help="Go on with a run that did not end (zarr output)."),
    click.option("--keep-metadata", is_flag=True, help="Copy the columns of obs and var too (zarr output)."),
    click.option("--stored-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True),
    click.option("--cells-per-shard", default=4096, show_default=True, help="Cells that a killed run loses at most."),
)


# What options were called before; they are still taken.
FORMER = {"columns": "keep-metadata", "shard-cells": "cells-per-shard"}


@commands.command(context_settings={"token_normalize_func": lambda name: FORMER.get(name, name)})
@click.argument("source", required=False)
@click.option("-o", "--output", required=True, help="What to write: NAME.zarr (any size) or NAME.h5ad (in memory).")
@what_to_read
@how_to_embed
@where_to_run
@how_to_store
@click.option(
    "--like", type=click.Path(exists=True), help="Repeat the run that wrote this file; options given here win."
)
@click.pass_context
def embed(context: click.Context, source: str | None, output: str, like: str | None, **options: Any) -> None:
    """Embed the cells of SOURCE: an h5ad file, a zarr store, a 10x .h5 file, or the URL of one.

    With a .zarr output the cells are streamed, a block at a time, into a new AnnData store without X: for files larger
    than memory, and for long runs, which --resume takes up again after an interruption. With an .h5ad output the file
    is read into memory and written again with the embedding added.

    SOURCE must hold cells by rows, with counts, or counts that were only normalised by cell or log-transformed.

    \b
    tahoe embed cells.h5ad -o embedded.h5ad --model 70m
    tahoe embed atlas.zarr -o atlas-tahoe.zarr --workers 4
    tahoe embed atlas.zarr -o atlas-tahoe.zarr --workers 4 --resume
    tahoe embed --like embedded.h5ad -o again.h5ad
    """
    from tahoe.cli.embed import embed as run
    from tahoe.cli.repeat import repeat
    from tahoe.settings import settings

    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    if like is not None:
        source, options = repeat(like, source, options, given)
    if source is None:
        message = "Missing argument 'SOURCE'; only with --like may it be omitted."
        raise click.UsageError(message)
    if not output.rstrip("/").lower().endswith((".zarr", ".h5ad")):
        message = f"--output {output}: the name must end in .zarr or .h5ad."
        raise click.UsageError(message)
    # no parameters of embed_file; without them, what the environment says stays
    set_here = {name: value for name in ("attention", "token_budget") if (value := options.pop(name, None)) is not None}
    with settings.override(**set_here):
        run(source, output, given, **options)
    click.echo(output)


@commands.command("map-genes")
@click.argument("source")
@click.option("--gene-key", help="Column of var with gene names or ids; by default the one that resolves most.")
@click.option("--organism", type=click.Choice(["human", "mouse"]), default="human", show_default=True)
@click.option(
    "--duplicates",
    type=click.Choice(["best", "sum"]),
    default="best",
    show_default=True,
    help="Of several columns of one gene take the best, or the sum.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Also write a table of all genes (CSV).")
def map_genes(source: str, gene_key: str | None, organism: str, duplicates: str, output: str | None) -> None:
    """Report which genes of SOURCE the models know, and what is lost. SOURCE is not changed, and no model is needed."""
    from tahoe.cli.embed import describe_mapping

    logging.getLogger("tahoe").setLevel(logging.WARNING)  # the report says all of it
    click.echo(describe_mapping(source, gene_key, organism, duplicates, output))


@commands.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="Table to write (CSV).")
@click.option("--genes", help="Names with commas between them, A+B for a combination; all measured ones by default.")
@click.option("--kind", type=click.Choice(["delete", "maximum", "activate"]), default="delete", show_default=True)
@click.option("--goal", nargs=3, metavar="COLUMN START END", help="Perturb cells of START, and look towards END.")
@click.option("--alternative", help="With --goal, a state to be avoided.")
@click.option("--method", type=click.Choice(["auto", "first_order", "exact"]), default="auto", show_default=True)
@click.option("--groupby", help="Column of obs; a screen for each of its groups.")
@click.option("--replicate-key", help="Column of obs with the donor of each cell: p-values over donors.")
@click.option("--min-cells", default=10, show_default=True, help="Least cells in which a gene is edited.")
@click.option("--n-cells", default=200, show_default=True, help="Most cells that are perturbed, in each group.")
@click.option("--n-exact", default=50, show_default=True, help="How many of the top are edited exactly.")
@click.option("-m", "--model", default="70m", show_default=True, help=MODEL_HELP)
@click.option("--layer", help="Read layers[LAYER] instead of X.")
@click.option("--use-raw", is_flag=True, help="Read raw, with its own genes.")
@click.option("--max-length", default=2048, show_default=True, help="Most tokens of a cell.")
@click.option("--seed", default=0, show_default=True, help="Of the draw of cells and genes.")
@click.option("--device", help="cpu, cuda, cuda:1 or mps; by default the best there is.")
@click.option("--dtype", help="float32 by default.")
def perturb(source: str, output: str, genes: str | None, **options: Any) -> None:
    """Perturb genes in the cells of SOURCE in silico, and write a table of genes. SOURCE is not changed.

    \b
    tahoe perturb cells.h5ad -o genes.csv --goal condition control disease --replicate-key donor
    tahoe perturb cells.h5ad -o genes.csv --kind activate --genes GATA1,KLF1,GATA1+KLF1
    """
    from tahoe.cli.perturb import run

    run(source, output, genes, **options)
    click.echo(output)


@commands.command()
@click.argument("model", type=click.Choice(["70m", "1b", "3b"]))
@click.option("--revision", help="Another commit or branch of the Hub than the one that this version is pinned to.")
@click.option("--verify", is_flag=True, help="Compare all files with the checksums of the Hub.")
def download(model: str, revision: str | None, verify: bool) -> None:
    """Fetch MODEL into the Hugging Face cache, and print the folder: for machines without a connection.

    HF_HOME, HF_TOKEN and HF_ENDPOINT are honoured. Copy the folder elsewhere and pass its path as --model.
    """
    from tahoe.model.hub import download as hub
    from tahoe.settings import settings

    checkpoint = hub.download(model, revision=revision, cache_dir=settings.cache_dir)
    if verify:
        hub.verify(model, checkpoint, cache_dir=settings.cache_dir)
    click.echo(checkpoint.folder)


@commands.command()
@click.argument("subject", required=False)
def info(subject: str | None) -> None:
    """Say what is installed, or what is known of SUBJECT: a model, or a file with an embedding.

    Of a file, it prints all that is needed to repeat the run, and the command that does.
    """
    from tahoe.cli.info import describe

    click.echo(describe(subject))


@commands.command()
@click.option("-o", "--output", default=".", metavar="FOLDER", help="Where to write.", show_default=True)
def demo(output: str) -> None:
    """Embed 700 blood cells with the small model that ships with the package, and compare with PCA.

    Writes tahoe-demo.png and tahoe-demo.h5ad. Needs no download; takes about a minute on two cores.
    """
    from tahoe.cli.demo import run

    run(output)


for command in (reference, annotate, evaluate, train):
    commands.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
