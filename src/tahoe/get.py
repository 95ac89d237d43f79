"""Read single results, without changing the AnnData."""

__all__: list[str] = []
