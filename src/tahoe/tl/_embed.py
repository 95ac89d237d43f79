from __future__ import annotations

from typing import TYPE_CHECKING

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, n_genes_name
from tahoe._run.embed import embed_in_place
from tahoe._run.inputs import read_inputs
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key
from tahoe.errors import check_at_least

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy as np
    import torch
    from anndata import AnnData

    from tahoe.model import TahoeModel


@document_parameters
def embed(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    normalize: bool = True,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    seed: int = 0,
    key_added: str = "X_tahoe",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Embed each cell with Tahoe-x1 :cite:p:`Gandhi2025`.

    The embedding of a cell depends on the cell alone: not on the other cells, their order, or the order of the genes.
    The network reads ranks within a cell, so counts, size-normalised and log-transformed values give the same result
    (up to rounding); scaled, corrected or imputed values are refused.

    Parameters
    ----------
    key_added
        Name of the embedding in ``adata.obsm`` and of its record in ``adata.uns``.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.obsm[key_added]`` : `numpy.ndarray` (float32, cells × d_model)
        The embeddings. NaN for a cell that expresses no gene of the vocabulary; a warning says how many there are.
        From lazy data a dask array, which is computed when it is needed.
    ``adata.obs["tahoe_n_genes"]`` : `pandas.Series` (int)
        How many genes of the vocabulary each cell expresses: the name is `key_added` without ``X_``, and ``_n_genes``.
        Not from lazy data, of which it would need a pass.
    ``adata.uns[key_added]`` : `dict`
        What is needed to repeat this: parameters, model and its hashes, the slot that was read, versions.
    ``adata.var["tahoe_gene"]``, ``adata.var["tahoe_match"]``, ``adata.uns["tahoe_genes"]``
        As `tahoe.pp.map_genes` sets them, if that was not called before (not with `use_raw`).

    Raises
    ------
    tahoe.errors.InputError
        If `adata` is no AnnData, if the slot does not exist, or its values are negative, not finite, or imputed, or if
        a drug is unknown. `adata` is then as it was.
    tahoe.errors.GeneError
        If too little of the counts falls on genes of the model's vocabulary: see `min_coverage`.
    tahoe.errors.ModelError, tahoe.errors.DeviceError
        As `tahoe.load_model`.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> adata.obsm["X_tahoe"].shape[0] == adata.n_obs
    True
    """
    check_adata(adata)
    counts = n_genes_name(key_added)
    check_key(adata, key_added, ("obsm", key_added), ("obs", counts))
    check_at_least(max_length=(max_length, 2))
    adata = copy_or_self(adata, copy)
    inputs = read_inputs(
        adata,
        model,
        layer=layer,
        use_raw=use_raw,
        mask_var=mask_var,
        drug_key=drug_key,
        drugs=drugs,
        min_coverage=min_coverage,
        device=device,
        dtype=dtype,
    )
    embed_in_place(adata, inputs, normalize=normalize, max_length=max_length, seed=seed, key_added=key_added)
    return adata if copy else None
