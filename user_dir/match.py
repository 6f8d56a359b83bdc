"""Whether a checkpoint belongs to the model that takes its weights, where names and shapes do not show it."""

import hashlib
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from fairseq.models import MODEL_REGISTRY
from omegaconf import OmegaConf

from macaron.checkpoint import DICTIONARIES

# Options that may differ from one command to the next: they concern training or the machine, or the names and shapes
# of the parameters show them.
_FREE_ENDINGS = ("dropout", "layerdrop", "_dim", "_layers", "_cutoff", "_to_keep", "_embed_path", "_positions")
_FREE_BEGINNINGS = ("_", "quant_noise", "base_")
_FREE = (
    *("checkpoint_activations", "offload_activations", "min_params_to_wrap", "compile", "export", "char_inputs"),
    *("stochastic_depth", "stochastic_depth_unit", "multistep_init"),
)


def is_ours(model: Any) -> bool:
    """Whether this is one of our models, by whichever of its two names the plugin was imported."""
    return hasattr(type(model), "architecture") and hasattr(type(model), "config")


def dictionary_sums(model: Any) -> dict[str, str]:
    """SHA-256 of the symbols in their order, for each side that has a dictionary: "encoder", "decoder"."""
    sums = {}
    for side in ("encoder", "decoder"):
        dictionary = getattr(getattr(model, side, None), "dictionary", None)
        if dictionary is not None:
            symbols = "\n".join(dictionary[i] for i in range(len(dictionary)))
            sums[side] = hashlib.sha256(symbols.encode("utf-8", "surrogateescape")).hexdigest()
    return sums


def other_dictionaries(model: Any, state: Mapping[str, Any]) -> str | None:
    """What is wrong with the model's dictionaries, if the checkpoint says which it was trained with."""
    task_state = state.get("task_state")
    stored = task_state.get(DICTIONARIES) if isinstance(task_state, Mapping) else None
    if not isinstance(stored, Mapping):
        return None  # written before dictionaries were recorded, or by fairseq alone
    names = {"encoder": "source", "decoder": "target" if hasattr(model, "encoder") else "language model's"}
    other = [names[side] for side, found in dictionary_sums(model).items() if stored.get(side, found) != found]
    if not other:
        return None
    return (
        f"the {' and the '.join(other)} dictionary in the data folder is not the one that it was trained with, but one "
        f"of equal size with other symbols or another order, so that embeddings would stand for other words; use the "
        f"dict.*.txt files that it was trained with (fairseq-preprocess --srcdict/--tgtdict binarises text with them)"
    )


def changed_options(model: Any, state: Mapping[str, Any]) -> str | None:
    """Which options of the model would make the checkpoint's weights compute something else, or None."""
    stored = _model_options(state)
    defaults = _defaults(stored.get("_name") or stored.get("arch"))
    changed = [
        f"--{name.replace('_', '-')} {there} (now {here})"
        for name, there, here in _pairs(model, {**defaults, **{k: v for k, v in stored.items() if v is not None}})
        if there != here
    ]
    if not changed:
        return None
    return (
        f"it was trained with {', '.join(changed)}: its weights fit, but the model would compute something else with "
        f"them; give the options that it was trained with"
    )


# Options, the values under which they learn, where that shows, and in what it can be seen: a single layer has no k.
_LEARNING = (
    ("depth_rule", ("multistep",), r"layers\.rule\.", r"layers\.1\.flows\."),
    ("depth_rule", ("rk2_learned",), r"layers\.rule\.", r"layers\.0\.flows\."),
    ("solver", ("heun_learned",), r"layers\.\d+\.gates\.", r"layers\.0\.flows\."),
)


def lost_numerics(state: Mapping[str, Any]) -> str | None:
    """What is wrong where a rule or solver was trained whose weights are not there: they would begin anew, unsaid."""
    stored, names = _model_options(state), [name for name in state.get("model") or () if isinstance(name, str)]

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    # what FSDP has flattened has no names
    lost = [o for o, values, own, beside in _LEARNING if stored.get(o) in values and has(beside) and not has(own)]
    if not lost:
        return None
    options = " and ".join(f"--{option.replace('_', '-')} {stored[option]}" for option in lost)
    return (
        f"it was trained with {options}, and what that learned is not in it; copy it again, or take another checkpoint"
    )


def _model_options(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of the model, by their names, in whichever way fairseq kept them; empty if there are none."""
    stored = state.get("args") or (state.get("cfg") or {}).get("model")
    return vars(stored) if isinstance(stored, Namespace) else stored if isinstance(stored, Mapping) else {}


def _defaults(arch: Any) -> dict[str, Any]:
    """What a checkpoint of one of our architectures does not mention."""
    model = MODEL_REGISTRY.get(arch) if isinstance(arch, str) else None
    return vars(model.config()) if model is not None and hasattr(model, "architecture") else {}


def _pairs(model: Any, stored: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(option, stored, of the model) for the options that have to agree and that both know."""
    given: Namespace = model.args
    shared = stored.get("share_all_embeddings") and getattr(given, "share_all_embeddings", False)
    in_evaluation = stored.get("stochastic_depth_form") not in (None, "scaled")  # the rate acts there too
    for field in fields(type(model).config):
        name, there, here = field.name, _plain(stored.get(field.name)), _plain(getattr(given, field.name, None))
        free = name in _FREE or name.startswith(_FREE_BEGINNINGS) or name.endswith(_FREE_ENDINGS)
        # interpolations point to the task or the machine; sharing all embeddings includes sharing the decoder's
        free = free and not (in_evaluation and name == "stochastic_depth")
        free = free or str(field.default).startswith("${") or (shared and name == "share_decoder_input_output_embed")
        if not free and there is not None and here is not None:
            yield name, there, here


def _plain(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return value.value if isinstance(value, Enum) else value
