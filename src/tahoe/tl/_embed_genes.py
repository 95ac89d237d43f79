from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, groups_of, slot_names
from tahoe._run.all_genes import embed_all_genes
from tahoe._run.inputs import read_inputs
from tahoe._run.means import GeneMeans, check_fits
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key, write_results
from tahoe.errors import InputError, check_at_least, check_choice

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch
    from anndata import AnnData

    from tahoe.model import TahoeModel

log = logging.getLogger(__name__)


@document_parameters
def embed_genes(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    context: bool | str = True,
    groupby: str | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    seed: int = 0,
    key_added: str = "tahoe",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Embed each gene: its mean contextual embedding over the cells that express it :cite:p:`Gandhi2025`.

    The output of the network at a gene's token depends on the cell. This is the mean of these outputs, over all cells
    or over each group, not normalised; one pass over the cells, summed in float64.

    Parameters
    ----------
    context
        False gives the input embeddings, with which the genes enter the network: the same in all cells, without a pass
        over them. ``"all"`` gives the outputs of the network for all genes of its vocabulary at once, with their values
        hidden and without a cell: also the same in all cells. The authors of Tahoe-x1 call these three «EA» (True),
        «GE» (False) and «TE» (``"all"``; 30,000 tokens see each other, which takes minutes on a CPU).
    key_added
        Name of the embeddings in ``adata.varm`` and of their record in ``adata.uns``; with `groupby`,
        ``f"{key_added}_{group}"`` in ``adata.varm`` for each group, with ``_`` for any ``/`` in its name.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.varm[key_added]`` : `numpy.ndarray` (float32, genes × d_model)
        The embeddings, NaN for a gene that no cell expresses or the model does not know. With `groupby` one such array
        for each group, under ``f"{key_added}_{group}"``.
    ``adata.varm[f"{key_added}_n_cells"]`` : `numpy.ndarray` (int64, genes × groups)
        How many cells each mean is taken over. One column without `groupby`; only with ``context=True``.
    ``adata.uns[key_added]`` : `dict`
        What is needed to repeat this; with `groupby` also ``"groups"``, the names of the groups in their order, and
        ``"group_sizes"``, how many cells each has.
    ``adata.var["tahoe_gene"]``, ``adata.var["tahoe_match"]``, ``adata.uns["tahoe_genes"]``
        As `tahoe.pp.map_genes` sets them, if that was not called before.

    Raises
    ------
    tahoe.errors.InputError
        If `groupby` is not a column of ``adata.obs``, has missing values, a group named ``n_cells``, or goes with
        ``context=False`` or ``"all"``, if `context` is anything else, if the result would not fit in memory, or as
        `tahoe.tl.embed`.
    tahoe.errors.GeneError, tahoe.errors.ModelError, tahoe.errors.DeviceError
        As `tahoe.tl.embed`.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()[:50].copy()
    >>> tahoe.tl.embed_genes(adata, model="demo")
    >>> adata.varm["tahoe"].shape[0] == adata.n_vars
    True
    """
    check_adata(adata)
    check_at_least(max_length=(max_length, 2))
    check_choice(context=(context, (True, False, "all")))
    context = context if context == "all" else bool(context)
    if groupby is not None and context is not True:
        message = f"groupby={groupby!r}, but with context={context!r} the embeddings are the same in all cells; omit it"
        raise InputError(message)
    codes, groups = groups_of(adata, groupby)
    counts = f"{key_added}_n_cells"
    names = slot_names(key_added, groups, groupby, taken=counts)
    check_key(adata, key_added, *(("varm", name) for name in ([*names, counts] if context else names)))
    adata = copy_or_self(adata, copy)
    inputs = read_inputs(
        adata,
        model,
        layer=layer,
        mask_var=mask_var,
        drug_key=drug_key,
        drugs=drugs,
        min_coverage=min_coverage,
        device=device,
        dtype=dtype,
    )
    record = inputs.record(context=context, groupby=groupby, max_length=max_length, seed=seed)
    record |= {} if groupby is None else {"groups": groups, "group_sizes": np.bincount(codes).tolist()}
    if context == "all":
        varm = {key_added: embed_all_genes(inputs.model, inputs.result_tokens)}
    elif context:
        check_fits(
            24 * len(groups) * adata.n_vars * inputs.model.config.d_model,
            f"{len(groups)} groups × {adata.n_vars} genes; choose a groupby= with fewer groups, or fewer genes",
        )
        log.info("embedding genes in %d cells of %s", inputs.matrix.n_cells, inputs.matrix.slot)
        config = inputs.model.config
        sums = GeneMeans(inputs.result_tokens, codes, len(groups), config.vocab_size, config.d_model)
        inputs.aggregate(sums, max_length=max_length, seed=seed)
        means, n_cells = sums.result()
        varm = dict(zip(names, means, strict=True)) | {counts: n_cells.T}
    else:
        varm = {key_added: _input_embeddings(inputs.model, inputs.result_tokens)}
    write_results(adata, key_added, record, inputs.mapping, varm=varm)
    return adata if copy else None


def _input_embeddings(model: TahoeModel, column_tokens: np.ndarray) -> np.ndarray:
    """Embedding with which each column's gene enters the network, NaN for columns without a token."""
    embeddings = np.full((len(column_tokens), model.config.d_model), np.nan, dtype=np.float32)
    known = column_tokens >= 0
    embeddings[known] = model.gene_inputs(column_tokens[known]).cpu().numpy()
    return embeddings
