"""Convolution filters that are derivatives by construction: moments (Long et al. 2019, PDE-Net 2.0).

Axis −2 of a field is y, axis −1 is x, and the derivative of order (a, b) is ∂^(a+b)/∂y^a ∂x^b. With the offsets
x_j = j − ⌊(l − 1)/2⌋ of a filter's points and M[i, j] = x_j^i / i!, a kernel k has the moments m = M k Mᵀ, and by
Taylor the correlation with k is Σ m[i, j] dy^i dx^j ∂^(i+j)u/∂y^i∂x^j: the moments are the equation it stands for.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = ("free", "moment", "frozen")


def offsets(size: int) -> list[int]:
    """Where the points of a filter lie from its centre."""
    if size < 1:
        raise ValueError(f"a filter has at least one point an axis, not {size}")
    return [j - (size - 1) // 2 for j in range(size)]


def moment_matrix(size: int) -> Tensor:
    """M of one axis, (size, size), float64."""
    points = offsets(size)
    rows = [[point**i / math.factorial(i) for point in points] for i in range(size)]
    return torch.tensor(rows, dtype=torch.float64)


def inverse_moment_matrix(size: int) -> Tensor:
    """M⁻¹: Lagrange's polynomials, whose coefficients are whole numbers over whole numbers, so no digit is lost."""
    points = offsets(size)
    inverse = torch.zeros(size, size, dtype=torch.float64)
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        coefficients = np.poly(others)[::-1] if others else [1.0]
        below = math.prod(point - other for other in others)
        for i, coefficient in enumerate(coefficients):
            inverse[j, i] = math.factorial(i) * float(coefficient) / below
    return inverse


def k2m(kernel: Tensor) -> Tensor:
    """Moments of kernels, (…, h, w), in float64 arithmetic."""
    height, width = kernel.shape[-2:]
    return (moment_matrix(height).to(kernel.device) @ kernel.double() @ moment_matrix(width).T.to(kernel.device)).to(
        kernel
    )


def m2k(moment: Tensor) -> Tensor:
    """Kernels of moments, (…, h, w), in float64 arithmetic."""
    left, right = (inverse_moment_matrix(size).to(moment.device) for size in moment.shape[-2:])
    return (left @ moment.double() @ right.T).to(moment)


def correlate(field: Tensor, kernel: Tensor) -> Tensor:
    """Periodic correlation of fields (…, H, W) with one kernel (h, w).

    Raises:
        ValueError: a field smaller than the kernel.
    """
    height, width = kernel.shape
    if field.dim() < 2 or field.shape[-2] < height or field.shape[-1] < width:
        raise ValueError(f"a field of shape {tuple(field.shape)} is smaller than the filter, {height} x {width}")
    top, left = (height - 1) // 2, (width - 1) // 2
    flat = field.reshape(-1, 1, *field.shape[-2:])
    padded = F.pad(flat, (left, width - 1 - left, top, height - 1 - top), mode="circular")
    return F.conv2d(padded, kernel[None, None]).reshape(field.shape)


class DerivativeFilter(nn.Module):
    """A trainable filter whose correlation is the derivative of order (a, b), whatever its free moments are.

    Args:
        order: (a, b), along y and x.
        size: of the kernel, one number or (height, width).
        dx: distance of the grid's points.
        constraint: a number c holds all moments with i + j < a + b + c, so that the error is O(dx^c); "moment" is 1;
            "frozen" is 1 and does not train; "free" holds nothing.

    Raises:
        ValueError: moments that a kernel of this size does not have, or an unknown constraint.
    """

    held: Tensor
    target: Tensor
    left: Tensor
    right: Tensor

    def __init__(
        self,
        order: tuple[int, int],
        size: int | tuple[int, int] = 5,
        dx: float = 1.0,
        constraint: int | str = 2,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        (a, b), (height, width) = order, (size, size) if isinstance(size, int) else size
        named = isinstance(constraint, str)
        if constraint not in WORDS if named else isinstance(constraint, bool) or int(constraint) < 1:
            raise ValueError(f"constraint={constraint!r} is none; choose a number from 1 or one of {', '.join(WORDS)}")
        accuracy = 1 if named else int(constraint)
        if not (0 <= a < height and 0 <= b < width):
            raise ValueError(f"order ({a}, {b}) has no moment in a {height} x {width} filter; enlarge size")
        if constraint != "free" and a + b + accuracy > min(height, width):
            raise ValueError(
                f"order ({a}, {b}) with constraint {constraint!r} holds moments up to order {a + b + accuracy - 1}, "
                f"but a {height} x {width} filter has them below {min(height, width)}; enlarge size"
            )
        if not (math.isfinite(dx) and dx > 0):
            raise ValueError(f"dx={dx!r} is no distance; it must be a positive number")
        self.order, self.scale, self.constraint = (a, b), dx ** -(a + b), constraint
        target = torch.zeros(height, width, dtype=dtype)
        target[a, b] = 1.0
        total = torch.arange(height)[:, None] + torch.arange(width)
        held = torch.zeros(height, width, dtype=torch.bool) if constraint == "free" else total < a + b + accuracy
        self.moment = nn.Parameter(target.clone(), requires_grad=constraint != "frozen")
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("held", held, persistent=False)
        self.register_buffer("left", inverse_moment_matrix(height).to(dtype), persistent=False)
        self.register_buffer("right", inverse_moment_matrix(width).to(dtype), persistent=False)

    @torch.no_grad()
    def set_kernel(self, kernel: Tensor) -> None:
        """Start from this kernel (h, w); what the constraint holds is still held."""
        if kernel.shape != self.moment.shape:
            raise ValueError(f"a kernel of shape {tuple(kernel.shape)} for a filter of {tuple(self.moment.shape)}")
        self.moment.copy_(k2m(kernel))

    def projected(self) -> Tensor:
        """The moments with those that are held at their values; gradients reach the others only."""
        return torch.where(self.held, self.target, self.moment)

    def kernel(self) -> Tensor:
        """(h, w), of the projected moments, not divided by dx."""
        return self.left @ self.projected() @ self.right.T

    def forward(self, field: Tensor, mirror: int | None = None) -> Tensor:
        """The derivative of periodic fields (…, H, W).

        Args:
            mirror: axis (−2 or −1) along which the negative mirror image of the kernel is taken: the other wind.
        """
        kernel = self.kernel()
        if mirror is not None:
            kernel = -kernel.flip(mirror)
        return correlate(field, kernel) * self.scale

    def extra_repr(self) -> str:
        return f"order={self.order}, size={tuple(self.moment.shape)}, constraint={self.constraint!r}"
