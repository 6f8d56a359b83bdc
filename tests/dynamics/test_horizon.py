"""Units repeated until they are stopped, and Q-learning on problems whose best stopping times are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from macaron.dynamics import HEUN, horizons, trajectory, unroll
from macaron.dynamics.horizon import (
    GO_ON,
    STOP,
    best_times,
    epsilon_greedy,
    q_loss,
    q_targets,
    returns,
    returns_ahead,
    rewards,
    visited,
)

B, C, N = 7, 3, 6


class Counting:
    """dx/dt = a x + y with the sizes of the batches that it saw."""

    def __init__(self, a: float = 0.5) -> None:
        self.a, self.sizes = a, []

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.a * x + y


def start() -> tuple[Tensor, Tensor]:
    return torch.randn(2, B, C, dtype=torch.float64).unbind()


def alone(x: Tensor, y: Tensor, times: list[int], a: float = 0.5) -> Tensor:
    ends = []
    for i, steps in enumerate(times):
        state = x[i]
        for _ in range(steps):
            state = state + a * state + y[i]
        ends.append(state)
    return torch.stack(ends)


def test_fixed():
    x, y = start()
    unit = Counting()
    end, times = unroll(unit, x, 4, N, y)
    torch.testing.assert_close(end, alone(x, y, [4] * B), rtol=1e-12, atol=0)
    assert times.tolist() == [4] * B and times.dtype == torch.int64 and unit.sizes == [B] * 4
    assert torch.equal([*trajectory(unit, x, N, y)][4], end)
    same, never = unroll(unit, x, 0, N, y)
    assert torch.equal(same, x) and never.tolist() == [0] * B


def test_each_its_own_time_and_no_more_work():
    """The order stays, and with it the gradient of each; who has stopped costs nothing."""
    x, y = start()
    wanted = [3, 0, 6, 1, 3, 6, 2]
    unit = Counting()
    x.requires_grad_()
    end, times = unroll(unit, x, torch.tensor(wanted), N, y)
    assert times.tolist() == wanted
    torch.testing.assert_close(end, alone(x, y, wanted), rtol=1e-12, atol=0)
    assert unit.sizes == [sum(t > n for t in wanted) for n in range(N)]
    end.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.5**t] * C for t in wanted], dtype=torch.float64))


def test_a_policy_sees_those_that_go_on():
    x, y = start()
    x[:, 0] = torch.tensor([9.0, 1.0, 5.0, 9.0, 2.0, 50.0, 0.0])
    y[:] = 0.0
    asked = []

    def large(state: Tensor, n: int) -> Tensor:
        asked.append((n, len(state)))
        return state[:, 0] > 8.0

    end, times = unroll(Counting(1.0), x, large, 5, y)
    # x doubles: 1 → 16 in four steps, 5 → 10 in one, 2 → 16 in three; 0 never gets there
    assert times.tolist() == [0, 4, 1, 0, 3, 0, 5]
    assert asked == [(0, 7), (1, 4), (2, 3), (3, 3), (4, 2)]
    torch.testing.assert_close(end, alone(x, y, times.tolist(), 1.0), rtol=1e-12, atol=0)


def test_systems_along_another_dimension_and_other_solvers():
    x = torch.randn(4, B, C, dtype=torch.float64)  # (T, B, C)
    wanted = [2, 0, 1, 3, 3, 1, 0]
    end, _ = unroll(lambda z: -z, x, torch.tensor(wanted), 3, dt=0.1, solver=HEUN, batch_dim=1)
    factor = torch.tensor([(1 - 0.1 + 0.005) ** t for t in wanted], dtype=torch.float64)  # Heun: 1 − h + h²/2
    torch.testing.assert_close(end, x * factor[:, None], rtol=1e-12, atol=0)


def test_no_systems():
    end, times = unroll(lambda x: x, torch.zeros(0, C), lambda x, n: torch.zeros(0, dtype=torch.bool), 3)
    assert end.shape == (0, C) and times.shape == (0,)


@pytest.mark.parametrize(
    ("horizon", "most", "message"),
    [
        (7, N, r"stopping times from 7 to 7, but they must lie in 0 … most=6"),
        (-1, N, "from -1 to -1"),
        (True, N, "True is no horizon"),
        (2.0, N, "2.0 is no horizon"),
        (torch.full((B,), 2.0), N, "is no horizon"),
        (torch.tensor([1, 2]), N, r"shape \(2,\) for 7 systems; give one a system, \(7,\)"),
        (3, 0, "most=0 is no greatest number of steps"),
        (3, True, "most=True is no"),
        (lambda x, n: torch.zeros(len(x)), N, r"the policy answered torch.float32 of shape \(7,\), but one bool"),
        (lambda x, n: torch.tensor(True), N, r"torch.bool of shape \(\)"),
        (lambda x, n: False, N, "answered False"),
    ],
)
def test_horizons_that_are_refused(horizon, most, message):
    x, y = start()
    with pytest.raises(ValueError, match=message):
        unroll(Counting(), x, horizon, most, y)


def test_units_that_are_refused():
    x, y = start()
    with pytest.raises(ValueError, match=r"given\[0\] of shape \(1, 3\) has not the 7 systems of x, \(7, 3\)"):
        unroll(Counting(), x, 2, N, y[:1])
    with pytest.raises(ValueError, match=r"made \(7, 1\) of states \(7, 3\)"):
        unroll(lambda z: z[:, :1], x, 2, N)


def test_table_of_difficulty():
    table = {25: 4, 35: 6, 0.1: 1}
    assert horizons(table, [35, 25, 25.0]).tolist() == [6, 4, 4]
    assert horizons(table, torch.tensor([0.1, 25.0])).tolist() == [1, 4]  # 0.1 in float32
    with pytest.raises(
        ValueError, match=r"no number of steps for level 45; the table has 25, 35, 0\.1; add it, or use"
    ):
        horizons(table, [25, 45])
    with pytest.raises(ValueError, match="True steps at level 25"):
        horizons({25: True}, [25])


# -- Q-learning


def fixed_point(losses: Tensor, discount: float = 1.0) -> Tensor:
    """Q at which the targets stay: n sweeps are enough for n states."""
    q = torch.randn(len(losses) - 1, losses.shape[1], 2, dtype=losses.dtype)
    for _ in range(len(losses)):
        q = q_targets(losses, q, discount)
    return q


def test_the_fixed_point_is_known():
    losses = torch.rand(N + 1, 50, dtype=torch.float64)
    q = fixed_point(losses)
    for n in range(N):
        torch.testing.assert_close(q[n, :, GO_ON], losses[n] - losses[n + 1 :].amin(0), rtol=0, atol=1e-12)
    assert not q[..., STOP].any()
    torch.testing.assert_close(q_targets(losses, q), q)
    # without a look ahead only the next gain counts
    assert torch.equal(fixed_point(losses, 0.0)[..., GO_ON], rewards(losses))


def test_who_follows_the_fixed_point_stops_where_an_oracle_does():
    """A particle runs through its target: x_n = x_0 + n, L = (x − a)²; the best n is a − x_0, rounded, within 0 … N."""
    x = torch.tensor([0.0, -2.3, -4.6, 3.0, -20.0], dtype=torch.float64)[:, None]

    def unit(z: Tensor) -> Tensor:
        return torch.ones_like(z)

    losses = torch.stack([state[:, 0] ** 2 for state in trajectory(unit, x, N)])
    best = [0, 2, 5, 0, 6]
    assert best_times(losses).tolist() == best
    q, going = fixed_point(losses), torch.arange(len(x))

    def greedy(state: Tensor, n: int) -> Tensor:
        nonlocal going
        stop = epsilon_greedy(q[n, going])
        going = going[~stop]
        return stop

    end, times = unroll(unit, x, greedy, N)
    assert times.tolist() == best
    torch.testing.assert_close(end[:, 0], x[:, 0] + torch.tensor(best))
    torch.testing.assert_close(returns(losses, times), losses[0] - losses.amin(0), rtol=1e-12, atol=1e-12)


def test_it_is_learned_from_what_episodes_meet():
    """Tabular Q-learning under ε-greedy: a first step that costs is taken, since more is gained later."""
    losses = torch.tensor([[3.0, 3.0], [4.0, 4.0], [1.0, 5.0], [2.0, 6.0]], dtype=torch.float64)  # (N + 1, B)
    q = torch.zeros(3, 2, 2, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        alive = torch.ones(2, dtype=torch.bool)
        times = torch.full((2,), 3)
        for n in range(3):
            stop = alive & epsilon_greedy(q[n].detach(), 0.8, generator)
            times[stop] = n
            alive &= ~stop
        loss = q_loss(q, losses, times)
        (gradient,) = torch.autograd.grad(loss, q)
        met = visited(times, 3)
        assert not gradient[~met].any()
        with torch.no_grad():
            q -= 0.5 * met.sum() * 0.5 * gradient  # half of the way to the target: the loss is a mean of squares
    # the rarest, going on at x_2 of a system that had better stop, is met in 1 of 16 episodes: 2^-15 is left
    torch.testing.assert_close(q.detach(), fixed_point(losses), atol=1e-3, rtol=0)
    assert best_times(losses).tolist() == [2, 0]


def test_what_an_episode_has_met():
    met = visited(torch.tensor([0, 2, 3]), 3)
    assert met[..., GO_ON].T.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert met[..., STOP].T.tolist() == [[True, False, False], [False, False, True], [False] * 3]


def test_exploration():
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert epsilon_greedy(q).tolist() == [True, False, True]
    many = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
    generator = torch.Generator().manual_seed(3)
    share = epsilon_greedy(many, 0.2, generator).double().mean().item()
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 20_000))  # four standard deviations
    with pytest.raises(ValueError, match=r"epsilon=1\.5 is no probability"):
        epsilon_greedy(q, 1.5)
    with pytest.raises(ValueError, match=r"q of shape \(3,\)"):
        epsilon_greedy(q[:, 0])
    with pytest.raises(ValueError, match="q holds NaN or infinity"):
        epsilon_greedy(q * torch.nan)


def test_targets_carry_no_gradient_and_check_their_shapes():
    losses = torch.rand(3, 2, requires_grad=True)
    q = torch.rand(2, 2, 2, requires_grad=True)
    assert not q_targets(losses, q).requires_grad
    assert torch.equal(q_loss(q, losses, torch.tensor([0, 0])), q[0, :, STOP].square().mean())
    with pytest.raises(ValueError, match=r"q of shape \(3, 2, 2\), but losses of 3 states want \(2, 2, 2\)"):
        q_targets(losses, torch.rand(3, 2, 2))
    with pytest.raises(ValueError, match=r"discount=1\.5 is outside"):
        q_targets(losses, q, 1.5)
    with pytest.raises(ValueError, match="losses holds NaN"):
        rewards(losses * math.inf)
    with pytest.raises(ValueError, match=r"losses of shape \(1, 2\)"):
        best_times(losses[:1])
    with pytest.raises(ValueError, match="stopping times from 0 to 3"):
        returns(losses, torch.tensor([0, 3]))
    assert best_times(torch.tensor([[1.0], [0.0], [0.0]])).tolist() == [1]


def test_what_a_policy_gains_by_going_on():
    """By its own later decisions; under the best ones it is the fixed point that `q_targets` names."""
    losses = torch.tensor([[5.0, 1.0], [3.0, 2.0], [4.0, 4.0], [1.0, 3.0]])
    stops = torch.tensor([[True, False], [True, False], [False, True]])
    assert returns_ahead(losses, stops).tolist() == [[2.0, -3.0], [2.0, -2.0], [3.0, 1.0]]
    losses = torch.randn(N + 1, B)
    best = torch.stack([losses[n] - losses[n + 1 :].amin(0) for n in range(N)])  # L(x_n) − min over m > n of L(x_m)
    torch.testing.assert_close(returns_ahead(losses, best <= 0), best)
    q = torch.stack([torch.zeros_like(best), best], -1)
    torch.testing.assert_close(q_targets(losses, q)[..., GO_ON], best)
    with pytest.raises(ValueError, match=r"stops is torch.float32 \(6, 7\), but losses of 7 states want bool \(6, 7\)"):
        returns_ahead(losses, best)
