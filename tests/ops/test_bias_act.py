"""dropout(activation(u + bias)): reference, kernels, operators."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from macaron.ops.bias_act import ACTIVATIONS, _bias_act, _bias_act_backward, bias_act, bias_act_reference

DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
SHAPES = [(2, 3, 64), (1, 5, 37), (2, 1100), (2, 1, 2, 24), (5,)]


def make(shape, dtype, device, bias=True):
    u, dout = (2 * torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    return (u, torch.randn(shape[-1], device=device, dtype=dtype) if bias else None), dout


def run(op, inputs, dout, dtype=None):
    """The output, then the gradients of the inputs that are there."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    out = op(*leaves)
    out.backward(dout.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def compare(judge, inputs, dout, activation):
    def eager(u, bias):
        return bias_act_reference(u, bias, activation, 0.0)

    truth, expected = run(eager, inputs, dout, torch.float64), run(eager, inputs, dout)
    got = run(lambda u, bias: bias_act(u, bias, activation, backend="triton"), inputs, dout)
    judge(("out", "du", "dbias")[: len(got)], truth, expected, got)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_error_is_at_most_twice_that_of_eager(activation, bias, dtype, device, judge):
    compare(judge, *make((3, 2, 45), dtype, device, bias), activation)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape, device, judge):
    compare(judge, *make(shape, torch.float32, device), "gelu")


@pytest.mark.usefixtures("poisoned")
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 6), max_size=2).flatmap(
        lambda rows: st.integers(1, 200).map(lambda width: (*rows, width))
    ),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(shape, activation, bias, seed, device, judge):
    torch.manual_seed(seed)
    compare(judge, *make(shape, torch.float32, device, bias), activation)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "view",
    [lambda t: t.transpose(0, 1), lambda t: t[..., 1:], lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)],
    ids=["transposed", "unaligned", "channels first"],
)
def test_any_strides(view, device, judge):
    (u, bias), dout = make((4, 6, 24), torch.float32, device)
    u, dout = view(u), view(dout)
    compare(judge, (u, bias[: u.size(-1)]), dout, "relu")


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8)], ids=str)
def test_empty_batch(shape, device):
    out, du, dbias = run(lambda u, b: bias_act(u, b, "gelu", backend="triton"), *make(shape, torch.float32, device))
    assert out.shape == du.shape == shape
    assert torch.equal(dbias, torch.zeros(8, device=device))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_output_has_the_dtype_of_the_input(backend, device):
    u, bias = torch.randn(2, 3, device=device, dtype=torch.float16), torch.randn(3, device=device, requires_grad=True)
    out = bias_act(u, bias, backend=backend)
    out.sum().backward()
    assert (out.dtype, bias.grad.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_nan_passes_and_large_values_do_not_overflow(activation, backend, device):
    """A diverged run must show, so no activation may swallow a NaN."""
    u = torch.tensor([math.nan, 300.0, -300.0], device=device)
    out = bias_act(u, None, activation, backend=backend)
    assert out[0].isnan()
    torch.testing.assert_close(out[1:], bias_act_reference(u[1:], None, activation, 0.0))


def test_dropout_and_its_gradient(device):
    torch.manual_seed(1)
    u = torch.randn(40, 50, device=device, requires_grad=True)
    bias = torch.randn(50, device=device, requires_grad=True)
    mask = bias_act(torch.ones_like(u), None, "linear", 0.3, backend="triton")
    torch.testing.assert_close(mask, (mask != 0) / 0.7)
    assert 0.25 < (mask == 0).float().mean() < 0.35

    torch.manual_seed(2)
    out = bias_act(u, bias, "gelu", 0.3, backend="triton")
    torch.manual_seed(2)
    mask = bias_act(torch.ones_like(u), None, "linear", 0.3, backend="triton")
    expected = bias_act_reference(u, bias, "gelu", 0.0) * mask
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out.square().sum(), (u, bias))
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), (u, bias)))


def test_activation_checkpointing_replays_the_mask(device):
    u = torch.randn(4, 32, device=device, requires_grad=True)

    def block(u):
        return bias_act(u, None, "gelu", 0.5, backend="triton").square()

    results = []
    for op in (block, lambda u: checkpoint(block, u, use_reentrant=False)):
        torch.manual_seed(3)
        out = op(u)
        results.append((out, *torch.autograd.grad(out.sum(), u)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_gradients_in_float64(activation):
    u, bias = torch.randn(3, 5).double().requires_grad_(), torch.randn(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, bias: bias_act_reference(u, bias, activation, 0.0), (u, bias))


def test_opcheck(device):
    (u, bias), dout = make((3, 2, 24), torch.float32, device)
    seed = torch.tensor(7, device=device)
    torch.library.opcheck(_bias_act, (u.requires_grad_(), bias.requires_grad_(), seed, "gelu", 0.25))
    torch.library.opcheck(_bias_act_backward, (dout, u.detach(), bias.detach(), seed, "gelu", 0.25))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(_bias_act, (u.detach(), None, None, "relu", 0.0), test_utils=tests)
    torch.library.opcheck(_bias_act_backward, (dout, u.detach(), None, None, "relu", 0.0), test_utils=tests)


def test_compiled_and_scripted(device):
    u, bias = torch.randn(3, 24, device=device, requires_grad=True), torch.randn(24, device=device)

    def block(u):
        return bias_act(u, bias, "silu", backend="triton")

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(u).sum(), u), torch.autograd.grad(block(u).sum(), u), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(torch.jit.script(bias_act)(u, bias, "silu"), block(u))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_errors_say_what_is_wrong(backend):
    u = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"activation='swish' is unknown; choose one of relu, gelu, "):
        bias_act(u, None, "swish", backend=backend)
    with pytest.raises(ValueError, match=r"bias_act: bias has shape \(2,\); expected \(3,\), the width of u"):
        bias_act(u, torch.zeros(2), backend=backend)
    with pytest.raises(ValueError, match=r"bias_act: dropout=1.0 is not a probability in \[0, 1\)"):
        bias_act(u, dropout=1.0, backend=backend)
