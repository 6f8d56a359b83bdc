"""Text as particles: the flows of a Transformer, and the layer that takes one step along them."""

from macaron.particles.flows import CrossAttention, FeedForward, SelfAttention, Surroundings
from macaron.particles.layer import ParticleLayer
from macaron.particles.norm import StepNorm

__all__ = ["CrossAttention", "FeedForward", "ParticleLayer", "SelfAttention", "StepNorm", "Surroundings"]
