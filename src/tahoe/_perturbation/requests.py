"""What a user asks a perturbation screen for."""

from __future__ import annotations

from typing import Any

from tahoe.errors import InputError, check_choice

KINDS = ("delete", "maximum", "activate", "drug")
METHODS = ("auto", "first_order", "exact")


def requested_edits(genes: Any, kind: str, method: str, drugs: Any) -> list[tuple[str, ...]] | None:
    """The edits that a user names, each a tuple of genes; None for all genes.

    Raises
    ------
    tahoe.errors.InputError
        If they do not go with `kind` or `method`, or none is named, or one twice.
    """
    check_choice(kind=(kind, KINDS), method=(method, METHODS))
    if kind == "drug":
        if genes is not None or drugs is None:
            message = "kind='drug' perturbs by drugs: name them with drugs=, and omit genes="
            raise InputError(message)
        return None
    if genes is None:
        return None
    if isinstance(genes, str) and genes == "vocabulary":
        if kind != "activate":
            message = f"genes='vocabulary' goes with kind='activate'; with kind={kind!r} omit genes="
            raise InputError(message)
        return None
    listed = [genes] if isinstance(genes, str) else list(genes)
    edits = [tuple(map(str, gene)) if isinstance(gene, tuple | list) else (str(gene),) for gene in listed]
    if not edits or len(set(edits)) < len(edits) or any(len(set(edit)) < len(edit) or not edit for edit in edits):
        message = f"genes={listed[:5]}: name at least one gene, and each once"
        raise InputError(message)
    if method == "first_order" and any(len(edit) > 1 for edit in edits):
        message = "combinations of genes are edited exactly; pass method='auto' or 'exact', or omit them"
        raise InputError(message)
    return edits
