"""The convolutional network of robust MNIST experiments, cut behind its first layer."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3 × 3 convolutions without padding, a 2 × 2 maximum after the second and the fourth, three linear layers.

    As in yaodongyu/TRADES and a1600012888/YOPO-You-Only-Propagate-Once @b8ae668: 32, 32, 64, 64 channels, 1024 → 200 →
    200 → 10, dropout ½ before the second linear layer, 312,202 parameters. The last layer begins at zero, so that the
    first gradient at the first layer's output is exactly 0 and the first adversary does not move.

    Args:
        classes: how many there are.
        channels: of the images, 1 for gray.
        size: height and width of the images.
        scale: times the channels of the convolutions; ½ makes them four times cheaper, the first one twice.
        dropout: rate.

    Fields:
        first: convolution and ReLU, the first part of an adversary's split (`macaron.adversary.Split.at`).

    Raises:
        ValueError: a value that no such network has.
    """

    def __init__(
        self, classes: int = 10, *, channels: int = 1, size: int = 28, scale: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        narrow, wide = (round(scale * c) for c in (32, 64))
        if narrow < 1 or abs(narrow - 32 * scale) > 1e-6:
            raise ValueError(f"scale={scale!r} makes {32 * scale:g} channels of 32; give a multiple of 1/32, such as ½")
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"size={size!r} is too small: four convolutions and two halvings need at least 16 pixels")
        self.channels, self.size = channels, size
        self.first = nn.Sequential(nn.Conv2d(channels, narrow, 3), nn.ReLU())
        self.features = nn.Sequential(
            nn.Conv2d(narrow, narrow, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(narrow, wide, 3),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(wide * side * side, 200),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(200, 200),
            nn.ReLU(),
        )
        self.fc = nn.Linear(200, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions N(0, 2/(k² c_in)) without bias, the last layer 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                module.reset_parameters()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, size, size) → logits (B, classes).

        Raises:
            ValueError: images of another shape.
        """
        if images.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"images of shape {tuple(images.shape)}, but (B, {self.channels}, {self.size}, {self.size}) are needed"
            )
        return self.fc(self.classifier(self.features(self.first(images)).flatten(1)))
