"""Flows: equations in float64, masks, caches, shapes and errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from macaron.particles import flows
from macaron.particles.dropout import Dropout
from macaron.particles.flows import CrossAttention, FeedForward, SelfAttention
from macaron.particles.surroundings import Caches, Mask, Memory, Packed, Surroundings

T, S, B, C, H = 6, 4, 3, 12, 3


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """In float64 with every parameter drawn, biases too, so that a slip in any of them shows."""
    module = module.double().eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return module


def padding(lengths: list[int], size: int, left: bool = False) -> torch.Tensor:
    mask = torch.arange(size) >= torch.tensor(lengths)[:, None]
    return mask.flip(1) if left else mask


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", F.relu),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda u: F.gelu(u, approximate="tanh")),
        ("silu", F.silu),
        ("tanh", torch.tanh),
        ("linear", lambda u: u),
    ],
)
def test_feed_forward_is_its_equation(activation: str, function: object) -> None:
    flow = randomised(FeedForward(C, 20, activation=activation))
    x = torch.randn(T, B, C, dtype=torch.float64)
    expected = function(x @ flow.fc1.weight.T + flow.fc1.bias) @ flow.fc2.weight.T + flow.fc2.bias
    velocity, weights = flow(x, Surroundings())
    torch.testing.assert_close(velocity, expected)
    assert weights is None


def explicit_attention(q, k, v, visible):  # (B, H, T, D) each; visible broadcastable to (B, H, T, S)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.size(-1))
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return weights @ v, weights


def heads(x: torch.Tensor) -> torch.Tensor:
    """(T, B, C) → (B, H, T, D)."""
    return x.unflatten(-1, (H, -1)).permute(1, 2, 0, 3)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_self_attention_is_its_equation(is_causal: bool, need_weights: bool) -> None:
    flow = randomised(SelfAttention(C, H))
    x = torch.randn(T, B, C, dtype=torch.float64)
    mask = padding([6, 3, 5], T)
    q, k, v = (x @ flow.qkv_proj.weight.T + flow.qkv_proj.bias).chunk(3, dim=-1)
    visible = ~mask[:, None, None, :] & (torch.ones(T, T).tril().bool() if is_causal else torch.tensor(True))
    out, expected_weights = explicit_attention(heads(q), heads(k), heads(v), visible)
    expected = out.permute(2, 0, 1, 3).flatten(2) @ flow.out_proj.weight.T + flow.out_proj.bias

    surroundings = Surroundings(Mask(mask, causal=is_causal), need_weights=need_weights)
    velocity, weights = flow(x, surroundings)
    torch.testing.assert_close(velocity, expected)
    assert (weights is None) != need_weights
    if need_weights:
        torch.testing.assert_close(weights, expected_weights)


def test_cross_attention_is_its_equation_with_a_memory_of_another_width() -> None:
    flow = randomised(CrossAttention(C, H, memory_dim=7))
    x, memory = torch.randn(T, B, C, dtype=torch.float64), torch.randn(S, B, 7, dtype=torch.float64)
    mask = padding([4, 1, 2], S)
    q = x @ flow.q_proj.weight.T + flow.q_proj.bias
    k, v = (memory @ flow.kv_proj.weight.T + flow.kv_proj.bias).chunk(2, dim=-1)
    out, expected_weights = explicit_attention(heads(q), heads(k), heads(v), ~mask[:, None, None, :])
    expected = out.permute(2, 0, 1, 3).flatten(2) @ flow.out_proj.weight.T + flow.out_proj.bias

    velocity, weights = flow(x, Surroundings(memory=Memory(memory, mask), need_memory_weights=True))
    torch.testing.assert_close(velocity, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_batch_first_is_the_same_numbers(kind: type) -> None:
    flow = randomised(kind(C, H))
    x, memory = torch.randn(T, B, C, dtype=torch.float64), torch.randn(S, B, C, dtype=torch.float64)
    time_first, _ = flow(x, Surroundings(memory=Memory(memory)))
    flow.batch_first = True
    batch_first, _ = flow(x.transpose(0, 1), Surroundings(memory=Memory(memory.transpose(0, 1))))
    torch.testing.assert_close(batch_first.transpose(0, 1), time_first)


@given(seed=st.integers(0, 999), chunk=st.integers(1, T), left=st.booleans())
def test_cached_self_attention_equals_the_whole(seed: int, chunk: int, left: bool) -> None:
    """Particles that arrive in chunks, with a cache, move as if all had come at once; padding included."""
    torch.manual_seed(seed)
    flow = randomised(SelfAttention(C, H))
    x = torch.randn(T, B, C, dtype=torch.float64)
    mask = padding([6, 2, 4], T, left=left)
    whole, _ = flow(x, Surroundings(Mask(mask, causal=True)))
    cache: dict[str, torch.Tensor | None] = {}
    parts = []
    for start in range(0, T, chunk):
        part = mask[:, start : start + chunk]
        surroundings = Surroundings(Mask(part if part.any() else None, causal=True), caches=Caches(cache))
        parts.append(flow(x[start : start + chunk], surroundings)[0])
    torch.testing.assert_close(torch.cat(parts), whole)


def test_cross_attention_reads_its_memory_once() -> None:
    flow = randomised(CrossAttention(C, H))
    x, memory = torch.randn(T, B, C, dtype=torch.float64), torch.randn(S, B, C, dtype=torch.float64)
    whole, _ = flow(x, Surroundings(memory=Memory(memory)))
    cache: dict[str, torch.Tensor | None] = {}
    first, _ = flow(x[:1], Surroundings(memory=Memory(memory), caches=Caches(memory=cache)))
    rest, _ = flow(x[1:], Surroundings(caches=Caches(memory=cache)))
    torch.testing.assert_close(torch.cat([first, rest]), whole)


def test_initial_distribution_is_xavier_on_the_stacked_matrix() -> None:
    """Also for the cross-attention's two products; biases are zero."""
    bound = math.sqrt(6 / (4 * 64))
    for module, names in ((SelfAttention(64, 4), ["qkv_proj"]), (CrossAttention(64, 4), ["q_proj", "kv_proj"])):
        for name in names:
            weight = getattr(module, name).weight
            assert weight.abs().max() <= bound and weight.abs().max() > 0.97 * bound
            # five standard deviations of that of 64² uniform draws, √(0.8 / 4n)
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.035)
        assert all(p.eq(0).all() for n, p in module.named_parameters() if n.endswith("bias"))


def test_errors_name_value_rule_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"dim=10 does not divide into num_heads=4; choose a width"):
        SelfAttention(10, 4)
    with pytest.raises(ValueError, match=r"num_heads=0"):
        CrossAttention(8, 0)
    with pytest.raises(ValueError, match=r"hidden_dim=0 must be positive"):
        FeedForward(8, 0)
    with pytest.raises(ValueError, match=r"activation='swish' is unknown; choose one of relu"):
        FeedForward(8, 8, activation="swish")
    with pytest.raises(ValueError, match=r"dropout=1.0 is not a probability in \[0, 1\)"):
        Dropout(1.0)


def test_dropout_acts_in_training_or_when_kept_for_inference() -> None:
    dropout = Dropout(0.3)
    assert dropout.rate() == 0.3
    dropout.eval()
    assert dropout.rate() == 0.0
    x = torch.ones(1000)
    assert torch.equal(dropout(x), x)
    dropout.apply_during_inference = True
    assert dropout.rate() == 0.3
    assert dropout(x).eq(0).float().mean().item() == pytest.approx(0.3, abs=0.05)  # 3.5 deviations of 1000 draws


@pytest.mark.parametrize("is_causal", [False, True])
def test_packed_self_attention_is_that_of_each_sentence(is_causal):
    flow = SelfAttention(16, 4)
    lengths = [3, 1, 5]
    sentences = [torch.randn(n, 1, 16) for n in lengths]
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    x = torch.cat(sentences).squeeze(1)  # (N, C)
    packed, weights = flow(x, Surroundings(Mask(causal=is_causal), packed=Packed(offsets, 5)))
    assert weights is None
    expected = [flow(sentence, Surroundings(Mask(causal=is_causal)))[0].squeeze(1) for sentence in sentences]
    torch.testing.assert_close(packed, torch.cat(expected))


@pytest.mark.parametrize(
    "also",
    [
        {"mask": Mask(padding=torch.zeros(1, 4, dtype=torch.bool))},
        {"mask": Mask(pairs=torch.zeros(4, 4))},
        {"caches": Caches({})},
        {"need_weights": True},
    ],
    ids=["padding", "pairs", "cache", "weights"],
)
def test_packed_self_attention_refuses_what_it_would_ignore(also):
    surroundings = Surroundings(packed=Packed(torch.tensor([0, 4]).int(), 4), **also)
    with pytest.raises(ValueError, match=r"packed particles .* pad the particles to a batch"):
        SelfAttention(8, 2)(torch.randn(4, 8), surroundings)


class Drift(torch.nn.Linear):
    """dx/dt = W x + b."""

    kind = "drift"

    def forward(self, x, context):
        return super().forward(x), None


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(flows, "FLOWS", {})
    flows.register_flow(Drift.kind, lambda dim: Drift(dim, dim))
    return Drift.kind


def test_names_of_flows_of_ones_own(drift: str) -> None:
    for taken in (drift, "ffn", "attention", "self_attention", "cross_attention"):
        with pytest.raises(ValueError, match=f"flow '{taken}' is there already"):
            flows.register_flow(taken, lambda dim: Drift(dim, dim))
    with pytest.raises(ValueError, match="flow='two words' is no name"):
        flows.register_flow("two words", lambda dim: Drift(dim, dim))
    assert list(flows.FLOWS) == [drift]
