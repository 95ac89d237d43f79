"""Where a result lies that a plot is to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tahoe._cells.slots import slot_names
from tahoe.errors import InputError, similar_names

if TYPE_CHECKING:
    from anndata import AnnData


def slot_of(adata: AnnData, container: str, key: str, group: str | None, verb: str) -> tuple[str, int]:
    """Slot of a result in ``varm`` or ``varp``, for a group if it was made by group, and the number of that group."""
    record = adata.uns.get(key)
    if group is not None and not isinstance(record, Mapping):
        message = (
            f"group={group!r}, but uns[{key!r}] has no record of groups; call tahoe.tl.{verb}(adata, groupby=...), also"
            " where anndata.concat left uns out"
        )
        raise InputError(message)
    record = record if isinstance(record, Mapping) else {}
    if "slots" in record and not any(slot.startswith(f"{container}/") for slot in record["slots"]):
        record = {}  # of another verb's result of the same name
    groups = [str(name) for name in record.get("groups", [])]
    if group is not None and group not in groups:
        present = similar_names(group, groups) if groups else "none; omit group="
        message = f"group={group!r} is not a group of uns[{key!r}], which has {present}"
        raise InputError(message)
    if group is None and groups:
        message = f"uns[{key!r}] has {len(groups)} groups; pass group=, such as {groups[0]!r}"
        raise InputError(message)
    slot = key if group is None else slot_names(key, [group], record["groupby"])[0]
    if slot not in getattr(adata, container):
        message = f"{container}[{slot!r}] does not exist; call tahoe.tl.{verb}(adata) first"
        raise InputError(message)
    return slot, groups.index(group) if group is not None else 0
