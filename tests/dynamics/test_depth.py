"""Layers in a row under a rule, met by a loop that knows nothing of it."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from macaron.dynamics import rules as module
from macaron.dynamics.depth import Depth, Step, euler
from macaron.dynamics.rules import get_rule, register_rule

C = 4


class Layer(nn.Module):
    """x + tanh(W x) · scale, and what it was given beside."""

    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.linear, self.pair = nn.Linear(C, C), pair

    def forward(self, x: Tensor, scale: float = 1.0, note: str | None = None):
        moved = x + scale * torch.tanh(self.linear(x))
        return (moved, note, None) if self.pair else moved


class Multistep(nn.Module):
    """x_{n+1} = (1 − k_n) x_n + k_n x_{n−1} + Δ_n(x_n), the first step plain."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.linspace(0.1, 0.3, depth))

    def forward(self, step: Step) -> Tensor:
        moved = step.layer(step.x)
        if step.previous is None:
            return moved
        return moved + self.k[step.n] * (step.previous - step.x)


def host(layers: nn.ModuleList, x: Tensor, **options: object) -> Tensor:
    """A loop such as fairseq's and transformers'."""
    for layer in layers:
        result = layer(x, **options)
        x = result[0] if isinstance(result, tuple) else result
    return x


@pytest.fixture
def layers() -> list[nn.Module]:
    return [Layer() for _ in range(4)]


def test_the_euler_rule_is_a_plain_list(layers: list[nn.Module]) -> None:
    stack, x = Depth(layers), torch.randn(3, C)
    assert list(stack) == layers and len(stack) == 4 and stack[-1] is layers[-1]
    assert list(stack.state_dict()) == list(nn.ModuleList(layers).state_dict())
    assert torch.equal(host(stack, x, scale=0.5), host(nn.ModuleList(layers), x, scale=0.5))
    assert list(stack[1:3]) == layers[1:3]
    assert torch.equal(host(torch.jit.script(nn.ModuleDict({"layers": Depth([nn.Tanh()])})).layers, x), x.tanh())


def test_a_rule_sees_where_it_is_and_where_it_was(layers: list[nn.Module]) -> None:
    steps: list[Step] = []

    def rule(step: Step) -> Tensor:
        steps.append(step)
        return step.layer(step.x)

    stack, x = Depth(layers, rule), torch.randn(3, C)
    for _ in range(2):  # a second pass begins anew
        steps.clear()
        assert torch.equal(host(stack, x), host(nn.ModuleList(layers), x))
        assert [(step.n, step.depth) for step in steps] == [(n, 4) for n in range(4)]
        assert steps[0].previous is None
        assert all(torch.equal(b.previous, a.x) for a, b in pairwise(steps))


def test_a_rule_with_parameters(layers: list[nn.Module]) -> None:
    stack, x = Depth(layers, Multistep(4)), torch.randn(3, C)
    expected = [x, layers[0](x)]
    for n in range(1, 4):
        new = layers[n](expected[-1]) + stack.rule.k[n] * (expected[-2] - expected[-1])
        expected.append(new)
    y = host(stack, x)
    torch.testing.assert_close(y, expected[-1])
    y.sum().backward()
    assert stack.rule.k.grad[0] == 0 and (stack.rule.k.grad[1:] != 0).all()
    assert len(stack) == 4 and list(stack.parameters())[-1] is stack.rule.k
    assert [name for name in stack.state_dict() if name.startswith("rule.")] == ["rule.k"]
    assert [name for name in stack.state_dict() if "linear.bias" in name] == [f"{n}.linear.bias" for n in range(4)]
    again = Depth([Layer() for _ in range(4)], Multistep(4))
    again.load_state_dict(stack.state_dict())
    for other in (again, copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert torch.equal(host(other, x), y)


def test_what_a_layer_returns_beside_the_particles_passes_through() -> None:
    stack = Depth([Layer(pair=True) for _ in range(2)], lambda step: step.layer(step.x) * 2, others=(None, None))
    x = torch.randn(3, C)
    first = next(iter(stack))
    moved, note, last = first(x, note="kept", scale=0.0)
    assert torch.equal(moved, 2 * x) and note == "kept" and last is None
    still = Depth([Layer(pair=True)], lambda step: step.x, others=(None, None))
    assert [*next(iter(still))(x, note="not asked")[1:]] == [None, None]


def test_layerdrop_leaves_layers_out_in_training_only(layers: list[nn.Module]) -> None:
    for rule in (euler, lambda step: step.layer(step.x)):
        stack = Depth(layers, rule, layerdrop=0.5)
        counts = {len(list(stack)) for _ in range(50)}
        assert min(counts) < 4 and len(counts) > 2
        assert len(list(stack.eval())) == 4 and len(stack) == 4


def test_layerdrop_leaves_the_others_their_numbers(layers: list[nn.Module]) -> None:
    """k_n belongs to the n-th layer, whichever others were left out."""
    ruled: list[tuple[int, int]] = []
    called: list[int] = []

    def rule(step: Step) -> Tensor:
        ruled.append((step.n, step.depth))
        return step.layer(step.x)

    stack = Depth(layers, rule, layerdrop=0.5)
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: called.append(layers.index(module)))
    for _ in range(20):
        host(stack, torch.randn(2, C))
    assert ruled == [(n, 4) for n in called] and set(called) == {0, 1, 2, 3} and len(called) < 20 * 4


def test_a_rule_is_refused_where_it_would_be_ignored(layers: list[nn.Module]) -> None:
    stack = Depth(layers, Multistep(4))
    with pytest.raises(ValueError, match="TorchScript knows no rule across depth but Euler's"):
        torch.jit.script(nn.Sequential(nn.Tanh(), stack))
    with pytest.raises(TypeError, match="layers cannot be taken out"):
        del stack[0]
    with pytest.raises(TypeError, match="a layer cannot be put between others"):
        stack.insert(0, Layer())
    assert repr(layers[0])[:5] in repr(stack) and "_RuledLayer" not in repr(stack)


def test_registry_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RULES", dict(module.RULES))
    register_rule("mine", Multistep)
    assert isinstance(get_rule("mine", 3), Multistep) and get_rule("euler", 3) is euler
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_rule("mine", Multistep)
    with pytest.raises(ValueError, match=r"depth_rule='leapfrog' is unknown; choose one of euler, .*mine"):
        get_rule("leapfrog", 3)
