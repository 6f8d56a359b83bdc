"""Optimisers; importing this package registers them with fairseq."""

from . import adam

__all__ = ["adam"]
