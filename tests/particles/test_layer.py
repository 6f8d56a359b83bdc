"""The layer: its formula in float64, dropout places, scripting, compiling, errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macaron.dynamics import LIE, STRANG, Splitting
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION
from macaron.particles import (
    CrossAttention,
    FeedForward,
    Mask,
    Memory,
    Packed,
    ParticleLayer,
    SelfAttention,
    Surroundings,
)

T, S, B, C = 5, 4, 2, 16
SPLITTINGS = (STRANG, LIE, STRANG.with_cross_attention(), LIE.with_cross_attention())
IDS = ("strang", "lie", "strang-cross", "lie-cross")


def build(splitting: Splitting, **options: object) -> ParticleLayer:
    """A layer whose two FFNs differ in width, with every parameter drawn at random."""
    makers = {
        FFN: lambda i: FeedForward(C, 24 + 8 * i, activation="gelu"),
        SELF_ATTENTION: lambda _: SelfAttention(C, 4),
        CROSS_ATTENTION: lambda _: CrossAttention(C, 4),
    }
    flows = [makers[s.flow](i) for i, s in enumerate(splitting.substeps)]
    layer = ParticleLayer(splitting, flows, C, **options)
    for p in layer.parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return layer


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Surroundings]:
    mask = torch.tensor([[False] * T, [False] * (T - 2) + [True] * 2])
    return torch.randn(T, B, C, dtype=dtype), Surroundings(
        Mask(mask, causal=True), Memory(torch.randn(S, B, C, dtype=dtype)), need_memory_weights=True
    )


def normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("splitting", SPLITTINGS, ids=IDS)
def test_layer_is_its_formula(splitting: Splitting, normalize_before: bool, affine: bool) -> None:
    layer = build(splitting, normalize_before=normalize_before, affine=affine, dropout=0.5).double().eval()
    x, surroundings = inputs()
    expected = x
    for substep, flow, norm in zip(splitting.substeps, layer.flows, layer.norms, strict=True):
        if normalize_before:
            expected = expected + substep.share * flow(normalise(norm, expected), surroundings)[0]
        else:
            expected = normalise(norm, expected + substep.share * flow(expected, surroundings)[0])
    y, weights = layer(x, surroundings)
    torch.testing.assert_close(y, expected)
    assert (weights is not None) == (CROSS_ATTENTION in splitting.flows)
    assert sum(p.numel() for p in layer.norms.parameters()) == (2 * C * len(splitting.substeps) if affine else 0)


@pytest.mark.parametrize("normalize_before", [True, False])
def test_gradients_pass_gradcheck(normalize_before: bool) -> None:
    layer = build(STRANG.with_cross_attention(), normalize_before=normalize_before).double()
    x, surroundings = inputs()
    x.requires_grad_()
    memory = surroundings.memory.particles.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, m: layer(a, surroundings._replace(memory=Memory(m)))[0], (x, memory), fast_mode=True
    )


def test_dropout_comes_before_the_share_and_scales_survivors() -> None:
    """y = x + c · dropout(v): entries of (y − x) are 0 or c · v / (1 − p)."""

    class Constant(nn.Module):
        kind = FFN

        def forward(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
            return torch.full_like(x, 3.0), None

    layer = ParticleLayer(STRANG, [Constant(), _Still(), Constant()], C, dropout=0.25)
    x = torch.randn(400, 1, C)
    y, _ = layer(x)
    moved = (y - x).round(decimals=3)
    full = 0.5 * 3.0 / 0.75  # of one half step; the two are dropped independently
    assert set(moved.unique().tolist()) == {0.0, full, 2 * full}
    # five standard deviations of 6400 draws; a single mask for both steps would give 0.25
    assert moved.eq(0).float().mean().item() == pytest.approx(0.25**2, abs=5 * math.sqrt(0.0625 * 0.9375 / 6400))
    layer.eval()
    torch.testing.assert_close(layer(x)[0] - x, torch.full_like(x, 3.0))


class _Still(nn.Module):
    kind = SELF_ATTENTION

    def forward(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(x), None


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=IDS)
def test_scripted_and_compiled_layers_are_the_same(splitting: Splitting) -> None:
    layer = build(splitting).eval()
    x, surroundings = inputs(torch.float32)
    expected, _ = layer(x, surroundings)
    torch.testing.assert_close(torch.jit.script(layer)(x, surroundings)[0], expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, surroundings)[0], expected)


def test_strang_and_lie_have_equal_parameters_up_to_one_norm_and_one_bias() -> None:
    def count(splitting: Splitting, width: int) -> int:
        makers = {FFN: lambda: FeedForward(64, width), SELF_ATTENTION: lambda: SelfAttention(64, 4)}
        layer = ParticleLayer(splitting, [makers[s.flow]() for s in splitting.substeps], 64)
        return sum(p.numel() for p in layer.parameters())

    assert count(STRANG, 128) - count(LIE, 256) == 64 + 2 * 64  # fc2's bias; gain and offset of a norm


def test_particles_are_exchangeable_without_positions() -> None:
    layer = build(STRANG).double().eval()
    x, _ = inputs()
    order = torch.randperm(T)
    torch.testing.assert_close(layer(x[order])[0], layer(x)[0][order])


def test_padding_does_not_reach_real_particles() -> None:
    layer = build(STRANG).double().eval()
    x, surroundings = inputs()
    surroundings = surroundings._replace(mask=surroundings.mask._replace(causal=False))
    other = x.clone()
    other[T - 2 :, 1] = 100.0
    real = ~surroundings.mask.padding.T
    torch.testing.assert_close(layer(other, surroundings)[0][real], layer(x, surroundings)[0][real])


def test_errors_name_value_rule_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"'strang' walks the flows ffn, self_attention, ffn, but was given ffn; pass"):
        ParticleLayer(STRANG, [FeedForward(C, 8)], C)
    with pytest.raises(ValueError, match="but was given Linear, self_attention, ffn"):
        ParticleLayer(STRANG, [nn.Linear(C, C), SelfAttention(C, 4), FeedForward(C, 8)], C)


def test_half_precision_keeps_its_type() -> None:
    layer = build(STRANG).to(torch.bfloat16).eval()
    x, surroundings = inputs(torch.bfloat16)
    y, _ = layer(x, surroundings)
    assert y.dtype == torch.bfloat16
    reference, _ = layer.double()(
        x.double(), surroundings._replace(memory=Memory(surroundings.memory.particles.double()))
    )
    # bfloat16 has 8 bits: numbers of up to 10 are rounded by 0.02, some times a substep
    assert (y.double() - reference).abs().max() < 0.2
    assert F.mse_loss(y.double(), reference) < 1e-3  # on average by a tenth of that


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("splitting", [STRANG, LIE], ids=["strang", "lie"])
def test_packed_particles_move_as_padded_ones(splitting: Splitting, normalize_before: bool) -> None:
    layer = build(splitting, normalize_before=normalize_before).double()
    lengths = torch.tensor([T, T - 3])
    padding = torch.arange(T) >= lengths[:, None]  # (B, T)
    x = torch.randn(T, B, C, dtype=torch.float64)
    expected, _ = layer(x, Surroundings(Mask(padding)))
    real = ~padding
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    packed, _ = layer(x.transpose(0, 1)[real], Surroundings(packed=Packed(offsets, T)))
    torch.testing.assert_close(packed, expected.transpose(0, 1)[real])
