"""Plots. Each returns its axes and writes nothing."""

from tahoe.pl._gene_mapping import gene_mapping

__all__ = ["gene_mapping"]
