"""Whether embeddings may be compared: the same model, vocabulary and parameters, by their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tahoe.errors import InputError, ModelError

if TYPE_CHECKING:
    from tahoe._reference.reference import Reference

# What decides an embedding beside the cell. Length is no matter, since only directions are compared; nor is where it
# was computed, and in which precision, which moves an embedding less than the next molecule does.
MODEL = {"model_sha256": "weights", "vocabulary_sha256": "vocabulary"}
PARAMETERS = ("max_length", "seed", "mask_var", "drug_key")


def record_of(uns: Mapping[str, Any], key: str, who: str) -> dict[str, Any]:
    """Provenance of the embedding `key`.

    Raises
    ------
    tahoe.errors.InputError
        If there is none.
    tahoe.errors.ModelError
        If it was made with a model that was never saved, so that nobody can tell which.
    """
    record = uns.get(key) if hasattr(uns, "get") else None
    if not isinstance(record, Mapping) or "model_sha256" not in record or "max_length" not in record:
        message = (
            f"{who} has no record in uns[{key!r}] of the model that made obsm[{key!r}], so its embeddings cannot be"
            " compared with others. Embed the cells with tahoe.tl.embed or tahoe.embed_file; anndata.concat drops uns,"
            " unless uns_merge='same' is given"
        )
        raise InputError(message)
    if not record["model_sha256"]:
        message = (
            f"{who}: obsm[{key!r}] was made with a model that was never saved; call model.save(folder), embed again"
        )
        raise ModelError(message)
    return dict(record)


def check_same_embedding(ours: Mapping[str, Any], width: int, reference: Reference) -> None:
    """Refuse a query that was embedded otherwise than the reference, by provenance and width.

    Raises
    ------
    tahoe.errors.ModelError
        If it was another model or vocabulary.
    tahoe.errors.InputError
        If it was another parameter.
    """
    key, name_of, theirs = reference.use_rep, f"the reference {reference.name!r}", reference.embedding
    again = f"remove obsm[{key!r}], and the cells are embedded as the reference was"
    for name, what in MODEL.items():
        if ours.get(name) != theirs.get(name):
            message = (
                f"obsm[{key!r}] was made with the {what} of model {ours.get('model')!r} (sha256"
                f" {str(ours.get(name))[:12]}…), and {name_of} with those of {theirs.get('model')!r}"
                f" ({str(theirs.get(name))[:12]}…): their embeddings have nothing to do with each other; {again}"
            )
            raise ModelError(message)
    pairs = {name: (_plain(ours.get(name)), _plain(theirs.get(name))) for name in PARAMETERS}
    differences = ", ".join(f"{name}={own!r}, not {other!r}" for name, (own, other) in pairs.items() if own != other)
    if differences:
        message = f"obsm[{key!r}] was made with {differences} as {name_of}; {again}"
        raise InputError(message)
    if width != reference.width:
        message = f"obsm[{key!r}] has {width} coordinates, and {name_of} {reference.width}; embed the cells again"
        raise InputError(message)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
