"""Pre-activation ResNets under the schemes of dynamics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from macaron.dynamics import HEUN, Scheme, Splitting
from macaron.vision import PreActResNet

SMALL = {"blocks": (2, 3), "classes": 5, "width": 4}


def alike(scheme: Scheme, **options: object) -> tuple[PreActResNet, PreActResNet]:
    """A plain net, and one of that scheme with its weights."""
    plain, other = PreActResNet(**SMALL, **options), PreActResNet(**SMALL, **options, scheme=scheme)
    left = other.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys and all(name.endswith("rule.bias") for name in left.missing_keys)
    return plain, other


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 9, 8)  # an odd size, too


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_k_0_is_the_plain_net_to_the_bit(block):
    plain, multistep = alike(Scheme(depth_rule="multistep"), block=block)
    assert multistep.k == [[0.0], [0.0, 0.0]] and plain.k == [[], []]
    x = images()
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(x), multistep.train(mode)(x))


def test_the_rule_by_hand():
    """k of each stage acts on the identity parts, the shortcut's output among them."""
    _, net = alike(Scheme(depth_rule="multistep"))
    net.eval()
    k = [[0.3], [-0.5, 0.7]]
    with torch.no_grad():
        for stage, values in zip(net.stages, k, strict=True):
            stage.layers.rule.bias.copy_(torch.tensor(values))
    x = images()
    f = [[layer.branch for layer in stage.layers[:]] for stage in net.stages]
    a = net.conv1(x)
    b = a + f[0][0](a)
    a = (1 - 0.3) * b + 0.3 * a + f[0][1](b)
    s = net.stages[1].shortcut(a)
    b = s + f[1][0](a)
    c = (1 + 0.5) * b - 0.5 * s + f[1][1](b)
    d = (1 - 0.7) * c + 0.7 * b + f[1][2](c)
    want = net.fc(torch.relu(net.bn(d)).mean((2, 3)))
    torch.testing.assert_close(net(x), want, atol=1e-5, rtol=1e-5)  # float32


def test_solvers_follow_each_block():
    plain, heun = alike(Scheme(solver=HEUN, dt=0.5))
    plain.eval(), heun.eval()
    layer, x = heun.stages[0].layers[0], torch.randn(1, 4, 5, 5)
    first = layer.branch(x)
    torch.testing.assert_close(layer(x), x + 0.25 * (first + layer.branch(x + 0.5 * first)), atol=1e-6, rtol=1e-5)
    state, raw = torch.randn(1, 8, 3, 3), torch.randn(1, 4, 5, 5)
    change = heun.stages[1].layers[0]
    torch.testing.assert_close(change(state, raw), state + 0.5 * change.branch(raw))
    # two Heun steps of a half are not two plain ones
    assert not torch.allclose(plain(images(1)), heun(images(1)))


def test_stochastic_depth_may_leave_the_shortcut_alone(monkeypatch):
    """With every coin a tail but the first block's, which is never tossed."""
    net = PreActResNet(**SMALL, scheme=Scheme(stochastic_depth=0.5))
    assert [p for s in net.stages for p in s.layers.noise.survival] == [1.0, 0.875, 0.75, 0.625, 0.5]
    x = images()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *a, **k: torch.tensor(1.0))
        got = net(x)
    a = net.conv1(x)
    a = net.stages[1].shortcut(a + net.stages[0].layers[:][0].branch(a))
    torch.testing.assert_close(got, net.fc(torch.relu(net.bn(a)).mean((2, 3))))


def test_the_first_convention_scales_in_evaluation(monkeypatch):
    """Huang et al.: rates n/L, survivors as they are, each branch times its probability in evaluation."""
    options = {"stochastic_depth_schedule": "torch", "stochastic_depth_form": "unscaled"}
    plain, net = alike(Scheme(stochastic_depth=0.5, **options))
    p = [q for s in net.stages for q in s.layers.noise.survival]
    assert p == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    x = images()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *a, **k: torch.tensor(0.0))
        torch.testing.assert_close(net(x), plain(x), atol=1e-5, rtol=1e-5)  # all survive; float32
    net.eval(), plain.eval()
    for layer, q in zip([layer for stage in plain.stages for layer in stage.layers[:]], p, strict=True):
        layer.dt = q
    torch.testing.assert_close(net(x), plain(x), atol=1e-5, rtol=1e-5)


def test_a_dropped_block_sees_no_batch():
    net = PreActResNet((2,), scheme=Scheme(stochastic_depth=0.9, stochastic_depth_schedule="constant"), width=4)
    torch.manual_seed(1)
    for _ in range(8):
        net(images())
    counts = [layer.branch.bn1.num_batches_tracked.item() for layer in net.stages[0].layers[:]]
    assert net.bn.num_batches_tracked == 8 and all(0 <= count < 8 for count in counts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PreActResNet.of_depth(50),
            "depth=50 was not published; choose one of 20, 32, 44, 56, 110, 164, 1202",
        ),
        (lambda: PreActResNet(block="wide"), "block='wide' is unknown; choose one of basic, bottleneck"),
        (lambda: PreActResNet(classes=0), "classes=0 must be whole and positive"),
        (lambda: PreActResNet((3, 0, 3)), r"blocks=\[3, 0, 3\] must be"),
        (lambda: PreActResNet(()), r"blocks=\[\] must be"),
        (lambda: PreActResNet((1,))(torch.ones(3, 8, 8)), r"images of shape \(3, 8, 8\), but \(B, 3, H, W\)"),
        (lambda: PreActResNet((1,))(torch.ones(2, 1, 8, 8)), r"images of shape \(2, 1, 8, 8\)"),
        (lambda: PreActResNet(scheme=Scheme(Splitting.parse("attention ffn"))), "a residual block has one flow"),
        (lambda: PreActResNet(scheme=Scheme(depth_rule="rk2_learned")), "use 'heun' or 'rk2'"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
