"""Fused operations on particles: each file holds a reference, its kernels where there are any, and one function."""

from macaron.ops.act_dropout import act_dropout
from macaron.ops.attention import attention, packed_attention
from macaron.ops.linear_cross_entropy import linear_cross_entropy
from macaron.ops.step_norm import euler_step, step_norm

__all__ = ["act_dropout", "attention", "euler_step", "linear_cross_entropy", "packed_attention", "step_norm"]
