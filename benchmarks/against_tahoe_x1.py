"""This package beside ``tahoe-x1`` 1.0.0 on the CPU: the same random weights, the same cells, in turns in one run.

    python benchmarks/against_tahoe_x1.py [--cells 16] [--repeats 5]

It needs an environment of its own: see ``scripts/compare_with_tahoe_x1.py``, from which it takes how ``tahoe-x1`` is
loaded. The weights have the shape of 70m, the cells the lengths of real ones. ``tahoe-x1`` runs with its attention in
plain torch, which is what it has without CUDA; only one cell at a time is right there, since it does not hide padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import torch
from compare_with_tahoe_x1 import Theirs
from measuring import (
    SHAPES,
    best_rate,
    draw_lengths,
    draw_model,
    draw_tokens,
    machine,
    measured,
    operations,
    peak,
    start_peak,
)

from tahoe.model.checkpoint.weights import write_checkpoint
from tahoe.model.cpu.linear import has_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tahoe.model import Tokens

CPU = torch.device("cpu")


def their_batches(theirs: Theirs, tokens: Tokens, size: int) -> list[dict[str, Tensor]]:
    """Cells in batches of this size, in their order, padded to the longest of the batch."""
    batches = []
    for start in range(0, len(tokens), size):
        cells = [tokens.cells(cell, cell + 1) for cell in range(start, min(start + size, len(tokens)))]
        columns = {"gene": ("ids", theirs.config["pad_token_id"]), "expr": ("values", theirs.config["pad_value"])}
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(getattr(cell, column)) for cell in cells], batch_first=True, padding_value=padding
            )
            for name, (column, padding) in columns.items()
        }
        batches.append(batch | {"gen_mask": torch.zeros_like(batch["gene"], dtype=torch.bool)})
    return batches


def their_way(theirs: Theirs, tokens: Tokens, size: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Embed by their network; in bfloat16 under autocast, their default."""
    batches = their_batches(theirs, tokens, size)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return torch.cat([theirs.model(batch, skip_decoders=True)["cell_emb"].float() for batch in batches])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="70m")
    arguments = parser.parse_args()
    lengths = draw_lengths(arguments.cells)
    tokens, work = draw_tokens(lengths), operations(SHAPES[arguments.shape], lengths)
    print(machine(), f"{arguments.shape}, {len(lengths)} cells of {lengths.min()} to {lengths.max()} tokens", sep="\n")

    Theirs.adapt()
    dtypes = [torch.float32] + [torch.bfloat16] * has_bfloat16()
    ours = {dtype: draw_model(arguments.shape, CPU, dtype) for dtype in dtypes}
    with tempfile.TemporaryDirectory() as folder:
        exact = ours[torch.float32]
        write_checkpoint(Path(folder) / "random-model", exact.network, exact.vocabulary)
        theirs = Theirs(Path(folder) / "random-model", with_drugs=False)
    theirs.use_plain_attention(hide_masked=False)
    ways = {}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        ways[f"tahoe-x1, one cell at a time, {name}"] = their_way(theirs, tokens, 1, dtype)
        ways[f"tahoe-x1, padded batches of 8, {name}"] = their_way(theirs, tokens, 8, dtype)
        ways[f"tahoe, {name}"] = lambda model=ours[dtype]: model.embed_cells(tokens)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    most, found = dict.fromkeys(ways, 0), {}
    for repeat in range(arguments.repeats):
        for name, way in ways.items():
            before = start_peak()

            def run(name: str = name, way: Callable[[], Tensor] = way) -> None:
                found[name] = way()

            seconds[name].append(measured(run))
            most[name] = max(most[name], peak() - before)
            if name.startswith("tahoe, "):
                dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
                rates[name].append(best_rate(CPU, dtype, repeats=2))
        taken = ", ".join(f"{name} {took[-1]:.1f} s" for name, took in seconds.items())
        print(f"repetition {repeat + 1}: {taken}", file=sys.stderr, flush=True)
    reference = next(iter(ways))
    print(f"\n| | cells/s | times | TFLOP/s | share of the best products | peak | deviation | cosine |\n|{'---|' * 8}")
    for name, took in seconds.items():
        ratio = statistics.median(first / own for first, own in zip(seconds[reference], took, strict=True))
        median, best = statistics.median(took), max(rates[name], default=0)
        cosine = torch.nn.functional.cosine_similarity(found[name], found[reference]).min()
        print(
            f"| {name} | {len(lengths) / median:.2f} | {ratio:.2f} | {work / median / 1e12 if best else 0:.3f}"
            f" | {f'{work / median / best:.0%} of {best / 1e12:.3f}' if best else '–'} | {most[name] / 2**20:,.0f} MB"
            f" | {(found[name] - found[reference]).abs().max():.1e} | {cosine:.6f} |"
        )


if __name__ == "__main__":
    main()
