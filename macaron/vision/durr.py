"""Dynamically unfolding recurrent restorer (Zhang et al. 2018, arXiv:1805.07709): the unit, and who stops it.

    x_0 = y,   x_{n+1} = x_n + f(x_n, y)        y: the degraded image; f: RestorationUnit
    π(x_n, h_n) ∈ {stop, go on}                 h: the policy's memory; π: PolicyUnit

```python
restored, times = unroll(unit, noisy, policy.horizon(), 12, noisy)
```
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from macaron.dynamics.horizon import epsilon_greedy
from macaron.vision.fields import check_images

SLOPE = 0.1  # of every PReLU at the start
FIRST_SCALE = 4.0  # of the first filters of the policy, since noise is a small part of 0 … 1
FLOOR = 1e-3  # of a mean whose logarithm is taken
Memory = tuple[Tensor, Tensor]


class RestorationUnit(nn.Module):
    """f(x, y): 5 × 5 to w, 3 × 3 (kept), 3 × 3 with stride 2 to 2w, three 3 × 3 with dilations 1, 2, 4, transposed
    4 × 4 to w and a 2 × 2 mean against checkerboards, joined with what was kept, 3 × 3 to w, 5 × 5 to the image. PReLU
    with one slope each after all but the last; no norm.

    DURR's own code is not public. This is the unit of that shape in yilundu/irem_code_release @b29e8a0 (`dncnn_stop`),
    with its parameter names: 192,233 parameters at one channel and w = 32. Images of odd height or width, which it
    cannot take there, are padded by reflection at the bottom and right, and the velocity is cropped.

    Args:
        channels: of the images, 1 for gray.
        width: w.

    Attributes:
        radius: pixels around one of the image that its velocity depends on, at most.
    """

    radius = 24

    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be whole and positive")
        self.channels = channels
        w = width

        def layer(c_in: int, c_out: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
            padding = dilation * (size // 2)
            return nn.Sequential(nn.Conv2d(c_in, c_out, size, stride, padding, dilation), nn.PReLU(init=SLOPE))

        self.conv0 = layer(2 * channels, w, 5)
        self.conv1 = layer(w, w, 3)
        self.conv2 = layer(w, 2 * w, 3, stride=2)
        self.conv3 = layer(2 * w, 2 * w, 3)
        self.conv4 = layer(2 * w, 2 * w, 3, dilation=2)
        self.conv5 = layer(2 * w, 2 * w, 3, dilation=4)
        self.conv6 = nn.Sequential(
            nn.ConvTranspose2d(2 * w, w, 4, stride=2, padding=1),
            nn.ReflectionPad2d((1, 0, 1, 0)),
            nn.AvgPool2d(2, stride=1),
            nn.PReLU(init=SLOPE),
        )
        self.conv7 = layer(2 * w, w, 3)
        self.conv8 = nn.Sequential(nn.Conv2d(w, channels, 5, padding=2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """dx/dt at the current image x beside the degraded image y; all (B, channels, H, W).

        Raises:
            ValueError: images of another shape, or of height or width 1.
        """
        if x.dim() != 4 or x.shape[1] != self.channels or x.shape != y.shape:
            raise ValueError(
                f"images of shapes {tuple(x.shape)} and {tuple(y.shape)}, but two of one shape, "
                f"(B, {self.channels}, H, W), are needed"
            )
        height, width = x.shape[2:]
        if height < 2 or width < 2:
            raise ValueError(f"images of {height} × {width} pixels are too small: reflection needs 2 both ways")
        pair = torch.cat([x, y], 1)
        if height % 2 or width % 2:
            pair = F.pad(pair, (0, width % 2, 0, height % 2), mode="reflect")
        kept = self.conv1(self.conv0(pair))
        a = self.conv5(self.conv4(self.conv3(self.conv2(kept))))
        a = self.conv7(torch.cat([self.conv6(a), kept], 1))
        return self.conv8(a)[..., :height, :width]


class PolicyUnit(nn.Module):
    """Q of stopping and of going on at an image, with a memory of the steps before.

    Convolutions with stride 2 and residual blocks, mean over the image, logarithm, an LSTM over the steps, linear. Of
    the paper's policy unit only the kind and the size, about 1e5 parameters, are known; this one has 98,978 at one
    channel.

    What is to be decided is how much noise is left, a matter of orders of magnitude, and gains are counted in dB: hence
    the logarithm. The first filters begin with mean 0, so that they see edges and noise and not how bright it is.
    Without either, Q-learning did not find when to stop.

    Args:
        channels: of the images.
        width: of the convolutions; the LSTM has twice that.

    Attributes:
        stride: pixels between two features, along each side.
        radius: pixels around the first of a feature that it depends on, at most.
    """

    stride, radius = 8, 20
    floor: Tensor

    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be whole and positive")
        self.channels = channels
        self.conv1 = nn.Conv2d(channels, width, 5, 2, padding=2)
        self.block1 = _Block(width)
        self.conv2 = nn.Conv2d(width, width, 3, 2, padding=1)
        self.block2 = _Block(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.lstm = nn.LSTMCell(2 * width, 2 * width)
        self.fc = nn.Linear(2 * width, 2)
        self.register_buffer("floor", torch.tensor([FLOOR]))  # weights from before there was a logarithm have none
        with torch.no_grad():
            weight = self.conv1.weight
            weight.sub_(weight.mean((1, 2, 3), keepdim=True)).mul_(FIRST_SCALE)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """x_n, (B, channels, H, W), and the memory of x_0 … x_{n−1} → Q (B, 2), actions `STOP`, `GO_ON`; the memory.

        Raises:
            ValueError: images of another shape.
        """
        check_images(x, self.channels)
        return self.decide(self.features(x).mean((2, 3)), memory)

    def features(self, x: Tensor) -> Tensor:
        """What is averaged over the image: (B, channels, H, W) → (B, 2 width, ⌈H/8⌉, ⌈W/8⌉)."""
        a = self.block1(F.relu(self.conv1(x)))
        a = self.block2(F.relu(self.conv2(a)))
        return F.relu(self.conv3(a))

    def decide(self, seen: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Q and the memory, as `forward`, from the mean of the features, (B, 2 width)."""
        memory = self.lstm((seen + self.floor).log(), memory)
        return self.fc(memory[0]), memory

    def values(self, states: Iterable[Tensor]) -> Tensor:
        """Q along a trajectory x_0, x_1, …, x_{N−1}: (N, B, 2), for `macaron.dynamics.horizon.q_loss`."""
        memory, values = None, []
        for x in states:
            q, memory = self(x, memory)
            values.append(q)
        return torch.stack(values)

    def horizon(self, epsilon: float = 0.0, generator: torch.Generator | None = None) -> LearnedHorizon:
        """For `unroll`: stops by the greater Q, or with probability ε by a fair coin."""
        return LearnedHorizon(self, epsilon, generator)


class LearnedHorizon:
    """A policy for `unroll` that keeps the unit's memory of those that go on, and begins anew at n = 0. No gradient."""

    def __init__(self, unit: PolicyUnit, epsilon: float = 0.0, generator: torch.Generator | None = None) -> None:
        self.unit, self.epsilon, self.generator = unit, epsilon, generator
        self._memory: Memory | None = None
        self._next = 0

    @torch.no_grad()
    def __call__(self, x: Tensor, n: int) -> Tensor:
        if n == 0:
            self._memory = None
        elif n != self._next or self._memory is None or len(self._memory[0]) != len(x):
            raise ValueError(
                f"asked about {len(x)} images at step {n}, but the last decision left "
                f"{0 if self._memory is None else len(self._memory[0])} for step {self._next}; make one horizon for "
                f"each pass, and ask at every step"
            )
        q, memory = self.unit(x, self._memory)
        stop = epsilon_greedy(q, self.epsilon, self.generator)
        self._memory, self._next = (memory[0][~stop], memory[1][~stop]), n + 1
        return stop


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))
