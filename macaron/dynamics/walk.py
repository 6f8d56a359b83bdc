"""A splitting walked over its fields: one step of the integrator, seen after each of its substeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from macaron.dynamics.solvers import EULER, Field, Tableau, Weighing, follow
from macaron.dynamics.splitting import Splitting, Substep


def walk(
    splitting: Splitting,
    fields: Mapping[str, Field] | Sequence[Field],
    x: Tensor,
    *,
    dt: float = 1.0,
    solver: Tableau = EULER,
    weighings: Sequence[Weighing] | None = None,
) -> Iterator[tuple[Substep, Tensor]]:
    """Take one step Δt of a splitting, substep by substep.

        x ← Φ_f(x; c · Δt)        for each substep of flow f and share c, Φ_f the solver's step along the field of f

    Args:
        splitting: the scheme.
        fields: the velocity field of each flow by its name, or one field for each substep, in order.
        x: any shape that the fields take.
        dt: Δt.
        solver: of every substep.
        weighings: for each substep the learned weights of its stages, see `follow`.

    Yields:
        Each substep with the state after it. The last state is the result.

    Raises:
        ValueError: fields that do not match the splitting.
    """
    learned: Sequence[Weighing | None] = weighings or [None] * len(splitting.substeps)
    for substep, field, weighing in zip(splitting.substeps, _one_each(splitting, fields), learned, strict=True):
        x = follow(field, x, substep.share * dt, solver, weighing)
        yield substep, x


def _one_each(splitting: Splitting, fields: Mapping[str, Field] | Sequence[Field]) -> Sequence[Field]:
    if not isinstance(fields, Mapping):
        if len(fields) != len(splitting.substeps):
            raise ValueError(
                f"walk: {len(fields)} fields were given for the {len(splitting.substeps)} substeps of splitting "
                f"{splitting.name!r} ({splitting.notation}); give one each, in this order, or one a flow by name"
            )
        return fields
    missing = [flow for flow in splitting.flows if flow not in fields]
    if missing:
        raise ValueError(
            f"walk: splitting {splitting.name!r} follows {', '.join(missing)}, but the fields given are "
            f"{', '.join(fields) or 'none'}; give a field for each flow"
        )
    return [fields[substep.flow] for substep in splitting.substeps]
