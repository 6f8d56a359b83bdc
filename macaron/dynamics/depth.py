"""Depth as time: layers in a row, and the rule by which the next state follows from the last ones.

A layer maps x_n to x_n + Δ_n(x_n). The Euler rule takes that as x_{n+1}; other rules look further back, drop a layer
at random, or evaluate it more than once. A host that loops over its layers runs any of them unchanged, since `Depth`
decides what the loop meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Systems = tuple[int, Callable[[Tensor], Tensor]]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """What a rule sees of one step in depth.

    Fields:
        n: the number of its layer, 0 … depth − 1; those left out by layerdrop are missing.
        depth: how many layers there are, those left out included.
        previous: x_{n−1}, the state one step earlier; None at the first step.
        x: x_n.
        layer: x ↦ x + Δ_n(x), with everything else that the host passes bound. It may be called any number of times.
        systems: () ↦ how many systems of particles there are in x, and what spreads a value of each, (B,), to a tensor
            that broadcasts with x.
    """

    n: int
    depth: int
    previous: Tensor | None
    x: Tensor
    layer: Callable[[Tensor], Tensor]
    systems: Callable[[], Systems] = field(default=lambda: (1, lambda values: values), repr=False)


Rule = Callable[[Step], Tensor]  # x_{n+1}; a module where it has parameters


class Noise(Protocol):
    """From a step to one with a noisy layer, while it is active; a module, for training and evaluation."""

    @property
    def active(self) -> bool: ...

    def __call__(self, step: Step) -> Step: ...


class Observer(Protocol):
    """Sees the steps of a rule, see `Depth.observers`."""

    def begins(self, first: bool) -> None:
        """A step follows, in which layers are evaluated; `first` is that of a pass."""

    def ended(self, state: Tensor) -> None:
        """x_{n+1}."""


def euler(step: Step) -> Tensor:
    """x_{n+1} = x_n + Δ_n(x_n)."""
    return step.layer(step.x)


class Depth(nn.ModuleList):
    """Layers in a row, a `ModuleList` whose iteration follows a rule.

    Under the Euler rule iteration yields the layers themselves. Under any other it yields, in their places, callables
    of the same signature: the first argument and the first (or only) result are the particles, all the rest passes
    through. Parameters of the layers are named `N.…` as in any list, those of the rule `rule.…`.

    Args:
        layers: the layers, in order.
        rule: how x_{n+1} follows, see `Step`.
        layerdrop: probability to leave a layer out in training, drawn for each pass, as fairseq's `--*-layerdrop`.
        noise: makes the layer of each step noisy, see `macaron.dynamics.noise`.
        others: what a layer's result holds beside the particles, where the rule does not call the layer.
        batch_dim: the dimension of x along which its systems lie.

    Fields:
        watch: where set, called with the state after the first step of a pass, and answers with that to go on from.
        observers: they see each step of a rule; under Euler's, where the layers themselves are called, there is none.
    """

    watch: Callable[[Tensor], Tensor] | None = None
    observers: tuple[Observer, ...] = ()

    def __init__(
        self,
        layers: Iterable[nn.Module],
        rule: Rule = euler,
        *,
        layerdrop: float = 0.0,
        noise: Noise | None = None,
        others: tuple[Any, ...] = (),
        batch_dim: int = 0,
    ) -> None:
        super().__init__(list(nn.ModuleList.__iter__(layers) if isinstance(layers, nn.ModuleList) else layers))
        self.rule = rule  # registered where it is a module
        self.noise = noise
        self.layerdrop = layerdrop
        self.others = others
        self.batch_dim = batch_dim

    def _own(self) -> list[nn.Module]:
        return [module for name, module in self._modules.items() if name.isdecimal() and module is not None]

    def __len__(self) -> int:
        return len(self._own())

    def __iter__(self) -> Iterator[Any]:
        layers = list(enumerate(self._own()))
        if self.training and self.layerdrop > 0.0:
            kept = torch.empty(len(layers)).uniform_() > self.layerdrop
            layers = [layer for layer, keep in zip(layers, kept.tolist(), strict=True) if keep]
        if self.is_plain:
            return iter([layer for _, layer in layers])
        return self._ruled(layers)

    @property
    def is_plain(self) -> bool:
        """Whether the layers just follow one another now: by the Euler rule, without noise, and unwatched."""
        return self.rule is euler and self.watch is None and (self.noise is None or not self.noise.active)

    def _ruled(self, layers: list[tuple[int, nn.Module]]) -> Iterator[Callable[..., Any]]:
        previous: list[Tensor] = []  # x_{n−1}, once there is one
        for n, layer in layers:
            yield _RuledLayer(self, n, layer, previous)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return nn.ModuleList(self._own()[index])
        return super().__getitem__(index)

    def __delitem__(self, index: Any) -> None:
        raise TypeError("Depth: layers cannot be taken out, since a rule counts them; build it anew from those to keep")

    def insert(self, index: int, module: nn.Module) -> None:
        raise TypeError("Depth: a layer cannot be put between others; build it anew from those to have")

    def again(self, times: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """What a layer is called with beside the particles when a rule evaluates it anew in one step.

        For hosts whose layers remember something, and once for each evaluation.

        Args:
            times: how often it was evaluated in this step, at least 1.
            args, kwargs: what the host's loop passes.
        """
        return args, kwargs

    def systems(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Systems:
        """See `Step`; for hosts whose systems do not lie along `batch_dim`."""
        after = x.dim() - self.batch_dim - 1
        return x.size(self.batch_dim), lambda values: values.view(-1, *[1] * after)

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)  # a list's would show what iteration yields

    def __prepare_scriptable__(self) -> nn.Module:
        if not self.is_plain:
            raise ValueError(
                "TorchScript knows no rule across depth but Euler's, nor noise in training; use the model unscripted, "
                "in evaluation, or with depth_rule='euler'"
            )
        return nn.ModuleList(self._own())


class _RuledLayer:
    """One step of a rule, in the place of the layer that it advances by."""

    def __init__(self, stack: Depth, n: int, layer: nn.Module, previous: list[Tensor]) -> None:
        self._stack, self._n, self._layer, self._previous = stack, n, layer, previous

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        stack = self._stack
        others: tuple[Any, ...] = stack.others
        times = 0

        def layer(state: Tensor) -> Tensor:
            nonlocal others, times
            bound = stack.again(times, args, kwargs) if times else (args, kwargs)
            times += 1
            result = self._layer(state, *bound[0], **bound[1])
            if isinstance(result, tuple):
                result, *rest = result
                others = tuple(rest) if times == 1 else others
            return result

        previous = self._previous[0] if self._previous else None
        step = Step(self._n, len(stack), previous, x, layer, lambda: stack.systems(x, args, kwargs))
        if stack.noise is not None and stack.noise.active:
            step = stack.noise(step)
        for observer in stack.observers:
            observer.begins(first=previous is None)
        moved = stack.rule(step)
        if stack.watch is not None and previous is None:
            moved = stack.watch(moved)
        for observer in stack.observers:
            observer.ended(moved)
        self._previous[:] = [x]
        return (moved, *others) if others else moved
