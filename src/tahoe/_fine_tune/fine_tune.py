from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import column_of
from tahoe._fine_tune.cells import Cells, read_cells
from tahoe._fine_tune.comparison import EMBEDDINGS, PCA, compare
from tahoe._fine_tune.split import hold_back
from tahoe._fine_tune.targets import Wanted, check_class_weight, read_targets
from tahoe._fine_tune.task import Task
from tahoe._run.inputs import read_inputs
from tahoe._run.parameters import document_parameters
from tahoe._scores.baselines import pca
from tahoe.errors import InputError, ModelError, check_at_least, warn
from tahoe.evaluate._inputs import read_counts
from tahoe.model.attaching import attach
from tahoe.model.checkpoint.weights import hash_weights
from tahoe.model.files import WEIGHTS_FILE
from tahoe.model.fine_tuning.supervised import RATES
from tahoe.model.network.attention import choose_attention
from tahoe.model.training import Base, FineTuned, FineTuningPlan, TrainingReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from tahoe.model import Network, TahoeModel

log = logging.getLogger(__name__)


@document_parameters
def fine_tune(
    adata: AnnData,
    target: str | Sequence[str],
    model: str | os.PathLike[str] | TahoeModel = "70m",
    *,
    method: Literal["lora", "full", "head"] = "lora",
    groups: str | None = None,
    validation: float = 0.1,
    class_weight: Mapping[str, float] | str | None = "balanced",
    plan: FineTuningPlan | None = None,
    output: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    max_length: int = 1024,
    min_coverage: float = 0.5,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> TahoeModel:
    """Teach a model to tell labels, or quantities, of cells.

    A head, one linear layer on standardised embeddings, is trained first, on the embeddings as they are. Then, unless
    ``method="head"``, adapters :cite:p:`Hu2022` or all weights are trained with it, from that state on
    :cite:p:`Kumar2022`, as long as held-out cells are told better. What has to be beaten stands beside the result: see
    Returns.

    Parameters
    ----------
    target
        What is to be told: a column of ``adata.obs`` or a key of ``adata.obsm``, or several. Text, categories and
        booleans are classes; numbers are quantities, as are all columns of a table in ``obsm``, such as surface
        proteins. Cells without a label take no part; with several targets, none in the loss of that one.
    method
        ``"head"`` embeds the cells once and trains on the embeddings: minutes, and the model stays as it is.
        ``"lora"`` trains low-rank adapters of the attention and feed-forward layers: a file of megabytes.
        ``"full"`` trains all weights that embeddings depend on.
    groups
        Column of ``adata.obs`` with what must not be on both sides, such as the donor: whole groups are held back.
        Without it cells are held back by chance, cells of one donor help to tell each other, and all scores flatter.
    validation
        Share of the cells, or nearly, that are held back: they decide when training stops, and are scored.
    class_weight
        ``"balanced"`` lets each class count as much as any other, whatever its number of cells; `None` each cell; or
        weights by label. With ``"balanced"`` probabilities are those for equally frequent classes.
    plan
        How long and how fast to train the network, and the rank of the adapters.
    output
        Folder that the result is saved to, as by `TahoeModel.save`.
    max_length
        Maximum number of tokens per cell, in training and later in `tahoe.tl.predict`; those beyond it as in
        `tahoe.tl.embed`. 1,024 is what the released models were trained with; 512 takes less than half the time.
    seed
        Random seed of the cells that are held back, the order of the batches, the adapters, and the choice of genes in
        cells above `max_length`. The same seed on the same machine gives the same result to the bit.

    Returns
    -------
    A new model with a head, for `tahoe.tl.predict` and all other functions; `adata` and `model` stay as they are. It
    can be saved, pushed to the Hub and loaded again. With ``"lora"`` the adapters are merged into its weights, in
    float32, and with ``"full"`` its weights are float32.

    ``training_report.epochs`` has losses and scores of the held-out cells in every epoch, and
    ``training_report.comparison`` the scores of the result and of what it has to beat, on the same cells: the head
    alone, a logistic (ridge) regression on the embeddings and on 50 principal components of log counts, and the most
    frequent class (the mean). Make tables of them by ``pandas.DataFrame(…)``. Since these cells also decided when to
    stop, the first two are flattered a little.

    Raises
    ------
    tahoe.errors.InputError
        If there is nothing to be learned from the target, if it is a quantity stored as text, or if groups leave a
        class without cells to train on.
    tahoe.errors.ModelError
        If the weights are in int8, or `model` was never saved and the result could not say what it belongs to.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If cells have no label, or classes none to hold back; if training diverged: the best state from before is kept,
        and the warning says at which step; or if the result cannot be saved, as on a full disk: it is returned.

    Examples
    --------
    >>> import tahoe, pandas as pd
    >>> adata = tahoe.datasets.pbmc68k()[::5].copy()
    >>> mine = tahoe.fine_tune(adata, "phase", "demo", method="head")
    >>> pd.DataFrame(mine.training_report.comparison)["method"].tolist()[:2]
    ['head', 'logistic regression on embeddings']
    >>> tahoe.tl.predict(adata, mine)
    >>> adata.obs["phase_predicted"].cat.categories.tolist()
    ['G1', 'G2M', 'S']
    """
    check_adata(adata)
    check_at_least(max_length=(max_length, 2))
    wanted = read_targets(adata, target)
    class_weight = dict(class_weight) if isinstance(class_weight, Mapping) else class_weight
    _check_arguments(method, validation, plan, output)
    check_class_weight(class_weight, [each.target for each in wanted])
    rows = _labelled(wanted, adata.n_obs)
    of_group = None if groups is None else _groups(adata, groups, rows)
    inputs = read_inputs(
        adata,
        model,
        layer=layer,
        use_raw=use_raw,
        mask_var=mask_var,
        drug_key=drug_key,
        drugs=drugs,
        min_coverage=min_coverage,
        device=device,
        dtype=dtype,
    )
    base = _base(inputs.model, method)
    cells = read_cells(inputs, rows, max_length=max_length, seed=seed, keep_tokens=method != "head")
    expressed = _expressed(cells)
    here = [replace(each, values=each.values[rows]) for each in wanted]
    train, held = hold_back(
        here, expressed, None if of_group is None else of_group[expressed], groups, validation, seed
    )
    report = TrainingReport(n_train=len(train), n_validation=len(held))
    if of_group is not None:
        report.held_out_groups = sorted(set(of_group[held].tolist()))
    task = Task(inputs.model, cells, here, train, held, class_weight, plan or FineTuningPlan(), seed, report)
    told, head, adapters, network = task.train(method)
    if report.stopped.startswith("diverged"):
        warn(
            f"training {report.stopped}; the best state from before is kept (epoch {report.best_epoch}); lower"
            " learning_rate in plan="
        )
    counts, are_counts = read_counts(adata, layer=layer, use_raw=use_raw)
    vectors = {
        EMBEDDINGS: cells.embeddings,
        PCA: _pca_of(counts[rows][expressed], are_counts, expressed, len(rows), seed),
    }
    report.comparison = compare(here, told, vectors, train, held, class_weight)
    options = {
        "max_length": max_length,
        "seed": seed,
        "groups": groups,
        "validation": float(validation),
        "class_weight": class_weight,
        "plan": asdict(task.plan),
        "n_cells": len(expressed),
        "input": str(inputs.matrix.slot),
        "mask_var": inputs.parameters["mask_var"],
        "drug_key": drug_key,
        "tahoe_version": version("tahoe-anndata"),
    }
    tuned = FineTuned(method, base, head, adapters, task.plan.alpha, options, report)
    name = (
        Path(output).name
        if output is not None
        else f"{inputs.model.name}-{'-'.join(each.target.name for each in wanted)}"
    )
    result = _result(inputs.model, tuned, network, name)
    log.info("fine-tuned %r: %s; %s", result, report.stopped, report.comparison)
    if output is not None:
        _save(result, output)
    return result


def _check_arguments(method: str, validation: float, plan: FineTuningPlan | None, output: Any) -> None:
    if method not in ("head", *RATES):
        message = f"method={method!r} is unknown; choose from 'lora', 'full', 'head'"
        raise InputError(message)
    if not 0 < validation < 1:
        message = f"validation={validation}; it is the share of the cells to hold back, between 0 and 1, such as 0.1"
        raise InputError(message)
    if plan is not None and not isinstance(plan, FineTuningPlan):
        message = f"plan= must be a tahoe.model.training.FineTuningPlan, not {type(plan).__name__}"
        raise InputError(message)
    if output is None:
        return
    place = Path(output)
    nearest = next(each for each in (place, *place.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        message = (
            f"output={str(output)!r} cannot be written: {nearest} is {'not writable' if nearest.is_dir() else 'a file'}"
        )
        raise InputError(message)
    if method != "full" and (place / WEIGHTS_FILE).exists():
        message = f"output={str(output)!r} holds the weights of a model; pass a folder of its own"
        raise InputError(message)


def _labelled(wanted: Sequence[Wanted], n_cells: int) -> np.ndarray:
    """Rows of the cells that have a label of any target."""
    for each in wanted:
        missing = n_cells - int(each.there.sum())
        if missing:
            slot = f"{each.target.slot}[{each.target.name!r}]"
            warn(f"{slot} is missing for {missing} of {n_cells} cells, which are used for nothing there")
    return np.flatnonzero(np.any([each.there for each in wanted], axis=0))


def _groups(adata: AnnData, key: str, rows: np.ndarray) -> np.ndarray:
    """Group of each labelled cell."""
    column = column_of(adata, key, "groups").iloc[rows]
    if column.isna().any():
        message = (
            f"obs[{key!r}] is missing for {int(column.isna().sum())} labelled cells; fill it in, or leave these out"
        )
        raise InputError(message)
    return column.astype(str).to_numpy(dtype=object).astype(str)


def _base(model: TahoeModel, method: str) -> Base:
    """How the result names the model that it started from."""
    model.network.check_weights()
    if method != "full" and (model.folder is None or not model.weights_sha256):
        message = (
            f"the model {model.name!r} was never saved, and what is taught to it belongs to its weights; call"
            " model.save(folder) first, or pass method='full'"
        )
        raise ModelError(message)
    folder = None if model.is_registered or model.folder is None else str(model.folder.resolve())
    sha256 = model.weights_sha256 or hash_weights(model.network)
    return Base(model.name, model.revision, folder, sha256, model.vocabulary.sha256)


def _expressed(cells: Cells) -> np.ndarray:
    """Numbers of the cells that express a gene of the vocabulary."""
    empty = int((cells.n_genes == 0).sum())
    if empty:
        warn(f"{empty} of {len(cells.n_genes)} labelled cells express no gene of the model's vocabulary: left out")
    return np.flatnonzero(cells.n_genes > 0)


def _pca_of(counts: Any, are_counts: bool, expressed: np.ndarray, n_cells: int, seed: int) -> np.ndarray:
    """Principal components, at the rows of the cells that have any."""
    found = pca(counts, are_counts, seed)
    vectors = np.zeros((n_cells, found.shape[1]), dtype=np.float32)
    vectors[expressed] = found
    return vectors


def _result(model: TahoeModel, tuned: FineTuned, network: Network, name: str) -> TahoeModel:
    if not tuned.has_weights:
        return attach(model, tuned, name)
    kernel = choose_attention(None, model.device, torch.float32, model.config.d_model)
    unsaved: dict[str, Any] = {"folder": None, "revision": None, "weights_sha256": ""}
    return replace(model, name=name, network=network, attention=kernel, fine_tuned=tuned, **unsaved)


def _save(result: TahoeModel, output: str | os.PathLike[str]) -> None:
    """Save a model; hours of training are not to be lost where that fails."""
    try:
        result.save(output)
    except ModelError as error:
        warn(f"the trained model is returned, but not saved: {error}")
