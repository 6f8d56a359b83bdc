"""Velocity fields of images, and the block that steps along one. Images are (B, C, H, W)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from macaron.dynamics import EULER, Tableau, follow


def conv(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)


def check_images(images: Tensor, channels: int) -> None:
    """
    Raises:
        ValueError: another shape than (B, channels, H, W).
    """
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"images of shape {tuple(images.shape)}, but (B, {channels}, H, W) are needed")


class BasicBranch(nn.Module):
    """dx/dt = W₂ ReLU(BN(W₁ ReLU(BN(x)))), both 3 × 3 (He et al. 2016, arXiv:1603.05027).

    Args:
        c_in: channels of x.
        width: channels of both convolutions.
        stride: of the first.
    """

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        x = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(x)))


class BottleneckBranch(nn.Module):
    """The same with three: 1 × 1 to `width`, 3 × 3 with the stride, 1 × 1 to 4 · `width`."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.expansion * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) → (B, 4 · width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        x = self.conv1(F.relu(self.bn1(x)))
        x = self.conv2(F.relu(self.bn2(x)))
        return self.conv3(F.relu(self.bn3(x)))


BRANCHES: dict[str, type[BasicBranch] | type[BottleneckBranch]] = {"basic": BasicBranch, "bottleneck": BottleneckBranch}


class Shortcut(nn.Module):
    """S(x) = W ReLU(BN(x)), 1 × 1: the state of a stage that has another shape than the one before."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c_in)
        self.conv = conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.bn(x)))


class Residual(nn.Module):
    """One step along a branch: a layer x + Δ(x) for `macaron.dynamics.Depth`.

    Args:
        branch: dx/dt.
        dt: of the step.
        solver: of the step.
    """

    def __init__(self, branch: nn.Module, dt: float = 1.0, solver: Tableau = EULER) -> None:
        super().__init__()
        self.branch = branch
        self.dt, self.solver = dt, solver

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """x + Δt f(x); or, where another state `at` is given, x + Δt f(at), which every solver takes as one step."""
        if at is not None:
            return x + self.dt * self.branch(at)
        return follow(self.branch, x, self.dt, self.solver)
