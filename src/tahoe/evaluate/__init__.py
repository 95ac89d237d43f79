"""How good a representation is, always beside baselines. Each function returns a data frame and writes nothing."""

from tahoe.evaluate._cell_types import cell_types
from tahoe.evaluate._essentiality import essentiality
from tahoe.evaluate._gene_sets import gene_sets
from tahoe.evaluate._perturbation import perturbation

__all__ = ["cell_types", "essentiality", "gene_sets", "perturbation"]
