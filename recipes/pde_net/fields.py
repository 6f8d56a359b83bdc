"""Fields of one's own: an npz file with time, components, grid and fields, checked before anything is learned.

fields      (T, C, H, W) or (samples, T, C, H, W), numbers; axis H is y, axis W is x, both periodic
time        (T,) uniform
components  (C,) names of letters, such as u and v
x, y        (W,) and (H,) uniform, of one and the same distance; the period's end is not repeated
"""

from __future__ import annotations

import dataclasses
import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.errors import RecipeError
from .settings import PDESettings
from .systems import generator

KEYS = ("time", "components", "x", "y", "fields")
LARGEST = 8 * 2**30  # bytes that are unpacked
UNEVEN = 1e-4  # largest deviation from a uniform grid, in its distances: single precision's rounding passes
EXTREME = 1e100  # and its inverse: squares and quotients of such numbers leave float64
RESERVED = ("t", "x", "y")


@dataclass(frozen=True)
class Fields:
    """
    Args:
        values: (samples, T, C, H, W), float64.
    """

    path: Path
    values: Tensor
    components: tuple[str, ...]
    dx: float
    dt: float


def read(path: Path, components: Sequence[str] | None = None) -> Fields:
    """
    Args:
        components: those that the equations are of, in this order; None: all of the file.

    Raises:
        RecipeError: with what is wrong about the file, and the remedy.
    """
    arrays = unpacked(path)
    dt = distance(path, "time", arrays["time"])
    dx, dy = distance(path, "x", arrays["x"]), distance(path, "y", arrays["y"])
    if abs(dx - dy) > UNEVEN * dx:
        raise RecipeError(
            f"{path}: x has the distance {dx:g} and y {dy:g}, but the filters need one and the same; interpolate"
        )
    names = names_of(path, arrays["components"])
    values = arrays["fields"]
    if values.ndim == 4:
        values = values[None]
    if values.dtype.kind not in "fiu":
        raise RecipeError(f"{path}: 'fields' holds {values.dtype}, but real numbers are needed")
    sizes = (len(arrays["time"]), len(names), len(arrays["y"]), len(arrays["x"]))
    if values.ndim != 5 or values.shape[1:] != sizes or not len(values):
        raise RecipeError(
            f"{path}: 'fields' has the shape {arrays['fields'].shape}, but time, components, y and x make it {sizes}, "
            f"or (samples, …) of these; put the axes into that order"
        )
    with np.errstate(over="ignore"):  # of wider floats; said below
        values = values.astype(np.float64)
    if not np.isfinite(values).all():
        sample, time, component, row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        count = int((~np.isfinite(values)).sum())
        raise RecipeError(
            f"{path}: 'fields' holds {count} values that are NaN or infinite, the first in sample {sample}, time "
            f"{time}, component {names[component]}, y {row}, x {column}; fill the gaps, or cut them off"
        )
    if components:
        unknown = [name for name in components if name not in names]
        if unknown:
            raise RecipeError(
                f"--components {' '.join(components)}: {', '.join(unknown)} not in {path}, which has {', '.join(names)}"
            )
        if len(set(components)) < len(components):
            raise RecipeError(f"--components {' '.join(components)}: name each once")
        values = values[:, :, [names.index(name) for name in components]]
        names = tuple(components)
    for index, name in enumerate(names):
        if not np.ptp(values[:, :, index]):
            raise RecipeError(f"{path}: component {name} has one and the same value everywhere; leave it out")
        largest = np.abs(values[:, :, index]).max()
        if not 1 / EXTREME <= largest <= EXTREME:
            raise RecipeError(
                f"{path}: component {name} has magnitudes up to {largest:g}, which squares take out of float64; choose "
                f"another unit"
            )
    for name, axis in (("y", 3), ("x", 4)):
        first, last, next_to_it = (values.take(i, axis) for i in (0, -1, 1))
        least = 1e-12 * np.abs(values).max()
        if np.ptp(values, axis=axis).max() <= least:
            raise RecipeError(
                f"{path}: 'fields' do not vary along {name}, but equations in two dimensions are learned; give fields "
                f"that do"
            )
        # At the rim of a pulse all points are equal, and the period is not closed.
        if np.abs(first - last).max() <= least < 1e-3 * np.abs(first - next_to_it).max():
            raise RecipeError(
                f"{path}: along {name} the last points of 'fields' repeat the first, so the period's end is there "
                f"twice; leave the last out, of 'fields' and '{name}'"
            )
    return Fields(path, torch.from_numpy(np.ascontiguousarray(values)), names, dx, dt)


# What zipfile, its decompressors and numpy raise of files that are cut off, damaged, encrypted or made up.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, KeyError, OSError, RuntimeError,
           MemoryError, tokenize.TokenError)  # fmt: skip


def unpacked(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, no larger than `LARGEST` and without any Python object."""
    if not path.is_file():
        raise RecipeError(f"--data {path}: no such file; give an npz file")
    try:
        with zipfile.ZipFile(path) as file:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in file.infolist()}
        missing = [key for key in KEYS if key not in sizes]
        if missing:
            raise RecipeError(
                f"--data {path}: lacks {', '.join(missing)}; it must hold {', '.join(KEYS)}, and has "
                f"{', '.join(sizes) or 'nothing'}"
            )
        if (total := sum(sizes[key] for key in KEYS)) > LARGEST:
            raise RecipeError(f"--data {path}: unpacks to {total:,} bytes, more than {LARGEST:,}; give a part of it")
        with np.load(path, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in KEYS}
    except PermissionError:
        raise
    except tuple(DAMAGED) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"--data {path}: cannot be read as npz of plain arrays ({reason}); write it with numpy.savez, names as "
            f"strings, not objects"
        ) from error


def distance(path: Path, name: str, points: np.ndarray) -> float:
    """Of a uniform, rising axis."""
    if points.ndim != 1 or points.dtype.kind not in "fiu" or len(points) < 2:
        raise RecipeError(f"{path}: '{name}' must be two or more real numbers in one axis, not {points.dtype} of shape "
                          f"{points.shape}")  # fmt: skip
    # Far from 0 the points themselves have no more digits than this.
    rounding = np.finfo(points.dtype if points.dtype.kind == "f" else np.float64).eps * float(np.abs(points).max())
    points = points.astype(np.float64)
    if not np.isfinite(points).all():
        raise RecipeError(f"{path}: '{name}' holds NaN or infinity; every point needs its place")
    step = float(points[-1] - points[0]) / (len(points) - 1)
    if not step > 0:
        raise RecipeError(f"{path}: '{name}' does not rise; turn it round, and 'fields' with it")
    if not 1 / EXTREME <= step <= EXTREME:
        raise RecipeError(
            f"{path}: '{name}' goes on by {step:g}, which powers take out of float64; choose another unit"
        )
    if rounding > 10 * UNEVEN * step * (len(points) - 1):
        raise RecipeError(
            f"{path}: '{name}' goes on by {step:g}, but reaches {np.abs(points).max():g}, where its numbers are "
            f"{rounding:.1g} apart; begin at 0, or save more digits"
        )
    off = np.abs(np.diff(points) - step)
    if off.max() > UNEVEN * step + 2 * rounding:
        place = int(off.argmax())
        raise RecipeError(
            f"{path}: '{name}' is not uniform: from point {place} to {place + 1} it goes on by "
            f"{points[place + 1] - points[place]:g}, on average by {step:g}; interpolate to a uniform grid"
        )
    return step


def names_of(path: Path, found: np.ndarray) -> tuple[str, ...]:
    if found.ndim != 1 or found.dtype.kind != "U" or not len(found):
        raise RecipeError(
            f"{path}: 'components' must be a list of names as strings, such as numpy.array(['u', 'v']), not "
            f"{found.dtype} of shape {found.shape}"
        )
    names = tuple(map(str, found))
    for name in names:
        if not re.fullmatch(r"[A-Za-z]{1,20}", name) or name in RESERVED or names.count(name) > 1:
            raise RecipeError(
                f"{path}: 'components' has {name!r}; names are up to 20 letters, A to Z, each once, and not "
                f"{', '.join(RESERVED)}"
            )
    return names


def stored(path: Path) -> Tensor:
    """(samples, T, C, H, W), float64, of a file that the recipe wrote itself: any finite numbers."""
    return torch.from_numpy(unpacked(path)["fields"])


@dataclass(frozen=True)
class FieldSplit:
    """What is learned from, and what the roll-outs are held against: (samples, T, C, H, W) each."""

    training: Tensor
    test: Tensor
    rule: str


def split(fields: Fields, settings: PDESettings) -> FieldSplit:
    """The last samples are held out; of a single sample the last times.

    Raises:
        RecipeError: what remains is too short or too little for the blocks.
    """
    assert settings.held_out is not None
    samples, times = fields.values.shape[:2]
    if samples > 1:
        kept = samples - min(samples - 1, max(1, round(samples * settings.held_out)))
        parts = FieldSplit(
            fields.values[:kept], fields.values[kept:], f"the last {samples - kept} of {samples} samples"
        )
    else:
        kept = times - max(2, round(times * settings.held_out))
        parts = FieldSplit(
            fields.values[:, :kept], fields.values[:, kept:], f"the last {times - kept} of {times} times"
        )
    for index, name in enumerate(fields.components):
        if not parts.training[:, :, index].std() > 0:
            raise RecipeError(
                f"{fields.path}: component {name} has one and the same value in what is learned from ({parts.rule} are "
                f"held out); put other samples first, or leave it out with --components"
            )
    if parts.training.shape[1] > 1 and not parts.training.diff(dim=1).any():
        raise RecipeError(
            f"{fields.path}: 'fields' do not change over time in what is learned from ({parts.rule} are held out), so "
            f"that no equation tells; give fields that do"
        )
    if not parts.test.square().sum((2, 3, 4)).gt(0).all():
        raise RecipeError(
            f"{fields.path}: all components are 0 at a time of what is held out ({parts.rule}), so that a roll-out has "
            f"no relative error; leave such samples or times out"
        )
    left, needed = max(0, parts.training.shape[1]), max(max(settings.blocks), 1) + 1
    if left < needed or parts.test.shape[1] < 2:
        raise RecipeError(
            f"{fields.path}: {left} times are left to learn from ({parts.rule} are held out), but a block of "
            f"{needed - 1} steps takes {needed}; give more times, or fewer steps with --blocks"
        )
    windows = len(parts.training) * (left - needed + 1)
    if windows < settings.samples:
        raise RecipeError(
            f"{fields.path}: holds {windows} stretches of {needed - 1} steps to learn from ({parts.rule} held out), "
            f"but --samples is {settings.samples}; give more samples or times, or --samples {windows} or fewer"
        )
    return parts


def windows(training: Tensor, settings: PDESettings, seed: int, block: int) -> Tensor:
    """Data of a block, drawn anew for each: (steps + 1, samples, C, H, W), with settings.noise on every time."""
    steps, random = max(block, 1), generator(seed, block)
    starts = training.shape[1] - steps
    chosen = torch.randperm(len(training) * starts, generator=random)[: settings.samples]
    u = torch.stack([training[i // starts, i % starts : i % starts + steps + 1] for i in chosen.tolist()], 1)
    scale = settings.noise * u[0].std((-2, -1), correction=0, keepdim=True)
    return u + scale * torch.randn(u.shape, generator=random, dtype=u.dtype)


def with_names(settings: PDESettings, fields: Fields, digest: str) -> PDESettings:
    return dataclasses.replace(settings, components=fields.components, data=digest)
