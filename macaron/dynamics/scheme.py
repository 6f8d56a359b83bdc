"""Every choice about the integrator as one value, made once at the edge of each host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from macaron.dynamics.depth import Rule, get_rule
from macaron.dynamics.solvers import EULER, Tableau, get_solver
from macaron.dynamics.splitting import FFN, SELF_ATTENTION, STRANG, Splitting, get_splitting

T = TypeVar("T")


@dataclass(frozen=True)
class Scheme:
    """How a stack of layers integrates.

    Fields:
        splitting: the substeps of a layer.
        solver: how each flow is followed.
        depth_rule: name of the rule across depth, see `macaron.dynamics.depth`.
        dt: Δt of a layer.
    """

    splitting: Splitting = STRANG
    solver: Tableau = EULER
    depth_rule: str = "euler"
    dt: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.dt, (int, float)) or not 0.0 < self.dt < math.inf:
            raise ValueError(f"dt={self.dt!r} is not a step; it must be positive and finite, 1 is a layer of its own")

    @classmethod
    def of(cls, options: Any) -> Scheme:
        """From a host's options: fairseq's namespace or a Hugging Face configuration, which use the same names.

        What they do not have is left at its default.

        Raises:
            ValueError: an unknown splitting, solver or rule, or a value outside its range.
        """
        scheme = cls(
            splitting=get_splitting(getattr(options, "splitting", STRANG)),
            solver=get_solver(getattr(options, "solver", EULER)),
            depth_rule=getattr(options, "depth_rule", "euler"),
            dt=getattr(options, "dt", 1.0),
        )
        scheme.rule(1)  # unknown names are told now
        return scheme

    def check_flows(self, known: Iterable[str], needed: Iterable[str] = ()) -> Scheme:
        """Itself, for a host that has the flows `known`; see `Splitting.check_flows`."""
        self.splitting.check_flows(known, needed)
        return self

    def rule(self, depth: int) -> Rule:
        """The rule across `depth` layers."""
        return get_rule(self.depth_rule, depth)

    def per_ffn(self, first: T, later: T) -> Sequence[T | None]:
        """For each substep which of two FFNs it has: `first` before any attention, `later` after; None for others.

        Both hosts' `…first…` options (width, activation) mean this first FFN. Strang has one of each, Lie the later.
        """
        flows = [substep.flow for substep in self.splitting.substeps]
        attention = flows.index(SELF_ATTENTION) if SELF_ATTENTION in flows else len(flows)
        return [(first if i < attention else later) if flow == FFN else None for i, flow in enumerate(flows)]

    def ffn_width(self, total: int) -> int:
        """The width of each FFN of a layer, when all of them together are `total` wide."""
        return total // max(1, self.splitting.count(FFN))
