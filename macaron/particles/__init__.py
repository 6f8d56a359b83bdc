"""Text as particles: the flows of a Transformer, and the layer that takes one step along them."""

from macaron.particles.flows import CrossAttention, FeedForward, SelfAttention, register_flow
from macaron.particles.layer import ParticleLayer
from macaron.particles.norm import StepNorm
from macaron.particles.surroundings import Caches, Mask, Memory, Packed, Surroundings

__all__ = [
    "Caches",
    "CrossAttention",
    "FeedForward",
    "Mask",
    "Memory",
    "Packed",
    "ParticleLayer",
    "SelfAttention",
    "StepNorm",
    "Surroundings",
    "register_flow",
]
