from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, groups_of, write
from tahoe._reference.labels import Labels, vote
from tahoe._reference.reference import load_reference
from tahoe._reference.transfer import CELLS_AT_ONCE, Transfer, as_categories
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key, with_slots
from tahoe.errors import InputError, warn
from tahoe.model.loading import choose_device
from tahoe.settings import settings
from tahoe.tl._query import check_query, embed_as

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch
    from anndata import AnnData

    from tahoe._reference.reference import Reference
    from tahoe.model import TahoeModel


@document_parameters
def transfer_labels(
    adata: AnnData,
    reference: str | os.PathLike[str] | Reference,
    *,
    obs_key: str | Sequence[str],
    k: int = 50,
    alpha: float = 0.05,
    cluster_key: str | None = None,
    mostly_known: bool = False,
    exact: bool = False,
    model: str | os.PathLike[str] | TahoeModel | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    min_coverage: float = 0.5,
    key_added: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Label cells by the most similar cells of a reference, with doubt that was measured on held-back cells.

    Each of the `k` nearest cells votes with the weight exp(-(d / d_k)²), where d is its distance and d_k that of the
    last one. A cell of the reference has no vote for itself, which is recognised by name and content.
    How much a share of the votes is worth, how far cells of a label are from the reference, and how many labels a set
    must have, is learned from cells of the reference that were queried as if they were not in it: see the page on
    reference mapping for what that promises, and for which cells.

    Parameters
    ----------
    adata
        Annotated data matrix, cells × genes. If it has no embedding under the reference's name for it, the cells are
        embedded with the reference's model and parameters.
    reference
        What `tahoe.build_reference` wrote: its folder, the name of its repository on the Hub, or what
        `tahoe.load_reference` gave.
    obs_key
        Column of the reference with the labels, or several.
    k
        How many neighbours vote; at most 200.
    alpha
        Risk that is taken: that a cell of a known kind is called «unknown», and that a set of labels lacks the truth.
    cluster_key
        Column of ``adata.obs`` with clusters, which then get a label each, beside those of the cells.
    mostly_known
        Assume that most of the cells are of the labels that they get, and call novel what is far from the reference
        among *them*: distances are divided by the ratio of the medians of these cells and of the held-back ones, label
        by label. Use it for cells of another laboratory or chemistry, all of which are farther away than cells of the
        reference are from each other. Not if a whole label may be wrong: most of its cells then pass for known.
    exact
        Compare with all cells of the reference also where it has an index.
    model
        The reference's model, where it lies elsewhere than when the reference was made. Like `layer`, `use_raw`,
        `min_coverage` and `dtype`, it matters only if the cells have to be embedded.
    key_added
        Name of the results; `None` is ``f"{obs_key}_tahoe"``. Not with several `obs_key`.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets, for each `obs_key`:

    ``adata.obs[key_added]`` : `pandas.Series` (category)
        The label, or «unknown» if the novelty p-value is at most `alpha`, or if there is no embedding.
    ``adata.obs[f"{key_added}_confidence"]`` : `pandas.Series` (float64)
        Probability that the first label is right, for cells of kinds that the reference has: how often held-back cells
        with the same share of the votes were right. Also where the label is «unknown»; NaN without an embedding.
    ``adata.obs[f"{key_added}_novelty_p"]`` : `pandas.Series` (float64)
        Share of the held-back cells of the first label whose neighbours are as far away: (1 + n with a d_k at least as
        large) / (1 + n). Small where a cell is unlike all cells of that label.
    ``adata.obs[f"{key_added}_cluster"]`` : `pandas.Series` (category)
        With `cluster_key`: the label with the largest mean share in the cell's cluster; «unknown» if half of the cells
        are.
    ``adata.obsm[f"{key_added}_shares"]`` : `numpy.ndarray` (float32, cells × labels)
        Shares of the votes. The labels are ``adata.uns[key_added]["labels"]``.
    ``adata.obsm[f"{key_added}_set"]`` : `numpy.ndarray` (bool, cells × labels)
        A set of labels that holds the truth with a probability of at least 1 - `alpha`, for cells such as those held
        back :cite:p:`Romano2020`. Empty without an embedding.
    ``adata.uns[key_added]`` : `dict`
        Provenance, and how often the labels of held-back cells were right.

    and what `tahoe.tl.embed` sets, if it was called.

    Raises
    ------
    tahoe.errors.InputError
        If the reference cannot be opened or has no such column, if `k` or `alpha` cannot be, or if the embedding was
        made otherwise. `adata` is then as it was.
    tahoe.errors.ModelError
        If the embedding was made with another model or vocabulary.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If labels have fewer cells than `k`, if too few cells were held back, if cells have no embedding, or if many
        more are unknown than `alpha` allows: then they are not like those that were held back.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> atlas = tahoe.build_reference(
    ...     adata[::2].copy(), tempfile.mkdtemp() + "/blood.tahoe", obs_keys="bulk_labels"
    ... )
    >>> rest = adata[1::2].copy()
    >>> tahoe.tl.transfer_labels(rest, atlas, obs_key="bulk_labels", k=5)
    >>> bool((rest.obs["bulk_labels_tahoe"].astype(str) == rest.obs["bulk_labels"].astype(str)).mean() > 0.7)
    True
    """
    check_adata(adata)
    names = _names(obs_key, key_added)
    for name in names.values():
        of_obs = (name, f"{name}_confidence", f"{name}_novelty_p")
        check_key(
            adata, name, *(("obs", slot) for slot in of_obs), *(("obsm", f"{name}_{s}") for s in ("shares", "set"))
        )
    clusters, cluster_names = groups_of(adata, cluster_key, "cluster_key")
    where = choose_device(device or settings.device)
    opened = load_reference(reference)
    plan = Transfer.plan(opened, list(names), k=k, alpha=alpha, exact=exact, device=where)
    if mostly_known:
        plan.check_mostly_known(adata.n_obs)
    check_query(adata, opened)
    adata = copy_or_self(adata, copy)
    options: dict[str, Any] = {"layer": layer, "use_raw": use_raw, "min_coverage": min_coverage}
    embeddings = embed_as(adata, opened, model, **options, device=device, dtype=dtype)
    obs_names = np.asarray(adata.obs_names, dtype=str)
    if mostly_known:
        plan = plan.mostly_known(lambda start, stop: (embeddings[start:stop], obs_names[start:stop]), adata.n_obs)
    labels_of, there = _labels(plan, embeddings, obs_names)
    obs: dict[str, Any] = {}
    obsm: dict[str, Any] = {}
    uns: dict[str, Any] = {}
    for key, name in names.items():
        labels = labels_of[key]
        columns: dict[str, Any] = {name: plan.named(key, labels)}
        columns |= {f"{name}_confidence": labels.confidence, f"{name}_novelty_p": labels.novelty_p}
        matrices = {f"{name}_shares": labels.shares, f"{name}_set": labels.in_set}
        record = {"tahoe_version": version("tahoe-anndata"), **plan.record(key)}
        if cluster_key is not None:
            winners = vote(labels.codes, labels.shares, plan.is_known(labels), clusters, len(cluster_names))
            columns[f"{name}_cluster"] = as_categories(opened.labels(key), winners[clusters])
            record["cluster_key"] = cluster_key
        uns[name] = with_slots(record, obs=columns, obsm=matrices)
        obs, obsm = obs | columns, obsm | matrices
        plan.warn_of_unlike(key, labels)
    if not there.all():
        message = f"{(~there).sum()} of {len(there)} cells have no embedding (NaN); their label is 'unknown'"
        warn(message)
    write(adata, obs=obs, obsm=obsm, uns=uns)
    return adata if copy else None


def _names(obs_key: str | Sequence[str], key_added: str | None) -> dict[str, str]:
    """Name of the results of each column."""
    keys = [obs_key] if isinstance(obs_key, str) else list(obs_key)
    if key_added is not None and len(keys) != 1:
        message = f"key_added={key_added!r} is the name of one result, and obs_key= has {len(keys)}; omit it"
        raise InputError(message)
    return {key: key_added or f"{key}_tahoe" for key in keys}


def _labels(plan: Transfer, embeddings: Any, names: np.ndarray) -> tuple[dict[str, Labels], np.ndarray]:
    """Labels of all cells, a block at a time, and which of them have an embedding."""
    parts = [
        plan.labels(embeddings[start : start + CELLS_AT_ONCE], names[start : start + CELLS_AT_ONCE])
        for start in range(0, len(names), CELLS_AT_ONCE)
    ]
    joined = {}
    for key in plan.obs_keys:
        fields = ("codes", "shares", "confidence", "novelty_p", "in_set")
        joined[key] = Labels(*(np.concatenate([getattr(part[key], field) for part, _ in parts]) for field in fields))
    return joined, np.concatenate([there for _, there in parts])
