"""Tools: what Tahoe-x1 says of the cells and genes of an AnnData."""

from tahoe.tl._embed import embed

__all__ = ["embed"]
