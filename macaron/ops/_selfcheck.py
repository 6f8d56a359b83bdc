"""Whether the kernels of an operation compute on this device what they should, found out by running them once.

`auto` asks before it takes a kernel. The answer comes from a process of its own, so that a compiler that is missing or
hangs, a crash, or an illegal access that would leave the device unusable reaches nobody; it is kept for this process,
and on disk for the next ones. A verdict holds for an operation, a dtype, a kind of device, the versions of torch and
Triton, and the sources of the kernels. The same by hand, with all that was found:

    python -m macaron.ops._selfcheck step_norm cuda float16
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macaron.ops._triton import DTYPES

SECONDS = 120  # for all of it, compilation included
DIRECTORY = "MACARON_CACHE"  # environment variable: where verdicts are kept

_logger = logging.getLogger(__name__)


# --- what is asked ------------------------------------------------------------------------------------------------


@functools.cache
def passes(op: str, kind: str, index: int | None, dtype: torch.dtype) -> bool:
    """Whether the kernels of `op` passed on this device, now or before; the reason is announced where they did not.

    Args:
        op: name of the operation.
        kind, index: of the device.
        dtype: of its tensors.
    """
    if not __name__.startswith("macaron."):  # code from the hub cannot be run by its name
        _logger.info("%s: plain PyTorch is used; install macaron-net for its fused kernels", op)
        return False
    name = str(dtype).removeprefix("torch.")
    place = _directory() / f"{op}-{name}-{_key(kind, index)}.json"
    reason = _stored(place)
    if reason is None:
        reason = _asked(op, kind if index is None else f"{kind}:{index}", name)
        _store(place, reason)
    if reason:
        _logger.warning(
            "%s: the fused kernels for %s on %s are left alone, and plain PyTorch is used: %s. To have it mended, "
            "report what `python -m macaron.ops._selfcheck %s %s %s` prints; it is tried again once %s is deleted",
            *(op, name, kind, reason, op, kind, name, place),
        )
    return not reason


def _asked(op: str, device: str, dtype: str) -> str:
    """What a process of its own found wrong; empty where all is well."""
    command = [sys.executable, "-m", __name__, op, device, dtype, "--json"]
    home = str(Path(__file__).resolve().parents[2])  # also where the package is no installed one
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), home]))
    environment = {**os.environ, "PYTHONPATH": paths, "MACARON_BACKEND": "auto"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return f"they were not through after {SECONDS} s"
    except OSError as error:
        return f"the process that tries them could not be started ({error})"
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])["wrong"]
        if isinstance(found, str):
            return found
    except (IndexError, ValueError, KeyError, TypeError):
        pass
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"the process that tries them ended with status {done.returncode} ({last[:300]})"


# --- what is kept -------------------------------------------------------------------------------------------------


def _directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(DIRECTORY) or Path(cache, "macaron"))


def _key(kind: str, index: int | None) -> str:
    """Of everything that a verdict depends on beside operation and dtype."""
    device = torch.cuda.get_device_name(index) if kind == "cuda" else kind
    try:
        from importlib.metadata import version

        triton = version("triton")
    except ImportError:  # a build that carries it under another name
        triton = "unknown"
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    parts = (device, torch.__version__, triton, os.environ.get("TRITON_INTERPRET", "0"))
    return hashlib.sha256("\0".join(parts).encode() + sources).hexdigest()[:20]


def _stored(place: Path) -> str | None:
    """A verdict of before, or None: none, or a file that is no verdict."""
    try:
        wrong = json.loads(place.read_text(encoding="utf-8"))["wrong"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return wrong if isinstance(wrong, str) else None


def _store(place: Path, wrong: str) -> None:
    """Whole or not at all; where nothing can be written the next process asks again."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
            json.dump({"wrong": wrong}, file)
        os.replace(file.name, place)
    except OSError as error:
        _logger.info("the verdict on the kernels could not be kept in %s (%s)", place, error)


# --- what is tried ------------------------------------------------------------------------------------------------

Run = Callable[[Sequence[Tensor], str], Sequence[Tensor]]  # inputs and backend ↦ outputs


def _step_norm(t: Sequence[Tensor], backend: str) -> Sequence[Tensor]:
    from macaron.ops.step_norm import step_norm

    return step_norm(t[0], t[1], t[2], t[3], 0.5, backend=backend)


def _euler_step(t: Sequence[Tensor], backend: str) -> Sequence[Tensor]:
    from macaron.ops.step_norm import euler_step

    return (euler_step(t[0], t[1], 0.5, backend=backend),)


def _act_dropout(t: Sequence[Tensor], backend: str) -> Sequence[Tensor]:
    from macaron.ops.act_dropout import ACTIVATIONS, act_dropout

    return [act_dropout(t[0], activation, backend=backend) for activation in ACTIVATIONS]


def _linear_cross_entropy(t: Sequence[Tensor], backend: str) -> Sequence[Tensor]:
    from macaron.ops.linear_cross_entropy import linear_cross_entropy

    x, weight = t[0].flatten(0, 1), t[1].flatten(0, 1)
    target = torch.arange(x.size(0), device=x.device) % weight.size(0)
    target[0] = -100
    loss, nll = linear_cross_entropy(x, weight, target, label_smoothing=0.1, backend=backend)
    return loss, nll.detach()


def _masks(op: str) -> Callable[[Tensor, str], Tensor] | None:
    """x ↦ what dropout of ½ makes of it: each entry 0 or twice itself."""
    from macaron.ops.act_dropout import act_dropout
    from macaron.ops.step_norm import euler_step, step_norm

    return {
        "step_norm": lambda x, b: step_norm(torch.zeros_like(x), x, None, None, 1.0, dropout=0.5, backend=b)[0],
        "euler_step": lambda x, b: euler_step(torch.zeros_like(x), x, 1.0, dropout=0.5, backend=b),
        "act_dropout": lambda x, b: act_dropout(x, "relu", dropout=0.5, backend=b),
    }.get(op)


CASES: dict[str, Run] = {
    "step_norm": _step_norm,
    "euler_step": _euler_step,
    "act_dropout": _act_dropout,
    "linear_cross_entropy": _linear_cross_entropy,
}
WIDTHS = (24, 77, 264)  # one whose rows begin at 16 bytes, one whose do not, one of several warps


def try_kernels(op: str, device: str, dtype: torch.dtype) -> str:
    """What the kernels of `op` get wrong, forward and backward, in words; empty where all is well.

    Against float64, by the rule of the tests: an error at most twice that of plain PyTorch.
    """
    generator = torch.Generator().manual_seed(1)
    for width in WIDTHS:
        shapes = [(3, 5, width), (3, 5, width), (width,), (width,)]
        inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
        truth = _results(CASES[op], [t.double() for t in inputs], "reference")
        here = [t.to(device) for t in inputs]
        eager, fused = (_results(CASES[op], here, backend) for backend in ("reference", "triton"))
        if wrong := _compared(truth, eager, fused):
            return f"at width {width} {wrong}"
        if wrong := _dropout(op, here[0]):
            return f"at width {width} {wrong}"
    return ""


def _results(run: Run, inputs: Sequence[Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = list(run(leaves, backend))
    generator = torch.Generator().manual_seed(2)
    total: Any = 0.0
    for out in outputs:
        if out.requires_grad:
            weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
            total = total + (out.double() * weights.to(out.device)).sum()
    total.backward()
    return [t.detach() for t in (*outputs, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def _compared(truth: list[Tensor], eager: list[Tensor], fused: list[Tensor]) -> str:
    if [(t.shape, t.dtype) for t in fused] != [(t.shape, t.dtype) for t in eager]:
        return "their results have other shapes or dtypes"
    for number, (t, e, f) in enumerate(zip(truth, eager, fused, strict=True)):
        if not f.isfinite().all():
            return f"result {number} is not finite"
        error, least = ((one.double().cpu() - t.cpu()).abs().max() for one in (f, e))
        allowed = 2 * least + 1e-5 + torch.finfo(e.dtype).eps
        if error > allowed:
            return f"result {number} has an error of {error:.1e}, above {allowed:.1e}"
    return ""


def _dropout(op: str, x: Tensor) -> str:
    """Whether a mask drops about half, scales the rest, and is the same in the backward."""
    masked = _masks(op)
    if masked is None:
        return ""
    ones = torch.ones(64, x.size(-1), dtype=x.dtype, device=x.device, requires_grad=True)
    out = masked(ones, "triton")
    out.sum().backward()
    assert ones.grad is not None
    kept = out.detach() == 2
    if not torch.equal(kept, ones.grad == 2) or not torch.equal(~kept, out.detach() == 0):
        return "dropout's mask is another one in the backward, or scales wrongly"
    share, spread = kept.double().mean().item(), 0.5 / kept.numel() ** 0.5
    return "" if abs(share - 0.5) < 6 * spread else f"dropout of a half keeps {share:.3f}"


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m macaron.ops._selfcheck",
        description="Run the kernels of an operation once, forward and backward, and compare them with float64.",
    )
    p.add_argument("op", choices=list(CASES))
    p.add_argument("device", help="such as cuda or cuda:1")
    p.add_argument("dtype", choices=[str(dtype).removeprefix("torch.") for dtype in DTYPES])
    p.add_argument("--json", action="store_true", help="the verdict alone, as `auto` reads it")
    return p


def main(arguments: Sequence[str]) -> int:
    """0 where all is well, 1 where something is wrong; 0 with any verdict as JSON."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available() and not args.json:
        parser.error(f"device {args.device}: torch {torch.__version__} finds no GPU here; there is nothing to check")
    try:
        wrong = try_kernels(args.op, args.device, getattr(torch, args.dtype))
    except Exception as error:  # whatever a compiler, a driver or a kernel may raise
        if not args.json:
            raise
        wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if args.json:
        print(json.dumps({"wrong": wrong}))
        return 0
    print(wrong or f"{args.op} on {args.device} in {args.dtype}: all is well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
