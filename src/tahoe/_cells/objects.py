"""What people pass in the place of an AnnData, or of a file of one, and what to pass instead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tahoe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

FROM_TABLE = "pass an AnnData of it: anndata.AnnData(table), cells by rows, with the names of the genes as columns"
FROM_ARRAY = "pass an AnnData: anndata.AnnData(matrix, var=pandas.DataFrame(index=names_of_the_genes)), cells by rows"
# By the names of their classes, so that none of the packages is imported.
INSTEAD = {
    "Raw": "pass adata.raw.to_adata(), or the AnnData itself with use_raw=True where the function has it",
    "DataFrame": FROM_TABLE,
    "Series": FROM_TABLE,
    "NoneType": "did it come from a function that changes an AnnData in place, as adata = sc.pp.log1p(adata)?",
    "SpatialData": 'pass one of its tables: sdata.tables["table"]',
    "ndarray": FROM_ARRAY,
    "Tensor": FROM_ARRAY,
    "Array": FROM_ARRAY,
}


def check_adata(adata: Any) -> None:
    """Refuse whatever is no AnnData, and say what to pass.

    Raises
    ------
    tahoe.errors.InputError
        If it is not an AnnData.
    """
    from anndata import AnnData

    if isinstance(adata, AnnData):
        return
    if _is_path(adata):
        instead = f"read it first: anndata.read_h5ad({os.fspath(adata)!r}); tahoe.embed_file takes files as they are"
    else:
        instead = _instead(adata)
    message = f"adata is {_seen(adata)}, not an AnnData; {instead}"
    raise InputError(message)


def check_path(argument: str, path: Any) -> None:
    """Refuse whatever is no path.

    Raises
    ------
    tahoe.errors.InputError
        If it is neither a string nor a path.
    """
    if _is_path(path):
        return
    modalities = _modalities(path)
    in_memory = f'mdata["{modality_to_take(modalities)}"]' if modalities else "adata"
    hint = f"; what is in memory goes to tahoe.tl.embed({in_memory})" if hasattr(path, "obsm") else ""
    message = f"{argument} is {_seen(path)}; pass one path, a string{hint}"
    raise InputError(message)


def modality_to_take(modalities: Iterable[str]) -> str:
    """Name of the modality that is most likely the RNA."""
    names = [str(name) for name in modalities]
    return next((name for name in names if name.lower() in ("rna", "gex", "gene expression")), "rna")


def _instead(given: Any) -> str:
    """What to pass in the place of this."""
    modalities = _modalities(given)
    if modalities:
        listed = ", ".join(map(repr, modalities))
        return f'pass the modality with the RNA, as mdata["{modality_to_take(modalities)}"]; it has {listed}'
    if isinstance(given, list | tuple | dict):
        return "pass one AnnData at a time, or join them first: anndata.concat(...)"
    kinds = [kind.__name__ for kind in type(given).__mro__]
    if hasattr(given, "tocsr"):
        return FROM_ARRAY
    return next((INSTEAD[kind] for kind in kinds if kind in INSTEAD), "pass an AnnData, cells × genes")


def _modalities(given: Any) -> list[str]:
    """Names of the modalities of a MuData."""
    return [str(name) for name in given.mod] if type(given).__name__ == "MuData" else []


def _is_path(given: Any) -> bool:
    return isinstance(given, str | os.PathLike)


def _seen(given: Any) -> str:
    """What something is."""
    if given is None:
        return "None"
    return f"the path {os.fspath(given)!r}" if _is_path(given) else f"of type {type(given).__name__}"
