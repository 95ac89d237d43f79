"""Read single results as data frames, without changing the AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._adata import row_of
from tahoe._inputs import check_at_least, read_inputs
from tahoe.errors import InputError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from anndata import AnnData

    from tahoe.model import TahoeModel

__all__ = ["gene_embeddings"]


def gene_embeddings(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel,
    cell: str | int,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    seed: int = 0,
) -> pd.DataFrame:
    """Contextual vectors of the genes of one cell: the outputs of the network at their tokens.

    Parameters
    ----------
    adata
        Annotated data matrix, cells × genes, human. It is not changed.
    model
        As for `tahoe.tl.embed`. Load it once with `tahoe.load_model` to look at several cells.
    cell
        Name of the cell in ``adata.obs_names``, or its number, from 0.
    layer, use_raw, drug_key, drugs, max_length, seed
        As for `tahoe.tl.embed`.

    Returns
    -------
    One row for each gene that the cell expresses and the model knows, in the order and by the names of ``adata.var``
    (of ``adata.raw.var`` with `use_raw`); d_model columns, float32, not normalised.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such cell, if it expresses no gene that the model knows, or as `tahoe.tl.embed`.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> genes = tahoe.get.gene_embeddings(adata, "demo", 0)
    >>> genes.shape[1]
    96
    """
    check_at_least(max_length=(max_length, 2))
    row = row_of(adata, cell)
    inputs = read_inputs(adata, model, layer=layer, use_raw=use_raw, whole=False, drug_key=drug_key, drugs=drugs)
    block = next(inputs.matrix.checked_blocks(row, row + 1))
    of_cell = None if inputs.drugs is None else inputs.drugs[row : row + 1]
    tokens = inputs.model.tokenize(block, inputs.column_tokens, max_length=max_length, seed=seed, drugs=of_cell)
    if not tokens.n_genes[0]:
        message = f"cell={cell!r} expresses no gene of the model's vocabulary; choose another cell"
        raise InputError(message)
    n_special = 1 if of_cell is None else 2
    vectors = inputs.model.embed_tokens(tokens).cpu().numpy()[n_special:]
    column_of = {token: column for column, token in enumerate(inputs.column_tokens.tolist()) if token >= 0}
    columns = np.array([column_of[token] for token in tokens.ids[n_special:].tolist()])
    order = np.argsort(columns)
    return pd.DataFrame(vectors[order], index=inputs.matrix.var.index[columns[order]])
