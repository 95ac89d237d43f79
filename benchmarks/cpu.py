"""How fast cells go through a network of a released shape on the CPU, and how far each precision is from the formula.

    python benchmarks/cpu.py [--shape 70m] [--cells 24] [--repeats 5] [--parts 1400]

Weights are random, the lengths of the cells are those of real ones. The reference of the deviations is the network in
plain torch with its attention written out, in float32, one cell at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from measuring import SHAPES, best_rate, draw_lengths, draw_model, draw_tokens, machine, measured, operations, peak
from measuring import start_peak as start

from tahoe.model.cpu.compiling import entries
from tahoe.model.cpu.linear import computed_in, has_bfloat16, has_int8
from tahoe.model.cpu.softmax import exponentials
from tahoe.model.cpu.threads import parallel_for
from tahoe.model.network.attention import ATTENTION

if TYPE_CHECKING:
    from collections.abc import Callable

    from tahoe.model import TahoeModel, Tokens

CPU = torch.device("cpu")


@torch.no_grad()
def by_the_formula(model: TahoeModel, tokens: Tokens) -> torch.Tensor:
    """Outside of inference mode the network is plain torch."""
    cells = (tokens.cells(cell, cell + 1) for cell in range(len(tokens)))
    return torch.cat([model.network(model.batch(cell), "eager")[:1] for cell in cells])


def parts(model: TahoeModel, length: int) -> dict[str, float]:
    """Seconds of one core that each part of a cell takes; the median of several layers."""
    network, cell = model.network, model.batch(draw_tokens(np.array([length])))
    layer, attend, seconds = network.layers[0], ATTENTION[model.attention], {}

    def run(_: int) -> None:
        x = network.inputs(cell)
        _, normed = layer._before(x, None, layer.attention_norm)
        q, k, v = (layer.heads(t) for t in layer.qkv(normed).chunk(3, dim=-1))
        context = attend(q, k, v, cell.cells, cell.cells, None).flatten(-2)
        hidden = layer.up(normed, layer.activation)
        layers = len(network.layers)
        # Scores of a block, which lie in the cache.
        scores, totals = entries(torch.randn(256, length).to(q.dtype)), np.empty(256, np.float32)
        blocks = (layers - 1) * q.shape[1] * length / 256
        calls: dict[str, tuple[float, Callable[[], object]]] = {
            "linear layers": (layers - 1, lambda: (layer.qkv(normed), layer.attention_out(context))),
            "linear layers of the feed-forward": (
                layers - 1,
                lambda: (layer.up(normed, layer.activation), layer.down(hidden)),
            ),
            "attention": (layers - 1, lambda: attend(q, k, v, cell.cells, cell.cells, None)),
            "of it exponentials": (blocks, lambda: exponentials(scores, np.float32(0), totals)),
            "norms and residuals": (2 * (layers - 1), lambda: x + layer._before(x, None, layer.attention_norm)[1]),
            "last layer": (1, lambda: network.layers[-1].forward_cls(x, cell.cells, attend)),
            "inputs": (1, lambda: network.inputs(cell)),
            "all": (1, lambda: network.embed_cells(cell, model.attention)),
        }
        for name, (times, call) in calls.items():
            took = []
            for _ in range(9):
                start = time.thread_time()
                call()
                took.append(time.thread_time() - start)
            seconds[name] = times * statistics.median(took)

    parallel_for(run, [0])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="70m")
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", type=int, metavar="TOKENS", help="only say where the time of a cell goes")
    arguments = parser.parse_args()
    native = {torch.float32: True, torch.bfloat16: has_bfloat16(), torch.int8: has_int8()}
    dtypes = [dtype for dtype, can in native.items() if can]
    if arguments.parts:
        print(machine())
        for dtype in dtypes:
            seconds = parts(draw_model(arguments.shape, CPU, dtype), arguments.parts)
            print(f"{dtype}:", ", ".join(f"{name} {1000 * took:.0f} ms" for name, took in seconds.items()))
        return
    lengths = draw_lengths(arguments.cells)
    tokens, work = draw_tokens(lengths), operations(SHAPES[arguments.shape], lengths)
    print(machine(), f"{arguments.shape}, {len(lengths)} cells of {lengths.min()} to {lengths.max()} tokens", sep="\n")

    some = draw_tokens(draw_lengths(6, seed=1), seed=1)
    reference = by_the_formula(draw_model(arguments.shape, CPU, torch.float32), some)
    models = {dtype: draw_model(arguments.shape, CPU, dtype) for dtype in dtypes}
    vectors = {dtype: model.embed_cells(some) for dtype, model in models.items()}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in models}
    rates: dict[torch.dtype, list[float]] = {dtype: [] for dtype in models}
    most = dict.fromkeys(models, 0)
    for _ in range(arguments.repeats):
        for dtype, model in models.items():
            rates[dtype].append(best_rate(CPU, computed_in(dtype), repeats=2))
            before = start()
            seconds[dtype].append(measured(lambda model=model: model.embed_cells(tokens)))
            most[dtype] = max(most[dtype], peak() - before)
    print("\n| precision | cells/s | tokens/s | TFLOP/s | best products | share | peak | deviation | cosine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype, found in vectors.items():
        took, best = statistics.median(seconds[dtype]), max(rates[dtype])
        cosine = torch.nn.functional.cosine_similarity(found, reference).min()
        shares = [work / s / rate for s, rate in zip(seconds[dtype], rates[dtype], strict=True)]
        print(
            f"| {str(dtype).removeprefix('torch.')} | {len(lengths) / took:.2f} | {lengths.sum() / took:,.0f}"
            f" | {work / took / 1e12:.3f} | {best / 1e12:.3f} | {work / took / best:.0%}"
            f" ({statistics.median(shares):.0%} pairwise) | {most[dtype] / 2**20:.0f} MB"
            f" | {(found - reference).abs().max():.1e} | {cosine:.6f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
