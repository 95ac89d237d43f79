"""In which hallmark gene sets a gene is, told by its vector: «GE», «TE» and «EA», beside baselines.

    python -m benchmarks.paper.msigdb --model 3b --data DIR

GE are the vectors with which genes enter the network, TE its outputs for all genes of the vocabulary without a cell, EA
the mean outputs over the cells that express a gene; for genes that no cell expresses, EA is TE, as the authors have it.
With the authors' protocol and three seeds, and with one that keeps gene families together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd

import tahoe
from benchmarks.paper.common import Needed, array_once, parse, require, run, show, table_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEEDS = (0, 1, 2)
CONTEXTS = {"GE": False, "TE": "all", "EA": True}
NEEDED = (
    Needed(
        ("*.gmt",),
        "the 50 hallmark gene sets, with gene symbols",
        "https://www.gsea-msigdb.org/gsea/msigdb/human/collections.jsp (file h.all…Hs.symbols.gmt)",
        "about 50 kB",
    ),
    Needed(
        ("cells.h5ad",),
        "cells with counts that express most genes, for EA and for the baselines",
        "your own, or those of the authors: s3://tahoe-hackathon-data/MFM/benchmarks/msigdb/ (public)",
        "any size that fits into memory",
        checked=False,
    ),
)


def main(arguments: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """Run what is not done yet, and print the tables."""
    options = parse(__doc__, arguments)
    (gmt, *_), (cells, *_) = require(options.data, NEEDED)
    adata = anndata.read_h5ad(cells)
    tahoe.pp.map_genes(adata)
    _add_vectors(adata, options.model, options.device, options.results)
    tables = {"grouped by family": _grouped(adata, gmt, options.results)}
    per_seed = [_as_authors(adata, gmt, seed, options) for seed in SEEDS]
    tables["as the authors do"] = over_seeds(per_seed)
    for title, table in tables.items():
        show(f"Hallmarks, {title}, {table['n'].iloc[0]} genes", table)
    return tables


def _add_vectors(adata: anndata.AnnData, model: str, device: str | None, results: Path) -> None:
    loaded: list[tahoe.TahoeModel] = []

    def vectors(context: bool | str) -> np.ndarray:
        if not loaded:
            loaded.append(tahoe.load_model(model, device=device))
        return tahoe.tl.embed_genes(adata, loaded[0], context=context, copy=True).varm["tahoe"]

    for name, context in CONTEXTS.items():
        adata.varm[name] = array_once(results / f"{name}.npy", lambda context=context: vectors(context))
    adata.varm["EA"] = np.where(np.isnan(adata.varm["EA"]), adata.varm["TE"], adata.varm["EA"])


def _grouped(adata: anndata.AnnData, gmt: Path, results: Path) -> pd.DataFrame:
    return table_once(
        results / "grouped.csv", lambda: tahoe.evaluate.gene_sets(adata, list(CONTEXTS), gmt, protocol="grouped")
    )


def _as_authors(adata: anndata.AnnData, gmt: Path, seed: int, options: object) -> pd.DataFrame:
    return table_once(
        options.results / f"authors-seed-{seed}.csv",
        lambda: tahoe.evaluate.gene_sets(adata, list(CONTEXTS), gmt, seeds=(seed,), device=options.device),
    )


def over_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean over seeds, each of which has its own table."""
    rows = pd.concat(tables).groupby(["metric", "representation", "kind", "over", "n"], sort=False)["value"]
    return rows.agg(value="mean", standard_error="sem", replicates="size").reset_index()


if __name__ == "__main__":
    run(main)
