"""Looking inside: the states and velocities of a pass, and what the ODE view asks of them.

    from macaron import analysis

    with torch.no_grad(), analysis.record(model) as trajectories:
        model(**batch)
    for name, trajectory in trajectories.items():
        print(name, analysis.lengths(trajectory).mean(-1), analysis.splitting_errors(trajectory).mean(-1))

Any model with particle layers will do: both sides of a translation model, a language model, Macaron BERT, layers in a
row. Nothing in the model changes, neither its outputs nor its parameters' names; padding is left out of what is
recorded.

Shapes: N real (not padding) particles of the batch, one sentence after another; C channels; L layers, K substeps of all
of them together; V words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macaron.dynamics.solvers import Field
from macaron.dynamics.splitting import CROSS_ATTENTION, SELF_ATTENTION, Splitting, Substep
from macaron.dynamics.walk import walk

__all__ = [
    "INTERACTION",
    "Lens",
    "Move",
    "Plane",
    "Recorded",
    "Trajectories",
    "Trajectory",
    "commutators",
    "cosines",
    "lengths",
    "logit_lens",
    "principal_plane",
    "ratios",
    "record",
    "speeds",
    "splitting_errors",
]

INTERACTION = (SELF_ATTENTION, CROSS_ATTENTION)  # F of dx/dt = F + G; what is not named here is convection, G

_PARTS = ("flows", "norms", "steps", "solver", "normalize_before", "integrate")  # of a particle layer


# --- what is recorded ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """One substep of one layer: x ↦ Φ(x; h), and in a post-norm layer its normalisation.

    Fields:
        flow: its kind, `ffn`, `self_attention`, …
        step: h, the substep's share of Δt times Δt.
        before: (N, C) x.
        moved: (N, C) Φ(x; h).
        after: (N, C) the next state: `moved`, or in a post-norm layer LN(moved).
    """

    flow: str
    step: float
    before: Tensor
    moved: Tensor
    after: Tensor

    @property
    def velocity(self) -> Tensor:
        """(N, C) (Φ(x; h) − x) / h: with Euler's method the flow's own, with several stages their mean.

        As a difference of states it has their rounding, about ε ‖x‖ / h.
        """
        return (_wide(self.moved) - _wide(self.before)) / self.step


@dataclass(frozen=True)
class Recorded:
    """One call of one layer.

    Fields:
        name: of the layer in the model.
        moves: of its substeps, in order.
        layer: the layer itself.
        x: what it was called with, padding and all.
        context: what its flows saw besides.
        sentences: (N,) which sentence of the batch each particle belongs to, from 0.
        real: (B, T) bool, or None where the batch holds no padding or is packed.
        batch_first: whether x is (B, T, C), not (T, B, C).
        end: (N, C) the state that a rule across depth, or its noise, went on to; None where the layer's own result is
            the next state, as under Euler's rule.
    """

    name: str
    moves: tuple[Move, ...]
    layer: nn.Module = field(repr=False)
    x: Tensor = field(repr=False)
    context: Any = field(repr=False)
    sentences: Tensor = field(repr=False)
    real: Tensor | None = field(repr=False)
    batch_first: bool
    end: Tensor | None = field(default=None, repr=False)

    def particles(self, x: Tensor) -> Tensor:
        """A tensor of the layer, (T, B, C), (B, T, C) or (N, C), → (N, C), its real particles."""
        return _particles(x, self.real, self.batch_first)


class Trajectory:
    """The path of the particles through a row of layers.

    Under another rule across depth than Euler's it is that of the rule's states x_n: each layer is seen as it is first
    evaluated in its step, at x_n, and where its last substep would lead the next state x_{n+1} stands.
    """

    def __init__(self, layers: Collection[Recorded]) -> None:
        self.layers = tuple(layers)

    @property
    def moves(self) -> tuple[Move, ...]:
        """The K substeps of all layers, in order."""
        return tuple(move for recorded in self.layers for move in recorded.moves)

    @property
    def states(self) -> Tensor:
        """(K + 1, N, C): the states before each substep, and the last one."""
        return torch.stack([*(move.before for move in self.moves), _end(self.layers[-1])])

    @property
    def velocities(self) -> Tensor:
        """(K, N, C), see `Move.velocity`."""
        return torch.stack([move.velocity for move in self.moves])

    @property
    def sentences(self) -> Tensor:
        """(N,): which sentence of the batch each particle belongs to, from 0."""
        return self.layers[0].sentences

    @property
    def is_joined(self) -> bool:
        """Whether each step begins where the one before it ended.

        Not so in a model that combines the results of its layers by itself, and not by a `Depth`, or where a layer of
        a multistep model was dropped; `states` then holds what each layer saw, and at the end what follows from the
        last one.
        """
        pairs = zip(self.layers, self.layers[1:], strict=False)
        return all(torch.equal(_end(one), other.moves[0].before) for one, other in pairs)

    def __repr__(self) -> str:
        names = f"{self.layers[0].name} … {self.layers[-1].name}"
        return f"Trajectory({names}: {len(self.moves)} substeps of {len(self.sentences)} particles)"


def _end(recorded: Recorded) -> Tensor:
    """(N, C): the state after a layer, or after the step that a rule across depth made by it."""
    return recorded.moves[-1].after if recorded.end is None else recorded.end


class Trajectories(Mapping[str, Trajectory]):
    """What `record` has seen: by the name of each row of layers in the model, its trajectory.

    Passes after the first are `name (2)`, `name (3)`, …: of several batches, of each word in step-wise decoding.
    """

    def __init__(self) -> None:
        self._passes: dict[str, list[Recorded]] = {}
        self._last: dict[str, str] = {}  # row → the key of its last pass
        self._count: dict[str, int] = {}
        self._step: _Step | None = None  # of a rule across depth, while it is taken
        self._anew = False  # a pass has begun, and no layer of it was called yet

    def _add(self, recorded: Recorded) -> None:
        row = recorded.name.rpartition(".")[0]
        key = self._last.get(row)
        step = self._step
        if step is not None and step.key is not None:
            return  # the rule evaluates its layer anew, as the stages of a solver
        if key is None or not (_goes_on(self._passes[key], recorded) if step is None else not self._anew):
            self._count[row] = count = self._count.get(row, 0) + 1
            self._last[row] = key = (row or "layers") if count == 1 else f"{row or 'layers'} ({count})"
            self._passes[key] = []
        self._passes[key].append(recorded)
        if step is not None:
            step.key, self._anew = key, False

    # as an observer of each `Depth`

    def begins(self, first: bool) -> None:
        self._step, self._anew = _Step(), self._anew or first

    def ended(self, state: Tensor) -> None:
        key = None if self._step is None else self._step.key
        self._step = None
        if key is not None:  # a layer that is dropped was not called
            last = self._passes[key][-1]
            self._passes[key][-1] = replace(last, end=last.particles(state.detach().clone()))

    def __getitem__(self, name: str) -> Trajectory:
        if name not in self._passes:
            known = ", ".join(self._passes) or "nothing"
            raise KeyError(
                f"no trajectory {name!r} was recorded, but {known}. Call the model inside of the `with` block; what "
                f"torch.compile made of it is not seen"
            )
        return Trajectory(self._passes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._passes)

    def __len__(self) -> int:
        return len(self._passes)

    def __repr__(self) -> str:
        return f"Trajectories({', '.join(map(repr, self.values()))})"


@dataclass
class _Step:
    """A step of a rule, and to which pass its layer was added."""

    key: str | None = None


def _goes_on(passed: list[Recorded], recorded: Recorded) -> bool:
    """Whether the call belongs to the pass so far: of a layer that is new in it, or begins where the last ended."""
    here, there = passed[-1].moves[-1].after, recorded.moves[0].before
    if here.shape != there.shape:
        return False
    return all(recorded.layer is not earlier.layer for earlier in passed) or torch.equal(here, there)


# --- recording ----------------------------------------------------------------------------------------------------


@contextmanager
def record(model: nn.Module, *, real: Tensor | None = None) -> Iterator[Trajectories]:
    """Within this context every particle layer of `model` notes where its particles were after each substep.

    The numbers are those of the pass itself, taken from the layers' normalisations by hooks, so with any solver, fused
    or not, pre-norm or post-norm, padded or packed without padding, and with the dropout that was drawn. Afterwards, or
    after an error, the hooks are gone. Layers that `--compile` compiles for training run uncompiled meanwhile.

    The states are copies, (K + 1) · N · C numbers in all. Do not call `backward` inside: gradient checkpointing would
    pass through the layers a second time.

    Args:
        model: a model or a part of one.
        real: (B, T) bool, which particles are not padding, where the layers are not told by a mask: layers in a row,
            and attention functions with a mask of another form.

    Yields:
        The trajectories, which are there once the model was called.

    Raises:
        ValueError: a model without particle layers; on its call, a mask that does not say which particles are real,
            or `real` of another shape than the batch.
    """
    layers = {name: module for name, module in model.named_modules() if all(hasattr(module, p) for p in _PARTS)}
    if not layers:
        raise ValueError(
            f"record: {type(model).__name__} has no particle layer; give a model of macaron, or a part with its layers"
        )
    trajectories = Trajectories()
    with ExitStack() as watched:
        for name, layer in layers.items():
            watched.enter_context(_Watch(name, layer, real, trajectories))
        for module in model.modules():
            if hasattr(module, "observers") and hasattr(module, "rule"):
                watched.enter_context(_observing(module, trajectories))
        yield trajectories


@contextmanager
def _observing(depth: Any, trajectories: Trajectories) -> Iterator[None]:
    """Let them see the steps of its rule."""
    before = depth.observers
    depth.observers = (*before, trajectories)
    try:
        yield
    finally:
        depth.observers = tuple(observer for observer in depth.observers if observer is not trajectories)
        if not depth.observers:
            vars(depth).pop("observers", None)


class _Watch:
    """In the place of a layer's `integrate`: the same, with its states noted."""

    def __init__(self, name: str, layer: Any, real: Tensor | None, trajectories: Trajectories) -> None:
        self.name, self.layer, self.real, self.trajectories = name, layer, real, trajectories
        self.seen: dict[int, list[Tensor]] = {}  # substep → the state before it; in post-norm Φ(x; h), LN(Φ(x; h))

    def __enter__(self) -> None:
        self.hooks = [
            norm.register_forward_hook(lambda module, args, output, i=i: self.note(i, output))
            for i, norm in enumerate(self.layer.norms)
        ]
        self.own = vars(self.layer).pop("integrate", None)  # of a compiled layer, or of a context around this one
        vars(self.layer)["integrate"] = self

    def __exit__(self, *error: object) -> None:
        del vars(self.layer)["integrate"]
        if self.own is not None:
            vars(self.layer)["integrate"] = self.own
        for hook in self.hooks:
            hook.remove()

    def note(self, index: int, output: tuple[Tensor, Tensor]) -> None:
        if index not in self.seen:  # the first of a solver's stages is at the state itself
            y, z = output
            self.seen[index] = [y.detach()]
            if not self.layer.normalize_before:
                self.seen[index].append(z.detach().clone())  # of the last one it leaves the layer

    def __call__(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor | None]:
        self.seen = {}
        if isinstance(self.own, _Watch):
            result: tuple[Tensor, Tensor | None] = self.own(x, context)
        else:
            result = type(self.layer).integrate(self.layer, x, context)
        self.trajectories._add(self.recorded(x.detach().clone(), context, result[0].detach().clone()))
        self.seen = {}
        return result

    def recorded(self, x: Tensor, context: Any, result: Tensor) -> Recorded:
        flows = list(self.layer.flows)
        batch_first = next((bool(flow.batch_first) for flow in flows if hasattr(flow, "batch_first")), True)
        sentences, real = _who_is_real(x, context, batch_first, self.real)
        particles = [[_particles(t, real, batch_first) for t in self.seen[i]] for i in range(len(flows))]
        end = _particles(result, real, batch_first)
        moves = []
        state = _particles(x, real, batch_first)
        for i, (flow, step) in enumerate(zip(flows, self.layer.steps, strict=True)):
            if self.layer.normalize_before:
                moved = after = particles[i + 1][0] if i + 1 < len(flows) else end
            else:
                moved, after = particles[i]
            moves.append(Move(getattr(flow, "kind", type(flow).__name__), step, state, moved, after))
            state = after
        return Recorded(self.name, tuple(moves), self.layer, x, context, sentences, real, batch_first)


def _particles(x: Tensor, real: Tensor | None, batch_first: bool) -> Tensor:
    if x.dim() == 2:
        return x
    x = x if batch_first else x.transpose(0, 1)  # (B, T, C)
    return x.flatten(0, 1) if real is None else x[real]


def _who_is_real(x: Tensor, context: Any, batch_first: bool, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(N,) the sentence of each particle, and (B, T) which are real, or None for all."""
    around = getattr(context, "surroundings", context)  # Hugging Face models have more around them
    if x.dim() == 2:
        packed = getattr(around, "packed", None)
        if packed is None:
            return torch.zeros(x.size(0), dtype=torch.long, device=x.device), None
        sizes = packed.offsets.diff().long()
        return torch.arange(len(sizes), device=x.device).repeat_interleave(sizes.to(x.device)), None
    if x.dim() != 3:
        raise ValueError(f"record: particles of shape {tuple(x.shape)}; they are (T, B, C), (B, T, C) or (N, C)")
    B, T = (x.size(0), x.size(1)) if batch_first else (x.size(1), x.size(0))
    mask = getattr(around, "mask", None)
    padding, pairs = getattr(mask, "padding", None), getattr(mask, "pairs", None)
    real: Tensor | None = None
    if given is not None:
        if tuple(given.shape) != (B, T) or given.dtype != torch.bool:
            raise ValueError(
                f"record: real is {tuple(given.shape)} {given.dtype}, but the batch has {B} sentences of {T} "
                f"particles; give a bool tensor ({B}, {T})"
            )
        real = given.to(x.device)
    elif padding is not None and padding.size(1) == T:  # a cache's mask is longer than the newest particles
        real = ~padding
    elif pairs is not None:
        real = _seen(pairs, B, T)
    elif getattr(context, "attention_mask", None) is not None:
        raise ValueError(
            "record: the attention function has a mask of its own form, which does not say what is padding; pass "
            "real=attention_mask.bool() to record, or use attn_implementation='sdpa'"
        )
    numbers = torch.arange(B, device=x.device)
    if real is None or bool(real.all()):
        return numbers.repeat_interleave(T), None
    return numbers.repeat_interleave(real.sum(-1)), real


def _seen(pairs: Tensor, B: int, T: int) -> Tensor | None:
    """(B, T): the particles that any particle sees."""
    if pairs.size(-1) != T:
        return None
    seen = pairs if pairs.dtype == torch.bool else pairs > torch.finfo(pairs.dtype).min / 2
    seen = seen.reshape((1,) * (4 - seen.dim()) + tuple(seen.shape))  # (B | 1, H | 1, T | 1, T)
    return seen.any(1).any(1).expand(B, T)


# --- what follows from a record -----------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_wide(x), dim=-1)


def lengths(trajectory: Trajectory) -> Tensor:
    """(K + 1, N): ‖x‖ of the states."""
    return _norm(trajectory.states)


def speeds(trajectory: Trajectory) -> Tensor:
    """(K, N): ‖dx/dt‖ along each substep's flow; the state moves by h ‖dx/dt‖."""
    return _norm(trajectory.velocities)


def cosines(trajectory: Trajectory) -> Tensor:
    """(K − 1, N): v_k · v_{k+1} / (‖v_k‖ ‖v_{k+1}‖) of successive velocities, through all layers; NaN at rest."""
    v = trajectory.velocities
    one, other = v[:-1], v[1:]
    return ((one * other).sum(-1) / (_norm(one) * _norm(other))).clamp(-1.0, 1.0)


def ratios(trajectory: Trajectory, interaction: Collection[str] = INTERACTION) -> Tensor:
    """(L, N): ‖F‖ / ‖G‖ of each layer, interaction to convection.

        F = Σ_{s interaction} c_s v_s,   G = Σ_{s convection} c_s v_s,   c_s the share of Δt

    Args:
        interaction: the kinds of flows that count as F; all others are G.
    """
    result = []
    for recorded in trajectory.layers:
        f = g = torch.zeros_like(recorded.moves[0].velocity)
        for move in recorded.moves:
            moved = move.step * move.velocity
            f, g = (f + moved, g) if move.flow in interaction else (f, g + moved)
        result.append(_norm(f) / _norm(g))
    return torch.stack(result)


def splitting_errors(trajectory: Trajectory) -> Tensor:
    """(L, N): how far two half steps of each layer lead from its one step,

        ‖Ψ(x; Δt) − Ψ(Ψ(x; Δt/2); Δt/2)‖ / ‖x‖

    Ψ(x; τ) is a step τ of the layer's scheme along the layer's own fields, which stay as they are in between. (Step
    doubling, as of Richardson's error estimate: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I,
    II.4.) The errors of the splitting and of its solver are in it together.

    Raises:
        ValueError: post-norm layers, whose step is not that of an ODE; dropout that is switched on; step-wise decoding.
    """

    def error(fields: _Fields, x: Tensor) -> tuple[Tensor, Tensor]:
        half = fields.step(fields.step(x, fields.dt / 2), fields.dt / 2)
        return fields.step(x, fields.dt), half

    return torch.stack([_distance(recorded, error, relative=True) for recorded in trajectory.layers])


def commutators(trajectory: Trajectory, interaction: Collection[str] = INTERACTION) -> Tensor:
    """(L, N): how much the order of the two flows matters in each layer,

        ‖Φ_F(Φ_G(x)) − Φ_G(Φ_F(x))‖

    Φ_F follows the layer's interacting flows for Δt, Φ_G the others, each its substeps in order by the layer's solver.
    For linear fields Fx = Ax, Gx = Bx and Euler's method it is Δt² ‖(AB − BA) x‖.

    Args:
        interaction: the kinds of flows that count as F.

    Raises:
        ValueError: as `splitting_errors`.
    """

    def both_orders(fields: _Fields, x: Tensor) -> tuple[Tensor, Tensor]:
        f = [kind in interaction for kind in fields.kinds]
        g = [not chosen for chosen in f]
        return fields.only(f, fields.only(g, x)), fields.only(g, fields.only(f, x))

    return torch.stack([_distance(recorded, both_orders, relative=False) for recorded in trajectory.layers])


class _Fields:
    """A layer's velocity fields, as they were in the pass, to be walked again."""

    def __init__(self, recorded: Recorded) -> None:
        layer: Any = recorded.layer
        if not layer.normalize_before:
            raise ValueError(
                f"{recorded.name} is post-norm: it normalises the state after each substep, so a step of half the size "
                f"is not half of it, and there is no local error; measure a pre-norm model"
            )
        if any(_draws(module) for module in layer.modules()):
            raise ValueError(
                f"{recorded.name} draws dropout, so its fields are others each time; call model.eval() first"
            )
        caches = getattr(getattr(recorded.context, "surroundings", recorded.context), "caches", None)
        if caches is not None and any(cache is not None for cache in caches):
            raise ValueError(
                f"{recorded.name} was recorded in step-wise decoding, whose caches hold one evaluation of its fields; "
                f"record a pass over the whole sentence"
            )
        self.kinds = [move.flow for move in recorded.moves]
        steps = [move.step for move in recorded.moves]
        self.dt = sum(step for kind, step in zip(self.kinds, steps, strict=True) if kind == self.kinds[0])
        self.substeps = [Substep(kind, step / self.dt) for kind, step in zip(self.kinds, steps, strict=True)]
        self.solver = layer.solver
        self.gates = list(getattr(layer, "gates", None) or ())  # of a solver with learned weights
        pairs = zip(layer.flows, layer.norms, strict=True)
        self.fields = [_field(flow, norm, recorded.context) for flow, norm in pairs]

    def step(self, x: Tensor, dt: float) -> Tensor:
        """Ψ(x; dt)."""
        return self._walk([True] * len(self.kinds), x, dt)

    def only(self, chosen: list[bool], x: Tensor) -> Tensor:
        """Φ(x; Δt) of the chosen substeps; x itself where there are none."""
        return self._walk(chosen, x, self.dt) if any(chosen) else x

    def _walk(self, chosen: list[bool], x: Tensor, dt: float) -> Tensor:
        kept = [i for i, keep in enumerate(chosen) if keep]
        splitting = Splitting("recorded", tuple(self.substeps[i] for i in kept))
        gates = [self.gates[i] for i in kept] if self.gates else None
        fields = [self.fields[i] for i in kept]
        for _, moved in walk(splitting, fields, x, dt=dt, solver=self.solver, weighings=gates):
            x = moved
        return x


def _field(flow: Any, norm: Any, context: Any) -> Field:
    """x ↦ dx/dt of a pre-norm substep."""
    return lambda x: flow(norm(x)[1], context)[0]


def _draws(module: Any) -> bool:
    if isinstance(module, nn.Dropout):
        return module.training and module.p > 0.0
    rate = getattr(module, "rate", None)  # macaron.particles.Dropout's
    return callable(rate) and rate() > 0.0


@torch.no_grad()
def _distance(recorded: Recorded, pair: Callable[[_Fields, Tensor], tuple[Tensor, Tensor]], relative: bool) -> Tensor:
    """(N,): ‖a − b‖ of the two states, or that / ‖x‖."""
    one, other = (_wide(recorded.particles(x)) for x in pair(_Fields(recorded), recorded.x))
    distance = _norm(one - other)
    return distance / _norm(recorded.moves[0].before) if relative else distance


class Lens(NamedTuple):
    """What the output layer reads from each state; all (K + 1, N).

    Fields:
        words: the most probable word, its number.
        probabilities: of that word.
        last: the probability of the word that is the most probable one at the end.
        entropy: of the distribution, −Σ p ln p, in nats.
    """

    words: Tensor
    probabilities: Tensor
    last: Tensor
    entropy: Tensor


@torch.no_grad()
def logit_lens(trajectory: Trajectory, readout: Callable[[Tensor], Tensor]) -> Lens:
    """The words that a model would give if it stopped after each substep (nostalgebraist 2020, "logit lens"):

        p = softmax(readout(x))

    Args:
        readout: (N, C) → (N, V) logits, the final normalisation and the output layer.
    """
    states = trajectory.states
    end = readout(states[-1]).argmax(-1)  # (N,)
    columns: list[tuple[Tensor, ...]] = []
    for x in states:  # one by one: (N, V) may be large
        logs = F.log_softmax(_wide(readout(x)), dim=-1)
        most, words = logs.max(-1)
        entropy = -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1)  # 0 · (−∞) is 0
        columns.append((words, most.exp(), logs.gather(-1, end.unsqueeze(-1)).squeeze(-1).exp(), entropy))
    return Lens(*map(torch.stack, zip(*columns, strict=True)))


class Plane(NamedTuple):
    """Points in the plane of their first two principal components.

    Fields:
        points: (…, 2) coordinates, in units of the states.
        explained: (2,) the share of the variance along each axis, 0 … 1.
    """

    points: Tensor
    explained: Tensor


def principal_plane(states: Tensor) -> Plane:
    """The plane in which the states, all of them together, spread most: x − x̄ projected on two right singular vectors.

    Of each axis the sign is such that its largest component is positive, so that the same states give the same
    picture.

    Args:
        states: (…, C), at least one.
    """
    x = states.detach().double().flatten(0, -2)
    x = x - x.mean(0)
    _, sizes, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:2]  # (≤ 2, C)
    largest = axes.gather(-1, axes.abs().argmax(-1, keepdim=True))
    points = x @ (axes * largest.sign()).T
    variances = sizes.square()
    explained = variances[:2] / variances.sum().clamp(min=torch.finfo(x.dtype).tiny)
    missing = 2 - axes.size(0)
    return Plane(F.pad(points, (0, missing)).unflatten(0, states.shape[:-1]), F.pad(explained, (0, missing)))
