"""Depth as time: layers in a row, and the rule by which the next state follows from the last ones.

A layer maps x_n to x_n + Δ_n(x_n). The Euler rule takes that as x_{n+1}; other rules look further back, drop a layer
at random, or evaluate it more than once. A host that loops over its layers runs any of them unchanged, since `Depth`
decides what the loop meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """What a rule sees of one step in depth.

    Fields:
        n: the number of its layer, 0 … depth − 1; those left out by layerdrop are missing.
        depth: how many layers there are, those left out included.
        previous: x_{n−1}, the state one step earlier; None at the first step.
        x: x_n.
        layer: x ↦ x + Δ_n(x), with everything else that the host passes bound. It may be called any number of times.
    """

    n: int
    depth: int
    previous: Tensor | None
    x: Tensor
    layer: Callable[[Tensor], Tensor]


Rule = Callable[[Step], Tensor]  # x_{n+1}; a module where it has parameters


def euler(step: Step) -> Tensor:
    """x_{n+1} = x_n + Δ_n(x_n)."""
    return step.layer(step.x)


RULES: dict[str, Callable[[int], Rule]] = {"euler": lambda depth: euler}


def register_rule(name: str, make: Callable[[int], Rule]) -> None:
    """Let both hosts' `depth_rule` take `name`.

    Args:
        make: from the number of layers to the rule; a `torch.nn.Module` if it has parameters.

    Raises:
        ValueError: a name that is taken.
    """
    if name in RULES:
        raise ValueError(f"depth_rule={name!r} is registered already; choose another name")
    RULES[name] = make


def get_rule(name: str, depth: int) -> Rule:
    """The rule of that name, for a stack of `depth` layers.

    Raises:
        ValueError: unknown name.
    """
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"depth_rule={name!r} is unknown; choose one of {', '.join(RULES)}")
    return RULES[name](depth)


class Depth(nn.ModuleList):
    """Layers in a row, a `ModuleList` whose iteration follows a rule.

    Under the Euler rule iteration yields the layers themselves. Under any other it yields, in their places, callables
    of the same signature: the first argument and the first (or only) result are the particles, all the rest passes
    through. Parameters of the layers are named `N.…` as in any list, those of the rule `rule.…`.

    Args:
        layers: the layers, in order.
        rule: how x_{n+1} follows, see `Step`.
        layerdrop: probability to leave a layer out in training, drawn for each pass, as fairseq's `--*-layerdrop`.
        others: what a layer's result holds beside the particles, where the rule does not call the layer.
    """

    def __init__(
        self, layers: Iterable[nn.Module], rule: Rule = euler, *, layerdrop: float = 0.0, others: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(list(nn.ModuleList.__iter__(layers) if isinstance(layers, nn.ModuleList) else layers))
        self.rule = rule  # registered where it is a module
        self.layerdrop = layerdrop
        self.others = others

    def _own(self) -> list[nn.Module]:
        return [module for name, module in self._modules.items() if name != "rule" and module is not None]

    def __len__(self) -> int:
        return len(self._own())

    def __iter__(self) -> Iterator[Any]:
        layers = list(enumerate(self._own()))
        if self.training and self.layerdrop > 0.0:
            kept = torch.empty(len(layers)).uniform_() > self.layerdrop
            layers = [layer for layer, keep in zip(layers, kept.tolist(), strict=True) if keep]
        if self.rule is euler:
            return iter([layer for _, layer in layers])
        return self._ruled(layers)

    def _ruled(self, layers: list[tuple[int, nn.Module]]) -> Iterator[Callable[..., Any]]:
        previous: list[Tensor] = []  # x_{n−1}, once there is one
        for n, layer in layers:
            yield _RuledLayer(self, n, len(self), layer, previous)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return nn.ModuleList(self._own()[index])
        return super().__getitem__(index)

    def __delitem__(self, index: Any) -> None:
        raise TypeError("Depth: layers cannot be taken out, since a rule counts them; build it anew from those to keep")

    def insert(self, index: int, module: nn.Module) -> None:
        raise TypeError("Depth: a layer cannot be put between others; build it anew from those to have")

    def evaluated_again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a rule evaluates a layer again in one step; for hosts whose layers remember something.

        Args:
            args, kwargs: what the host's loop passes beside the particles.
        """

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)  # a list's would show what iteration yields

    def __prepare_scriptable__(self) -> nn.Module:
        if self.rule is not euler:
            raise ValueError(
                "TorchScript knows no rule across depth but Euler's; use the model unscripted, or depth_rule='euler'"
            )
        return nn.ModuleList(self._own())


class _RuledLayer:
    """One step of a rule, in the place of the layer that it advances by."""

    def __init__(self, stack: Depth, n: int, depth: int, layer: nn.Module, previous: list[Tensor]) -> None:
        self._stack, self._n, self._depth, self._layer, self._previous = stack, n, depth, layer, previous

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        others: tuple[Any, ...] = self._stack.others
        evaluated = False

        def layer(state: Tensor) -> Tensor:
            nonlocal others, evaluated
            if evaluated:
                self._stack.evaluated_again(args, kwargs)
            evaluated = True
            result = self._layer(state, *args, **kwargs)
            if isinstance(result, tuple):
                result, *rest = result
                others = tuple(rest)
            return result

        step = Step(self._n, self._depth, self._previous[0] if self._previous else None, x, layer)
        moved = self._stack.rule(step)
        self._previous[:] = [x]
        return (moved, *others) if others else moved
