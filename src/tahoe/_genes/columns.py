"""Which columns of a matrix are gene expression, as far as ``var`` says what each of them measures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._genes.clean import as_text, clean_name

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names of the column and of what stands in it, in small letters and without blanks or other signs. Words that are also
# types of genes in an annotation (gene, mRNA, snRNA, protein coding) are neither, and say nothing.
KEYS = ("featuretypes", "featuretype", "modality", "modalities")
EXPRESSION = {"geneexpression", "gex", "rna", "rnaseq", "scrnaseq", "snrnaseq", "transcriptome"}
# fmt: off
OTHERS = {
    "antibodycapture", "antibody", "antibodies", "adt", "adts", "ab", "abseq", "protein", "proteins", "prot",
    "surfaceprotein", "cite", "citeseq", "totalseq", "antigencapture", "antigen",
    "peak", "peaks", "atac", "atacseq", "scatacseq", "snatacseq", "chromatinaccessibility", "geneactivity",
    "crisprguidecapture", "crispr", "guide", "guides", "guiderna", "grna", "sgrna",
    "multiplexingcapture", "multiplexing", "hto", "htos", "hashtag", "hashtags", "cmo", "custom", "lineagebarcode",
    "negativecontrolprobe", "negativecontrolcodeword", "negativecontrol", "genomiccontrol", "unassignedcodeword",
    "deprecatedcodeword", "blankcodeword", "blank", "negprobe", "falsecode", "systemcontrol", "spikein", "ercc",
    "vdj", "vdjt", "vdjb",
}
# fmt: on
MISSING = {"", "nan", "na", "none", "unknown"}
MISSING_TYPE, EXPRESSION_TYPE, OTHER_TYPE, UNKNOWN_TYPE = range(4)


@dataclass(frozen=True)
class GeneColumns:
    """The columns of a matrix that may be genes, one boolean for each."""

    are_genes: np.ndarray
    """Whether it takes part."""
    are_labelled: np.ndarray
    """Whether it takes part and ``var`` says so: such a column keeps its gene before one of which nothing is said."""
    left_out: str = ""
    """What was left out, in words."""


def gene_columns(var: pd.DataFrame) -> GeneColumns:
    """Find the columns that are gene expression.

    A column such as ``var["feature_types"]`` decides where it has a word for gene expression or for another modality.
    Where it has one for gene expression, only these columns take part, and those without any entry; else all but those
    that are another modality. Without such a column of `var`, all take part.
    """
    for wanted in KEYS:
        for key in var.columns:
            if _plain(key) == wanted:
                types, labels = _types(var[key])
                if np.isin(types, (EXPRESSION_TYPE, OTHER_TYPE)).any():
                    return _from_labels(str(key), types, labels)
    everything = np.ones(len(var), dtype=bool)
    return GeneColumns(everything, everything)


def _from_labels(key: str, types: np.ndarray, labels: np.ndarray) -> GeneColumns:
    has_expression = (types == EXPRESSION_TYPE).any()
    labelled = types == EXPRESSION_TYPE if has_expression else types == UNKNOWN_TYPE
    genes = labelled | (types == MISSING_TYPE)
    counts = pd.Series(labels[~genes], dtype=object).value_counts()
    listed = ", ".join(f"{number:,} {label}" for label, number in sorted(counts.items(), key=lambda item: -item[1]))
    left_out = f'var["{key}"] has other features than gene expression, which take no part: {listed}' if listed else ""
    return GeneColumns(genes, labelled, left_out)


def _types(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """What each entry is, as a code, and the entries as text."""
    labels = np.array([as_text(label) for label in np.array(column, dtype=object)], dtype=object)
    codes, words = pd.factorize(labels)
    return np.array(list(map(_type, words)), dtype=np.int8)[codes], labels


def _type(label: str) -> int:
    plain = _plain(clean_name(label))
    known: Iterable[tuple[int, set[str]]] = (
        (MISSING_TYPE, MISSING),
        (EXPRESSION_TYPE, EXPRESSION),
        (OTHER_TYPE, OTHERS),
    )
    return next((code for code, words in known if plain in words), UNKNOWN_TYPE)


def _plain(text: object) -> str:
    return re.sub(r"[\W_]", "", as_text(text)).lower()
