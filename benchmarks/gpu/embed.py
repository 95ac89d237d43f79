"""How fast cells go through networks of the released shapes on a GPU, with tokenising and without.

    python benchmarks/gpu/embed.py [--shapes 70m 1b 3b] [--cells 1024] [--compile]

It runs with torch, numpy, scipy and what `tahoe.model` needs (numba, if it is there, makes tokens faster). Weights are
random, the lengths of the cells are those of real ones. `--device cpu --shapes tiny --cells 8` tries it without a GPU.

Measured in turns, in one run: the network alone, on tokens that lie on the device, with the norms in kernels of their
own and without, with each attention; the whole way from counts, as the verbs go it; and the usual way, in padded
batches of 64 with padding removed inside attention. The larger the shape, the fewer cells.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import SHAPES, best_rate, draw_lengths, draw_model, draw_tokens, machine, measured, operations

from tahoe._run.batches import CellBatches, embed_cells
from tahoe.model.cuda import fused
from tahoe.model.network.attention import ATTENTION, Spans
from tahoe.model.network.block import add
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tahoe.model import TahoeModel, Tokens
    from tahoe.model.network.block import TransformerBlock

PADDED = 64
# Of the cells that are asked for, so many take part.
SHARE = {"1b": 6, "3b": 10}


def counts_of(tokens: Tokens, n_genes: int) -> list[sparse.csr_array]:
    """Counts of the genes that these tokens are of, in blocks of 512 cells, in the order of the vocabulary."""
    genes = tokens.ids >= 3
    counts = np.random.default_rng(0).geometric(0.3, genes.sum()).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(tokens.n_genes)])
    rows = sparse.csr_array((counts, (tokens.ids[genes] - 3).astype(np.int32), indptr), shape=(len(tokens), n_genes))
    return [rows[start : start + 512] for start in range(0, len(tokens), 512)]


def from_counts(model: TahoeModel, blocks: list[sparse.csr_array], n_cells: int, token_budget: int) -> Tensor:
    """The whole way, as `tahoe.tl.embed` goes it."""
    columns = np.arange(3, model.config.vocab_size)
    stream = CellBatches(blocks, columns, n_cells, 2048, token_budget=token_budget)
    return torch.from_numpy(embed_cells(model, stream, normalize=False)[0])


def cut(bounds: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Batches of at most so many tokens, in order."""
    cuts = [0]
    while cuts[-1] < len(bounds) - 1:
        last = int(np.searchsorted(bounds, bounds[cuts[-1]] + budget, side="right")) - 1
        cuts.append(max(last, cuts[-1] + 1))
    return list(itertools.pairwise(cuts))


def padded_layer(
    layer: TransformerBlock, x_PD: Tensor, update_PD: Tensor | None, present_P: Tensor, spans: Spans, attention: str
) -> tuple[Tensor, Tensor | None]:
    """A layer over cells and their padding (P), in which only attention drops the padding."""
    x_PD, h_PD = layer._before(x_PD, update_PD, layer.attention_norm)
    q, k, v = (layer.heads(t[present_P]) for t in layer.qkv(h_PD).chunk(3, dim=-1))
    context_PD = torch.zeros_like(h_PD)
    context_PD[present_P] = ATTENTION[attention](q, k, v, spans, spans, None).flatten(-2)
    return layer._finish(x_PD, context_PD)


def padded(model: TahoeModel, tokens: Tokens) -> Tensor:
    """The usual way: batches of equally many cells, padded to the longest."""
    network, found = model.network, []
    for start in range(0, len(tokens), PADDED):
        cells = tokens.cells(start, min(start + PADDED, len(tokens)))
        batch, longest = model.batch(cells), int(cells.lengths.max())
        lengths = torch.from_numpy(cells.lengths).to(model.device)
        present_P = (torch.arange(longest, device=model.device) < lengths[:, None]).flatten()
        ids_P = torch.zeros(present_P.shape, dtype=torch.int64, device=model.device)
        values_P = torch.full(present_P.shape, -2.0, device=model.device)
        ids_P[present_P], values_P[present_P] = batch.ids_T, batch.values_T
        x_PD, update_PD = network.gene_inputs(ids_P) + network.value.encode(values_P), None
        for layer in network.layers:
            x_PD, update_PD = padded_layer(layer, x_PD, update_PD, present_P, batch.cells, model.attention)
        found.append(network.norm(add(x_PD, update_PD)[::longest]))
    return torch.cat(found).cpu()


def busy(run: Callable[[], object], device: torch.device) -> float:
    """Share of the time in which a kernel runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = measured(run, device)
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / seconds


def without_kernels(run: Callable[[], Tensor]) -> Tensor:
    """The same with norms, sums and casts one after the other."""
    with mock.patch.object(fused, "kernels", return_value=None):
        return run()


def measure(shape: str, arguments: argparse.Namespace) -> None:
    """Print the rows of a shape."""
    device = torch.device(arguments.device)
    cuda = device.type == "cuda"
    lengths = draw_lengths(max(8, arguments.cells // SHARE.get(shape, 1)))
    tokens, work = draw_tokens(lengths), operations(SHAPES[shape], lengths)
    some = tokens.cells(0, min(16, len(tokens)))
    exact = draw_model(shape, device, torch.float32)
    reference = torch.cat([exact.embed_cells(some.cells(cell, cell + 1)) for cell in range(len(some))]).cpu()
    model = draw_model(shape, device, torch.bfloat16, exact.network)
    del exact
    batches = [model.batch(tokens.cells(*here)) for here in cut(tokens.bounds, arguments.token_budget)]
    blocks = counts_of(tokens, model.config.vocab_size - 3)

    def network_alone(attention: str = model.attention) -> Tensor:
        return torch.cat([model.network.embed_cells(batch, attention) for batch in batches])

    ways: dict[str, Callable[[], Tensor]] = {"network alone": network_alone}
    if cuda:
        ways["network alone, no kernels for norms"] = partial(without_kernels, network_alone)
    for attention in ("varlen",) if model.attention == "triton" else ():
        ways[f"network alone, {attention}"] = partial(network_alone, attention)
        ways[f"from counts, {attention}"] = partial(
            from_counts, replace(model, attention=attention), blocks, len(tokens), arguments.token_budget
        )
    ways["from counts"] = partial(from_counts, model, blocks, len(tokens), arguments.token_budget)
    ways[f"padded batches of {PADDED}"] = partial(padded, model, tokens)
    for budget in arguments.other_budgets:
        ways[f"from counts, {budget:,} a batch"] = partial(from_counts, model, blocks, len(tokens), budget)
    time_in_turns(shape, ways, lengths, work, device, arguments.repeats)
    if cuda:
        print_kernels(network_alone)
    if arguments.compile:
        for layer in model.network.layers:
            layer._finish = torch.compile(layer._finish, dynamic=True)
        compiled = {"network alone, compiled": partial(without_kernels, network_alone)}
        time_in_turns(shape, compiled, lengths, work, device, arguments.repeats)
    with torch.inference_mode():
        cosine = torch.nn.functional.cosine_similarity(model.embed_cells(some).cpu(), reference).min()
    print(f"{shape}: {len(lengths)} cells; lowest cosine to float32, one cell at a time: {cosine:.6f}", flush=True)


def time_in_turns(
    shape: str,
    ways: dict[str, Callable[[], Tensor]],
    lengths: np.ndarray,
    work: float,
    device: torch.device,
    repeats: int,
) -> None:
    """Print a row for each way; one that does not run says why."""
    seconds: dict[str, list[float]] = {}
    most: dict[str, int] = {}
    for way, run in ways.items():
        try:
            measured(run, device)  # compiles, and fills the allocator
        except Exception as error:  # noqa: BLE001 - a candidate that fails must not hide the others
            print(f"| {shape} | {way} | {type(error).__name__}: {str(error).splitlines()[0][:120]} |", flush=True)
        else:
            seconds[way] = []
    for _, way in itertools.product(range(repeats), seconds):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds[way].append(measured(ways[way], device))
        most[way] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    best = best_rate(device, torch.bfloat16)
    for way, took in seconds.items():
        median = statistics.median(took)
        share = f"{busy(ways[way], device):.0%}" if device.type == "cuda" and way == "from counts" else "–"
        print(
            f"| {shape} | {way} | {len(lengths) / median:,.1f} | {lengths.sum() / median:,.0f}"
            f" | {work / median / 1e12:,.2f} | {work / median / best:.0%} of {best / 1e12:,.1f}"
            f" | {share} | {most[way] / 2**30:.1f} GiB |",
            flush=True,
        )


def print_kernels(run: Callable[[], object]) -> None:
    """Where the device's time goes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        measured(run, torch.device("cuda"))
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    whole = sum(event.self_device_time_total for event in events)
    for event in events[:12]:
        print(f"  {event.self_device_time_total / whole:.1%} {event.count:6d} × {event.key[:80]}", flush=True)


def head(arguments: argparse.Namespace) -> None:
    """Print what was measured, and the head of the table."""
    print(f"{arguments.cells} cells, at most {arguments.token_budget:,} tokens a batch\n")
    print("| shape | way | cells/s | tokens/s | TFLOP/s | share of the best products | busy | peak |")
    print("|---|---|---|---|---|---|---|---|")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that `check.py` has too."""
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["70m", "1b", "3b"])
    parser.add_argument("--cells", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--token-budget", type=int, default=1 << 16)
    parser.add_argument("--other-budgets", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="fuse norms, residuals and activations by torch.compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    arguments = parser.parse_args()
    settings.progress = False
    print(machine(torch.device(arguments.device)))
    head(arguments)
    for shape in arguments.shapes:
        measure(shape, arguments)


if __name__ == "__main__":
    main()
