"""The cells of an AnnData through a model, and the embeddings into its slots."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.slots import n_genes_name
from tahoe._run.batches import embed_cells
from tahoe._run.cluster import embed_lazily
from tahoe._run.provenance import write_results
from tahoe.errors import warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from tahoe._run.inputs import Inputs

log = logging.getLogger(__name__)


def embed_in_place(
    adata: AnnData,
    inputs: Inputs,
    *,
    normalize: bool,
    max_length: int,
    seed: int,
    key_added: str,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Embed the cells, and write embeddings, numbers of genes and provenance, to which `origin` is added."""
    counts = n_genes_name(key_added)
    log.info("embedding %d cells of %s with %r", inputs.matrix.n_cells, inputs.matrix.slot, inputs.model)
    # before the work: the hash of the weights needs their file
    record = inputs.record(max_length=max_length, normalize=normalize, seed=seed, **(origin or {}))
    parameters: dict[str, Any] = {"max_length": max_length, "seed": seed}
    if inputs.matrix.is_lazy:
        task = inputs.task(**parameters, normalize=normalize)
        embeddings, obs = embed_lazily(inputs.matrix.values, task, inputs.model.config.d_model), {}
    else:
        embeddings, n_genes = embed_cells(inputs.model, inputs.cell_batches(**parameters), normalize=normalize)
        _warn_of_empty_cells(n_genes, counts)
        obs = {counts: n_genes}
    write_results(adata, key_added, record, inputs.mapping, obsm={key_added: embeddings}, obs=obs)


def _warn_of_empty_cells(n_genes: np.ndarray, column: str) -> None:
    empty = np.flatnonzero(n_genes == 0)
    if len(empty):
        message = (
            f"{len(empty)} of {len(n_genes)} cells express no gene of the model's vocabulary (first: row {empty[0]});"
            f" their embeddings are NaN. Remove them before sc.pp.neighbors: adata[adata.obs[{column!r}] > 0]"
        )
        warn(message)
