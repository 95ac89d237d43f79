"""Preprocessing: bring the genes of a data set into the language of the model."""

from tahoe.pp._map_genes import map_genes

__all__ = ["map_genes"]
