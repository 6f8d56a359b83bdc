"""Pre-activation ResNets whose depth is an integrator: plain, linear multistep (LM-ResNet), of stochastic depth, …"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from macaron.dynamics import STRANG, Depth, LinearMultistep, Scheme
from macaron.vision.fields import BRANCHES, Residual, Shortcut, check_images, conv

# Depth ↦ kind of block, and how many a stage. By number alone 164 layers could be basic blocks, too.
PUBLISHED: dict[int, tuple[str, tuple[int, int, int]]] = {
    20: ("basic", (3, 3, 3)),
    32: ("basic", (5, 5, 5)),
    44: ("basic", (7, 7, 7)),
    56: ("basic", (9, 9, 9)),
    110: ("basic", (18, 18, 18)),
    164: ("bottleneck", (18, 18, 18)),
    1202: ("basic", (200, 200, 200)),
}


class Stage(nn.Module):
    """The blocks of one shape, by the rules of `Depth`.

        x_0 = S(x),   x_1 = x_0 + f_0(x),   then the rule: x_{n+1} = (1 − k_n) x_n + k_n x_{n−1} + f_n(x_n) in LM-ResNet

    S is the shortcut or, where the shape stays, the identity. So the x_0 that the second step remembers is the
    shortcut's output, and only f_0 sees x itself. Where S is no identity, f_0 does not depend on the state that it
    moves: whatever the solver, that step is Euler's.
    """

    def __init__(self, layers: Depth, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        state, at = (x, None) if self.shortcut is None else (self.shortcut(x), x)
        for layer in self.layers:
            state, at = layer(state, at), None
        return state


class PreActResNet(nn.Module):
    """Pre-activation ResNet for small images (He et al. 2016, arXiv:1603.05027), and LM-ResNet with
    `Scheme(depth_rule="multistep")` (Lu et al. 2018, arXiv:1710.10121).

    3 × 3 convolution to `width`; stages of `blocks[s]` blocks with `width` · 2^s channels (bottleneck: 4 times that),
    stride 2 from the second on; BN, ReLU, mean over the image, linear. Convolutions begin as N(0, 2/(k² c_out)).

    Numbers are those of the published implementation of LM-ResNet, `from_original` loads its weights. It stores, and
    counts, parameters that it never uses: a k for the first block of each stage, a BN behind the first convolution and,
    with basic blocks, a shortcut for the first stage. They do not exist here, so that depth 20 has 272,384 parameters
    instead of 273,475, and 272,378 as a plain net, without k. It stores 1 − k, which weight decay draws to k = 1; here
    k itself is stored, as the rule's `bias`.

    Stochastic depth counts the blocks of all stages, and may drop a block that changes shape, leaving its shortcut. The
    conventions: of LM-ResNet `Scheme(stochastic_depth=0.5)`; of Huang et al. 2016 (arXiv:1603.09382)
    `Scheme(stochastic_depth=0.5, stochastic_depth_schedule="torch", stochastic_depth_form="unscaled")`.

    Args:
        blocks: how many a stage.
        classes: how many there are.
        block: "basic" (depth 6n + 2 with n a stage) or "bottleneck" (9n + 2).
        scheme: rule across depth, stochastic depth, and how each block is followed: solver and dt. A block has one
            flow, so there is no splitting, and no image has gates, which weigh by the last dimension.
        channels: of the images.
        width: of the first stage.

    Raises:
        ValueError: a value that is none of these.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        classes: int = 10,
        *,
        block: str = "basic",
        scheme: Scheme | None = None,
        channels: int = 3,
        width: int = 16,
    ) -> None:
        super().__init__()
        scheme = scheme or Scheme()
        _check_scheme(scheme)
        if block not in BRANCHES:
            raise ValueError(f"block={block!r} is unknown; choose one of {', '.join(BRANCHES)}")
        counts = {"classes": [classes], "blocks": list(blocks), "channels": [channels], "width": [width]}
        for name, values in counts.items():
            if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
                raise ValueError(f"{name}={values if name == 'blocks' else values[0]!r} must be whole and positive")
        self.blocks, self.block, self.scheme = tuple(blocks), block, scheme
        branch = BRANCHES[block]
        self.conv1 = conv(channels, width, 3)
        self.stages = nn.ModuleList()
        c_in = width
        for s, count in enumerate(self.blocks):
            wide, stride = width << s, 1 if s == 0 else 2
            c_out = branch.expansion * wide
            shortcut = Shortcut(c_in, c_out, stride) if stride > 1 or c_in != c_out else None
            branches = [branch(c_in if n == 0 else c_out, wide, stride if n == 0 else 1) for n in range(count)]
            layers = Depth(
                [Residual(each, scheme.dt, scheme.solver) for each in branches],
                scheme.rule(count),
                noise=scheme.noise(count, first=sum(self.blocks[:s]), total=sum(self.blocks)),
            )
            self.stages.append(Stage(layers, shortcut))
            c_in = c_out
        self.bn = nn.BatchNorm2d(c_in)
        self.fc = nn.Linear(c_in, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def of_depth(cls, depth: int, classes: int = 10, *, scheme: Scheme | None = None) -> PreActResNet:
        """A published one, see `PUBLISHED`.

        Raises:
            ValueError: another depth.
        """
        if depth not in PUBLISHED:
            raise ValueError(
                f"depth={depth!r} was not published; choose one of {', '.join(map(str, PUBLISHED))}, or say how many "
                f"blocks each stage has: PreActResNet((n, n, n))"
            )
        block, blocks = PUBLISHED[depth]
        return cls(blocks, classes, block=block, scheme=scheme)

    @property
    def k(self) -> list[list[float]]:
        """k_1, k_2, … of each stage; see `macaron.dynamics.multistep.is_zero_stable`. Empty lists without multistep."""
        rules = [stage.layers.rule for stage in self.stages if isinstance(stage, Stage)]
        return [rule.k if isinstance(rule, LinearMultistep) else [] for rule in rules]

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes).

        Raises:
            ValueError: images of another shape.
        """
        check_images(images, self.conv1.in_channels)
        x = self.conv1(images)
        for stage in self.stages:
            x = stage(x)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def _check_scheme(scheme: Scheme) -> None:
    if scheme.splitting != STRANG:
        raise ValueError(
            f"splitting={scheme.splitting.notation!r}: a residual block has one flow, nothing to split; leave it out"
        )
    if scheme.solver.learned or scheme.depth_rule == "rk2_learned":
        raise ValueError(
            "solver='heun_learned' and depth_rule='rk2_learned' weigh their stages by what stands along the last "
            "dimension, which in images is no channel; use 'heun' or 'rk2'"
        )
