"""Results of a verb that lie in ``uns`` as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from tahoe.errors import InputError, similar_names

if TYPE_CHECKING:
    from anndata import AnnData

# What a screen is sorted by: the first of these that it has.
SCORES = ("projection", "shift", "projection_exact", "shift_exact", "n_cells")


def table_of(adata: AnnData, key: str, group: str | None) -> pd.DataFrame:
    """The table of a perturbation screen, of one group or of all; texts as objects, whatever a file made of them."""
    record = adata.uns.get(key)
    table = record.get("table") if isinstance(record, Mapping) else None
    if not isinstance(table, pd.DataFrame) or not {"gene", "group", "n_cells"} <= set(table):
        message = f"uns[{key!r}] has no table of a perturbation screen; call tahoe.tl.perturb(adata) first"
        raise InputError(message)
    texts = {name: table[name].astype(str).astype(object) for name in ("gene", "ensembl_id", "group")}
    missing = {name: float("nan") for name in SCORES if name not in table}
    table = table.assign(**texts, **missing)
    if group is None:
        return table
    groups = table["group"].unique().tolist()
    if str(group) not in groups:
        message = f"group={group!r} is not a group of uns[{key!r}], which has {similar_names(group, groups)}"
        raise InputError(message)
    return table[table["group"] == str(group)]
