"""Compare the training objective of this package with that of ``tahoe-x1``: losses, and gradients of all weights.

On random networks of several shapes and real cells, with the same tokens and masks, without and with drugs, with and
without hidden masked tokens, in float32 on the CPU. Theirs runs one cell at a time, weighted by its masked tokens,
because their attention in plain torch sees padding. Ours runs twice: `masked_losses`, one cell at a time in attention,
and what training uses, dense batches without a mask.

It needs the environment of ``compare_with_tahoe_x1.py``, which says how to make one. Then::

    python scripts/compare_training_with_tahoe_x1.py --seed 1 [--cells 12]

It exits with 1 if a loss differs by more than 1e-5 of itself, or a gradient by more than 1e-5 of the largest of its
weight. A token can lie so near to the kink of a ReLU that rounding
decides on which side; where that is seen, that unit is left out, and other weights may differ by 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from compare_with_tahoe_x1 import DRUGS, LIKE_3B, LIKE_70M, Cells, Theirs, random_network, read_heart  # isort: skip

import numpy as np
import torch

from tahoe.model import load_model
from tahoe.model.checkpoint.weights import PREFIX, released_name, write_checkpoint
from tahoe.model.config import DrugEncoderConfig, ModelConfig
from tahoe.model.tokens.tokenizer import Tokens, tokenize
from tahoe.model.training import TrainingPlan, mask_tokens, masked_batch, masked_losses
from tahoe.model.training.objective import Objective
from tahoe.model.training.passes import made

LIMIT, LIMIT_AT_KINK, FEW = 1e-5, 1e-4, 3
WITH_DRUGS = DrugEncoderConfig(40, 64, "gelu")
SHAPES = {
    "relu, masked hidden": LIKE_70M,
    "relu, masked seen": replace(LIKE_70M, hide_masked=False),
    "gelu, masked hidden": replace(LIKE_3B, hide_masked=True),
    "gelu, masked seen": LIKE_3B,
    "drugs, masked hidden": replace(LIKE_3B, drug_encoder=WITH_DRUGS, hide_masked=True),
    "drugs, masked seen": replace(LIKE_3B, drug_encoder=WITH_DRUGS),
}
Found = tuple[dict[str, float], dict[str, torch.Tensor]]


def our_losses(config: ModelConfig, folder: Path, tokens: Tokens, masked: np.ndarray, dense: bool) -> Found:
    """Losses of both decoders, and the gradients of their mean, by the names of the released files."""
    network = load_model(folder, device="cpu").network.requires_grad_(True)
    if dense:
        part = made(tokens, masked, TrainingPlan(steps=1), config, torch.device("cpu"))
        expression, mvc = Objective(network)(part.batch, part.targets, part.who) / masked.sum()
    else:
        losses = masked_losses(network, *masked_batch(tokens, masked, config, torch.device("cpu")))
        expression, mvc = losses.expression, losses.mvc
    ((expression + mvc) / 2).backward()
    gradients = {PREFIX + released_name(name): weight.grad for name, weight in network.named_parameters()}
    return {"expression": expression.item(), "mvc": mvc.item()}, gradients


def their_losses(theirs: Theirs, cells: list[dict], tokens: Tokens, masked: np.ndarray, config: ModelConfig) -> Found:
    """The same by their own forward pass and their own loss, cell by cell."""
    model = theirs.model.requires_grad_(True)
    sums = {"expression": 0.0, "mvc": 0.0}
    parts = torch.from_numpy(masked).split(tokens.lengths.tolist())
    for cell, hidden in zip(cells, parts, strict=True):
        batch = cell | {"expr_target": cell["expr"], "gen_mask": hidden[None]}
        batch["expr"] = cell["expr"].masked_fill(hidden[None], config.mask_value)
        share = hidden.sum() / masked.sum()
        outputs = model(batch, skip_decoders=False)
        (model.loss(outputs, batch) * share).backward()
        for name, output in (("expression", "expr_preds"), ("mvc", "mvc_output")):
            sums[name] += (model.criterion(outputs[output], batch["expr_target"], hidden[None]) * share).item()
    return sums, {name: weight.grad for name, weight in model.named_parameters()}


def compare(config: ModelConfig, cells: Cells, folder: Path, seed: int) -> dict[str, float]:
    """Differences of losses, relative, and of gradients, relative to the largest of each weight."""
    config, with_drugs = replace(config, vocab_size=len(cells.vocabulary)), config.drug_encoder is not None
    place = folder / "written-model"
    write_checkpoint(place, random_network(config, seed), cells.vocabulary, DRUGS)
    theirs = Theirs(place, with_drugs)
    theirs.use_plain_attention(config.hide_masked)
    csr = cells.counts.indptr, cells.counts.indices, cells.counts.data
    drugs = cells.drugs if with_drugs else None
    how = {"config": config, "vocabulary": cells.vocabulary, "max_length": None, "drugs": drugs}
    tokens = tokenize(*csr, cells.column_tokens, **how)
    masked = mask_tokens(tokens, np.random.default_rng(seed), 0.5)
    truth, their_gradients = their_losses(theirs, theirs.tokens(cells), tokens, masked, config)
    found: dict[str, float] = {"tokens": len(tokens.ids), "masked": int(masked.sum())}
    for way, dense in (("", False), ("dense ", True)):
        losses, gradients = our_losses(config, place, tokens, masked, dense)
        for name, value in losses.items():
            found[way + name] = abs(value - truth[name]) / truth[name]
        assert gradients.keys() == their_gradients.keys(), gradients.keys() ^ their_gradients.keys()
        at_kink = 0
        differences = {name: relative(gradients[name], their_gradients[name]) for name in gradients}
        if config.activation == "relu":
            for name in (name for name in differences if "up_proj" in name):
                differences[name], n_units = without_kinks(gradients[name], their_gradients[name])
                at_kink = max(at_kink, n_units)
        found[way + "gradients"], found[way + "at kink"] = max(differences.values()), at_kink
    return found


def without_kinks(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, int]:
    """The same without hidden units of which a token lies at the kink of ReLU, and how many these are.

    There rounding decides on which side it lies. At most `FEW` units are taken for such.
    """
    by_unit = (ours - theirs).abs().reshape(len(ours), -1).amax(1) / theirs.abs().max()
    n_units = min(FEW, int((by_unit > LIMIT).sum()))
    return float(by_unit.sort().values[len(by_unit) - n_units - 1]), n_units


def relative(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> float:
    """Largest difference, as a share of the largest gradient; without one on both sides there is none."""
    if ours is None or theirs is None:
        return 0.0 if all(each is None or not each.any() for each in (ours, theirs)) else float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def main() -> None:
    """Compare all shapes, and print a table."""
    parser = argparse.ArgumentParser(description="Compare the training objective with that of tahoe-x1.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cells", type=int, default=12)
    arguments = parser.parse_args()
    Theirs.adapt()
    rng, failed, head = np.random.default_rng(arguments.seed), False, True
    counts, genes = read_heart()
    for shape, config in SHAPES.items():
        cells = Cells.draw(counts, genes, arguments.cells, rng)
        with tempfile.TemporaryDirectory() as folder:
            found = compare(config, cells, Path(folder), int(rng.integers(2**31)))
        if head:
            print(f"seed {arguments.seed}\n{'network':22}" + "".join(f"{name:>17}" for name in found))
            head = False
        limit = LIMIT_AT_KINK if found["at kink"] else LIMIT
        wrong = any(v > (limit if "gradients" in name else LIMIT) for name, v in found.items() if isinstance(v, float))
        failed |= wrong
        measured = "".join(f"{v:17,}" if isinstance(v, int) else f"{v:17.1e}" for v in found.values())
        print(f"{shape:22}{measured}", "WRONG" * wrong, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
