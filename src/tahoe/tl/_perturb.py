from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, groups_of
from tahoe._perturbation.perturbed_cells import choose_cells
from tahoe._perturbation.requests import requested_edits
from tahoe._perturbation.screen import Plan, Screen
from tahoe._perturbation.states import check_chosen, replicates_of, states_of
from tahoe._run.inputs import read_inputs
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key, write_results
from tahoe._run.requested_genes import drug_edits, edits_of
from tahoe.errors import InputError, ModelError, check_at_least, warn
from tahoe.model import TahoeModel
from tahoe.settings import settings

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData

    from tahoe._run.inputs import Inputs

COLUMNS = (
    "gene", "ensembl_id", "group", "n_cells", "detection", "mean_bin", "shift", "toward", "projection", "away",
    "percentile", "z", "p", "q", "shift_exact", "toward_exact", "projection_exact", "away_exact", "n_cells_exact",
)  # fmt: skip


@document_parameters
def perturb(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    genes: str | Sequence[str | tuple[str, ...]] | None = None,
    kind: str = "delete",
    goal: tuple[str, str, str] | None = None,
    alternative: str | None = None,
    method: str = "auto",
    replicate_key: str | None = None,
    min_cells: int = 10,
    n_cells: int = 200,
    n_null: int = 100,
    n_exact: int = 50,
    n_projections: int = 8,
    groupby: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | Sequence[str] | None = None,
    max_length: int = 2048,
    min_coverage: float = 0.5,
    seed: int = 0,
    key_added: str = "tahoe_perturb",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Perturb genes in silico: how far, and where to, the embedding of a cell moves without a gene, or with more of it.

    By default every gene that enough cells express is deleted, all at once: to first order the effect of a deletion is
    a derivative, so that one forward and one backward pass through the network give it for all genes of a cell. Exact
    edits, one forward pass each, then check the top of the list, and say how good the first order was.

    It says what the network makes of a cell with another set of genes. It predicts no expression after a knock-out, and
    linear baselines predict that better than models of this kind :cite:p:`AhlmannEltze2025`. See the guide page on
    perturbation for when not to trust it.

    Parameters
    ----------
    genes
        Which genes: names, as in ``adata.var_names`` or of any other gene of the model; a tuple of names is a
        combination, whose genes are edited together (exactly, whatever `method` is). `None` is every gene that was
        measured, the model knows, and `min_cells` of the cells can have edited; ``"vocabulary"``, for
        ``kind="activate"``, every gene of the model.
    kind
        ``"delete"`` removes the gene's token; bins and choice of the other genes stay. ``"maximum"`` gives it the
        highest bin in the cells that express it. ``"activate"`` adds it with the highest bin to the cells that do not.
        ``"drug"``, for models with a drug encoder, puts a cell with the drug's token beside the same cell with that of
        no drug: an association that was learned, without dose; `drugs` says which.
    goal
        ``(column, start, end)``: a column of ``adata.obs`` and two of its values. Cells of `start` are perturbed, and
        their movement towards those of `end` is measured. `None` perturbs all cells, and measures how far they
        move.
    alternative
        With `goal`, another value of its column: a state to be avoided.
    method
        ``"first_order"``, ``"exact"``, or ``"auto"``: first order for all, exact for the top `n_exact`, and for a
        random sample that measures how good the first order was.
    replicate_key
        Column of ``adata.obs`` with the replicate (donor) of each cell, each of which then counts alike. Only with it
        there are p-values: cells are not replicates.
    min_cells
        Leave out genes that fewer of the perturbed cells of a group can have edited; of genes that are named, only
        the statistics.
    n_cells
        Most cells that are perturbed, in each group, drawn by `seed`; and most of each state for a centroid. Of the
        start state at least half of the cells are left for its centroid.
    n_null
        With how many genes of like detection and mean bin, in the same cells, each gene is compared.
    n_exact
        How many genes of each group are edited exactly with ``method="auto"``; as many genes that are named are all
        edited exactly, in all cells, and of longer lists and whole screens the top, in some 30 cells of each group.
    n_projections
        Without a goal, in how many random directions the size of a change is looked at, anew for each cell; each costs
        a backward pass.
    drugs
        As for `tahoe.tl.embed`; with ``kind="drug"`` the drugs: names that the model knows, or a mapping, or a JSON
        file, of names and ids.
    key_added
        Where in ``adata.uns`` the result goes.
    dtype
        As for `tahoe.tl.embed`, but `None` is float32: in 16 bits the effect of one gene is mostly rounding. int8 has
        no gradients, so it goes with ``method="exact"`` only.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.uns[key_added]`` : `dict`
        ``"table"``, a `pandas.DataFrame` with a row for each gene in each group, which `tahoe.get.perturbation` sorts
        and filters; and what is needed to repeat this, with the agreement of first order and exact edits. The columns:

        - ``gene``, ``ensembl_id``, ``group``; of a combination the names joined by ``+``
        - ``n_cells`` in which it was edited; ``detection`` and ``mean_bin``, the share of the perturbed cells that
          express it and its mean bin there
        - ``shift``: one minus the cosine between the embedding before and after; without a goal, or exactly
        - ``toward``: change of the cosine with the centroid of the end state
        - ``projection``: movement along the line from the start to the end state, of length 1
        - ``away``: change of the cosine with the centroid of `alternative`
        - ``percentile``, ``z``: of the projection (without a goal, of the shift) among the genes that it is compared
          with
        - ``p``, ``q``: of the same, over replicates; see Notes
        - ``shift_exact``, ``toward_exact``, ``projection_exact``, ``away_exact``, and ``n_cells_exact``, the number of
          cells: by exact edits, where there were any
    ``adata.obsm[key_added]`` : `numpy.ndarray` (float32, cells × d_model)
        For a single gene, combination or drug that was edited exactly: the change of each cell's embedding, at length
        1; NaN for cells that were not perturbed.
    ``adata.var["tahoe_gene"]``, ``adata.var["tahoe_match"]``, ``adata.uns["tahoe_genes"]``
        As `tahoe.pp.map_genes` sets them, if that was not called before (not with `use_raw`).

    Raises
    ------
    tahoe.errors.InputError
        If a gene is unknown, if it is to be deleted and no cell expresses it, if there is no such column, state or
        drug, if a state has fewer than ten cells, if there is one replicate only, if ``method="exact"`` would take
        days, or as `tahoe.tl.embed`. `adata` is then as it was.
    tahoe.errors.ModelError
        If the model has its weights in 8 bits and `method` is not ``"exact"``, or as `tahoe.load_model`.
    tahoe.errors.GeneError, tahoe.errors.DeviceError
        As `tahoe.tl.embed`.

    Notes
    -----
    The p-values are those of a sign-flip test: in each replicate the effect of a gene minus the mean of those that it
    is compared with, and the sum of these among the sums with all other signs. With a goal each replicate has a line
    from start to end of its own, so that replicates do not share the error of a centroid; where each replicate has one
    of the states only, as donors who are ill or well, replicates of both are joined. q-values are those of Benjamini
    and Hochberg, in each group.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> goal = ("bulk_labels", "CD4+/CD25 T Reg", "CD14+ Monocyte")
    >>> tahoe.tl.perturb(adata, model="demo", goal=goal, n_cells=10, min_cells=3, n_exact=5)
    >>> table = tahoe.get.perturbation(adata)
    >>> {"gene", "toward", "projection", "percentile"} <= set(table.columns)
    True
    """
    check_adata(adata)
    check_at_least(
        max_length=(max_length, 2),
        min_cells=(min_cells, 1),
        n_cells=(n_cells, 2),
        n_null=(n_null, 1),
        n_exact=(n_exact, 0),
        n_projections=(n_projections, 1),
    )
    requested = requested_edits(genes, kind, method, drugs)
    check_key(adata, key_added, ("obsm", key_added))
    codes, groups = groups_of(adata, groupby)
    states = states_of(adata, goal, alternative)
    replicates = replicates_of(adata, replicate_key)
    chosen = choose_cells(codes, replicates, states, n_cells, seed)
    check_chosen(chosen, states, groups, goal, alternative, replicate_key)
    adata = copy_or_self(adata, copy)
    inputs = read_inputs(
        adata,
        model,
        layer=layer,
        use_raw=use_raw,
        mask_var=mask_var,
        min_coverage=min_coverage,
        drug_key=drug_key,
        drugs=None if kind == "drug" else drugs,  # type: ignore[arg-type]
        device=device,
        dtype=dtype if isinstance(model, TahoeModel) else dtype or settings.dtype or "float32",
    )
    _check_precision(inputs, method)
    record = inputs.record(
        kind=kind,
        goal=None if goal is None else [str(part) for part in goal],
        alternative=alternative,
        method=method,
        replicate_key=replicate_key,
        groupby=groupby,
        min_cells=min_cells,
        n_cells_perturbed=len(chosen.rows),
        n_null=n_null,
        n_exact=n_exact,
        n_projections=n_projections,
        n_units=chosen.n_units,
        max_length=max_length,
        seed=seed,
    )
    names, edits, pool = edits_of(inputs, requested, vocabulary=isinstance(genes, str) and genes == "vocabulary")
    if kind == "drug":
        names, edits, inputs = drug_edits(inputs, drugs)
    plan = Plan(
        *(inputs, chosen, kind, goal is not None, edits, pool, method),
        *(min_cells, n_null, n_exact, n_projections, seed, max_length),
    )
    screen = Screen(plan)
    if kind == "delete" and edits is not None:
        _refuse_silent(screen.counts.n_expressing.sum(0), edits, names)
    screened = screen.run()
    record |= _of_agreement(screened.agreement, adata)
    record["table"] = _named(screened.table, inputs, names, groups, drugs=kind == "drug")
    obsm = {}
    if screened.changes is not None:
        obsm[key_added] = np.full((adata.n_obs, screened.changes.shape[1]), np.nan, dtype=np.float32)
        obsm[key_added][chosen.rows] = screened.changes
    write_results(adata, key_added, record, inputs.mapping, obsm=obsm)
    return adata if copy else None


def _check_precision(inputs: Inputs, method: str) -> None:
    dtype = str(inputs.model.dtype).removeprefix("torch.")
    if dtype == "int8" and method != "exact":
        message = (
            f"the model {inputs.model.name!r} has its weights in int8, which has no gradients: pass method='exact', or"
            " load it with dtype='float32'"
        )
        raise ModelError(message)
    if inputs.model.dtype.itemsize < 4:
        message = f"in {dtype} the change by one gene is mostly rounding; load the model with dtype='float32'"
        warn(message)


def _refuse_silent(n_expressing: np.ndarray, edits: list[tuple[int, ...]], names: dict[tuple[int, ...], str]) -> None:
    """Refuse to delete what is not there."""
    silent = [names[edit] for edit in edits if not n_expressing[list(edit)].all()]
    if silent:
        message = (
            f"genes={silent[:5]}: none of the cells that are perturbed expresses them, so there is nothing to delete;"
            " kind='activate' switches genes on"
        )
        raise InputError(message)


def _of_agreement(agreement: dict[str, Any], adata: AnnData) -> dict[str, Any]:
    """What the provenance says of it, with the names of the cells in which it is poor."""
    found = dict(agreement)
    if found:
        found["agreement_poor_cells"] = [str(name) for name in adata.obs_names[found.pop("agreement_poor_rows")]]
    return found


def _named(
    table: pd.DataFrame, inputs: Inputs, names: dict[tuple[int, ...], str], groups: list[str], *, drugs: bool
) -> pd.DataFrame:
    """The table with names in the place of numbers; plain columns that survive h5ad and zarr."""
    vocabulary = {token: name for name, token in inputs.model.vocabulary.ids.items()}
    places = np.flatnonzero(inputs.result_tokens >= 0)
    columns = dict(zip(inputs.result_tokens[places].tolist(), inputs.matrix.var.index[places].astype(str), strict=True))
    edits = table["edit"].tolist()
    ids = ["" if drugs else "+".join(vocabulary[gene] for gene in edit) for edit in edits]
    gene_names = [names.get(edit) or columns.get(edit[0], id_) for edit, id_ in zip(edits, ids, strict=True)]
    of_group = [groups[code] for code in table["group"]]
    texts = {"gene": gene_names, "ensembl_id": ids, "group": of_group}
    named = table.assign(**{name: pd.Categorical(np.array(text, dtype=object)) for name, text in texts.items()})
    return named[[name for name in COLUMNS if name in named]].reset_index(drop=True)
