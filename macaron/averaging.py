"""The mean over checkpoints of one model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macaron.checkpoint import DICTIONARIES, NO_PARAMETERS, architecture, check_model, load, model_option

# What fairseq names its checkpoints: checkpoint<epoch>.pt and checkpoint_<epoch>_<update>.pt.
_NAMES = {"epoch": re.compile(r"checkpoint(\d+)\.pt"), "update": re.compile(r"checkpoint_\d+_(\d+)\.pt")}
# Belongs to the state of one run at one moment; of no use, or wrong, beside averaged parameters.
_NOT_AVERAGED = ("last_optimizer_state", "optimizer")
_EXTRA_NOT_AVERAGED = ("ema", "ema_fp32_params", "train_meters")  # the last: objects of the original's classes


def last_checkpoints(folder: Path, n: int, *, kind: str = "epoch", up_to: int | None = None) -> list[Path]:
    """The last `n` checkpoints of `folder`, oldest first.

    Args:
        folder: what fairseq was given as `--save-dir`.
        n: how many.
        kind: "epoch" for checkpoint<epoch>.pt, "update" for checkpoint_<epoch>_<update>.pt.
        up_to: no epoch (or update) after this one.

    Raises:
        FileNotFoundError: if `folder` is not a folder.
        ValueError: if it holds fewer than `n` such checkpoints.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder that fairseq had as --save-dir")
    matches = ((_NAMES[kind].fullmatch(path.name), path) for path in folder.iterdir())
    found = sorted((int(match[1]), path) for match, path in matches if match)
    found = [entry for entry in found if up_to is None or entry[0] <= up_to]
    if len(found) < n:
        pattern = {"epoch": "checkpoint<epoch>.pt", "update": "checkpoint_<epoch>_<update>.pt"}[kind]
        limit = "" if up_to is None else f" up to {kind} {up_to}"
        raise ValueError(
            f"{folder} holds {len(found)} checkpoints {pattern}{limit}, but --last asks for {n}; ask for "
            f"fewer, or keep more in training (--save-interval, --save-interval-updates, --keep-last-epochs)"
        )
    return [path for _, path in found[-n:]]


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """A checkpoint with the mean of the parameters of several checkpoints of one model.

        θ = (θ_1 + … + θ_n) / n,  summed in float64

    Parameters keep their dtype and tied ones stay tied. Buffers (counters, versions) and everything beside
    the model come from the newest checkpoint, the one with the most updates. The optimiser's state is left
    out.

    Raises:
        FileNotFoundError: if a checkpoint is missing.
        ValueError: if a file is no checkpoint, is named twice or belongs to another model, or if a parameter
            is not finite.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice; every checkpoint counts once, so name it once")
        seen.add(path.resolve())

    newest: dict[str, Any] = {}
    newest_path = Path()
    newest_updates = -1
    totals: dict[str, Tensor] = {}
    for path in paths:
        state = {key: value for key, value in load(path).items() if key not in _NOT_AVERAGED}
        check_model(state, path)
        if newest:
            _check_same_model(newest, newest_path, state, path)
        for name, value in state["model"].items():
            if not value.is_floating_point() or name.endswith(NO_PARAMETERS):
                continue
            if not torch.isfinite(value).all():
                raise ValueError(f"{path}: parameter {name} is not finite, so the run diverged; leave this one out")
            if name in totals:
                totals[name] += value
            else:
                totals[name] = value.to(torch.float64, copy=True)
        if _updates(state) >= newest_updates:
            newest, newest_path, newest_updates = state, path, _updates(state)

    model = {name: value.clone() for name, value in newest["model"].items() if name not in totals}
    tied: dict[tuple[Any, ...], str] = {}  # where a tensor lies in the newest checkpoint -> its first name
    for name, value in newest["model"].items():
        if name not in totals:
            continue
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        first = tied.setdefault(place, name)
        if first != name and torch.equal(totals[first], totals[name]):
            model[name] = model[first]
        else:
            model[name] = (totals[name] / len(paths)).to(value.dtype)

    average = {**newest, "model": {name: model[name] for name in newest["model"]}}
    if isinstance(average.get("extra_state"), dict):
        average["extra_state"] = {
            key: value for key, value in average["extra_state"].items() if key not in _EXTRA_NOT_AVERAGED
        }
    average["averaged_from"] = [str(path) for path in paths]
    return average


# Options of which weights of equal names and shapes may differ in what they compute.
_MEANING = (
    *("splitting", "solver", "depth_rule", "dt", "activation_fn"),
    *("stochastic_depth_form", "stochastic_depth_schedule"),
    *(f"{side}_{name}" for side in ("encoder", "decoder") for name in ("attention_heads", "normalize_before")),
)


def _check_same_model(a: dict[str, Any], a_path: Path, b: dict[str, Any], b_path: Path) -> None:
    remedy = "only checkpoints of one model can be averaged, so take them from one training run"
    if architecture(a) != architecture(b):
        raise ValueError(
            f"{b_path} is of architecture {architecture(b)} but {a_path} is of {architecture(a)}; {remedy}"
        )
    if (x := _dictionaries(a)) and (y := _dictionaries(b)) and x != y:
        raise ValueError(f"{b_path} was trained with other dictionaries than {a_path}; {remedy}")
    forms = {model_option(state, "stochastic_depth_form") for state in (a, b)}
    rate = () if forms <= {None, "scaled"} else ("stochastic_depth",)  # which acts in evaluation too
    for name in (*_MEANING, *rate):
        x, y = (model_option(state, name) for state in (a, b))
        if x is not None and y is not None and str(x) != str(y):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{b_path} was trained with {option} {y} but {a_path} with {x}; {remedy}")
    ours, theirs = a["model"], b["model"]
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            has, lacks = (a_path, b_path) if name in ours else (b_path, a_path)
            raise ValueError(f"parameter {name} is in {has} but not in {lacks}; {remedy}")
        for what in ("shape", "dtype"):
            x, y = getattr(ours[name], what), getattr(theirs[name], what)
            if x != y:
                x, y = (tuple(x), tuple(y)) if what == "shape" else (x, y)
                raise ValueError(f"parameter {name} has {what} {y} in {b_path} but {x} in {a_path}; {remedy}")


def _dictionaries(state: dict[str, Any]) -> Any:
    task_state = state.get("task_state")
    return task_state.get(DICTIONARIES) if isinstance(task_state, dict) else None


def _updates(state: dict[str, Any]) -> int:
    history = state.get("optimizer_history")
    newest = history[-1] if isinstance(history, list) and history else None
    updates = newest.get("num_updates") if isinstance(newest, dict) else None
    return updates if isinstance(updates, int) else 0
