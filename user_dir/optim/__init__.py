"""Optimisers; importing this package registers them with fairseq."""

from . import adam, half

__all__ = ["adam", "half"]
