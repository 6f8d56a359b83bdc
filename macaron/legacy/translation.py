"""Translation checkpoints of the original Macaron Net (Lu et al. 2019), converted to this project's layout."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from macaron.legacy.checkpoint import CheckpointError
from macaron.legacy.names import in_order, is_foreign, to_particle_names

logger = logging.getLogger(__name__)

# Entries of a state dict that are not parameters.
_BUFFERS = ("version", "_float_tensor", "embed_positions.weights")


def convert(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of the original as one of ours: names, options, and the state of Adam.

    `args.macaron` becomes `args.splitting`, and the first FFN of its decoder, which takes the encoder's width,
    gets that width by name.

    Args:
        state: the loaded file: `args`, `model`, `last_optimizer_state`, …

    Raises:
        CheckpointError: not a translation model of the original.
    """
    model: Mapping[str, Tensor] = state["model"]
    if not is_foreign(model) or not any(name.startswith("decoder.layers.") for name in model):
        layers = sorted({name.split(".")[0] for name in model})
        raise CheckpointError(
            f"not a translation checkpoint of the original implementation: its model has the parts "
            f"{', '.join(layers)}, with {'the' if is_foreign(model) else 'no'} layer names of the original; a "
            f"checkpoint of this project needs no conversion"
        )
    converted = dict(state)
    converted["model"] = to_particle_names(keep_final_norm(model))
    args = state.get("args")
    if isinstance(args, Namespace):
        args = Namespace(**vars(args))
        args.splitting = "strang" if any("macaron_fc1" in name for name in model) else "lie"
        args.decoder_first_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", None)
        args.activation_dropout = getattr(args, "relu_dropout", 0.0)  # under its later name
        converted["args"] = args
    if "train_meters" in state.get("extra_state", {}):
        # objects of classes that no longer exist; fairseq starts its meters anew without them
        converted["extra_state"] = {k: v for k, v in state["extra_state"].items() if k != "train_meters"}
    optimizer = state.get("last_optimizer_state")
    if optimizer and optimizer.get("state"):
        converted["last_optimizer_state"] = _convert_adam(optimizer, model)
    return converted


def keep_final_norm(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, marked so that fairseq keeps the norm after the decoder's last layer where there is one.

    The original's decoder of version 2 has it; fairseq takes version 3 for that and would drop it.
    """
    model = dict(model)
    version = model.get("decoder.version")
    if version is not None and version.item() == 2 and "decoder.layer_norm.weight" in model:
        model["decoder.version"] = torch.full_like(version, 3)
    return model


def _parameter_names(model: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters in the original's order: shared matrices count once, under their first name."""
    seen = set()
    names = []
    for name, tensor in model.items():
        storage = tensor.untyped_storage().data_ptr()
        if not name.endswith(_BUFFERS) and storage not in seen:
            seen.add(storage)
            names.append(name)
    return names


def _convert_adam(optimizer: Mapping[str, Any], model: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Adam's moments in the order of our parameters, or None (and a warning) if they cannot be told apart."""
    group = optimizer["param_groups"][0]
    names, keys = _parameter_names(model), group["params"]
    if len(keys) == len(names):
        entries = [optimizer["state"][key] for key in keys]
        per_name = {m: {name: e[m] for name, e in zip(names, entries, strict=True)} for m in ("exp_avg", "exp_avg_sq")}
    else:
        # trained in float16, fairseq keeps all parameters as one long vector
        entries = [optimizer["state"][key] for key in keys]
        sizes = [model[name].numel() for name in names]
        if len(entries) != 1 or entries[0]["exp_avg"].numel() != sum(sizes):
            logger.warning(
                "the optimiser state covers %d parameters, but the checkpoint's model has %d; it is left out, so "
                "training starts with a fresh optimiser",
                len(keys),
                len(names),
            )
            return None
        per_name = {
            m: {n: part.view_as(model[n]) for n, part in zip(names, entries[0][m].split(sizes), strict=True)}
            for m in ("exp_avg", "exp_avg_sq")
        }
    moments = {m: to_particle_names(tensors) for m, tensors in per_name.items()}
    order = in_order(moments["exp_avg"])
    # Adam counts updates for each parameter, all alike
    step = max(entry["step"] for entry in entries)
    if len(keys) == len(names):
        state = {i: {"step": step, **{m: moments[m][name] for m in moments}} for i, name in enumerate(order)}
    else:
        state = {0: {"step": step, **{m: torch.cat([moments[m][n].flatten() for n in order]) for m in moments}}}
    return {**optimizer, "state": state, "param_groups": [{**group, "params": list(state)}]}
