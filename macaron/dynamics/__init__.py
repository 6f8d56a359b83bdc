"""The shared particle-dynamics layer: splittings, flows, and the layer that walks one over the other."""

from macaron.dynamics.flows import CrossAttention, FeedForward, SelfAttention, Surroundings
from macaron.dynamics.layer import ParticleLayer
from macaron.dynamics.splitting import LIE, STRANG, Splitting, Substep, get_splitting

__all__ = [
    "LIE",
    "STRANG",
    "CrossAttention",
    "FeedForward",
    "ParticleLayer",
    "SelfAttention",
    "Splitting",
    "Substep",
    "Surroundings",
    "get_splitting",
]
