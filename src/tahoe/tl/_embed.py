from __future__ import annotations

from typing import TYPE_CHECKING

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, n_genes_name
from tahoe._run.embed import embed_in_place
from tahoe._run.inputs import check_at_least
from tahoe._run.provenance import check_key

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy as np
    import torch
    from anndata import AnnData

    from tahoe.model import TahoeModel


def embed(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    normalize: bool = True,
    seed: int = 0,
    key_added: str = "X_tahoe",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    token_budget: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Embed each cell with Tahoe-x1 :cite:p:`Gandhi2025`.

    The vector of a cell depends on the cell alone: not on the other cells, their order, or the order of the genes. The
    network reads ranks within a cell, so counts, size-normalised and log-transformed values give the same result (up to
    rounding); scaled, corrected or imputed values are refused.

    Parameters
    ----------
    adata
        Annotated data matrix, cells × genes, human. In memory (array, CSR, CSC), backed (CSR or dense),
        or lazy, as `anndata.experimental.read_lazy` gives it (CSR or dense). Columns that are not gene expression by
        ``adata.var["feature_types"]`` take no part.
    model
        ``"70m"``, ``"1b"`` or ``"3b"`` (downloaded once), ``"demo"`` (ships with the package, not for science), a
        folder in the released layout, or what `tahoe.load_model` gave.
    layer
        Use ``adata.layers[layer]`` instead of ``adata.X``.
    use_raw
        Use ``adata.raw``, with its own genes.
    mask_var
        Which genes to use: a boolean array, or the name of a boolean column of ``adata.var``. All by default, and that
        is what the models were trained for: a selection of highly variable genes takes from them what they know.
    drug_key
        Column of ``adata.obs`` with the drug that each cell was treated with, for a model with a drug encoder (of the
        released ones, ``"3b"``). Every cell then carries a drug token; a missing value means no drug, as in training.
        Without `drug_key` no cell carries one.
    drugs
        Ids of the drugs by name, or a JSON file of them, where the checkpoint's folder has none; see
        `TahoeModel.drugs`.
    max_length
        Most tokens of a cell, one of them the cell's own. A cell that expresses more genes keeps a subset that depends
        on `seed` and on its own content only.
    min_coverage
        Least share of the counts (of the genes that `mask_var` selects) that must fall on genes that the model knows;
        below it nothing is embedded. Below 0.9 there is a warning. 0 switches this off.
    normalize
        Scale each vector to length 1, as the authors do.
    seed
        Of the choice of genes in cells above `max_length`.
    key_added
        Where in ``adata.obsm`` the vectors go.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. `None` picks CUDA, then MPS, then the CPU, and logs which.
    dtype
        ``"float32"``, ``"bfloat16"``, ``"float16"`` or, on some CPUs, ``"int8"``. `None`: see `tahoe.load_model`.
    attention
        ``"varlen"``, ``"blocked"``, ``"sdpa"``, ``"eager"`` or ``"flash"``. `None` picks by device.
    token_budget
        Most tokens handed to the network at once. `None` is 65,536, or as many as fit into the memory of the GPU. On a
        CPU each core takes one cell at a time, and this bounds how many wait.
    copy
        Return a changed copy instead of changing `adata`.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.obsm[key_added]`` : `numpy.ndarray` (float32, cells × d_model)
        The embeddings. NaN for a cell that expresses no gene of the vocabulary; a warning says how many there are.
        From lazy data a dask array: the vectors are computed when they are asked for.
    ``adata.obs["tahoe_n_genes"]`` : `pandas.Series` (int)
        How many genes of the vocabulary each cell expresses; ``adata.obs[f"{key_added}_n_genes"]`` with another
        `key_added` than the default. Not from lazy data, of which it would need a pass.
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
    check_at_least(max_length=(max_length, 2), token_budget=(token_budget, 1))
    adata = copy_or_self(adata, copy)
    embed_in_place(
        adata,
        model,
        key_added=key_added,
        max_length=max_length,
        normalize=normalize,
        seed=seed,
        token_budget=token_budget,
        layer=layer,
        use_raw=use_raw,
        mask_var=mask_var,
        min_coverage=min_coverage,
        drug_key=drug_key,
        drugs=drugs,
        device=device,
        dtype=dtype,
        attention=attention,
    )
    return adata if copy else None
