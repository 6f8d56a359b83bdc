"""DnCNN (Zhang et al. 2017, arXiv:1608.03981), with and without biases: what a restorer of fixed depth does."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from macaron.vision.fields import check_images


class DnCNN(nn.Module):
    """x̂ = y − f(y), f: `depth` convolutions 3 × 3 with ReLU between them.

    Without norms: those of the published networks are constants after training and merge into the convolutions before
    them, which are then what is here (20 layers, 64 channels, 665,921 parameters). Without biases f(c y) = c f(y) for
    c > 0, so that what is learned at one level of noise holds at others (Mohan et al. 2020, arXiv:1906.05478).

    Args:
        depth: number of convolutions, 2 or more.
        width: of the layers between.
        channels: of the images, 1 for gray.
        bias: whether the convolutions have one.
    """

    def __init__(self, depth: int = 20, width: int = 64, channels: int = 1, bias: bool = True) -> None:
        super().__init__()
        for name, value, least in (("depth", depth, 2), ("width", width, 1), ("channels", channels, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number, {least} or more")
        self.channels = channels
        sizes = [channels, *[width] * (depth - 1), channels]
        self.layers = nn.ModuleList(nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias) for c_in, c_out in pairwise(sizes))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type, union-attr]
            if bias:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type, union-attr]
        # Without norms the last layer, of N(0, 2/fan_in) too, would begin with noise as strong as the image.
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type, union-attr]

    def forward(self, y: Tensor) -> Tensor:
        """(B, channels, H, W) → the restored images.

        Raises:
            ValueError: images of another shape.
        """
        check_images(y, self.channels)
        a = y
        for layer in self.layers[:-1]:
            a = F.relu(layer(a))
        return y - self.layers[-1](a)
