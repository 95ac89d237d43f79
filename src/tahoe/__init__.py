"""The Tahoe-x1 single-cell foundation model inside scanpy.

Call it beside scanpy::

    import scanpy as sc, tahoe

    tahoe.pp.map_genes(adata)
    tahoe.tl.embed(adata)  # obsm["X_tahoe"]
    sc.pp.neighbors(adata, use_rep="X_tahoe")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tahoe.settings import settings

if TYPE_CHECKING:
    from tahoe import datasets, errors, evaluate, get, model, pl, pp, tl
    from tahoe._fine_tune.fine_tune import fine_tune
    from tahoe._reference.build import build_reference
    from tahoe._reference.reference import Reference, load_reference
    from tahoe._store.embed_file import embed_file
    from tahoe._training.continue_training import continue_training
    from tahoe.model import TahoeModel, load_model

__version__ = version("tahoe-anndata")
__all__ = [
    "Reference", "TahoeModel", "build_reference", "continue_training", "datasets", "embed_file", "errors", "evaluate",
    "fine_tune", "get", "load_model", "load_reference", "model", "pl", "pp", "settings", "tl",
]  # fmt: skip

# Loaded at the first use, so that `import tahoe` costs nothing: torch alone takes seconds.
_FROM = {
    "Reference": "tahoe._reference.reference",
    "TahoeModel": "tahoe.model",
    "build_reference": "tahoe._reference.build",
    "continue_training": "tahoe._training.continue_training",
    "embed_file": "tahoe._store.embed_file",
    "fine_tune": "tahoe._fine_tune.fine_tune",
    "load_model": "tahoe.model",
    "load_reference": "tahoe._reference.reference",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        message = f"module 'tahoe' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(import_module(_FROM[name]), name) if name in _FROM else import_module(f"tahoe.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
