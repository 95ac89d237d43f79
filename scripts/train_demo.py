"""Train the demo model that ships with the package: a small Tahoe-x1 network on a few thousand human cells.

    python scripts/train_demo.py CELLS.h5ad [MORE.h5ad ...] --steps 4000

Each file holds raw counts in ``X``, gene names that `tahoe.pp.map_genes` knows, and, for the model card, its origin
in ``uns["source"]`` and ``uns["licence"]``. Five per cent of the cells of each file are held out. The run can be
killed and started again: it goes on from ``--state``. The cells of `tahoe.datasets.pbmc68k` must not be among the
files: the comparison in the model card is made on them.

An hour on a CPU is too short to learn from nothing what genes go together; so the gene embeddings start as the leading
singular vectors of the log-normalised training cells, with each gene's mean bin and frequency, and not at random.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

import tahoe
from tahoe.model import ModelConfig, TahoeModel, Tokens, Vocabulary, tokenize
from tahoe.model.checkpoint import write_checkpoint
from tahoe.model.layout import file_sha256
from tahoe.model.training import Losses, Sampler, TrainingPlan, evaluate, new_network, train

log = logging.getLogger("train_demo")
HELD_OUT = 0.05
CELLS_PER_LOT, LOTS_PER_STEP = 8, 6
# Training sees at most this many tokens of a cell; attention costs the square of it.
TRAINING_LENGTH = 128
# A gene enters the vocabulary if at least this many of the cells express it.
LEAST_CELLS = 100
# Half of the steps see a panel of genes instead of all, as files of highly variable genes have.
PANEL_SHARE, SMALLEST_PANEL, LARGEST_PANEL = 0.5, 400, 4000
# Width of the initial gene embeddings. Their norm takes it away again, but it decides how fast training moves them.
INITIAL_WIDTH = 0.2


@dataclass
class Cells:
    """The cells of one file, on the genes that were mapped."""

    name: str
    source: str
    sha256: str
    genes: np.ndarray
    training: sparse.csr_array
    held_out: sparse.csr_array
    variability: np.ndarray

    weight: float = 1.0

    @classmethod
    def read(cls, path: Path, generator: np.random.Generator) -> Cells:
        """Map the genes of a file and hold some of its cells out."""
        adata = anndata.read_h5ad(path)
        tahoe.pp.map_genes(adata)
        genes = adata.var["tahoe_gene"].astype(str).to_numpy(dtype=object)
        counts = sparse.csr_array(adata.X[:, genes != ""])
        order = generator.permutation(adata.n_obs)
        n_held_out = round(HELD_OUT * adata.n_obs)
        logs = counts.log1p()
        mean = logs.mean(axis=0)
        variability = ((logs * logs).mean(axis=0) - mean**2) / (mean + 1e-3)
        source = f"{adata.uns.get('source', 'unknown')} ({adata.uns.get('licence', 'licence unknown')})"
        return cls(
            path.stem,
            source,
            hashlib.sha256(path.read_bytes()).hexdigest(),
            genes[genes != ""],
            counts[order[n_held_out:]],
            counts[order[:n_held_out]],
            variability,
        )


def build_vocabulary(files: list[Cells]) -> Vocabulary:
    """Genes that enough of the cells express, sorted by Ensembl id, behind the special tokens."""
    expressing: dict[str, int] = {}
    for cells in files:
        for gene, n_cells in zip(cells.genes, (cells.training > 0).sum(axis=0), strict=True):
            expressing[gene] = expressing.get(gene, 0) + int(n_cells)
    genes = sorted(gene for gene, n_cells in expressing.items() if n_cells >= LEAST_CELLS)
    return Vocabulary({token: id_ for id_, token in enumerate(["<pad>", "<cls>", "<eoc>", *genes])})


def initial_gene_vectors(files: list[Cells], vocabulary: Vocabulary, width: int) -> torch.Tensor:
    """What genes go together in the training cells, (tokens, width): singular vectors, mean bin and frequency."""
    stacked, mean_bins, frequencies = [], np.zeros(len(vocabulary)), np.zeros(len(vocabulary))
    for cells in files:
        columns = vocabulary.tokens_of(cells.genes)
        counts = cells.training[:, columns >= 0]
        known = columns[columns >= 0]
        logs = (sparse.diags_array(3000 / np.maximum(counts.sum(axis=1), 1)) @ counts).log1p().tocoo()
        # between counting each cell and counting each file alike
        share = (1000 / counts.shape[0]) ** 0.25
        shape = (counts.shape[0], len(vocabulary))
        stacked.append(sparse.csr_array((logs.data * share, (logs.row, known[logs.col])), shape=shape))
        some = counts[:400]
        tokens = tokenize(
            some.indptr, some.indices, some.data, known, config=ModelConfig(8, 1, 1, shape[1]), vocabulary=vocabulary
        )
        np.add.at(mean_bins, tokens.ids, tokens.values / len(tokens))
        np.add.at(frequencies, tokens.ids, 1 / len(tokens))
    matrix = sparse.vstack(stacked).tocsr()
    spread = np.sqrt(np.maximum((matrix * matrix).mean(axis=0) - matrix.mean(axis=0) ** 2, 2.5e-3))
    _, values, vectors = randomized_svd(matrix @ sparse.diags_array(1 / spread), width - 2, n_iter=4, random_state=0)
    vectors = vectors.T * np.sqrt(values)
    vectors /= np.sqrt((vectors**2).mean(axis=1, keepdims=True) + 1e-12)
    known = frequencies > 0
    extra = np.zeros((len(vocabulary), 2))
    extra[known, 0] = standard(mean_bins[known] / frequencies[known])
    extra[known, 1] = standard(np.log(frequencies[known]))
    initial = torch.from_numpy(np.hstack([vectors, extra])).float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(initial.shape, generator=generator)
    initial += 0.1 * noise
    special = [id_ for token, id_ in vocabulary.ids.items() if token.startswith("<")]
    initial[special] = noise[special]
    return INITIAL_WIDTH * initial


def standard(values: np.ndarray) -> np.ndarray:
    """Mean 0, standard deviation 1."""
    return (values - values.mean()) / values.std()


def panel(cells: Cells, columns: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Token ids of the columns, with all but a random panel of rather variable genes taken away."""
    size = int(np.exp(generator.uniform(np.log(SMALLEST_PANEL), np.log(LARGEST_PANEL))))
    weight = np.where(columns >= 0, cells.variability + 0.1 * cells.variability.mean(), 0) + 1e-12
    keys = np.log(generator.random(len(columns))) / weight
    kept = np.argsort(-keys)[:size]
    chosen = np.full_like(columns, -1)
    chosen[kept] = columns[kept]
    return chosen


def make_sampler(files: list[Cells], vocabulary: Vocabulary, config: ModelConfig) -> Sampler:
    """Draw the cells of a step in lots, each from one file and one panel, favoured and small files more often."""
    columns = [vocabulary.tokens_of(cells.genes) for cells in files]
    share = np.array([cells.weight * np.sqrt(cells.training.shape[0]) for cells in files])
    share /= share.sum()

    def draw_lot(generator: np.random.Generator) -> Tokens:
        which = generator.choice(len(files), p=share)
        cells = files[which]
        rows = cells.training[generator.choice(cells.training.shape[0], CELLS_PER_LOT)]
        seen = columns[which]
        if generator.random() < PANEL_SHARE:
            seen = panel(cells, seen, generator)
        return tokenize(
            rows.indptr,
            rows.indices,
            rows.data,
            seen,
            config=config,
            vocabulary=vocabulary,
            max_length=TRAINING_LENGTH,
            seed=int(generator.integers(2**62)),
        )

    return lambda generator: Tokens.joined([draw_lot(generator) for _ in range(LOTS_PER_STEP)])


def held_out_losses(model: TahoeModel, files: list[Cells]) -> dict[str, dict[str, float]]:
    """Errors on the cells that were kept back, by file, with up to 512 tokens of each."""
    results = {}
    for cells in files:
        tokens = model.tokenize(cells.held_out, model.vocabulary.tokens_of(cells.genes), max_length=512)
        results[cells.name] = evaluate(model.network, tokens)
    return results


def compare_with_pca(model: TahoeModel) -> str:
    """Score cells that no file has, as `tahoe demo` does."""
    from tahoe._demo import score_table

    adata = tahoe.datasets.pbmc68k()
    tahoe.tl.embed(adata, model=model)
    return score_table(adata).round(3).to_string()


def predict_unseen(model: TahoeModel) -> str:
    """Say how far masked values are predicted in cells of a set that no file has."""
    adata = tahoe.datasets.pbmc68k()
    tahoe.pp.map_genes(adata)
    tokens = model.tokenize(adata.X, model.vocabulary.tokens_of(adata.var["tahoe_gene"].astype(str).to_numpy()))
    errors = evaluate(model.network, tokens)
    genes, values = tokens.ids[tokens.ids > 2], tokens.values[tokens.ids > 2]
    means = np.bincount(genes, weights=values) / np.maximum(np.bincount(genes), 1)
    of_means = ((values - means[genes]) ** 2).mean()
    return (
        f"mean squared error {errors['expression_mse']:.0f} (expression decoder) and {errors['mvc_mse']:.0f} (MVC),"
        f"\nthe best constant {errors['constant_mse']:.0f}, each gene's own mean in this set {of_means:.0f}."
    )


def main() -> None:
    """Train, write the checkpoint, and write its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--favour", nargs="*", default=[], metavar="NAME", help="files to draw twice as often")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("demo-training.safetensors"))
    parser.add_argument("--output", type=Path, default=Path("src/tahoe/data/demo-model"))
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    generator = np.random.default_rng(options.seed)
    files = [Cells.read(path, generator) for path in options.files]
    for cells in files:
        cells.weight = 2.0 if cells.name in options.favour else 1.0
    vocabulary = build_vocabulary(files)
    config = ModelConfig(
        d_model=96,
        n_layers=3,
        n_heads=4,
        vocab_size=len(vocabulary),
        gene_norm=True,
        value_norm=True,
        decoder_layers=1,
        mvc_scaled=True,
        max_length=2048,
    )
    device = tahoe.model.loading.choose_device(options.device)
    plan = TrainingPlan(options.steps, options.learning_rate, bfloat16=True, seed=options.seed, save_every=200)
    network = new_network(config, options.seed)
    with torch.no_grad():
        network.genes.weight.copy_(initial_gene_vectors(files, vocabulary, config.d_model))
    network.to(device)
    log.info("%s parameters, %s genes", f"{sum(w.numel() for w in network.parameters()):,}", len(vocabulary.genes))

    recent: list[float] = []

    def report(step: int, losses: Losses) -> None:
        recent.append(losses.total.item())
        if (step + 1) % 100 == 0:
            log.info("step %d: loss %.1f", step + 1, np.mean(recent[-100:]))

    train(network, make_sampler(files, vocabulary, config), plan, state_file=options.state, report=report)
    write_checkpoint(options.output, network.cpu().set_precision(torch.float16), vocabulary)
    write_card(options.output, tahoe.load_model(options.output, device="cpu"), files, plan)


def write_card(folder: Path, model: TahoeModel, files: list[Cells], plan: TrainingPlan) -> None:
    """Say beside the weights what they are, what they were made from, and how far they go."""
    losses = held_out_losses(model, files)
    rows = [
        f"| {name} | {loss['expression_mse']:.1f} | {loss['mvc_mse']:.1f} | {loss['constant_mse']:.1f} |"
        for name, loss in losses.items()
    ]
    sources = [
        f"| {c.name} | {c.training.shape[0] + c.held_out.shape[0]:,} | {c.source} | `{c.sha256[:16]}…` |" for c in files
    ]
    config = model.config
    n_cells = sum(cells.training.shape[0] for cells in files)
    favoured = [cells.name for cells in files if cells.weight > 1]
    card = f"""# The demo model of tahoe

A small network of the Tahoe-x1 architecture, trained by this project (`scripts/train_demo.py`):
{config.n_layers} layers × {config.d_model}, {config.n_heads} heads, {model.n_parameters:,} parameters,
{len(model.vocabulary.genes):,} genes. It exists to try the package, to test it and to run its documentation.
**It is not for science**: it has seen {n_cells:,} cells, where the released models saw hundreds of millions.

## Training data

| set | cells | source (licence) | sha256 of the file |
|---|---|---|---|
{chr(10).join(sources)}

## Training

Masked expression, both decoders; the settings: `{json.dumps(asdict(plan))}`.
{CELLS_PER_LOT * LOTS_PER_STEP} cells a step, at most {TRAINING_LENGTH} tokens of each, {PANEL_SHARE:.0%} of them on
random panels of {SMALLEST_PANEL} to {LARGEST_PANEL:,} genes; drawn twice as often: {", ".join(favoured) or "no file"}.
The gene embeddings started as singular vectors of the log-normalised training cells.
Weights are stored in float16; sha256 `{file_sha256(folder / "model.safetensors")}`.

## Held-out loss

Mean squared error of masked bins (scale 1 to 50) in the {HELD_OUT:.0%} of cells that were held out, beside that of
the best constant.

| set | expression decoder | MVC decoder | constant |
|---|---|---|---|
{chr(10).join(rows)}

## Cell types in an unseen set

pbmc68k (700 cells, 765 genes, ten types; never trained on), as `tahoe demo` prints it:

```
{compare_with_pca(model)}
```

Masked bins of these cells: {predict_unseen(model)}
"""
    (folder / "README.md").write_text(card)
    log.info("%s", card)


if __name__ == "__main__":
    main()
