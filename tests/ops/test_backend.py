"""Which implementation runs, and what is said when the wanted one cannot."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys

import pytest
import torch

from macaron.ops import _backend, act_dropout, attention, euler_step, linear_cross_entropy, step_norm
from macaron.ops._backend import requested_backend, triton_interpreted, use_triton
from macaron.ops._operator import Operator

X = torch.zeros(2, 3)
CALLS = {
    "step_norm": lambda **kw: step_norm(X, X, None, None, 0.5, **kw),
    "euler_step": lambda **kw: euler_step(X, X, 0.5, **kw),
    "act_dropout": lambda **kw: act_dropout(X, **kw),
    "linear_cross_entropy": lambda **kw: linear_cross_entropy(X, X, torch.zeros(2, dtype=torch.int64), **kw),
}


def run_python(code: str, **env: str) -> str:
    env = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_argument_comes_before_the_environment(monkeypatch):
    monkeypatch.delenv("MACARON_BACKEND", raising=False)
    assert requested_backend() == "auto"
    monkeypatch.setenv("MACARON_BACKEND", "reference")
    assert requested_backend() == "reference"
    assert requested_backend("triton") == "triton"


@pytest.mark.parametrize("op", CALLS)
def test_unknown_backend(op, monkeypatch):
    with pytest.raises(ValueError, match=r"backend='cuda' is not a backend; choose one of auto, reference, triton"):
        CALLS[op](backend="cuda")
    monkeypatch.setenv("MACARON_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"MACARON_BACKEND='fast' is not a backend"):
        CALLS[op]()


@pytest.mark.parametrize("op", CALLS)
def test_auto_takes_the_reference_on_a_cpu(op, monkeypatch):
    monkeypatch.setattr(_backend, "triton_installed", lambda: pytest.fail("a CPU tensor needs no triton"))
    CALLS[op]()
    CALLS[op](backend="reference")


@pytest.mark.parametrize("op", CALLS)
def test_triton_on_a_cpu_raises_without_the_interpreter(op, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    message = rf"{op}: backend 'triton' was requested but cannot run: its input is on cpu; move it to a GPU, use 'auto'"
    with pytest.raises(RuntimeError, match=message):
        CALLS[op](backend="triton")
    monkeypatch.setenv("MACARON_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=message):
        CALLS[op]()


@pytest.mark.parametrize("op", CALLS)
def test_triton_that_is_not_installed(op, monkeypatch):
    monkeypatch.setattr(_backend, "triton_installed", lambda: False)
    with pytest.raises(RuntimeError, match=r"triton is not installed; pip install 'macaron-net\[kernels\]'"):
        CALLS[op](backend="triton")


def test_operation_without_a_kernel(monkeypatch):
    """The environment asks for kernels where there are any."""
    expected, _ = attention(X[None, None], X[None, None], X[None, None])
    monkeypatch.setenv("MACARON_BACKEND", "triton")
    assert torch.equal(attention(X[None, None], X[None, None], X[None, None])[0], expected)


def test_dtype_without_a_kernel():
    if not triton_interpreted():
        pytest.skip("a CPU tensor is refused before its dtype")
    with pytest.raises(RuntimeError, match=r"its input is torch.float64 of width 3; pass float32, float16 or bfloat16"):
        use_triton("op", X.double(), "triton")
    assert not use_triton("op", X.double(), "auto")


def test_import_leaves_triton_alone():
    """And so do references."""
    code = (
        "import sys, torch, macaron.ops, macaron.dynamics\n"
        "print('triton' in sys.modules)\n"
        "x = torch.zeros(2, 3); macaron.ops.act_dropout(x); macaron.ops.euler_step(x, x, 0.5)\n"
        "print('triton' in sys.modules)"
    )
    assert run_python(code).split() == ["False", "False"]


def test_everything_runs_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util, torch\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "import macaron.ops as ops\n"
        "x = torch.randn(2, 3, requires_grad=True)\n"
        "y, z = ops.step_norm(x, ops.act_dropout(x), None, None, 0.5)\n"
        "loss, _ = ops.linear_cross_entropy(ops.euler_step(y, z, 0.5), torch.randn(5, 3), torch.tensor([1, 2]))\n"
        "loss.backward(); print(x.grad.shape)"
    )
    assert run_python(code) == "torch.Size([2, 3])"


def test_interpreter_switched_on_too_late_is_an_error():
    code = (
        "import os, triton.language, torch, macaron.ops\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "try: macaron.ops.act_dropout(torch.zeros(2, 3), backend='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    assert "set it in the environment before Python starts" in run_python(code)


@pytest.mark.parametrize("module", ["_dropout", "act_dropout", "linear_cross_entropy", "step_norm"])
def test_torch_reads_the_types_of_our_operators(module):
    """torch makes schemas of annotations, which it does not look up where they are strings."""
    operators = [
        getattr(value, "custom", value)
        for value in vars(importlib.import_module(f"macaron.ops.{module}")).values()
        if isinstance(value, (torch.library.CustomOpDef, Operator))
    ]
    assert operators
    for operator in operators:
        for name, parameter in inspect.signature(operator._init_fn).parameters.items():
            assert not isinstance(parameter.annotation, str), (operator, name)
