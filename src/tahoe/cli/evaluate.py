"""`tahoe evaluate`: a table and a picture of how good the representations in a file are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.argument("source")
@click.argument("more", metavar="[REP]...", nargs=-1)
@click.option("--label", required=True, help="Column of obs with the cell types.")
@click.option("--groups", help="Column of obs by which cells are left out, such as the donor.")
@click.option("--batch", help="Column of obs with batches; adds how well they are mixed.")
@click.option("--rep", "first", required=True, help="Representation in obsm; further ones may follow it.")
@click.option("--layer", help="Counts for the baselines are in layers[LAYER] instead of X.")
@click.option("--use-raw", is_flag=True, help="Counts for the baselines are in raw.")
@click.option("--folds", default=5, show_default=True, type=click.IntRange(2), help="Of the cross-validation.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same table.")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Where to write; made if it is not there.")
def evaluate(
    source: str,
    more: tuple[str, ...],
    label: str,
    groups: str | None,
    batch: str | None,
    first: str,
    layer: str | None,
    use_raw: bool,
    folds: int,
    seed: int,
    output: str,
) -> None:
    """Judge how well representations in SOURCE tell cell types, beside PCA, totals, noise and the majority.

    Prints a table, and writes evaluation.csv and evaluation.png into the folder.

    \b
    tahoe evaluate cells.h5ad --label cell_type --groups donor --rep X_tahoe X_pca -o report
    """
    import tahoe
    from tahoe._cells.opening import open_source
    from tahoe.errors import InputError
    from tahoe.model.causes import why_not_written

    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        message = f"--output {output}: this is a file, and a folder is needed"
        raise InputError(message)
    with open_source(source) as opened:
        adata = opened.to_memory()
    table = tahoe.evaluate.cell_types(
        adata,
        list(dict.fromkeys((first, *more))),
        label=label,
        groups=groups,
        batch=batch,
        layer=layer,
        use_raw=use_raw,
        n_folds=folds,
        seed=seed,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "evaluation.csv", index=False)
        _draw(table, folder / "evaluation.png")
    except OSError as error:
        message = f"--output {output} cannot be written: {why_not_written(error)}"
        raise InputError(message) from error
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
