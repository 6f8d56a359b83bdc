"""Reads checkpoints of the original Macaron Net implementation, and those of fairseq, safely."""

from macaron.legacy.checkpoint import CheckpointError, load
from macaron.legacy.names import to_particle_names

__all__ = ["CheckpointError", "load", "to_particle_names"]
