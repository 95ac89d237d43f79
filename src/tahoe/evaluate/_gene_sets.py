from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._scores.table import BASELINE, Score, mean_score, to_table
from tahoe.errors import InputError, check_choice
from tahoe.evaluate._gene_inputs import CONSTANT, Genes, family, read_genes, read_gmt, resolved

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    import torch
    from anndata import AnnData

    from tahoe._scores.folds import Fold

PROTOCOLS = ("tahoe-x1", "grouped")
MICRO, MACRO = "micro average precision", "macro average precision"
LEAST_GENES = 40
log = logging.getLogger(__name__)


def gene_sets(
    adata: AnnData,
    use_rep: str | Sequence[str],
    gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]],
    *,
    protocol: str = "tahoe-x1",
    layer: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    n_folds: int = 5,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Judge how well gene embeddings tell in which gene sets they are, beside baselines.

    Only genes that are in one set or more take part, and of these only those that each representation has, so
    that all rows are about the same genes. The baselines are always there: mean expression and share of cells with the
    gene, its loadings on 50 principal components, random numbers, and the frequency of each set.

    Parameters
    ----------
    adata
        Annotated data matrix with the embeddings in ``varm`` and the cells of the baselines. It is not changed.
    use_rep
        One or more representations in ``adata.varm``, as `tahoe.tl.embed_genes` writes them.
    gmt
        A file of gene sets, such as MSigDB's hallmarks, or a mapping from their names to names of genes.
    protocol
        ``"tahoe-x1"``: that of the authors :cite:p:`Gandhi2025`. Genes are parted into 70 % to train on, 5 % to stop,
        5 % to choose one of 24 networks by its log-loss, and 20 % to test. Repeated with each of the `seeds`.
        ``"grouped"``: ridge regression with genes of a family (symbols with the same first letters, as RPL3 and RPL10A)
        never in two folds, since paralogues have like embeddings and are in like sets. Its strength is chosen in the
        genes that are trained on.
    layer
        Where the counts for the baselines are; ``adata.X`` by default.
    seeds
        Of the partitions and the networks (``"tahoe-x1"``); the first is that of the folds and the random baseline.
    n_folds
        Folds of ``"grouped"``.
    device
        Where the networks are trained; by default a GPU if there is one. Minutes for each representation and seed on a
        CPU.

    Returns
    -------
    `pandas.DataFrame` with the columns of `tahoe.evaluate.cell_types`; ``replicates`` are seeds or folds, ``n`` genes.
    Metrics are the average precision over all pairs of gene and set (micro, that of the authors) and the mean of the
    sets' own (macro), in genes that were not trained on.

    Raises
    ------
    tahoe.errors.InputError
        If the file or a representation cannot be used, none of its genes is known, or too few are.

    Examples
    --------
    >>> import numpy as np, tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed_genes(adata, model="demo", context=False)
    >>> known = adata.var_names[np.isfinite(adata.varm["tahoe"]).all(axis=1)]
    >>> sets = {"ribosome": [name for name in known if name.startswith("RP")], "other": known[::9]}
    >>> table = tahoe.evaluate.gene_sets(adata, "tahoe", sets, protocol="grouped")
    >>> table["representation"].nunique()
    5
    """
    check_adata(adata)
    check_choice(protocol=(protocol, PROTOCOLS))
    if not len(seeds) or n_folds < 2:
        message = f"seeds={list(seeds)}, n_folds={n_folds}: pass one seed or more, and two folds or more"
        raise InputError(message)
    sets = read_gmt(gmt)
    ids = resolved(sorted({gene for genes in sets.values() for gene in genes}))
    if not ids:
        message = f"none of the genes of {len(sets)} sets is known; pass human gene symbols or Ensembl ids"
        raise InputError(message)
    genes = read_genes(adata, use_rep, set(ids.values()), layer, seeds[0])
    members = _members(genes.ids, sets, ids)
    if len(genes.ids) < max(LEAST_GENES, n_folds):
        message = (
            f"{len(genes.ids)} genes are in a set and have embeddings; at least {max(LEAST_GENES, n_folds)} are needed"
        )
        raise InputError(message)
    if protocol == "tahoe-x1":
        scores = _as_authors(genes, members, seeds, device)
    else:
        symbols = {id_: name for name, id_ in ids.items()}
        families = np.array([family(symbols[id_]) for id_ in genes.ids])
        scores = _grouped(genes, members, families, n_folds, seeds[0])
    parameters = {"protocol": protocol, "seeds": list(seeds), "n_sets": members.shape[1], "n_genes": len(genes.ids)}
    return to_table(scores, task="gene_sets", **parameters)


def _members(genes: np.ndarray, sets: Mapping[str, Sequence[str]], ids: Mapping[str, str]) -> np.ndarray:
    """Which gene is in which set, of those sets that have any: genes × sets."""
    columns = [np.isin(genes, [ids[name] for name in names if name in ids]) for names in sets.values()]
    members = np.stack(columns, axis=1)
    return members[:, members.any(axis=0)]


def _as_authors(
    genes: Genes, members: np.ndarray, seeds: Sequence[int], device: str | torch.device | None
) -> list[Score]:
    import torch

    from tahoe._scores.mlp import predict_best, split_genes

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    splits = [split_genes(len(members), seed) for seed in seeds]
    scores = []
    for name, vectors in genes.vectors.items():
        predicted, chosen = [], []
        for seed, split in zip(seeds, splits, strict=True):
            log.info("training on %s, seed %d", name, seed)
            probabilities, configuration = predict_best(vectors, members, split, seed, where)
            predicted.append((members[split.test], probabilities))
            chosen.append("{}×{}, dropout {:g}".format(configuration.n_hidden, *configuration[::2]))
        scores += _scores(name, genes.kind(name), predicted, "seeds", len(members), "; ".join(chosen))
    constant = [(members[split.test], _frequencies(members, split.train, split.test)) for split in splits]
    return scores + _scores(CONSTANT, BASELINE, constant, "seeds", len(members))


def _grouped(genes: Genes, members: np.ndarray, families: np.ndarray, n_folds: int, seed: int) -> list[Score]:
    folds = family_folds(families, n_folds, seed)
    scores = []
    for name, vectors in genes.vectors.items():
        predicted = [(members[test], _ridge(vectors, members, train, test)) for train, test in folds]
        scores += _scores(name, genes.kind(name), predicted, "folds", len(members))
    constant = [(members[test], _frequencies(members, train, test)) for train, test in folds]
    return scores + _scores(CONSTANT, BASELINE, constant, "folds", len(members))


def family_folds(families: np.ndarray, n_folds: int, seed: int) -> list[Fold]:
    """Folds of about the same size that never share a family."""
    from sklearn.model_selection import StratifiedGroupKFold

    if len(np.unique(families)) < n_folds:
        message = f"the genes are of {len(np.unique(families))} families, fewer than n_folds={n_folds}"
        raise InputError(message)
    same = np.zeros(len(families))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(same, same, families)
    return [(train, test) for train, test in folds if len(test)]


def _ridge(vectors: np.ndarray, members: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
    return ridge.fit(vectors[train].astype(np.float64), members[train].astype(np.float64)).predict(vectors[test])


def _frequencies(members: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return np.tile(members[train].mean(axis=0), (len(test), 1))


def _scores(
    name: str, kind: str, predicted: list[tuple[np.ndarray, np.ndarray]], over: str, n: int, detail: str = ""
) -> list[Score]:
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {MICRO: micro_precision, MACRO: macro_precision}
    return [
        mean_score(metric, name, kind, [of(*pair) for pair in predicted], over, n=n, detail=detail)
        for metric, of in metrics.items()
    ]


def micro_precision(members: np.ndarray, predicted: np.ndarray) -> float:
    """Average precision over all pairs of gene and set."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(members.ravel(), predicted.ravel()))


def macro_precision(members: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of the sets' average precision, over those with a gene here."""
    from sklearn.metrics import average_precision_score

    some = np.flatnonzero(members.any(axis=0))
    return float(np.mean([average_precision_score(members[:, i], predicted[:, i]) for i in some]))
