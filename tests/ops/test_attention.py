"""Attention against an explicit float64 softmax, one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macaron.ops import attention


def explicit(q, k, v, key_padding_mask=None, attn_mask=None, is_causal=False):
    """out (B, H, T, D) and weights (B, H, T, S), by the definition."""
    q, k, v = q.double(), k.double(), v.double()
    (B, H, T, D), S = q.shape, k.size(2)
    weights = torch.zeros(B, H, T, S).double()
    mask = None if attn_mask is None else attn_mask.expand(B, H, T, S)
    for b, h, t in ((b, h, t) for b in range(B) for h in range(H) for t in range(T)):
        exponents = {}
        for s in range(S):
            seen = not (is_causal and s > t + S - T)
            seen = seen and not (key_padding_mask is not None and key_padding_mask[b, s])
            added = 0.0
            if mask is not None and mask.dtype == torch.bool:
                seen = seen and bool(mask[b, h, t, s])
            elif mask is not None:
                added = float(mask[b, h, t, s])
            if seen and added != -math.inf:
                exponents[s] = math.exp(float(q[b, h, t] @ k[b, h, s]) / math.sqrt(D) + added)
        for s, e in exponents.items():
            weights[b, h, t, s] = e / sum(exponents.values())
    return weights @ v, weights


def make(B=2, H=3, T=4, S=5, D=8):
    return torch.randn(B, H, T, D), torch.randn(B, H, S, D), torch.randn(B, H, S, D)


def check(q, k, v, **masks):
    out, weights = explicit(q, k, v, **masks)
    fast, none = attention(q, k, v, **masks)
    slow, got = attention(q, k, v, need_weights=True, **masks)
    assert none is None
    for t, e in ((fast, out), (slow, out), (got, weights)):
        torch.testing.assert_close(t.double(), e, rtol=1e-5, atol=1e-6)


PADDING = torch.tensor([[False, False, False, True, True], [True, False, False, False, False]])
BOOL = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]).bool()
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "bool": {"attn_mask": BOOL},
    "bool per sentence": {"attn_mask": torch.stack([BOOL, BOOL.roll(1, 0)])[:, None]},
    "additive": {"attn_mask": torch.linspace(-2, 2, 20).view(4, 5)},
    "additive with -inf": {"attn_mask": torch.zeros(4, 5).masked_fill(~BOOL, -math.inf)},
    "causal": {"is_causal": True},
    "causal, padding": {"is_causal": True, "key_padding_mask": PADDING},
    "causal, bool": {"is_causal": True, "attn_mask": BOOL},
    "all": {"is_causal": True, "key_padding_mask": PADDING, "attn_mask": torch.linspace(-2, 2, 20).view(4, 5)},
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_equals_the_definition(masks):
    check(*make(), **masks)


@pytest.mark.parametrize(("T", "S"), [(1, 1), (4, 4), (1, 6), (3, 6), (6, 3)])
def test_causal_mask_is_aligned_at_the_last_query(T, S):
    """In step-wise decoding the newest T of S particles ask. With more queries than keys the first see nothing."""
    q, k, v = make(T=T, S=S)
    check(q, k, v, is_causal=True)
    out, _ = attention(q, k, v, is_causal=True)
    assert not out[:, :, : max(0, T - S)].any()


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_query_that_sees_nothing_gets_zeros_and_a_finite_gradient(need_weights):
    q, k, v = (t.requires_grad_() for t in make())
    padding = torch.tensor([[True] * 5, [False] * 5])
    out, weights = attention(q, k, v, key_padding_mask=padding, need_weights=need_weights)
    assert not out[0].any()
    assert out[1].all()
    assert weights is None or not weights[0].any()
    out.sum().backward()
    for t in (q, k, v):
        assert t.grad.isfinite().all()
        assert not t.grad[0].any()


@settings(max_examples=25)
@given(
    B=st.integers(1, 3), H=st.integers(1, 3), T=st.integers(1, 6), S=st.integers(1, 6), D=st.integers(1, 9),
    padded=st.booleans(), masked=st.sampled_from(["no", "bool", "additive"]), causal=st.booleans(),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape(B, H, T, S, D, padded, masked, causal, seed):
    torch.manual_seed(seed)
    masks = {"is_causal": causal}
    if padded:
        masks["key_padding_mask"] = torch.rand(B, S) < 0.3
    if masked != "no":
        masks["attn_mask"] = torch.rand(T, S) < 0.7 if masked == "bool" else torch.randn(T, S)
    check(*make(B, H, T, S, D), **masks)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, need_weights):
    q, k, v = (t.to(dtype) for t in make())
    out, weights = attention(q, k, v, key_padding_mask=PADDING, need_weights=need_weights)
    assert out.dtype == dtype
    assert weights is None or weights.dtype == torch.float32
    expected, _ = explicit(q, k, v, key_padding_mask=PADDING)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradients(need_weights):
    q, k, v = (t.double().requires_grad_() for t in make(B=2, H=1, T=2, S=5, D=3))

    def op(q, k, v):
        return attention(q, k, v, key_padding_mask=PADDING, is_causal=True, need_weights=need_weights)[0]

    assert torch.autograd.gradcheck(op, (q, k, v))


def test_dropout_leaves_the_returned_weights_whole():
    q, k, _ = make(T=40, S=50, D=50)
    ones = torch.eye(50).expand(2, 3, 50, 50)  # the output is then the row of weights as dropped
    kept, weights = attention(q, k, ones, dropout=0.5, need_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 40))
    torch.testing.assert_close(kept, torch.where(kept == 0, 0.0, 2 * weights))
    assert 0.45 < (kept == 0).float().mean() < 0.55


def test_scripted_and_compiled():
    q, k, v = make()
    expected = attention(q, k, v, PADDING, is_causal=True, need_weights=True)
    for op in (torch.jit.script(attention), torch.compile(attention, fullgraph=True, backend="aot_eager")):
        got = op(q, k, v, PADDING, None, True, 0.0, True)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1])


def test_errors_say_what_is_wrong():
    q, k, v = make()
    with pytest.raises(ValueError, match=r"q \(3, 4, 8\), .* do not fit; expected \(B, H, T, D\)"):
        attention(q[0], k, v)
    with pytest.raises(ValueError, match=r"do not fit"):
        attention(q, k, v[:, :, 1:])
    with pytest.raises(ValueError, match=r"key_padding_mask is torch.float32 \(2, 5\); expected torch.bool \(2, 5\)"):
        attention(q, k, v, PADDING.float())
    with pytest.raises(ValueError, match=r"key_padding_mask is torch.bool \(2, 4\)"):
        attention(q, k, v, PADDING[:, 1:])
    with pytest.raises(ValueError, match=r"dropout=1.5 is not a probability"):
        attention(q, k, v, dropout=1.5)
