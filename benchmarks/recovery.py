"""How well the demo model recovers hidden genes: ``python benchmarks/recovery.py CELLS.h5ad [MORE.h5ad ...]``.

The files are those that `scripts/demo_cells.py` was given, of which the same cells are held out; the
cells of `tahoe.datasets.pbmc68k` are those of a set that it never saw. In each cell 15% of the genes are hidden.

Beside the two decoders stand predictors that know no cell: each gene's mean bin, over the very cells that are tested
(where it is not hidden), and over the cells of the set that the model was trained on.
"""

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import tahoe
from tahoe.model.tokens.edits import hide_share

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from demo_cells import Cells

SHARE, MAX_LENGTH = 0.15, 2048


def error_of_training_means(cells: Cells, model: tahoe.TahoeModel) -> float:
    column_tokens = model.vocabulary.tokens_of(cells.genes)
    seen, tested = (
        model.tokenize(part, column_tokens, max_length=MAX_LENGTH) for part in (cells.training, cells.held_out)
    )
    sums, n_cells = (
        np.bincount(seen.ids[seen.is_gene], weights=weights, minlength=len(model.vocabulary))
        for weights in (seen.values[seen.is_gene], None)
    )
    means = np.where(n_cells > 0, sums / np.maximum(n_cells, 1), sums.sum() / n_cells.sum())
    hidden = hide_share(tested, SHARE)
    errors = (means[tested.ids[hidden]] - tested.values[hidden]) ** 2
    return pd.Series(errors).groupby(tested.cell_of_token[hidden]).mean().mean()


def recovery(adata: anndata.AnnData, model: tahoe.TahoeModel) -> dict[str, str]:
    errors = {}
    for decoder in ("expression", "mvc"):
        tahoe.tl.predict_expression(
            adata, model, mask_fraction=SHARE, decoder=decoder, max_length=MAX_LENGTH, min_coverage=0, key_added=decoder
        )
        errors[decoder] = adata.obs[f"{decoder}_mse"]
    means = adata.obs["expression_mse_gene_mean"]
    return {
        "cells": f"{adata.n_obs}",
        "Pearson": f"{adata.obs['expression_pearson'].median():.2f}",
        "Spearman": f"{adata.obs['expression_spearman'].median():.2f}",
        "MSE, expression decoder": f"{errors['expression'].mean():.0f}",
        "MSE, MVC decoder": f"{errors['mvc'].mean():.0f}",
        "MSE, gene means of these cells": f"{means.mean():.0f}",
        "better than these": f"{(errors['expression'] < means).mean():.0%} of the cells",
    }


def main(paths: list[str]) -> None:
    model, table = tahoe.load_model("demo"), {}
    training = "MSE, gene means of the training cells"
    for path in paths:
        cells = Cells.read(Path(path))
        held_out = anndata.AnnData(cells.held_out, var=pd.DataFrame({"tahoe_gene": cells.genes}, index=cells.genes))
        table[cells.name] = recovery(held_out, model) | {training: f"{error_of_training_means(cells, model):.0f}"}
    table["pbmc68k"] = recovery(tahoe.datasets.pbmc68k(), model) | {training: ""}
    print("|", " | ".join(["set", *table["pbmc68k"]]), "|\n|" + "---|" * 9)
    for name, row in table.items():
        print("|", " | ".join([name, *row.values()]), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
