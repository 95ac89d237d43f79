"""What the training of the demo model sees: batches of views from packed cells, and scores of the cells held out.

Needs torch, numpy and `tahoe.model` alone; `scripts/demo_cells.py` packs the cells.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from demo_losses import masked_losses, outputs
from demo_views import CellCounts, Views, draw_views
from torch import Tensor

from tahoe.model import Network, Vocabulary, tokenize
from tahoe.model.checkpoint.weights import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model import ModelConfig

# Half of the views, as a rule, see a panel of genes instead of all, as files of highly variable genes have.
SMALLEST_PANEL, LARGEST_PANEL = 500, 5000
# Width of the initial gene embeddings. Their norm takes it away again, but it decides how fast training moves them.
INITIAL_WIDTH = 0.2
SPECIAL = ("<pad>", "<cls>", "<eoc>")
# Neighbours that vote when the types of held-out cells are told, and the panel on which they are told once more.
N_NEIGHBORS, TEST_PANEL = 10, 800


@dataclass(frozen=True)
class Sampling:
    """How cells are drawn for a step."""

    lots: int = 8
    """Lots of a step, each from one set; of longer views there are fewer."""
    lot_cells: int = 128
    """Cells of a lot: each is to be told from the others."""
    tokens: tuple[int, ...] = (128, 256, 512)
    """Tokens of a view, the cell's own included: one of these for each step, the shortest first."""
    panel_share: float = 0.5
    """Share of the lots, in each of the two views, that see a panel of genes."""
    thin_from: float = 0.3
    """Views have counted between this share of a cell's molecules and all of them."""


class PackedCells:
    """All cells, their counts on one device, on the genes that most cells express.

    Parameters
    ----------
    path
        What `scripts/demo_cells.py` has written.
    n_genes
        How many genes the vocabulary is to have.
    device
        Where the counts are to lie.
    unseen
        Sets of which all cells are held out.
    """

    def __init__(self, path: Path, n_genes: int, device: torch.device, unseen: tuple[str, ...] = ()) -> None:
        with np.load(path) as file:
            content = dict(file)
        self.about = json.loads(str(content["about"]))
        genes = content["genes"].astype(str)
        kept = np.sort(np.argsort(-content["expressing"], kind="stable")[:n_genes])
        self.vocabulary = Vocabulary({token: id_ for id_, token in enumerate([*SPECIAL, *genes[kept]])})
        rows = np.concatenate([np.arange(len(SPECIAL)), len(SPECIAL) + kept])
        self.counts = _counts(content, rows, device)
        self.variability = torch.from_numpy(content["variability"][:, rows].astype(np.float32)).to(device)
        self._initial = content["initial"][rows].astype(np.float32)
        sizes = [one["n_cells"] for one in self.about]
        self.names = [one["name"] for one in self.about]
        self.set_of_cell = np.repeat(np.arange(len(sizes)), sizes)
        self.labels = content["labels"]
        held_out = content["held_out"] | np.isin(self.set_of_cell, [self.names.index(name) for name in unseen])
        self.training = [np.flatnonzero((self.set_of_cell == which) & ~held_out) for which in range(len(sizes))]
        self.held_out = [np.flatnonzero((self.set_of_cell == which) & held_out) for which in range(len(sizes))]
        # between cells and sets; and a set of few genes teaches less than a whole transcriptome
        share = [np.sqrt(len(rows) * min(1, one["n_genes"] / 10_000)) for rows, one in
                 zip(self.training, self.about, strict=True)]  # fmt: skip
        self.share = np.array(share) / np.sum(share)

    def initial_gene_vectors(self, width: int) -> Tensor:
        """Gene embeddings to start from, (tokens, width): mean bin, frequency and singular vectors, each of size 1."""
        vectors = self._initial[:, :width].copy()
        vectors[:, 2:] /= np.sqrt((vectors[:, 2:] ** 2).mean(axis=1, keepdims=True) + 1e-12)
        noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
        initial = torch.from_numpy(vectors) + 0.1 * noise
        initial[: len(SPECIAL)] = noise[: len(SPECIAL)]
        return INITIAL_WIDTH * initial

    def draw(self, sampling: Sampling, seed: int, step: int) -> tuple[Views, Tensor]:
        """Two views of each cell of some lots, and which cells they are, (lots, cells): the same for the same step."""
        generator = np.random.default_rng([seed, step])
        on_device = torch.Generator(self.counts.device).manual_seed(int(generator.integers(2**62)))
        length = int(generator.choice(sampling.tokens))
        n_lots = max(1, sampling.lots * sampling.tokens[0] // length)
        sets = generator.choice(len(self.names), n_lots, p=self.share)
        cells = np.stack([_some(self.training[which], sampling.lot_cells, generator) for which in sets])
        n_panels = 2 * n_lots
        size = np.exp(generator.uniform(np.log(SMALLEST_PANEL), np.log(LARGEST_PANEL), n_panels)).astype(np.int64)
        size[generator.random(n_panels) >= sampling.panel_share] = len(self.vocabulary)
        n_views = 2 * cells.size
        views = draw_views(
            self.counts,
            np.tile(cells.ravel(), 2),
            on_device,
            length=length,
            cell_token=self.vocabulary.cell,
            thin_to_R=generator.uniform(sampling.thin_from, 1, n_views),
            panels_PV=self.panels(np.tile(sets, 2), size, on_device),
            panel_R=np.repeat(np.arange(n_panels), sampling.lot_cells),
        )
        return views, torch.from_numpy(cells).to(self.counts.device)

    def panels(self, sets: np.ndarray, sizes: np.ndarray, generator: torch.Generator) -> Tensor:
        """Random panels of rather variable genes (boolean), (panels, tokens), one for each of these sets."""
        device = self.counts.device
        weight = self.variability[torch.from_numpy(sets).to(device)]
        measured = weight > 0
        weight = measured * (weight + 0.1 * weight.sum(1, keepdim=True) / measured.sum(1, keepdim=True)) + 1e-9
        keys = torch.rand(weight.shape, generator=generator, device=device).clamp(min=1e-30).log() / weight
        ranks = keys.argsort(dim=1, descending=True).argsort(dim=1)
        return ranks < torch.from_numpy(sizes).to(device)[:, None]


@torch.no_grad()
def start_from(network: Network, cells: PackedCells, folder: Path) -> None:
    """Put the weights of a model in, those of genes by their names; genes that it does not know stay as they are.

    Raises
    ------
    ValueError
        If the network has another shape.
    """
    trained, vocabulary, _ = read_checkpoint(folder)
    weights = trained.state_dict()
    for name, weight in network.state_dict().items():
        if name != "genes.weight" and weight.shape != weights.get(name, torch.empty(0)).shape:
            message = f"{folder} is no start for this network: its {name} is not of shape {tuple(weight.shape)}"
            raise ValueError(message)
    rows = torch.tensor([vocabulary.ids.get(token, -1) for token in cells.vocabulary.ids])
    kept = network.genes.weight.detach().cpu().clone()
    kept[rows >= 0] = weights["genes.weight"][rows[rows >= 0]]
    network.load_state_dict(weights | {"genes.weight": kept})


def _counts(content: dict[str, np.ndarray], rows: np.ndarray, device: torch.device) -> CellCounts:
    """Counts on a device, without genes that are not among the rows kept of the vocabulary that was packed."""
    steps, counts = (content[name].T.copy().view("<u2").ravel() for name in ("steps", "counts"))
    bounds = np.concatenate([[0], np.cumsum(content["lengths"], dtype=np.int64)])
    ids = np.cumsum(steps, dtype=np.int64)
    # steps start anew in each cell
    before = np.concatenate([[0], ids])[bounds[:-1]]
    ids -= np.repeat(before, content["lengths"])
    tokens = np.full(len(content["initial"]), -1, dtype=np.int32)
    tokens[rows] = np.arange(len(rows))
    ids = tokens[ids]
    kept = ids >= 0
    bounds = np.concatenate([[0], np.cumsum(kept)])[bounds]
    return CellCounts(
        torch.from_numpy(ids[kept]).to(device), torch.from_numpy(counts[kept].astype(np.float32)).to(device), bounds
    )


def _some(cells: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `n` of the cells, no cell twice before all have been drawn."""
    orders = [generator.permutation(cells) for _ in range(-(-n // len(cells)))]
    return np.concatenate(orders)[:n]


@torch.inference_mode()
def scores(network: Network, cells: PackedCells, *, most_cells: int = 400, length: int = 1024) -> dict[str, float]:
    """Tell how good a network is on held-out cells, with all genes and on a panel of variable ones.

    Returns
    -------
    By set, the share of the cells whose type their nearest neighbours tell, and the errors of both decoders beside
    those of the gene means of these very cells and of the best constant; then the means over the sets.
    """
    results: dict[str, dict[str, float]] = {}
    for which, name in enumerate(cells.names):
        rows = cells.held_out[which][:: max(1, len(cells.held_out[which]) // most_cells)]
        labels = torch.from_numpy(cells.labels[rows].astype(np.int64)).to(cells.counts.device)
        results[name] = {}
        for where, size in (("", len(cells.vocabulary)), ("_panel", TEST_PANEL)):
            generator = torch.Generator(cells.counts.device).manual_seed(0)
            panel = cells.panels(np.array([which]), np.array([size]), generator)
            if (labels >= 0).sum() >= 30 and len(labels.unique()) > 1:
                embeddings = _embed(network, cells, rows, panel, generator, length)
                results[name][f"knn{where}"] = neighbours_tell(embeddings[labels >= 0], labels[labels >= 0])
            errors = _errors(network, cells, rows, panel, generator, length)
            results[name] |= {f"{kind}{where}": error for kind, error in errors.items()}
    kinds = sorted({kind for result in results.values() for kind in result})
    means = {kind: float(np.mean([r[kind] for r in results.values() if kind in r])) for kind in kinds}
    return {f"{name}/{kind}": round(v, 4) for name, result in results.items() for kind, v in result.items()} | means


def quality(result: dict[str, float]) -> float:
    """What settings are chosen by: types told by neighbours, less a little for errors in masked values."""
    errors = result["expression"] / result["constant"] + result["expression_panel"] / result["constant_panel"]
    return (result.get("knn", 0) + result.get("knn_panel", 0)) / 2 - 0.1 * errors


def _lots(rows: np.ndarray, length: int) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) * length // (1 << 17))))


def _embed(
    network: Network, cells: PackedCells, rows: np.ndarray, panel: Tensor, generator: torch.Generator, length: int
) -> Tensor:
    """Embeddings, of length 1."""
    parts = []
    for lot in _lots(rows, length):
        where = {"panels_PV": panel, "panel_R": np.zeros(len(lot), np.int64), "cell_token": cells.vocabulary.cell}
        views = draw_views(cells.counts, lot, generator, length=length, mask_share=0, **where)
        parts.append(outputs(network, views)[:, 0])
    return F.normalize(torch.cat(parts), dim=1)


def _errors(
    network: Network, cells: PackedCells, rows: np.ndarray, panel: Tensor, generator: torch.Generator, length: int
) -> dict[str, float]:
    """Mean squared errors where half of the genes are masked."""
    sums, n, ids, values = np.zeros(2), 0, [], []
    for lot in _lots(rows, length):
        where = {"panels_PV": panel, "panel_R": np.zeros(len(lot), np.int64), "cell_token": cells.vocabulary.cell}
        views = draw_views(cells.counts, lot, generator, length=length, **where)
        losses = masked_losses(network, views, outputs(network, views))
        asked = views.is_gene_RN[:, -views.n_queried :]
        ids.append(views.ids_RN[:, -views.n_queried :][asked])
        values.append(views.values_RN[:, -views.n_queried :][asked])
        sums += len(ids[-1]) * np.array([losses.expression.item(), losses.mvc.item()])  # type: ignore[union-attr]
        n += len(ids[-1])
    genes, truth = torch.cat(ids), torch.cat(values)
    means = torch.bincount(genes, weights=truth) / torch.bincount(genes).clamp(min=1)
    of_means, constant = ((truth - means[genes]) ** 2).mean().item(), truth.var(correction=0).item()
    return {"expression": sums[0] / n, "mvc": sums[1] / n, "means": of_means, "constant": constant}


def neighbours_tell(embeddings: Tensor, labels: Tensor) -> float:
    """Share of the cells whose label has most votes among their nearest neighbours, themselves left out."""
    near = embeddings @ embeddings.T
    nearest = near.fill_diagonal_(-2).topk(min(N_NEIGHBORS, len(labels) - 1), dim=1).indices
    votes = F.one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
    return (votes.argmax(1) == labels).float().mean().item()


def wrong_bins(cells: PackedCells, config: ModelConfig, n_cells: int = 200) -> int:
    """How many bins of some cells differ from those of the tokenizer: the device may round otherwise."""
    rows = np.random.default_rng(0).permutation(len(cells.set_of_cell))[:n_cells]
    bounds = cells.counts.bounds_C
    longest = int(np.diff(bounds)[rows].max())
    generator = torch.Generator(cells.counts.device).manual_seed(0)
    cell_token = cells.vocabulary.cell
    views = draw_views(cells.counts, rows, generator, length=1 + longest, cell_token=cell_token, mask_share=0)
    wrong = 0
    for row, ids, values, is_gene in zip(
        rows, views.ids_RN.cpu().numpy(), views.values_RN.cpu().numpy(), views.is_gene_RN.cpu().numpy(), strict=True
    ):
        entries = slice(bounds[row], bounds[row + 1])
        columns, counts = cells.counts.ids_E[entries].cpu().numpy(), cells.counts.counts_E[entries].cpu().numpy()
        n, identity = np.array([0, len(columns)]), np.arange(len(cells.vocabulary))
        tokens = tokenize(n, columns, counts, identity, config=config, vocabulary=cells.vocabulary, max_length=None)
        order = np.argsort(ids[is_gene])
        wrong += int((values[is_gene][order] != tokens.values[1:]).sum())
        wrong += int((ids[is_gene][order] != tokens.ids[1:]).sum())
    return wrong
