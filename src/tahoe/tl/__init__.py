"""Tools: what Tahoe-x1 says of the cells and genes of an AnnData."""

from tahoe.tl._attention import attention
from tahoe.tl._embed import embed
from tahoe.tl._embed_genes import embed_genes
from tahoe.tl._perturb import perturb
from tahoe.tl._predict import predict
from tahoe.tl._predict_expression import predict_expression
from tahoe.tl._search import search
from tahoe.tl._transfer_labels import transfer_labels

__all__ = [
    "attention",
    "embed",
    "embed_genes",
    "perturb",
    "predict",
    "predict_expression",
    "search",
    "transfer_labels",
]
