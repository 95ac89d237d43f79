"""References of a million cells and more: building, opening, searching, with and without the index.

    python benchmarks/search_libraries.py vectors DATA vectors.npy --cells 1000000
    python benchmarks/search_scale.py build vectors.npy     # vectors.zarr, vectors.tahoe
    python benchmarks/search_scale.py search vectors.npy    # in a fresh process

The last 1,000 vectors are the queries. Times of the processor and of the clock; memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr
from measuring import machine, peak, start_peak

import tahoe
from tahoe._reference.embeddings import unit

N_QUERIES, K = 1000, 50
RECORD = {
    "tahoe_version": "0", "model": "demo", "model_sha256": "of no model", "vocabulary_sha256": "of no model",
    "max_length": 2048, "seed": 0, "normalize": True,
}  # fmt: skip


def store(path: Path) -> Path:
    """The vectors as `tahoe.embed_file` writes them."""
    place, vectors = path.with_suffix(".zarr"), np.load(path, mmap_mode="r")[:-N_QUERIES]
    if place.exists():
        return place
    adata = anndata.AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(len(vectors))]))
    adata.uns["X_tahoe"] = RECORD
    adata.write_zarr(place)
    root = zarr.open_group(place, mode="r+", use_consolidated=False)
    rows = root["obsm"].create_array("X_tahoe", shape=vectors.shape, dtype="float16", chunks=(4096, vectors.shape[1]))
    rows.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for start in range(0, len(vectors), 65_536):
        rows[start : start + 65_536] = vectors[start : start + 65_536]
    zarr.consolidate_metadata(root.store)
    return place


def build(path: Path) -> None:
    source, target = store(path), path.with_suffix(".tahoe")
    shutil.rmtree(target, ignore_errors=True)
    before, clock, processor = start_peak(), time.perf_counter(), time.process_time()
    atlas = tahoe.build_reference(source, target, stored_dtype="float16", index=True, n_held_back=200, resume=True)
    seconds, of_core = time.perf_counter() - clock, time.process_time() - processor
    sizes = {kind: sum(f.stat().st_size for f in (target / kind).iterdir()) / 1e9 for kind in ("vectors", "index")}
    print(f"{machine()}\n{atlas}: built in {seconds:.0f} s ({of_core:.0f} s of one core), peak {peak() / 1e9:.2f} GB")
    print(f"({before / 1e9:.2f} before); vectors {sizes['vectors']:.2f} GB, index {sizes['index']:.2f} GB")


def search(path: Path) -> None:
    queries = unit(np.load(path, mmap_mode="r")[-N_QUERIES:])
    before, clock = start_peak(), time.perf_counter()
    atlas = tahoe.load_reference(path.with_suffix(".tahoe"))
    atlas.nearest(queries[:1], K)
    print(f"opened, and one cell looked up, in {time.perf_counter() - clock:.2f} s;", end=" ")
    print(f"{(peak() - before) / 2**20:.0f} MiB more than before")
    found = {}
    for exact in (False, True):
        clock, processor = time.perf_counter(), time.process_time()
        found[exact], _ = atlas.nearest(queries, K, exact=exact)
        seconds, of_core = time.perf_counter() - clock, time.process_time() - processor
        each, of_core = 1000 * seconds / N_QUERIES, 1000 * of_core / N_QUERIES
        print(f"exact={exact}: {each:.2f} ms a query ({of_core:.2f} ms of one core), peak {peak() / 1e9:.2f} GB")
    shares = [len(np.intersect1d(a, b)) / K for a, b in zip(found[False], found[True], strict=True)]
    print(f"recall@{K} {np.mean(shares):.4f}, lowest {np.min(shares):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["build", "search"])
    parser.add_argument("vectors", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    tahoe.settings.progress = False
    {"build": build, "search": search}[options.step](options.vectors)


if __name__ == "__main__":
    main()
