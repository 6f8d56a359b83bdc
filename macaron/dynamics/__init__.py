"""The integrator: splittings, solvers, the walk over a step, and rules across depth. Tensors and callables only."""

from macaron.dynamics.depth import Depth, Rule, Step, euler
from macaron.dynamics.horizon import horizons, trajectory, unroll
from macaron.dynamics.multistep import LinearMultistep
from macaron.dynamics.noise import StochasticDepth
from macaron.dynamics.rules import get_rule, register_rule
from macaron.dynamics.runge_kutta import RungeKutta
from macaron.dynamics.scheme import Scheme
from macaron.dynamics.solvers import (
    BACKWARD_EULER,
    EULER,
    HEUN,
    HEUN_LEARNED,
    MIDPOINT,
    RK4,
    Field,
    Gate,
    Tableau,
    follow,
    get_solver,
    register_solver,
)
from macaron.dynamics.splitting import LIE, STRANG, Splitting, Substep, get_splitting, register_splitting
from macaron.dynamics.walk import walk

__all__ = [
    "BACKWARD_EULER",
    "EULER",
    "HEUN",
    "HEUN_LEARNED",
    "LIE",
    "MIDPOINT",
    "RK4",
    "STRANG",
    "Depth",
    "Field",
    "Gate",
    "LinearMultistep",
    "Rule",
    "RungeKutta",
    "Scheme",
    "Splitting",
    "Step",
    "StochasticDepth",
    "Substep",
    "Tableau",
    "euler",
    "follow",
    "get_rule",
    "get_solver",
    "get_splitting",
    "horizons",
    "register_rule",
    "register_solver",
    "register_splitting",
    "trajectory",
    "unroll",
    "walk",
]
