from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, write
from tahoe._run.batches import embed_cells
from tahoe._run.inputs import read_inputs
from tahoe._run.parameters import document_parameters
from tahoe._run.provenance import check_key, with_slots
from tahoe.errors import InputError, ModelError, warn
from tahoe.model import load_model

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from anndata import AnnData

    from tahoe.model import TahoeModel
    from tahoe.model.training import FineTuned, Target


@document_parameters
def predict(
    adata: AnnData,
    model: str | os.PathLike[str] | TahoeModel,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | np.ndarray | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    min_coverage: float = 0.5,
    key_added: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Tell what a model was taught by `tahoe.fine_tune`: labels or quantities of cells.

    Cells become tokens as in training: the maximum number of tokens and the seed are those of the model.

    Parameters
    ----------
    model
        What `tahoe.fine_tune` gave, or the folder that it was saved to.
    key_added
        Name of the results; `None` is ``f"{target}_predicted"``. Not with several targets.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets, for each target that is a column of classes:

    ``adata.obs[key_added]`` : `pandas.Series` (category)
        The most probable label; missing for a cell that expresses no gene of the vocabulary.
    ``adata.obs[f"{key_added}_confidence"]`` : `pandas.Series` (float32)
        Its probability. It is not calibrated: see `tahoe.tl.transfer_labels` for one that is.
    ``adata.obsm[f"{target}_probabilities"]`` : `numpy.ndarray` (float32, cells × labels)
        Probabilities of all labels, which are ``adata.uns[key_added]["labels"]``. With another `key_added`, its name
        without ``_predicted`` stands in the place of the target.

    for each that is a column of quantities:

    ``adata.obs[key_added]`` : `pandas.Series` (float32)
        The value, NaN for a cell that expresses no gene of the vocabulary.

    for each that is a table of quantities:

    ``adata.obsm[key_added]`` : `pandas.DataFrame` (float32, cells × quantities)
        The values.

    and for each of them:

    ``adata.uns[key_added]`` : `dict`
        Provenance: the model, the hash of the model that was taught, how, and on how many cells.

    Raises
    ------
    tahoe.errors.ModelError
        If the model has no head, or what it was taught to is another model.
    tahoe.errors.InputError
        If the cells cannot be read: see `tahoe.tl.embed`. `adata` is then as it was.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()[::5].copy()
    >>> mine = tahoe.fine_tune(adata, "phase", "demo", method="head")
    >>> tahoe.tl.predict(adata, mine)
    >>> adata.obsm["phase_probabilities"].shape
    (140, 3)
    """
    check_adata(adata)
    loaded = load_model(model, device=device, dtype=dtype)
    tuned = loaded.fine_tuned
    if tuned is None:
        message = (
            f"the model {loaded.name!r} has no head: nothing but its pre-training was taught to it; pass what"
            " tahoe.fine_tune gave, or the folder that it was saved to"
        )
        raise ModelError(message)
    names = _names(tuned.targets, key_added)
    for target in tuned.targets:
        check_key(adata, names[target.name], *_slots(target, names[target.name]))
    _warn_of_other_input(tuned, mask_var, drug_key)
    adata = copy_or_self(adata, copy)
    inputs = read_inputs(
        adata,
        loaded,
        layer=layer,
        use_raw=use_raw,
        mask_var=mask_var,
        drug_key=drug_key,
        drugs=drugs,
        min_coverage=min_coverage,
    )
    parameters: dict[str, Any] = {"max_length": int(tuned.options["max_length"]), "seed": int(tuned.options["seed"])}
    record = inputs.record(**parameters, **_origin(tuned))
    embeddings, n_genes = embed_cells(loaded, inputs.cell_batches(**parameters), normalize=False)
    with torch.inference_mode(), torch.autocast(loaded.device.type, enabled=False):
        answers = tuned.head.answers(tuned.head(torch.from_numpy(embeddings).to(loaded.device)))
    obs: dict[str, Any] = {}
    obsm: dict[str, Any] = {}
    uns: dict[str, Any] = {}
    for target in tuned.targets:
        name, answer = names[target.name], answers[target.name]
        columns, tables = _results(target, name, answer, n_genes > 0, adata.obs_names)
        about = record | {"target": target.name, "labels": list(target.labels)}
        uns[name] = with_slots(about, obs=columns, obsm=tables)
        obs, obsm = obs | columns, obsm | tables
    if (n_genes == 0).any():
        n_empty = int((n_genes == 0).sum())
        warn(f"{n_empty} of {len(n_genes)} cells express no gene of the model's vocabulary; nothing is told of them")
    write(adata, obs=obs, obsm=obsm, uns=uns, mapping=inputs.mapping)
    return adata if copy else None


def _names(targets: tuple[Target, ...], key_added: str | None) -> dict[str, str]:
    """Name of the results of each target."""
    if key_added is not None and len(targets) > 1:
        message = (
            f"key_added={key_added!r} is the name of one result, and the model tells {len(targets)}; leave it away"
        )
        raise InputError(message)
    return {target.name: key_added or f"{target.name}_predicted" for target in targets}


def _probabilities(name: str) -> str:
    return f"{name.removesuffix('_predicted')}_probabilities"


def _slots(target: Target, name: str) -> list[tuple[str, str]]:
    """Where the results of a target go."""
    if target.kind == "classes":
        return [("obs", name), ("obs", f"{name}_confidence"), ("obsm", _probabilities(name))]
    return [(target.slot, name)]


def _results(
    target: Target, name: str, answer: np.ndarray, there: np.ndarray, cells: pd.Index
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is written to ``obs`` and to ``obsm``."""
    answer[~there] = np.nan
    if target.kind == "classes":
        codes = np.where(there, np.nan_to_num(answer).argmax(axis=1), -1)
        occurring = np.unique(codes[codes >= 0])
        labels = np.array([*target.labels, None], dtype=object)
        category = pd.Categorical(labels[codes], categories=[target.labels[code] for code in occurring])
        confidence = answer.max(axis=1)
        return {name: category, f"{name}_confidence": confidence}, {_probabilities(name): answer}
    if target.slot == "obs":
        return {name: answer[:, 0]}, {}
    return {}, {name: pd.DataFrame(answer, index=cells, columns=list(target.labels))}


def _origin(tuned: FineTuned) -> dict[str, Any]:
    """What the provenance says of the training."""
    base = {f"base_{name}": value for name, value in asdict(tuned.base).items()}
    trained = {f"trained_{name}": tuned.options.get(name) for name in ("n_cells", "groups")}
    return {"method": tuned.method, "fine_tuned_sha256": tuned.sha256(), **base, **trained}


def _warn_of_other_input(tuned: FineTuned, mask_var: str | np.ndarray | None, drug_key: str | None) -> None:
    """Say where cells become other tokens than in training."""
    for name, then, now in (
        ("mask_var", tuned.options.get("mask_var"), mask_var),
        ("drug_key", tuned.options.get("drug_key"), drug_key),
    ):
        if (then is None) != (now is None):
            was = f"with {name}={then!r}" if then is not None else f"without {name}="
            warn(
                f"the model was trained {was}, and {name}={'None' if now is None else '…'} here; pass it as in training"
            )
