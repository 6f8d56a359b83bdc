"""A trained Transformer read as a Macaron: the row of flows A F A F … bracketed anew, from Lie's layers into Strang's.

    Lie      [A₁ F₁] [A₂ F₂] …                Strang   [G₁ A₁ H₁] [G₂ A₂ H₂] …        G, H half steps, A attention

The neurons of an FFN, F(x) = Σ_i w_i act(u_i·x + b_i), are a sum, which is divided: some stand in H_l, behind the
attention of their layer, the others in G_{l+1}, before that of the next; output weights are multiplied by 2, since half
a step is taken along them. What has no place is left out: the last layer has no next one, so that its FFN keeps the
neurons that H has room for. G₁ has no layer before it; its neurons, and all that there are too many of, are copies of
the layer's own with output weights 0, which learn from the first update on.

Pre-norm, x + F(LN x):      LN of G_{l+1} is that of F_l. G sees the particles that H has moved, so the start is not the
                            same function unless H has all neurons; then it is, bit for bit up to rounding.
Post-norm, LN(x + F(x)):    LN ∘ LN is LN where the first has neither gain nor offset. So the norm behind H, and that of
                            the embeddings, has none, and the one behind G has those of the norm that stood there. With
                            all neurons in H the start is the same function again (up to eps), which no gain fitted to
                            pass the particles on can reach.

Which neurons: those of greatest |u_i| |w_i| behind the attention, where they see what they saw; who has text at hand
can choose better and fit the rest, see `recipes.warm_start`. Widths F/2 and F/2 have the parameters of the Transformer
(but for a norm a layer), F/2 and F one half of an FFN more, and the exact start.
"""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from macaron.checkpoint import CheckpointError, architecture, model_option
from macaron.dynamics.splitting import LIE, STRANG, get_splitting
from macaron.names import in_order, is_foreign, to_particle_names
from macaron.refinement import SIDES, check_kind, count_layers, with_options

_HALF = STRANG.substeps[0].share


class Widths(NamedTuple):
    """Neurons of the FFN before the attention of a layer, and of the one behind it."""

    first: int
    second: int

    @classmethod
    def halves(cls, neurons: int) -> "Widths":
        """Those of equal parameters."""
        return cls(neurons // 2, neurons - neurons // 2)

    def check(self, neurons: int) -> "Widths":
        """Itself, for FFNs of so many neurons.

        Raises:
            ValueError: a width below 1, or neurons behind the attention that the FFN has not.
        """
        if self.first < 1 or not 1 <= self.second <= neurons:
            raise ValueError(
                f"widths {self.first} and {self.second} do not divide an FFN of {neurons} neurons; the first is at "
                f"least 1, the second from 1 to {neurons}: {neurons // 2} and {neurons - neurons // 2} keep the number "
                f"of parameters, {neurons // 2} and {neurons} the function"
            )
        return self

    def dropped(self, neurons: int) -> tuple[int, int]:
        """Neurons that find no place: of each layer but the last, and of the last."""
        return max(0, neurons - self.first - self.second), neurons - self.second


def by_norm(fc1: Tensor, fc2: Tensor) -> Tensor:
    """The neurons, the greatest |u_i| |w_i| first. fc1 (F, C), fc2 (C, F) → (F,)."""
    return (fc1.float().norm(dim=1) * fc2.float().norm(dim=0)).argsort(descending=True, stable=True)


def rebracket(
    tensors: Mapping[str, Tensor],
    prefix: str,
    widths: Widths,
    *,
    order: Sequence[Tensor] | None = None,
    norm_before: str | None = None,
) -> dict[str, Tensor]:
    """The parameters of a stack of Lie layers as those of Strang layers; all others as they are.

    Args:
        tensors: of a model, with names of particle layers.
        prefix: of the layers in their names, with its dot.
        widths: of the two FFNs.
        order: for each layer its neurons, those first that shall stand behind the attention; None is `by_norm`.
        norm_before: of a post-norm stack the norm ahead of its first layer, by its prefix with the dot; None is a
            pre-norm stack.

    Raises:
        CheckpointError: layers that are not whole, or not attention and FFN.
        ValueError: widths that do not fit.
    """
    depth = count_layers(tensors, prefix)
    layers = [_parts(tensors, f"{prefix}{n}.") for n in range(depth)]
    ffn = _ffn_of(layers[0], prefix)
    neurons = layers[0][f"flows.{ffn}.fc1.weight"].size(0)
    widths.check(neurons)
    if order is None:
        order = [by_norm(part[f"flows.{ffn}.fc1.weight"], part[f"flows.{ffn}.fc2.weight"]) for part in layers]
    result = {name: tensor for name, tensor in tensors.items() if not re.match(rf"{re.escape(prefix)}\d+\.", name)}
    if norm_before is not None:
        passed_on = {kind: result[f"{norm_before}{kind}"].clone() for kind in ("weight", "bias")}
        result |= {f"{norm_before}{kind}": tensor for kind, tensor in _plain(passed_on).items()}
    for n, parts in enumerate(layers):
        own, taken = _neurons(parts, ffn), order[n].to(parts[f"flows.{ffn}.fc1.weight"].device)
        made = {_behind(name): tensor.clone() for name, tensor in parts.items() if f"flows.{ffn}." not in name}
        made |= _named(f"flows.{ffn + 1}", _ffn(own, taken[: widths.second], widths.second, own, taken))
        before = _neurons(layers[n - 1], ffn) if n else own
        moved = order[n - 1].to(taken.device)[widths.second : widths.second + widths.first] if n else taken[:0]
        first = _ffn(before, moved, widths.first, own, taken)
        first["fc2.bias"] = torch.zeros_like(first["fc2.bias"])  # the offset stands in the second half step
        made |= _named("flows.0", first)
        norm = _norm(layers[n - 1 if n else 0], ffn)
        if norm_before is not None:
            norm = _norm(layers[n - 1], ffn) if n else passed_on
            if n < depth - 1:
                made |= _named(f"norms.{ffn + 1}", _plain(_norm(parts, ffn)))
        made |= _named("norms.0", {kind: tensor.clone() for kind, tensor in norm.items()})
        result |= {f"{prefix}{n}.{name}": tensor for name, tensor in made.items()}
    return result


def _parts(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _ffn_of(parts: Mapping[str, Tensor], prefix: str) -> int:
    """The number of the FFN, which is the last flow of a Lie layer."""
    numbers = sorted({int(found[1]) for name in parts if (found := re.match(r"flows\.(\d+)\.", name))})
    last = numbers[-1] if numbers else 0
    needed = [f"{part}.{kind}" for part in (f"flows.{last}.fc1", f"flows.{last}.fc2") for kind in ("weight", "bias")]
    if "flows.0.qkv_proj.weight" not in parts or not all(name in parts for name in needed) or last < 1:
        raise CheckpointError(
            f"{prefix}0 is no layer of attention and one FFN behind it, which alone is bracketed anew (it has "
            f"{', '.join(sorted(parts)) or 'nothing'})"
        )
    if any(name.startswith("gates.") for name in parts):
        raise CheckpointError(
            f"{prefix}0 has a solver with weights for each of its flows, which no new flow begins with"
        )
    if f"norms.{last}.weight" not in parts:
        raise CheckpointError(f"{prefix}0 has norms without gain and offset, which are needed to pass particles on")
    return last


def _neurons(parts: Mapping[str, Tensor], ffn: int) -> dict[str, Tensor]:
    return _parts(parts, f"flows.{ffn}.")


def _norm(parts: Mapping[str, Tensor], ffn: int) -> dict[str, Tensor]:
    return _parts(parts, f"norms.{ffn}.")


def _plain(norm: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norm without gain and offset."""
    return {"weight": torch.ones_like(norm["weight"]), "bias": torch.zeros_like(norm["bias"])}


def _behind(name: str) -> str:
    """The name of a part of a Lie layer in a Strang layer: an FFN stands before it."""
    return re.sub(r"^(flows|norms)\.(\d+)", lambda found: f"{found[1]}.{int(found[2]) + 1}", name)


def _named(prefix: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in parts.items()}


def _ffn(
    source: Mapping[str, Tensor], neurons: Tensor, width: int, spare: Mapping[str, Tensor], spares: Tensor
) -> dict[str, Tensor]:
    """An FFN of so many neurons of `source`, filled up to `width` with those of `spare`, whose outputs are 0."""
    fill = spares[torch.arange(width - len(neurons), device=spares.device) % len(spares)]
    outputs = source["fc2.weight"][:, neurons] / _HALF
    return {
        "fc1.weight": torch.cat([source["fc1.weight"][neurons], spare["fc1.weight"][fill]]),
        "fc1.bias": torch.cat([source["fc1.bias"][neurons], spare["fc1.bias"][fill]]),
        "fc2.weight": torch.cat([outputs, outputs.new_zeros(outputs.size(0), len(fill))], dim=1),
        "fc2.bias": source["fc2.bias"] / _HALF,
    }


# --- checkpoints of fairseq -------------------------------------------------------------------------------------


class Rebracketed(NamedTuple):
    """A checkpoint of Strang layers: what to save, the widths of each side, neurons left out, and what is not in it."""

    state: dict[str, Any]
    widths: dict[str, Widths]
    dropped: dict[str, tuple[int, int]]
    left_out: list[str]


def rebracket_checkpoint(state: Mapping[str, Any], widths: Widths | None = None) -> Rebracketed:
    """A pre-norm Transformer of fairseq, its own or ours with splitting lie, as a Macaron.

    The optimiser's state and moving averages are left out: they are of other parameters.

    Args:
        state: the loaded file.
        widths: of the FFNs of all layers; None is half of the neurons each, by side.

    Raises:
        CheckpointError: a checkpoint of another kind, or a damaged one.
        ValueError: post-norm layers, a splitting that is not lie, or widths that do not fit.
    """
    model: Mapping[str, Tensor] = state["model"]
    foreign = is_foreign(model)
    if foreign:
        if any("macaron_fc" in name for name in model):
            raise ValueError("its layers have FFNs on both sides of the attention already; convert without --splitting")
        model, state = to_particle_names(model), {**state, **with_options(state, _flat(state))}
    sides = [side for side in SIDES if any(name.startswith(f"{side}.layers.") for name in model)]
    check_kind({**state, "model": model}, sides)
    splitting = "lie" if foreign else str(model_option(state, "splitting") or "strang")
    if get_splitting(splitting).portable != LIE.portable:
        raise ValueError(
            f"its splitting is {splitting!r}; only a Transformer, lie, is bracketed anew, as the FFNs of others stand "
            f"elsewhere already"
        )
    options: dict[str, Any] = {"splitting": STRANG.portable}
    chosen, dropped = {}, {}
    for side in sides:
        if model_option(state, f"{side}_normalize_before") is not True:
            raise ValueError(
                f"its {side} is post-norm, and no norm stands ahead of its first layer which the first half step could "
                f"take over; a post-norm BERT is warm-started with text (recipes.warm_start)"
            )
        neurons = _width(model, f"{side}.layers.")
        chosen[side] = (widths or Widths.halves(neurons)).check(neurons)
        dropped[side] = chosen[side].dropped(neurons)
        model = rebracket(model, f"{side}.layers.", chosen[side])
        options |= {
            f"{side}_ffn_embed_dim": chosen[side].second,
            f"{side}_first_ffn_embed_dim": chosen[side].first,
        }
    if foreign:
        options |= {"_name": "macaron", "arch": "macaron"}
    result = {**state, "model": {name: model[name] for name in in_order(model)}, **with_options(state, options)}
    left_out = ["the optimiser's state, which is of other parameters"] if result.get("last_optimizer_state") else []
    result.pop("last_optimizer_state", None)
    extra = result.get("extra_state")
    if isinstance(extra, Mapping) and (averages := [key for key in ("ema", "ema_fp32_params") if extra.get(key)]):
        left_out.append("the moving average of the parameters")
        result["extra_state"] = {key: value for key, value in extra.items() if key not in averages}
    return Rebracketed(result, chosen, dropped, left_out)


def _width(model: Mapping[str, Tensor], prefix: str) -> int:
    """Neurons of the FFN of the first layer; that all layers are alike, `count_layers` checks."""
    count_layers(model, prefix)
    parts = _parts(model, f"{prefix}0.")
    return parts[f"flows.{_ffn_of(parts, prefix)}.fc1.weight"].size(0)


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """fairseq's nested options of its Transformer, model.encoder.embed_dim, by our names, encoder_embed_dim.

    Raises:
        CheckpointError: an architecture whose layers are no Transformer's.
    """
    name = architecture(state)
    if not name.startswith("transformer"):
        raise CheckpointError(f"its architecture is {name!r}, and only fairseq's transformer… are read as a Macaron")
    cfg = state.get("cfg")
    model = (cfg.get("model") if isinstance(cfg, Mapping) else None) or state.get("args")
    options = vars(model) if isinstance(model, Namespace) else model if isinstance(model, Mapping) else {}
    groups = {name: value for name, value in options.items() if isinstance(value, Mapping) and name in _GROUPS}
    return {f"{group}_{name}": value for group, values in groups.items() for name, value in values.items()}


_GROUPS = (*SIDES, "quant_noise")
