"""Real layers under any solver: their measured order, the same masks in all stages, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from macaron.dynamics import BACKWARD_EULER, EULER, HEUN, LIE, MIDPOINT, RK4, STRANG, Depth, Scheme, Splitting, Tableau
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN
from macaron.dynamics.walk import walk
from macaron.particles import CrossAttention, FeedForward, Memory, ParticleLayer, SelfAttention, Surroundings

T, B, C = 5, 2, 4


class NoNorm(nn.Module):
    """In the place of a norm: moves, and normalises nothing."""

    def forward(self, x: Tensor, velocity: Tensor | None = None, step: float = 0.0, dropout: float = 0.0):
        y = x if velocity is None else x + step * velocity
        return y, y


def linear_ffn(a: Tensor) -> FeedForward:
    """relu(A x) − relu(−A x) = A x, an FFN of width 2 C."""
    flow = FeedForward(C, 2 * C).double()
    with torch.no_grad():
        flow.fc1.weight.copy_(torch.cat([a, -a]))
        flow.fc2.weight.copy_(torch.cat([torch.eye(C), -torch.eye(C)], dim=1))
    return flow


def linear_attention(b: Tensor) -> SelfAttention:
    """Without queries and keys every particle sees the mean: dx_i/dt = B ⟨x_j⟩."""
    flow = SelfAttention(C, 2).double()
    with torch.no_grad():
        flow.qkv_proj.weight.zero_()[2 * C :].copy_(torch.eye(C))
        flow.out_proj.weight.copy_(b)
    return flow


def stack(splitting: Splitting, solver: Tableau, n: int, a: Tensor, b: Tensor) -> Depth:
    """n layers over a time of 1, all with the same fields."""
    flows = {FFN: linear_ffn(a), "self_attention": linear_attention(b)}
    scheme = Scheme(splitting, solver, dt=1 / n)
    layer = ParticleLayer(scheme, [flows[s.flow] for s in splitting.substeps], C)
    layer.norms = nn.ModuleList(NoNorm() for _ in layer.norms)
    return Depth([layer] * n)


@pytest.mark.parametrize(
    ("splitting", "solver", "order"),
    [(LIE, EULER, 1), (LIE, RK4, 1), (STRANG, EULER, 1), (STRANG, MIDPOINT, 2), (STRANG, HEUN, 2), (STRANG, RK4, 2)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_order_of_a_stack_of_layers_on_a_linear_problem(splitting: Splitting, solver: Tableau, order: int) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, C, C, dtype=torch.float64, generator=generator)
    x = torch.randn(T, 1, C, dtype=torch.float64, generator=generator)
    # the mean moves by A + B, the differences from it by A
    mean = x.mean(0, keepdim=True)
    exact = mean @ torch.linalg.matrix_exp(a + b).T + (x - mean) @ torch.linalg.matrix_exp(a).T
    errors = []
    for n in (32, 64):
        y = x
        with torch.no_grad():
            for layer in stack(splitting, solver, n, a, b):
                y, _ = layer(y)
        errors.append((y - exact).norm())
    # the next term at h = 1/32 is 0.023 c, c ≤ 4 (see tests/dynamics/test_order.py); another order is away by 1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def build(solver: Tableau, splitting: Splitting = STRANG, dt: float = 1.0, **options: object) -> ParticleLayer:
    torch.manual_seed(7)
    makers = {
        FFN: lambda: FeedForward(C, 8, dropout=options.get("dropout", 0.0)),
        "self_attention": lambda: SelfAttention(C, 2, dropout=options.get("dropout", 0.0)),
        CROSS_ATTENTION: lambda: CrossAttention(C, 2),
    }
    flows = [makers[s.flow]() for s in splitting.substeps]
    return ParticleLayer(Scheme(splitting, solver, dt=dt), flows, C, **options).double()


@pytest.mark.parametrize("splitting", [STRANG, LIE.with_cross_attention()], ids=["strang", "lie-cross"])
@pytest.mark.parametrize("normalize_before", [True, False], ids=["pre", "post"])
def test_the_fused_step_is_the_walk_with_eulers_method(splitting: Splitting, normalize_before: bool) -> None:
    """The same tableau under another name takes the unfused way."""
    twin = Tableau("twin", EULER.a, EULER.b, order=1)
    fused, by_stages = (build(s, splitting, 0.5, normalize_before=normalize_before) for s in (EULER, twin))
    assert fused.fused and not by_stages.fused
    by_stages.load_state_dict(fused.state_dict())
    x, around = torch.randn(T, B, C, dtype=torch.float64), Surroundings(memory=Memory(torch.randn(3, B, C).double()))
    torch.testing.assert_close(by_stages(x, around)[0], fused(x, around)[0])


@pytest.mark.parametrize("solver", [BACKWARD_EULER, MIDPOINT, HEUN, RK4], ids=lambda s: s.name)
@pytest.mark.parametrize("normalize_before", [True, False], ids=["pre", "post"])
def test_a_layer_is_the_walk_over_its_flows(solver: Tableau, normalize_before: bool) -> None:
    layer = build(solver, dt=0.5, normalize_before=normalize_before)
    x = torch.randn(T, B, C, dtype=torch.float64)
    expected = x
    if normalize_before:
        fields = [
            lambda y, f=flow, n=norm: f(n(y)[1], Surroundings())[0]
            for flow, norm in zip(layer.flows, layer.norms, strict=True)
        ]
        *_, (_, expected) = walk(STRANG, fields, x, dt=0.5, solver=solver)
    else:
        for substep, flow, norm in zip(STRANG.substeps, layer.flows, layer.norms, strict=True):
            one = Splitting("one", (type(substep)(substep.flow, 1.0),))
            field = [lambda y, f=flow: f(y, Surroundings())[0]]
            *_, (_, expected) = walk(one, field, expected, dt=0.5 * substep.share, solver=solver)
            expected = nn.functional.layer_norm(expected, (C,), norm.weight, norm.bias)
    torch.testing.assert_close(layer(x)[0], expected)
    layer(x)[0].square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


def test_dropout_masks_are_drawn_once_a_substep() -> None:
    """With equal masks in all stages, an FFN that is linear stays so: BACKWARD_EULER is x + hMx + h²M²x, M masked."""
    layer = build(BACKWARD_EULER, dropout=0.5).train()
    masks: list[Tensor] = []
    layer.dropout_module.register_forward_hook(lambda module, args, out: masks.append(out == 0))
    inner: list[Tensor] = []
    for flow in (layer.flows[0], layer.flows[2]):
        flow.fc2.register_forward_pre_hook(lambda module, args: inner.append(args[0] == 0))
    x = torch.randn(T, B, C, dtype=torch.float64)
    layer(x)
    assert len(masks) == 6 and len(inner) == 4
    for first, second in zip(masks[::2], masks[1::2], strict=True):
        assert torch.equal(first, second) and first.any()
    assert not torch.equal(masks[0], masks[2])
    torch.manual_seed(5)
    one = layer(x)[0]
    torch.manual_seed(5)
    assert torch.equal(layer(x)[0], one) and not torch.equal(layer(x)[0], one)


def test_attention_weights_are_those_at_the_beginning() -> None:
    x, around = torch.randn(T, B, C, dtype=torch.float64), Surroundings(need_weights=True)
    splitting = Splitting.parse("attention ffn")
    euler, rk4 = build(EULER, splitting), build(RK4, splitting)
    torch.testing.assert_close(rk4(x, around)[1], euler(x, around)[1])


def test_scripts_of_stages_are_refused() -> None:
    layer = build(HEUN)
    with pytest.raises(ValueError, match="TorchScript knows no solver but Euler's, and this layer has 'heun'"):
        torch.jit.script(nn.Sequential(layer))
