from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata
from tahoe._scores.folds import make_folds
from tahoe._scores.table import BASELINE, Score, mean_score, to_table
from tahoe.errors import InputError
from tahoe.evaluate._gene_inputs import CONSTANT, Genes, read_genes, resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

# Genes of a pair differ by less than this in their rank by mean expression, from 0 to 1. Not in the mean itself: most
# genes that are not essential have next to none, where a small difference is a large one.
CALIPER = 0.02


def essentiality(
    adata: AnnData,
    use_rep: str | Sequence[str],
    labels: pd.Series | Mapping[str, bool],
    *,
    matched: bool = True,
    layer: str | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge how well gene embeddings tell essential from other genes, beside baselines.

    A random forest of 100 trees in five folds, as in the authors' benchmark :cite:p:`Gandhi2025`. Essential genes are
    expressed in nearly all cells and most others are not, so that expression alone tells them well: hence the same with
    each essential gene beside another one of like mean expression.

    Parameters
    ----------
    adata
        Annotated data matrix with the embeddings in ``varm`` and the cells of the baselines. It is not changed.
    use_rep
        One or more representations in ``adata.varm``, as `tahoe.tl.embed_genes` writes them.
    labels
        True for essential genes and False for others, by gene symbol or Ensembl id.
    matched
        Also score pairs of an essential and another gene that are less than 2 percentiles apart when all genes are
        ranked by their mean log expression. Each gene is in one pair at most.
    layer
        Where the counts for the baselines are; ``adata.X`` by default.
    n_folds
        Folds of the cross-validation, stratified.
    seed
        Of the folds, the forests and the random baseline.

    Returns
    -------
    `pandas.DataFrame` with the columns of `tahoe.evaluate.cell_types`; ``n`` is the number of genes. Metrics ``AUROC``
    and ``AUPRC``, and with `matched` the same again; NaN where there are too few pairs.

    Raises
    ------
    tahoe.errors.InputError
        If a representation cannot be used, no gene is known, or one of the classes has fewer genes than folds.

    Examples
    --------
    >>> import numpy as np, tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed_genes(adata, model="demo", context=False)
    >>> known = adata.var_names[np.isfinite(adata.varm["tahoe"]).all(axis=1)]
    >>> labels = {name: name.startswith("RP") for name in known[::2]}
    >>> table = tahoe.evaluate.essentiality(adata, "tahoe", labels)
    >>> sorted(table["metric"].unique())
    ['AUPRC', 'AUPRC, matched for expression', 'AUROC', 'AUROC, matched for expression']
    """
    check_adata(adata)
    of_id = _labels_of_ids(labels)
    genes = read_genes(adata, use_rep, set(of_id), layer, seed)
    is_essential = np.array([of_id[id_] for id_ in genes.ids])
    smaller = min(is_essential.sum(), (~is_essential).sum())
    if n_folds < 2 or smaller < n_folds:
        message = f"{is_essential.sum()} of {len(is_essential)} genes are essential; both kinds need {max(n_folds, 2)}"
        raise InputError(message)
    scores = _cross_validated(genes, is_essential, np.arange(len(is_essential)), "", n_folds, seed)
    if matched:
        pairs = matched_pairs(genes.expression_rank, is_essential)
        scores += _cross_validated(genes, is_essential, pairs, ", matched for expression", n_folds, seed)
    return to_table(scores, task="essentiality", n_folds=n_folds, seed=seed, matched=matched)


def _labels_of_ids(labels: pd.Series | Mapping[str, bool]) -> dict[str, bool]:
    named = pd.Series(labels) if isinstance(labels, Mapping) else labels
    if not isinstance(named, pd.Series) or named.isna().any() or not named.isin([True, False]).all():
        message = "labels must be True or False for each gene: a pandas.Series of booleans with their names as index"
        raise InputError(message)
    names = [str(name) for name in named.index]
    ids = resolved(names)
    of_id: dict[str, bool] = {}
    for name, value in zip(names, named.to_numpy(dtype=bool), strict=True):
        id_ = ids.get(name)
        if id_ is not None and of_id.setdefault(id_, bool(value)) != value:
            message = f"labels: {name!r} ({id_}) is both True and False"
            raise InputError(message)
    if not of_id:
        message = f"labels: none of {len(names)} names is known, such as {names[:3]}; pass human symbols or Ensembl ids"
        raise InputError(message)
    return of_id


def matched_pairs(values: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """Rows of pairs of a positive and a negative with nearly the same value, each row in one pair at most.

    Pairs are closed from the nearest on; ties go to the row that comes first.
    """
    positive, negative = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    apart = np.abs(values[positive][:, None] - values[negative][None])
    near = np.argwhere(apart < CALIPER)
    free = np.ones(len(values), dtype=bool)
    chosen = []
    for i, j in near[np.argsort(apart[near[:, 0], near[:, 1]], kind="stable")]:
        if free[positive[i]] and free[negative[j]]:
            free[[positive[i], negative[j]]] = False
            chosen += [positive[i], negative[j]]
    return np.array(sorted(chosen), dtype=np.int64)


def _cross_validated(
    genes: Genes, is_essential: np.ndarray, rows: np.ndarray, suffix: str, n_folds: int, seed: int
) -> list[Score]:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import average_precision_score, roc_auc_score

    named = {name: (genes.kind(name), vectors[rows]) for name, vectors in genes.vectors.items()}
    named[CONSTANT] = (BASELINE, np.zeros((len(rows), 1)))
    truth = is_essential[rows]
    detail = f"{truth.sum()} essential, {(~truth).sum()} others"
    metrics = {"AUROC": roc_auc_score, "AUPRC": average_precision_score}
    if len(rows) < 2 * n_folds:
        return [
            Score(metric + suffix, name, kind, np.nan, n=len(rows), detail=f"too few: {detail}")
            for metric in metrics
            for name, (kind, _) in named.items()
        ]
    folds = make_folds(truth, None, n_folds, seed)
    scores = []
    for name, (kind, vectors) in named.items():
        predicted = []
        for train, test in folds:
            classifier = DummyClassifier() if name == CONSTANT else RandomForestClassifier(random_state=seed)
            classifier.fit(vectors[train], truth[train])
            predicted.append((truth[test], classifier.predict_proba(vectors[test])[:, 1]))
        for metric, of in metrics.items():
            values = [float(of(*pair)) for pair in predicted]
            scores.append(mean_score(metric + suffix, name, kind, values, "folds", n=len(rows), detail=detail))
    return scores
