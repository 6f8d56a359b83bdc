"""Adversarial training of whatever has a first part and a rest: PGD, FreeAT, FreeLB and YOPO, on images and on text.

    attack = Attack("yopo", steps=5, inner_steps=3, step_size=2 / 255, norm="linf-sign", radius=8 / 255,
                    init=8 / 255, bounds=(0.0, 1.0))
    split = Split.at(net.conv1, lambda x: F.cross_entropy(net(x), label))
    outcome = train(split, images, attack)  # gradients are added to .grad
    optimizer.step()

The adversary δ enters at time 0 only. By Pontryagin's principle its gradient then factors through the co-state at the
output of the first part f₀,

    ∂L/∂δ = ∂⟨p, f₀(x + δ)⟩/∂δ,    p = ∂L/∂f₀,

so that with p frozen any number of its steps costs the first part alone (You Only Propagate Once, Zhang et al. 2019,
arXiv:1905.00877; there p has the opposite sign). For text the first part is the embedding and all that stands before
the output of the first layer, `Depth[0]`; for images it is the first convolution.

Shapes: x and δ are (B, …), as images (B, C, H, W) and embeddings (B, T, C); or packed, (N, C) and (1, N, C), with
`sentences` telling whose each position is. An item is one sentence or image; norms and projections are per item.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from macaron.dynamics.depth import Depth
from macaron.dynamics.draws import SameDraws

__all__ = [
    "METHODS",
    "NORMS",
    "Attack",
    "Method",
    "Outcome",
    "Pass",
    "Split",
    "added",
    "perturb",
    "start",
    "train",
]

Watch = Callable[[Tensor], Tensor]

NORMS = ("l2", "linf-sign", "linf-largest")


# --- attacks as data ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """How a method counts, with K = `Attack.steps`.

    Fields:
        passes: K ↦ full passes of a batch.
        divisor: K ↦ what the loss of each is divided by.
        trains_last_only: whether only the last pass leaves gradients in the parameters.
        ascends_last: whether δ moves after the last pass, too.
        inner: whether δ moves `inner_steps` times along the frozen co-state instead of once along ∂L/∂δ.
        full: s ↦ whether the first part gets its gradient of full pass s.
        hamiltonian: whether it gets that of ⟨p, f₀(x + δ)⟩ at the moved δ.
    """

    passes: Callable[[int], int]
    divisor: Callable[[int], int] = lambda steps: 1
    trains_last_only: bool = False
    ascends_last: bool = False
    inner: bool = False
    full: Callable[[int], bool] = lambda s: True
    hamiltonian: bool = False


def _yopo(full: Callable[[int], bool] = lambda s: True, hamiltonian: bool = True) -> Method:
    return Method(lambda m: m, ascends_last=True, inner=True, full=full, hamiltonian=hamiltonian)


METHODS = {
    "natural": Method(lambda steps: 1),
    "pgd": Method(lambda steps: steps + 1, trains_last_only=True),
    "freeat": Method(lambda steps: 1, lambda steps: steps + 1, ascends_last=True),
    "freelb-fairseq": Method(lambda steps: steps + 1, lambda steps: steps + 1),
    "freelb-hf": Method(lambda steps: steps, lambda steps: steps),
    "yopo-fairseq": Method(lambda steps: steps + 1, lambda steps: steps + 1, inner=True),
    "yopo": _yopo(),
    "yopo-full": _yopo(hamiltonian=False),
    "yopo-hamiltonian": _yopo(full=lambda s: False),
    "yopo-restored": _yopo(full=lambda s: s > 0),
}


@dataclass(frozen=True)
class Attack:
    """An adversary and how it is trained against; K = steps, n = inner_steps.

    | method | full passes | ascents | each loss divided by |
    |---|---|---|---|
    | `natural` | 1 | 0 | 1 |
    | `pgd` | K + 1, only the last trains | K | 1 |
    | `freeat`: one update, δ is handed to the next | 1 | 1 | K + 1 |
    | `freelb-fairseq` | K + 1 | K | K + 1 |
    | `freelb-hf`: FreeLB's other version | K | K − 1 | K |
    | `yopo-fairseq`: YOPO on text | K + 1 | K n on the first part | K + 1 |
    | `yopo`: on images, m = K | K | K n on the first part | 1 |

    Text and images count as their authors' code does (zhuchen03/FreeLB; a1600012888/YOPO-You-Only-Propagate-Once, whose
    learning rate is divided by m instead); `scale` of `train` puts another factor before every loss.

    On images, after the n ascents of each pass, the authors add the gradient of ⟨p, f₀(x + δ)⟩ at the moved δ to the
    first part's parameters, beside that of the full pass. This is `yopo`; `yopo-full` and `yopo-hamiltonian` keep one
    of the two. `yopo-restored` loses the first of the full passes, as their code with the restoring lines does where
    `zero_grad` sets gradients to None; it serves to reproduce only.

    The ascent of an item with gradient g is

        l2              δ ← δ + step_size · g / ‖g‖₂
        linf-sign       δ ← δ + step_size · sign(g)
        linf-largest    δ ← δ + step_size · g / max|g|      FreeLB's linf

    then the projection: l2 rescales δ to the radius where it is longer, linf clips its entries; then x + δ is clipped
    to the bounds. Where g is 0 or not finite (a loss scale that overflowed) δ of that item stays.

    Fields:
        method: one of `METHODS`.
        steps: K, at least 1.
        inner_steps: n of the YOPO methods.
        step_size: in units of x.
        norm: one of `NORMS`.
        radius: of the ball, in that norm; None projects nothing (FreeLB's max_norm 0).
        init: magnitude of δ₀, see `start`; 0 starts at x. Nothing is projected before the first pass, as published.
        bounds: least and largest value of an image, within [0, 1]; None for text. As published, full passes see x + δ₀
            unclipped; all later δ respect the bounds.

    Raises:
        ValueError: a value that breaks these rules.
    """

    method: str
    steps: int = 1
    inner_steps: int = 1
    step_size: float = 0.0
    norm: str | None = None
    radius: float | None = None
    init: float = 0.0
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            near = [name for name in METHODS if name.startswith(f"{self.method}-")] if self.method else []
            hint = f"; it is counted in several ways, say which: {', '.join(near)}" if near else ""
            raise ValueError(f"Attack: method={self.method!r} is unknown; choose one of {', '.join(METHODS)}{hint}")
        for name in ("steps", "inner_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Attack: {name}={value!r} must be a whole number of at least 1")
        if self.inner_steps != 1 and not self.rule.inner:
            inner = ", ".join(name for name, rule in METHODS.items() if rule.inner)
            raise ValueError(
                f"Attack: inner_steps={self.inner_steps} with method {self.method!r}; only {inner} take it"
            )
        if self.norm is not None and self.norm not in NORMS:
            raise ValueError(f"Attack: norm={self.norm!r} is unknown; choose one of {', '.join(NORMS)}")
        for name in ("step_size", "radius", "init"):
            value = getattr(self, name)
            if not (value is None and name == "radius") and not (_is_number(value) and value >= 0.0):
                raise ValueError(f"Attack: {name}={value!r} must be a finite number of at least 0")
        if self.radius is not None and self.norm is None:
            raise ValueError(
                f"Attack: radius={self.radius} without a norm bounds nothing; choose norm= one of {', '.join(NORMS)}"
            )
        if self.radius == 0.0:
            raise ValueError("Attack: radius=0 leaves no room to move; radius=None projects nothing")
        if self.moves and (self.norm is None or self.step_size == 0.0):
            raise ValueError(
                f"Attack: method {self.method!r} moves δ, but norm={self.norm!r} and step_size={self.step_size}; give "
                f"a step_size above 0 and a norm, one of {', '.join(NORMS)}"
            )
        if self.bounds is not None:
            pair = tuple(self.bounds)
            if len(pair) != 2 or not all(_is_number(value) for value in pair) or not 0.0 <= pair[0] < pair[1] <= 1.0:
                raise ValueError(
                    f"Attack: bounds={self.bounds!r} must be two numbers 0 ≤ least < largest ≤ 1; radius and step_size "
                    f"are in units of pixels between 0 and 1, so put a normalisation into the model"
                )
            object.__setattr__(self, "bounds", pair)

    @classmethod
    def of(cls, name: str, *, steps: int | None = None, inner_steps: int | None = None, **options: Any) -> Attack:
        """From a method, or in short notation METHOD-K or METHOD-K-n: `yopo-3-3`, `freelb-fairseq-2`.

        Args:
            name: the method, with or without its counts.
            steps, inner_steps: in their place; None is 1 where the name says nothing.
            options: all else of `Attack`.

        Raises:
            ValueError: counts that are said twice and differ, and as `Attack`.
        """
        method, said = name, list[int]()
        if method not in METHODS and (found := re.fullmatch(r"(.*?)((?:-\d+){1,2})", name)):
            method, said = found[1], [int(count) for count in found[2].split("-")[1:]]
        counts = {"steps": steps, "inner_steps": inner_steps}
        for what, short in zip(counts, said, strict=False):
            if counts[what] not in (None, short):
                raise ValueError(
                    f"Attack: {name!r} says {what}={short}, and {what}={counts[what]} is given beside it; say it once"
                )
            counts[what] = short
        options |= {what: value for what, value in counts.items() if value is not None}
        return cls(method, **options)

    @property
    def rule(self) -> Method:
        return METHODS[self.method]

    @property
    def moves(self) -> bool:
        """Whether there is an adversary at all."""
        return self.method != "natural"

    @property
    def passes(self) -> int:
        """Full passes of a batch."""
        return self.rule.passes(self.steps)

    @property
    def divisor(self) -> int:
        """What the loss of each pass is divided by."""
        return self.rule.divisor(self.steps)

    @property
    def mean(self) -> float:
        """The `scale` of `train` under which a batch weighs what it weighs without an adversary, by any method.

        Then its gradient is the mean over the passes that train. Where losses are summed, this 1 / m stands for the
        published learning rate's.
        """
        trained = 1 if self.rule.trains_last_only else self.passes
        return self.divisor / trained


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- the split model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A model of one batch, cut behind its first part.

    Fields:
        first: x ↦ f₀(x), one tensor, in the same random numbers as the full pass: the beginning of it.
        whole: (x, watch) ↦ scalar loss of the full pass. It calls `watch` once with f₀(x) and goes on with what that
            returns. Under DistributedDataParallel this is where the wrapped model is called.
        entire: run the backward pass of `whole` in one go and read p off on the way, instead of the rest and then the
            first part: also under DistributedDataParallel with find_unused_parameters. Then `whole` may show several
            states to its watch, and `first` returns as many in that order, each a function of x with all else of the
            pass held fixed, as a decoder's first layer beside an encoder's. Not for methods that give the first part
            another gradient than that of every full pass.
    """

    first: Callable[[Tensor], Tensor | tuple[Tensor, ...]]
    whole: Callable[[Tensor, Watch], Tensor]
    entire: bool = False

    @classmethod
    def of(cls, first: Callable[[Tensor], Tensor], rest: Callable[[Tensor], Tensor]) -> Split:
        """From two callables: x ↦ f₀(x), and f₀(x) ↦ scalar loss."""
        return cls(first, lambda x, watch: rest(watch(first(x))))

    @classmethod
    def at(
        cls,
        module: nn.Module,
        loss: Callable[[Tensor], Tensor],
        first: Callable[[Tensor], Any] | None = None,
        *,
        entire: bool = False,
    ) -> Split:
        """Cut an unchanged model behind one of its modules, or behind the first step of its depth.

        Args:
            module: its output, or the first of its outputs, is f₀(x). It has to be called once in a pass, and all that
                the rest sees of x has to go through it. Of a `Depth` that is the state after its first step, by any
                rule that looks one state back, also where that step drops its layer.
            loss: x ↦ scalar loss of the full pass.
            first: what runs the model up to `module` where that is not `loss`: under DistributedDataParallel the same
                with the model without its wrapper. It is left as soon as the state is there.
            entire: see above.
        """

        def leave(state: Tensor) -> Tensor:
            raise _EnoughError(state)

        def run_first(x: Tensor) -> Tensor:
            try:
                with _watching(module, leave):
                    (first or loss)(x)
            except _EnoughError as enough:
                return enough.state
            raise AssertionError("a pass goes on behind its first part")

        def run_whole(x: Tensor, watch: Watch) -> Tensor:
            with _watching(module, watch):
                return loss(x)

        return cls(run_first, run_whole, entire)


@contextmanager
def _watching(module: nn.Module, watch: Watch) -> Iterator[None]:
    """Show f₀(x) to the watch, once a pass."""
    name, calls = type(module).__name__, 0

    def once(state: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ValueError(
                f"the model cannot be split: {name} is called more than once in a pass, so its output is no state "
                f"that all the rest follows from; split behind another module, or behind the first step of a Depth"
            )
        if not isinstance(state, Tensor):
            raise ValueError(
                f"the model cannot be split: {name} returns {type(state).__name__}, not a tensor; split behind a "
                f"module whose (first) output is the state"
            )
        return watch(state)

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple) and output:
            return (once(output[0]), *output[1:])
        return once(output)

    if isinstance(module, Depth):
        if module.watch is not None:
            raise ValueError("this Depth is watched already; use one split of a model at a time")
        module.watch = once
    else:
        handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        if isinstance(module, Depth):
            module.watch = None
        else:
            handle.remove()
    if not calls:
        raise ValueError(
            f"the model cannot be split: {name} was not called in the pass; split behind a module that every pass "
            f"calls, and never drops"
        )


class _EnoughError(Exception):
    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


class _Cut:
    """A watch that takes the first part's output out of the graph, so that p is the gradient of a leaf."""

    def __init__(self) -> None:
        self.state: Tensor | None = None
        self.leaf: Tensor | None = None

    def __call__(self, state: Tensor) -> Tensor:
        if not isinstance(state, Tensor) or not state.is_floating_point():
            raise ValueError(
                f"the model cannot be split: the first part returns {type(state).__name__}, not one tensor of real "
                f"numbers; let the rest close over what else it needs"
            )
        self.state, self.leaf = state, state.detach().requires_grad_()
        return self.leaf


class _Tap:
    """A watch that leaves the graph as it is and notes the gradient that comes by."""

    def __init__(self) -> None:
        self.gradients: list[Tensor | None] = []

    def __call__(self, state: Tensor) -> Tensor:
        place = len(self.gradients)
        self.gradients.append(None)

        def note(gradient: Tensor) -> None:
            self.gradients[place] = gradient

        if state.requires_grad:
            state.register_hook(note)
        return state

    def costates(self) -> tuple[Tensor, ...]:
        """p of each state, after the backward pass."""
        if not self.gradients:
            raise ValueError("the model cannot be split: `whole` did not call its watch with the first part's output")
        found = tuple(gradient for gradient in self.gradients if gradient is not None)
        if len(found) < len(self.gradients):
            raise ValueError(
                "the model cannot be split: the loss does not depend on what was shown to the watch; show it the state "
                "that all the rest follows from"
            )
        return found


def _costate(cut: _Cut, delta: Tensor) -> Tensor:
    """p after the backward pass of the rest."""
    if cut.leaf is None:
        raise ValueError("the model cannot be split: `whole` did not call its watch with the first part's output")
    if cut.leaf.grad is None:
        raise ValueError(
            "the model cannot be split: the loss does not depend on what the watch returned; the rest has to go on "
            "with that tensor (re-entrant activation checkpointing must not enclose the cut)"
        )
    if delta.grad is not None and bool(delta.grad.ne(0).any()):
        raise ValueError(_BYPASSED)
    return cut.leaf.grad


_BYPASSED = (
    "the model cannot be split here: the rest sees the input not only through the first part's output (as under a "
    "multistep rule across depth, or where the cut lies inside a residual branch), so the co-state does not carry the "
    "adversary's whole gradient; split where all of the state passes"
)
_ROUNDING = 0.25  # of the largest entry: two ways to one gradient, in bfloat16 too


# --- where δ lives ------------------------------------------------------------------------------------------------


class _Ball:
    """Which entries of δ may move, whose they are, and the geometry of each item."""

    def __init__(
        self,
        clean: Tensor,
        attack: Attack,
        padding: Tensor | None = None,
        movable: Tensor | None = None,
        sentences: Tensor | None = None,
    ) -> None:
        if not clean.is_floating_point() or clean.dim() < 1:
            raise ValueError(
                f"the adversary moves real numbers, but the clean input is {clean.dtype} of shape "
                f"{tuple(clean.shape)}; give images or embeddings, not tokens"
            )
        self.attack = attack
        self.clean = clean.detach()
        self.free = _free(clean, padding, movable)
        if attack.bounds is not None:
            low, high = attack.bounds
            if clean.numel() and not bool(((self.clean >= low) & (self.clean <= high)).all()):
                raise ValueError(
                    f"the images have values from {self.clean.min().item():.4g} to {self.clean.max().item():.4g}, "
                    f"outside of bounds=({low}, {high}); give pixels, and put a normalisation into the model"
                )
        # Narrow types would lose steps that are small beside x.
        wide = torch.float32 if clean.dtype.itemsize < 4 else clean.dtype
        self.empty = torch.zeros(clean.shape, dtype=wide, device=clean.device)
        self.item = torch.arange(clean.size(0), device=clean.device) if sentences is None else sentences
        if self.item.is_floating_point() or self.item.dtype == torch.bool or not _leads(self.item, clean):
            raise ValueError(
                f"sentences has {self.item.dtype} and shape {tuple(self.item.shape)}; give a whole number for each "
                f"position of the input of shape {tuple(clean.shape)}"
            )
        self.item = self.item.long()
        if self.item.numel() and int(self.item.min()) < 0:
            raise ValueError("sentences holds negative numbers; number them from 0, and leave padding to `padding`")
        self.items = clean.size(0) if sentences is None else int(self.item.max()) + 1 if self.item.numel() else 0

    def _rows(self, values: Tensor) -> Tensor:
        return values.reshape(self.item.numel(), math.prod(values.shape[self.item.dim() :]))

    def largest(self, values: Tensor) -> Tensor:
        """(items,) the largest |entry| of each."""
        rows = self._rows(values.abs()).amax(1)
        return rows.new_zeros(self.items).scatter_reduce(0, self.item.flatten(), rows, "amax")

    def sums(self, values: Tensor) -> Tensor:
        """(items,) the sum of the entries of each."""
        rows = self._rows(values).sum(1)
        return rows.new_zeros(self.items).index_add(0, self.item.flatten(), rows)

    def norm(self, values: Tensor) -> Tensor:
        """(items,) the attack's norm of each."""
        return self.sums(values.square()).sqrt() if self.attack.norm == "l2" else self.largest(values)

    def spread(self, values: Tensor) -> Tensor:
        """A value of each item (items,), to a tensor that broadcasts with δ."""
        return values[self.item].reshape(*self.item.shape, *[1] * (self.empty.dim() - self.item.dim()))

    def start(self, draw: Tensor) -> Tensor:
        """δ₀ from a draw of U(−1, 1)."""
        if self.free is not None:
            draw = torch.where(self.free, draw, 0.0)
        if self.attack.norm != "l2":
            return draw * self.attack.init
        ones = torch.ones_like(draw)
        entries = self.sums(ones if self.free is None else torch.where(self.free, ones, 0.0))
        return draw * self.spread(self.attack.init / entries.clamp(min=1.0).sqrt())

    def given(self, delta: Tensor) -> Tensor:
        """A δ from outside, checked."""
        if delta.shape != self.empty.shape:
            raise ValueError(
                f"start has shape {tuple(delta.shape)}, the input {tuple(self.empty.shape)}; give a δ for this batch"
            )
        delta = delta.detach().to(self.empty)
        if not bool(delta.isfinite().all()):
            raise ValueError("start holds values that are not finite; give a finite δ")
        if self.free is not None and bool((delta.ne(0) & ~self.free).any()):
            raise ValueError("start is not 0 at padding or at another position that may not move; zero it there")
        return delta

    def ascend(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """One step along the gradient, and back into the ball and the bounds."""
        attack = self.attack
        gradient = gradient.to(delta.dtype)
        if self.free is not None:
            gradient = torch.where(self.free, gradient, 0.0)
        largest = self.largest(gradient)
        usable = self.spread(largest.isfinite() & (largest > 0))
        if attack.norm == "linf-sign":
            direction = gradient.sign()
        else:
            direction = gradient / self.spread(largest)
            if attack.norm == "l2":  # of numbers near 1, whose squares neither overflow nor vanish
                length = self.sums(torch.where(usable, direction, 0.0).square()).sqrt()
                direction = direction / self.spread(length)
        delta = delta + attack.step_size * torch.where(usable, direction, 0.0)
        return self.project(delta)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest δ in the ball; then x + δ within the bounds, which takes it nearer to 0 only."""
        radius = self.attack.radius
        if radius is not None and self.attack.norm == "l2":
            norm = self.norm(delta)
            delta = delta * self.spread(torch.where(norm > radius, radius / norm, 1.0))
        elif radius is not None:
            delta = delta.clamp(-radius, radius)
        if self.attack.bounds is not None:
            clean = self.clean.to(delta.dtype)
            moved = (clean + delta).clamp(*self.attack.bounds) - clean
            delta = moved if self.free is None else torch.where(self.free, moved, 0.0)
        return delta


def _leads(mask: Tensor, clean: Tensor) -> bool:
    return 1 <= mask.dim() <= clean.dim() and mask.shape == clean.shape[: mask.dim()]


def _free(clean: Tensor, padding: Tensor | None, movable: Tensor | None) -> Tensor | None:
    """Where δ may move, broadcasting with it; None for everywhere."""
    for name, mask in (("padding", padding), ("movable", movable)):
        if mask is not None and (mask.dtype != torch.bool or not _leads(mask, clean)):
            raise ValueError(
                f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; give booleans for the positions of the input of "
                f"shape {tuple(clean.shape)}, with the leading dimensions of that"
            )

    def wide(mask: Tensor) -> Tensor:
        return mask.reshape(*mask.shape, *[1] * (clean.dim() - mask.dim()))

    if movable is not None and padding is not None:
        both = wide(movable) & wide(padding)
        if bool(both.any()):
            raise ValueError(
                f"the attack would move padding: movable is true at {int(both.sum())} positions of padding; take them "
                f"out of it (movable & ~padding)"
            )
    if movable is not None:
        return wide(movable)
    return None if padding is None else ~wide(padding)


def start(
    clean: Tensor,
    attack: Attack,
    *,
    padding: Tensor | None = None,
    movable: Tensor | None = None,
    sentences: Tensor | None = None,
    draw: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """δ₀: entries of U(−1, 1) times `init`, under l2 divided by √(entries of the item that may move); 0 elsewhere.

    For text these entries are tokens · C. With init = radius this is an image's start, U(−ε, ε).

    Args:
        clean: (B, …) x.
        attack, padding, movable, sentences: see `train`.
        draw: the random numbers, in the shape of x; drawn where not given.
        generator: of these.
    """
    return _start(_Ball(clean, attack, padding, movable, sentences), draw, generator)


def _start(ball: _Ball, draw: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if draw is None:
        if ball.attack.init == 0.0 or not ball.attack.moves:
            return ball.empty
        draw = torch.empty_like(ball.empty).uniform_(-1.0, 1.0, generator=generator)
    if draw.shape != ball.empty.shape:
        raise ValueError(f"draw has shape {tuple(draw.shape)}, the input {tuple(ball.empty.shape)}; they must be equal")
    return ball.start(draw.to(ball.empty))


# --- the engine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One full pass, for who looks on.

    Fields:
        number: s = 0, 1, …
        loss: () as the model returned it.
        delta: (B, …) δ of the pass.
        moved: (B, …) δ after the ascents that follow it; `delta` where none do.
        costate: p = ∂(scaled loss)/∂f₀, several where the split shows several states; None where no inner ascents
            follow.
    """

    number: int
    loss: Tensor
    delta: Tensor
    moved: Tensor
    costate: Tensor | tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a batch left behind, beside the gradients.

    Fields:
        delta: (B, …) the last δ; FreeAT's next batch of the same items starts there.
        loss: () the sum of the scaled losses of the passes that train.
        losses: (passes,) the losses as the model returned them.
        norms: (passes, items) of δ in each pass, in the attack's norm (largest entry where there is none).
    """

    delta: Tensor
    loss: Tensor
    losses: Tensor
    norms: Tensor


def train(
    split: Split,
    clean: Tensor | Callable[[], Tensor],
    attack: Attack,
    *,
    padding: Tensor | None = None,
    movable: Tensor | None = None,
    sentences: Tensor | None = None,
    start: Tensor | None = None,
    scale: float = 1.0,
    backward: Callable[[Tensor], Any] | None = None,
    magnify: float = 1.0,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    frozen: Iterable[nn.Parameter] = (),
    generator: torch.Generator | None = None,
    observe: Callable[[Pass], Any] | None = None,
) -> Outcome:
    """Add the gradients of one batch under attack to the parameters' `.grad`; the optimiser's step is the caller's.

    Every pass of the batch and every inner ascent sees the same random numbers (dropout masks, layers dropped), as if
    it were the only one; afterwards the generators stand where one pass would leave them. Modes are the caller's: in
    training mode batch normalisation takes every full pass into its running statistics. No gradient is read, so it
    does not matter how `zero_grad` clears them, nor what accumulation has left there.

    Args:
        split: the model of this batch. Autocast belongs into its callables.
        clean: (B, …) x; or () ↦ x for what has parameters, as embeddings, which is then looked up anew for each pass.
            Where the model adds δ itself, zeros in its shape: x + δ is then δ.
        attack: see `Attack`.
        padding: True where x is padding, in the leading dimensions of x. δ is 0 there.
        movable: True where the adversary may move, e.g. not at special tokens; everywhere but at padding otherwise.
        sentences: the item of each position, from 0, in the leading dimensions of x, for packed batches.
        start: δ₀; drawn where not given, see `start`.
        scale: times every loss, e.g. 1 / batches accumulated.
        backward: what a host does for `loss.backward()`, e.g. with its loss scaler.
        magnify: times the loss in backward passes that train nothing, PGD's ascents, where a narrow type would lose
            the gradient: the loss scaler's factor. δ does not depend on it otherwise.
        no_sync: () ↦ a context that keeps gradients from being reduced over processes, as DistributedDataParallel's:
            entered for every pass but the last, so that there is one reduction a batch. YOPO runs the last backward
            pass in two parts, the rest and then the first part: not with find_unused_parameters, but for an `entire`
            split.
        frozen: parameters whose gradients are switched off in what concerns δ alone (PGD's ascents, inner ascents).
            Needed with re-entrant activation checkpointing only, which knows no gradients of chosen inputs: then all
            of the model's.
        generator: of δ₀.
        observe: called after each pass.

    Raises:
        ValueError: input that breaks these rules, or a model that cannot be split there.
    """
    engine = _Engine(split, clean, attack, padding, movable, sentences, tuple(frozen))
    delta = engine.ball.given(start) if start is not None else _start(engine.ball, None, generator)
    for name, value in (("scale", scale), ("magnify", magnify)):
        if not _is_number(value):
            raise ValueError(f"{name}={value!r} must be a finite number")
    rule, share = attack.rule, scale / attack.divisor
    if split.entire and (rule.hamiltonian or not all(rule.full(s) for s in range(attack.passes))):
        raise ValueError(
            f"method {attack.method!r} gives the first part another gradient than the full passes', for which they "
            f"are run backward in two parts, but the split asks for one; take yopo-full or yopo-fairseq"
        )
    run_backward = backward or torch.Tensor.backward
    losses, norms, total = [], [], torch.zeros((), dtype=delta.dtype, device=delta.device)
    for s in range(attack.passes):
        last = s + 1 == attack.passes
        ascends = attack.moves and (not last or rule.ascends_last)
        norms.append(engine.ball.norm(delta))
        moved: Tensor = delta
        costate: Tensor | tuple[Tensor, ...] | None = None
        with nullcontext() if last else no_sync():
            if rule.trains_last_only and not last:
                loss, gradient = engine.gradient(delta, magnify)
                moved = engine.ball.ascend(delta, gradient)
            elif rule.inner and ascends and split.entire:
                tap, leaf = _Tap(), delta.detach().requires_grad_()
                loss = engine.loss(leaf, tap)
                run_backward(loss * share)
                costates, known = tap.costates(), _present(leaf.grad)
                if s == 0:
                    _same(engine.first_gradient(moved, *costates), known)
                moved = engine.inner(moved, known, *costates)
                costate = costates if len(costates) > 1 else costates[0]
            elif rule.inner and ascends:
                cut, leaf = _Cut(), delta.detach().requires_grad_()
                loss = engine.loss(leaf, cut)
                run_backward(loss * share)
                costate = _costate(cut, leaf)
                known = None
                if rule.full(s) and not rule.hamiltonian:
                    _backward([cut.state], costate)
                    # with bounds f₀ is taken of the clipped input, and the full pass may have seen another
                    known = leaf.grad if attack.bounds is None else None
                moved = engine.inner(moved, known, costate)
                if rule.hamiltonian:  # in one go: a parameter's gradient is complete once for each pass
                    _backward([*([cut.state] if rule.full(s) else []), *engine.first(moved)], costate)
            else:
                leaf = delta.detach().requires_grad_(ascends)
                loss = engine.loss(leaf, lambda state: state)
                run_backward(loss * share)
                if ascends:
                    moved = engine.ball.ascend(delta, _present(leaf.grad))
        losses.append(loss.detach())
        if last or not rule.trains_last_only:
            total = total + loss.detach() * share
        if observe is not None:
            observe(Pass(s, loss.detach(), delta, moved, costate))
        delta = moved
    engine.finish()
    return Outcome(delta, total, torch.stack(losses), torch.stack(norms))


def perturb(
    split: Split,
    clean: Tensor | Callable[[], Tensor],
    attack: Attack,
    *,
    padding: Tensor | None = None,
    movable: Tensor | None = None,
    sentences: Tensor | None = None,
    start: Tensor | None = None,
    frozen: Iterable[nn.Parameter] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """δ after `steps` ascents of PGD, for an evaluation; no gradient is left anywhere.

    Put the model into evaluation mode before, as the authors do. Arguments as for `train`.

    Raises:
        ValueError: another method than "pgd", inference mode, and as in `train`.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "perturb: torch.inference_mode() forbids the gradients that an attack needs; use torch.no_grad()"
        )
    if attack.method != "pgd":
        raise ValueError(f"perturb: method {attack.method!r} is a way to train; evaluate with method='pgd'")
    engine = _Engine(split, clean, attack, padding, movable, sentences, tuple(frozen))
    delta = engine.ball.given(start) if start is not None else _start(engine.ball, None, generator)
    for _ in range(attack.steps):
        delta = engine.ball.ascend(delta, engine.gradient(delta)[1])
    engine.finish()
    return delta


class _Engine:
    """The passes of one batch, all in the same random numbers."""

    def __init__(
        self,
        split: Split,
        clean: Tensor | Callable[[], Tensor],
        attack: Attack,
        padding: Tensor | None,
        movable: Tensor | None,
        sentences: Tensor | None,
        frozen: tuple[nn.Parameter, ...],
    ) -> None:
        self.split, self.frozen = split, frozen
        if isinstance(clean, Tensor):
            value = clean.detach()
            self.clean: Callable[[], Tensor] = lambda: value
        else:
            self.clean = clean
            devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
            # A look at its shape, no pass; with gradients, or autocast would keep casts of parameters without them.
            with torch.random.fork_rng(devices):
                value = clean()
        self.ball = _Ball(value, attack, padding, movable, sentences)
        self.device = value.device
        self.draws: SameDraws | None = None
        self.after = SameDraws(self.device)

    def same(self) -> SameDraws:
        """The random numbers of the batch, which begin after δ₀ was drawn."""
        if self.draws is None:
            self.draws = SameDraws(self.device)
        return self.draws

    def finish(self) -> None:
        """The generators to where a full pass leaves them: the first part alone has drawn less."""
        with self.after:
            pass

    def input(self, delta: Tensor, clip: bool = False) -> Tensor:
        """x + δ in the type of x."""
        clean = self.clean()
        x = clean.to(delta.dtype) + delta
        if clip and self.ball.attack.bounds is not None:
            x = x.clamp(*self.ball.attack.bounds)
        return x.to(clean.dtype)

    def loss(self, delta: Tensor, watch: Watch) -> Tensor:
        """The loss of a full pass, () with its graph."""
        with self.same():
            loss = self.split.whole(self.input(delta), watch)
        with self.after:  # where a pass leaves the generators
            pass
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"a pass has to return a scalar loss, not {shape}; sum or average it")
        return loss.reshape(())

    def first(self, delta: Tensor) -> list[Tensor]:
        """f₀(x + δ), within the bounds."""
        with self.same():
            states = self.split.first(self.input(delta, clip=True))
        return list(states) if isinstance(states, tuple) else [states]

    def gradient(self, delta: Tensor, magnify: float = 1.0) -> tuple[Tensor, Tensor]:
        """The loss of a full pass and `magnify` times its gradient by δ, which leaves none in the parameters."""
        leaf = delta.detach().requires_grad_()
        with torch.enable_grad(), _off(self.frozen):
            loss = self.loss(leaf, lambda state: state)
            return loss.detach(), self._by(leaf, [loss], [torch.full_like(loss, magnify)])

    def first_gradient(self, delta: Tensor, *costates: Tensor) -> Tensor:
        """∂⟨p, f₀(x + δ)⟩/∂δ, over all states the sum."""
        leaf = delta.detach().requires_grad_()
        with _off(self.frozen):
            states = self.first(leaf)
            alone, whole = ([tuple(each.shape) for each in every] for every in (states, costates))
            if alone != whole:
                raise ValueError(
                    f"the model cannot be split: the first part alone returns shape {_list(alone)}, in the full pass "
                    f"{_list(whole)}; both have to be the same computation"
                )
            return self._by(leaf, states, costates)

    def inner(self, delta: Tensor, known: Tensor | None, *costates: Tensor) -> Tensor:
        """δ after the inner ascents; `known` is the gradient of the first of them, None where it has to be computed."""
        for n in range(self.ball.attack.inner_steps):
            at_hand = known if n == 0 else None
            gradient = self.first_gradient(delta, *costates) if at_hand is None else at_hand
            delta = self.ball.ascend(delta, gradient)
        return delta

    def _by(self, leaf: Tensor, ends: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        pairs = [(end, weight) for end, weight in zip(ends, weights, strict=True) if end.requires_grad]
        if not pairs:
            return _present(None)
        used, by = zip(*pairs, strict=True)
        if self.frozen:
            torch.autograd.backward(used, by)
            return _present(leaf.grad)
        return _present(torch.autograd.grad(used, leaf, by, allow_unused=True)[0])


def _backward(states: Sequence[Tensor | None], costate: Tensor) -> None:
    ends = [state for state in states if state is not None and state.requires_grad]
    if ends:
        torch.autograd.backward(ends, [costate] * len(ends))


def _list(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))


def _same(gradient: Tensor, whole: Tensor) -> None:
    """That the first part's gradient with p is the full pass's: what the principle says of δ where it stands."""
    off, size = (gradient - whole).abs().amax(), whole.abs().amax()
    if bool(size.isfinite() & (off > _ROUNDING * size)):
        raise ValueError(_BYPASSED)


def _present(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(
            "the model cannot be split: its output does not depend on the input that was given to it; use the x + δ "
            "that the callables are called with"
        )
    return gradient


@contextmanager
def _off(parameters: tuple[nn.Parameter, ...]) -> Iterator[None]:
    """Parameters that ask for no gradient for a while."""
    on = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in on:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in on:
            parameter.requires_grad_()


# --- δ in a model that takes tokens ---------------------------------------------------------------------------------


@contextmanager
def added(
    embedding: nn.Module,
    tokens: Tensor,
    delta: Tensor,
    *,
    real: Tensor | None = None,
    when: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Add δ to what an embedding returns, for as long as the context lasts.

        E[tokens]  →  E[tokens] + δ

    before whatever the model does next: a factor √C, positions, norm, dropout. The embedding may be called for the
    batch itself, for copies of it one after another (R-Drop), or for its real tokens alone, packed.

    Args:
        embedding: called with tokens as its first argument.
        tokens: (B, T).
        delta: (B, T, C).
        real: (B, T) bool, True at what is not padding, for models that leave that out.
        when: () ↦ whether a call is meant, where one table serves several sequences.

    Raises:
        ValueError: it is called for other tokens, or not at all.
    """
    calls = 0

    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        nonlocal calls
        if not when():
            return None
        calls += 1
        return output + _laid_out(inputs[0], tokens, delta, real).to(output.dtype)

    handle = embedding.register_forward_hook(hook)
    try:
        yield
        if not calls:
            raise ValueError(
                f"the adversary has no way in: {type(embedding).__name__}, the model's embedding, was not called; give "
                f"tokens, not embeddings, to a model that looks them up there"
            )
    finally:
        handle.remove()


def _laid_out(asked: Tensor, tokens: Tensor, delta: Tensor, real: Tensor | None) -> Tensor:
    """δ in the form of the tokens that are asked for."""
    if asked is tokens or (asked.shape == tokens.shape and torch.equal(asked, tokens)):
        return delta
    batch = tokens.size(0)
    if asked.dim() == 2 and batch and asked.size(0) % batch == 0 and asked.size(1) == tokens.size(1):
        copies = asked.size(0) // batch
        if torch.equal(asked, tokens.repeat(copies, 1)):
            return delta.repeat(copies, 1, 1)
    if real is not None and asked.dim() == 1 and torch.equal(asked, tokens[real]):
        return delta[real]
    if asked.dim() == 1 and torch.equal(asked, tokens.flatten()):
        return delta.flatten(0, 1)
    raise ValueError(
        f"the adversary cannot follow: the embedding was called for tokens of shape {tuple(asked.shape)}, which are "
        f"not the batch's, {tuple(tokens.shape)}; train this model, or with this criterion, without an adversary"
    )
