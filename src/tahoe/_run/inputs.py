"""What all verbs do first: find the matrix, load the model, and say which column is which token."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.columns import one_column_each, used_columns, warn_of_better_matrix, warn_of_sums
from tahoe._cells.genes import genes_of_model, hint_if_transposed, mapped_genes, organism_of
from tahoe._cells.matrix import Matrix, choose_matrix
from tahoe._cells.slots import drugs_of
from tahoe._genes.mapping import as_strings
from tahoe._genes.report import check_coverage, in_released_vocabulary
from tahoe._run.batches import CellBatches
from tahoe._run.cluster import EmbeddingTask, ModelReference, aggregate_on_workers, cluster, resolve_on
from tahoe._run.means import aggregate
from tahoe._run.provenance import new_record
from tahoe.errors import InputError
from tahoe.model import TahoeModel, load_model
from tahoe.model.checkpoint.weights import read_drugs
from tahoe.model.hub.download import RELEASES
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData

    from tahoe._genes.mapping import GeneMapping
    from tahoe._run.cluster import A


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """A matrix that was checked, the model that is to read it, and the token of each of its columns."""

    matrix: Matrix
    model: TahoeModel
    column_tokens: np.ndarray
    """Token id of each column, -1 where the model does not know it or it was not selected. Columns that are to be added
    up have the same one."""
    result_columns: np.ndarray
    """For each column the one at which the results of its gene stand: mostly itself, -1 without a token."""
    mapping: GeneMapping | None
    """The gene mapping, if it was made here and is to be written with the results."""
    parameters: dict[str, Any]
    """Those that go into the provenance."""
    reference: ModelReference
    """The same model, for those who load it by themselves."""
    client: Any = None
    """Of the cluster whose workers are to do the work, if there is one."""
    drugs: np.ndarray | None = None
    """Drug of each cell, if cells carry a drug token."""
    token_budget: int | None = None
    """Maximum number of tokens in one pass; None is what fits the device."""

    def cell_batches(self, *, max_length: int, seed: int) -> CellBatches:
        """The cells, to be read once."""
        return CellBatches(
            self.matrix.checked_blocks(self.column_tokens >= 0),
            self.column_tokens,
            self.matrix.n_cells,
            max_length,
            seed,
            self.token_budget,
            self.drugs,
        )

    def task(self, **parameters: Any) -> EmbeddingTask:
        """What is needed to do the same elsewhere."""
        return EmbeddingTask(
            self.reference,
            self.column_tokens,
            str(self.matrix.slot),
            token_budget=self.token_budget,
            drugs=self.drugs,
            **parameters,
        )

    def aggregate(self, accumulator: A, *, max_length: int, seed: int) -> A:
        """Add up all cells: on the workers of a cluster, if they are to do it, else here."""
        parameters: dict[str, Any] = {"max_length": max_length, "seed": seed}
        if self.client is None:
            return aggregate(self.model, self.cell_batches(**parameters), accumulator)
        return aggregate_on_workers(self.client, self.matrix.values, self.task(**parameters), accumulator)

    @property
    def result_tokens(self) -> np.ndarray:
        """Token id of each column at which results are to stand: each token once, -1 elsewhere."""
        return np.where(self.result_columns == np.arange(len(self.result_columns)), self.column_tokens, -1)

    def expressed(self, columns: np.ndarray) -> np.ndarray:
        """Where the results of these columns stand, of those that the model knows and any cell expresses."""
        with_token = np.flatnonzero(self.column_tokens >= 0)
        expressed = np.zeros(len(self.column_tokens), dtype=bool)
        expressed[self.result_columns[with_token[self.matrix.expressed()[with_token]]]] = True
        queried = np.unique(self.result_columns[columns])
        present = queried[(queried >= 0) & expressed[queried]]
        if not len(present):
            message = "none of these genes is known to the model and expressed in any cell; choose others"
            raise InputError(message)
        return present

    def record(self, **parameters: Any) -> dict[str, Any]:
        """Provenance of a result, for ``uns``."""
        n_known = int((self.result_tokens >= 0).sum())
        parameters = self.parameters | parameters | {"token_budget": self.token_budget}
        record = new_record(self.model, self.matrix, **parameters, n_genes_in_vocabulary=n_known)
        return record | self.reference.where()


def read_inputs(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel,
    *,
    gene_key: str | None = None,
    organism: str | None = None,
    duplicates: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    min_coverage: float = 0.5,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    whole: bool = True,
    client: Any = None,
) -> Inputs:
    """Find and check everything that a verb needs.

    Cheap things come first: a bad argument is told before weights are loaded. ``whole=False`` is for verbs that look at
    one cell: the matrix as a whole is not checked. The workers of a cluster do the work if `client` is that of one, or
    if the matrix is lazy and there is one.
    """
    matrix = choose_matrix(adata, layer=layer, use_raw=use_raw)
    used, left_out = used_columns(matrix, mask_var)
    first = next(matrix.blocks()) if whole else None
    genes, summed, mapping = mapped_genes(
        adata, matrix, used, gene_key=gene_key, organism=organism, duplicates=duplicates
    )
    if mapping is None and left_out:
        log.info("%s", left_out)
    if first is not None and isinstance(model, str) and model in RELEASES:  # it may have to be downloaded
        matrix.check(first, used & in_released_vocabulary(genes))
    loaded = load_model(model, device=device, dtype=dtype)
    attention: str | None = settings.attention
    if isinstance(model, TahoeModel):
        device, dtype, attention = loaded.device, loaded.dtype, loaded.attention
    else:
        device, dtype = device or settings.device, dtype or settings.dtype
    drug_ids = read_drug_ids(adata, loaded, drug_key, drugs)
    genes = genes_of_model(adata, matrix, genes, mapping, loaded.vocabulary)
    column_tokens = np.where(used, loaded.vocabulary.tokens_of(genes), -1)
    result_columns = one_column_each(column_tokens, summed)
    adds_up = (column_tokens >= 0).sum() > (result_columns == np.arange(len(result_columns))).sum()
    parameters: dict[str, Any] = {
        "mask_var": _name_of_mask(mask_var),
        "min_coverage": min_coverage,
        "drug_key": drug_key,
        "left_out": left_out or None,
        "duplicates": "sum" if adds_up else None,
    }
    if first is not None:
        matrix.check(first, column_tokens >= 0)
        warn_of_sums(first, str(matrix.slot), result_columns)
        warn_of_better_matrix(matrix, column_tokens >= 0)
        with hint_if_transposed(adata, organism or organism_of(adata)):
            coverage = check_coverage(
                genes[used],
                matrix.totals[used],
                loaded.vocabulary.genes,
                names=as_strings(matrix.var.index)[used],
                organism=organism or organism_of(adata),
                refuse_below=min_coverage,
            )
        parameters["share_in_vocabulary"] = coverage.get("share_in_vocabulary")
    reference = ModelReference.to(loaded, device=device, dtype=dtype, attention=attention)
    if client is None and whole and matrix.is_lazy:
        client = cluster()
    reference = reference.resolve() if client is None else resolve_on(client, reference)
    return Inputs(
        matrix,
        loaded,
        column_tokens,
        result_columns,
        mapping,
        parameters,
        reference,
        client,
        drug_ids,
        settings.token_budget,
    )


def _name_of_mask(mask_var: str | np.ndarray | None) -> str | None:
    """How the provenance names a selection of genes: its column, or the hash of its booleans."""
    if mask_var is None or isinstance(mask_var, str):
        return mask_var
    return "sha256:" + hashlib.sha256(np.asarray(mask_var, dtype=bool).tobytes()).hexdigest()


def read_drug_ids(
    adata: AnnData,
    model: TahoeModel,
    drug_key: str | None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None,
) -> np.ndarray | None:
    """Drug of each cell by its id in the model, 0 where it is missing, as in training; None without `drug_key`."""
    if drug_key is None:
        if drugs is not None:
            message = "drugs= is given, but drug_key= is not; name the column of adata.obs with the drugs"
            raise InputError(message)
        return None
    return drugs_of(adata, drug_key, known_drugs(model, drugs, f"drug_key={drug_key!r}"))


def known_drugs(
    model: TahoeModel, drugs: str | os.PathLike[str] | Mapping[str, int] | None, argument: str
) -> dict[str, int]:
    """Drugs by name and their ids in the model: those of the user, or those that the checkpoint names."""
    if model.config.drug_encoder is None:
        message = f"{argument}, but the model {model.name!r} has no drug encoder; of the released ones, 3b has"
        raise InputError(message)
    if isinstance(drugs, str | os.PathLike) and not Path(drugs).is_file():
        message = f"drugs={str(drugs)!r}: there is no such file"
        raise InputError(message)
    known = read_drugs(Path(drugs)) if isinstance(drugs, str | os.PathLike) else dict(drugs or model.drugs)
    if not known:
        message = (
            f"the model {model.name!r} does not name its drugs; pass drugs=, a mapping or a JSON file of names and ids"
        )
        raise InputError(message)
    too_high = [name for name, id_ in known.items() if not 0 <= id_ < model.config.drug_encoder.n_drugs]
    if too_high:
        n_drugs = model.config.drug_encoder.n_drugs
        message = f"drugs: {too_high[0]!r} has id {known[too_high[0]]}; the model has {n_drugs} drugs"
        raise InputError(message)
    return known


def choose_numbers(argument: str, queried: int | Sequence[int] | None, n: int, what: str) -> tuple[int, ...]:
    """Numbers of some of the network's ``n`` layers or heads, from 0; None is all."""
    if queried is None:
        return tuple(range(n))
    numbers = [queried] if isinstance(queried, int | np.integer) else queried
    if isinstance(numbers, str) or not len(numbers) or any(not -n <= number < n for number in numbers):
        message = f"{argument}={queried!r}: the network has {n} {what}, 0 to {n - 1}; None takes all"
        raise InputError(message)
    return tuple(sorted({int(number) % n for number in numbers}))
