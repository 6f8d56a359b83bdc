"""Criterions; importing this package registers them with fairseq."""

from . import adversarial, label_smoothed_cross_entropy
from .attention import reads_attention

__all__ = ["adversarial", "label_smoothed_cross_entropy", "reads_attention"]
