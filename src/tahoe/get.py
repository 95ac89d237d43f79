"""Read single results as data frames, without changing the AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import row_of
from tahoe._perturbation.results import SCORES, table_of
from tahoe._run.inputs import choose_numbers, read_inputs
from tahoe._run.means import mean_of_heads, places_of
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError, check_at_least, listed

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData

    from tahoe._run.inputs import Inputs
    from tahoe.model import TahoeModel, Tokens

__all__ = ["attention", "gene_embeddings", "perturbation"]


@document_parameters
def gene_embeddings(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    cell: str | int,
    layer: str | None = None,
    use_raw: bool = False,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> pd.DataFrame:
    """Contextual embeddings of the genes of one cell: the outputs of the network at their tokens.

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
    >>> genes = tahoe.get.gene_embeddings(adata, "demo", cell=0)
    >>> genes.shape[1]
    128
    """
    inputs, tokens = _one_cell(
        adata,
        model,
        cell,
        layer=layer,
        use_raw=use_raw,
        drug_key=drug_key,
        drugs=drugs,
        max_length=max_length,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    places, columns = _genes_in_order(inputs, tokens)
    embeddings = inputs.model.embed_tokens(tokens).cpu().numpy()
    return pd.DataFrame(embeddings[places], index=inputs.matrix.var.index[columns])


@document_parameters
def attention(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    cell: str | int,
    network_layer: int | Sequence[int] | None = -1,
    heads: int | Sequence[int] | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> pd.DataFrame:
    """Attention among the tokens of one cell.

    Returns
    -------
    Tokens × tokens, float32: row ``i``, column ``j`` says how much token ``i`` attends to token ``j``, and each row
    sums to one. First comes the CLS token, ``"<cls>"`` (with `drug_key`, ``"<drug>"`` behind it), then the genes that
    the cell expresses and the model knows, in the order and by the names of ``adata.var`` (of ``adata.raw.var`` with
    `use_raw`). The mean over `network_layer` and `heads`.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such cell, layer or head, if the cell expresses no gene that the model knows, or as
        `tahoe.tl.embed`.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> weights = tahoe.get.attention(adata, "demo", cell=0, heads=2)
    >>> weights.index[0]
    '<cls>'
    """
    inputs, tokens = _one_cell(
        adata,
        model,
        cell,
        layer=layer,
        use_raw=use_raw,
        drug_key=drug_key,
        drugs=drugs,
        max_length=max_length,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    config = inputs.model.config
    layers = choose_numbers("network_layer", network_layer, config.n_layers, "layers")
    chosen = choose_numbers("heads", heads, config.n_heads, "heads")
    of_layers: list[np.ndarray] = []
    inputs.model.observe(
        tokens, layers, lambda layer, cell, weights_HNN: of_layers.append(mean_of_heads(weights_HNN, chosen))
    )
    mean = np.stack(of_layers).mean(axis=0).astype(np.float32)
    places, columns = _genes_in_order(inputs, tokens)
    special = ["<cls>"] if tokens.drugs is None else ["<cls>", "<drug>"]
    order = np.concatenate([np.arange(len(special)), places])
    names = pd.Index([*special, *inputs.matrix.var.index[columns]])
    return pd.DataFrame(mean[np.ix_(order, order)], index=names, columns=names)


def perturbation(
    adata: AnnData,
    *,
    key: str = "tahoe_perturb",
    group: str | None = None,
    sort_by: str | None = None,
    ascending: bool | None = None,
    min_edited: int = 0,
    max_q: float | None = None,
) -> pd.DataFrame:
    """Table of a perturbation screen, sorted and filtered.

    Parameters
    ----------
    adata
        Data that `tahoe.tl.perturb` has seen: reads ``adata.uns[key]``. It is not changed.
    key
        Under which `tahoe.tl.perturb` left the result, its `key_added`.
    group
        Only this group; all of them by default.
    sort_by
        Column to sort by: the projection with a goal, else the shift.
    ascending
        From the smallest up. `None` sorts from the largest down, p- and q-values from the smallest up.
    min_edited
        Only genes that were edited in so many cells.
    max_q
        Only genes with at most this q-value.

    Returns
    -------
    A data frame with the columns that `tahoe.tl.perturb` names; those in which nothing is known are left out.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such result, group or column, or no q-values to filter by.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.perturb(adata, model="demo", genes=["CD3D", "NKG7"], n_cells=50, n_exact=0)
    >>> tahoe.get.perturbation(adata)["gene"].sort_values().to_list()
    ['CD3D', 'NKG7']
    """
    check_adata(adata)
    table = table_of(adata, key, group)
    sort_by = sort_by or next(name for name in SCORES if table[name].notna().any())
    if sort_by not in table:
        message = f"sort_by={sort_by!r} is not a column of the table, which has {listed(table, most=30)}"
        raise InputError(message)
    if max_q is not None and table["q"].isna().all():
        message = f"max_q={max_q}, but there are no q-values; call tahoe.tl.perturb with replicate_key="
        raise InputError(message)
    table = table[table["n_cells"] >= min_edited]
    table = table if max_q is None else table[table["q"] <= max_q]
    up = sort_by in ("p", "q") if ascending is None else ascending
    table = table.sort_values(sort_by, ascending=up, kind="stable").reset_index(drop=True)
    return table.dropna(axis="columns", how="all") if len(table) else table


def _one_cell(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel,
    cell: str | int,
    *,
    max_length: int,
    seed: int,
    **options: Any,
) -> tuple[Inputs, Tokens]:
    """What a verb needs, and the tokens of one cell; `options` are those of `read_inputs`."""
    check_adata(adata)
    check_at_least(max_length=(max_length, 2))
    row = row_of(adata, cell)
    inputs = read_inputs(adata, model, **options, whole=False)
    block = next(inputs.matrix.checked_blocks(inputs.column_tokens >= 0, row, row + 1))
    of_cell = None if inputs.drugs is None else inputs.drugs[row : row + 1]
    tokens = inputs.model.tokenize(block, inputs.column_tokens, max_length=max_length, seed=seed, drugs=of_cell)
    if not tokens.n_genes[0]:
        message = f"cell={cell!r} expresses no gene of the model's vocabulary; choose another cell"
        raise InputError(message)
    return inputs, tokens


def _genes_in_order(inputs: Inputs, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Where a cell's genes stand among its tokens, in the order of the columns, and these columns."""
    columns = places_of(inputs.result_tokens, inputs.model.config.vocab_size)[tokens.ids]
    places = np.flatnonzero(columns >= 0)
    places = places[np.argsort(columns[places])]
    return places, columns[places]
