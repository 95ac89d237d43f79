"""What the speed benchmarks share: cells, networks, the work that they are, and the best that the machine can do.

Needs torch, numpy and `tahoe.model` alone.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.model import ModelConfig, Network, TahoeModel, Tokens, Vocabulary
from tahoe.model.cpu.linear import has_onednn, product
from tahoe.model.cpu.threads import n_threads, parallel_for
from tahoe.model.network.attention import choose_attention
from tahoe.model.training import new_network

if TYPE_CHECKING:
    from collections.abc import Callable

N_GENES = 62_710
SMALL = ModelConfig(
    512,
    12,
    8,
    N_GENES + 10,
    activation="relu",
    gene_norm=True,
    value_norm=True,
    decoder_layers=1,
    mvc_scaled=True,
    precision="amp_bf16",
)
SHAPES = {
    "70m": SMALL,
    "1b": replace(SMALL, d_model=2048, n_layers=24, n_heads=16),
    "3b": replace(SMALL, d_model=2560, n_layers=32, n_heads=20, activation="gelu", vocab_size=N_GENES + 11),
    "tiny": replace(SMALL, d_model=64, n_layers=2, n_heads=4),
}
# Tokens a cell, at most 2,048: quantiles over six public sets of human cells, each with the same weight (pancreas,
# heart, lung, three of blood and immune cells; 7,223 cells).
QUANTILES = [
    155, 384, 470, 536, 610, 680, 743, 813, 880, 960, 1044, 1117, 1192, 1256, 1326, 1406, 1468, 1545, 1625, 1717, 1824,
    1919, 1990, 2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048,
]  # fmt: skip


def draw_lengths(n_cells: int, seed: int = 0) -> np.ndarray:
    """Tokens of each cell, spread evenly over the distribution of real cells and then shuffled."""
    shares = (np.arange(n_cells) + 0.5) / n_cells
    lengths = np.interp(shares, np.linspace(0, 1, len(QUANTILES)), QUANTILES).astype(np.int64)
    return np.random.default_rng(seed).permutation(lengths)


def draw_tokens(lengths: np.ndarray, seed: int = 0) -> Tokens:
    """Cells of these lengths: random genes, in rising order, with bins as skewed as those of counts."""
    rng = np.random.default_rng(seed)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids, values = np.ones(bounds[-1], np.int64), np.full(bounds[-1], -2, np.float32)
    for start, stop in zip(bounds[:-1] + 1, bounds[1:], strict=True):
        ids[start:stop] = 3 + np.sort(rng.choice(N_GENES, stop - start, replace=False))
        values[start:stop] = np.ceil(50 * rng.random(stop - start) ** 3)
    return Tokens(ids, values, bounds, lengths - 1)


def draw_model(
    shape: str, device: str | torch.device, dtype: torch.dtype, network: Network | None = None
) -> TahoeModel:
    """A network of a released shape with random weights, or a copy of one; the same in each precision."""
    config, device = SHAPES[shape], torch.device(device)
    network = new_network(config, device=device) if network is None else deepcopy(network)
    network.eval().requires_grad_(False).set_precision(dtype)
    vocabulary = Vocabulary({"<pad>": 0, "<cls>": 1, "<eoc>": 2, **{f"ENSG{i:011}": i + 3 for i in range(N_GENES)}})
    return TahoeModel(shape, network, vocabulary, device, choose_attention(None, device, dtype, config.d_model))


def operations(config: ModelConfig, lengths: np.ndarray) -> float:
    """Multiplications and additions in the layers, for embeddings of cells: of the last layer only what is computed."""
    n, width = lengths.astype(float), config.d_model
    linear = 2 * width**2 * (4 + 2 * config.expansion_ratio)
    last = 4 * width**2 * n + 4 * width * n + linear
    return float(((config.n_layers - 1) * (linear * n + 4 * width * n**2) + last).sum())


def best_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """The best rate of matrix products that is found here, operations a second, over several sizes and ways."""
    rates = []
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        ways = [(1, lambda a=a, b=b: a @ b)]
        if device.type == "cpu" and has_onednn():
            n = n_threads()
            ways += [
                (1, lambda a=a, b=b: product(a, b)),
                (4 * n, lambda a=a, b=b, n=n: parallel_for(lambda _: product(a, b), range(4 * n))),
            ]
        for n_products, way in ways:
            seconds = min(measured(way, device) for _ in range(repeats))
            rates.append(n_products * 2 * size**3 / seconds)
    return max(rates)


@torch.inference_mode()
def measured(function: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that a call takes, to the end of the device's work."""
    start = time.perf_counter()
    function()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def start_peak() -> int:
    """Memory of this process now, in bytes, from which on its peak is measured (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Most memory that this process has held, in bytes, since `start_peak`."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(device: torch.device | None = None) -> str:
    """What was measured on: date, processor or GPU, cores, versions."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {name}, {torch.backends.cpu.get_cpu_capability()}, {n_threads()} cores,"
        f" load {load}, Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )
