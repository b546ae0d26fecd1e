"""Dask's futures with a real resource scheduler."""

__version__ = "0.1.0"
