"""The gene tables that ship with the package, and the look-up of single strings in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files

import numpy as np
import pandas as pd

# How a column was matched. The position in this tuple is the code in the table and in all arrays of tiers, and the
# first five run from the most to the least certain. The last two are said of columns, not of names.
MATCHES = (
    *("ensembl", "symbol", "previous", "alias", "retired", "ortholog", "ambiguous", "duplicate", "unmapped"),
    *("summed", "modality"),
)
ENSEMBL, SYMBOL, PREVIOUS, ALIAS, RETIRED, ORTHOLOG, AMBIGUOUS, DUPLICATE, UNMAPPED, SUMMED, MODALITY = range(11)


@dataclass(frozen=True)
class GeneTable:
    """Names of genes with the gene that each of them means, as ``scripts/build_gene_table.py`` settled it."""

    names: pd.Index
    tiers: np.ndarray
    """For each name, how certain it is: a code of `MATCHES`."""
    genes: np.ndarray
    """For each name the number in its Ensembl id, 0 where the name is ambiguous."""
    known_to: np.ndarray | None = None
    """For each name a bit for each of the older annotations, oldest first, that uses it."""
    contested: np.ndarray | None = None
    """Positions of the names that meant different genes in different annotations."""
    contested_genes: np.ndarray | None = None
    """For each of them its gene in each of the older annotations, 0 where that has none or several."""
    vocabulary: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The genes that the released models know."""

    annotations: tuple[str, ...] = ()
    """What the older annotations are called."""

    def find(self, names: np.ndarray) -> np.ndarray:
        """Position of each name, -1 where the table does not have it."""
        return self.names.get_indexer(pd.Index(names, dtype=object))

    def find_ignoring_case(self, names: np.ndarray) -> np.ndarray:
        """Position of the most certain name that differs in case only; -2 if equally certain ones mean two genes."""
        upper, rows = self._upper
        slots = upper.get_indexer(pd.Index([name.upper() for name in names], dtype=object))
        return np.where(slots >= 0, rows[slots], -1)

    @cached_property
    def _upper(self) -> tuple[pd.Index, np.ndarray]:
        """Each name in capitals, and its position as `find_ignoring_case` gives it."""
        codes, upper = pd.factorize(np.array([name.upper() for name in self.names], dtype=object))
        order = np.lexsort((self.tiers, codes))
        best = order[np.flatnonzero(np.r_[True, np.diff(codes[order]) > 0])]
        rivals = (self.tiers == self.tiers[best][codes]) & (self.genes != self.genes[best][codes])
        best[codes[rivals]] = -2
        return pd.Index(upper, dtype=object), best

    def annotation(self, rows: np.ndarray) -> int | None:
        """Which of the older annotations knows most of the names at these positions, the newest of several."""
        if self.known_to is None or self.contested_genes is None or not len(rows):
            return None
        known = self.known_to[rows]
        counts = [int((known >> bit & 1).sum()) for bit in reversed(range(self.contested_genes.shape[1]))]
        return len(counts) - 1 - int(np.argmax(counts)) if any(counts) else None

    def meaning(self, rows: np.ndarray, annotation: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Gene and tier of the names at these positions; a name that changed hands is read as `annotation` used it."""
        genes = np.where(rows >= 0, self.genes[rows], 0)
        tiers = np.where(rows >= 0, self.tiers[rows], np.where(rows == -1, UNMAPPED, AMBIGUOUS))
        if annotation is None or self.contested is None or self.known_to is None or self.contested_genes is None:
            return genes, tiers
        disputed = np.flatnonzero(np.isin(rows, self.contested) & (self.known_to[rows] >> annotation & 1 == 1))
        theirs = self.contested_genes[np.searchsorted(self.contested, rows[disputed]), annotation]
        genes[disputed] = theirs
        tiers[disputed] = np.where(theirs > 0, RETIRED, AMBIGUOUS)
        return genes, tiers


@cache
def load_table(organism: str) -> GeneTable:
    """Read the table of "human" or "mouse" names, once."""
    with (
        files("tahoe").joinpath("data", f"genes_{organism}.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        names = pd.Index(arrays["names"].tobytes().decode().split("\n"), dtype=object)
        others = {key: arrays[key] for key in arrays.files if key not in ("names", "metadata")}
        metadata = json.loads(arrays["metadata"].tobytes())
    return GeneTable(names, **others, annotations=tuple(metadata["annotations"]))
