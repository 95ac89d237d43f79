from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self
from tahoe._reference.embeddings import unit
from tahoe._reference.reference import load_reference
from tahoe._reference.transfer import CELLS_AT_ONCE
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key, write_results
from tahoe.errors import warn
from tahoe.model.loading import choose_device
from tahoe.settings import settings
from tahoe.tl._query import check_query, embed_as

if TYPE_CHECKING:
    import os

    import torch
    from anndata import AnnData

    from tahoe._reference.reference import Reference
    from tahoe.model import TahoeModel


@document_parameters
def search(
    adata: AnnData,
    reference: str | os.PathLike[str] | Reference,
    *,
    k: int = 50,
    exact: bool = False,
    model: str | os.PathLike[str] | TahoeModel | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    min_coverage: float = 0.5,
    key_added: str = "tahoe_neighbors",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Find the cells of a reference that are most like each cell.

    Parameters
    ----------
    adata
        Annotated data matrix, cells × genes. If it has no embedding under the reference's name for it, the cells are
        embedded with the reference's model and parameters.
    reference
        What `tahoe.build_reference` wrote: its folder, the name of its repository on the Hub, or what
        `tahoe.load_reference` gave.
    k
        How many cells.
    exact
        Compare with all cells of the reference also where it has an index.
    model
        The reference's model, where it lies elsewhere than when the reference was made. Like `layer`, `use_raw`,
        `min_coverage` and `dtype`, it matters only if the cells have to be embedded.
    key_added
        Where in ``adata.obsm`` the row numbers go.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets:

    ``adata.obsm[key_added]`` : `numpy.ndarray` (int64, cells × k)
        Row numbers in the reference, from the most alike on; ``reference.obs(rows)`` tells of them what it knows. -1
        for a cell without an embedding.
    ``adata.obsm[f"{key_added}_distances"]`` : `numpy.ndarray` (float32, cells × k)
        Euclidean distances of embeddings of length one, between 0 and 2: the square root of 2 - 2 × cosine. NaN for a
        cell without an embedding. Equal ones are in the order of the rows.
    ``adata.uns[key_added]`` : `dict`
        Provenance, and the names of all cells that were found: ``ids``, of the ``rows``.

    and what `tahoe.tl.embed` sets, if it was called. Cells that are in the reference find themselves.

    Raises
    ------
    tahoe.errors.InputError
        If the reference cannot be opened, if `k` is larger than it, or if the embedding was made otherwise.
    tahoe.errors.ModelError
        If it was made with another model or vocabulary.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If cells have no embedding.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> atlas = tahoe.build_reference(adata, tempfile.mkdtemp() + "/blood.tahoe", obs_keys="bulk_labels")
    >>> tahoe.tl.search(adata, atlas, k=5)
    >>> adata.obsm["tahoe_neighbors"][:2, 0]
    array([0, 1])
    """
    check_adata(adata)
    distances_name = f"{key_added}_distances"
    check_key(adata, key_added, ("obsm", key_added), ("obsm", distances_name))
    opened = load_reference(reference)
    opened.check_k(k)
    check_query(adata, opened)
    where = choose_device(device or settings.device)
    adata = copy_or_self(adata, copy)
    options: dict[str, Any] = {"layer": layer, "use_raw": use_raw, "min_coverage": min_coverage}
    embeddings = embed_as(adata, opened, model, **options, device=device, dtype=dtype)
    rows = np.empty((adata.n_obs, k), dtype=np.int64)
    distances = np.empty((adata.n_obs, k), dtype=np.float32)
    for start in range(0, adata.n_obs, CELLS_AT_ONCE):
        part = slice(start, start + CELLS_AT_ONCE)
        rows[part], distances[part] = opened.nearest(unit(embeddings[part]), k, exact=exact, device=where)
    distances[rows < 0] = np.nan
    missing = int((rows < 0).all(axis=1).sum())
    if missing:
        message = f"{missing} of {adata.n_obs} cells have no embedding (NaN), and find nothing"
        warn(message)
    found = np.unique(rows[rows >= 0])
    record = {
        "tahoe_version": version("tahoe-anndata"),
        "reference": opened.name,
        "reference_fingerprint": opened.fingerprint,
        "k": k,
        "exact": bool(exact or opened.index is None),
        "rows": found,
        "ids": opened.obs_names(found),
    }
    write_results(adata, key_added, record, None, obsm={key_added: rows, distances_name: distances})
    return adata if copy else None
