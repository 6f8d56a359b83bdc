"""Parameter names: from the original Macaron Net, and from fairseq's Transformer, to those of particle layers.

| original                       | fairseq                          | here                                        |
|--------------------------------|----------------------------------|---------------------------------------------|
| self_attn.in_proj_*            | self_attn.{q,k,v}_proj.*         | flows.S.qkv_proj.*                          |
| encoder_attn.in_proj_*         | encoder_attn.{q,k,v}_proj.*      | flows.C.q_proj.*, flows.C.kv_proj.*         |
| fc1, fc2                       | fc1, fc2                         | flows.L.fc1, flows.L.fc2                    |
| macaron_fc1, macaron_fc2       |                                  | flows.0.fc1, flows.0.fc2                    |
| encoder layer_norms.{0,1,2}    | self_attn_layer_norm, final_…    | norms.{S,L,0}                               |
| decoder *_layer_norm           | the same                         | norms.{S,C,L,0}                             |
| decoder.embed_out              | decoder.output_projection.weight | decoder.output_projection.weight            |

S, C, L: the substeps of self-attention, cross-attention and the last FFN. All three hold the same numbers: only
names and packing differ, so optimiser moments convert by the same rule.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from macaron.checkpoint import CheckpointError

_LAYER = re.compile(r"^(?P<side>(?:.*\.)?(?:encoder|decoder)\.layers\.\d+)\.(?P<rest>.+)$")
_FOREIGN = re.compile(r"\.layers\.\d+\.(self_attn|encoder_attn|fc1|fc2|macaron_fc\d|layer_norms|\w*_layer_norm)\b")
_NORMS_BY_NUMBER = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm", "macaron_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def is_foreign(names: Mapping[str, object]) -> bool:
    """Whether layers carry the names of the original or of fairseq's Transformer, instead of ours."""
    return any(_FOREIGN.search(name) for name in names)


def to_particle_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and repack a state dict, or anything that is laid out like one, such as Adam's first moments.

    Names that are ours already pass through. The result stands in our order of registration, see `in_order`.

    Args:
        tensors: name → tensor, with the names of one of the three conventions above.

    Raises:
        CheckpointError: a layer that lacks a part, or has one that no convention knows.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match and _FOREIGN.search(name):
            layers.setdefault(match["side"], {})[match["rest"]] = tensor
        elif name.endswith(".embed_positions._float_tensor"):
            continue  # scratch memory of the original
        elif name.endswith("decoder.embed_out"):
            result[name[: -len("embed_out")] + "output_projection.weight"] = tensor
        else:
            result[name] = tensor
    for layer, parts in layers.items():
        side = "decoder" if re.search(r"decoder\.layers\.\d+$", layer) else "encoder"
        try:
            converted = _convert_layer(parts, side)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{layer} is no layer of the original or of fairseq's Transformer: it has {', '.join(sorted(parts))} "
                f"({type(error).__name__}: {error})"
            ) from error
        result.update({f"{layer}.{name}": tensor for name, tensor in converted.items()})
    return {name: result[name] for name in in_order(result)}


def _convert_layer(parts: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    named = {_norm_by_name(name, side): tensor for name, tensor in parts.items()}
    first = int(any(name.startswith("macaron_fc1.") for name in named))
    has_cross = any(name.startswith("encoder_attn.") for name in named)
    last = first + 1 + int(has_cross)
    substep = {
        "macaron": 0,
        "self_attn": first,
        "encoder_attn": first + 1,
        "final": last,
    }
    converted: dict[str, Tensor] = {}
    for name, tensor in named.items():
        stem, kind = name.rsplit(".", 1)  # kind: weight, bias, in_proj_weight, in_proj_bias
        if stem.endswith("_layer_norm"):
            converted[f"norms.{substep[stem[: -len('_layer_norm')]]}.{kind}"] = tensor
        elif stem in ("fc1", "fc2"):
            converted[f"flows.{last}.{stem}.{kind}"] = tensor
        elif stem.startswith("macaron_"):
            converted[f"flows.0.{stem[len('macaron_') :]}.{kind}"] = tensor
        elif stem.endswith(".out_proj"):
            converted[f"flows.{substep[stem[: -len('.out_proj')]]}.out_proj.{kind}"] = tensor
        elif stem.endswith(".q_proj") or kind.startswith("in_proj_"):
            attention = stem[: -len(".q_proj")] if stem.endswith(".q_proj") else stem
            suffix = kind[len("in_proj_") :] if kind.startswith("in_proj_") else kind
            if kind.startswith("in_proj_"):
                q, k, v = tensor.chunk(3)
            else:
                q, k, v = (named[f"{attention}.{p}_proj.{kind}"] for p in "qkv")
            flow = f"flows.{substep[attention]}"
            if attention == "self_attn":
                converted[f"{flow}.qkv_proj.{suffix}"] = torch.cat([q, k, v])
            else:
                converted[f"{flow}.q_proj.{suffix}"] = q
                converted[f"{flow}.kv_proj.{suffix}"] = torch.cat([k, v])
        elif not stem.endswith((".k_proj", ".v_proj")):
            converted[name] = tensor  # unknown: left for strict loading to name
    return converted


def _norm_by_name(name: str, side: str) -> str:
    match = re.match(r"layer_norms\.(\d)\.(.+)$", name)
    return f"{_NORMS_BY_NUMBER[side][int(match[1])]}.{match[2]}" if match else name


_SIDES = ("encoder", "decoder")
_SECTIONS = (
    "version",
    "embed_tokens",
    "project_in_dim",
    "embed_positions",
    "layernorm_embedding",
    "layers",
    "layer_norm",
    "project_out_dim",
    "adaptive_softmax",
    "output_projection",
)
_PARTS = ("flows", "norms")
_PROJECTIONS = ("fc1", "qkv_proj", "q_proj", "kv_proj", "out_proj", "fc2")
_KINDS = ("weight", "bias")


def in_order(names: Mapping[str, object]) -> list[str]:
    """The names in the order in which our models register, and so optimise, their parameters."""
    return sorted(names, key=_rank)


def _rank(name: str) -> tuple[object, ...]:
    words = name.split(".")
    tables = {w: i for table in (_SIDES, _SECTIONS, _PARTS, _PROJECTIONS, _KINDS) for i, w in enumerate(table)}
    return tuple((0, int(w), "") if w.isdigit() else (1, tables.get(w, len(tables)), "") for w in words)
