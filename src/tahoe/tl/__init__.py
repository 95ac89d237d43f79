"""Tools: what Tahoe-x1 says of the cells and genes of an AnnData."""

from tahoe.tl._attention import attention
from tahoe.tl._embed import embed
from tahoe.tl._embed_genes import embed_genes
from tahoe.tl._perturb import perturb
from tahoe.tl._predict_expression import predict_expression

__all__ = ["attention", "embed", "embed_genes", "perturb", "predict_expression"]
