"""Write the demo model from the averaged weights of a run of `scripts/train_demo.py`, in float16, with its card.

python scripts/write_demo_model.py cells.npz RUN --output src/tahoe/data/demo-model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from demo_batches import N_NEIGHBORS, TEST_PANEL, PackedCells
from safetensors.torch import load_file
from train_demo import Settings, settings_of_state

import tahoe
from tahoe.cli.demo import score_table
from tahoe.model.checkpoint.weights import write_checkpoint
from tahoe.model.files import file_sha256
from tahoe.model.training import evaluate

if TYPE_CHECKING:
    from tahoe.model import TahoeModel


def compare_with_pca(model: TahoeModel) -> str:
    """Score cells that training did not see, as `tahoe demo` does."""
    adata = tahoe.datasets.pbmc68k()
    tahoe.tl.embed(adata, model=model)
    return score_table(adata).round(3).to_string()


def predict_unseen(model: TahoeModel) -> str:
    """Say how far masked values are predicted in cells of a set that training did not see."""
    adata = tahoe.datasets.pbmc68k()
    tahoe.pp.map_genes(adata)
    tokens = model.tokenize(adata.X, model.vocabulary.tokens_of(adata.var["tahoe_gene"].astype(str).to_numpy()))
    errors = evaluate(model.network, tokens)
    genes, values = tokens.ids[tokens.is_gene], tokens.values[tokens.is_gene]
    means = np.bincount(genes, weights=values) / np.maximum(np.bincount(genes), 1)
    of_means = ((values - means[genes]) ** 2).mean()
    return (
        f"mean squared error {errors['expression_mse']:.0f} (expression decoder) and {errors['mvc_mse']:.0f} (MVC),"
        f"\nthe best constant {errors['constant_mse']:.0f}, each gene's own mean in this set {of_means:.0f}."
    )


def card(model: TahoeModel, cells: PackedCells, settings: Settings, run: Path) -> str:
    """What the weights are, what they were made from, and how far they go."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    started = [line for line in lines if "wrong_bins" in line][-1]
    ended = [line for line in lines if line["run"] == "train" and "quality" in line][-1]
    last = [line for line in lines if line["run"] == "train" and "seconds" in line][-1]
    sources = [
        f"| {one['name']} | {one['n_cells']:,} | {one['source']} | `{one['sha256'][:16]}…` |" for one in cells.about
    ]
    kinds = ("expression", "mvc", "constant", "knn", "knn_panel")
    held_out = [
        f"| {name} | {' | '.join(_figure(ended.get(f'{name}/{kind}'), kind) for kind in kinds)} |"
        for name in cells.names
    ]
    config = model.config
    return f"""# The demo model of tahoe

A small network of the Tahoe-x1 architecture, trained by this project (`scripts/train_demo.py`):
{config.n_layers} layers × {config.d_model}, {config.n_heads} heads, {model.n_parameters:,} parameters,
{len(model.vocabulary.genes):,} genes. It exists to try the package, to test it and to run its documentation.
**It is not for science**: it has seen {sum(map(len, cells.training)):,} cells, where the released models saw
hundreds of millions.

## Training data

| set | cells | source (licence) | sha256 of the file |
|---|---|---|---|
{chr(10).join(sources)}

## Training

Masked expression, both decoders, and two views of each cell drawn together among the cells of its set (InfoNCE):
{ended["step"]:,} steps, {last["seconds"] / 60:.0f} minutes on {started["device"]}; the settings:
`{json.dumps(started["settings"])}`.
The gene embeddings started as singular vectors of the log-normalised training cells.
The weights are averages over the last steps, stored in float16; sha256 `{model.weights_sha256}`.

## Held-out cells

About a tenth of the cells of each set was held out, by donor where it has several. Mean squared error of masked bins
(scale 1 to 50), beside that of the best constant; and share of the cells whose type {N_NEIGHBORS} neighbours tell, with
all genes and on a panel of {TEST_PANEL}.

| set | expression decoder | MVC decoder | constant | types | on a panel |
|---|---|---|---|---|---|
{chr(10).join(held_out)}

## Cell types in an unseen set

pbmc68k (700 cells, 765 genes, ten types; never trained on), as `tahoe demo` prints it:

```
{compare_with_pca(model)}
```

Masked bins of these cells: {predict_unseen(model)}
"""


def _figure(value: float | None, kind: str) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if kind.startswith("knn") else f"{value:.1f}"


def main() -> None:
    """Write the checkpoint, and its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("run", type=Path, help="folder that scripts/train_demo.py has written")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", choices=("average", "best"), default="average", help="weights that are written")
    parser.add_argument("--no-card", action="store_true", help="of a run that has not ended")
    options = parser.parse_args()
    settings = settings_of_state(options.run)
    if settings is None:
        parser.error(f"{options.run} has no weights.safetensors")
    cells = PackedCells(options.cells, settings.genes, torch.device("cpu"))
    network = settings.network(cells)
    network.load_state_dict(load_file(options.run / f"{options.part}.safetensors"))
    write_checkpoint(options.output, network.set_precision(torch.float16), cells.vocabulary)
    size = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.2f} MB, weights {file_sha256(options.output / 'model.safetensors')}")
    if not options.no_card:
        text = card(tahoe.load_model(options.output, device="cpu"), cells, settings, options.run)
        (options.output / "README.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
