"""Fused operations on particles: each file holds a reference, its kernels where there are any, and one function."""

from macaron.ops.attention import attention, packed_attention
from macaron.ops.bias_act import bias_act
from macaron.ops.linear_cross_entropy import linear_cross_entropy
from macaron.ops.step_norm import euler_step, step_norm

__all__ = ["attention", "bias_act", "euler_step", "linear_cross_entropy", "packed_attention", "step_norm"]
