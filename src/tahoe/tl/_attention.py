from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import columns_of, copy_or_self, groups_of, slot_names
from tahoe._run.inputs import check_at_least, choose_heads, choose_network_layers, read_inputs
from tahoe._run.means import AttentionMeans, check_fits
from tahoe._run.provenance import check_key, write_results

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData

    from tahoe.model import TahoeModel

log = logging.getLogger(__name__)


def attention(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    network_layer: int | Sequence[int] | str = -1,
    heads: int | Sequence[int] | str = "mean",
    groupby: str | None = None,
    genes: Sequence[str] | None = None,
    top_k: int | None = None,
    min_cells: int = 1,
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
    adata
        Annotated data matrix, cells × genes, human. In any storage that `tahoe.tl.embed` takes.
    model
        As for `tahoe.tl.embed`.
    network_layer
        Which layer of the network: a number from 0, or from the end if negative; several numbers, or ``"all"``, are
        averaged.
    heads
        ``"mean"`` over all heads, or the numbers of those to average.
    groupby
        Column of ``adata.obs``; one mean for each of its groups instead of one over all cells.
    genes
        Only these, by ``adata.var_names``. The attention is the same as without; it bounds the size of the result.
    top_k
        Keep only so many of the strongest entries of each row. It bounds what is stored, `genes` also what is summed.
    min_cells
        Leave out genes and pairs of genes that fewer cells express. A mean over one or two cells says little, and such
        pairs are often the strongest.
    layer
        One of ``adata.layers``, not of the network.
    drug_key, drugs, max_length, min_coverage, seed
        As for `tahoe.tl.embed`.
    key_added
        Where in ``adata.varp`` the result goes; with `groupby`, ``f"{key_added}_{group}"`` for each group,
        with ``_`` for any ``/`` in its name.
    device, dtype
        As for `tahoe.tl.embed`.
    copy
        Return a changed copy instead of changing `adata`.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.varp[key_added]`` : `scipy.sparse.csr_matrix` (float32, genes × genes)
        Row ``i``, column ``j``: how much gene ``i`` attends to gene ``j``, as a share of its attention, in the mean
        over the cells that express both. Nothing is stored for pairs that fewer than `min_cells` express.
    ``adata.var[f"{key_added}_from_cell"]`` : `pandas.Series` (float32)
        How much the cell's own token, whose output is the embedding, attends to each gene, in the mean over the cells
        that express it; NaN where fewer than `min_cells` do. With `groupby` one column for each group,
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
        expresses any of `genes`, if the result would not fit in memory (`genes` bounds it), or as `tahoe.tl.embed`.
    tahoe.errors.GeneError, tahoe.errors.ModelError, tahoe.errors.DeviceError
        As `tahoe.tl.embed`.

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
    names = slot_names(key_added, groups, groupby)
    own_names = [f"{name}_from_cell" for name in names]
    check_key(adata, key_added, *(("varp", name) for name in names), *(("var", name) for name in own_names))
    chosen = columns_of(adata, genes)
    adata = copy_or_self(adata, copy)
    inputs = read_inputs(
        adata,
        model,
        layer=layer,
        use_raw=False,
        min_coverage=min_coverage,
        drug_key=drug_key,
        drugs=drugs,
        device=device,
        dtype=dtype,
    )
    network_layers = choose_network_layers(network_layer, inputs.model.config.n_layers)
    head_numbers = choose_heads(heads, inputs.model.config.n_heads)
    columns = inputs.expressed(chosen)
    n_groups, n_genes = len(groups), len(columns)
    n_bytes = (20 if top_k is None else 36) * n_groups * n_genes**2
    check_fits(n_bytes, f"{n_groups} × {n_genes} × {n_genes} genes; choose fewer with genes=")
    log.info("attention among %d genes in %d cells", n_genes, adata.n_obs)
    record = inputs.record(
        network_layers=list(network_layers),
        heads=list(head_numbers),
        groupby=groupby,
        top_k=top_k,
        min_cells=min_cells,
        max_length=max_length,
        seed=seed,
    )
    record |= {} if groupby is None else {"groups": groups, "group_sizes": np.bincount(codes).tolist()}
    means = AttentionMeans(
        inputs.result_tokens,
        columns,
        codes,
        n_groups,
        inputs.model.config.vocab_size,
        network_layers,
        head_numbers,
        top_k,
        min_cells,
    )
    # a batch is one cell, so that no more than its weights are held
    matrices, from_cell = inputs.aggregate(means, max_length=max_length, seed=seed, token_budget=1).result()
    varp, var = dict(zip(names, matrices, strict=True)), dict(zip(own_names, from_cell, strict=True))
    write_results(adata, key_added, record, inputs.mapping, varp=varp, var=var)
    return adata if copy else None
