"""How fast cells become tokens, and whether every bin is that of the definition.

    python benchmarks/tokenizer.py [CELLS.h5ad ...]

Columns are genes in the order of the tokens, or in any other. Without a file it takes the cells of
`tahoe.datasets.pbmc68k`. Each file holds counts in ``X``.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import numpy as np
import torch
from measuring import machine
from scipy import sparse

import tahoe
from tahoe.model import ModelConfig, Vocabulary, tokenize
from tahoe.model.tokens import tokenizer
from tahoe.model.tokens.tokenizer import GRADES

REPEATS = 7


def slow_bins(values: np.ndarray) -> np.ndarray:
    """The definition, for one cell, in torch."""
    row = torch.from_numpy(values.astype(np.float32))
    ordered = row.sort().values
    rank = torch.from_numpy(GRADES) * (len(row) - 1)
    edges = torch.lerp(ordered[rank.floor().long()], ordered[rank.ceil().long()], rank - rank.floor())
    return torch.searchsorted(edges, row).float().numpy() + 1


def rate(matrix: sparse.csr_array, columns: np.ndarray, model: dict[str, Any], max_length: int | None = None) -> float:
    """Cells tokenised in a second of a core, in blocks of 256; the median."""
    blocks = [matrix[start : start + 256] for start in range(0, matrix.shape[0], 256)]
    seconds = []
    for _ in range(REPEATS):
        start = time.thread_time()
        for block in blocks:
            tokenize(block.indptr, block.indices, block.data, columns, max_length=max_length, **model)
        seconds.append(time.thread_time() - start)
    return matrix.shape[0] / statistics.median(seconds)


def measure(name: str, matrix: sparse.csr_array) -> tuple[int, int]:
    """Print a row of the table; return how many bins were compared, and how many differ."""
    n_cells, n_genes = matrix.shape
    vocabulary = Vocabulary({"<pad>": 0, "<cls>": 1, **{f"gene{i}": i + 2 for i in range(n_genes)}})
    model = {"config": ModelConfig(8, 1, 1, len(vocabulary)), "vocabulary": vocabulary}
    columns = np.arange(n_genes) + 2
    shuffled = np.random.default_rng(0).permutation(columns)
    rates = [rate(matrix, columns, model), rate(matrix, shuffled, model), rate(matrix, shuffled, model, 1024)]
    with mock.patch.object(tokenizer, "_compiled", return_value=None):
        rates.append(rate(matrix, shuffled, model))
    tokens = tokenize(matrix.indptr, matrix.indices, matrix.data, columns, max_length=None, **model)
    differ = sum(
        int((tokens.values[a + 1 : b] != slow_bins(matrix.data[c:d])).sum())
        for a, b, c, d in zip(tokens.bounds, tokens.bounds[1:], matrix.indptr, matrix.indptr[1:], strict=False)
        if d > c
    )
    print(
        f"| {name} | {n_cells:,} | {matrix.nnz / n_cells:,.0f} | {' | '.join(f'{rate:,.0f}' for rate in rates)}"
        f" | {differ:,} of {matrix.nnz:,} |",
        flush=True,
    )
    return matrix.nnz, differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    torch.set_num_threads(1)
    print(f"{machine()}; processor time of one core, medians of {REPEATS}\n")
    print(
        "| cells | number | genes a cell | cells/s | any order of the genes | and at most 1,024 tokens | without numba"
        " | bins that differ |"
    )
    print("|---|---|---|---|---|---|---|---|")
    sets = {path.stem: anndata.read_h5ad(path).X for path in files} or {"pbmc68k": tahoe.datasets.pbmc68k().X}
    total = np.zeros(2, dtype=int)
    for name, counts in sets.items():
        matrix = sparse.csr_array(counts)
        matrix.sort_indices()
        matrix.eliminate_zeros()
        total += measure(name, matrix)
        sums = matrix.sum(axis=1)
        logs = (sparse.diags_array(np.float32(1e4) / np.maximum(sums, 1)) @ matrix).log1p().astype(np.float32)
        total += measure(f"{name}, log-normalised", sparse.csr_array(logs))
    print(f"\n{total[1]:,} of {total[0]:,} bins differ from the definition")


if __name__ == "__main__":
    main()
