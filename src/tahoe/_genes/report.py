"""What became of the genes, in numbers and in words, and the check against a model's vocabulary."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._genes.table import MATCHES, MODALITY, load_table
from tahoe.errors import GeneError, warn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# Shares of the counts. Real human matrices keep more than 0.96 whatever their age; the wrong organism or the wrong
# column keeps less than 0.1.
WARN_BELOW = 0.9
REFUSE_BELOW = 0.5
N_LOST = 20
# Selections of highly variable genes have up to so many; whole matrices have many more.
FEW_GENES = 5000

MOUSE_SYMBOL = re.compile(r"(?:mt-)?[A-Z][a-z0-9]*[a-z][A-Za-z0-9-]*|[A-Z0-9]+Rik")
PROBE = re.compile(r".+_(?:[asx]_)?at|ILMN_\d+|A_\d+_P\d+|cg\d{8}|AFFX.*")


def describe(
    names: np.ndarray,
    gene: np.ndarray,
    tiers: np.ndarray,
    totals: np.ndarray | None,
    *,
    n_left_out: int = 0,
    **origin: str,
) -> dict[str, Any]:
    """Everything about the mapping that goes into ``uns``: plain values only, so that it can be written to disk.

    `origin` says what the names are and what was done with the columns; `n_left_out` columns are beside the genes.
    """
    known = in_released_vocabulary(gene)
    report: dict[str, Any] = {
        **origin,
        "n_genes": len(names),
        "n_mapped": int((gene != "").sum()),
        "n_in_vocabulary": int(known.sum()),
        "genes": {match: int(number) for match, number in _by_match(tiers, np.ones(len(names)))},
        "genes_in_vocabulary": {match: int(number) for match, number in _by_match(tiers, known)},
    }
    report["genes"][MATCHES[MODALITY]] = n_left_out
    if totals is not None:
        # Summed before they are divided: sums of counts are exact, whatever the order of the columns.
        total = totals.sum()
        report["counts_mapped"] = float(totals[gene != ""].sum() / total)
        report["share_in_vocabulary"] = float(totals[known].sum() / total)
        report["counts"] = {match: float(counts / total) for match, counts in _by_match(tiers, totals)}
        report["counts_in_vocabulary"] = {
            match: float(counts / total) for match, counts in _by_match(tiers, totals * known)
        }
    report["lost"] = _lost(names, ~known, totals)
    report["hint"] = _hint(names, report)
    report["summary"] = _summary(report)
    return report


def _by_match(tiers: np.ndarray, weights: np.ndarray) -> Iterable[tuple[str, float]]:
    sums = np.bincount(tiers, weights=weights, minlength=len(MATCHES))
    return zip(MATCHES, sums.tolist(), strict=True)


@cache
def _model_genes() -> pd.Index:
    return pd.Index([f"ENSG{gene:011d}" for gene in load_table("human").vocabulary.tolist()], dtype=object)


def in_released_vocabulary(genes: np.ndarray) -> np.ndarray:
    """Which of some Ensembl ids the released models know."""
    return _isin(genes, _model_genes())


def _isin(genes: np.ndarray, known: Collection[str]) -> np.ndarray:
    return pd.Index(genes, dtype=object).isin(known if isinstance(known, pd.Index) else list(known))  # numpy's is slow


def _lost(names: np.ndarray, lost: np.ndarray, totals: np.ndarray | None) -> list[str]:
    """Names of the most expressed genes among the lost ones; the first ones where nothing is known of expression."""
    places = np.flatnonzero(lost & (names != ""))
    if totals is not None:
        places = places[totals[places] > 0]
        places = places[np.lexsort((names[places].astype(str), -totals[places]))]
    return [str(name) for name in names[places[:N_LOST]]]


def printable(name: str) -> str:
    """A name for a message, in which an end of a line would look like nothing."""
    return name if name.isprintable() else repr(name)


def _summary(report: dict[str, Any]) -> str:
    """One line for the log."""
    text = f"{report['n_in_vocabulary']:,} of {report['n_genes']:,} genes"
    if "counts" in report:
        text += f" with {report['share_in_vocabulary']:.2%} of the counts"
    tiers = ", ".join(f"{match} {number:,}" for match, number in report["genes"].items() if number)
    text += f" are in the vocabulary of the released models, by {report['gene_key']} ({tiers})"
    if report["lost"]:
        text += f"; lost: {', '.join(map(printable, report['lost'][:5]))}"
    if report["left_out"]:
        text += f". {report['left_out']}"
    return f"{text}. {report['hint']}".strip()


def _hint(names: np.ndarray, report: dict[str, Any]) -> str:
    """What a low share most likely comes from, "" where the share is not low."""
    share = report.get("share_in_vocabulary", report["n_in_vocabulary"] / max(report["n_genes"], 1))
    if share >= WARN_BELOW:
        return ""
    return _looks_like(names, report["organism"])


def _looks_like(names: np.ndarray, organism: str) -> str:
    """Say what kind of names these are, and which call mends it."""
    present = names[names != ""]
    # Every k-th of the sorted names is enough, and does not depend on the order of the columns.
    sample = sorted(map(str, present))[:: max(1, len(present) // 2000)]
    if not sample:
        return "All names are empty; pass gene_key= to name the column of adata.var with the identifiers."
    kinds = {
        "mouse": lambda name: bool(MOUSE_SYMBOL.fullmatch(name)) or name.startswith("ENSMUSG"),
        "human": lambda name: name.isupper() and not name.startswith("ENSMUSG"),
        "number": lambda name: name.replace(".", "").isdigit(),
        "probe": lambda name: bool(PROBE.fullmatch(name)),
    }
    share = {kind: sum(map(test, sample)) / len(sample) for kind, test in kinds.items()}
    if share["number"] > 0.5:
        return "The names are numbers, perhaps of rows; pass gene_key= to name the column with symbols or ids."
    if share["probe"] > 0.3:
        return "The names look like probes of an array; map them to genes first, with the array's own annotation."
    if organism == "human" and share["mouse"] > 0.5:
        return 'The names look like mouse genes; pass organism="mouse" to go through orthologs.'
    if organism == "mouse" and share["human"] > 0.5:
        return 'The names look like human genes; omit organism="mouse".'
    hint = f"Is gene_key= the right column, and is this a {organism} data set?"
    if len(present) < FEW_GENES:
        hint += f" With {len(present):,} genes it may be a selection of variable ones: map the genes before selecting."
    return hint


def refuse_unknown(names: np.ndarray, organism: str, gene_key: str) -> None:
    """Raise `GeneError`: no name is a gene."""
    examples = ", ".join(map(repr, names[:5].tolist()))
    message = (
        f"none of the {len(names)} names in {gene_key} is a {organism} gene; the first are {examples}. "
        + _looks_like(names, organism)
    )
    raise GeneError(message)


def check_coverage(
    mapping_gene: np.ndarray,
    totals: np.ndarray | None,
    vocabulary_genes: Collection[str],
    *,
    names: np.ndarray,
    organism: str = "human",
    warn_below: float = WARN_BELOW,
    refuse_below: float = REFUSE_BELOW,
) -> dict[str, Any]:
    """Check how much of a matrix a model can read, and give the numbers.

    Without `totals`, the sums of the columns, shares are those of the genes, and only warned of. `names` and `organism`
    are for the message.
    """
    gene, names = np.asarray(mapping_gene, dtype=object), np.asarray(names, dtype=object)
    known = _isin(gene, vocabulary_genes)
    usable = non_negative_totals(totals)
    found: dict[str, Any] = {"n_in_vocabulary": int(known.sum())}
    if usable is not None:
        found["share_in_vocabulary"] = float(usable[known].sum() / usable.sum())
    found["lost"] = _lost(names, ~known, usable)
    share = found.get("share_in_vocabulary", known.mean())
    what = "genes" if usable is None else "counts"
    # of what is lost, most is either the model's doing, or that of the names
    weights = np.where(known, 0, 1 if usable is None else usable)
    recognised = weights[gene != ""].sum() > weights.sum() / 2
    hint = (
        "Most of these genes were recognised, but the model was not made with them."
        if recognised
        else _looks_like(names, organism)
    )
    message = (
        f"the model knows {found['n_in_vocabulary']} of {len(gene)} genes, which hold {share:.1%} of the {what};"
        f" it does not know {', '.join(map(printable, found['lost'][:10])) or 'the others'}. {hint}"
    )
    if not known.any() or (usable is not None and share < refuse_below):
        raise GeneError(message)
    if share < warn_below:
        warn(message)
    return found


def non_negative_totals(totals: np.ndarray | None) -> np.ndarray | None:
    """Totals as floats, `None` if shares of them would say nothing: scaled, missing or empty data."""
    if totals is None:
        return None
    totals = np.asarray(totals, dtype=float)
    return totals if np.isfinite(totals).all() and (totals >= 0).all() and totals.sum() > 0 else None
