"""DnCNN: the published size, what biases change, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from macaron.vision import DnCNN


def trained(bias: bool) -> DnCNN:
    """With a last layer that is not zero, and biases that are not."""
    torch.manual_seed(0)
    net = DnCNN(4, 5, bias=bias).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_published_size():
    """665,921: counted from the published weights, whose norms are merged; biases: 19 · 64 + 1."""
    assert sum(p.numel() for p in DnCNN().parameters()) == 665_921
    assert sum(p.numel() for p in DnCNN(bias=False).parameters()) == 665_921 - 1217


def test_it_begins_as_the_identity():
    y = torch.randn(2, 1, 7, 6)
    assert torch.equal(DnCNN(3, 4)(y), y)


def test_what_it_computes():
    net, y = trained(bias=True), torch.randn(2, 1, 9, 7, dtype=torch.float64)
    a = y
    for i, layer in enumerate(net.layers):
        a = torch.nn.functional.conv2d(a if i == 0 else a.clamp_min(0), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(net(y), y - a)


@pytest.mark.parametrize("bias", [True, False])
def test_without_biases_the_scale_of_the_image_is_free(bias):
    net, y = trained(bias), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(net(3 * y), 3 * net(y)) == (not bias)


@pytest.mark.parametrize("wrong", [{"depth": 1}, {"width": 0}, {"channels": True}, {"depth": 2.0}])
def test_sizes_that_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        DnCNN(**wrong)


def test_images_that_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\), but \(B, 1, H, W\)"):
        DnCNN(2, 2)(torch.zeros(1, 3, 8, 8))
