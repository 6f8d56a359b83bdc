"""The restoration unit's golden numbers, odd sizes, and the policy unit under unroll."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from macaron.dynamics import trajectory, unroll
from macaron.dynamics.horizon import GO_ON, STOP, best_times, q_loss
from macaron.vision import PolicyUnit, RestorationUnit, from_original


def parameters(stored):
    return {name.removeprefix("param/"): value for name, value in stored.items() if name.startswith("param/")}


def test_golden_steps(golden, facts, closely):
    stored, said = golden("durr/restoration_unit"), facts("durr")
    unit = from_original({f"unit.{name}": value for name, value in parameters(stored).items()})
    assert isinstance(unit, RestorationUnit)
    assert sum(p.numel() for p in unit.parameters()) == said["n_params"] == 192_233
    noisy, clean, steps = stored["noisy"], stored["clean"], said["steps"]
    states = [*trajectory(unit, noisy, steps, noisy)][1:]
    for n, (x, psnr) in enumerate(zip(states, said["psnr_per_step"], strict=True)):
        closely(x, stored[f"after_step_{n + 1}"])
        assert -10 * math.log10(F.mse_loss(x, clean).item()) == pytest.approx(psnr, abs=1e-3)  # dB, float32
    x, times = unroll(unit, noisy, steps, steps, noisy)
    closely(x, stored[f"after_step_{steps}"])
    assert times.tolist() == [steps] * len(noisy)
    loss = F.mse_loss(x, clean)
    assert loss.item() == pytest.approx(said["mse_last"], rel=1e-4)
    loss.backward()
    found = {name: p.grad.norm().item() for name, p in unit.named_parameters()}
    assert found == pytest.approx(said["grad_l2_norm"], rel=1e-3)  # float32, through all steps


def test_slopes_at_the_start(facts):
    slopes = [m.weight.item() for m in RestorationUnit().modules() if isinstance(m, torch.nn.PReLU)]
    assert slopes == pytest.approx(facts("durr")["prelu_as_initialised"])


def test_what_is_no_unit(golden):
    state = parameters(golden("durr/restoration_unit"))
    with pytest.raises(ValueError, match=r"missing: conv8\.0\.bias"):
        from_original({name: value for name, value in state.items() if name != "conv8.0.bias"})
    with pytest.raises(ValueError, match=r"conv5\.0\.bias .* has shape \(3,\), not \(64,\)"):
        from_original({**state, "conv5.0.bias": torch.ones(3)})


@pytest.mark.parametrize("size", [(7, 10), (8, 9), (5, 5), (2, 3)])
def test_odd_sizes_are_reflected_and_cropped(size):
    unit = RestorationUnit(channels=2, width=4)
    x, y = torch.randn(2, 3, 2, *size)
    got = unit(x, y)
    assert got.shape == x.shape
    pad = (0, size[1] % 2, 0, size[0] % 2)
    x, y = (F.pad(image, pad, mode="reflect") for image in (x, y))
    torch.testing.assert_close(got, unit(x, y)[..., : size[0], : size[1]])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 1, 1, 8), (1, 1, 1, 8)), "images of 1 × 8 pixels are too small"),
        (((1, 1, 8, 8), (2, 1, 8, 8)), r"\(1, 1, 8, 8\) and \(2, 1, 8, 8\), but two of one shape"),
        (((1, 3, 8, 8), (1, 3, 8, 8)), r"\(B, 1, H, W\), are needed"),
        (((8, 8), (8, 8)), "are needed"),
    ],
)
def test_images_that_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        RestorationUnit(width=2)(*map(torch.zeros, shapes))


def test_policy_unit_size():
    assert sum(p.numel() for p in PolicyUnit().parameters()) == 98_978


def decided(policy, states):
    """By hand, each image alone: where Q of stopping is first the greater."""
    memory = None
    for n, x in enumerate(states):
        q, memory = policy(x, memory)
        if q[0, STOP] >= q[0, GO_ON]:
            return n
    return len(states)


@torch.no_grad()
def test_memory_goes_with_its_image():
    """Images that stop at different times, together, are what each is alone."""
    torch.manual_seed(2)  # of these weights images stop at many times
    unit, policy = RestorationUnit(width=4).double(), PolicyUnit(width=4).double()
    y = torch.randn(12, 1, 7, 8).double() * torch.linspace(0.3, 3, 12)[:, None, None, None]
    for parameter in policy.parameters():
        parameter.normal_(0, 0.3)
    most = 5
    states = [*trajectory(unit, y, most, y)]
    q = policy.values(states[:most])
    # so that a fifth of all decisions are to stop
    policy.fc.bias[GO_ON] += (q[..., STOP] - q[..., GO_ON]).flatten().quantile(0.8)
    x, times = unroll(unit, y, policy.horizon(), most, y)
    assert times.tolist() == [decided(policy, [s[i : i + 1] for s in states[:most]]) for i in range(12)]
    assert len(set(times.tolist())) >= 3
    want = torch.stack([states[n][i] for i, n in enumerate(times.tolist())])
    torch.testing.assert_close(x, want, atol=1e-10, rtol=1e-10)  # batches of other sizes, float64


def test_a_policy_learns_where_to_stop():
    """Noise grows by 1 a step, with loss |its size − 2|: by Q-learning alone it stops where that is 0."""
    torch.manual_seed(0)
    most = 3
    noise = torch.randn(1, 1, 8, 8)

    def louder(x: Tensor) -> Tensor:
        return noise.expand_as(x)

    x = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None] * noise
    states = [*trajectory(louder, x, most)]
    losses = torch.stack([((state / noise).mean((1, 2, 3)) - 2).abs() for state in states])
    policy, generator = PolicyUnit(width=4), torch.Generator().manual_seed(0)
    assert unroll(louder, x, policy.horizon(), most)[1].tolist() != [2, 1, 0]
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    moved = set()  # the memory has a gradient where some image goes on
    for _ in range(100):  # 40 to 80 were enough for seeds 0, 1, 2
        _, times = unroll(louder, x, policy.horizon(0.5, generator), most)
        loss = q_loss(policy.values(states[:most]), losses, times)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved |= {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in policy.named_parameters()}
    end, times = unroll(louder, x, policy.horizon(), most)
    assert times.tolist() == best_times(losses).tolist() == [2, 1, 0]
    torch.testing.assert_close(end, 2 * noise.expand_as(end))


def test_a_policy_begins_anew_and_is_asked_at_every_step():
    horizon = PolicyUnit(width=2).horizon(epsilon=1.0, generator=torch.Generator().manual_seed(0))
    x = torch.randn(40, 1, 6, 6)
    first = horizon(x, 0)
    assert 5 < first.sum() < 35  # a fair coin of 40, five standard deviations
    assert not torch.equal(first, horizon(x, 0))
    with pytest.raises(ValueError, match=r"asked about 40 images at step 1, but the last decision left"):
        horizon(x, 1)
    with pytest.raises(ValueError, match="for step 1"):
        horizon(x, 2)
