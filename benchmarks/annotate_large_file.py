"""`tahoe annotate` of 100,000 cells in a file larger than the memory that it may have.

    python benchmarks/annotate_large_file.py [FOLDER] [--cells 100000] [--limit 2.5]

The cells are those of `large_file.py`: scanpy's pbmc68k, thinned. The matrix is dense, with 10,000 genes, most of which
are never expressed: 4 GB for 100,000 cells. The network is the small one with random weights, since the memory in
question is that of everything else. The limit, in GiB, is one of the address space (`ulimit -v`), of which Python with
torch takes more than it uses. Linux only.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import anndata
import h5py
import numpy as np
import pandas as pd
from large_file import small_model, tiled

import tahoe

N_GENES = 10_000


def write(path: Path, n_cells: int) -> None:
    """A dense h5ad file, a block at a time."""
    part = tiled(7000)
    genes = [*part.var_names, *(f"ENSG{90_000_000_000 + number}" for number in range(N_GENES - part.n_vars))]
    obs = pd.DataFrame({"lane": "one"}, index=[f"cell {number}" for number in range(n_cells)])
    anndata.AnnData(obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        matrix = file.create_dataset("X", (n_cells, N_GENES), "f4", chunks=(64, N_GENES))
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for start in range(0, n_cells, part.n_obs):
            block = np.zeros((min(part.n_obs, n_cells - start), N_GENES), dtype=np.float32)
            block[:, : part.n_vars] = part.X[: len(block)].toarray()
            matrix[start : start + len(block)] = block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--limit", type=float, default=2.5)
    options = parser.parse_args()
    folder, model = options.folder, small_model(options.folder)
    atlas = tahoe.datasets.pbmc68k()
    tahoe.tl.embed(atlas, model, max_length=256)
    tahoe.build_reference(atlas, folder / "blood.tahoe", obs_keys="bulk_labels")
    cells, output = folder / "cells.h5ad", folder / "annotated.zarr"
    write(cells, options.cells)
    limit = int(options.limit * 2**30)
    call = ["annotate", cells, "--reference", folder / "blood.tahoe", "--key", "bulk_labels", "-k", 15, "-o", output]
    start = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "tahoe.cli", "-q", *map(str, call), "--device", "cpu", "--dtype", "float32"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        message = f"the run failed with status {status}"
        raise SystemExit(message)
    seconds = perf_counter() - start
    told = anndata.read_zarr(output)
    print(
        f"{told.n_obs:,} cells, file {cells.stat().st_size / 2**30:.2f} GiB, limit {options.limit} GiB: {seconds:.0f} s"
        f" ({told.n_obs / seconds:.0f} cells/s), peak {usage.ru_maxrss / 2**20:.2f} GiB resident;"
        f" {told.obs['bulk_labels_tahoe'].notna().sum():,} labels"
    )


if __name__ == "__main__":
    main()
