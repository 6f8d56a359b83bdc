"""Criterions; importing this package registers them with fairseq."""

from . import label_smoothed_cross_entropy

__all__ = ["label_smoothed_cross_entropy"]
