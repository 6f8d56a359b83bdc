"""Every choice about the integrator as one value, made once at the edge of each host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from macaron.dynamics.depth import Rule
from macaron.dynamics.multistep import start_of
from macaron.dynamics.noise import StochasticDepth, check_noise
from macaron.dynamics.rules import get_rule
from macaron.dynamics.solvers import EULER, Tableau, get_solver
from macaron.dynamics.splitting import FFN, SELF_ATTENTION, STRANG, Splitting, get_splitting

T = TypeVar("T")


# What stochastic depth and multistep are told beside; without them these mean nothing.
_NOISE = ("stochastic_depth_schedule", "stochastic_depth_form", "stochastic_depth_unit")


# In single precision a smaller step is none, and a greater one infinite.
_LEAST, _GREATEST = 2.0**-126, 2.0**127


def is_step(dt: Any) -> bool:
    """Whether it is a number that a layer can follow its flows for."""
    return isinstance(dt, (int, float)) and not isinstance(dt, bool) and _LEAST <= dt <= _GREATEST


@dataclass(frozen=True)
class Scheme:
    """How a stack of layers integrates. Its fields, but for the two that are values of their own, are options of hosts.

    Fields:
        splitting: the substeps of a layer.
        solver: how each flow is followed.
        depth_rule: name of the rule across depth, see `macaron.dynamics.rules`.
        dt: Δt of a layer.
        multistep_init: where the k of depth_rule="multistep" begin, see `LinearMultistep`.
        stochastic_depth: drop rate of the last layer, in [0, 1), see `StochasticDepth`; stochastic_depth_schedule: of
            the others; stochastic_depth_form, stochastic_depth_unit: what is dropped, and for whom.

    Raises:
        ValueError: an unknown name, a value outside its range, or one that means nothing beside the others.
    """

    splitting: Splitting = STRANG
    solver: Tableau = EULER
    depth_rule: str = "euler"
    dt: float = 1.0
    multistep_init: float | str = 0.0
    stochastic_depth: float = 0.0
    stochastic_depth_schedule: str = "lm_resnet"
    stochastic_depth_form: str = "scaled"
    stochastic_depth_unit: str = "batch"

    def __post_init__(self) -> None:
        dt = self.dt
        if not is_step(dt):
            shown = "an integer of many digits" if type(dt) is int and abs(dt) > _GREATEST else repr(dt)
            raise ValueError(
                f"dt={shown} is not a step; it must be positive and finite, from {_LEAST:.3g} to {_GREATEST:.3g}, "
                f"1 is a layer of its own"
            )
        object.__setattr__(self, "multistep_init", start_of(self.multistep_init))
        get_rule(self.depth_rule, 1)  # an unknown name is told now
        check_noise(self.stochastic_depth, *(getattr(self, name) for name in _NOISE))
        if self.multistep_init != 0.0 and self.depth_rule != "multistep":
            raise ValueError(
                f"multistep_init={self.multistep_init!r} says where the k of depth_rule='multistep' begin, and "
                f"depth_rule={self.depth_rule!r} has none; leave it out, or choose that rule"
            )
        for name in _NOISE:
            if self.stochastic_depth == 0.0 and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} means nothing without stochastic depth; leave it out, or give a "
                    f"rate: stochastic_depth=0.2"
                )

    @classmethod
    def of(cls, options: Any) -> Scheme:
        """From a host's options: fairseq's namespace or a Hugging Face configuration, which use the same names.

        What they do not have is left at its default.

        Raises:
            ValueError: an unknown splitting, solver or rule, or a value outside its range.
        """
        given = {name: getattr(options, name, default) for name, default in _DEFAULTS.items()}
        return cls(splitting=get_splitting(given.pop("splitting")), solver=get_solver(given.pop("solver")), **given)

    def check_increments(self, normalize_before: bool) -> Scheme:
        """Itself, for layers that are pre-norm or not.

        Raises:
            ValueError: a rule that needs the increment Δ_n of a layer x + Δ_n(x), and post-norm layers, LN(x + …),
                which have none.
        """
        if not normalize_before:
            wanted = "" if self.depth_rule not in _OF_INCREMENTS else f"depth_rule={self.depth_rule!r}"
            if wanted := wanted or ("stochastic_depth" if self.stochastic_depth > 0.0 else ""):
                raise ValueError(
                    f"{wanted} needs the increment Δ of each layer x + Δ(x), and a post-norm layer, LN(x + …), has "
                    f"none; use pre-norm layers (normalize_before), or leave it out"
                )
        return self

    def check_flows(self, known: Iterable[str], needed: Iterable[str] = ()) -> Scheme:
        """Itself, for a host that has the flows `known`; see `Splitting.check_flows`."""
        self.splitting.check_flows(known, needed)
        return self

    def rule(self, depth: int, dim: int = 1) -> Rule:
        """The rule across `depth` layers of particles in R^dim."""
        return get_rule(self.depth_rule, depth, dim=dim, multistep_init=self.multistep_init)

    def noise(self, depth: int, first: int = 0, total: int | None = None) -> StochasticDepth | None:
        """The noise of `depth` layers, if there is any; those from `first` on of a network of `total`."""
        if self.stochastic_depth == 0.0:
            return None
        return StochasticDepth(
            depth,
            self.stochastic_depth,
            schedule=self.stochastic_depth_schedule,
            form=self.stochastic_depth_form,
            unit=self.stochastic_depth_unit,
            dt=self.dt,
            first=first,
            total=total,
        )

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


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Scheme)}
_OF_INCREMENTS = ("multistep", "rk2", "rk2_learned", "rk4")
OPTIONS = tuple(_DEFAULTS)  # as both hosts have them
