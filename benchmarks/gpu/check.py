"""Whether the package is right and fast on a GPU, in parts; `check.sh` runs them all.

    python benchmarks/gpu/check.py right|screen|attention|speed|whole|training [--shapes 70m 1b 3b]

`--device cpu --shapes tiny --cells 8` tries it without a GPU. All but `whole` run with torch, numpy, scipy and what
`tahoe.model` needs. Weights are random, the lengths of the cells are those of real ones.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import embed
from measuring import SHAPES, draw_lengths, draw_model, draw_tokens, machine, measured

from tahoe.model import Network, TahoeModel, Tokens, load_model, tokenize
from tahoe.model.network.attention import ATTENTION, Spans
from tahoe.model.network.first_order import first_order, gradients
from tahoe.model.training import (
    TrainingPlan,
    make_optimizer,
    mask_tokens,
    masked_batch,
    masked_losses,
    new_network,
    train,
)
from tahoe.model.training.attention import Visibility, is_packed
from tahoe.settings import settings

REFERENCE = Path(__file__).parents[2] / "tests" / "reference"
CASES = [("tiny", "golden"), ("drug", "no_drug"), ("drug", "with_drug"), ("drug", "drug_id_0")]
# How many cells a CPU computes to compare with.
CPU_CELLS = {"tiny": 32, "70m": 32, "1b": 6, "3b": 3}


def nested(q_THK, k_THK, v_THK, queries, keys, masked_T=None):
    """Nested tensors: a candidate for float32, where `varlen` does not run."""
    if masked_T is not None or queries is not keys:
        return ATTENTION["sdpa"](q_THK, k_THK, v_THK, queries, keys, masked_T)
    offsets = queries.device_bounds.long()
    jagged = (
        torch.nested.nested_tensor_from_jagged(each.contiguous(), offsets, min_seqlen=1, max_seqlen=queries.longest)
        for each in (q_THK, k_THK, v_THK)
    )
    q, k, v = (each.transpose(1, 2) for each in jagged)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()


def blocks_of(blocks, q_THK, k_THK, v_THK, queries, keys, masked_T=None):
    """The Triton kernel with other blocks than its own."""
    from tahoe.model.cuda import triton_attention

    return triton_attention.attention(q_THK, k_THK, v_THK, queries.device_bounds, queries.longest, blocks)


BLOCKS = [
    (128, 64, 4, 3),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
    (128, 128, 4, 2),
    (128, 128, 8, 3),
    (64, 64, 4, 3),
    (256, 64, 8, 3),
]


def attempt(function, *arguments):
    """What a call gives, or the first line of its error."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - one way that fails must not hide the others
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"


def row(*cells) -> None:
    print("|", " | ".join(f"{each:.2e}" if isinstance(each, float) else str(each) for each in cells), "|", flush=True)


def ways(device: torch.device) -> list[tuple[str, str]]:
    """Attention and precision."""
    exact = [("sdpa", "float32"), ("eager", "float32")]
    packed = ["varlen", "triton"] if device.type == "cuda" else []
    return exact + [(attention, "bfloat16") for attention in (*packed, "sdpa", "eager")]


def right(arguments: argparse.Namespace) -> None:
    """Reference vectors, cells of real lengths, and gradients."""
    device = torch.device(arguments.device)
    print("\nreference vectors: largest deviations, raw\n")
    row("case", "attention", "dtype", "cells", "lowest cosine", "genes", "expression", "MVC")
    row(*["---"] * 8)
    for case in CASES:
        for attention, dtype in ways(device):
            row(
                "-".join(case),
                attention,
                dtype,
                *spread_out(attempt(against_reference, *case, attention, dtype, device)),
            )
    for shape in arguments.shapes:
        against_cpu(shape, device)
    training_gradients(device)


def spread_out(found):
    return [found] if isinstance(found, str) else found


@torch.inference_mode()
def against_reference(name, result, attention, dtype, device):
    model = load_model(REFERENCE / f"{name}-model", device=device, dtype=dtype)
    truth = np.load(REFERENCE / f"{name}-{result}.npz")
    n_special = 2 if result in ("with_drug", "drug_id_0") else 1
    cells = np.load(REFERENCE / f"{name}-input.npz")
    tokens = tokenize(
        *(cells["indptr"], cells["indices"], cells["data"], model.vocabulary.tokens_of(cells["genes"])),
        config=model.config,
        vocabulary=model.vocabulary,
        drugs=truth["drug_ids"] if n_special == 2 else None,
    )
    order = []
    for start, stop in zip(truth["indptr"][:-1], truth["indptr"][1:], strict=True):
        genes = np.argsort(truth["genes"][start + n_special : stop], kind="stable")
        order.append(start + np.concatenate([np.arange(n_special), genes + n_special]))
    order = np.concatenate(order)
    batch = model.batch(tokens)
    output = model.network(batch, attention)
    embedded = model.network.embed_cells(batch, attention).cpu().numpy()
    genes = 0.0
    for name in truth.files:
        if name.startswith("gene_emb_"):
            cell = int(name.removeprefix("gene_emb_"))
            here = order[tokens.bounds[cell] : tokens.bounds[cell + 1]] - truth["indptr"][cell]
            ours = output[tokens.bounds[cell] : tokens.bounds[cell + 1]].cpu().numpy()
            genes = max(genes, float(np.abs(ours - truth[name][here]).max()))
    raw = truth["cell_emb_raw"]
    cosine = (embedded * raw).sum(1) / np.linalg.norm(embedded, axis=1) / np.linalg.norm(raw, axis=1)
    expression = np.abs(model.network.decode(output).cpu().numpy() - truth["expr_preds"][order]).max()
    mvc = np.abs(model.network.decode_mvc(output, batch).cpu().numpy() - truth["mvc_output"][order]).max()
    deviation = float(np.abs(embedded - raw).max())
    return [deviation, f"{cosine.min():.7f}", genes, float(expression), float(mvc)]


@torch.inference_mode()
def against_cpu(shape: str, device: torch.device) -> None:
    """Cells of real lengths on every attention, against the CPU in float32; each alone, and packed with the others."""
    tokens = draw_tokens(draw_lengths(32))
    n = min(CPU_CELLS[shape], len(tokens))
    exact = draw_model(shape, device, torch.float32)
    with torch.device("meta"):
        network = Network(exact.config)
    network.load_state_dict({name: weight.cpu() for name, weight in exact.network.state_dict().items()}, assign=True)
    on_cpu = TahoeModel(shape, network.eval(), exact.vocabulary, torch.device("cpu"), "sdpa")
    start = time.perf_counter()
    # all cores on one cell: there are fewer cells than cores
    batches = (on_cpu.batch(tokens.cells(cell, cell + 1)) for cell in range(n))
    truth = torch.cat([on_cpu.network.embed_cells(batch) for batch in batches])
    print(f"\n{shape}, {len(tokens)} cells; {n} of them on the CPU in {time.perf_counter() - start:.0f} s\n")
    del on_cpu, network
    row("attention", "dtype", "against", "deviation", "lowest cosine", "packed − alone", "lowest cosine", "same bits")
    row(*["---"] * 8)
    everywhere = exact.embed_cells(tokens).cpu()
    for attention, dtype in ways(device):
        model = exact if dtype == "float32" else draw_model(shape, device, torch.bfloat16, exact.network)
        found = attempt(packed_and_alone, model, tokens, attention)
        if isinstance(found, str):
            row(attention, dtype, found)
            continue
        packed, alone = found
        against, who = (truth, "CPU") if dtype == "float32" else (everywhere, "float32 here")
        some, same = packed[: len(against)], bool(torch.equal(packed, alone))
        deviation, moved = (float((a - b).abs().max()) for a, b in ((some, against), (packed, alone)))
        compared = f"{who}, {len(against)} cells"
        row(attention, dtype, compared, deviation, lowest(some, against), moved, lowest(packed, alone), same)
    del exact
    free()


def lowest(left, right) -> str:
    return f"{torch.nn.functional.cosine_similarity(left.double(), right.double()).min():.7f}"


def packed_and_alone(model: TahoeModel, tokens: Tokens, attention: str):
    model.attention = attention
    alone = [model.embed_cells(tokens.cells(cell, cell + 1)).cpu() for cell in range(len(tokens))]
    return model.embed_cells(tokens).cpu(), torch.cat(alone)


def training_gradients(device: torch.device) -> None:
    """Gradients of the training objective, float32, against the CPU."""
    print("\ngradients of the training objective, float32, against the CPU: largest difference / largest gradient\n")
    row("hidden masked tokens", "losses here", "losses on the CPU", "gradients")
    row(*["---"] * 4)
    tokens = draw_tokens(draw_lengths(8))
    masked = mask_tokens(tokens, np.random.default_rng(0), 0.5)
    for hide in (True, False):
        found = []
        for where in (device, torch.device("cpu")):
            network = new_network(replace(SHAPES["tiny"], hide_masked=hide)).to(where)
            losses = masked_losses(network, *masked_batch(tokens, masked, network.config, where))
            losses.total.backward()
            found.append(
                (losses.total.item(), [weight.grad.cpu() for weight in network.parameters() if weight.grad is not None])
            )
        (here, ours), (there, theirs) = found
        worst = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(ours, theirs, strict=True)
        )
        row(hide, f"{here:.6f}", f"{there:.6f}", worst)


def screen(arguments: argparse.Namespace) -> None:
    """First-order effects of all deletions and of 1,000 insertions: against the CPU, and how long they take."""
    device, shape = torch.device(arguments.device), arguments.shapes[0]
    tokens = draw_tokens(np.array([300, 700, 1400] if device.type == "cuda" else [100, 200]))
    here = draw_model(shape, device, torch.float32)
    there = draw_model(shape, "cpu", torch.float32, here.network.cpu())
    here.network.to(device)
    direction = torch.nn.functional.normalize(torch.randn(1, here.config.d_model), dim=1)
    print("\nfirst-order effects of edits, float32, against the CPU: largest difference / largest effect\n")
    row("shape", "tokens", "deletions", "1,000 insertions", "ms here", "ms of a forward pass here")
    row(*["---"] * 6)
    for number in range(len(tokens)):
        cell, found = tokens.cells(number, number + 1), []
        for model in (there, here, here):
            start = time.perf_counter()
            found.append([each.cpu() for each in effects(model, cell, direction.to(model.device))])
            took = time.perf_counter() - start
        worst = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(found[0], found[2], strict=True)]
        forward = min(measured(lambda cell=cell: here.embed_cells(cell), device) for _ in range(3))
        row(shape, len(cell.ids), *worst, f"{took * 1e3:.0f}", f"{forward * 1e3:.1f}")


def effects(model: TahoeModel, cell: Tokens, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of deleting each gene of a cell, and of inserting others at the highest bin."""
    others = np.setdiff1d(np.arange(3, model.config.vocab_size), cell.ids)[:: (model.config.vocab_size // 1000)]
    with gradients(model.device):
        ids = torch.from_numpy(others).to(model.device)
        values = torch.full(ids.shape, 50.0, device=model.device)
        found = first_order(model.network, model.batch(cell), direction, (ids, values))
    return found.deleted_JN[:, 1:], found.inserted_JS


@torch.inference_mode()
def attention(arguments: argparse.Namespace) -> None:
    """The attention kernels alone, 65,536 tokens in cells of real lengths."""
    device = torch.device(arguments.device)
    tokens = draw_tokens(draw_lengths(47 if device.type == "cuda" else 4))
    cells = Spans.of(tokens.bounds.tolist(), device)
    print(f"\nattention alone, {len(tokens.ids):,} tokens, bfloat16\n")
    row("heads × size", "kernel", "ms", "TFLOP/s", "deviation from float32")
    row(*["---"] * 5)
    for heads, size, dtype in ((8, 64, torch.bfloat16), (16, 128, torch.bfloat16), (4, 24, torch.float32)):
        qkv = torch.randn(len(tokens.ids), 3 * heads * size, device=device, dtype=dtype)
        q, k, v = (each.unflatten(-1, (heads, size)) for each in qkv.chunk(3, dim=-1))
        work = 4 * heads * size * float((tokens.lengths.astype(float) ** 2).sum())
        truth = ATTENTION["sdpa"](q.float(), k.float(), v.float(), cells, cells, None)
        runs = {"varlen": ATTENTION["varlen"], "sdpa": ATTENTION["sdpa"], "nested": nested}
        if dtype == torch.bfloat16:
            runs |= {f"triton {blocks}": partial(blocks_of, blocks) for blocks in BLOCKS}
        for name, run in runs.items():
            found = attempt(run, q, k, v, cells, cells, None)
            if isinstance(found, str):
                row(f"{heads} × {size}", name, found)
                continue
            tenfold = partial(repeated, run, q, k, v, cells)
            seconds = statistics.median(measured(tenfold, device) / 10 for _ in range(5))
            deviation = float((found - truth).abs().max())
            row(f"{heads} × {size}", name, f"{seconds * 1e3:.3f}", f"{work / seconds / 1e12:.0f}", deviation)


def repeated(run, q, k, v, cells) -> None:
    for _ in range(10):
        run(q, k, v, cells, cells, None)


def speed(arguments: argparse.Namespace) -> None:
    """`embed.py`, whole."""
    embed.head(arguments)
    for shape in arguments.shapes:
        embed.measure(shape, arguments)
        free()


def whole(arguments: argparse.Namespace) -> None:
    """From a file to a store, and with too little memory."""
    import anndata
    from scipy import sparse

    import tahoe

    device, n = load_model("demo", device=arguments.device).device, 8_192 if arguments.device == "cuda" else 50
    print("\nfrom a file to a store, and in memory\n")
    row("model", "cells", "way", "seconds", "cells/s", "deviation")
    row(*["---"] * 6)
    with tempfile.TemporaryDirectory() as folder:
        for shape in ("demo", "70m"):
            model = load_model("demo", device=device) if shape == "demo" else draw_model(
                "tiny" if device.type == "cpu" else shape, device, torch.bfloat16)  # fmt: skip
            genes = np.array(model.vocabulary.genes)
            lengths = np.minimum(draw_lengths(n) - 1, len(genes) // 2)
            rng = np.random.default_rng(0)
            pool = [np.sort(rng.choice(len(genes), len(genes) // 2, replace=False)) for _ in range(16)]
            chosen = [pool[i % 16][np.linspace(0, len(genes) // 2 - 1, k).astype(int)] for i, k in enumerate(lengths)]
            counts = rng.geometric(0.3, int(lengths.sum())).astype(np.float32)
            matrix = sparse.csr_matrix(
                (counts, np.concatenate(chosen), np.concatenate([[0], np.cumsum(lengths)])), shape=(n, len(genes))
            )
            adata = anndata.AnnData(matrix)
            adata.var_names, adata.obs_names = genes, [f"cell{i}" for i in range(n)]
            adata.write_h5ad(f"{folder}/{shape}.h5ad")
            if shape != "demo":
                model.save(f"{folder}/{shape}")
                model = load_model(f"{folder}/{shape}", device=device, dtype="bfloat16")
            truth = None
            for way in ("in memory", "file to store", "with 100 MiB of memory"):
                start = time.perf_counter()
                if way == "file to store":
                    tahoe.embed_file(f"{folder}/{shape}.h5ad", f"{folder}/{shape}.zarr", model)
                    found = anndata.read_zarr(f"{folder}/{shape}.zarr").obsm["X_tahoe"]
                else:
                    if way.startswith("with") and device.type == "cuda":
                        free()
                        total = torch.cuda.get_device_properties(device).total_memory
                        allowed = torch.cuda.memory_reserved(device) + (100 << 20)
                        torch.cuda.set_per_process_memory_fraction(allowed / total)
                    tahoe.tl.embed(adata, model)
                    found = adata.obsm["X_tahoe"]
                took = time.perf_counter() - start
                truth = found if truth is None else truth
                row(shape, n, way, f"{took:.2f}", f"{n / took:,.0f}", float(np.abs(found - truth).max()))
            if device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0)


def step_times(network: Network, tokens: Tokens, **how: bool) -> list[float]:
    """When each step of a short training ended."""
    times: list[float] = []
    plan = TrainingPlan(steps=6, bfloat16=True, **how)
    train(network, lambda _: tokens, plan, report=lambda *_: times.append(time.perf_counter()), progress=False)
    return times


def former_times(network: Network, tokens: Tokens) -> list[float]:
    """The same with one call of attention a cell, and a mask: what training did before."""
    device, times, plan = next(network.parameters()).device, [], TrainingPlan(steps=6, bfloat16=True)
    network.train().requires_grad_(True)
    optimizer = make_optimizer(network, plan)
    for step in range(plan.steps):
        masked = mask_tokens(tokens, np.random.default_rng(step), 0.5)
        with torch.autocast(device.type, torch.bfloat16):
            losses = masked_losses(network, *masked_batch(tokens, masked, network.config, device))
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        optimizer.step()
        losses.total.item()
        times.append(time.perf_counter())
    return times


def training(arguments: argparse.Namespace) -> None:
    """Attention of training against the formula, and tokens a second, masked tokens hidden and not."""
    device = torch.device(arguments.device)
    training_attention(device)
    print("\ntraining, bfloat16\n")
    row("shape", "masked tokens hidden", "way", "cells a step", "ms a step", "tokens/s", "peak")
    row(*["---"] * 7)
    ways = {"present": step_times, "checkpointing": partial(step_times, activation_checkpointing=True)}
    ways["former"] = former_times
    for shape in arguments.shapes:
        tokens = draw_tokens(draw_lengths(32 if shape in ("70m", "tiny") else 8))
        for hide in (True, False) if shape in ("70m", "tiny") else (True,):
            for way, times in ways.items():
                if way == "former" and shape not in ("70m", "tiny"):
                    continue
                free()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                found = attempt(timed, shape, hide, times, tokens, device)
                row(shape, hide, way, len(tokens), *spread_out(found))


def timed(shape, hide, times, tokens, device):
    network = new_network(replace(SHAPES[shape], hide_masked=hide), device=device)
    step = statistics.median(np.diff(times(network, tokens))[1:])
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "–"
    return [f"{step * 1e3:.0f}", f"{len(tokens.ids) / step:,.0f}", memory]


def training_attention(device: torch.device) -> None:
    """Outputs and gradients of the attention of training, against the formula with a mask in float32."""
    print("\nattention of training: largest difference / largest value, of outputs and gradients of q, k, v\n")
    row("heads × size", "dtype", "one kernel", "masked", "output", "q", "k", "v")
    row(*["---"] * 8)
    tokens = draw_tokens(draw_lengths(8))
    cells = Spans.of(tokens.bounds.tolist(), device)
    for heads, size in ((8, 64), (16, 128)):
        for dtype in (torch.float32, torch.bfloat16):
            for share in (None, 0.5):
                masked = None if share is None else mask_tokens(tokens, np.random.default_rng(0), share)
                found = attempt(against_formula, heads, size, dtype, masked, tokens, cells, device)
                row(f"{heads} × {size}", dtype, is_packed(device, dtype, size), share, *spread_out(found))


def against_formula(heads, size, dtype, masked, tokens, cells, device):
    q, k, v, upstream = torch.randn(4, len(tokens.ids), heads, size, device=device).to(dtype)
    who = Visibility.of(tokens.bounds, masked, device, is_packed(device, dtype, size))
    hidden = None if masked is None else torch.from_numpy(masked).to(device)
    results = []
    for run, precision in ((who.attend, dtype), (ATTENTION["sdpa"], torch.float32)):
        leaves = [each.to(precision).detach().requires_grad_() for each in (q, k, v)]
        output = run(*leaves, cells, cells, hidden)
        output.backward(upstream.to(precision))
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    return [float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parts = {
        "right": right,
        "screen": screen,
        "attention": attention,
        "speed": speed,
        "whole": whole,
        "training": training,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    embed.add_options(parser)
    arguments = parser.parse_args()
    start = time.perf_counter()
    settings.progress = False
    print(f"\n## {arguments.part}: {machine(torch.device(arguments.device))}")
    parts[arguments.part](arguments)
    print(f"\n{arguments.part} took {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
