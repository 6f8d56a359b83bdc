"""Patches, losses, episodes, and that what goes on from a state ends in the same bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from macaron.dynamics import unroll
from macaron.dynamics.horizon import GO_ON, q_loss
from macaron.vision import DnCNN, PolicyUnit, RestorationUnit
from recipes.common.errors import RecipeError
from recipes.denoise import training
from recipes.denoise.images import compressed
from recipes.denoise.settings import settings_for

CPU = torch.device("cpu")


def settings(task: str = "gaussian", **given):
    sizes = {"width": 2, "policy_width": 2, "patch": 16, "batch": 4, "policy_patch": 16, "policy_batch": 3}
    steps = {"steps": (1, 2, 2, 3), "bm3d_images": 0} if task == "gaussian" else {"steps": (3, 2)}
    return settings_for(task, "small", **(sizes | steps | {"most": 4, "updates": 9, "policy_updates": 8} | given))


def images() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"{i}.png": random.integers(0, 256, (20 + i, 24)).astype(np.float32) for i in range(3)}


def test_patches_are_a_function_of_the_update():
    patches = training.Patches(images(), settings())
    one, same, other = (patches.draw("restorer", 1, update, 16, 4) for update in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0], patches.draw("policy", 1, 5, 16, 4)[0])
    assert not np.array_equal(one[0], patches.draw("restorer", 2, 5, 16, 4)[0])


def test_noise_has_the_level_that_is_said():
    patches = training.Patches({"a": np.full((64, 64), 9.0, np.float32)}, settings())
    clean, bad, levels = patches.draw("restorer", 1, 0, 64, 60)
    assert set(levels) == {25, 35, 45, 55}
    found = (bad - clean).std((1, 2))
    np.testing.assert_allclose(found, levels, rtol=0.06)  # 4096 numbers each: 1.1 %, five times that
    assert bad.min() < 0


def test_jpeg_patches_are_cut_from_compressed_images():
    given = images()
    patches = training.Patches(given, settings("jpeg"))
    whole = {level: [compressed(image, int(level)) for image in given.values()] for level in (20, 30)}
    clean, bad, levels = patches.draw("restorer", 1, 0, 16, 4)
    for c, b, level in zip(clean, bad, levels, strict=True):
        assert any(
            np.array_equal(np.rot90(image[t : t + 16, x : x + 16], turns)[:, :: 1 - 2 * mirrored], c)
            and np.array_equal(np.rot90(worse[t : t + 16, x : x + 16], turns)[:, :: 1 - 2 * mirrored], b)
            for image, worse in zip(given.values(), whole[level], strict=True)
            for t in range(image.shape[0] - 15)
            for x in range(9)
            for turns in range(4)
            for mirrored in range(2)
        )


def test_restoration_loss_is_after_the_table_s_steps():
    torch.manual_seed(0)
    unit, chosen = RestorationUnit(1, 2), settings()
    clean, bad = torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16)
    levels = np.array([55.0, 25.0, 35.0, 45.0])
    expected = []
    for i, steps in enumerate((3, 1, 2, 2)):
        x = y = bad[i : i + 1]
        for _ in range(steps):
            x = x + unit(x, y)
        expected.append((x - clean[i]).square().mean())
    loss = training.restoration_loss(unit, clean, bad, levels, chosen)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    net = DnCNN(3, 2)
    torch.testing.assert_close(
        training.restoration_loss(net, clean, bad, levels, chosen), (net(bad) - clean).square().mean()
    )


def test_loss_in_db_is_minus_psnr_of_the_clipped_image():
    clean = torch.zeros(2, 1, 4, 4)
    x = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), -3.0)])
    torch.testing.assert_close(training.loss_in_db(x, clean), torch.tensor([-20.0, -100.0]))


def test_episodes_are_those_of_unroll():
    """ε = 0: the stopping times of `unroll` under the policy; ε = 1: fair coins at every state."""
    torch.manual_seed(0)
    unit, policy = RestorationUnit(1, 2), PolicyUnit(1, 2)
    policy.fc.bias.data[GO_ON] = 0.015
    bad = torch.rand(40, 1, 16, 16) * torch.rand(40, 1, 1, 1) * 2
    states, _ = training.states_and_losses(unit, bad, bad, 4)
    q = policy.values(states[:-1])
    _, times = unroll(unit, bad, policy.horizon(), 4, bad)
    assert torch.equal(training.explored(q, 0.0, torch.Generator()), times)
    drawn = training.explored(torch.zeros(2, 4000, 2), 1.0, torch.Generator().manual_seed(0))
    assert (drawn.bincount(minlength=3) / 4000 - torch.tensor([0.5, 0.25, 0.25])).abs().max() < 0.03  # 4 sd


def test_states_that_overflow_are_as_bad_as_can_be():
    class Wild(torch.nn.Module):
        def forward(self, x, y):
            return x * 1e30

    states, losses = training.states_and_losses(Wild(), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), 4)
    assert all(bool(x.isfinite().all()) for x in states) and bool(losses.isfinite().all())


def test_policy_loss_is_that_of_the_explored_episodes():
    torch.manual_seed(0)
    policy, lagging = PolicyUnit(1, 2), PolicyUnit(1, 2)
    states = [torch.rand(6, 1, 16, 16) for _ in range(4)]
    losses = torch.randn(4, 6)
    loss = training.policy_loss(policy, lagging, states, losses, 0.5, torch.Generator().manual_seed(3))
    q, behind = policy.values(states[:-1]), lagging.values(states[:-1])
    times = training.explored(q, 0.5, torch.Generator().manual_seed(3))
    assert len(set(times.tolist())) > 1
    torch.testing.assert_close(loss, q_loss(q, losses, times, lagging=behind))
    assert not torch.allclose(loss, q_loss(q, losses, times))


def test_rates():
    rates = [training.rate_at(update, 100, 2.0) for update in range(100)]
    assert rates[0] == pytest.approx(0.4) and max(rates) == rates[4] == rates[5] == 2.0
    assert rates[-1] == pytest.approx(0.02, abs=0.01) and rates[5:] == sorted(rates[5:], reverse=True)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["restorer", "policy"])
def test_going_on_gives_the_same_bits(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    chosen = dataclasses.replace(settings(), lag=3)
    patches = training.Patches(images(), chosen)

    def run(path, stop: int | None):
        torch.manual_seed(0)
        unit, policy = RestorationUnit(1, 2), PolicyUnit(1, 2)

        def progress(done, loss):
            if stop is not None and done > stop:
                raise Killed

        if kind == "restorer":
            said = training.train_restorer(unit, patches, 3, path, CPU, progress)
            return unit.state_dict(), said["curve"]
        said = training.train_policy(policy, unit.requires_grad_(False), patches, 3, path, CPU, progress)
        return policy.state_dict(), said["curve"]

    expected, curve = run(tmp_path / "whole.pt", None)
    with pytest.raises(Killed):
        run(tmp_path / "state.pt", 4)  # the state there is of the update before
    got, curve_again = run(tmp_path / "state.pt", None)
    assert curve_again == curve
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_a_damaged_state_is_named(tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(RecipeError, match=r"state\.pt: is damaged .* delete it"):
        training.train_restorer(DnCNN(2, 2), training.Patches(images(), settings()), 1, path, CPU, lambda *_: None)


def test_divergence_is_told(tmp_path):
    net = DnCNN(2, 2)
    net.layers[0].weight.data.fill_(float("nan"))
    with pytest.raises(RecipeError, match=r"the loss is nan after 1 updates: training diverged"):
        training.train_restorer(net, training.Patches(images(), settings()), 1, tmp_path / "s", CPU, lambda *_: None)
