"""dropout(activation(u)): reference, kernel, operators."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from macaron.ops.act_dropout import (
    ACTIVATIONS,
    _act_dropout,
    _act_dropout_backward,
    act_dropout,
    act_dropout_reference,
)

DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
SHAPES = [(2, 3, 64), (1, 5, 37), (2, 1100), (2, 1, 2, 24), (5,)]


def make(shape, dtype, device):
    u, dout = (2 * torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    return u, dout


def run(op, u, dout, dtype=None):
    """The output and the gradient."""
    u = u.detach().to(dtype or u.dtype).requires_grad_()
    out = op(u)
    out.backward(dout.to(out.dtype))
    return out.detach(), u.grad


def compare(judge, u, dout, activation):
    def eager(u):
        return act_dropout_reference(u, activation, 0.0)

    truth, expected = run(eager, u, dout, torch.float64), run(eager, u, dout)
    got = run(lambda u: act_dropout(u, activation, backend="triton"), u, dout)
    judge(("out", "du"), truth, expected, got)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_error_is_at_most_twice_that_of_eager(activation, dtype, device, judge):
    compare(judge, *make((3, 2, 45), dtype, device), activation)


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
    seed=st.integers(0, 2**31),
)
def test_any_shape(shape, activation, seed, device, judge):
    torch.manual_seed(seed)
    compare(judge, *make(shape, torch.float32, device), activation)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "view",
    [lambda t: t.transpose(0, 1), lambda t: t[..., 1:], lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)],
    ids=["transposed", "unaligned", "channels first"],
)
def test_any_strides(view, device, judge):
    u, dout = make((4, 6, 24), torch.float32, device)
    compare(judge, view(u), view(dout), "relu")


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8)], ids=str)
def test_empty_batch(shape, device):
    out, du = run(lambda u: act_dropout(u, "gelu", backend="triton"), *make(shape, torch.float32, device))
    assert out.shape == du.shape == shape


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_output_and_gradient_have_the_dtype_of_the_input(backend, device):
    u, dout = make((2, 3), torch.float16, device)
    out, du = run(lambda u: act_dropout(u, dropout=0.1, backend=backend), u, dout)
    assert (out.dtype, du.dtype) == (torch.float16, torch.float16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_nan_passes_and_large_values_do_not_overflow(activation, backend, device):
    """A diverged run must show, so no activation may swallow a NaN."""
    u = torch.tensor([math.nan, 300.0, -300.0], device=device)
    out = act_dropout(u, activation, backend=backend)
    assert out[0].isnan()
    torch.testing.assert_close(out[1:], act_dropout_reference(u[1:], activation, 0.0))


def test_dropout_and_its_gradient(device):
    torch.manual_seed(1)
    u = torch.randn(40, 50, device=device, requires_grad=True)
    mask = act_dropout(torch.ones_like(u), "linear", 0.3, backend="triton")
    torch.testing.assert_close(mask, (mask != 0) / 0.7)
    assert 0.25 < (mask == 0).float().mean() < 0.35

    torch.manual_seed(2)
    out = act_dropout(u, "gelu", 0.3, backend="triton")
    torch.manual_seed(2)
    mask = act_dropout(torch.ones_like(u), "linear", 0.3, backend="triton")
    expected = act_dropout_reference(u, "gelu", 0.0) * mask
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out.square().sum(), u)
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), u))


def test_activation_checkpointing_replays_the_mask(device):
    u = torch.randn(4, 32, device=device, requires_grad=True)

    def block(u):
        return act_dropout(u, "gelu", 0.5, backend="triton").square()

    results = []
    for op in (block, lambda u: checkpoint(block, u, use_reentrant=False)):
        torch.manual_seed(3)
        out = op(u)
        results.append((out, *torch.autograd.grad(out.sum(), u)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_gradients_in_float64(activation):
    u = torch.randn(3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: act_dropout_reference(u, activation, 0.0), u)


def test_opcheck(device):
    u, dout = make((3, 2, 24), torch.float32, device)
    seed = torch.tensor(7, device=device)
    torch.library.opcheck(_act_dropout.custom, (u.requires_grad_(), seed, "gelu", 0.25))
    torch.library.opcheck(_act_dropout_backward.custom, (dout, u.detach(), seed, "gelu", 0.25))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(_act_dropout.custom, (u.detach(), None, "relu", 0.0), test_utils=tests)
    torch.library.opcheck(_act_dropout_backward.custom, (dout, u.detach(), None, "relu", 0.0), test_utils=tests)


def test_compiled_and_scripted(device):
    u = torch.randn(3, 24, device=device, requires_grad=True)

    def block(u):
        return act_dropout(u, "silu", backend="triton")

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(op(u).sum(), u) for op in (compiled, block))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # float32: the same kernel on the same numbers
    torch.testing.assert_close(torch.jit.script(act_dropout)(u, "silu"), block(u))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_errors_say_what_is_wrong(backend):
    u = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"activation='swish' is unknown; choose one of relu, gelu, "):
        act_dropout(u, "swish", backend=backend)
    with pytest.raises(ValueError, match=r"act_dropout: dropout=1.0 is not a probability in \[0, 1\)"):
        act_dropout(u, dropout=1.0, backend=backend)
