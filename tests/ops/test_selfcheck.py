"""Kernels are taken by themselves only where they have passed; here Triton's interpreter stands in for the device."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from macaron.ops import _backend, _selfcheck, act_dropout, euler_step
from macaron.ops import step_norm as module
from macaron.ops._backend import triton_interpreted

pytestmark = pytest.mark.skipif(not triton_interpreted(), reason="on a GPU the gpu tests say it")
OK = '{"wrong": ""}'


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for verdicts, and nothing known yet."""
    monkeypatch.setenv(_selfcheck.DIRECTORY, str(tmp_path / "kept"))
    monkeypatch.delenv("MACARON_BACKEND", raising=False)
    _selfcheck.passes.cache_clear()
    yield tmp_path / "kept"
    _selfcheck.passes.cache_clear()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes kernels of any size."""
    monkeypatch.setattr(_backend, "on_accelerator", lambda x: True)
    monkeypatch.setattr(_backend, "_free", True)


def says(monkeypatch: pytest.MonkeyPatch, code: str) -> list[list[str]]:
    """Other processes run `code` in the place of the check; the commands that asked."""
    asked: list[list[str]] = []
    run = subprocess.run

    def other(command: list[str], **options: object) -> object:
        asked.append(command)
        return run([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", other)
    return asked


@pytest.mark.parametrize("op", _selfcheck.CASES)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_our_kernels_pass(op: str, dtype: torch.dtype) -> None:
    assert _selfcheck.try_kernels(op, "cpu", dtype) == ""


def wrong_value(forward, backward):
    return lambda *a: [t * 1.01 for t in forward(*a)], backward


def not_a_number(forward, backward):
    return lambda *a: [t.index_fill(-1, torch.tensor([0]), float("nan")) for t in forward(*a)], backward


def wrong_gradient(forward, backward):
    return forward, lambda *a: [None if t is None else t * 1.01 for t in backward(*a)]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (wrong_value, r"at width 24 result 0 has an error of \d\.\de-02, above"),
        (not_a_number, "result 0 is not finite"),
        (wrong_gradient, r"result 2 has an error of"),
    ],
)
def test_broken_kernels_are_seen(broken, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's own results, as its kernels might leave them."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, v: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            ctx.save_for_backward(x, v, w, b)
            made, _ = broken(lambda *t: run(t), lambda *t: t)
            return tuple(made(x, v, w, b))

        @staticmethod
        def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
                found = torch.autograd.grad(run(leaves), leaves, grads)
            _, changed = broken(lambda *t: t, lambda *t: list(t))
            return tuple(changed(*found))

    def run(t):
        return module(t[0], t[1], t[2], t[3], 0.5, backend="reference")

    def case(t, backend: str):
        return Broken.apply(*t) if backend == "triton" else run(t)

    monkeypatch.setitem(_selfcheck.CASES, "step_norm", case)
    found = _selfcheck.try_kernels("step_norm", "cpu", torch.float32)
    assert re.search(message, found), found


def test_a_mask_that_is_another_one_in_the_backward_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x * 2 * (torch.rand_like(x) < 0.5)

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad * 2 * (torch.rand_like(grad) < 0.5)

    monkeypatch.setattr(_selfcheck, "_masks", lambda op: lambda x, backend: Forgets.apply(x))
    assert "another one in the backward" in _selfcheck.try_kernels("euler_step", "cpu", torch.float32)
    monkeypatch.setattr(
        _selfcheck, "_masks", lambda op: lambda x, backend: x * 2 * (torch.arange(x.numel()) % 4 > 0).view_as(x)
    )
    assert "dropout of a half keeps 0.750" in _selfcheck.try_kernels("euler_step", "cpu", torch.float32)


def test_auto_takes_kernels_that_passed(device: None, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once, in a process of its own; the next process reads the answer."""
    x = torch.randn(3, 8)
    expected = act_dropout(x, backend="reference")
    launched: list[int] = []
    launch = sys.modules["macaron.ops.act_dropout"]._launch
    monkeypatch.setattr(
        sys.modules["macaron.ops.act_dropout"], "_launch", lambda *a: (launched.append(1), launch(*a))[1]
    )
    assert torch.equal(act_dropout(x), expected) and launched
    (verdict,) = kept.iterdir()
    assert json.loads(verdict.read_text()) == {"wrong": ""} and verdict.name.startswith("act_dropout-float32-")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("asked again"))
    act_dropout(x)
    _selfcheck.passes.cache_clear()  # as in the next process
    act_dropout(x)
    assert len(launched) == 3
    assert torch.equal(torch.compile(act_dropout, backend="eager", fullgraph=True)(x), expected) and len(launched) == 4
    for asked_for in ("reference", "auto"):
        monkeypatch.setenv("MACARON_BACKEND", asked_for)
        act_dropout(x)
    assert len(launched) == 5


def test_auto_leaves_alone_what_is_not_worth_a_launch(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_free", False)
    monkeypatch.setattr(_backend, "passes", lambda *arguments: True)
    small, large = torch.randn(3, 8), torch.empty(1, device="meta").expand(_backend.LEAST)
    assert not _backend.use_triton("act_dropout", small, least=_backend.LEAST)
    assert _backend.use_triton("act_dropout", large, least=_backend.LEAST)
    assert _backend.use_triton("linear_cross_entropy", small)
    assert _backend.use_triton("act_dropout", small, "triton", least=_backend.LEAST)
    with _backend.free_launches():
        assert _backend.use_triton("act_dropout", small, least=_backend.LEAST)
    assert not _backend.use_triton("act_dropout", small, least=_backend.LEAST)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import json; print(json.dumps({'wrong': 'at width 24 result 0 is not finite'}))",
            "at width 24 result 0 is not",
        ),
        (
            "import sys; print('Failed to find C compiler', file=sys.stderr); sys.exit(1)",
            "status 1 (Failed to find C comp",
        ),
        ("import os; os.abort()", "ended with status -6 (it said nothing)"),
        ("print('[1, 2]')", "ended with status 0"),
        ("print('{\"wrong\": 3}')", "ended with status 0"),
        ("import time; time.sleep(60)", "they were not through after 1 s"),
    ],
    ids=["wrong", "no compiler", "crash", "a list", "a number", "hangs"],
)
def test_kernels_that_fail_are_left_alone_and_that_is_told_once(
    code: str, reason: str, device: None, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = says(monkeypatch, code)
    monkeypatch.setattr(_selfcheck, "SECONDS", 1 if "sleep" in code else 60)
    x = torch.randn(3, 8)
    expected = euler_step(x, x, 0.5, backend="reference")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(euler_step(x, x, 0.5), expected)
    (told,) = caplog.messages
    assert reason in told and "`python -m macaron.ops._selfcheck euler_step cpu float32`" in told and len(asked) == 1
    _selfcheck.passes.cache_clear()
    euler_step(x, x, 0.5)  # told in the next process too, without asking again
    assert len(asked) == 1 and len(caplog.messages) == 2
    euler_step(x.bfloat16(), x.bfloat16(), 0.5)
    assert len(asked) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wrong": null}', "\x00"])
def test_a_damaged_verdict_is_none(content: str, device: None, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, f"print({OK!r})")
    assert _selfcheck.passes("euler_step", "cpu", None, torch.float32)
    (verdict,) = kept.iterdir()
    verdict.write_text(content)
    _selfcheck.passes.cache_clear()
    assert _selfcheck.passes("euler_step", "cpu", None, torch.float32) and len(asked) == 2
    assert json.loads(verdict.read_text()) == {"wrong": ""}


def test_where_nothing_can_be_kept_it_is_asked_in_every_process(
    device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(_selfcheck.DIRECTORY, str(tmp_path / "file" / "below"))
    asked = says(monkeypatch, f"print({OK!r})")
    for _ in range(2):
        assert _selfcheck.passes("euler_step", "cpu", None, torch.float32)
        _selfcheck.passes.cache_clear()
    assert len(asked) == 2


def test_a_verdict_is_of_these_versions_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    key = _selfcheck._key("cpu", None)
    assert key == _selfcheck._key("cpu", None)
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert _selfcheck._key("cpu", None) != key


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _selfcheck.main(["euler_step", "cpu", "float32"]) == 0
    assert capsys.readouterr().out == "euler_step on cpu in float32: all is well\n"

    def refuses(*arguments: object) -> str:
        raise RuntimeError("PTX\nassembler")

    monkeypatch.setattr(_selfcheck, "try_kernels", refuses)
    _selfcheck.main(["euler_step", "cpu", "float32", "--json"])
    assert json.loads(capsys.readouterr().out) == {"wrong": "RuntimeError: PTX"}
    with pytest.raises(RuntimeError, match="assembler"):
        _selfcheck.main(["euler_step", "cpu", "float32"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: op, device, dtype"),
        (["nope", "cuda", "float16"], "argument op: invalid choice: 'nope'"),
        (["euler_step", "cuda", "float64"], "argument dtype: invalid choice: 'float64'"),
        (["euler_step", "cuda:3", "float16"], "device cuda:3: torch .* finds no GPU here; there is nothing to check"),
    ],
)
def test_the_command_tells_what_cannot_be_checked(arguments, said, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        _selfcheck.main(arguments)
    assert ended.value.code == 2 and re.search(said, capsys.readouterr().err)


def test_the_command_ends_with_a_status_of_its_own_where_something_is_wrong(capsys, monkeypatch) -> None:
    monkeypatch.setattr(_selfcheck, "try_kernels", lambda *arguments: "result 0 is not finite")
    assert _selfcheck.main(["euler_step", "cpu", "float32"]) == 1
    assert capsys.readouterr().out == "result 0 is not finite\n"
