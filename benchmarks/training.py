"""Speed and memory of training: `speed` (the former attention beside the present one), `loader`, `memory`.

    python benchmarks/training.py speed [--shapes 70m demo] [--cells 8]
    python benchmarks/training.py loader|memory

`speed` runs one step of each way in turn, on the same cells of real lengths. `loader` measures how fast cells come from
a file, tokenised and masked, beside how fast the network takes them. `memory` trains on 30,000 and on 300,000 cells in
a file, each in a process of its own, and prints the peaks.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import SHAPES, best_rate, draw_lengths, draw_tokens, machine, peak, start_peak

from tahoe.model import ModelConfig, Tokens, load_model
from tahoe.model.training import TrainingPlan, make_optimizer, mask_tokens, masked_batch, masked_losses, new_network
from tahoe.model.training.objective import Objective
from tahoe.model.training.passes import made

CPU = torch.device("cpu")


def config_of(shape: str) -> ModelConfig:
    return load_model("demo", device="cpu").config if shape == "demo" else SHAPES[shape]


def work(config: ModelConfig, lengths: np.ndarray, masked: np.ndarray) -> float:
    """Multiplications and additions of a step in the layers, where only visible keys are seen; twice as many back."""
    n, width = lengths.astype(float), config.d_model
    linear = 2 * width**2 * (4 + 2 * config.expansion_ratio) * n
    return float(3 * config.n_layers * (linear + 4 * width * n * (n - masked)).sum())


def speed(arguments: argparse.Namespace) -> None:
    """Tokens a second of a whole step, pair by pair."""
    best = {dtype: best_rate(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(f"best matrix products: {best[torch.float32] / 1e9:.0f} and {best[torch.bfloat16] / 1e9:.0f} GFLOP/s\n")
    print("| shape | precision | cells | tokens | former tokens/s | present tokens/s | ratio | share of the best |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for shape in arguments.shapes:
        config = config_of(shape)
        for bfloat16 in (False, True):
            lengths = draw_lengths(arguments.cells)
            tokens = draw_tokens(lengths)
            tokens = Tokens(tokens.ids % (config.vocab_size - 1), tokens.values, tokens.bounds, tokens.n_genes)
            masked = mask_tokens(tokens, np.random.default_rng(0), 0.5)
            steps = [step_of(config, tokens, masked, bfloat16, dense) for dense in (False, True)]
            times: list[list[float]] = [[], []]
            for repeat in range(arguments.repeats + 1):
                for number, step in enumerate(steps):
                    start = time.perf_counter()
                    step()
                    if repeat:  # the first one makes the moments
                        times[number].append(time.perf_counter() - start)
            before, now = map(statistics.median, times)
            ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
            precision = torch.bfloat16 if bfloat16 else torch.float32
            hidden = np.add.reduceat(masked, tokens.bounds[:-1])
            share = work(config, lengths, hidden) / now / best[precision]
            name = str(precision).removeprefix("torch.")
            rates = f"{len(tokens.ids) / before:,.0f} | {len(tokens.ids) / now:,.0f} | {ratio:.2f}"
            print(f"| {shape} | {name} | {len(lengths)} | {len(tokens.ids):,} | {rates} | {share:.0%} |", flush=True)


def step_of(config: ModelConfig, tokens: Tokens, masked: np.ndarray, bfloat16: bool, dense: bool):
    """A step of training, one attention call a cell with a mask, or dense batches without one."""
    network = new_network(config).train().requires_grad_(True)
    plan = TrainingPlan(steps=100, bfloat16=bfloat16)
    optimizer, objective = make_optimizer(network, plan), Objective(network)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            if dense:
                part = made(tokens, masked, plan, config, CPU)
                loss = objective(part.batch, part.targets, part.who).mean() / masked.sum()
            else:
                loss = masked_losses(network, *masked_batch(tokens, masked, config, CPU)).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        optimizer.step()

    return step


def write_cells(path: Path, n_cells: int, n_genes: int = 20_000, per_cell: int = 1000) -> None:
    """A file of random cells, written in pieces."""
    import anndata
    import h5py
    import pandas as pd
    from scipy import sparse

    model = load_model("demo", device="cpu")
    names = [*model.vocabulary.genes][:n_genes]
    rng, piece = np.random.default_rng(0), 10_000
    var, empty = pd.DataFrame(index=names), sparse.csr_matrix((n_cells, len(names)), dtype=np.float32)
    anndata.AnnData(empty, var=var, obs=pd.DataFrame(index=[f"c{i}" for i in range(n_cells)])).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            del group[name]
            group.create_dataset(name, shape=(n_cells * per_cell,), dtype=dtype, chunks=(1 << 18,))
        group["indptr"][:] = np.arange(n_cells + 1) * per_cell
        starts = rng.integers(0, len(names) - per_cell, n_cells)
        for first in range(0, n_cells, piece):
            here = slice(first * per_cell, min(first + piece, n_cells) * per_cell)
            columns = starts[first : first + piece, None] + np.arange(per_cell)
            group["indices"][here] = columns.ravel().astype(np.int32)
            group["data"][here] = rng.geometric(0.4, columns.size).astype(np.float32)


def loader(arguments: argparse.Namespace) -> None:
    """Tokens a second of the cells alone."""
    from tahoe._cells.opening import open_source
    from tahoe._training.continue_training import _inputs, _mixed
    from tahoe.model.training.processes import ALONE

    model = load_model("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_cells(path, 30_000)
        with open_source(path) as opened:
            inputs = _inputs(opened, model, 0, {})
            plan = TrainingPlan.named("continuation", steps=200, cells_per_step=64)
            cells = _mixed(model, [inputs], None, 0.0, plan, ALONE)
            times, n_tokens = [time.perf_counter()], 0
            for tokens, _ in cells.lots(0, plan.steps):
                n_tokens += len(tokens.ids)
                times.append(time.perf_counter())
            cells.close()
    print(f"loader: {n_tokens / (times[-1] - times[0]):,.0f} tokens/s, longest wait {max(np.diff(times)):.2f} s")


def train_once(path: str) -> None:
    import tahoe

    tahoe.settings.progress = False
    before = start_peak()
    plan = TrainingPlan.named("continuation", steps=150, cells_per_step=64, max_length=32, validate_every=1000)
    with tempfile.TemporaryDirectory() as folder:
        tahoe.continue_training(path, "demo", plan, f"{folder}/out", validation=0.001)
    print(f"{before / 2**20:.0f} MiB at first, {peak() / 2**20:.0f} MiB at most")


def memory(arguments: argparse.Namespace) -> None:
    """Peaks of runs on files of two sizes, of 9,600 cells each."""
    with tempfile.TemporaryDirectory() as folder:
        for n_cells in (30_000, 300_000):
            path = Path(folder) / f"{n_cells}.h5ad"
            write_cells(path, n_cells, per_cell=300)
            size = path.stat().st_size / 2**20
            found = subprocess.run(
                [sys.executable, __file__, "once", str(path)], check=True, capture_output=True, text=True
            ).stdout.strip()
            print(f"{n_cells:,} cells, {size:,.0f} MiB: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "loader", "memory", "once"])
    parser.add_argument("path", nargs="?")
    parser.add_argument("--shapes", nargs="+", default=["demo", "70m"])
    parser.add_argument("--cells", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part == "once":
        train_once(arguments.path)
        return
    print(f"\n## {arguments.part}: {machine(CPU)}, {arguments.threads} thread(s)\n")
    {"speed": speed, "loader": loader, "memory": memory}[arguments.part](arguments)


if __name__ == "__main__":
    main()
