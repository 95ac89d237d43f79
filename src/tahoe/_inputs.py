"""What all verbs do first: find the matrix, load the model, and say which column is which token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._adata import Matrix, check_values, choose_matrix, mapped_genes, provenance, selected_genes
from tahoe._genes import check_coverage
from tahoe.errors import InputError
from tahoe.model import TahoeModel, load_model

if TYPE_CHECKING:
    import os

    import torch
    from anndata import AnnData

    from tahoe._genes import GeneMapping


@dataclass(frozen=True)
class Inputs:
    """A matrix that was checked, the model that is to read it, and the token of each of its columns."""

    matrix: Matrix
    model: TahoeModel
    column_tokens: np.ndarray
    """Token id of each column, -1 where the model does not know it or it was not selected."""
    mapping: GeneMapping | None
    """The gene mapping, if it was made here and is to be written with the results."""
    parameters: dict[str, Any]
    """Those that go into the provenance."""

    def record(self, **parameters: Any) -> dict[str, Any]:
        """Provenance of a result, for ``uns``."""
        n_known = int((self.column_tokens >= 0).sum())
        return provenance(self.model, self.matrix, **self.parameters, **parameters, n_genes_in_vocabulary=n_known)


def read_inputs(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel,
    *,
    layer: str | None,
    use_raw: bool,
    mask_var: str | np.ndarray | None,
    min_coverage: float,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    attention: str | None,
) -> Inputs:
    """Check cheap things first: a bad argument is told before weights are loaded."""
    matrix = choose_matrix(adata, layer=layer, use_raw=use_raw)
    used = selected_genes(matrix, mask_var)
    check_values(next(matrix.blocks()), matrix)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention)
    genes, mapping = mapped_genes(adata, matrix)
    names = matrix.var.index.to_numpy()
    check_coverage(
        genes[used], matrix.totals[used], loaded.vocabulary.genes, names=names[used], refuse_below=min_coverage
    )
    column_tokens = np.where(used, loaded.vocabulary.tokens_of(genes), -1)
    told = mask_var if mask_var is None or isinstance(mask_var, str) else "an array"
    return Inputs(matrix, loaded, column_tokens, mapping, {"mask_var": told, "min_coverage": min_coverage})


def check_at_least(**limits: tuple[int | None, int]) -> None:
    """Refuse numbers below their least value; None passes."""
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            message = f"{name}={value}: it must be at least {least}"
            raise InputError(message)
