"""The integrator: splittings, solvers, the walk over a step, and rules across depth. Tensors and callables only."""

from macaron.dynamics.depth import Depth, Rule, Step, euler, get_rule, register_rule
from macaron.dynamics.scheme import Scheme
from macaron.dynamics.solvers import (
    BACKWARD_EULER,
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    Field,
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
    "LIE",
    "MIDPOINT",
    "RK4",
    "STRANG",
    "Depth",
    "Field",
    "Rule",
    "Scheme",
    "Splitting",
    "Step",
    "Substep",
    "Tableau",
    "euler",
    "follow",
    "get_rule",
    "get_solver",
    "get_splitting",
    "register_rule",
    "register_solver",
    "register_splitting",
    "walk",
]
