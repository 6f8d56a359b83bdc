"""The residual networks of robust CIFAR-10 experiments: PreAct-ResNet18 and WRN-34-10, cut behind their first layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from macaron.vision.fields import check_images, conv


class WideBlock(nn.Module):
    """x ↦ S + W₂ ReLU(BN(W₁ a)) with a = ReLU(BN(x)); S is x, or a 1 × 1 convolution of a where the shape changes.

    Shortcut and branch have one BN in common, unlike those of `PreActResNet`.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out, 3)
        self.shortcut = conv(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) → (B, c_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        a = F.relu(self.bn1(x))
        return (x if self.shortcut is None else self.shortcut(a)) + self.conv2(F.relu(self.bn2(self.conv1(a))))


class WideResNet(nn.Module):
    """3 × 3 convolution, stages of `WideBlock`s with stride 2 from the second on, mean over the image, linear.

    As trained in a1600012888/YOPO-You-Only-Propagate-Once @b8ae668; see `preact18` and `wrn34`. Weights begin as torch
    draws them. The first part of an adversary's split is `conv1`, which is linear.

    Args:
        first: channels of the first convolution.
        widths: channels of each stage.
        blocks: how many a stage.
        classes: how many there are.
        channels: of the images.
        norm: whether BN and ReLU stand before the mean.

    Raises:
        ValueError: a number that is not whole and positive, or stages that are not one number each.
    """

    def __init__(
        self,
        first: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        classes: int = 10,
        *,
        channels: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__()
        given = {"first": [first], "widths": widths, "blocks": blocks, "classes": [classes], "channels": [channels]}
        for name, values in given.items():
            if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
                raise ValueError(f"{name}={values!r} must be whole and positive")
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths for {len(blocks)} stages; give one width and one number of blocks")
        self.conv1 = conv(channels, first, 3)
        self.stages = nn.ModuleList()
        c_in = first
        for s, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            strides = [1 if s == 0 else 2, *[1] * (count - 1)]
            ins = [c_in, *[width] * (count - 1)]
            self.stages.append(nn.Sequential(*(WideBlock(c, width, t) for c, t in zip(ins, strides, strict=True))))
            c_in = width
        self.bn = nn.BatchNorm2d(c_in) if norm else None
        self.fc = nn.Linear(c_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes).

        Raises:
            ValueError: images of another shape.
        """
        check_images(images, self.conv1.in_channels)
        x = self.conv1(images)
        for stage in self.stages:
            x = stage(x)
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return self.fc(x.mean((2, 3)))


def preact18(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> WideResNet:
    """PreAct-ResNet18: 64, 128, 256, 512 channels, two blocks each, no norm at the end; 11,171,146 parameters.

    Args:
        scale: times all channels.

    Raises:
        ValueError: a scale that makes no whole number of channels.
    """
    widths = [_scaled(c, scale) for c in (64, 128, 256, 512)]
    return WideResNet(widths[0], widths, (2, 2, 2, 2), classes, channels=channels, norm=False)


def wrn34(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> WideResNet:
    """WRN-34-10 (Zagoruyko and Komodakis 2016, arXiv:1605.07146): 160, 320, 640 channels, five blocks each.

    46,160,474 parameters. The file of the authors builds a second group of the first stage that no pass uses, and
    counts 48,262,586; it does not exist here.

    Args:
        scale: times the channels of the stages.

    Raises:
        ValueError: a scale that makes no whole number of channels.
    """
    return WideResNet(16, [_scaled(c, scale) for c in (160, 320, 640)], (5, 5, 5), classes, channels=channels)


def _scaled(channels: int, scale: float) -> int:
    scaled = round(channels * scale)
    if scaled < 1 or abs(scaled - channels * scale) > 1e-6:
        raise ValueError(f"scale={scale!r} makes {channels * scale:g} channels of {channels}; give such as ½ or ¼")
    return scaled
