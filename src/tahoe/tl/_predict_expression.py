from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self
from tahoe._run.inputs import read_inputs
from tahoe._run.means import check_fits
from tahoe._run.parameters import document_parameters
from tahoe._run.predictions import HiddenPredictions, ObservedPredictions, QueriedPredictions
from tahoe._run.provenance import check_key, write_results
from tahoe._run.requested_genes import tokens_of_genes
from tahoe.errors import InputError, check_at_least, check_choice

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData
    from scipy import sparse

    from tahoe._run.inputs import Inputs
    from tahoe.model import TahoeModel

log = logging.getLogger(__name__)

DECODERS = ("expression", "mvc")
SCORES = ("n_hidden", "pearson", "spearman", "mse", "mse_gene_mean")


@document_parameters
def predict_expression(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    genes: Sequence[str] | None = None,
    mask_fraction: float | None = None,
    decoder: str = "expression",
    layer: str | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    seed: int = 0,
    key_added: str = "tahoe_expression",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Predict how strongly genes are expressed, with the decoders of Tahoe-x1 :cite:p:`Gandhi2025`.

    There are three questions. What does the network say of the genes that a cell expresses, having seen their values?
    That is the default: a reconstruction, not a test. What does it say of a share of them whose values are hidden? That
    is `mask_fraction`: a test of the model on these very cells. And what does it say of genes that are queried by name,
    whether they were measured or not? That is `genes`.

    All values are on the scale of bins: 1 for the weakest of a cell's expressed genes, 50 for the strongest. They are
    neither counts nor comparable between cells as counts are. The models learned from expressed genes only, so the
    prediction for a gene that a cell does not express is the bin in which it would be if it were detected; it does not
    say whether it is.

    Parameters
    ----------
    genes
        Genes to query: by ``adata.var_names``, or any other gene of the model's vocabulary by its Ensembl id or symbol.
        Where a cell expresses one of them, its value is hidden; all other genes are seen. `None` predicts the genes
        that each cell expresses.
    mask_fraction
        Share of each cell's genes to hide and predict, above 0 and below 1. Which ones depends on `seed` and on the
        genes of the cell only.
    decoder
        ``"expression"`` reads the output at the token of the gene. ``"mvc"`` knows only the cell's embedding and which
        gene is meant.
    key_added
        Name of the predictions in ``adata.layers`` (``adata.obsm`` with `genes`), of their record in ``adata.uns``, and
        with `mask_fraction` the beginning of the names of the scores in ``adata.obs``.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.layers[key_added]`` : `scipy.sparse.csr_matrix` (float32, cells × genes)
        Without `genes`. The prediction for each gene that the cell expresses and the model knows, or, with
        `mask_fraction`, for each of them that was hidden. What was not predicted is not stored.
    ``adata.obsm[key_added]`` : `pandas.DataFrame` (float32, cells × queried genes)
        With `genes`: the prediction for each of them in each cell, by the names that were given. NaN for a cell that
        expresses no gene of the vocabulary.
    ``adata.obs[f"{key_added}_n_hidden"]`` : `pandas.Series` (int)
        With `mask_fraction`: how many genes were hidden in each cell.
    ``adata.obs[f"{key_added}_pearson"]``, ``adata.obs[f"{key_added}_spearman"]`` : `pandas.Series` (float)
        With `mask_fraction`: how their predictions correlate with their bins. NaN where too few were hidden.
    ``adata.obs[f"{key_added}_mse"]``, ``adata.obs[f"{key_added}_mse_gene_mean"]`` : `pandas.Series` (float)
        With `mask_fraction`: the mean squared error of these predictions; and, to compare with, that of a predictor
        that knows no cell: each gene's mean bin over the cells in which it was not hidden.
    ``adata.uns[key_added]`` : `dict`
        What is needed to repeat this.
    ``adata.var["tahoe_gene"]``, ``adata.var["tahoe_match"]``, ``adata.uns["tahoe_genes"]``
        As `tahoe.pp.map_genes` sets them, if that was not called before.

    Raises
    ------
    tahoe.errors.InputError
        If a gene is unknown to the model, if both `genes` and `mask_fraction` are given, if the model lacks the
        decoder, if `key_added` is `layer`, if the result would not fit in memory, or as `tahoe.tl.embed`.
    tahoe.errors.GeneError, tahoe.errors.ModelError, tahoe.errors.DeviceError
        As `tahoe.tl.embed`.

    Notes
    -----
    Hidden tokens carry the model's mask flag in the place of a value. In ``"70m"`` and ``"1b"`` no token sees a hidden
    one, so that a prediction does not depend on which other genes are queried. ``"3b"`` was trained with full
    attention; there it does. Genes that a cell loses above `max_length` are not predicted; queried ones come on top of
    it.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()[:20].copy()
    >>> tahoe.tl.predict_expression(adata, model="demo", mask_fraction=0.2)
    >>> bool((adata.obs["tahoe_expression_n_hidden"] > 0).all())
    True
    >>> tahoe.tl.predict_expression(adata, model="demo", genes=["CD3D", "CD14"], key_added="queried")
    >>> adata.obsm["queried"].columns.to_list()
    ['CD3D', 'CD14']
    """
    check_adata(adata)
    check_at_least(max_length=(max_length, 2))
    queried = [genes] if isinstance(genes, str) else None if genes is None else [str(gene) for gene in genes]
    _check_question(queried, mask_fraction, decoder)
    score_names = [] if mask_fraction is None else [f"{key_added}_{name}" for name in SCORES]
    slot = "layers" if queried is None else "obsm"
    if slot == "layers" and layer == key_added:
        message = f"key_added={key_added!r} is the layer that is read, and would be lost; choose another"
        raise InputError(message)
    check_key(adata, key_added, (slot, key_added), *(("obs", name) for name in score_names))
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
    if decoder == "mvc" and not inputs.model.config.mvc_decoder:
        message = f"decoder='mvc', but the model {inputs.model.name!r} has none; use decoder='expression'"
        raise InputError(message)
    record = inputs.record(
        genes=queried, mask_fraction=mask_fraction, decoder=decoder, max_length=max_length, seed=seed
    )
    log.info("predicting expression in %d cells of %s", adata.n_obs, inputs.matrix.slot)
    tokenizing = {"max_length": max_length, "seed": seed}
    if queried is not None:
        table = _query(inputs, queried, decoder, tokenizing)
        obsm = {key_added: table.set_index(adata.obs_names)}
        write_results(adata, key_added, record, inputs.mapping, obsm=obsm)
    else:
        predicted, scores = _predict(inputs, decoder, mask_fraction, tokenizing)
        obs = {name: scores[score] for name, score in zip(score_names, SCORES, strict=False)}
        write_results(adata, key_added, record, inputs.mapping, layers={key_added: predicted}, obs=obs)
    return adata if copy else None


def _check_question(genes: list[str] | None, mask_fraction: float | None, decoder: str) -> None:
    check_choice(decoder=(decoder, DECODERS))
    if genes is not None and mask_fraction is not None:
        message = "genes= and mask_fraction= ask two questions; pass only one of them"
        raise InputError(message)
    if genes is not None and (not genes or len(set(genes)) < len(genes)):
        message = f"genes={genes[:5]}: name at least one gene, and each once"
        raise InputError(message)
    if mask_fraction is not None and not 0 < mask_fraction < 1:
        message = f"mask_fraction={mask_fraction}: it must lie between 0 and 1, such as 0.15"
        raise InputError(message)


def _query(inputs: Inputs, genes: list[str], decoder: str, tokenizing: dict[str, Any]) -> pd.DataFrame:
    """Predictions for genes that are queried by name, one row for each cell."""
    n_cells = inputs.matrix.n_cells
    tokens, place = np.unique(tokens_of_genes(inputs, genes), return_inverse=True)
    # the batches, and the whole that they are joined to
    check_fits(8 * n_cells * len(genes), f"{n_cells} cells × {len(genes)} genes; choose fewer with genes=")
    predicted = inputs.aggregate(QueriedPredictions(tokens, decoder), **tokenizing).result()
    return pd.DataFrame(predicted[:, place], columns=genes)


def _predict(
    inputs: Inputs, decoder: str, share: float | None, tokenizing: dict[str, Any]
) -> tuple[sparse.csr_matrix, dict[str, np.ndarray]]:
    """Predictions for the genes that cells express, or for a hidden share of them and how good these are."""
    n_cells = inputs.matrix.n_cells
    first = next(inputs.matrix.blocks())
    n_entries = int(first.nnz / first.shape[0] * n_cells * (share or 1))
    what = f"{n_cells} cells with {first.nnz // first.shape[0]} genes each; take fewer cells, or query some with genes="
    check_fits((16 if share is None else 32) * n_entries, what)
    columns, vocab_size = inputs.result_tokens, inputs.model.config.vocab_size
    if share is None:
        return inputs.aggregate(ObservedPredictions(columns, vocab_size, decoder), **tokenizing).result(), {}
    hidden = HiddenPredictions(columns, vocab_size, decoder, share, tokenizing["seed"])
    predicted, scores = inputs.aggregate(hidden, **tokenizing).result()
    return predicted, {name: scores[name].to_numpy() for name in SCORES}
