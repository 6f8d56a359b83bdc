"""The networks of a run, and the files they are kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from macaron import checkpoint
from macaron.vision import DnCNN, PolicyUnit, RestorationUnit

from ..common.errors import RecipeError
from .settings import RestorationSettings

NAMES = ("durr", "dncnn", "dncnn_free")
TITLES = {"durr": "DURR", "dncnn": "DnCNN", "dncnn_free": "DnCNN without biases"}
LARGEST = 1024  # width or depth of a network in a file: more is no model of this recipe


class Durr(nn.Module):
    """A restoration unit, and the policy that stops it or a number of steps.

    Args:
        most: steps there may be.
        steps: those of every image, where no policy has been learned.
    """

    def __init__(self, width: int, policy_width: int, most: int, steps: int) -> None:
        super().__init__()
        self.unit = RestorationUnit(1, width)
        self.policy = PolicyUnit(1, policy_width) if policy_width else None
        self.most, self.steps = most, steps


Model = Durr | DnCNN


def new(name: str, settings: RestorationSettings, seed: int) -> nn.Module:
    """As it starts: the unit alone, or a baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "durr":
            return RestorationUnit(1, settings.width)
        if name == "policy":
            return PolicyUnit(1, settings.policy_width)
        return DnCNN(settings.dncnn_depth, settings.baseline_width, 1, bias=name == "dncnn")


def save(path: Path, kind: dict[str, Any], model: nn.Module) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    checkpoint.save({"model": state, "macaron_denoise": kind}, path)


def load(path: Path) -> tuple[Model, dict[str, Any]]:
    """A model and what is said of it: kind, task and levels.

    Args:
        path: a file that `save` wrote, or the folder of a run, whose first seed's DURR is taken.

    Raises:
        RecipeError: none of these, or a damaged file.
    """
    if path.is_dir():
        found = sorted(path.glob("seed-*/model.pt"), key=lambda model: (len(model.parent.name), model.parent.name))
        if not found and not (path / "model.pt").is_file():
            raise RecipeError(f"{path}: holds no model.pt; give the folder of a run that has ended, or its model.pt")
        path = found[0] if found else path / "model.pt"
    try:
        state = checkpoint.load(path)
        checkpoint.check_finite(state["model"])
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give a model.pt that this recipe made") from error
    except (ValueError, AttributeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    kind = state.get("macaron_denoise")
    try:
        model = _build(kind)
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{path}: is no model of recipes.denoise, or was changed ({' '.join(str(error).split())[:300]}); give a "
            f"model.pt that this recipe made"
        ) from error
    return model.eval(), dict(kind or {})


def _build(kind: Any) -> Model:
    if not isinstance(kind, dict) or kind.get("kind") not in ("durr", "dncnn"):
        raise ValueError("it has no entry 'macaron_denoise' that says its kind")
    names = ("width", "policy_width", "most", "steps") if kind["kind"] == "durr" else ("depth", "width")
    for name in names:
        value = kind[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise ValueError(f"{name} is {value!r}, and should be a whole number up to {LARGEST}")
    if kind["kind"] == "durr":
        if not 1 <= kind["steps"] <= kind["most"]:
            raise ValueError(f"steps is {kind['steps']}, and should lie between 1 and most, {kind['most']}")
        return Durr(kind["width"], kind["policy_width"], kind["most"], kind["steps"])
    if not isinstance(kind["bias"], bool):
        raise ValueError(f"bias is {kind['bias']!r}, and should be true or false")
    return DnCNN(kind["depth"], kind["width"], 1, bias=kind["bias"])


def prepared(model: nn.Module, device: torch.device) -> nn.Module:
    """On the device, in the layout that its convolutions are fastest in."""
    moved: nn.Module = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def batch_of(images: Any, device: torch.device) -> Tensor:
    """(B, H, W) in 0 … 255 → (B, 1, H, W) in 0 … 1."""
    return torch.as_tensor(images, dtype=torch.float32)[:, None].to(device) / 255
