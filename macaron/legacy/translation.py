"""Translation checkpoints of the original Macaron Net (Lu et al. 2019), converted to this project's layout."""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from macaron.checkpoint import CheckpointError, architecture, check_finite
from macaron.legacy.adam import read_adam
from macaron.legacy.kinds import TRANSLATION, is_translation
from macaron.names import in_order, is_foreign, to_particle_names


def convert(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of the original as one of ours: names, options, and the state of Adam.

    `args.macaron` becomes `args.splitting`, and the first FFN of its decoder, which takes the encoder's width,
    gets that width by name.

    Args:
        state: the loaded file: `args`, `model`, `last_optimizer_state`, …

    Raises:
        CheckpointError: not a translation model of the original, or not a whole one.
    """
    model: Mapping[str, Tensor] = state["model"]
    if not is_translation(model):
        layers = sorted({name.split(".")[0] for name in model})
        raise CheckpointError(
            f"not a translation checkpoint of the original implementation: its model has the parts "
            f"{', '.join(layers)}, with {'the' if is_foreign(model) else 'no'} layer names of the original; a "
            f"checkpoint of this project needs no conversion, and a BERT or classifier of the original becomes a "
            f"folder of Hugging Face (`macaron convert` with --dict)"
        )
    arch = architecture(state)
    if arch not in (*TRANSLATION, "unknown"):
        raise CheckpointError(
            f"its architecture {arch} is fairseq's own and not of the original implementation; fairseq loads it as it "
            f"is, and --finetune-from-model takes its weights into a model with --splitting lie"
        )
    _check_whole(model, state.get("args"))
    converted = dict(state)
    converted["model"] = to_particle_names(keep_final_norm(model))
    args = state.get("args")
    if isinstance(args, Namespace):
        args = Namespace(**vars(args))
        args.splitting = "strang" if any("macaron_fc1" in name for name in model) else "lie"
        args.decoder_first_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", None)
        args.activation_dropout = getattr(args, "relu_dropout", None) or getattr(args, "activation_dropout", 0.0)
        converted["args"] = args
    extra = state.get("extra_state")
    if isinstance(extra, Mapping):
        # objects of classes that no longer exist; fairseq starts its meters anew without them
        converted["extra_state"] = {k: v for k, v in extra.items() if k != "train_meters"}
    optimizer = state.get("last_optimizer_state")
    if optimizer and (not isinstance(optimizer, Mapping) or optimizer.get("state")):
        converted["last_optimizer_state"] = _convert_adam(optimizer, model)
    return converted


def _check_whole(model: Mapping[str, Tensor], args: Any) -> None:
    """Layers of one side are alike, and as many as the options say: one that is lost would make another model."""
    check_finite(model)
    for side in ("encoder", "decoder"):
        layers: dict[int, dict[str, torch.Size]] = {}
        for name, tensor in model.items():
            if match := re.fullmatch(rf"{side}\.layers\.(\d+)\.(.+)", name):
                layers.setdefault(int(match[1]), {})[match[2]] = tensor.shape
        told = getattr(args, f"{side}_layers", None)
        number = told if isinstance(told, int) else max(layers, default=-1) + 1
        if not layers or sorted(layers) != list(range(number)):
            raise CheckpointError(
                f"its {side} has the layers {', '.join(map(str, sorted(layers))) or 'none'}, and should have those "
                f"from 0 to {max(number, 1) - 1}; the checkpoint is incomplete"
            )
        for n, parts in layers.items():
            if other := sorted(parts.items() ^ layers[0].items()):
                name = other[0][0]
                raise CheckpointError(
                    f"its {side}.layers.{n} and {side}.layers.0 are not alike: {name} is "
                    f"{_shape(parts, name)} in the one and {_shape(layers[0], name)} in the other; the checkpoint is "
                    f"damaged"
                )
        width = layers[0]["self_attn.out_proj.bias"].numel() if "self_attn.out_proj.bias" in layers[0] else None
        table = model.get(f"{side}.embed_tokens.weight")
        if (
            table is None
            or table.dim() != 2
            or not (width in table.shape[1:] or f"{side}.project_in_dim.weight" in model)
        ):
            found = "missing" if table is None else f"of shape {tuple(table.shape)}"
            raise CheckpointError(
                f"parameter {side}.embed_tokens.weight is {found}, and should have {width} columns; the checkpoint is "
                f"damaged"
            )
        version = model.get(f"{side}.version")
        normed = getattr(args, f"{side}_normalize_before", False) and version is not None and version.max() >= 2
        for kind in ("weight", "bias"):
            norm = model.get(name := f"{side}.layer_norm.{kind}")
            if normed and (norm is None or norm.numel() != width):
                found = "missing" if norm is None else f"of {norm.numel()} numbers"
                raise CheckpointError(
                    f"parameter {name} is {found}, and a pre-norm {side} of width {width} ends with this norm; the "
                    f"checkpoint is damaged"
                )
    if getattr(args, "macaron", None) and not any("macaron_fc1" in name for name in model):
        raise CheckpointError(
            f"parameters macaron_fc1 are missing, though the option macaron is {args.macaron!r}; the checkpoint is "
            f"incomplete"
        )


def _shape(parts: Mapping[str, torch.Size], name: str) -> object:
    return tuple(parts[name]) if name in parts else "missing"


def keep_final_norm(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, marked so that fairseq keeps the norm after the decoder's last layer where there is one.

    The original's decoder of version 2 has it; fairseq takes version 3 for that and would drop it.
    """
    model = dict(model)
    version = model.get("decoder.version")
    if version is not None and version.tolist() in (2, [2]) and "decoder.layer_norm.weight" in model:
        model["decoder.version"] = torch.full_like(version, 3)
    return model


def _convert_adam(optimizer: Mapping[str, Any], model: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Adam's moments in the order of our parameters, or None (and a warning) if they cannot be told apart."""
    read = read_adam(optimizer, model)
    if read is None:
        return None
    moments = {m: to_particle_names(tensors) for m, tensors in read.moments.items()}
    order = in_order(moments["exp_avg"])
    if read.flat:
        state = {0: {"step": read.step, **{m: torch.cat([moments[m][n].flatten() for n in order]) for m in moments}}}
    else:
        state = {i: {"step": read.step, **{m: moments[m][name] for m in moments}} for i, name in enumerate(order)}
    return {**optimizer, "state": state, "param_groups": [{**optimizer["param_groups"][0], "params": list(state)}]}
