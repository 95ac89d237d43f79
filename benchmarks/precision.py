"""How far a precision is from float32 on real cells: ``python benchmarks/precision.py CELLS.h5ad … [--dtype int8]``.

Each file's first cells are embedded in both precisions; the cosine of a cell is between its two vectors. `--model`
is a name or a folder; `70m-shape` is a network of that shape with random weights, which knows the genes of the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import torch
from end_to_end import random_model
from measuring import machine

import tahoe


def vectors(adata: anndata.AnnData, name: str, dtype: str) -> torch.Tensor:
    genes = [gene for gene in adata.var["tahoe_gene"].unique() if gene]
    model = random_model(genes, getattr(torch, dtype)) if name == "70m-shape" else name
    tahoe.tl.embed(adata, model, device="cpu", dtype=dtype, normalize=False, min_coverage=0)
    return torch.from_numpy(adata.obsm["X_tahoe"]).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    tahoe.settings.progress = False
    print(f"{machine()}\n{arguments.model}, {arguments.dtype}\n")
    print("| file | cells | genes a cell | lowest cosine | median |\n|---|---|---|---|---|")
    for file in arguments.files:
        adata = anndata.read_h5ad(file)[: arguments.cells].copy()
        tahoe.pp.map_genes(adata)
        exact, rounded = (vectors(adata, arguments.model, dtype) for dtype in ("float32", arguments.dtype))
        cosine = torch.nn.functional.cosine_similarity(exact, rounded)
        cosine, n_genes = cosine[~cosine.isnan()], adata.obs["tahoe_n_genes"].median()
        print(
            f"| {file.stem} | {len(cosine)} | {n_genes:,.0f} | {cosine.min():.6f} | {cosine.median():.6f} |", flush=True
        )


if __name__ == "__main__":
    main()
