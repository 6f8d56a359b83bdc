"""Refinement in depth: a trained stack of layers with a smaller step, or a larger one.

A stack of L layers of step Δt integrates dx/dt = F(x, t), and its parameters are a function of time that is constant
along each layer. Refined by r, every layer becomes r layers with the same parameters and the step Δt / r: the same
function, the same equation, a finer grid (multi-level training: Chang et al. 2018, arXiv:1710.10348). Coarsening by r
is the way back, to the mean of r layers and the step r Δt. What the finer grid changes in the result is the error of
the scheme: O(Δtᵖ) for a scheme of order p.

With q = L' / L (r, or 1/r), the numbers of the finer or coarser stack are, of each the mean over the layers it is from:

    parameters of a layer              θ' = θ
    k of multistep                     k' = k            a steady increment is Δ / (1 + k) at either step; 0 within the
                                                         first layer, which has none
    gates of the rule "rk2_learned"    w' = q w, b' = b  they weigh increments Δ, which are q times smaller
    Adam's moments of θ, k, b          m' = m / q, v' = v / q²     gradients of a layer are q times smaller, and sum up
    Adam's moments of w                m' = m / q², v' = v / q⁴    so that an update moves θ as far as before
"""

import math
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from macaron.checkpoint import NO_PARAMETERS, CheckpointError, model_option
from macaron.dynamics.scheme import is_step
from macaron.names import is_foreign

SIDES = ("encoder", "decoder")
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}  # of Adam, and the power of a gradient in each

# Parameters of the rules across depth that every installation knows, see `macaron.dynamics.rules`.
_OF_RULE = {"euler": "", "rk2": "", "rk4": "", "multistep": r"bias", "rk2_learned": r"gates\.[0-9]+\.(weight|bias)"}


@dataclass(frozen=True)
class Change:
    """From `old` layers to `new` of them, one number a multiple of the other.

    Raises:
        ValueError: numbers of which neither is a multiple of the other, or that are equal.
    """

    old: int
    new: int

    def __post_init__(self) -> None:
        if self.new == self.old:
            raise ValueError(f"the model has {self.old} layers already; ask for a multiple or a divisor of that")
        if min(self.old, self.new) < 1 or (self.new % self.old and self.old % self.new):
            multiples = ", ".join(str(self.old * r) for r in (2, 3, 4))
            divisors = ", ".join(str(n) for n in range(1, self.old) if self.old % n == 0)
            raise ValueError(
                f"{self.old} layers do not become {self.new}: each becomes several with a part of its step, or several "
                f"become one; ask for {multiples}, …{f', or for {divisors}' if divisors else ''}"
            )

    @property
    def ratio(self) -> Fraction:
        """q = L' / L."""
        return Fraction(self.new, self.old)

    def sources(self, n: int) -> range:
        """The numbers of the layers that the new layer n is from."""
        first = n * self.old // self.new
        return range(first, first + max(1, self.old // self.new))

    def step(self, dt: float) -> float:
        """Δt / q; the way there and back is exact also for thirds."""
        exact = Fraction(dt).limit_denominator(1_000_000)
        return float((exact if float(exact) == dt else Fraction(dt)) / self.ratio)


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers `{prefix}0.…`, `{prefix}1.…` there are.

    Raises:
        CheckpointError: none, numbers left out, layers that are not alike, or parameters that are no finite numbers.
    """
    layers: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(rf"{re.escape(prefix)}([0-9]+)\.(.+)", name):
            layers.setdefault(match[1], {})[match[2]] = tuple(tensor.shape), tensor.dtype
        if name.startswith(prefix) and not (tensor.is_floating_point() and bool(torch.isfinite(tensor).all())):
            raise CheckpointError(
                f"parameter {name} holds what is no finite number: the run diverged, or the file is damaged; use "
                f"another checkpoint"
            )
    if not layers or set(layers) != {str(n) for n in range(len(layers))}:
        found = ", ".join(sorted(layers, key=lambda n: (len(n), n))) or "none"
        raise CheckpointError(
            f"the layers {prefix}N are not numbered through from 0: found {found}; the checkpoint is incomplete"
        )
    for n, parts in layers.items():
        if other := sorted(set(parts.items()) ^ set(layers["0"].items()), key=str):
            part = other[0][0]
            here, first = (_described(layers[m].get(part)) for m in (n, "0"))
            raise CheckpointError(
                f"the layers {prefix}{n} and {prefix}0 are not alike: {part} is {here} in the one and {first} in the "
                f"other; the checkpoint is damaged, or each layer is of its own kind"
            )
    return len(layers)


def _described(found: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if found is None else f"{found[0]} {found[1]}".replace("torch.", "")


def refine(
    tensors: Mapping[str, Tensor], prefix: str, change: Change, *, rule: str = "euler", power: int = 0
) -> dict[str, Tensor]:
    """A state dict, or what is laid out like one, with the layers of one stack refined or coarsened.

    Args:
        tensors: name → tensor; those that do not begin with `prefix` pass through as they are.
        prefix: of the stack, `encoder.layers.` for `encoder.layers.0.norms.0.weight`.
        rule: the rule across depth.
        power: of a gradient in the tensors: 0 for parameters, 1 and 2 for Adam's first and second moments.

    Returns:
        New tensors under new names, in the order in which a model registers its parameters.

    Raises:
        CheckpointError: other layers than `change.old`, or parameters that are not those of the rule.
    """
    if (found := count_layers(tensors, prefix)) != change.old:
        raise CheckpointError(f"there are {found} layers {prefix}N, not {change.old}")
    _check_rule(tensors, prefix, change.old, rule)
    per_layer, gates = (_parts(tensors, stem) for stem in (prefix, f"{prefix}rule.gates."))
    plain, weighing = change.ratio**-power, change.ratio ** (-2 * power if power else 1)
    stack: dict[str, Tensor] = {}
    for n in range(change.new):
        for part in per_layer:
            same = [tensors[f"{prefix}{i}.{part}"] for i in change.sources(n)]
            stack[f"{prefix}{n}.{part}"] = _mean(same, plain)
    if rule == "multistep" and change.new > 1:
        k = tensors.get(f"{prefix}rule.bias", next(iter(stack.values())).new_zeros(0))
        # what the first layer has not: its k begin at 0, its moments at 0 and, as a divisor, at the size of the others'
        unknown = k.mean() if power == 2 and len(k) else k.new_zeros(())
        values = [unknown, *k.unbind()]
        new = [_mean([values[i] for i in change.sources(n)], plain) for n in range(1, change.new)]
        stack[f"{prefix}rule.bias"] = torch.stack(new)
    for n in range(change.new):
        for part in gates:
            same = [tensors[f"{prefix}rule.gates.{i}.{part}"] for i in change.sources(n)]
            stack[f"{prefix}rule.gates.{n}.{part}"] = _mean(same, weighing if part == "weight" else plain)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        result.update(stack if name.startswith(prefix) else {name: tensor})
    return result


def _parts(tensors: Mapping[str, Tensor], stem: str) -> list[str]:
    """The names of a layer's parameters, in order."""
    first = f"{stem}0."
    return [name.removeprefix(first) for name in tensors if name.startswith(first)]


def _check_rule(tensors: Mapping[str, Tensor], prefix: str, depth: int, rule: str) -> None:
    of_rule = {
        name.removeprefix(f"{prefix}rule."): t for name, t in tensors.items() if name.startswith(f"{prefix}rule.")
    }
    known = _OF_RULE.get(rule, "")
    if unknown := [name for name in of_rule if not re.fullmatch(known, name)]:
        whose = f"depth_rule={rule!r} has no such parameter" if rule in _OF_RULE else f"depth_rule={rule!r} is your own"
        raise CheckpointError(
            f"parameter {prefix}rule.{unknown[0]}: {whose}, so what becomes of it at another step is not known"
        )
    k = of_rule.get("bias")
    if rule == "multistep" and (() if k is None else tuple(k.shape)) != ((depth - 1,) if depth > 1 else ()):
        found = "missing" if k is None else f"of shape {tuple(k.shape)}"
        raise CheckpointError(
            f"parameter {prefix}rule.bias is {found}, and {depth} layers have {depth - 1} k of depth_rule='multistep'; "
            f"the checkpoint is damaged"
        )
    if rule == "rk2_learned" and count_layers(tensors, f"{prefix}rule.gates.") != depth:
        raise CheckpointError(f"there are not as many gates {prefix}rule.gates.N as layers, {depth}")


def _mean(tensors: Sequence[Tensor], factor: Fraction) -> Tensor:
    """The mean times a factor, a tensor of its own; of equal tensors it is each of them, to the bit."""
    first = tensors[0].double()
    mean = first + sum(((other.double() - first) for other in tensors[1:]), torch.zeros_like(first)) / len(tensors)
    return mean.mul_(float(factor)).to(tensors[0].dtype)


class UnreadableStateError(ValueError):
    """An optimiser's state that cannot be told apart by parameters."""


def refine_adam(
    optimizer: Mapping[str, Any],
    shapes: Mapping[str, torch.Size],
    groups: Sequence[Sequence[str]],
    new_groups: Sequence[Sequence[str]],
    refined: Callable[[dict[str, Tensor], int], dict[str, Tensor]],
) -> dict[str, Any]:
    """The state of Adam, as torch keeps it, for a refined model.

    Args:
        optimizer: `state` and `param_groups`; or, as fairseq has it in half precision, one state of all parameters
            after one another.
        shapes: of the parameters, by names, in the order of the model.
        groups, new_groups: the names of each group of parameters, in the order of the optimiser.
        refined: moments by names and the power of a gradient in them → those of the refined model; see `refine`.

    Raises:
        UnreadableStateError: another optimiser, or a state that does not fit the parameters.
    """
    try:
        return _refine_adam(optimizer, shapes, groups, new_groups, refined)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise UnreadableStateError(f"it is not laid out as that of Adam: {type(error).__name__}: {error}") from error


def _refine_adam(
    optimizer: Mapping[str, Any],
    shapes: Mapping[str, torch.Size],
    groups: Sequence[Sequence[str]],
    new_groups: Sequence[Sequence[str]],
    refined: Callable[[dict[str, Tensor], int], dict[str, Tensor]],
) -> dict[str, Any]:
    stored, state = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(stored, list) or not isinstance(state, Mapping) or not stored:
        raise UnreadableStateError("it is not laid out as one of torch")
    keys = [list(group["params"]) for group in stored if isinstance(group, Mapping) and "params" in group]
    flat = len(keys) == 1 and len(keys[0]) == 1 < len(shapes)
    if not flat and [len(k) for k in keys] != [len(g) for g in groups]:
        counts = [" and ".join(str(len(x)) for x in some) for some in (keys, groups)]
        raise UnreadableStateError(f"it covers {counts[0]} parameters, and the model has {counts[1]}")
    if not state:  # nothing is remembered: plain gradient descent, or no update yet
        names, entries = [], []
    elif flat:
        names = list(shapes)
        entries = _divided(state.get(keys[0][0]), shapes)
    else:
        names = [name for group in groups for name in group]
        entries = [state.get(key) for part in keys for key in part]
    known = _moments(names, entries, shapes)
    step = max((entry["step"] for entry in entries), key=float, default=0)
    moments = {m: refined({name: tensors[name] for name in shapes}, MOMENTS[m]) for m, tensors in known.items()}
    if flat:
        whole = {m: torch.cat([tensor.flatten() for tensor in tensors.values()]) for m, tensors in moments.items()}
        return {**optimizer, "state": {keys[0][0]: {"step": step, **whole}} if entries else {}}
    numbers = {name: i for i, name in enumerate(name for group in new_groups for name in group)}
    made = [
        {**stored[min(i, len(stored) - 1)], "params": [numbers[name] for name in group]}
        for i, group in enumerate(new_groups)
    ]
    new = {i: {"step": _own(step), **{m: moments[m][name] for m in moments}} for name, i in numbers.items()}
    return {**optimizer, "state": new if entries else {}, "param_groups": made}


def _own(step: Any) -> Any:
    return step.clone() if isinstance(step, Tensor) else step


def _divided(entry: Any, shapes: Mapping[str, torch.Size]) -> list[Any]:
    """One state of all parameters after one another, parameter by parameter."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    if not isinstance(entry, Mapping):
        raise UnreadableStateError(f"its entry is a {type(entry).__name__}")
    parts: dict[str, Sequence[Any]] = {}
    for key, value in entry.items():
        if key in MOMENTS and isinstance(value, Tensor):
            if value.dim() != 1 or len(value) != sum(sizes):
                raise UnreadableStateError(
                    f"{key} has {value.numel():,} numbers, and the parameters {sum(sizes):,}, all after one another"
                )
            parts[key] = [p.view(shape) for p, shape in zip(value.split(sizes), shapes.values(), strict=True)]
        else:
            parts[key] = [value] * len(sizes)
    return [{key: values[i] for key, values in parts.items()} for i in range(len(sizes))]


def _moments(
    names: Sequence[str], entries: Sequence[Any], shapes: Mapping[str, torch.Size]
) -> dict[str, dict[str, Tensor]]:
    """Adam's moments by name, if that is what the entries are."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, entry in zip(names, entries, strict=True):
        if not isinstance(entry, Mapping) or not {"step", "exp_avg", "exp_avg_sq"} <= set(entry) <= {"step", *MOMENTS}:
            has = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else "nothing"
            raise UnreadableStateError(f"it is not that of Adam: for {name} it has {has}")
        for key in MOMENTS.keys() & entry.keys():
            tensor = entry[key]
            if not isinstance(tensor, Tensor) or tensor.shape != shapes[name]:
                shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise UnreadableStateError(f"{key} of {name} is {shape}, and the parameter {tuple(shapes[name])}")
            found.setdefault(key, {})[name] = tensor
    if any(len(tensors) != len(names) for tensors in found.values()):
        raise UnreadableStateError("some parameters have moments that others have not")
    return found


class Refined(NamedTuple):
    """A refined checkpoint: what to save, the layers of each side and Δt before and after, and what is not in it."""

    state: dict[str, Any]
    old: dict[str, int]
    new: dict[str, int]
    dt: tuple[float, float]
    left_out: list[str]


def refine_checkpoint(state: Mapping[str, Any], layers: Sequence[int]) -> Refined:
    """A checkpoint of fairseq with another number of layers, and everything else that training goes on from.

    Args:
        state: the loaded file.
        layers: how many layers to have: one number for all stacks, or that of the encoder and that of the decoder.
            Both have one Δt, so both change by the same ratio.

    Raises:
        CheckpointError: a checkpoint of another kind, or a damaged one.
        ValueError: numbers of layers that cannot be reached, or post-norm layers.
    """
    model: Mapping[str, Tensor] = state["model"]
    sides = [side for side in SIDES if any(name.startswith(f"{side}.layers.") for name in model)]
    check_kind(state, sides)
    if len(layers) not in (1, len(sides)):
        raise ValueError(
            f"{'+'.join(map(str, layers))} layers are those of an encoder and a decoder, and the model has "
            f"{' and '.join(sides)} only; give one number"
        )
    wanted = list(layers) * len(sides) if len(layers) == 1 else layers
    old = {side: count_layers(model, f"{side}.layers.") for side in sides}
    changes = {side: Change(old[side], new) for side, new in zip(sides, wanted, strict=True)}
    ratios = {side: change.ratio for side, change in changes.items()}
    if len(set(ratios.values())) > 1:
        raise ValueError(
            f"the {' and the '.join(f'{side} would change by {ratio}' for side, ratio in ratios.items())}, but both "
            f"have one step dt; ask for numbers in the ratio of {'+'.join(map(str, old.values()))}, such as "
            f"{'+'.join(str(2 * number) for number in old.values())}"
        )
    for side in sides:
        if not isinstance(told := model_option(state, f"{side}_layers"), int) or told != old[side]:
            raise CheckpointError(
                f"its option {side}_layers is {told!r}, and it has parameters of {old[side]} layers; it is incomplete, "
                f"or of another model"
            )
        check_increments(model_option(state, f"{side}_normalize_before"), f"{side}_normalize_before")
    rule = str(model_option(state, "depth_rule") or "euler")
    dt = check_step(model_option(state, "dt"))
    change = changes[sides[0]]

    def refined(tensors: Mapping[str, Tensor], power: int = 0) -> dict[str, Tensor]:
        for side in sides:
            tensors = refine(tensors, f"{side}.layers.", changes[side], rule=rule, power=power)
        return dict(tensors)

    new = {side: changes[side].new for side in sides}
    options = {**{f"{side}_layers": number for side, number in new.items()}, "dt": change.step(dt)}
    result = {**state, "model": refined(model), **with_options(state, options)}
    left_out = _refine_averages(result, refined)
    if optimizer := state.get("last_optimizer_state"):
        try:
            result["last_optimizer_state"] = _refine_optimizer(optimizer, model, result["model"], refined)
        except (UnreadableStateError, CheckpointError) as error:
            del result["last_optimizer_state"]
            left_out.append(f"the optimiser's state ({error})")
    return Refined(result, old, new, (dt, change.step(dt)), left_out)


def check_increments(normalize_before: Any, option: str) -> None:
    """Raise ValueError for layers that are not pre-norm."""
    if normalize_before is not True:
        raise ValueError(
            f"{option} is {normalize_before!r}, and only a pre-norm layer, x + Δt F(x), is a step of an equation: a "
            f"post-norm one, LN(x + Δt F(x)), normalises the state once a layer, so with more of them it is another "
            f"model, at whichever step"
        )


def check_step(dt: Any) -> float:
    """Δt as a number; 1 where nothing is said.

    Raises:
        ValueError: no step.
    """
    if dt is None:
        return 1.0
    if not is_step(dt):
        raise ValueError(f"its option dt is {dt!r}, which is no step; it must be positive and finite")
    return float(dt)


def check_kind(state: Mapping[str, Any], sides: Sequence[str]) -> None:
    model: Mapping[str, Tensor] = state["model"]
    if is_foreign(model):
        remedy = (
            "convert one of the original implementation first (`macaron convert`), and take the weights of fairseq's "
            "Transformer into a model with --splitting lie (--finetune-from-model)"
        )
    elif not sides or not any(re.match(r"(encoder|decoder)\.layers\.0\.flows\.", name) for name in model):
        remedy = "give a checkpoint of fairseq's training of a Macaron model, or the folder of a Macaron BERT"
    elif state.get("shard_metadata"):
        remedy = "it is one shard of several; save a whole one (without --use-sharded-state)"
    else:
        return
    parts = ", ".join(sorted({".".join(name.split(".")[:2]) for name in model})[:8]) or "nothing"
    raise CheckpointError(f"no model of this project with layers of its own names (it has {parts}): {remedy}")


def with_options(state: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The entries `cfg` and `args` with other options of the model, wherever these are kept."""
    result: dict[str, Any] = {}
    cfg, args = state.get("cfg"), state.get("args")
    if isinstance(cfg, Mapping) and cfg.get("model") is not None:
        result["cfg"] = {**cfg, "model": _updated(cfg["model"], options)}
    if args is not None:
        result["args"] = _updated(args, options)
    return result


def _updated(holder: Any, options: Mapping[str, Any]) -> Any:
    if isinstance(holder, Namespace):
        return Namespace(**{**vars(holder), **options})
    return {**holder, **options} if isinstance(holder, Mapping) else holder


_EMA = ("ema", "ema_fp32_params")  # of `--store-ema`, in the names of the model


def _refine_averages(result: dict[str, Any], refined: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> list[str]:
    """Refine the moving averages of the parameters in `result`; what had to be left out of it."""
    extra = result.get("extra_state")
    if not isinstance(extra, Mapping) or not any(extra.get(key) for key in _EMA):
        return []
    left_out = []
    extra = result["extra_state"] = dict(extra)
    for key in _EMA:
        if key in extra:
            try:
                extra[key] = refined(extra[key])
            except (CheckpointError, AttributeError, TypeError) as error:
                del extra[key]
                left_out.append(f"the moving average {key} ({error})")
    return left_out


def _refine_optimizer(
    optimizer: Any,
    model: Mapping[str, Tensor],
    new_model: Mapping[str, Tensor],
    refined: Callable[[Mapping[str, Tensor], int], dict[str, Tensor]],
) -> dict[str, Any]:
    if not isinstance(optimizer, Mapping):
        raise UnreadableStateError(f"it is a {type(optimizer).__name__}")
    names, new_names = _parameters(model), _parameters(new_model)
    stored = optimizer.get("param_groups")
    whole = isinstance(stored, list) and len(stored) == 1
    state = refine_adam(
        optimizer,
        {name: model[name].shape for name in names},
        [names] if whole else _groups(names),
        new_groups := _groups(new_names),
        refined,
    )
    if whole and len(new_groups) == 2 == len(state["param_groups"]):
        state["param_groups"][1]["weight_decay"] = 0.0
    return state


def _parameters(model: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters in their order; of tied ones, which are matrices outside of the layers, the first."""
    names: list[str] = []
    for name, tensor in model.items():
        if name.endswith(NO_PARAMETERS):
            continue
        outside = [other for other in names if ".layers." not in other] if ".layers." not in name else []
        # saved from a GPU each is a copy of its own
        if tensor.dim() != 2 or not any(torch.equal(model[other], tensor) for other in outside):
            names.append(name)
    return names


def _groups(names: Sequence[str]) -> list[list[str]]:
    """As the plugin has the optimiser divide the parameters: the k of multistep, which do not decay, by themselves."""
    k = [name for name in names if name.endswith(".layers.rule.bias")]
    rest = [name for name in names if name not in k]
    return [rest, k] if k else [rest]
