from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import columns_of, copy_or_self, groups_of, slot_names
from tahoe._run.inputs import choose_numbers, read_inputs
from tahoe._run.means import AttentionMeans, check_fits
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key, write_results
from tahoe.errors import InputError, check_at_least, warn

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData

    from tahoe.model import TahoeModel

log = logging.getLogger(__name__)


@document_parameters
def attention(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    network_layer: int | Sequence[int] | None = -1,
    heads: int | Sequence[int] | None = None,
    genes: Sequence[str] | None = None,
    top_k: int | None = None,
    min_cells: int = 10,
    groupby: str | None = None,
    layer: str | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    seed: int = 0,
    key_added: str = "tahoe_attention",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Average the attention between genes over cells.

    In each cell a row of the attention matrix says from which tokens a token takes what it adds to itself; it sums to
    one over all tokens of the cell. For each pair of genes this is the mean over the cells that express both. It says
    how the network computes, not which gene regulates which.

    Parameters
    ----------
    genes
        Only these, by ``adata.var_names``; `None` takes all. The attention is the same as without; it bounds the size
        of the result.
    top_k
        Keep only so many of the strongest entries of each row. It bounds what is stored, `genes` also what is summed.
    min_cells
        Omit genes and pairs of genes that fewer cells express. The mean of a few cells says little, and such pairs are
        often the strongest. 1 keeps all.
    key_added
        Name of the result in ``adata.varp`` and of its record in ``adata.uns``; with `groupby`,
        ``f"{key_added}_{group}"`` in ``adata.varp`` for each group, with ``_`` for any ``/`` in its name.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.varp[key_added]`` : `scipy.sparse.csr_matrix` (float32, genes × genes)
        Row ``i``, column ``j``: how much gene ``i`` attends to gene ``j``, as a share of its attention, in the mean
        over the cells that express both. Nothing is stored for pairs that fewer than `min_cells` express.
    ``adata.var[f"{key_added}_from_cell"]`` : `pandas.Series` (float32)
        How much the CLS token, whose output is the embedding of the cell, attends to each gene, in the mean over the
        cells that express it; NaN where fewer than `min_cells` do. With `groupby` one column for each group,
        ``f"{key_added}_{group}_from_cell"``.
    ``adata.uns[key_added]`` : `dict`
        What is needed to repeat this; with `groupby` also ``"groups"``, the names of the groups in their order, and
        ``"group_sizes"``, how many cells each has.
    ``adata.var["tahoe_gene"]``, ``adata.var["tahoe_match"]``, ``adata.uns["tahoe_genes"]``
        As `tahoe.pp.map_genes` sets them, if that was not called before.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such layer, head, gene or column of ``adata.obs``, if that column has missing values, if no cell
        expresses any of `genes`, if no group has `min_cells` cells, if the result would not fit in memory (`genes`
        bounds it), or as `tahoe.tl.embed`.
    tahoe.errors.GeneError, tahoe.errors.ModelError, tahoe.errors.DeviceError
        As `tahoe.tl.embed`.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If some of the groups have fewer than `min_cells` cells, of which nothing is kept.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()[:20].copy()
    >>> tahoe.tl.attention(adata, model="demo", top_k=10)
    >>> adata.varp["tahoe_attention"].shape == (adata.n_vars, adata.n_vars)
    True
    """
    check_adata(adata)
    check_at_least(max_length=(max_length, 2), top_k=(top_k, 1), min_cells=(min_cells, 1))
    codes, groups = groups_of(adata, groupby)
    group_sizes = np.bincount(codes, minlength=len(groups))
    names = slot_names(key_added, groups, groupby)
    cls_names = [f"{name}_from_cell" for name in names]
    check_key(adata, key_added, *(("varp", name) for name in names), *(("var", name) for name in cls_names))
    chosen = columns_of(adata, genes)
    _check_group_sizes(group_sizes, groups, groupby, min_cells)
    adata = copy_or_self(adata, copy)
    inputs = read_inputs(
        adata,
        model,
        layer=layer,
        drug_key=drug_key,
        drugs=drugs,
        min_coverage=min_coverage,
        device=device,
        dtype=dtype,
    )
    # a batch is one cell, so that no more than its weights are held
    inputs = replace(inputs, token_budget=1)
    config = inputs.model.config
    network_layers = choose_numbers("network_layer", network_layer, config.n_layers, "layers")
    head_numbers = choose_numbers("heads", heads, config.n_heads, "heads")
    columns = inputs.expressed(chosen)
    n_groups, n_genes = len(groups), len(columns)
    n_bytes = (20 if top_k is None else 36) * n_groups * n_genes**2
    check_fits(n_bytes, f"{n_groups} × {n_genes} × {n_genes} genes; choose fewer with genes=")
    log.info("attention among %d genes in %d cells", n_genes, adata.n_obs)
    record = inputs.record(
        network_layers=list(network_layers),
        heads=list(head_numbers),
        top_k=top_k,
        min_cells=min_cells,
        groupby=groupby,
        max_length=max_length,
        seed=seed,
    )
    record |= {} if groupby is None else {"groups": groups, "group_sizes": group_sizes.tolist()}
    means = AttentionMeans(
        *(inputs.result_tokens, columns, codes, n_groups, config.vocab_size),
        *(network_layers, head_numbers, top_k, min_cells),
    )
    matrices, from_cell = inputs.aggregate(means, max_length=max_length, seed=seed).result()
    varp, var = dict(zip(names, matrices, strict=True)), dict(zip(cls_names, from_cell, strict=True))
    write_results(adata, key_added, record, inputs.mapping, varp=varp, var=var)
    return adata if copy else None


def _check_group_sizes(sizes: np.ndarray, groups: list[str], groupby: str | None, min_cells: int) -> None:
    """Refuse groups of which nothing would be kept, or warn if it is only some of them."""
    small = np.flatnonzero(sizes < min_cells)
    if len(small) == len(sizes) and sizes.any():
        largest = (
            f"adata has {sizes[0]} cells" if groupby is None else f"no group of obs[{groupby!r}] has so many cells"
        )
        message = f"min_cells={min_cells}, but {largest}: nothing would be kept; pass a smaller min_cells="
        raise InputError(message)
    elif len(small):
        named = ", ".join(repr(groups[number]) for number in small[:5])
        message = (
            f"{len(small)} of {len(sizes)} groups of obs[{groupby!r}] have fewer than min_cells={min_cells} cells, and"
            f" their attention is empty: {named}"
        )
        warn(message)
