"""Peak memory of ``tl.attention`` by the number of cells: ``python benchmarks/attention_memory.py``.

Real cells with 768 tokens each (those of ``tests/data/heart.npz``, over and over), the demo model, attention
among 500 genes. Each number of cells runs in a process of its own.
"""

import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

MAX_LENGTH, N_GENES = 768, 500


def measure(n_cells: int) -> None:
    import anndata
    import numpy as np
    import pandas as pd
    from scipy import sparse

    import tahoe

    with np.load(Path(__file__).parents[1] / "tests" / "data" / "heart.npz") as file:
        shape = (len(file["indptr"]) - 1, len(file["genes"]))
        counts = sparse.csr_matrix((file["data"].astype(np.float32), file["indices"], file["indptr"]), shape=shape)
        var = pd.DataFrame(index=pd.Index(file["genes"].astype(object)))
    rows = np.arange(n_cells) % shape[0]
    adata = anndata.AnnData(counts[rows], obs=pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]), var=var)
    model = tahoe.load_model("demo", device="cpu")
    known = model.vocabulary.tokens_of(var.index) >= 0
    often = np.argsort(-(counts.getnnz(axis=0) * known), kind="stable")[:N_GENES]
    before = peak()
    start = perf_counter()
    with tahoe.settings.override(progress=False):
        tahoe.tl.attention(adata, model, genes=var.index[often], max_length=MAX_LENGTH)
    size = (adata.X.data.nbytes + adata.X.indices.nbytes) / 2**20
    print(f"| {n_cells:,} | {size:.0f} MiB | {before:.0f} MiB | {peak():.0f} MiB | {perf_counter() - start:.0f} s |")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    print("| cells | their counts | peak before | peak after | time |\n|---|---|---|---|---|", flush=True)
    for n_cells in (100, 300, 1000):
        subprocess.run([sys.executable, __file__, str(n_cells)], check=True)


if __name__ == "__main__":
    measure(int(sys.argv[1])) if len(sys.argv) > 1 else main()
