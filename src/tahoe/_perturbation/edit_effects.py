"""Effects of token edits on one cell, to first order and exactly.

Effects are changes of the cell's embedding at length 1: its shift, which is one minus the cosine between before and
after, and its movement in directions that are given.
Shapes are written as suffixes: U units of cells, J directions, E edits, P genes of an edit, D model width.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tahoe._run.batches import default_budget, plan
from tahoe.model.config import N_BINS
from tahoe.model.cuda.transfers import to_device
from tahoe.model.network.first_order import first_order, gradients
from tahoe.model.tokens.edits import deleted, with_drugs, with_genes, with_values

if TYPE_CHECKING:
    import torch

    from tahoe.model import TahoeModel, Tokens


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be found out about each cell."""

    kind: str
    """``"delete"``, ``"maximum"``, ``"activate"`` or ``"drug"``."""
    units: np.ndarray
    """Unit of each cell."""
    n_units: int
    directions_UJD: np.ndarray | None
    """Where each unit is to go, of length 1; `None` is the shift."""
    n_projections: int
    """How many random directions the shift is estimated from, to first order."""
    candidates: np.ndarray
    """Token ids of the genes that are edited, rising; which of them depends on what the cell expresses."""
    seed: int

    @property
    def names(self) -> list[str]:
        """The quantities that the first order estimates."""
        if self.directions_UJD is None:
            return ["shift"]
        return ["toward", "projection", "away"][: self.directions_UJD.shape[1]]

    @property
    def exact_names(self) -> list[str]:
        """The quantities that exact edits give."""
        return ["shift"] if self.directions_UJD is None else ["shift", *self.names]

    def genes_in(self, cell: Tokens) -> np.ndarray:
        """Token ids of the genes that may be edited in a cell, rising."""
        if self.kind == "activate":
            return np.setdiff1d(self.candidates, cell.ids, assume_unique=True)
        return np.intersect1d(self.candidates, cell.ids[cell.is_gene], assume_unique=True)

    def directions(self, cell: Tokens, unit: int, width: int) -> np.ndarray:
        """Those of the unit, or random ones that depend on the cell alone: at right angles, drawn anew for each."""
        if self.directions_UJD is not None:
            return self.directions_UJD[unit].astype(np.float32)
        content = zlib.crc32(cell.ids.tobytes() + cell.values.tobytes())
        drawn = np.random.default_rng([self.seed % 2**32, content]).normal(size=(width, self.n_projections))
        return np.linalg.qr(drawn)[0].T.astype(np.float32)


def highest_value(model: TahoeModel, cell: Tokens) -> float:
    """The highest bin; without bins, the highest value of the cell."""
    return float(N_BINS - 1) if model.config.binning else float(cell.values[cell.is_gene].max())


def estimate(model: TahoeModel, question: Question, cell: Tokens, unit: int, genes: np.ndarray) -> np.ndarray:
    """Effects of editing each of these genes in one cell, to first order: (J, genes), or (1, genes) for the shift."""
    top = highest_value(model, cell)
    with gradients(model.device):
        directions_JD = to_device(question.directions(cell, unit, model.config.d_model), model.device)
        shadows = None
        if question.kind != "delete":
            values = np.full(len(genes), top, dtype=np.float32)
            shadows = to_device(genes, model.device), to_device(values, model.device)
        effects = first_order(model.network, model.batch(cell), directions_JD, shadows)
    found = np.zeros((len(directions_JD), len(genes)))
    if effects.inserted_JS is not None:
        found += effects.inserted_JS.cpu().numpy()
    if question.kind != "activate":
        places = _places(cell, genes)
        found += effects.deleted_JN.cpu().numpy()[:, places]
        if question.kind == "maximum":
            found[:, cell.values[places] == top] = 0  # it is there already
    if question.directions_UJD is not None:
        return found
    # a random direction sees one D-th of the square of a change, and its half is one minus the cosine
    return 0.5 * model.config.d_model * (found**2).mean(0, keepdims=True)


def exact(
    model: TahoeModel, question: Question, cell: Tokens, unit: int, edits_EP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shift and movements by each edit of one cell, (1 + J, E), and the change of its embedding, (E, D).

    The embeddings are those of the edited tokens, to the last bit.
    """
    copies = edited(model, question, cell, edits_EP)
    parts = [copies.cells(*part) for part in plan(copies.bounds, default_budget(model))]
    before = of_length_one(model.embed_cells(cell))
    change_ED = np.concatenate([of_length_one(model.embed_cells(part)) for part in parts]) - before
    # the half of the square of the change is one minus the cosine, without the loss of digits
    effects_QE = 0.5 * (change_ED**2).sum(1)[None]
    if question.directions_UJD is not None:
        effects_QE = np.concatenate([effects_QE, question.directions_UJD[unit] @ change_ED.T])
    return effects_QE, change_ED


def edited(model: TahoeModel, question: Question, cell: Tokens, edits_EP: np.ndarray) -> Tokens:
    """Copies of one cell, one for each edit: of genes, or of the drug."""
    if question.kind == "drug":
        return with_drugs(cell, edits_EP[:, 0])
    if question.kind == "activate":
        return with_genes(cell, edits_EP, highest_value(model, cell))
    places_EP = _places(cell, edits_EP)
    if question.kind == "delete":
        return deleted(cell, places_EP)
    return with_values(cell, places_EP, highest_value(model, cell))


def _places(cell: Tokens, genes: np.ndarray) -> np.ndarray:
    """Where the tokens of some genes stand in a cell that has them, behind the special ones."""
    first = 1 if cell.drugs is None else 2
    return np.searchsorted(cell.ids[first:], genes) + first


def of_length_one(embeddings: torch.Tensor) -> np.ndarray:
    rows = embeddings.cpu().numpy().astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def is_editable(cell: Tokens, kind: str, n_genes: int = 1) -> bool:
    """Whether a cell still expresses a gene of the model after an edit."""
    n_left = int(cell.is_gene.sum()) - (n_genes if kind == "delete" else 0)
    return n_left > 0
