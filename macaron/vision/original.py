"""Weights of the published implementations, 2prime/LM-ResNet @ff49654 and the restoration unit, as models of this room.

| LM-ResNet                            | here                                                    |
|--------------------------------------|---------------------------------------------------------|
| conv1, bn, fc                        | the same                                                |
| blocks.I.*, block J of stage S       | stages.S.layers.J.branch.*                              |
| downsample1, 21, 31 `.downsample.0`  | stages.0, 1, 2 `.shortcut.bn`                           |
| … `.downsample.2`                    | … `.shortcut.conv`                                      |
| ks.I, one scalar s = 1 − k           | stages.S.layers.rule.bias, all k but the first of each  |
| bn1, downsample1 with basic blocks   | not there, since nothing uses them                      |

The restoration unit has its own names here, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from macaron.dynamics import LinearMultistep, Scheme
from macaron.vision.durr import RestorationUnit
from macaron.vision.resnet import PreActResNet

Net = TypeVar("Net", PreActResNet, RestorationUnit)
_BLOCK = re.compile(r"blocks\.(\d+)\.((?:bn|conv)[123]\.\w+)")
_DOWNSAMPLE = re.compile(r"downsample([123])1?\.downsample\.([02])\.(\w+)")


def from_original(state: Mapping[str, Tensor], scheme: Scheme | None = None) -> PreActResNet | RestorationUnit:
    """The model whose weights these are, of its sizes and type, in training mode.

    Args:
        state: a state dict of MResNet, or of the restoration unit; a leading `module.` or `unit.` is taken off.
        scheme: for MResNet, how the depth is integrated. The original's `pretrain=True` is `Scheme()`, which leaves its
            `ks` out; `pretrain=False`, and what is meant if nothing is given, `Scheme(depth_rule="multistep")`.

    Raises:
        ValueError: names that neither has, a part that is missing, a shape that does not fit, or a number that is not
            finite; a scheme for the restoration unit.
    """
    wrong = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} is no tensor with a name; give the state dict itself, as model.state_dict() has it"
        )
    for prefix in ("module.", "unit."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"{name} holds NaN or infinity; the training it comes from has diverged, take another file"
            )
    if "conv0.0.weight" in state:
        if scheme is not None:
            raise ValueError(
                "a restoration unit has no depth rule; leave scheme out, unroll() takes solver and horizon"
            )
        weight = _need(state, "conv0.0.weight", 4)
        with torch.device("meta"):
            unit = RestorationUnit(max(1, weight.shape[1] // 2), weight.shape[0])
        return _loaded(unit, dict(state), weight)
    return _resnet(state, Scheme(depth_rule="multistep") if scheme is None else scheme)


def _resnet(state: Mapping[str, Tensor], scheme: Scheme) -> PreActResNet:
    numbers = {int(match[1]) for name in state if (match := _BLOCK.fullmatch(name))}
    if not numbers or numbers != set(range(len(numbers))):
        raise ValueError(
            f"blocks {sorted(numbers)}, with names such as {', '.join(list(state)[:3]) or 'none'}: this is no MResNet "
            f"of LM-ResNet, whose blocks.0 … blocks.N−1 are complete, and no restoration unit, which has conv0.0.weight"
        )
    kind, last = ("bottleneck", "conv3") if "blocks.0.conv3.weight" in state else ("basic", "conv2")
    widths = [_need(state, f"blocks.{i}.{last}.weight", 4).shape[0] for i in range(len(numbers))]
    blocks: list[int] = []
    place: list[tuple[int, int]] = []  # (stage, number in it) of each block
    for i, wide in enumerate(widths):
        if i == 0 or wide != widths[i - 1]:
            blocks.append(0)
        place.append((len(blocks) - 1, blocks[-1]))
        blocks[-1] += 1
    conv1, fc = _need(state, "conv1.weight", 4), _need(state, "fc.weight", 2)
    if len(blocks) != 3:
        raise ValueError(f"{len(blocks)} stages, of {blocks} blocks by their widths {widths}; an MResNet has 3")
    with torch.device("meta"):  # nothing is allocated, nor drawn, for sizes that a damaged file may claim
        net = PreActResNet(
            blocks, fc.shape[0], block=kind, scheme=scheme, channels=conv1.shape[1], width=conv1.shape[0]
        )
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := _BLOCK.fullmatch(name):
            stage, n = place[int(match[1])]
            ours[f"stages.{stage}.layers.{n}.branch.{match[2]}"] = value
        elif match := _DOWNSAMPLE.fullmatch(name):
            stage = int(match[1]) - 1
            if stage or kind == "bottleneck":
                ours[f"stages.{stage}.shortcut.{'bn' if match[2] == '0' else 'conv'}.{match[3]}"] = value
        elif not name.startswith(("bn1.", "ks.")):
            ours[name] = value
    first = 0
    for s, count in enumerate(blocks):
        if isinstance(net.stages[s].layers.rule, LinearMultistep) and count > 1:  # type: ignore[union-attr]
            scalars = [_need(state, f"ks.{first + n}", 1) for n in range(1, count)]
            ours[f"stages.{s}.layers.rule.bias"] = 1 - torch.cat(scalars)
        first += count
    return _loaded(net, ours, conv1)


def _need(state: Mapping[str, Tensor], name: str, dim: int) -> Tensor:
    if name not in state:
        remedy = "; a net without ks is plain: pass scheme=Scheme()" if name.startswith("ks.") else ""
        raise ValueError(f"{name} is missing; the state dict is cut off, or of another model{remedy}")
    if state[name].dim() != dim or not state[name].numel():
        raise ValueError(f"{name} has shape {tuple(state[name].shape)}, but {dim} dimensions are needed")
    return state[name]


def _loaded(net: Net, state: dict[str, Tensor], like: Tensor) -> Net:
    own = net.state_dict()
    missing, strange = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or strange:
        raise ValueError(
            f"of the {type(net).__name__} that this looks like are missing: {', '.join(missing[:5]) or 'none'}; and it "
            f"does not know {', '.join(strange[:5]) or 'none'} (in this library's names)"
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{name} (in this library's names) has shape {tuple(value.shape)}, not {tuple(own[name].shape)}"
            )
    if not like.is_floating_point():
        raise ValueError(f"weights of type {like.dtype} cannot be computed with; give floating-point numbers")
    copies = {
        name: value.detach().to(like.dtype if own[name].is_floating_point() else own[name].dtype, copy=True)
        for name, value in state.items()
    }
    net.load_state_dict(copies, assign=True)
    return net
