"""A Macaron BERT's folder with more layers of a smaller step, or fewer of a larger one."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_parameter_names

from macaron.bert.hub import load
from macaron.checkpoint import CheckpointError, describe_load_failure
from macaron.refinement import Change, UnreadableStateError, check_increments, count_layers, refine, refine_adam

_OPTIMIZER = "optimizer.pt"
# What is written anew; all else in a folder, tokenizer and card among it, is copied as it is.
_WEIGHTS = re.compile(
    r"(config\.json|.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?|optimizer\.pt)"
)
# The coarser model in the forms of others.
_OTHER_WEIGHTS = re.compile(r".*\.(onnx|onnx_data|h5|msgpack|ot|gguf|tflite)|optimizer\.bin")
_MODULE = re.compile(r"[0-9]+_[A-Za-z]+")  # folders of sentence-transformers' own parts, 1_Pooling
# What transformers' Trainer spares from weight decay, beside nn.LayerNorm.
_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class RefinedFolder(NamedTuple):
    """The model that was written, the layers and Δt before, and what was left out of the folder."""

    model: PreTrainedModel
    old: int
    dt: float
    left_out: list[str]


def refine_folder(folder: str | Path, layers: int, out: str | Path, *, force: bool = False) -> RefinedFolder:
    """Write a Macaron BERT, whatever its head, with another number of layers; see `macaron.refinement`.

    Tokenizer, card and all else in the folder are copied. `optimizer.pt` goes with the model where it is the state of
    `torch.optim.AdamW(model.parameters())`, or of a Trainer's.

    Args:
        folder: as `save_pretrained` or a Trainer writes it.
        layers: how many to have.
        out: the folder to write; it is complete or not there.
        force: replace `out` if it is a model's folder.

    Raises:
        FileExistsError: something is at `out`.
        ValueError: a number of layers that cannot be reached, post-norm layers, a single one that is repeated, another
            kind of model, or damage.
    """
    folder, out = Path(folder), Path(os.path.realpath(out))
    _check_source(folder)
    _check_free(out, force)
    model = _load(folder)
    config = copy.deepcopy(model.config)
    check_increments(config.normalize_before, "normalize_before")
    if config.horizon != "none":
        raise ValueError(
            f"{folder} has horizon={config.horizon!r}: all its {config.num_hidden_layers} steps are one layer, which "
            f"no change of their number refines; train anew with another num_hidden_layers and dt"
        )
    tensors = model.state_dict()
    prefix = next(re.match(r"(.*\.|)layers\.", name)[0] for name in tensors if re.match(r"(.*\.|)layers\.0\.", name))  # type: ignore[index]
    change = Change(count_layers(tensors, prefix), layers)

    def refined(given: dict[str, Tensor], power: int = 0) -> dict[str, Tensor]:
        return refine(given, prefix, change, rule=config.depth_rule, power=power)

    config.num_hidden_layers, config.dt = layers, change.step(config.dt)
    finer: PreTrainedModel = type(model)(config).to(model.dtype)
    finer.load_state_dict(refined(tensors))
    left_out = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        complete = Path(scratch, "complete")
        finer.eval().save_pretrained(complete)
        for path in folder.iterdir():
            if path.is_dir() and _MODULE.fullmatch(path.name):
                shutil.copytree(path, complete / path.name)
            elif path.is_file() and _OTHER_WEIGHTS.fullmatch(path.name):
                left_out.append(f"{path.name}, which holds the model of before")
            elif path.is_file() and not _WEIGHTS.fullmatch(path.name):
                shutil.copyfile(path, complete / path.name)
        if (folder / _OPTIMIZER).is_file():
            try:
                torch.save(_optimizer(folder / _OPTIMIZER, model, finer, refined), complete / _OPTIMIZER)
            except (UnreadableStateError, CheckpointError) as error:
                left_out.append(f"the optimiser's state ({error})")
        if out.exists():
            os.replace(out, Path(scratch, "replaced"))
        os.replace(complete, out)
    return RefinedFolder(finer, change.old, model.config.dt, left_out)


def _check_free(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise FileExistsError(f"folder {out} is not empty; name another one, or add --force to replace it")
        if not (out / "config.json").is_file():
            raise FileExistsError(f"folder {out} has something in it, and is no model's, which alone --force replaces")


def _check_source(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json, so it is no folder of a Macaron BERT; of fairseq's --save-dir name a "
            f"checkpoint in it"
        )
    if any(folder.glob("modeling_*.py")):
        raise ValueError(
            f"{folder} is an export with its own code, which belongs to its configuration; refine the folder that it "
            f"was made from, or load it with macaron.bert and save_pretrained it, and export the result"
        )


def _load(folder: Path) -> Any:
    try:
        return load(folder, purpose="what is left random or out would be refined with it")
    except (ValueError, OSError):
        raise
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise CheckpointError(
            f"{folder} has no readable model; copy or download it again ({type(error).__name__}: {error})"
        ) from error


def _optimizer(path: Path, model: nn.Module, finer: nn.Module, refined: Any) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UnreadableStateError(describe_load_failure(path, error)) from error
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or len(groups) not in (1, 2):
        raise UnreadableStateError("it is not that of one optimiser of torch")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return refine_adam(state, shapes, _groups(model, len(groups)), _groups(finer, len(groups)), refined)


def _groups(model: nn.Module, number: int) -> list[list[str]]:
    """The parameters as `torch.optim.AdamW(model.parameters())` has them, or in the two groups of a Trainer."""
    names = [name for name, _ in model.named_parameters()]
    if number == 1:
        return [names]
    decayed = set(get_parameter_names(model, [nn.LayerNorm], _NOT_DECAYED))
    return [[name for name in names if name in decayed], [name for name in names if name not in decayed]]
