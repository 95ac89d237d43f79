"""`tahoe evaluate`: a table and a picture of how good the representations in a file are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.argument("source")
@click.argument("more", metavar="[REP]...", nargs=-1)
@click.option("--label-key", required=True, help="Column of obs with the cell types.")
@click.option("--groups", help="Column of obs by which cells are left out, such as the donor.")
@click.option("--batch-key", help="Column of obs with batches; adds how well they are mixed.")
@click.option("--rep", "first", required=True, help="Representation in obsm; further ones may follow it.")
@click.option("--layer", help="Counts for the baselines are in layers[LAYER] instead of X.")
@click.option("--use-raw", is_flag=True, help="Counts for the baselines are in raw.")
@click.option(
    "--folds", "n_folds", default=5, show_default=True, type=click.IntRange(2), help="Of the cross-validation."
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same table.")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Where to write; made if it is not there.")
def evaluate(source: str, more: tuple[str, ...], first: str, output: str, **options: Any) -> None:
    """Judge how well representations in SOURCE tell cell types, beside PCA, totals, noise and the majority.

    Prints a table, and writes evaluation.csv and evaluation.png into the folder.

    \b
    tahoe evaluate cells.h5ad --label-key cell_type --groups donor --rep X_tahoe X_pca -o report
    """
    import tahoe
    from tahoe._cells.opening import open_source
    from tahoe._store.output import explain_disk_errors
    from tahoe.errors import InputError

    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        message = f"--output {output}: this is a file, and a folder is needed"
        raise InputError(message)
    with open_source(source) as opened:
        adata = opened.to_memory()
    table = tahoe.evaluate.cell_types(adata, list(dict.fromkeys((first, *more))), **options)
    with explain_disk_errors(f"--output {output!r}"):
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "evaluation.csv", index=False)
        _draw(table, folder / "evaluation.png")
    wide = table.pivot(index="metric", columns="representation", values="value")
    order = table["metric"].unique(), table["representation"].unique()
    click.echo(wide.loc[order[0], order[1]].round(3).to_string())
    click.echo(f"{folder / 'evaluation.csv'}\n{folder / 'evaluation.png'}")


def _draw(table: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    import tahoe

    figure = tahoe.pl.evaluation(table)[0].figure
    figure.savefig(path, dpi=150)
    plt.close(figure)
