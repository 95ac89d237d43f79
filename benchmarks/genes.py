"""Time and size of the gene mapping: ``python benchmarks/genes.py``."""

from importlib.resources import files
from time import perf_counter

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import tahoe.pp
from tahoe._genes.table import load_table

N_GENES, N_CELLS = 60_000, 1_000


def seconds(adata: AnnData, organism: str = "human", *, cold: bool) -> float:
    if cold:
        load_table.cache_clear()
    start = perf_counter()
    tahoe.pp.map_genes(adata, organism=organism)
    return perf_counter() - start


def annotated(names: list[str]) -> AnnData:
    counts = sparse.random_array((N_CELLS, len(names)), density=0.03, format="csr", rng=0, dtype=np.float32)
    return AnnData(counts, var=pd.DataFrame(index=names))


def main() -> None:
    table = load_table("human")
    ids = [f"ENSG{gene:011d}" for gene in table.vocabulary[:N_GENES]]
    symbols = table.names[(table.tiers < 5) & ~table.names.str.startswith("ENSG")]
    symbols = list(symbols[np.linspace(0, len(symbols) - 1, N_GENES).astype(int)])
    mouse = [name for name in load_table("mouse").names if not name.startswith("ENSMUSG")][:N_GENES]
    cases = {
        "Ensembl ids": (ids, "human"),
        "Ensembl ids with versions": ([f"{gene}.7" for gene in ids], "human"),
        "names of all kinds": (symbols, "human"),
        "the same, every third as R writes it": (
            [name.replace("-", ".") if i % 3 == 0 else name for i, name in enumerate(symbols)],
            "human",
        ),
        "mouse names": (mouse, "mouse"),
    }
    print(f"| {N_GENES:,} genes, {N_CELLS:,} cells | with reading the table | again |\n|---|---|---|")
    for label, (names, organism) in cases.items():
        adata = annotated(names)
        cold, warm = (min(seconds(adata, organism, cold=cold) for _ in range(3)) for cold in (True, False))
        print(f"| {label} | {cold:.2f} s | {warm:.2f} s |")
    for name in ("genes_human.npz", "genes_mouse.npz"):
        print(f"{name}: {files('tahoe').joinpath('data', name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
