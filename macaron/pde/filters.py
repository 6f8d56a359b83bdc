"""Convolution filters that are derivatives by construction: moments (Long et al. 2019, PDE-Net 2.0).

Axis −2 of a field is y, axis −1 is x, and the derivative of order (a, b) is ∂^(a+b)/∂y^a ∂x^b. With the offsets
x_j = j − ⌊(l − 1)/2⌋ of a filter's points and M[i, j] = x_j^i / i!, a kernel k has the moments m = M k Mᵀ, and by
Taylor the correlation with k is Σ m[i, j] dy^i dx^j ∂^(i+j)u/∂y^i∂x^j: the moments are the equation it stands for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = ("free", "moment", "frozen")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def pair(value: object, name: str) -> tuple[int, int]:
    """Two whole numbers, along y and x."""
    if not isinstance(value, tuple | list) or len(value) != 2 or not all(map(_whole, value)):
        raise ValueError(f"{name}={value!r} must be two whole numbers, along y and x")
    return value[0], value[1]


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
        coefficients = [1]  # of Π (x − other), from the power 0 on
        for other in others:
            coefficients = [a - other * b for a, b in zip([0, *coefficients], [*coefficients, 0], strict=True)]
        below = math.prod(point - other for other in others)
        for i, coefficient in enumerate(coefficients):
            inverse[j, i] = math.factorial(i) * coefficient / below
    return inverse


def k2m(kernel: Tensor) -> Tensor:
    """Moments of kernels, (…, h, w), in float64 arithmetic; of whole numbers float64.

    Raises:
        ValueError: no matrices of real numbers.
    """
    kernel = _matrices(kernel, "a kernel")
    height, width = kernel.shape[-2:]
    return (moment_matrix(height).to(kernel.device) @ kernel.double() @ moment_matrix(width).T.to(kernel.device)).to(
        kernel
    )


def m2k(moment: Tensor) -> Tensor:
    """Kernels of moments, (…, h, w), in float64 arithmetic; of whole numbers float64.

    Raises:
        ValueError: no matrices of real numbers.
    """
    moment = _matrices(moment, "a moment matrix")
    left, right = (inverse_moment_matrix(size).to(moment.device) for size in moment.shape[-2:])
    return (left @ moment.double() @ right.T).to(moment)


def _matrices(given: Tensor, what: str) -> Tensor:
    """Moments of whole numbers are fractions, which whole numbers would cut off."""
    if given.dim() < 2 or not min(given.shape[-2:]) or given.is_complex():
        raise ValueError(
            f"{what} has the shape (…, h, w) and real numbers, not {tuple(given.shape)} and {given.dtype}; convert it"
        )
    return given if given.is_floating_point() else given.double()


def correlate(field: Tensor, kernel: Tensor) -> Tensor:
    """Periodic correlation of fields (…, H, W) with one kernel (h, w).

    Raises:
        ValueError: a field smaller than the kernel, or of another dtype.
    """
    height, width = kernel.shape
    if field.dtype != kernel.dtype:
        raise ValueError(
            f"a field of {field.dtype} for a filter of {kernel.dtype}; convert the field, or the filter with .to(dtype)"
        )
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
        ValueError: moments that a kernel of this size does not have, an unknown constraint or another dtype.
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
        (a, b), (height, width) = pair(order, "order"), pair((size, size) if isinstance(size, int) else size, "size")
        named = isinstance(constraint, str)
        if constraint not in WORDS if named else not _whole(constraint) or constraint < 1:  # type: ignore[operator]
            raise ValueError(f"constraint={constraint!r} is none; choose a number from 1 or one of {', '.join(WORDS)}")
        accuracy = 1 if named else int(constraint)
        if not (0 <= a < height and 0 <= b < width):
            raise ValueError(f"order ({a}, {b}) has no moment in a {height} x {width} filter; enlarge size")
        # x^i with i ≥ h is on h points a mixture of the lower powers, x^a among them: the moments that the kernel lacks
        # vanish with those that are held up to order a + b + c − 1 if, and in general only if, a + c ≤ h and b + c ≤ w.
        # A single point lies at 0, where all powers vanish.
        if constraint != "free" and (a + accuracy > height > 1 or b + accuracy > width > 1):
            raise ValueError(
                f"order ({a}, {b}) with constraint {constraint!r} holds moments up to order {a + b + accuracy - 1}, "
                f"for which a filter needs {a + accuracy} x {b + accuracy} points and has {height} x {width}; enlarge "
                f"size"
            )
        if not isinstance(dx, int | float) or not (math.isfinite(dx) and dx > 0):
            raise ValueError(f"dx={dx!r} is no distance; it must be one positive number, the same along both axes")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} has no fractions; choose torch.float64 or another floating type")
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
        """Start from this kernel (h, w); what the constraint holds is still held.

        Raises:
            ValueError: another shape, or weights that are NaN or infinite.
        """
        if kernel.shape != self.moment.shape:
            raise ValueError(f"a kernel of shape {tuple(kernel.shape)} for a filter of {tuple(self.moment.shape)}")
        if not kernel.isfinite().all():
            raise ValueError("a kernel with weights that are NaN or infinite is none; give finite numbers")
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
            if mirror not in (-2, -1):
                raise ValueError(f"mirror={mirror!r} is no axis of a kernel; choose -2 (y), -1 (x) or None")
            kernel = -kernel.flip(mirror)
        return correlate(field, kernel) * self.scale

    def extra_repr(self) -> str:
        return f"order={self.order}, size={tuple(self.moment.shape)}, constraint={self.constraint!r}"
