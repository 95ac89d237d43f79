"""The embeddings with which a reference is searched: those that are there, or made as the reference's were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tahoe._reference.match import check_same_embedding, record_of
from tahoe.errors import InputError, ModelError
from tahoe.model import load_model
from tahoe.tl._embed import embed

if TYPE_CHECKING:
    import os

    from anndata import AnnData

    from tahoe._reference.reference import Reference
    from tahoe.model import TahoeModel


def check_query(adata: AnnData, reference: Reference) -> None:
    """Refuse, before any work, an embedding that cannot be compared with the reference's.

    Raises
    ------
    tahoe.errors.InputError, tahoe.errors.ModelError
        If its provenance is missing, or another.
    """
    key = reference.use_rep
    if key in adata.obsm:
        check_same_embedding(record_of(adata.uns, key, "adata"), adata.obsm[key].shape[1], reference)


def embed_as(
    adata: AnnData, reference: Reference, model: str | os.PathLike[str] | TahoeModel | None, **options: Any
) -> Any:
    """The embedding of `adata`, made with the reference's model and parameters if it is not there."""
    key, made = reference.use_rep, reference.embedding
    if key not in adata.obsm:
        loaded = _model(reference, model, options.pop("device"), options.pop("dtype"))
        parameters: dict[str, Any] = {"max_length": int(made["max_length"]), "seed": int(made["seed"])}
        parameters |= {name: made.get(name) for name in ("mask_var", "drug_key")}
        if str(parameters["mask_var"]).startswith("sha256:"):
            message = (
                f"the reference {reference.name!r} was embedded with genes that an array selected, which is not known"
                f" here; call tahoe.tl.embed(adata, mask_var=…, key_added={key!r}) first"
            )
            raise InputError(message)
        embed(adata, loaded, key_added=key, normalize=bool(made.get("normalize", True)), **parameters, **options)
    return adata.obsm[key]


def _model(reference: Reference, model: Any, device: Any, dtype: Any) -> TahoeModel:
    made = reference.embedding
    if model is None:
        name, revision = made.get("model_folder", made["model"]), made.get("model_revision")
        try:
            loaded = load_model(name, revision=revision, device=device, dtype=dtype)
        except ModelError as error:
            message = (
                f"the reference {reference.name!r} was embedded with the model {name!r}, which cannot be loaded here"
                f" ({error}); pass it as model="
            )
            raise ModelError(message) from error
    else:
        loaded = load_model(model, device=device, dtype=dtype)
    for hash_, expected in ((loaded.weights_sha256, "model_sha256"), (loaded.vocabulary.sha256, "vocabulary_sha256")):
        if hash_ != made.get(expected):
            message = (
                f"the model {loaded.name!r} is not the one that the reference {reference.name!r} was embedded with,"
                f" {made['model']!r}: its {expected} is {hash_[:12]}…, not {str(made.get(expected))[:12]}…; pass that"
                " as model="
            )
            raise ModelError(message)
    return loaded
