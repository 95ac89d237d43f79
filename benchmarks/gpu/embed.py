"""How fast cells go through networks of the released shapes on a GPU, with tokenising and without.

    python benchmarks/gpu/embed.py [--shapes 70m 1b 3b] [--cells 2048] [--compile]

It runs with torch, numpy, safetensors and `tahoe.model` alone (numba, if it is there, makes tokens faster). Weights are
random, the lengths of the cells are those of real ones. `--device cpu --shapes tiny --cells 8` tries it without a GPU.

Measured in turns, in one run: the network alone, on tokens that lie on the device; the whole way from counts, tokenised
by a thread that is one batch ahead; and the usual way, in padded batches of 64 with padding removed inside attention.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import SHAPES, best_rate, draw_lengths, draw_model, draw_tokens, machine, measured, operations

from tahoe.model import TahoeModel, Tokens, tokenize
from tahoe.model.attention import ATTENTION, Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from tahoe.model.network import Layer

PADDED = 64


@dataclass(frozen=True)
class Counts:
    """Cells as rows of a CSR matrix whose columns are the genes of the vocabulary, in their order."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @classmethod
    def of(cls, tokens: Tokens) -> Counts:
        """Counts of the genes that these tokens are of."""
        genes = tokens.ids >= 3
        counts = np.random.default_rng(0).geometric(0.3, genes.sum()).astype(np.float32)
        return cls(np.concatenate([[0], np.cumsum(tokens.n_genes)]), (tokens.ids[genes] - 3).astype(np.int32), counts)

    def tokens(self, start: int, stop: int, model: TahoeModel) -> Tokens:
        """Tokenise some of the cells."""
        here = slice(self.indptr[start], self.indptr[stop])
        rows = self.indptr[start : stop + 1] - self.indptr[start], self.indices[here], self.data[here]
        columns = np.arange(3, model.config.vocab_size)
        return tokenize(*rows, columns, config=model.config, vocabulary=model.vocabulary, max_length=2048)


def cut(bounds: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Batches of at most so many tokens, in order."""
    cuts = [0]
    while cuts[-1] < len(bounds) - 1:
        last = int(np.searchsorted(bounds, bounds[cuts[-1]] + budget, side="right")) - 1
        cuts.append(max(last, cuts[-1] + 1))
    return list(itertools.pairwise(cuts))


def from_counts(model: TahoeModel, counts: Counts, cuts: list[tuple[int, int]]) -> Tensor:
    """The whole way: nothing waits for the device before the last batch is on its way."""

    def ahead() -> Iterator[Tokens]:
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(counts.tokens, *cuts[0], model)
            for following in [*cuts[1:], None]:
                tokens = coming.result()
                if following:
                    coming = thread.submit(counts.tokens, *following, model)
                yield tokens

    return torch.cat([model.embed_cells(tokens) for tokens in ahead()]).cpu()


def padded_layer(layer: Layer, x_BND: Tensor, present_BN: Tensor, spans: Spans, attention: str) -> Tensor:
    """A layer over padded cells, in which only attention drops the padding."""
    h = layer._before(x_BND, layer.attention_norm)
    q, k, v = (layer.heads(t[present_BN]) for t in layer.qkv(h).chunk(3, dim=-1))
    context = torch.zeros_like(h)
    context[present_BN] = ATTENTION[attention](q, k, v, spans, spans, None).flatten(-2)
    return layer._finish(x_BND, context)


def padded(model: TahoeModel, tokens: Tokens) -> Tensor:
    """The usual way: batches of equally many cells, padded to the longest."""
    network, found = model.network, []
    for start in range(0, len(tokens), PADDED):
        cells = tokens.cells(start, min(start + PADDED, len(tokens)))
        batch = model.batch(cells)
        lengths = torch.from_numpy(cells.lengths).to(model.device)
        present = torch.arange(int(cells.lengths.max()), device=model.device) < lengths[:, None]
        ids = torch.zeros(present.shape, dtype=torch.int64, device=model.device)
        values = torch.full(present.shape, -2.0, device=model.device)
        ids[present], values[present] = batch.ids_T, batch.values_T
        x = network.gene_inputs(ids) + network.value.encode(values.flatten()).unflatten(0, values.shape)
        for layer in network.layers:
            x = padded_layer(layer, x, present, batch.cells, model.attention)
        found.append(network.norm(x)[:, 0])
    return torch.cat(found).cpu()


def busy(run: Callable[[], object], device: torch.device) -> float:
    """Share of the time in which a kernel runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = measured(run, device)
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / seconds


def measure(shape: str, arguments: argparse.Namespace) -> None:
    """Print the rows of a shape."""
    device = torch.device(arguments.device)
    lengths = draw_lengths(arguments.cells)
    tokens, work = draw_tokens(lengths), operations(SHAPES[shape], lengths)
    some = tokens.cells(0, min(16, len(tokens)))
    # float32 first, and alone in memory
    exact = draw_model(shape, device, torch.float32)
    reference = torch.cat([exact.embed_cells(some.cells(cell, cell + 1)) for cell in range(len(some))]).cpu()
    del exact
    model = draw_model(shape, device, torch.bfloat16)
    if arguments.compile:
        for layer in model.network.layers:
            layer._finish = torch.compile(layer._finish, dynamic=True)
    cuts = cut(tokens.bounds, arguments.token_budget)
    batches = [model.batch(tokens.cells(*here)) for here in cuts]
    counts = Counts.of(tokens)
    ways: dict[str, Callable[[], Tensor]] = {
        "network alone": lambda: torch.cat([model.network.embed_cells(b, model.attention) for b in batches]),
        "from counts": partial(from_counts, model, counts, cuts),
        f"padded batches of {PADDED}": partial(padded, model, tokens),
    }
    cuda = device.type == "cuda"
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    most = dict.fromkeys(ways, 0)
    for run in ways.values():
        measured(run, device)  # compiles, and fills the allocator
    for _, (way, run) in itertools.product(range(arguments.repeats), ways.items()):
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        seconds[way].append(measured(run, device))
        most[way] = torch.cuda.max_memory_allocated(device) if cuda else 0
    best = best_rate(device, torch.bfloat16)
    with torch.inference_mode():
        cosine = torch.nn.functional.cosine_similarity(model.embed_cells(some).cpu(), reference).min()
    for way, took in seconds.items():
        median = statistics.median(took)
        print(
            f"| {shape} | {way} | {len(lengths) / median:,.1f} | {lengths.sum() / median:,.0f}"
            f" | {work / median / 1e12:,.2f} | {work / median / best:.0%} of {best / 1e12:,.1f}"
            f" | {f'{busy(ways[way], device):.0%}' if cuda else '–'} | {most[way] / 2**30:.1f} GiB | {cosine:.6f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["70m", "1b", "3b"])
    parser.add_argument("--cells", type=int, default=2048)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--token-budget", type=int, default=1 << 16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="fuse norms, residuals and activations")
    arguments = parser.parse_args()
    print(machine(torch.device(arguments.device)))
    print(f"{arguments.cells} cells, at most {arguments.token_budget:,} tokens a batch, compile={arguments.compile}\n")
    print("| shape | way | cells/s | tokens/s | TFLOP/s | share of the best products | busy | peak | cosine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in arguments.shapes:
        measure(shape, arguments)


if __name__ == "__main__":
    main()
