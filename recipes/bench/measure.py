"""Side-by-side timing: contenders take turns on the same work, so that what else the machine does meets all of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula
from tqdm import tqdm

import macaron.ops  # noqa: F401  has the operator whose FLOPs are told below

from ..common.errors import RecipeError


@dataclass
class Contender:
    """Something that does a step of work; the first of a list is what the others are compared with."""

    name: str
    step: Callable[[Any], object]
    parameters: int = 0


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    device: torch.device
    repeats: int = 20
    seconds: float = 600.0  # stop after these, though not before three repeats
    warmup: int = 1
    clock: str = "wall"  # or "cpu", which leaves out what other processes did meanwhile; for one thread

    def now(self) -> float:
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


@dataclass
class Timing:
    """Seconds of each repeat, by contender, and how much work it was."""

    seconds: dict[str, list[float]]
    work: list[float] = field(default_factory=list)  # e.g. tokens

    def rows(self) -> list[dict[str, Any]]:
        """One for each contender: median and quartiles of its time, and of time(first) / time(contender) taken
        repeat by repeat."""
        base = np.array(next(iter(self.seconds.values())))
        rows = []
        for name, values in self.seconds.items():
            times = np.array(values)
            low, middle, high = np.percentile(1000 * times, (25, 50, 75))
            slow, speedup, fast = np.percentile(base / times, (25, 50, 75))
            rows.append(
                {
                    "contender": name,
                    "baseline": next(iter(self.seconds)),
                    "median_ms": round(middle, 3),
                    "q1_ms": round(low, 3),
                    "q3_ms": round(high, 3),
                    "speedup": round(speedup, 3),
                    "speedup_q1": round(slow, 3),
                    "speedup_q3": round(fast, 3),
                    "tokens_per_s": round(sum(self.work) / times.sum(), 1) if self.work else "",
                    "repeats": len(times),
                }
            )
        return rows


def interleaved(
    contenders: list[Contender],
    works: Iterator[Any],
    plan: Plan,
    amount: Callable[[Any], float] | None = None,
    label: str = "",
) -> Timing:
    """Time every contender on each piece of work; who begins changes from repeat to repeat."""
    timing = Timing({contender.name: [] for contender in contenders})
    for _ in range(plan.warmup):
        work = next(works)
        for contender in contenders:
            contender.step(work)
    end = time.monotonic() + plan.seconds
    for repeat in tqdm(range(plan.repeats), desc=label, leave=False):
        work = next(works)
        turn = repeat % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            synchronize(plan.device)
            start = plan.now()
            contender.step(work)
            synchronize(plan.device)
            timing.seconds[contender.name].append(plan.now() - start)
        if amount is not None:
            timing.work.append(amount(work))
        if repeat >= 2 and time.monotonic() > end:
            break
    return timing


@contextlib.contextmanager
def chosen_backend(name: str) -> Iterator[None]:
    before = os.environ.get("MACARON_BACKEND")
    os.environ["MACARON_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["MACARON_BACKEND"]
        else:
            os.environ["MACARON_BACKEND"] = before


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def peak_mib(step: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a step takes above what was held before it: of the GPU as torch counts it, else of the process as
    Linux does; None where neither says."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with unittest.mock.patch("torch.cuda.reset_peak_memory_stats"):  # which fairseq's trainer calls in each step
            step()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what was freed, or a step could live on it unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        step()
        return round(_status("VmHWM") - before, 1)
    except (OSError, AttributeError, StopIteration):
        return None


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def profiled(step: Callable[[], object], rows: int = 20) -> str:
    """Where the time of a step goes, by torch's operators."""
    with torch.profiler.profile() as profile:
        step()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table: str = profile.key_averages().table(
        sort_by=f"self_{device}_time_total", row_limit=rows, max_name_column_width=40
    )
    return table


def product(tokens: int, dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[Any], Tensor], int]:
    """A matrix product of the shape of a layer's, (tokens, C) times (C, 4 C), and its FLOPs: what a step's rate of
    FLOPs is compared with."""
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((tokens, dim), (dim, 4 * dim)))
    out = torch.empty(tokens, 4 * dim, device=device, dtype=dtype)
    return lambda _: torch.mm(a, b, out=out), 2 * tokens * dim * 4 * dim


def flops(step: Callable[[], object]) -> int:
    """Of the matrix products of a step, as torch counts them; it does not see into compiled graphs."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


@register_flop_formula(torch.ops.macaron.linear_cross_entropy)  # type: ignore[untyped-decorator]
def _(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Logits, and the two gradients."""
    (n, C), (V, _), grads = x, weight, args[-1]
    return int(2 * n * C * V * (1 + sum(grads[:2])))


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check_equal(contenders: list[Contender], limit: float = 0.01) -> None:
    """Raise RecipeError where numbers of parameters differ by more than a hundredth."""
    counts = [contender.parameters for contender in contenders]
    if max(counts) - min(counts) > limit * min(counts):
        shown = ", ".join(f"{contender.name} {contender.parameters:,}" for contender in contenders)
        raise RecipeError(f"parameters differ by more than {limit:.0%}: {shown}; such times say nothing")


def load() -> str:
    """How busy the machine is: processes that ran or waited to run, on average over the last minute."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
