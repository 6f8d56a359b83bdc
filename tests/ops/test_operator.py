"""An eager call of an operator takes the short way; whatever looks at operators finds it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from macaron.ops._operator import operator

CALLS: list[str] = []


@operator("macaron_test::twice")
def twice(x: Tensor, factor: float) -> Tensor:
    CALLS.append(type(x).__name__)
    return x * (2 * factor)


@twice.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


@operator("macaron_test::twice_backward")
def twice_backward(grad: Tensor, factor: float) -> Tensor:
    return grad * (2 * factor)


@twice_backward.register_fake
def _(grad: Tensor, factor: float) -> Tensor:
    return torch.empty_like(grad)


def _setup(ctx, inputs, output):
    _, ctx.factor = inputs


def _gradient(ctx, grad):
    return twice_backward(grad, ctx.factor), None


twice.register_autograd(_gradient, setup_context=_setup)


class Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_eager_call_is_no_dispatch_of_the_custom_operator(monkeypatch):
    def refuse(*args):
        raise AssertionError("the long way")

    monkeypatch.setattr(twice, "overload", refuse)
    monkeypatch.setattr(twice_backward, "overload", refuse)
    x = torch.randn(3, requires_grad=True)
    y = twice(x, 1.5)
    y.sum().backward()
    torch.testing.assert_close(y, 3 * x)
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0))
    with torch.no_grad():
        assert not twice(x, 1.5).requires_grad
    assert not twice(x.detach(), 1.5).requires_grad
    assert twice(torch.nn.Parameter(x.detach()), 1.5).requires_grad


def test_short_and_long_way_agree():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (short,) = torch.autograd.grad(twice(x, 0.7).square().sum(), x)
    (long,) = torch.autograd.grad(twice.overload(x, 0.7).square().sum(), x)
    torch.testing.assert_close(short, long, rtol=0, atol=0)


def test_a_dispatch_mode_sees_the_operator_and_its_backward():
    x = torch.randn(3, requires_grad=True)
    with Record() as record:
        twice(x, 1.5).sum().backward()
    assert {"macaron_test.twice.default", "macaron_test.twice_backward.default"} <= set(record.names)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_operator(mode):
    graph = make_fx(lambda x: twice(x, 1.5), tracing_mode=mode)(torch.randn(3))
    assert torch.ops.macaron_test.twice.default in [node.target for node in graph.graph.nodes]


def test_compiled_and_exported_graphs_hold_the_operator():
    seen = []

    def backend(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph

    x = torch.randn(3, requires_grad=True)
    torch.testing.assert_close(
        torch.compile(lambda x: twice(x, 1.5) + 1, backend=backend, fullgraph=True)(x), 3 * x + 1
    )
    assert torch.ops.macaron_test.twice.default in seen

    class Module(torch.nn.Module):
        def forward(self, x):
            return twice(x, 1.5)

    exported = torch.export.export(Module(), (torch.randn(3),))
    assert torch.ops.macaron_test.twice.default in [node.target for node in exported.graph.nodes]


def test_a_trace_holds_the_operator():
    traced = torch.jit.trace(lambda x: twice(x, 1.5), (torch.randn(3),))
    assert "macaron_test::twice" in str(traced.graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)


def test_fake_tensors_reach_no_kernel():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.randn(3))
    CALLS.clear()
    assert type(twice(x, 1.5)).__name__ == "FakeTensor"  # outside of its mode, too
    assert not CALLS


def test_vmap_takes_the_operator():
    torch.testing.assert_close(torch.vmap(lambda x: twice(x, 1.5))(torch.ones(2, 3)), torch.full((2, 3), 3.0))


def test_differentiated_twice_is_an_error_and_not_silence():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="twice_backward"):
        (grad,) = torch.autograd.grad(twice(x, 1.5).square().sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x)


def test_checkpointing_gives_the_same_gradients():
    x = torch.randn(3, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: twice(x, 1.5).square(), x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, 18 * x.detach())
