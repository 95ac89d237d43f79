"""Check the means of ``tl.embed_genes`` over 10,000 real cells: ``python benchmarks/gene_means.py CELLS.h5ad [...]``.

Cells of all files, and thinned copies of them until there are enough, go through the demo model. The means are compared
with those of two passes in float64: a mean, and the mean of what is left over.
"""

import sys

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import tahoe

N_CELLS, MAX_LENGTH = 10_000, 256


def read(paths: list[str], genes: np.ndarray) -> anndata.AnnData:
    generator, parts = np.random.default_rng(0), []
    for path in paths:
        adata = anndata.read_h5ad(path)
        tahoe.pp.map_genes(adata)
        columns = pd.Index(genes).get_indexer(adata.var["tahoe_gene"].astype(str))
        counts = sparse.coo_matrix(adata.X[:, columns >= 0])
        entries = counts.data, (counts.row, columns[columns >= 0][counts.col])
        parts.append(sparse.csr_matrix(entries, shape=(adata.n_obs, len(genes))))
    counts = sparse.vstack(parts, format="csr")[generator.permutation(sum(part.shape[0] for part in parts))]
    thinned = counts[: N_CELLS - counts.shape[0]].copy()
    thinned.data = generator.binomial(thinned.data.astype(int), 0.5).astype(np.float32)
    var = pd.DataFrame({"tahoe_gene": genes}, index=genes)
    return anndata.AnnData(sparse.vstack([counts, thinned], format="csr"), var=var)


def main(paths: list[str]) -> None:
    model = tahoe.load_model("demo", device="cpu")
    genes = model.vocabulary.genes
    adata = read(paths, genes)
    tahoe.tl.embed_genes(adata, model, max_length=MAX_LENGTH)
    tokens = model.tokenize(adata.X, model.vocabulary.tokens_of(genes), max_length=MAX_LENGTH)
    outputs = np.concatenate([model.embed_tokens(tokens.cells(i, i + 1)).numpy() for i in range(len(tokens))])
    column_of = np.full(model.config.vocab_size, -1)
    column_of[model.vocabulary.tokens_of(genes)] = np.arange(len(genes))
    columns, outputs = column_of[tokens.ids[tokens.is_gene]], outputs[tokens.is_gene]
    order = np.argsort(columns, kind="stable")
    starts = np.flatnonzero(np.diff(columns[order], prepend=-1))
    largest, ours = 0.0, adata.varm["tahoe"]
    for rows in np.split(order, starts[1:]):
        vectors = outputs[rows].astype(np.float64)
        mean = vectors.mean(axis=0)
        mean += (vectors - mean).mean(axis=0)
        largest = max(largest, np.abs(ours[columns[rows[0]]] - mean).max())
    assert np.isnan(ours).all(axis=1).sum() == len(genes) - len(starts)
    print(f"{adata.n_obs:,} cells, {len(starts):,} genes, {len(order):,} vectors; largest difference {largest:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
