"""Workers of a dask cluster against plain processes, one thread each: ``python benchmarks/cluster.py [CELLS] [PAIRS]``.

In turn, on the same file: two independent processes with half of the cells each, one dask worker, two dask workers. The
time is that of `tahoe.embed_file` in processes that have loaded the model, so it has no start-up in it. dask's profiler
of its workers is off, as `docs/guide/large_data.md` advises.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the workers

import dask
import distributed
import torch
from large_file import tiled

import tahoe

CELLS_PER_SHARD = 512
# A process of its own: loads the model, says so, waits for a line, embeds, and says how long it took.
PLAIN = """
import sys, time, tahoe
tahoe.settings.progress = False
model = tahoe.load_model("demo", device="cpu", dtype="float32")
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
tahoe.embed_file(sys.argv[1], sys.argv[2], model, cells_per_shard=int(sys.argv[3]))
print(time.perf_counter() - start)
"""


def plain(files: list[Path], folder: Path) -> float:
    """Seconds that independent processes take, started together, until the last one is done."""
    commands = [
        [
            sys.executable,
            "-c",
            PLAIN,
            str(cells),
            str(folder / f"{cells.stem}-{perf_counter()}.zarr"),
            str(CELLS_PER_SHARD),
        ]
        for cells in files
    ]
    running = [subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for each in commands]
    for process in running:
        process.stdout.readline()
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in running)


def on_workers(n_workers: int, cells: Path, folder: Path) -> float:
    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),
        distributed.LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        embed = {
            "model": "demo",
            "device": "cpu",
            "dtype": "float32",
            "cells_per_shard": CELLS_PER_SHARD,
            "client": client,
        }
        tahoe.embed_file(folder / "few.h5ad", folder / f"few-{perf_counter()}.zarr", **embed)
        start = perf_counter()
        tahoe.embed_file(cells, folder / f"all-{perf_counter()}.zarr", **embed)
        return perf_counter() - start


def main(n_cells: int, n_pairs: int, folder: Path) -> None:
    tahoe.settings.progress = False
    cells = tiled(n_cells)
    cells.write_h5ad(folder / "cells.h5ad")
    cells[: 4 * CELLS_PER_SHARD].copy().write_h5ad(folder / "few.h5ad")
    halves = [folder / "first.h5ad", folder / "second.h5ad"]
    cells[: n_cells // 2].copy().write_h5ad(halves[0])
    cells[n_cells // 2 :].copy().write_h5ad(halves[1])
    runs = {
        "two processes": lambda: plain(halves, folder),
        "one worker": lambda: on_workers(1, folder / "cells.h5ad", folder),
        "two workers": lambda: on_workers(2, folder / "cells.h5ad", folder),
    }
    print(f"torch {torch.__version__}, dask.distributed {distributed.__version__}, {n_cells:,} cells, demo model")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_pairs):
        for name, run in runs.items():
            seconds[name].append(run())
            print(f"{name}: {seconds[name][-1]:.1f} s, {n_cells / seconds[name][-1]:,.0f} cells/s", flush=True)
    for first, second in (
        ("two processes", "two workers"),
        ("one worker", "two workers"),
    ):
        ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
        print(
            f"throughput of {second} / {first}: median {median(ratios):.3f} ({', '.join(f'{r:.3f}' for r in ratios)})"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(int((sys.argv[1:2] or ["46000"])[0]), int((sys.argv[2:3] or ["3"])[0]), Path(place))
