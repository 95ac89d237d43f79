"""Peak memory of `tahoe embed` on files of 30,000 and 300,000 cells: ``python benchmarks/large_file.py [FOLDER]``.

The cells are the 700 of scanpy's pbmc68k, tiled, each copy thinned to a random share of its counts with a fixed seed.
The network is a small one with random weights, since the memory in question is that of everything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import tahoe
from tahoe.model import ModelConfig, TahoeModel, Vocabulary
from tahoe.model.training import new_network

SIZES = (30_000, 300_000)


def tiled(n_cells: int, seed: int = 0) -> anndata.AnnData:
    """Real cells over and over, each copy with a share of its counts between a half and all."""
    cells = tahoe.datasets.pbmc68k()
    generator = np.random.default_rng(seed)
    counts = cells.X.tocsr()
    blocks = []
    for start in range(0, n_cells, cells.n_obs):
        block = counts[: min(cells.n_obs, n_cells - start)].copy()
        share = np.repeat(generator.uniform(0.5, 1, block.shape[0]), np.diff(block.indptr))
        block.data = generator.binomial(block.data.astype(np.int64), share).astype(np.float32)
        block.eliminate_zeros()
        blocks.append(block)
    obs = pd.DataFrame(index=[f"cell {i}" for i in range(n_cells)])
    return anndata.AnnData(sparse.vstack(blocks, format="csr"), obs=obs, var=cells.var)


def small_model(folder: Path) -> Path:
    """A network of 2 layers × 64 that knows the genes of these cells."""
    cells = tahoe.datasets.pbmc68k()
    tahoe.pp.map_genes(cells)
    genes = sorted(set(cells.var["tahoe_gene"]) - {""})
    vocabulary = Vocabulary({token: i for i, token in enumerate(["<pad>", "<cls>", "<eoc>", *genes])})
    config = ModelConfig(64, 2, 4, len(vocabulary), gene_norm=True, value_norm=True, decoder_layers=1)
    network = new_network(config, seed=0).eval().requires_grad_(False)
    TahoeModel("small", network, vocabulary, torch.device("cpu"), "sdpa").save(folder / "small-model")
    return folder / "small-model"


def run(cells: Path, output: Path, model: Path) -> tuple[float, float]:
    """Seconds, and peak memory in MiB, of the command as a process of its own."""
    command = [sys.executable, "-m", "tahoe.cli", "-q", "embed", cells, "-o", output, "--model", model]
    start = perf_counter()
    process = subprocess.Popen([*map(str, command), "--dtype", "float32"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # what /usr/bin/time -v prints
    if status:
        message = f"the run on {cells} failed"
        raise SystemExit(message)
    return perf_counter() - start, usage.ru_maxrss / 1024


def main(folder: Path) -> None:
    model = small_model(folder)
    print(f"torch {torch.__version__}, anndata {version('anndata')}, {os.cpu_count()} cores")
    print("| cells | file | seconds | cells/s | peak memory |\n|---|---|---|---|---|")
    peaks = []
    for n_cells in SIZES:
        cells = folder / f"cells-{n_cells}.h5ad"
        if not cells.exists():
            # in a process of its own: what this one holds would count as memory of those that it starts
            subprocess.run([sys.executable, __file__, str(n_cells), str(cells)], check=True)
        seconds, peak = run(cells, folder / f"out-{n_cells}.zarr", model)
        peaks.append(peak)
        size = cells.stat().st_size / 2**20
        print(
            f"| {n_cells:,} | {size:,.0f} MiB | {seconds:.0f} | {n_cells / seconds:,.0f} | {peak:,.0f} MiB |",
            flush=True,
        )
    print(f"ratio of the peaks: {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        tiled(int(sys.argv[1])).write_h5ad(sys.argv[2])
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
