"""The cells of an AnnData through a model, and the embeddings into its slots."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.slots import n_genes_name, write
from tahoe._run.batches import embed_cells
from tahoe._run.cluster import embed_lazily
from tahoe.errors import TahoeWarning

if TYPE_CHECKING:
    from anndata import AnnData

    from tahoe._run.inputs import Inputs

log = logging.getLogger(__name__)


def embed_in_place(
    adata: AnnData, inputs: Inputs, *, normalize: bool, max_length: int, seed: int, key_added: str
) -> None:
    """Embed the cells, and write embeddings, numbers of genes and provenance."""
    counts = n_genes_name(key_added)
    log.info("embedding %d cells of %s with %r", inputs.matrix.n_cells, inputs.matrix.slot, inputs.model)
    # before the work: the hash of the weights needs their file
    record = inputs.record(max_length=max_length, normalize=normalize, seed=seed)
    parameters: dict[str, Any] = {"max_length": max_length, "seed": seed}
    if inputs.matrix.is_lazy:
        task = inputs.task(**parameters, normalize=normalize)
        obsm = {key_added: embed_lazily(inputs.matrix.values, task, inputs.model.config.d_model)}
        obs = {}
    else:
        embeddings, n_genes = embed_cells(inputs.model, inputs.cell_batches(**parameters), normalize=normalize)
        _warn_of_empty_cells(n_genes, counts)
        obsm, obs = {key_added: embeddings}, {counts: n_genes}
    write(adata, obsm=obsm, obs=obs, uns={key_added: record}, mapping=inputs.mapping)


def _warn_of_empty_cells(n_genes: np.ndarray, column: str) -> None:
    empty = np.flatnonzero(n_genes == 0)
    if len(empty):
        message = (
            f"{len(empty)} of {len(n_genes)} cells express no gene of the model's vocabulary (first: row {empty[0]});"
            f" their embeddings are NaN. Remove them before sc.pp.neighbors: adata[adata.obs[{column!r}] > 0]"
        )
        # embed_in_place, the verb, its caller
        warnings.warn(message, TahoeWarning, stacklevel=4)
