"""Projection and label-smoothed cross-entropy by chunks, against fairseq's criterion and torch's function."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macaron.ops.linear_cross_entropy import (
    REDUCTIONS,
    _linear_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)

PAD = 1
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
BACKENDS = ["reference", "triton"]
F32 = {"rtol": 2e-6, "atol": 2e-6}  # float32: logits and sums over up to 50 labels and 24 tokens, in another order
BF16 = {"rtol": 8e-3, "atol": 8e-3}  # two roundings to eight bits, of logits and of their gradients


def make(tokens, C, V, dtype=torch.float32, device="cpu", bias=True):
    """x, weight and bias, and targets of which about a third are padding."""
    x, weight = torch.randn(*tokens, C, device=device), torch.randn(V, C, device=device) / C**0.5
    target = torch.randint(0, V, tokens, device=device).masked_fill(torch.rand(tokens, device=device) < 0.3, PAD)
    inputs = (x, weight, torch.randn(V, device=device) if bias else None)
    return tuple(None if t is None else t.to(dtype) for t in inputs), target


def run(op, inputs, target, upstream, dtype=None, **kwargs):
    """loss and nll, then the gradients of x, weight and bias under the loss's gradient `upstream`."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    loss, nll = op(leaves[0], leaves[1], target, leaves[2], ignore_index=PAD, **kwargs)
    (loss * upstream).sum().backward()
    return [loss.detach(), nll.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def compare(judge, inputs, target, backend, chunk, **kwargs):
    # one factor for a scalar loss and another for each row
    upstream = 1 + torch.rand(target.shape, device=target.device) if kwargs.get("reduction") == "none" else 3.0

    def chunked(*args, **kwargs):
        return linear_cross_entropy(*args, chunk_size=chunk, backend=backend, **kwargs)

    truth = run(linear_cross_entropy_reference, inputs, target, upstream, torch.float64, **kwargs)
    eager = run(linear_cross_entropy_reference, inputs, target, upstream, **kwargs)
    got = run(chunked, inputs, target, upstream, **kwargs)
    judge(("loss", "nll", "dx", "dweight", "dbias")[: len(got)], truth, eager, got)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_error_is_at_most_twice_that_of_eager(reduction, dtype, backend, device, judge):
    inputs, target = make((4, 5), 16, 37, dtype, device)
    compare(judge, inputs, target, backend, 6, reduction=reduction, label_smoothing=0.1)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    C=st.integers(1, 20),
    V=st.integers(2, 80),
    chunk=st.none() | st.integers(1, 30),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    reduction=st.sampled_from(["sum", "none"]),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(tokens, C, V, chunk, smoothing, reduction, bias, seed, backend, device, judge):
    torch.manual_seed(seed)
    inputs, target = make(tuple(tokens), C, V, device=device, bias=bias)
    compare(judge, inputs, target, backend, chunk, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.usefixtures("poisoned")
def test_vocabulary_of_several_blocks(device, judge):
    inputs, target = make((3,), 8, 9001, device=device)
    compare(judge, inputs, target, "triton", 2, label_smoothing=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduce", [True, False])
def test_equals_fairseqs_criterion(reduce, smoothing, backend, device):
    """Values and gradients of `label_smoothed_cross_entropy`, padding included, and what it logs."""
    fairseq = pytest.importorskip("fairseq.criterions.label_smoothed_cross_entropy")
    (x, weight, _), target = make((4, 6), 16, 50, device=device, bias=False)

    class Projection(torch.nn.Module):
        def forward(self, features):
            return features @ self.weight.t(), None

        def get_normalized_probs(self, net_output, log_probs):
            return F.log_softmax(net_output[0], dim=-1)

        def get_targets(self, sample, net_output):
            return sample["target"]

    model = Projection()
    model.weight = torch.nn.Parameter(weight.clone())
    features = x.clone().requires_grad_()
    task = SimpleNamespace(target_dictionary=SimpleNamespace(pad=lambda: PAD))
    criterion = fairseq.LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=smoothing)
    tokens = int((target != PAD).sum())
    sample = {"net_input": {"features": features}, "target": target, "ntokens": tokens}
    expected, size, logging = criterion(model, sample, reduce=reduce)

    leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
    reduction = "sum" if reduce else "none"
    rule = {"label_smoothing": smoothing, "ignore_index": PAD, "reduction": reduction}
    loss, nll = linear_cross_entropy(leaves[0], leaves[1], target, chunk_size=5, backend=backend, **rule)
    torch.testing.assert_close(loss.flatten(), expected.flatten(), **F32)
    torch.testing.assert_close(nll.flatten(), logging["nll_loss"].flatten(), **F32)
    (expected.sum() / size).backward()
    (loss.sum() / size).backward()
    torch.testing.assert_close(leaves[0].grad, features.grad, **F32)
    torch.testing.assert_close(leaves[1].grad, model.weight.grad, **F32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch(smoothing, reduction, backend, device):
    """torch spreads its smoothing over all V labels, so its own is ε V / (V − 1)."""
    (x, weight, bias), target = make((20,), 16, 50, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    of_torch = {"ignore_index": PAD, "reduction": reduction, "label_smoothing": smoothing * 50 / 49}
    expected = F.cross_entropy(F.linear(*leaves), target, **of_torch)
    rule = {"label_smoothing": smoothing, "ignore_index": PAD, "reduction": reduction}
    loss, _ = linear_cross_entropy(x, weight, target, bias, chunk_size=7, backend=backend, **rule)
    torch.testing.assert_close(loss, expected, **F32)
    got = torch.autograd.grad(loss.sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), leaves), **F32)


def test_gradients_in_float64(device):
    (x, weight, bias), target = make((3, 2), 4, 7, torch.float64, device)
    leaves = tuple(t.requires_grad_() for t in (x, weight, bias))
    for reduction in REDUCTIONS:
        rule = {"label_smoothing": 0.2, "ignore_index": PAD, "reduction": reduction}
        for op in (linear_cross_entropy, linear_cross_entropy_reference):
            assert torch.autograd.gradcheck(lambda x, w, b: op(x, w, target, b, **rule)[0], leaves)  # noqa: B023


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_tied_weights(reduction, device):
    """The embedding and the projection are one parameter; its gradient has both parts."""
    tokens, target = torch.randint(0, 30, (2, 4, 3), device=device)
    table = torch.randn(30, 8, device=device, requires_grad=True)

    def gradient(op):
        loss, _ = op(torch.tanh(F.embedding(tokens, table)), table, target, label_smoothing=0.1, reduction=reduction)
        return torch.autograd.grad(loss.sum(), table)[0]

    torch.testing.assert_close(gradient(linear_cross_entropy), gradient(linear_cross_entropy_reference))


def test_upstream_gradient_and_retained_graph(device):
    (x, weight, _), target = make((6,), 8, 20, device=device)
    x.requires_grad_()
    loss, nll = linear_cross_entropy(x, weight, target)
    assert not nll.requires_grad
    (one,) = torch.autograd.grad(loss, x, retain_graph=True)
    (five,) = torch.autograd.grad(5 * loss, x, retain_graph=True)
    torch.testing.assert_close(five, 5 * one)
    assert weight.grad is None


def test_a_graph_that_is_kept_yields_the_same_gradient_again(device):
    """Also where the gradient was not scaled, and `.grad` could have become the tensor that the graph holds."""
    (x, weight, bias), target = make((6,), 8, 20, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    loss, _ = linear_cross_entropy(*leaves[:2], target, bias)
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close([t.grad for t in leaves], [times * t for t in expected])


def test_loss_scale_beyond_float16(device):
    """AMP starts with a loss scale of 2¹⁶, infinite in float16."""
    (x, weight, _), target = make((6,), 8, 20, torch.float16, device, bias=False)
    x.requires_grad_()
    loss, _ = linear_cross_entropy(x, weight, target, reduction="mean")
    (one,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(65536 * loss, x)
    # a power of two rounds nothing, but what is smaller than float16's normal numbers, to multiples of 6e-8
    torch.testing.assert_close(scaled / 65536, one, rtol=0, atol=1e-7)


@pytest.mark.parametrize("tokens", [(0,), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("op", [linear_cross_entropy_reference, linear_cross_entropy], ids=["reference", "op"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_a_target_loss_and_gradients_are_zero(reduction, op, dtype, tokens):
    nothing(op, dtype, tokens, reduction=reduction)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_target_also_when_compiled_or_in_a_kernel(backend, device):
    nothing(torch.compile(linear_cross_entropy, backend="aot_eager"), torch.float32, (5,), device, reduction="mean")
    nothing(linear_cross_entropy, torch.float32, (5,), device, reduction="mean", backend=backend)


def nothing(op, dtype, tokens, device="cpu", **kwargs):
    inputs, target = make(tokens, 8, 11, dtype, device)
    found = run(op, inputs, target.fill_(PAD), 1.0, label_smoothing=0.1, **kwargs)
    assert len(found) == 5
    assert not any(t.isnan().any() or t.any() for t in found)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_grad_and_no_tokens(reduction, device):
    (x, weight, bias), target = make((5,), 8, 20, device=device)
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        results = [linear_cross_entropy(leaf, weight, target, bias, reduction=reduction) for _ in range(2)]
    torch.testing.assert_close(results[0], results[1])
    assert not results[0][0].requires_grad

    loss, _ = linear_cross_entropy(leaf, weight, torch.full_like(target, -100), bias, reduction=reduction)
    assert not loss.any() and not loss.isnan().any()
    empty, _ = linear_cross_entropy(x[:0], weight, target[:0], bias, reduction=reduction)
    assert empty.shape == ((0,) if reduction == "none" else ())


@pytest.mark.parametrize("device_type", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast(reduction, device_type):
    """Products in bfloat16; parameters, their gradients and the loss in float32."""
    (x, weight, bias), target = make((40,), 32, 60, device=device_type)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def run_under_autocast(op):
        with torch.autocast(device_type, torch.bfloat16):
            loss, nll = op(x, weight, target, bias, label_smoothing=0.1, reduction=reduction)
        return [loss, nll, *torch.autograd.grad(loss.sum(), leaves)]

    for got, expected in zip(
        run_under_autocast(linear_cross_entropy), run_under_autocast(linear_cross_entropy_reference), strict=True
    ):
        assert got.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(got, expected, **BF16)


def test_logits_exist_one_chunk_at_a_time(device, monkeypatch):
    """And in the same memory, of chunks of nearly one size."""
    (x, weight, bias), target = make((50,), 8, 30, device=device)
    seen = []
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, out: seen.append(out) or product(*args, out=out))
    linear_cross_entropy(x.requires_grad_(), weight, target.clamp(min=2), bias, chunk_size=20)
    assert [len(logits) for logits in seen] == [17, 17, 16]
    assert len({logits.data_ptr() for logits in seen}) == 1


def test_default_chunk():
    """4 Mi logits on a CPU, or the size of the weights' gradient."""
    chunk = importlib.import_module("macaron.ops.linear_cross_entropy")._default_chunk
    assert chunk(torch.empty(0, 512), torch.float32, 1024) == 4096
    assert chunk(torch.empty(0, 512), torch.float32, 2**20) == 512
    assert chunk(torch.empty(0, 512), torch.bfloat16, 2**20) == 1024


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_is_ignored_costs_nothing_on_a_cpu(reduction, monkeypatch):
    (x, weight, bias), target = make((50,), 8, 30)
    target[3:40] = PAD
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    expected, _ = linear_cross_entropy_reference(*leaves[:2], target, bias, 0.1, PAD, reduction)
    wanted = torch.autograd.grad(expected.sum(), leaves)
    seen = []
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, out: seen.append(len(out)) or product(*args, out=out))
    loss, _ = linear_cross_entropy(*leaves[:2], target, bias, 0.1, PAD, reduction)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), leaves), wanted)
    assert set(seen) == {int(target.ne(PAD).sum())}


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_entries_of_the_vocabulary(backend, device):
    """A bias of −∞ takes a label out, also the whole first block of a kernel."""
    (x, weight, bias), target = make((4,), 8, 5000, device=device)
    bias[:4500] = -torch.inf
    target = target % 500 + 4500
    expected = linear_cross_entropy_reference(x, weight, target, bias)
    torch.testing.assert_close(linear_cross_entropy(x, weight, target, bias, backend=backend), expected)


@pytest.mark.parametrize("wrong", [-1, 20])
def test_target_outside_the_vocabulary(wrong, device):
    (x, weight, _), target = make((4,), 8, 20, device=device)
    target[2] = wrong
    loss, _ = linear_cross_entropy(x, weight, target, backend="triton", reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False]
    if device.type == "cpu":
        with pytest.raises(RuntimeError, match=r"out of bounds"):
            linear_cross_entropy(x, weight, target, backend="reference")


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, device):
    (x, weight, bias), target = make((6,), 8, 20, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    options = (0.1, PAD, 4, torch.float32, backend == "triton")
    args = (leaves[0], leaves[1], target, leaves[2])
    torch.library.opcheck(_linear_cross_entropy, (*args, None, *options, False, [True, True, True]))
    torch.library.opcheck(_linear_cross_entropy, (*args, None, *options, True, [False, False, False]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled(reduction, device):
    (x, weight, bias), target = make((6,), 8, 20, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def loss(x, weight, bias):
        return linear_cross_entropy(x, weight, target, bias, 0.1, PAD, reduction)[0].sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)


def test_errors_say_what_is_wrong():
    (x, weight, bias), target = make((4,), 8, 20)
    with pytest.raises(ValueError, match=r"x \(4, 7\), weight \(20, 8\) do not fit; expected \(..., C\), \(V, C\)"):
        linear_cross_entropy(x[:, 1:], weight, target)
    with pytest.raises(ValueError, match=r"bias \(19,\) do not fit"):
        linear_cross_entropy(x, weight, target, bias[1:])
    with pytest.raises(ValueError, match=r"target is torch.int64 \(3,\); expected torch.int64 \(4,\), one label per"):
        linear_cross_entropy(x, weight, target[1:])
    with pytest.raises(ValueError, match=r"target is torch.int32 \(4,\)"):
        linear_cross_entropy(x, weight, target.int())
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 is not in \[0, 1\)"):
        linear_cross_entropy(x, weight, target, label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"reduction='avg' is unknown; choose one of sum, mean, none"):
        linear_cross_entropy(x, weight, target, reduction="avg")
    with pytest.raises(ValueError, match=r"chunk_size=0 must be positive"):
        linear_cross_entropy(x, weight, target, chunk_size=0)
