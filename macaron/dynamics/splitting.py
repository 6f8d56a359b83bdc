"""Operator splittings: how one layer divides its time step among the flows that act on the particles.

A sentence is a system of n particles x_i(t) in R^C, and depth is time:

    dx_i/dt = F(x_i, [x_1 … x_n], t) + G(x_i, t)

F lets particles interact (attention), G carries each one along by itself (FFN). A splitting advances them in turn.

    Lie–Trotter      F for Δt, then G for Δt                    the Transformer layer
    Strang–Marchuk   G for ½Δt, F for Δt, G for ½Δt             the Macaron layer (arXiv:1906.02762)

`Splitting.order` is the order of the scheme when every flow is solved exactly. With one Euler sub-step per flow,
as in any residual network, every scheme is of first order.

A splitting can be written down: its flows in order, each with its divisor where that is not 1. `ffn/2 attention ffn/2`
is Strang, `attention ffn` Lie.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

FFN = "ffn"
SELF_ATTENTION = "self_attention"
CROSS_ATTENTION = "cross_attention"

_SHORT = {"attention": SELF_ATTENTION}  # as one writes it
_LONG = {flow: short for short, flow in _SHORT.items()}
_NAME = re.compile(r"[A-Za-z_]\w*")
_SUBSTEP = re.compile(r"([A-Za-z_]\w*)(?:/(\d+(?:\.\d+)?))?", re.ASCII)


@dataclass(frozen=True)
class Substep:
    """One flow, by whatever name, followed for `share` of the layer's time step Δt (dimensionless, in (0, 1])."""

    flow: str
    share: float

    def __post_init__(self) -> None:
        if not isinstance(self.flow, str) or not _NAME.fullmatch(self.flow):
            raise ValueError(f"Substep: flow={self.flow!r} is no name; use letters, digits and underscores")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"Substep: share={self.share} of {self.flow!r} must lie in (0, 1], in units of Δt")


@dataclass(frozen=True)
class Splitting:
    """The substeps of one layer, in the order in which they are taken.

    Every flow that takes part must be followed for the whole Δt in total, or the scheme would integrate another
    equation.

    Args:
        name: how `--splitting` and messages call it.
        substeps: at least one.

    Raises:
        ValueError: no substep, or shares of a flow that do not add up to 1.
    """

    name: str
    substeps: tuple[Substep, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "substeps", tuple(self.substeps))
        if not self.substeps:
            raise ValueError(f"Splitting {self.name!r} has no substeps; give at least one Substep(flow, share)")
        for flow in self.flows:
            total = sum(s.share for s in self.substeps if s.flow == flow)
            if abs(total - 1.0) > 1e-9:
                raise ValueError(
                    f"Splitting {self.name!r}: the shares of {flow!r} add up to {total:g}, but each flow must be "
                    f"followed for the whole step (1); rescale its shares"
                )

    @classmethod
    def parse(cls, notation: str, name: str | None = None) -> "Splitting":
        """From its notation, `ffn/2 attention ffn/2`; the notation is its name unless it gets another.

        Raises:
            ValueError: a substep that is not `flow` or `flow/divisor`, or shares that do not add up.
        """
        substeps = []
        for word in notation.split():
            match = _SUBSTEP.fullmatch(word)
            divisor = float(match[2] or 1) if match else 0.0
            if not match or not 1.0 <= divisor <= 1e6:
                raise ValueError(
                    f"splitting={notation!r}: {word!r} is no substep; write a flow, or a flow and its divisor of at "
                    f"least 1 and at most a million, such as {STRANG.notation!r}"
                )
            substeps.append(Substep(_SHORT.get(match[1], match[1]), 1.0 / divisor))
        return cls(name or " ".join(notation.split()), tuple(substeps))

    @property
    def notation(self) -> str:
        """The substeps as `parse` reads them."""
        return " ".join(_word(substep) for substep in self.substeps)

    @property
    def portable(self) -> str:
        """What any process reads back: the name of the two that are always there, the notation of all others."""
        return next((known.name for known in (STRANG, LIE) if known.substeps == self.substeps), self.notation)

    @property
    def flows(self) -> tuple[str, ...]:
        """The flows that take part, each once, in order of first use."""
        return tuple(dict.fromkeys(s.flow for s in self.substeps))

    def count(self, flow: str) -> int:
        """In how many substeps `flow` is followed; each of them has parameters of its own."""
        return sum(s.flow == flow for s in self.substeps)

    @property
    def order(self) -> int:
        """Order of convergence in Δt with exact flows: 2 if Σ_{i<j} a_i b_j = ½ for each pair of flows, else 1.

        a and b are the shares of the two flows in order of use (expand the product of exponentials to Δt²:
        Hairer, Lubich, Wanner, Geometric Numerical Integration, II.5). Higher orders would need negative shares
        (Sheng 1989), which `Substep` excludes.
        """
        pairs = ((a, b) for i, a in enumerate(self.flows) for b in self.flows[i + 1 :])
        return 2 if all(abs(self._precedence(a, b) - _HALF) < 1e-9 for a, b in pairs) else 1

    def _precedence(self, a: str, b: str) -> float:
        return sum(
            s.share * t.share
            for i, s in enumerate(self.substeps)
            for t in self.substeps[i + 1 :]
            if s.flow == a and t.flow == b
        )

    def with_cross_attention(self) -> "Splitting":
        """The decoder's form: each self-attention is followed by cross-attention for the same share.

        Strang then reads FFN½ – self – cross – FFN½; self- and cross-attention do not commute, so its order with
        exact flows is 1, unless both count as one flow of interaction.
        """
        if CROSS_ATTENTION in self.flows:
            return self
        return Splitting(self.name, tuple(_after_each_self_attention(self.substeps)))

    def without(self, flow: str) -> "Splitting":
        """The same with no substep of `flow`: of cross-attention, where there is no memory."""
        return Splitting(self.name, tuple(s for s in self.substeps if s.flow != flow))

    def check_flows(self, known: Iterable[str], needed: Iterable[str] = ()) -> "Splitting":
        """Itself, for a host that has the flows `known`.

        Raises:
            ValueError: a flow that the host does not have, or one lacking that each layer needs.
        """
        for flow in self.flows:
            if flow not in known:
                raise ValueError(
                    f"splitting={self.name!r}: flow {flow!r} is unknown here; choose from "
                    f"{', '.join(_LONG.get(k, k) for k in known)}"
                )
        for flow in needed:
            if flow not in self.flows:
                raise ValueError(
                    f"splitting={self.name!r}: no substep follows {_LONG.get(flow, flow)!r}, which every layer needs; "
                    f"add it"
                )
        return self


def _after_each_self_attention(substeps: Iterable[Substep]) -> Iterable[Substep]:
    for substep in substeps:
        yield substep
        if substep.flow == SELF_ATTENTION:
            yield Substep(CROSS_ATTENTION, substep.share)


_HALF = 0.5  # its only home

LIE = Splitting("lie", (Substep(SELF_ATTENTION, 1.0), Substep(FFN, 1.0)))
STRANG = Splitting("strang", (Substep(FFN, _HALF), Substep(SELF_ATTENTION, 1.0), Substep(FFN, _HALF)))

SPLITTINGS = {s.name: s for s in (STRANG, LIE)}


def _word(substep: Substep) -> str:
    name = _LONG.get(substep.flow, substep.flow)
    divisor = round(1.0 / substep.share, 12)
    return name if divisor == 1.0 else f"{name}/{divisor:.12g}"


def register_splitting(splitting: Splitting) -> Splitting:
    """Let both hosts' `splitting` take `splitting.name`; registering the same again changes nothing.

    Raises:
        ValueError: a name that means another splitting, or that could be read as a notation.
    """
    known = SPLITTINGS.get(splitting.name)
    if known is not None and known != splitting:
        raise ValueError(
            f"splitting={splitting.name!r} is registered as {known.notation!r} already; choose another name"
        )
    if not _NAME.fullmatch(splitting.name) or splitting.name in (FFN, SELF_ATTENTION, CROSS_ATTENTION, *_SHORT):
        raise ValueError(
            f"splitting={splitting.name!r} cannot be a name; use letters, digits and underscores, and no name of a flow"
        )
    SPLITTINGS[splitting.name] = splitting
    return splitting


def get_splitting(splitting: str | Splitting) -> Splitting:
    """The splitting of a registered name or of a notation; a `Splitting` is taken as it is.

    Raises:
        ValueError: an unknown name, or a notation that does not hold together.
    """
    if isinstance(splitting, Splitting):
        return splitting
    if not isinstance(splitting, str):
        raise ValueError(f"splitting={splitting!r} is neither a name nor a notation, such as {STRANG.notation!r}")
    splitting = splitting.strip()
    if splitting in SPLITTINGS:
        return SPLITTINGS[splitting]
    if _NAME.fullmatch(splitting):
        raise ValueError(
            f"splitting={splitting!r} is unknown; choose one of {', '.join(SPLITTINGS)}, or write its flows in order, "
            f"such as {STRANG.notation!r}"
        )
    return Splitting.parse(splitting)
