"""From settings to networks that take pixels from 0 to 1, and to the part of them that an adversary works on."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from macaron.dynamics import LinearMultistep, Scheme
from macaron.vision import PUBLISHED, PreActResNet, SmallCNN, WideResNet, preact18, wrn34

from ..common.errors import RecipeError
from .data import NORMALISATION
from .settings import CHANNELS, CLASSES, ImageSettings, Variant

Net = PreActResNet | SmallCNN | WideResNet


class Pixels(nn.Module):
    """net((x − mean) / deviation), so that adversaries work on pixels from 0 to 1 whatever the network wants."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: Net, dataset: str, normalised: bool) -> None:
        super().__init__()
        self.net = net
        self.normalised = normalised
        mean, deviation = (torch.tensor(values)[:, None, None] for values in NORMALISATION[dataset])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    @property
    def first(self) -> nn.Module:
        """f₀, behind which the adversary's split is: convolution and ReLU of the small network, else a convolution."""
        return self.net.first if isinstance(self.net, SmallCNN) else self.net.conv1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → logits (B, classes)."""
        return self.net((x - self.mean) / self.deviation if self.normalised else x)

    @property
    def k(self) -> list[list[float]]:
        """Of each stage, see `PreActResNet.k`; empty where there is none."""
        return self.net.k if isinstance(self.net, PreActResNet) else []


def scheme_of(variant: Variant) -> Scheme:
    """
    Raises:
        RecipeError: values that mean nothing, alone or together.
    """
    try:
        return Scheme.of(SimpleNamespace(**variant.values))
    except ValueError as error:
        raise RecipeError(f"--variants {variant.name}: {error}") from error


def build(settings: ImageSettings, variant: Variant | None, seed: int) -> Pixels:
    """The network as it begins. What variants of a seed have in common begins alike.

    Raises:
        RecipeError: a network that cannot be.
    """
    classes, channels = CLASSES[settings.dataset], CHANNELS[settings.dataset]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            if settings.model == "small_cnn":
                net: Net = SmallCNN(classes, channels=channels, size=settings.size, scale=settings.channels_scale)
            elif settings.model in ("preact18", "wrn34"):
                make = preact18 if settings.model == "preact18" else wrn34
                net = make(classes, channels=channels, scale=settings.channels_scale)
            else:
                assert variant is not None and settings.depth is not None
                net = resnet(settings.depth, classes, channels, scheme_of(variant))
                torch.manual_seed(seed)
                plain = resnet(settings.depth, classes, channels, Scheme())
                net.load_state_dict(plain.state_dict(), strict=False)
        except ValueError as error:
            raise RecipeError(f"--model {settings.model}: {error}") from error
    return Pixels(net, settings.dataset, settings.normalised)


def resnet(depth: int, classes: int, channels: int, scheme: Scheme) -> PreActResNet:
    block, blocks = PUBLISHED[depth]
    return PreActResNet(blocks, classes, block=block, scheme=scheme, channels=channels)


def parameters(net: Net) -> int:
    return sum(p.numel() for p in net.parameters())


def stored_by_the_original(net: Net) -> int | None:
    """What the published LM-ResNet stores at this size, None for other networks.

    Beside what is trained these are, none of them ever used: a k for the first block of each stage, and of a plain net
    all others; a BN behind the first convolution; with basic blocks a shortcut of the first stage to four times its
    channels.
    """
    if not isinstance(net, PreActResNet):
        return None
    width = net.conv1.out_channels
    k = sum(len(k) for k in net.k)
    unused = sum(net.blocks) - k + 2 * width
    return parameters(net) + unused + (2 * width + 4 * width * width if net.block == "basic" else 0)


def groups(net: Pixels) -> list[dict[str, object]]:
    """For the optimiser: first layer, rest, and the k of a multistep rule, which weight decay leaves alone.

    The original stores s = 1 − k and decays it, which pulls k towards 1.
    """
    first = {id(p) for p in net.first.parameters()}
    free = {id(p) for m in net.modules() if isinstance(m, LinearMultistep) for p in m.parameters()}
    every = list(net.parameters())
    return [
        {"params": [p for p in every if id(p) in first], "part": "first"},
        {"params": [p for p in every if id(p) not in first | free], "part": "rest"},
        {"params": [p for p in every if id(p) in free], "part": "k"},
    ]
