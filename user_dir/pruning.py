"""Pruning on loading: `--encoder-layers-to-keep 0,2` takes two layers of a checkpoint and numbers them anew."""

import logging
import re
from typing import Any

from torch import Tensor

SIDES = ("encoder", "decoder")


def kept_layers(args: Any, side: str) -> list[int]:
    """The numbers of the layers to keep, in order; empty without pruning.

    Raises:
        ValueError: no list of different layer numbers.
    """
    given = getattr(args, f"{side}_layers_to_keep", None)
    if given in (None, ""):
        return []
    words = [word.strip() for word in str(given).split(",")]
    numbers = sorted({int(word) for word in words if word.isascii() and word.isdigit()})
    if len(numbers) != len(words):
        raise ValueError(
            f"--{side}-layers-to-keep {given!r} is no list of layers; give different numbers from 0 on, joined by "
            f"commas, such as 0,2"
        )
    return numbers


def prune(state_dict: dict[str, Tensor], args: Any) -> dict[str, Tensor]:
    """The layers that `args` keeps, numbered from 0; a side that has as few already stays as it is.

    fairseq's own pruning drops the other side when one is pruned, and prunes a second time when training goes on.

    Raises:
        ValueError: a layer that is to be kept is not there.
    """
    for side in SIDES:
        kept = kept_layers(args, side)
        layer_of = {
            name: int(match[1]) for name in state_dict if (match := re.match(rf"{side}\.layers\.(\d+)\.", name))
        }
        numbers = set(layer_of.values())
        if not kept or not numbers:
            continue
        option = f"--{side}-layers-to-keep {','.join(map(str, kept))}"
        if len(numbers) == len(kept):
            logging.getLogger(__name__).info("%s: the checkpoint has %d layers already", option, len(kept))
            continue
        if not numbers.issuperset(kept):
            raise ValueError(f"{option}: the checkpoint has the layers {', '.join(map(str, sorted(numbers)))} only")
        prefix = f"{side}.layers."
        pruned = {}
        for name, tensor in state_dict.items():
            if name == f"{prefix}rule.bias" and tensor.shape == (len(numbers) - 1,):  # k, of all layers but the first
                pruned[name] = tensor[[n - 1 for n in kept[1:]]]
            elif match := re.match(rf"{prefix}rule\.gates\.(\d+)\.(.*)", name):
                if int(match[1]) in kept:
                    pruned[f"{prefix}rule.gates.{kept.index(int(match[1]))}.{match[2]}"] = tensor
            elif name not in layer_of:
                pruned[name] = tensor
            elif layer_of[name] in kept:
                rest = name[len(prefix) + len(str(layer_of[name])) :]
                pruned[f"{prefix}{kept.index(layer_of[name])}{rest}"] = tensor
        state_dict = pruned
    return state_dict
