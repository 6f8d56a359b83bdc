"""How long a unit is repeated: a fixed time, one by a table of difficulty, or one that a policy decides (DURR).

The moving endpoint problem of Zhang et al. 2018 (arXiv:1805.07709): min over w and τ of L(X(τ)), Ẋ = f(X, w), where τ
may differ from one system to the next. Its policy is learned by Q-learning, whose targets are the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from macaron.dynamics.solvers import EULER, Tableau, follow

_WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
STOP, GO_ON = 0, 1  # the actions, as the last dimension of Q counts them


class Unit(Protocol):
    """(x, *given) ↦ dx/dt, of the shape of x."""

    def __call__(self, x: Tensor, /, *given: Tensor) -> Tensor: ...


class Policy(Protocol):
    """(x_n of those that still go on, n) ↦ who stops at x_n: bool, (how many these are,).

    It is asked at n = 0, 1, …, most − 1. Those that it stops are missing from its next call, the others keep their
    order.
    """

    def __call__(self, x: Tensor, n: int, /) -> Tensor: ...


Horizon = int | Tensor | Policy
State = TypeVar("State")


def unroll(
    unit: Unit,
    x: Tensor,
    horizon: Horizon,
    most: int,
    *given: Tensor,
    dt: float = 1.0,
    solver: Tableau = EULER,
    batch_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """Repeat a unit, for each system until its time has come:

        x_{n+1} = Φ_unit(x_n; Δt),    n = 0 … τ − 1,    τ ≤ most

    Systems that have stopped are computed no more: the batch gets smaller.

    Args:
        unit: the velocity; its parameters are shared by all steps.
        x: x_0, with B systems along `batch_dim`.
        horizon: τ for all; or τ of each, whole numbers (B,), see `horizons`; or a `Policy`. A time may be 0.
        most: the greatest τ there may be.
        given: what belongs to the systems beside x and does not move, such as the noisy image; B along `batch_dim`.
        dt, solver: of a step.
        batch_dim: the dimension of the systems.

    Returns:
        x_τ of every system, in the order of x, and τ, (B,), int64. With int and Tensor horizons τ is what was given.

    Raises:
        ValueError: a time outside 0 … most, tensors whose numbers of systems differ, a policy's answer that is not one
            bool a system, or a unit that returns another shape than that of x.
    """
    count = x.size(batch_dim)
    _check_most(most)
    for number, other in enumerate(given):
        if other.dim() <= batch_dim or other.size(batch_dim) != count:
            raise ValueError(
                f"unroll: given[{number}] of shape {tuple(other.shape)} has not the {count} systems of x, "
                f"{tuple(x.shape)}, along dimension {batch_dim}"
            )

    def step(state: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _step(unit, state[0], state[1], dt, solver), state[1]

    def take(state: tuple[Tensor, tuple[Tensor, ...]], kept: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return state[0].index_select(batch_dim, kept), tuple(t.index_select(batch_dim, kept) for t in state[1])

    if callable(horizon):
        decides = horizon
        ended, times = march(step, (x, given), lambda state, n: decides(state[0], n), most, count, take, x.device)
    else:
        ended, times = march(step, (x, given), horizon, most, count, take, x.device)
    if len(ended) == 1:
        return ended[0][1][0], times
    order = torch.cat([place for place, _ in ended]).argsort()
    return torch.cat([state[0] for _, state in ended], batch_dim).index_select(batch_dim, order), times


def march(
    step: Callable[[State], State],
    state: State,
    horizon: int | Tensor | Callable[[State, int], Tensor],
    most: int,
    count: int,
    take: Callable[[State, Tensor], State],
    device: torch.device,
) -> tuple[list[tuple[Tensor, State]], Tensor]:
    """`unroll` of a state of any kind, such as packed sentences of different lengths.

    Args:
        step: x_n ↦ x_{n+1} of all systems that still go on.
        state: of the `count` systems.
        horizon, most: as in `unroll`; a policy is asked about the state.
        take: (state, indices) ↦ the state of these systems alone, in the order of the indices.
        device: of the times.

    Returns:
        Which systems, rising, ended together, and their state, in the order in which they did; and τ, (count,), int64.

    Raises:
        ValueError: a time outside 0 … most, or a policy's answer that is not one bool a system.
    """
    _check_most(most)
    if not callable(horizon):
        horizon = _checked_times(horizon, count, most, device)
    rows = torch.arange(count, device=device)
    times = torch.full((count,), most, device=device)
    ended: list[tuple[Tensor, State]] = []
    for n in range(most):
        if not rows.numel():
            break
        stop = _answer(horizon(state, n), rows) if callable(horizon) else horizon[rows] <= n
        if bool(stop.any()):
            times[rows[stop]] = n
            if bool(stop.all()):
                break
            out, on = stop.nonzero().squeeze(1), (~stop).nonzero().squeeze(1)
            ended.append((rows[out], take(state, out)))
            state, rows = take(state, on), rows[on]
        state = step(state)
    ended.append((rows, state))
    return ended, times


def trajectory(
    unit: Unit, x: Tensor, most: int, *given: Tensor, dt: float = 1.0, solver: Tableau = EULER
) -> Iterator[Tensor]:
    """x_0, x_1, …, x_most: what `unroll` would pass if nothing stopped.

    Raises:
        ValueError: as `unroll`.
    """
    _check_most(most)
    yield x
    for _ in range(most):
        x = _step(unit, x, given, dt, solver)
        yield x


def horizons(table: Mapping[float, int], levels: Tensor | Sequence[float]) -> Tensor:
    """τ of each system by its difficulty, (B,), int64, for `unroll`.

    Args:
        table: difficulty, such as the standard deviation of the noise, ↦ number of steps.
        levels: the difficulty of each, (B,).

    Raises:
        ValueError: a level that the table has not, or a number of steps that is none.
    """
    for level, steps in table.items():
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"horizons: {steps!r} steps at level {level:g}; a whole number, 0 or more, is needed")
    times = []
    for level in levels.tolist() if isinstance(levels, Tensor) else levels:
        # 1e-6: the levels may have gone through float32
        known = [steps for key, steps in table.items() if math.isclose(key, level, rel_tol=1e-6)]
        if not known:
            raise ValueError(
                f"horizons: no number of steps for level {level:g}; the table has "
                f"{', '.join(f'{key:g}' for key in table) or 'none'}; add it, or use a policy"
            )
        times.append(known[0])
    return torch.tensor(times, dtype=torch.int64)


# -- Q-learning of the stopping time: at x_n, n = 0 … N − 1, one stops or goes on; at x_N all stop


def rewards(losses: Tensor) -> Tensor:
    """Of going on: r_n = L(x_n) − L(x_{n+1}), what the step to x_{n+1} gains. Stopping has reward 0.

    Args:
        losses: L(x_0) … L(x_N), (N + 1, B), see `trajectory`.

    Returns:
        r_0 … r_{N−1}, (N, B).
    """
    _check_losses(losses)
    return losses[:-1] - losses[1:]


def returns(losses: Tensor, times: Tensor) -> Tensor:
    """The sum of the rewards up to the stopping times, L(x_0) − L(x_τ), (B,)."""
    _check_losses(losses)
    times = _checked_times(times, losses.shape[1], losses.shape[0] - 1, losses.device)
    return losses[0] - losses.gather(0, times[None])[0]


def returns_ahead(losses: Tensor, stops: Tensor) -> Tensor:
    """What going on from x_n gains under a policy that decides from x_{n+1} on: L(x_n) − L(x_m).

    m > n is the first at which it stops, or N. That is Q(x_n, on) of this policy, without discount; as the rewards of
    all steps are known, nothing is estimated from Q and nothing explored. A policy that stops where it is not positive
    in the mean is at least as good, and backward from x_{N−1} it becomes the best.

    Args:
        losses: L(x_0) … L(x_N), (N + 1, B).
        stops: bool, whether the policy stops at x_0 … x_{N−1}, (N, B).

    Returns:
        (N, B), without gradient.
    """
    _check_losses(losses)
    if stops.dtype != torch.bool or stops.shape != losses[1:].shape:
        raise ValueError(
            f"stops is {stops.dtype} {tuple(stops.shape)}, but losses of {len(losses)} states want bool "
            f"{tuple(losses[1:].shape)}"
        )
    losses = losses.detach()
    end, gains = losses[-1], []
    for n in reversed(range(len(stops))):
        gains.append(losses[n] - end)
        end = torch.where(stops[n], losses[n], end)
    return torch.stack(gains[::-1])


def best_times(losses: Tensor) -> Tensor:
    """The first n with the smallest L(x_n), (B,): where an oracle stops. (N + 1, B) → (B,)."""
    _check_losses(losses)
    steps = torch.arange(len(losses), device=losses.device)[:, None]
    # argmin does not say which of equal ones it takes
    return steps.masked_fill(losses != losses.amin(0), len(losses)).amin(0)


def q_targets(losses: Tensor, q: Tensor, discount: float = 1.0) -> Tensor:
    """What Q is drawn to:

        Q(x_n, stop)  →  0
        Q(x_n, on)    →  r_n + γ max(Q(x_{n+1}, stop), Q(x_{n+1}, on)),    and r_n alone where x_{n+1} = x_N

    With γ = 1 the fixed point is Q(x_n, on) = L(x_n) − min_{m > n} L(x_m): one goes on as long as a gain is ahead.

    Args:
        losses: L(x_0) … L(x_N), (N + 1, B).
        q: Q at x_0 … x_{N−1}, (N, B, 2), actions `STOP`, `GO_ON`; of a copy that lags behind, if there is one.
        discount: γ in [0, 1].

    Returns:
        (N, B, 2), without gradient.

    Raises:
        ValueError: shapes that do not match, a γ outside its range, or numbers that are not finite.
    """
    gains = rewards(losses.detach())
    if q.shape != (*gains.shape, 2):
        raise ValueError(f"q of shape {tuple(q.shape)}, but losses of {len(losses)} states want {(*gains.shape, 2)}")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount={discount!r} is outside of [0, 1]")
    later = _finite("q", q.detach()).amax(-1)[1:]
    ahead = torch.cat([later, torch.zeros_like(later[:1] if len(later) else q.detach()[:1, :, 0])])
    return torch.stack([torch.zeros_like(gains), gains + discount * ahead], -1)


def visited(times: Tensor, most: int) -> Tensor:
    """Which (x_n, action) an episode that stopped at τ has met: (n, on) for n < τ, and (τ, stop) if τ < most.

    Args:
        times: τ, (B,).

    Returns:
        bool, (most, B, 2).
    """
    times = _checked_times(times, len(times), most, times.device)
    n = torch.arange(most, device=times.device)[:, None]
    return torch.stack([n == times, n < times], -1)


def q_loss(q: Tensor, losses: Tensor, times: Tensor, discount: float = 1.0, *, lagging: Tensor | None = None) -> Tensor:
    """Mean of (Q − target)² over the states and actions that the episodes have met; see `q_targets`, `visited`.

    Args:
        q: (N, B, 2), with gradient.
        losses: (N + 1, B).
        times: where the episodes stopped, (B,), as `unroll` returns them under `epsilon_greedy`.
        lagging: Q by a copy that lags behind, from which the targets are made; `q` itself if there is none.
    """
    targets = q_targets(losses, q if lagging is None else lagging, discount)
    met = visited(times.to(q.device), len(q))
    return (q - targets)[met].square().mean()


def epsilon_greedy(q: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Who stops: by the greater Q, or, with probability ε, by a fair coin. Where both are equal one stops.

    Args:
        q: (B, 2), actions `STOP`, `GO_ON`.
        epsilon: ε in [0, 1].
        generator: of the coins, on the device of q.

    Returns:
        bool, (B,).

    Raises:
        ValueError: an ε outside its range, another shape, or Q that is not finite.
    """
    if isinstance(epsilon, bool) or not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon={epsilon!r} is no probability in [0, 1]")
    if q.dim() != 2 or q.shape[1] != 2:
        raise ValueError(f"q of shape {tuple(q.shape)}, but (B, 2), of stopping and of going on, is needed")
    greedy = _finite("q", q)[:, STOP] >= q[:, GO_ON]
    if epsilon == 0.0:
        return greedy
    explores, coin = torch.rand(2, len(q), device=q.device, generator=generator)
    return torch.where(explores < epsilon, coin < 0.5, greedy)


# -- checks


def _step(unit: Unit, x: Tensor, given: tuple[Tensor, ...], dt: float, solver: Tableau) -> Tensor:
    def velocity(state: Tensor) -> Tensor:
        v = unit(state, *given)
        if v.shape != state.shape:  # which broadcasting would hide
            raise ValueError(
                f"the unit made {tuple(v.shape)} of states {tuple(state.shape)}; a velocity has their shape"
            )
        return v

    return follow(velocity, x, dt, solver)


def _check_most(most: Any) -> None:
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most={most!r} is no greatest number of steps; give a whole number, 1 or more")


def _checked_times(times: Any, count: int, most: int, device: torch.device) -> Tensor:
    if isinstance(times, int) and not isinstance(times, bool):
        times = torch.full((count,), times)
    if not isinstance(times, Tensor) or times.dtype not in _WHOLE:
        raise ValueError(f"{times!r} is no horizon; give a whole number, whole numbers (B,), or a policy")
    if times.shape != (count,):
        raise ValueError(
            f"stopping times of shape {tuple(times.shape)} for {count} systems; give one a system, ({count},)"
        )
    if count and not 0 <= int(times.min()) <= int(times.max()) <= most:
        raise ValueError(
            f"stopping times from {int(times.min())} to {int(times.max())}, but they must lie in 0 … most={most}; "
            f"raise most, or lower them"
        )
    return times.to(device=device, dtype=torch.int64)


def _answer(stop: Any, rows: Tensor) -> Tensor:
    if not isinstance(stop, Tensor) or stop.dtype != torch.bool or stop.shape != rows.shape:
        was = f"{stop.dtype} of shape {tuple(stop.shape)}" if isinstance(stop, Tensor) else repr(stop)
        raise ValueError(f"the policy answered {was}, but one bool a system that goes on, ({len(rows)},), is needed")
    return stop.to(rows.device)


def _check_losses(losses: Tensor) -> None:
    if losses.dim() != 2 or len(losses) < 2:
        raise ValueError(
            f"losses of shape {tuple(losses.shape)}; (N + 1, B), one a state and system, are needed, N ≥ 1"
        )
    _finite("losses", losses)


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity, of which no decision can be learned")
    return values
