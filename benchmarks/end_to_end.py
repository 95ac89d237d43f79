"""From an h5ad file on disk to `obsm`, beside the network alone on the same cells.

    python benchmarks/end_to_end.py [CELLS.h5ad] [--model demo] [--cells 700] [--dtype float32]

Without a file it writes the cells of `tahoe.datasets.pbmc68k` to one. `--model 70m-shape` is a network of that shape
with random weights, which knows the genes of the file; other names are those of `tahoe.load_model`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import torch
from measuring import SHAPES, machine, measured, peak, start_peak

import tahoe
from tahoe.model import TahoeModel, Vocabulary
from tahoe.model.network.attention import choose_attention
from tahoe.model.training import new_network

if TYPE_CHECKING:
    from collections.abc import Callable


def random_model(genes: list[str], dtype: torch.dtype) -> TahoeModel:
    """A network of the 70m shape that knows these genes."""
    ids = {"<pad>": 0, "<cls>": 1, "<eoc>": 2, **{gene: i + 3 for i, gene in enumerate(sorted(genes))}}
    config, cpu = SHAPES["70m"], torch.device("cpu")
    network = new_network(config).eval().requires_grad_(False).set_precision(dtype)
    return TahoeModel("70m-shape", network, Vocabulary(ids), cpu, choose_attention(None, cpu, dtype, config.d_model))


def taken(function: Callable[[], None]) -> tuple[float, float]:
    """Time and processor time of a call; the second is not disturbed by other work on the machine."""
    start = time.process_time()
    return measured(function), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cells", type=int, default=700)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    tahoe.settings.progress = False
    adata = anndata.read_h5ad(arguments.file) if arguments.file else tahoe.datasets.pbmc68k()
    adata = adata[: arguments.cells].copy()
    tahoe.pp.map_genes(adata)
    genes = [gene for gene in adata.var["tahoe_gene"].unique() if gene]
    if arguments.model == "70m-shape":
        model = random_model(genes, getattr(torch, arguments.dtype or "float32"))
    else:
        model = tahoe.load_model(arguments.model, device="cpu", dtype=arguments.dtype)
    columns = model.vocabulary.tokens_of(adata.var["tahoe_gene"].to_numpy())
    tokens = model.tokenize(adata.X.tocsr(), columns, max_length=2048)
    # as many at once as the engine takes
    cuts = np.unique(np.searchsorted(tokens.bounds, np.arange(0, tokens.bounds[-1] + (1 << 16), 1 << 16)))
    print(machine(), f"{model!r}", f"{len(tokens)} cells, {len(tokens.ids) / len(tokens):,.0f} tokens each", sep="\n")
    alone, whole, most = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        for name in ("tahoe_gene", "tahoe_match"):
            del adata.var[name]
        del adata.uns["tahoe_genes"]
        adata.write_h5ad(path)

        def embed() -> None:
            tahoe.tl.embed(anndata.read_h5ad(path), model)

        def network() -> None:
            for start, stop in zip(cuts, cuts[1:], strict=False):
                model.embed_cells(tokens.cells(int(start), min(int(stop), len(tokens))))

        embed()  # imports, compiles
        for _ in range(arguments.repeats):
            alone.append(taken(network))
            before = start_peak()
            whole.append(taken(embed))
            most = max(most, peak() - before)
    for kind, name in enumerate(("time", "processor time")):
        ends, nets = ([seconds[kind] for seconds in runs] for runs in (whole, alone))
        ratios = [end / net - 1 for end, net in zip(ends, nets, strict=True)]
        print(
            f"network alone {len(tokens) / statistics.median(nets):.2f} cells/s, from the file"
            f" {len(tokens) / statistics.median(ends):.2f} cells/s: {statistics.median(ratios):+.1%} {name}"
            f" (pairwise median, {min(ratios):+.1%} to {max(ratios):+.1%})"
        )
    print(f"{most / 2**20:,.0f} MB above the model at most")


if __name__ == "__main__":
    main()
