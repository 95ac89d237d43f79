"""Tools: what Tahoe-x1 says of the cells and genes of an AnnData."""

from tahoe.tl._embed import embed
from tahoe.tl._embed_genes import embed_genes

__all__ = ["embed", "embed_genes"]
