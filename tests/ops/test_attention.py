"""Attention against an explicit float64 softmax, one query at a time; packed, one sentence at a time."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from macaron.ops import attention, packed_attention
from macaron.ops._cpu import written_out_is_faster
from macaron.ops.attention import _at_fault, _without_cudnn

module = importlib.import_module("macaron.ops.attention")  # the function has its name in the package
TORCH_HAS_VARLEN = module._VARLEN_INSTALLED  # since 2.10

F32 = {"rtol": 1e-5, "atol": 1e-6}  # float32 against float64: two products, of up to 9 and 6 terms, and a softmax
ROUNDINGS = 4  # times the dtype's ε: of scores, weights and output, all of about 1


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
        torch.testing.assert_close(t.double(), e, **F32)


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


END = torch.zeros(2, 5, dtype=torch.bool).index_fill(1, torch.tensor([3, 4]), True)  # the last two of five are padding
SEEN = (~END)[:, None, None]  # (B, 1, 1, S)
HIDDEN = {
    "padding": {"key_padding_mask": END},
    "padding, causal": {"key_padding_mask": END, "is_causal": True},
    "padding, additive": {"key_padding_mask": END, "attn_mask": torch.linspace(-2, 2, 25).view(5, 5)},
    "bool": {"attn_mask": SEEN},
    "bool, a query each": {"attn_mask": SEEN & torch.eye(5).roll(1, 1).bool().logical_not()},
    "-inf": {"attn_mask": torch.zeros(2, 1, 1, 5).masked_fill(~SEEN, -math.inf)},
    "the lowest number": {"attn_mask": torch.zeros(2, 1, 1, 5).masked_fill(~SEEN, torch.finfo(torch.float32).min)},
    "-inf, all alike": {"attn_mask": torch.zeros(5, 5).masked_fill(~SEEN[0, 0], -math.inf)},
}
PATHS = {
    "kernel": (torch.float32, {}),
    "with dropout": (torch.float32, {"dropout": 0.3}),
    "weights": (torch.float32, {"need_weights": True}),
    "bfloat16": (torch.bfloat16, {}),
    "float16": (torch.float16, {}),
    "bfloat16, dropout, weights": (torch.bfloat16, {"dropout": 0.3, "need_weights": True}),
}


@pytest.mark.parametrize(("dtype", "options"), PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("masks", HIDDEN.values(), ids=HIDDEN)
def test_what_stands_in_padding_does_not_matter(masks, dtype, options):
    """Keys, values and queries of padding hold Inf or NaN: not one bit of the others changes, forward and backward."""
    clean, real = [t.to(dtype) for t in make(T=5)], slice(0, 3)
    upstream = torch.randn(2, 3, 3, 8).to(dtype)

    def run(tensors, grad=True):
        torch.manual_seed(0)
        leaves = [t.clone().requires_grad_(grad) for t in tensors]
        out, weights = attention(*leaves, **masks, **options)
        seen = [out[:, :, real]] if weights is None else [out[:, :, real], weights[:, :, real]]
        grads = torch.autograd.grad(out[:, :, real], leaves, upstream) if grad else []
        return [t.detach() for t in seen], [g[:, :, real] for g in grads], [g[:, :, 3:] for g in grads]

    for bad, grad in itertools.product((math.inf, -math.inf, math.nan), (True, False)):
        poisoned = [t.clone() for t in clean]
        for t in poisoned:
            t[:, :, 3:] = bad
        (outs, grads, rest), (expected, expected_grads, _) = run(poisoned, grad), run(clean, grad)
        for a, b in zip([*outs, *grads], [*expected, *expected_grads], strict=True):
            assert a.isfinite().all() and torch.equal(a, b)
        assert not any(g.any() for g in rest)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_padding_of_a_memory(need_weights, which):
    """As many queries as you like, and a poison in one of the three alone."""
    tensors = make(T=4)
    tensors[which][:, :, 3:] = math.nan
    q, k, v = (t.requires_grad_() for t in tensors)
    out, _ = attention(q, k, v, key_padding_mask=END, need_weights=need_weights)
    assert out[:, :, :3].isfinite().all() and (out[:, :, 3:].isnan().all() if which == 0 else out.isfinite().all())
    out[:, :, :3].sum().backward()
    for t in (q, k, v):
        assert t.grad.isfinite().all() and t.grad[:, :, :3].any()


def test_what_is_seen_is_not_hidden():
    """A NaN among the real keys shows."""
    q, k, v = make()
    k[0, 0, 1, 2] = math.nan
    out, _ = attention(q, k, v, key_padding_mask=END)
    assert out[0, 0].isnan().all() and out[1].isfinite().all() and out[0, 1:].isfinite().all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_stands_in_padding_does_not_matter_when_compiled():
    """Where no value can be looked at, padding is always taken out."""
    q, k, v = make()
    expected, _ = attention(q, k, v, key_padding_mask=END)
    k[:, :, 3:], v[:, :, 3:] = math.inf, math.nan
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v, key_padding_mask=END)[0], expected)
    exported = torch.export.export(Padded(), (q, k, v, END)).module()
    torch.testing.assert_close(exported(q, k, v, END), expected)
    traced = torch.jit.trace(Padded(), (*make(), END), check_trace=False)
    torch.testing.assert_close(traced(q, k, v, END), expected)
    torch.testing.assert_close(torch.jit.script(attention)(q, k, v, END)[0], expected)


class Padded(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return attention(q, k, v, key_padding_mask=mask)[0]


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
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=ROUNDINGS * torch.finfo(dtype).eps)


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_in_half_precision(dtype, masks, judge):
    """On a CPU written out, since torch's kernel is slower; no less exact than that."""
    inputs = [t.to(dtype) for t in make()]
    upstream = torch.randn(2, 3, 4, 8)

    def run(op, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        out = op(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))]

    def torchs(q, k, v):
        visible = module._visible(q, k, masks.get("key_padding_mask"), masks.get("attn_mask"), "is_causal" in masks)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)

    def ours(q, k, v):
        return attention(q, k, v, **masks)[0]

    assert written_out_is_faster(*(t.requires_grad_() for t in inputs[:2]), 0.0)
    judge(("out", "dq", "dk", "dv"), run(torchs, torch.float64), run(torchs, dtype), run(ours, dtype))


def test_what_is_written_out_on_a_cpu():
    q = torch.empty(1, 1, 4, 8, requires_grad=True)
    half, long = q.bfloat16(), torch.empty(1, 1, 513, 8)
    assert written_out_is_faster(q, q, 0.1)
    assert written_out_is_faster(half, long[:, :, :512], 0.0)
    for case in ((q, q, 0.0), (half, long, 0.0), (half.detach(), half, 0.0), (half.to("meta"), half, 0.0)):
        assert not written_out_is_faster(*case)
    with torch.no_grad():
        assert not written_out_is_faster(half, half, 0.0)


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
    assert 0.45 < (kept == 0).float().mean() < 0.55  # eleven standard deviations of 12,000 draws


def test_scripted_and_compiled():
    q, k, v = make()
    expected = attention(q, k, v, PADDING, is_causal=True, need_weights=True)
    for op in (torch.jit.script(attention), torch.compile(attention, fullgraph=True, backend="aot_eager")):
        got = op(q, k, v, PADDING, None, True, 0.0, True)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1])


@pytest.mark.parametrize(("keys", "masked", "at_fault"), [(64, True, True), (192, True, True), (64, False, False),
                                                          (128, True, False), (33, True, False)])  # fmt: skip
def test_where_cudnn_makes_nan(keys, masked, at_fault):
    mask = torch.ones(1, 1, 1, keys, dtype=torch.bool) if masked else None
    assert _at_fault(torch.empty(1, 1, keys, 8), mask) == at_fault


def test_cudnn_is_left_out_and_put_back():
    cuda = torch.backends.cuda
    allowed = (cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled())
    assert all(allowed)
    with _without_cudnn():
        assert not cuda.cudnn_sdp_enabled() and cuda.flash_sdp_enabled()
    with pytest.raises(KeyError), _without_cudnn():
        raise KeyError
    assert (cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()) == allowed
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]), _without_cudnn():  # who allows it alone gets it
        assert cuda.cudnn_sdp_enabled()
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]), _without_cudnn():
        assert not cuda.cudnn_sdp_enabled()


class Watched(torch.fx.Interpreter):
    """Runs what torch.compile has traced, and notes whether cuDNN's attention was allowed for each attention."""

    def __init__(self, traced, seen) -> None:
        super().__init__(traced)
        self.seen = seen

    def call_function(self, target, args, kwargs):
        if "scaled_dot_product_attention" in str(target):
            self.seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return super().call_function(target, args, kwargs)


@pytest.mark.parametrize(
    ("allowed", "masked", "cudnn"),
    [
        (None, True, False),
        (None, False, True),
        ([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH], True, True),  # somebody's choice
        ([SDPBackend.MATH], True, False),
    ],
    ids=["masked", "no mask", "cuDNN chosen", "math chosen"],
)
def test_compiled_with_a_mask_cudnn_is_left_out(monkeypatch, allowed, masked, cudnn):
    """Traced in one piece, with lengths as symbols; torch's switches stand afterwards as before."""
    monkeypatch.setattr(module, "on_accelerator", lambda x: True)
    torch._dynamo.reset()
    seen = []
    compiled = torch.compile(
        lambda *a, **k: attention(*a, **k)[0], backend=lambda traced, _: Watched(traced, seen).run, fullgraph=True,
        dynamic=True,
    )  # fmt: skip
    q, k, v = make()
    masks = {"key_padding_mask": PADDING} if masked else {}
    with sdpa_kernel(allowed) if allowed else contextlib.nullcontext():
        before = torch.backends.cuda.cudnn_sdp_enabled()
        out = compiled(q, k, v, **masks)
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    assert seen == [cudnn]
    torch.testing.assert_close(out.double(), explicit(q, k, v, **masks)[0], **F32)


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


# Packed sentences.


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def packed(lengths, H=2, D=4, dtype=torch.float32):
    """q, k, v, and the arguments that describe the sentences; strides as after one product for all three."""
    q, k, v = torch.randn(sum(lengths), 3, H, D, dtype=dtype).unbind(1)
    return q, k, v, {"offsets": offsets_of(lengths), "max_length": max(lengths, default=0)}


def padded(q, k, v, offsets, max_length, dropout=0.0, is_causal=False):
    """What an accelerator without kernels does, here on the CPU."""
    return module._padded(q, k, v, offsets, max_length, dropout, is_causal)


def each(q, k, v, offsets, max_length, is_causal=False):
    """Sentence by sentence in float64, by the definition."""
    ends = offsets.tolist()
    outs = [q[:0].double()]
    for a, b in itertools.pairwise(ends):
        sentence = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        outs.append(explicit(*sentence, is_causal=is_causal)[0][0].transpose(0, 1))
    return torch.cat(outs)


IMPLEMENTATIONS = pytest.mark.parametrize("op", [packed_attention, padded])


@IMPLEMENTATIONS
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 6), max_size=5),
    causal=st.booleans(), spare=st.integers(0, 2), seed=st.integers(0, 2**31),
)  # fmt: skip
@example(lengths=[], causal=False, spare=0, seed=0)
@example(lengths=[0, 0], causal=True, spare=0, seed=0)
@example(lengths=[3, 0, 1], causal=False, spare=0, seed=0)
@example(lengths=[3, 3, 3], causal=True, spare=1, seed=0)
def test_packed_is_attention_within_each_sentence(op, lengths, causal, spare, seed):
    torch.manual_seed(seed)
    q, k, v, where = packed(lengths)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    doubles = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = each(*(t.detach() for t in leaves), **where, is_causal=causal)
    where["max_length"] += spare  # an upper bound will do
    out = op(*leaves, **where, is_causal=causal)
    torch.testing.assert_close(out.double(), expected, **F32)
    dout = torch.randn_like(out)
    out.backward(dout)
    packed_attention(*doubles, **where, is_causal=causal).backward(dout.double())  # gradcheck below vouches for it
    for leaf, double in zip(leaves, doubles, strict=True):
        # twice the products, and differences of terms of about 1
        torch.testing.assert_close(leaf.grad.double(), double.grad, rtol=4e-5, atol=4e-6)


@IMPLEMENTATIONS
@pytest.mark.parametrize("causal", [False, True])
def test_packed_gradients(op, causal):
    q, k, v, where = packed([2, 1, 0, 2], H=1, D=2, dtype=torch.float64)
    inputs = [t.contiguous().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *qkv: op(*qkv, **where, is_causal=causal), inputs)


@IMPLEMENTATIONS
def test_packed_dropout_drops_weights(op):
    n = 50
    q, k, _, where = packed([n, n], H=3, D=n)
    ones = torch.eye(n).repeat(2, 1)[:, None].expand(2 * n, 3, n)  # the output is then the row of weights as dropped
    whole, kept = op(q, k, ones, **where), op(q, k, ones, **where, dropout=0.5)
    torch.testing.assert_close(kept, torch.where(kept == 0, 0.0, 2 * whole))
    assert 0.45 < (kept == 0).float().mean() < 0.55


@IMPLEMENTATIONS
def test_packed_half_precision(op):
    q, k, v, where = packed([3, 5, 1], dtype=torch.bfloat16)
    out = op(q, k, v, **where)
    assert out.dtype == torch.bfloat16
    atol = ROUNDINGS * torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), each(q, k, v, **where), rtol=0, atol=atol)


def test_packed_compiles():
    """The padded form, which reads no offset."""
    q, k, v, where = packed([3, 5, 1])
    compiled = torch.compile(packed_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, **where), packed_attention(q, k, v, **where))


class Gpu:
    """Tensors that claim to be on a GPU and hold nothing; torch's own kernels, if any, are asked for shapes."""

    def __init__(self, patch, varlen=True, flash=False, capability=(9, 0)):
        self.calls = []
        self.varlen = module._varlen if TORCH_HAS_VARLEN else lambda q, *_: torch.empty_like(q)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        patch.setattr(module, "_VARLEN_INSTALLED", varlen)
        patch.setattr(module, "_FLASH_INSTALLED", flash)
        patch.setattr(module, "_varlen", lambda *a: self.called("varlen", self.varlen(*a)))
        patch.setattr(module, "_flash", lambda *a: self.called("flash", torch.empty_like(a[0])))
        patch.setattr(module, "_padded", lambda *a: self.called("padded", torch.empty_like(a[0])))
        module._announce.cache_clear()

    def called(self, name, out):
        self.calls.append(name)
        return out

    def run(self, D=8, dtype=torch.bfloat16, **options):
        self.calls.clear()
        with FakeTensorMode():
            q, k, v = (torch.empty(9, 2, D, dtype=dtype, device="cuda") for _ in range(3))
            offsets = torch.empty(4, dtype=torch.int32, device="cuda")
            out = packed_attention(q, k, v, offsets, 5, **options)
        assert (out.shape, out.dtype, out.device) == (q.shape, q.dtype, q.device)
        return self.calls[-1]


def test_packed_kernels_on_a_gpu(monkeypatch, caplog):
    gpu = Gpu(monkeypatch, flash=True)
    assert [gpu.run(), gpu.run(is_causal=True), gpu.run(dtype=torch.float16)] == ["varlen"] * 3
    assert gpu.run(dropout=0.1) == "flash"
    assert not caplog.records
    assert Gpu(monkeypatch, varlen=False, flash=True).run() == "flash"


@pytest.mark.parametrize(
    ("kernels", "options", "reason"),
    [
        ({}, {"dropout": 0.1}, "with dropout on the weights they need flash-attn"),
        ({}, {"dtype": torch.float32}, "they take float16 and bfloat16, not torch.float32"),
        ({}, {"D": 12}, "heads of up to 256 channels, in multiples of 8, not 12"),
        ({"varlen": False}, {}, "install torch 2.10 or flash-attn"),
        ({"capability": (7, 5)}, {}, "compute capability 8.0"),
    ],
)
def test_packed_fallback_is_announced_once(monkeypatch, caplog, kernels, options, reason):
    gpu = Gpu(monkeypatch, **kernels)
    with caplog.at_level(logging.WARNING):
        assert [gpu.run(**options), gpu.run(**options)] == ["padded"] * 2
    (record,) = caplog.records
    assert "packed_attention pads its sentences on this device" in record.message
    assert reason in record.message


def test_packed_is_silent_on_a_cpu(caplog):
    q, k, v, where = packed([3, 2])
    packed_attention(q, k, v, **where, dropout=0.1)
    assert not caplog.records


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_packed_on_a_gpu(dtype, causal):
    q, k, v, where = packed([40, 1, 0, 17], H=2, D=32, dtype=dtype)
    expected = each(q, k, v, **where, is_causal=causal)
    on_gpu = {name: t.cuda() if torch.is_tensor(t) else t for name, t in where.items()}
    inputs = [t.cuda().requires_grad_() for t in (q, k, v)]
    out = packed_attention(*inputs, **on_gpu, is_causal=causal)
    # as ROUNDINGS, of sums of 40 terms in blocks, and for gradients of five products in a row
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
    out.sum().backward()
    doubles = [t.detach().double().requires_grad_() for t in (q, k, v)]
    packed_attention(*doubles, **where, is_causal=causal).sum().backward()
    for t, double in zip(inputs, doubles, strict=True):
        torch.testing.assert_close(t.grad.cpu().double(), double.grad, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_packed_errors_say_what_is_wrong():
    q, k, v, where = packed([3, 2])
    off, options = where["offsets"], {"offsets": where["offsets"], "max_length": 3}
    for bad, message in [
        ((q[0], k, v), r"do not fit; expected \(N, H, D\)"),
        ((q, k, v[1:]), r"do not fit"),
        ((q, k[1:], v[1:]), r"q \(5, 2, 4\), k \(4, 2, 4\), v \(4, 2, 4\) do not fit"),
    ]:
        with pytest.raises(ValueError, match=message):
            packed_attention(*bad, **options)
    for changed, message in [
        ({"offsets": off.long()}, r"offsets is torch.int64 \(3,\) on cpu; expected torch.int32 \(B \+ 1,\)"),
        ({"offsets": off[:0]}, r"offsets is torch.int32 \(0,\)"),
        ({"offsets": off[:2]}, r"offsets=\[0, 3\] do not describe 5 tokens"),
        ({"offsets": torch.tensor([0, 6, 5]).int()}, r"offsets=\[0, 6, 5\] do not describe 5 tokens"),
        ({"offsets": torch.tensor([1, 3, 5]).int()}, r"offsets=\[1, 3, 5\] do not describe 5 tokens"),
        ({"offsets": off.to("meta")}, r"on meta; expected torch.int32 \(B \+ 1,\) on cpu"),
        ({"max_length": 2}, r"a sentence has 3 tokens, max_length=2"),
        ({"dropout": 1.0}, r"dropout=1.0 is not a probability"),
    ]:
        with pytest.raises(ValueError, match=message):
            packed_attention(q, k, v, **{**options, **changed})
