"""Cancer cell lines by tissue, and essential genes, as in the authors' DepMap benchmark, beside baselines.

    python -m benchmarks.paper.depmap --model 3b --data DIR

Bulk counts of cell lines go through the model as if they were cells, with 17,000 tokens at most. Their vectors are to
tell the tissue; the mean vectors of genes are to tell those that more than 70 % of the lines depend on from those that
less than 5 % do. The third task of the authors, essentiality in single lines, is not here: it needs a vector for each
gene in each line, 415 GB with all models of the authors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import tahoe
from benchmarks.paper.common import Needed, array_once, parse, require, run, show, table_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PORTAL = "https://depmap.org/portal/data_page/?tab=allData, or s3://tahoe-hackathon-data/MFM/benchmarks/depmap/raw/"
NEEDED = (
    Needed(
        ("CCLE_RNAseq_genes_counts_20180929.gct.gz", "raw/ccle-counts.gct", "ccle-counts.gct"),
        "RNA-seq counts of cell lines",
        f"{PORTAL} (file set CCLE 2019)",
        "the raw folder on S3 has 919 MB",
    ),
    Needed(
        ("CRISPRGeneDependency.csv", "raw/depmap-gene-dependencies.csv", "depmap-gene-dependencies.csv"),
        "probability that a line depends on a gene",
        f"{PORTAL} (DepMap Public 23Q4)",
        "part of these",
    ),
    Needed(
        ("Model_v2.csv", "raw/depmap-metadata.csv", "depmap-metadata.csv"),
        "names and tissues of the lines",
        f"{PORTAL} (DepMap Public 23Q4)",
        "part of these",
    ),
)
MAX_LENGTH = 17_000
# A line depends on a gene above this probability; a gene takes part if few or most lines do, and few have no value.
DEPENDS, FEW, MOST, LARGEST_MISSING = 0.5, 0.05, 0.7, 0.1


def main(arguments: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """Run what is not done yet, and print the tables."""
    options = parse(__doc__, arguments)
    (counts, *_), (dependencies, *_), (metadata, *_) = require(options.data, NEEDED)
    dependency = read_dependencies(dependencies)
    lines = read_lines(counts, pd.read_csv(metadata), dependency.index)
    tahoe.pp.map_genes(lines)
    results = options.results
    model: list[tahoe.TahoeModel] = []

    def loaded() -> tahoe.TahoeModel:
        if not model:
            model.append(tahoe.load_model(options.model, device=options.device))
        return model[0]

    lines.obsm["X_tahoe"] = array_once(
        results / "lines.npy",
        lambda: tahoe.tl.embed(lines, loaded(), max_length=MAX_LENGTH, copy=True).obsm["X_tahoe"],
    )
    lines.varm["tahoe"] = array_once(
        results / "genes.npy",
        lambda: tahoe.tl.embed_genes(lines, loaded(), max_length=MAX_LENGTH, copy=True).varm["tahoe"],
    )
    tables = {
        "cell lines by tissue": table_once(
            results / "tissues.csv",
            lambda: tahoe.evaluate.cell_types(lines, "X_tahoe", label_key="OncotreeLineage"),
        ),
        "essential genes": table_once(
            results / "essential.csv",
            lambda: tahoe.evaluate.essentiality(lines, "tahoe", essential_genes(dependency)),
        ),
    }
    for title, table in tables.items():
        show(f"DepMap, {title}", table)
    return tables


def read_dependencies(path: Path) -> pd.DataFrame:
    """Lines × genes, by gene symbol."""
    table = pd.read_csv(path, index_col=0)
    return table.set_axis([name.split(" ")[0] for name in table.columns], axis=1)


def essential_genes(dependency: pd.DataFrame) -> pd.Series:
    """True for genes that most lines depend on, False for those that few do."""
    kept = dependency.loc[:, dependency.isna().mean() < LARGEST_MISSING]
    share = (kept.fillna(0) > DEPENDS).mean()
    share = share[(share < FEW) | (share > MOST)]
    return (share > DEPENDS)[~share.index.duplicated()]


def read_lines(path: Path, metadata: pd.DataFrame, used: pd.Index) -> anndata.AnnData:
    """Counts of the lines that have dependencies: lines × genes, by Ensembl id."""
    table = pd.read_csv(path, sep="\t", skiprows=_lines_before_names(path))
    metadata = metadata[metadata["ModelID"].isin(used)].drop_duplicates("CCLEName").set_index("CCLEName")
    names = [name for name in table.columns[2:] if name in metadata.index]
    ids = table["Name"].str.split(".").str[0]
    matrix = sparse.csr_matrix(table.loc[~ids.duplicated(), names].to_numpy(dtype=np.float32).T)
    obs = metadata.loc[names, ["ModelID", "OncotreeLineage"]].astype(str)
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=ids[~ids.duplicated()].to_numpy(dtype=object)))


def _lines_before_names(path: Path) -> int:
    """A GCT file begins with its version and its size; the copy of the authors does not."""
    first = pd.read_csv(path, sep="\t", header=None, nrows=1, usecols=[0]).iloc[0, 0]
    return 2 if str(first).startswith("#1.") else 0


if __name__ == "__main__":
    run(main)
