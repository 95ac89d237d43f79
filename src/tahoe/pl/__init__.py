"""Plots. Each returns its axes and writes nothing."""

from tahoe.pl._attention import attention
from tahoe.pl._evaluation import evaluation
from tahoe.pl._gene_mapping import gene_mapping
from tahoe.pl._gene_neighbors import gene_neighbors
from tahoe.pl._label_transfer import label_transfer
from tahoe.pl._perturbation import perturbation

__all__ = ["attention", "evaluation", "gene_mapping", "gene_neighbors", "label_transfer", "perturbation"]
