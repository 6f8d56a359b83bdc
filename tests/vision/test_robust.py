"""The networks of robust training: their sizes, their first parts, and the published depths of LM-ResNet."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from macaron.adversary import Attack, Split, perturb
from macaron.dynamics import Scheme
from macaron.vision import PreActResNet, SmallCNN, WideBlock, WideResNet, preact18, wrn34


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameters_are_those_of_the_authors() -> None:
    assert count(SmallCNN()) == 312_202
    assert count(preact18()) == 11_171_146
    used = count(wrn34())
    unused = nn.Sequential(*(WideBlock(c, 160) for c in (16, 160, 160, 160, 160)))
    assert used == 46_160_474
    assert used + count(unused) == 48_262_586


@pytest.mark.parametrize(
    "depth, ten, trained, hundred",
    [
        (20, 273_475, 272_384, 279_325),
        (32, 467_913, 466_822, 473_763),
        (44, 662_351, 661_260, 668_201),
        (56, 856_789, 855_698, 862_639),
        (110, 1_731_760, 1_730_669, 1_737_610),
        (164, 1_703_760, 1_703_725, 1_726_890),
    ],
)
def test_published_depths(depth: int, ten: int, trained: int, hundred: int) -> None:
    """What the published code stores, and what of it is ever trained."""
    sizes = {n: count(PreActResNet.of_depth(depth, n, scheme=Scheme(depth_rule="multistep"))) for n in (10, 100)}
    # Of each stage a k, the BN behind the first convolution, and with basic blocks a shortcut from 16 to 64 channels.
    unused = 3 + 2 * 16 + (2 * 16 + 16 * 64 if depth != 164 else 0)
    assert sizes[10] == trained
    assert [sizes[10] + unused, sizes[100] + unused] == [ten, hundred]


def test_small_cnn_begins_with_a_blind_adversary() -> None:
    net = SmallCNN().eval()
    x, label = torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2])
    assert torch.equal(net(x), torch.zeros(3, 10))
    split = Split.at(net.first, lambda x: F.cross_entropy(net(x), label))
    attack = Attack("pgd", steps=2, step_size=0.01, norm="linf-sign", radius=0.3, bounds=(0.0, 1.0))
    assert torch.equal(perturb(split, x, attack), torch.zeros_like(x))
    nn.init.normal_(net.fc.weight)
    assert perturb(split, x, attack).abs().max() > 0.015


def test_first_part_of_small_cnn_has_its_relu() -> None:
    net = SmallCNN(scale=0.5)
    assert net.first(torch.rand(1, 1, 28, 28)).min() == 0.0
    assert net.first[0].out_channels == 16 and net.classifier[0].in_features == 512


def test_a_wide_block_by_hand() -> None:
    x = torch.randn(2, 4, 6, 6)
    for block in (WideBlock(4, 4), WideBlock(4, 6, 2)):
        block.eval()
        nn.init.uniform_(block.bn1.running_mean)
        a = F.relu(block.bn1(x))
        branch = block.conv2(F.relu(block.bn2(block.conv1(a))))
        torch.testing.assert_close(block(x), branch + (x if block.shortcut is None else block.shortcut(a)))
        assert block(x).shape == ((2, 4, 6, 6) if block.shortcut is None else (2, 6, 3, 3))


def test_any_size_and_scale() -> None:
    assert preact18(scale=1 / 16)(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert wrn34(7, scale=1 / 40, channels=1)(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    assert SmallCNN(5, channels=3, size=32, scale=1 / 8)(torch.rand(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: SmallCNN(scale=0.3), "scale=0.3 makes 9.6 channels"),
        (lambda: SmallCNN(size=12), "size=12 is too small"),
        (lambda: SmallCNN()(torch.rand(1, 1, 32, 32)), r"\(B, 1, 28, 28\) are needed"),
        (lambda: preact18(scale=0.01), "scale=0.01 makes 0.64 channels"),
        (lambda: WideResNet(16, (8, 8), (2,)), "2 widths for 1 stages"),
        (lambda: WideResNet(16, (8, 0), (2, 2)), r"widths=\(8, 0\)"),
        (lambda: wrn34(scale=1 / 160)(torch.rand(1, 1, 8, 8)), r"\(B, 3, H, W\) are needed"),
    ],
)
def test_what_cannot_be_is_refused(make, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
