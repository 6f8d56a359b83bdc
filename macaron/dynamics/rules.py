"""The rules across depth by their names.

euler          x_{n+1} = x_n + Δ_n(x_n)
multistep      (1 − k_n) x_n + k_n x_{n−1} + Δ_n(x_n), see `LinearMultistep`
rk2, rk4       Heun's and the classical Runge–Kutta step along Δ_n, see `RungeKutta`
rk2_learned    the first with weights that are learned
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from macaron.dynamics.depth import Rule, euler
from macaron.dynamics.multistep import LinearMultistep
from macaron.dynamics.runge_kutta import RungeKutta
from macaron.dynamics.solvers import HEUN, HEUN_LEARNED, RK4

# From the number of layers, and what else a rule may ask for: dim, multistep_init.
_BUILT_IN: dict[str, Callable[..., Rule]] = {
    "euler": lambda depth, **_: euler,
    "multistep": lambda depth, multistep_init=0.0, **_: LinearMultistep(depth, multistep_init),
    "rk2": lambda depth, dim=1, **_: RungeKutta(depth, HEUN, dim),
    "rk2_learned": lambda depth, dim=1, **_: RungeKutta(depth, HEUN_LEARNED, dim),
    "rk4": lambda depth, dim=1, **_: RungeKutta(depth, RK4, dim),
}
RULES: dict[str, Callable[..., Rule]] = dict(_BUILT_IN)


def register_rule(name: str, make: Callable[[int], Rule]) -> None:
    """Let both hosts' `depth_rule` take `name`.

    Args:
        make: from the number of layers to the rule; a `torch.nn.Module` if it has parameters.

    Raises:
        ValueError: a name that is taken.
    """
    if name in RULES:
        raise ValueError(f"depth_rule={name!r} is registered already; choose another name")
    RULES[name] = lambda depth, **_: make(depth)


def get_rule(name: str, depth: int, **options: Any) -> Rule:
    """The rule of that name, for a stack of `depth` layers.

    Args:
        options: what rules of this module may ask for: `dim`, the width of the particles, and `multistep_init`.

    Raises:
        ValueError: unknown name, or an option outside its range.
    """
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"depth_rule={name!r} is unknown; choose one of {', '.join(RULES)}")
    return RULES[name](depth, **options)


def is_built_in_rule(name: str) -> bool:
    """Whether every installation of this package knows the rule."""
    return name in _BUILT_IN
