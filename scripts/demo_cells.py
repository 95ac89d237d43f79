"""Pack the cells that the demo model is trained on into one file, which needs neither AnnData nor gene tables.

    python scripts/demo_cells.py CELLS.h5ad [MORE.h5ad ...] --output cells.npz

Each file holds raw counts in ``X``, gene names that `tahoe.pp.map_genes` knows, and, for the model card, its origin
in ``uns["source"]`` and ``uns["licence"]``. About a tenth of the cells of each file are held out: whole donors where
``obs["donor"]`` has several. The sets on which the model is judged must not be among the files.

The file also holds what training starts from. A short training cannot learn from nothing what genes go together; so the
gene embeddings start as the leading singular vectors of the log-normalised training cells, with each gene's mean bin
and frequency, and not at random.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

import tahoe
from tahoe.model import ModelConfig, Vocabulary, tokenize

HELD_OUT = 0.1
# A gene enters the vocabulary if at least this many of the training cells express it.
LEAST_CELLS = 60
# Columns of the initial gene vectors: a narrower network takes the first of them.
WIDEST = 160
# Labels that say nothing.
UNKNOWN = ("unknown", "?", "nan")


@dataclass
class Cells:
    """The cells of one file, on the genes that were mapped."""

    name: str
    source: str
    sha256: str
    genes: np.ndarray
    counts: sparse.csr_array
    labels: np.ndarray
    is_held_out: np.ndarray

    @classmethod
    def read(cls, path: Path, seed: int = 0) -> Cells:
        """Map the genes of a file and hold some of its cells out; which, depends on the seed and the file alone."""
        adata = anndata.read_h5ad(path)
        tahoe.pp.map_genes(adata)
        genes = adata.var["tahoe_gene"].astype(str).to_numpy(dtype=object)
        labels = _column(adata, "cell_type")
        return cls(
            path.stem,
            f"{adata.uns.get('source', 'unknown')} ({adata.uns.get('licence', 'licence unknown')})",
            hashlib.sha256(path.read_bytes()).hexdigest(),
            genes[genes != ""],
            sparse.csr_array(adata.X[:, genes != ""]),
            labels,
            held_out_cells(labels, _column(adata, "donor"), np.random.default_rng(seed)),
        )

    @property
    def training(self) -> sparse.csr_array:
        """Counts of the cells that training may see."""
        return self.counts[~self.is_held_out]

    @property
    def held_out(self) -> sparse.csr_array:
        """Counts of the others."""
        return self.counts[self.is_held_out]


def _column(adata: anndata.AnnData, name: str) -> np.ndarray:
    if name not in adata.obs:
        return np.full(adata.n_obs, "unknown", dtype=object)
    values = adata.obs[name].astype(str).to_numpy(dtype=object)
    values[np.isin(values, UNKNOWN)] = "unknown"
    return values


def held_out_cells(labels: np.ndarray, donors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Hold out the smallest donors, where there are at least three and none is a label; else cells by chance."""
    n_cells = len(labels)
    names, sizes = np.unique(donors, return_counts=True)
    donors_are_labels = len(set(labels)) > 1 and len(set(zip(labels, donors, strict=True))) == len(names)
    if len(names) < 3 or donors_are_labels:
        held_out = np.zeros(n_cells, dtype=bool)
        held_out[generator.permutation(n_cells)[: round(HELD_OUT * n_cells)]] = True
        return held_out
    order = np.argsort(sizes, kind="stable")
    n_donors = 1 + int(np.searchsorted(np.cumsum(sizes[order]), HELD_OUT * n_cells))
    return np.isin(donors, names[order[:n_donors]])


def build_vocabulary(files: list[Cells]) -> tuple[Vocabulary, np.ndarray]:
    """Genes that enough of the training cells express, by Ensembl id behind the special tokens, and in how many."""
    expressing: dict[str, int] = {}
    for cells in files:
        for gene, n_cells in zip(cells.genes, (cells.training > 0).sum(axis=0), strict=True):
            expressing[gene] = expressing.get(gene, 0) + int(n_cells)
    genes = sorted(gene for gene, n_cells in expressing.items() if n_cells >= LEAST_CELLS)
    vocabulary = Vocabulary({token: id_ for id_, token in enumerate(["<pad>", "<cls>", "<eoc>", *genes])})
    return vocabulary, np.array([expressing[gene] for gene in genes])


def initial_gene_vectors(files: list[Cells], vocabulary: Vocabulary) -> np.ndarray:
    """What genes go together in the training cells, (tokens, width): mean bin, frequency, then singular vectors."""
    stacked, mean_bins, frequencies = [], np.zeros(len(vocabulary)), np.zeros(len(vocabulary))
    for cells in files:
        columns = vocabulary.tokens_of(cells.genes)
        counts = cells.training[:, columns >= 0]
        known = columns[columns >= 0]
        logs = (sparse.diags_array(3000 / np.maximum(counts.sum(axis=1), 1)) @ counts).log1p().tocoo()
        # between counting each cell and counting each file alike
        share = (1000 / counts.shape[0]) ** 0.25
        shape = (counts.shape[0], len(vocabulary))
        scaled = (logs.data * share).astype(np.float32)
        stacked.append(sparse.csr_array((scaled, (logs.row, known[logs.col])), shape=shape))
        some = counts[:400]
        tokens = tokenize(
            some.indptr, some.indices, some.data, known, config=ModelConfig(8, 1, 1, shape[1]), vocabulary=vocabulary
        )
        np.add.at(mean_bins, tokens.ids, tokens.values / len(tokens))
        np.add.at(frequencies, tokens.ids, 1 / len(tokens))
    matrix = sparse.vstack(stacked).tocsr()
    spread = np.sqrt(np.maximum((matrix * matrix).mean(axis=0) - matrix.mean(axis=0) ** 2, 2.5e-3))
    matrix = (matrix @ sparse.diags_array((1 / spread).astype(np.float32))).tocsr()
    _, values, vectors = randomized_svd(matrix, WIDEST - 2, n_iter=3, random_state=0)
    known = frequencies > 0
    extra = np.zeros((len(vocabulary), 2))
    extra[known, 0] = standard(mean_bins[known] / frequencies[known])
    extra[known, 1] = standard(np.log(frequencies[known]))
    return np.hstack([extra, vectors.T * np.sqrt(values)])


def standard(values: np.ndarray) -> np.ndarray:
    """Mean 0, standard deviation 1."""
    return (values - values.mean()) / values.std()


def variability(cells: Cells) -> np.ndarray:
    """How much each gene of a file varies beyond its mean: what a choice of highly variable genes goes by."""
    logs = cells.training.log1p()
    mean = logs.mean(axis=0)
    return ((logs * logs).mean(axis=0) - mean**2) / (mean + 1e-3)


def halves(values: np.ndarray) -> np.ndarray:
    """Lower and upper bytes of numbers below 65,536, (2, n): apart they take half the room when compressed."""
    return np.ascontiguousarray(values.astype("<u2").view(np.uint8).reshape(-1, 2).T)


def pack(files: list[Cells], output: Path) -> None:
    """Write counts by token, labels, held-out cells, initial vectors, and where all of it comes from."""
    vocabulary, expressing = build_vocabulary(files)
    steps, counts, lengths, labels, variabilities, about = [], [], [], [], [], []
    for cells in files:
        columns = vocabulary.tokens_of(cells.genes)
        known = np.flatnonzero(columns >= 0)
        known = known[np.argsort(columns[known])]
        matrix = sparse.csr_array(cells.counts[:, known])
        matrix.eliminate_zeros()
        matrix.sort_indices()
        ids = columns[known][matrix.indices]
        first = np.zeros(len(ids), dtype=bool)
        first[matrix.indptr[:-1][np.diff(matrix.indptr) > 0]] = True
        steps.append(np.where(first, ids, np.diff(ids, prepend=0)))
        counts.append(matrix.data)
        lengths.append(np.diff(matrix.indptr))
        names = sorted(set(cells.labels) - {"unknown"})
        codes = {name: code for code, name in enumerate(names)}
        labels.append(np.array([codes.get(label, -1) for label in cells.labels], dtype=np.int16))
        of_tokens = np.zeros(len(vocabulary), dtype=np.float16)
        of_tokens[columns[known]] = variability(cells)[known]
        variabilities.append(of_tokens)
        about.append({"name": cells.name, "source": cells.source, "sha256": cells.sha256, "labels": names}
                     | {"n_cells": len(cells.labels), "n_genes": len(known)})  # fmt: skip
    np.savez_compressed(
        output,
        genes=vocabulary.genes.astype("S15"),
        expressing=expressing,
        steps=halves(np.concatenate(steps)),
        counts=halves(np.concatenate(counts)),
        lengths=np.concatenate(lengths).astype(np.int32),
        labels=np.concatenate(labels),
        held_out=np.concatenate([cells.is_held_out for cells in files]),
        variability=np.stack(variabilities),
        initial=initial_gene_vectors(files, vocabulary).astype(np.float16),
        about=json.dumps(about),
    )
    for line in about:
        print(f"{line['name']}: {line['n_cells']} cells, {line['n_genes']} genes, {len(line['labels'])} labels")
    print(f"{len(vocabulary.genes)} genes, {sum(map(len, steps)):,} counts, {output.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Read the files and pack them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("demo-cells.npz"))
    options = parser.parse_args()
    pack([Cells.read(path) for path in options.files], options.output)


if __name__ == "__main__":
    main()
