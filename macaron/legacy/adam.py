"""Adam's state in checkpoints of the original and of fairseq, told apart by the names of the parameters."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

logger = logging.getLogger(__name__)

# Entries of a state dict that are not parameters.
BUFFERS = ("version", "_float_tensor", "embed_positions.weights")


class AdamState(NamedTuple):
    """Adam's moments under the names of the parameters.

    Fields:
        step: number of updates; Adam counts them for each parameter, all alike.
        moments: "exp_avg" and "exp_avg_sq" → name → tensor of the parameter's shape.
        flat: whether the file holds them as one long vector, as fairseq does when it trains in float16.
    """

    step: int
    moments: dict[str, dict[str, Tensor]]
    flat: bool


def parameter_names(model: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters in the original's order: shared matrices count once, under their first name."""
    seen = set()
    names = []
    for name, tensor in model.items():
        storage = tensor.untyped_storage().data_ptr()
        if not name.endswith(BUFFERS) and storage not in seen:
            seen.add(storage)
            names.append(name)
    return names


def read_adam(optimizer: Mapping[str, Any], model: Mapping[str, Tensor]) -> AdamState | None:
    """The state of Adam by names, or None (and a warning) if it does not fit the model.

    Args:
        optimizer: `last_optimizer_state` of a checkpoint, with a non-empty `state`.
        model: its `model`, with shared matrices still sharing their storage, as loaded.
    """
    try:
        return _read(optimizer, model)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        logger.warning(
            "the optimiser state is not that of Adam for the checkpoint's model (%s: %s); it is left out, so training "
            "starts with a fresh optimiser",
            type(error).__name__,
            error,
        )
        return None


def _read(optimizer: Mapping[str, Any], model: Mapping[str, Tensor]) -> AdamState:
    names, keys = parameter_names(model), optimizer["param_groups"][0]["params"]
    entries = [optimizer["state"][key] for key in keys]
    sizes = [model[name].numel() for name in names]
    flat = len(keys) != len(names)
    if flat and (len(entries) != 1 or entries[0]["exp_avg"].numel() != sum(sizes)):
        raise ValueError(f"it covers {len(keys)} parameters, the model has {len(names)}")
    moments = {}
    for m in ("exp_avg", "exp_avg_sq"):
        if flat:
            parts = entries[0][m].split(sizes)
            moments[m] = {n: part.view_as(model[n]) for n, part in zip(names, parts, strict=True)}
        else:
            moments[m] = {n: entry[m] for n, entry in zip(names, entries, strict=True)}
            other = [n for n in names if moments[m][n].shape != model[n].shape]
            if other:
                raise ValueError(f"{m} of {other[0]} has another shape than the parameter")
    return AdamState(max(entry["step"] for entry in entries), moments, flat)
