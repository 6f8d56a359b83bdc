"""Runge–Kutta steps across depth: a whole layer is the velocity field (ODE Transformer, Li et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from macaron.dynamics.depth import Step
from macaron.dynamics.solvers import Gate, Tableau, follow


class RungeKutta(nn.Module):
    """x_{n+1} is one step of a solver along Δ_n, the increment of the whole layer, with the layer's own length as h.

    With Heun's tableau x + ½ (F₁ + F₂), F₁ = Δ_n(x), F₂ = Δ_n(x + F₁): RK2 of the ODE Transformer (arXiv:2203.09176);
    with RK4's its RK4. The stages share the layer's parameters; each of them draws its own dropout, as theirs do.

    Args:
        depth: how many layers there are.
        solver: whose stages.
        dim: C, for a solver with learned weights: each layer then has a `Gate`.
    """

    def __init__(self, depth: int, solver: Tableau, dim: int) -> None:
        super().__init__()
        self.solver = solver
        self.gates = nn.ModuleList(Gate(dim) for _ in range(depth)) if solver.learned else None

    def forward(self, step: Step) -> Tensor:
        weighing = None if self.gates is None else self.gates[step.n]
        return follow(lambda y: step.layer(y) - y, step.x, 1.0, self.solver, weighing)

    def extra_repr(self) -> str:
        return self.solver.name
