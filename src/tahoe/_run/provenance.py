"""Where a result comes from: the records in ``uns`` that verbs write, and that `tahoe info` and ``--like`` read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tahoe._cells.slots import check_name, write
from tahoe.errors import warn

if TYPE_CHECKING:
    from anndata import AnnData

    from tahoe._cells.matrix import Matrix
    from tahoe._genes.mapping import GeneMapping
    from tahoe.model import TahoeModel


def new_record(model: TahoeModel, matrix: Matrix, **parameters: Any) -> dict[str, Any]:
    """What is needed to repeat a result, as plain values that survive h5ad and zarr; None is left out."""
    from tahoe.model.cpu.linear import rounded_to

    record = {
        "tahoe_version": version("tahoe-anndata"),
        "model": model.name,
        "model_revision": model.revision,
        "model_folder": str(model.folder.resolve()) if model.folder and not model.is_registered else None,
        "model_sha256": model.weights_sha256,
        "vocabulary_sha256": model.vocabulary.sha256,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "float32_rounded_to": rounded_to(model.device) if model.dtype.itemsize == 4 else None,
        "attention": model.attention,
        "input": str(matrix.slot),
        "n_cells": matrix.n_cells,
        **parameters,
        "versions": [f"{name} {version(name)}" for name in ("anndata", "numpy", "scipy", "torch")],
    }
    return {key: value for key, value in record.items() if value is not None}


def with_slots(record: dict[str, Any], **slots: Iterable[str] | None) -> dict[str, Any]:
    """The record, with the slots that it is about: two verbs with one `key_added` share ``uns[key_added]``."""
    return record | {"slots": [f"{slot}/{name}" for slot, content in slots.items() for name in content or ()]}


def write_results(
    adata: AnnData,
    key: str,
    record: dict[str, Any],
    mapping: GeneMapping | None,
    **slots: Mapping[str, Any] | None,
) -> None:
    """Write finished results, and their record: the last thing that a verb does."""
    write(adata, **slots, uns={key: with_slots(record, **slots)}, mapping=mapping)


def records_in(uns: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Records of all results of this package, by key."""
    return {key: dict(value) for key, value in uns.items() if is_record(value)}


def is_record(value: Any) -> bool:
    """Whether this package wrote an element of ``uns``, as the record of a result."""
    return isinstance(value, Mapping) and "tahoe_version" in value


def check_key(adata: AnnData, key: str, *slots: tuple[str, str]) -> None:
    """Check the name of a result, and warn of what is there and not the same result from before.

    These slots and ``uns[key]`` will be overwritten, as scanpy does. The record in ``uns`` tells which slots are ours;
    anndata.concat drops it.
    """
    check_name(key)
    record = adata.uns.get(key)
    has_record = is_record(record)
    if has_record and "slots" not in record:  # of an earlier version
        return
    ours = [tuple(slot.split("/", 1)) for slot in record["slots"]] if has_record else []
    written = slots if has_record else (*slots, ("uns", key))
    # a name that begins with "tahoe_" is nobody else's, as in an AnnData made from the obs of another
    taken = _present(adata, (slot for slot in written if slot not in ours and not slot[1].startswith("tahoe_")))
    kept = _present(adata, (slot for slot in ours if slot not in slots))
    if taken:
        message = (
            f"{' and '.join(taken)} will be overwritten, and uns[{key!r}] has no record that tahoe wrote what is there;"
            " to keep it, pass another key_added"
        )
        warn(message)
    if kept:
        listed = ", ".join(kept[:3]) + (", …" if len(kept) > 3 else "")
        message = (
            f"uns[{key!r}], the record of {listed}, will be overwritten, and these will have none; to keep it, pass"
            " another key_added"
        )
        warn(message)


def _present(adata: AnnData, slots: Iterable[Sequence[str]]) -> list[str]:
    """Those slots that an AnnData has, as a user would write them."""
    return [f"{slot}[{name!r}]" for slot, name in slots if name in getattr(adata, slot)]
