"""The figures of one sentence, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from macaron import analysis

from ..common.errors import RecipeError
from .models import View

Array = np.ndarray
# Of each state or substep, in the order of the tables. The last are those of the logit lens.
QUANTITIES = (
    *("length", "speed", "angle", "ratio", "splitting_error", "commutator", "commutator_relative"),
    *("lens_probability", "lens_final", "lens_entropy", "lens_agrees"),
)


class Sighted(NamedTuple):
    """One sentence in one row of layers: N particles, K substeps, L layers.

    Fields:
        line: its number in the file, from 1.
        text: as it stands there.
        side: encoder or decoder.
        tokens, ids: (N,).
        substeps: (K,) layer (from 1), flow and step of each.
        values: of each quantity (K + 1, N), by the state that it led to or ends at; NaN where there is none.
        words: (K + 1, N) what the output layer reads, or None.
        planes: the points (K + 1, N, 2) and the share of the variance along both axes, of the states and of their
            directions x / ‖x‖.
    """

    line: int
    text: str
    side: str
    tokens: list[str]
    ids: list[int]
    substeps: list[tuple[int, str, float]]
    values: dict[str, Array]
    words: list[list[str]] | None
    planes: dict[str, tuple[Array, Array]]


def measure(view: View, line: int, text: str) -> Sighted:
    """All quantities of one sentence.

    The local error and the commutator of post-norm layers do not exist, see `macaron.analysis.splitting_errors`.
    """
    trajectory = view.trajectory
    layers = trajectory.layers
    substeps = [(n, move.flow, move.step) for n, layer in enumerate(layers, 1) for move in layer.moves]
    ends = [k for k, (n, *_) in enumerate(substeps, 1) if k == len(substeps) or substeps[k][0] != n]
    states = trajectory.states
    if not states.isfinite().all():
        raise RecipeError("makes states that are no finite numbers; the training of this model diverged, give another")
    values = {name: np.full(states.shape[:2], np.nan) for name in QUANTITIES}
    values["length"][:] = array(analysis.lengths(trajectory))
    values["speed"][1:] = array(analysis.speeds(trajectory))
    values["angle"][2:] = array(analysis.cosines(trajectory).double().arccos().rad2deg())
    values["ratio"][ends] = array(analysis.ratios(trajectory))
    if all(getattr(layer.layer, "normalize_before", False) for layer in layers):
        values["splitting_error"][ends] = array(analysis.splitting_errors(trajectory))
        values["commutator"][ends] = array(analysis.commutators(trajectory))
        begins = [0, *ends[:-1]]
        values["commutator_relative"][ends] = values["commutator"][ends] / values["length"][begins]
    words = None
    if view.readout is not None:
        lens = analysis.logit_lens(trajectory, view.readout)
        values["lens_probability"][:] = array(lens.probabilities)
        values["lens_final"][:] = array(lens.last)
        values["lens_entropy"][:] = array(lens.entropy)
        values["lens_agrees"][:] = array(lens.words == lens.words[-1])
        words = [[view.word(number) for number in row] for row in lens.words.tolist()]
    directions = states / analysis.lengths(trajectory).clamp(min=1e-30).unsqueeze(-1)
    planes = {}
    for name, points in (("states", states), ("directions", directions)):
        plane = analysis.principal_plane(points)
        planes[name] = array(plane.points), array(plane.explained)
    return Sighted(line, text, view.side, view.tokens, view.ids, substeps, values, words, planes)


def array(x: Tensor) -> Array:
    found: Array = x.detach().to("cpu", torch.float64).numpy()
    return found


class Mean(NamedTuple):
    """Over all particles of a side.

    Fields:
        particles: how many.
        substeps: as `Sighted`'s.
        mean, low, high: of each quantity (K + 1,): the mean and the quartiles of what there is, else NaN.
    """

    particles: int
    substeps: list[tuple[int, str, float]]
    mean: dict[str, Array]
    low: dict[str, Array]
    high: dict[str, Array]


def means(sighted: list[Sighted]) -> dict[str, Mean]:
    """By side. Every particle counts once, so long sentences count more."""
    result = {}
    for side in dict.fromkeys(s.side for s in sighted):
        chosen = [s for s in sighted if s.side == side]
        joined = {name: np.concatenate([s.values[name] for s in chosen], axis=1) for name in QUANTITIES}
        result[side] = Mean(
            joined["length"].shape[1],
            chosen[0].substeps,
            *({name: of_rows(values, how) for name, values in joined.items()} for how in (None, 25, 75)),
        )
    return result


def of_rows(values: Array, percentile: int | None) -> Array:
    """(K + 1,): the mean or a percentile of each row's numbers that are no NaN; NaN where there are none."""
    rows = [row[~np.isnan(row)] for row in values]
    chosen = [np.nan if not len(r) else r.mean() if percentile is None else np.percentile(r, percentile) for r in rows]
    return np.array(chosen, dtype=float)
