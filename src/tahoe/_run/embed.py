"""The cells of an AnnData through a model, and the embeddings into its slots."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.slots import n_genes_name
from tahoe._run.batches import embed_cells
from tahoe._run.cluster import embed_lazily
from tahoe._run.inputs import read_inputs
from tahoe._run.provenance import write_results
from tahoe.errors import warn

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from anndata import AnnData

    from tahoe.model import TahoeModel

log = logging.getLogger(__name__)


def embed_in_place(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel,
    *,
    key_added: str,
    max_length: int,
    normalize: bool,
    seed: int,
    token_budget: int | None,
    origin: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Embed the cells, and write embeddings, numbers of genes and provenance.

    `options` are those of `read_inputs`; `origin` goes into the provenance too.
    """
    counts = n_genes_name(key_added)
    inputs = read_inputs(adata, model, **options)
    log.info("embedding %d cells of %s with %r", inputs.matrix.n_cells, inputs.matrix.slot, inputs.model)
    # before the work: the hash of the weights needs their file
    parameters: dict[str, Any] = {"max_length": max_length, "seed": seed, "token_budget": token_budget}
    record = inputs.record(**parameters, normalize=normalize, **(origin or {}))
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
