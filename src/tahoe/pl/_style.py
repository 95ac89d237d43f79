"""How all plots look: their colours, and new figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, MEDIUM_BLUE, PALE_BLUE = "#2171b5", "#4292c6", "#9ecae1"
RED, ORANGE, PALE_ORANGE, GREY = "#cb4b16", "#d94701", "#fdbe85", "0.55"
COLORMAP = "Blues"


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure, its size in inches."""
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]
