"""Compile every kernel ahead of time, as it is launched, for GPUs that are not there.

    python tests/ops/aot.py                 all targets
    python tests/ops/aot.py sm_90 gfx942    some

Prints registers, spills and shared memory of each. The exit status is 1 if a kernel spills registers, and Triton's
error ends the run if one does not compile. The operators run on small CPU tensors, and a recorder in the place of each
kernel takes down what it would have been launched with. Triton caches what it compiled by its source.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # compiled, whatever the caller wants
# Triton 3.4 asks for AMD's linker, which it does not bring; what is looked at here stands in the assembly.
os.environ.setdefault("TRITON_HIP_LLD_PATH", shutil.which("true") or "")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from macaron.ops._triton import Kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

Launch = tuple[str, Any, dict[str, Any]]  # what of, kernel, arguments by name


class Recorder:
    """Stands in for a kernel: keeps the arguments of a launch."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.append((self.kernel, {**dict(zip(self.kernel.arg_names, args, strict=False)), **kwargs}))

        return launch


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """One call for each case that matters: the widths of the architectures, odd ones, every option of a kernel."""
    ops, seed = torch.ops.macaron, torch.tensor(1)

    def step_norm(C: int, x_dtype: torch.dtype, dropout: float, affine: bool = True, v_dtype: Any = None) -> None:
        v_dtype = v_dtype or x_dtype
        x, v = torch.zeros(8, 3, C, dtype=x_dtype), torch.zeros(8, 3, C, dtype=v_dtype)
        weight, bias = torch.ones(2, C).unbind() if affine else (None,) * 2
        key = seed if dropout else None
        y, z, statistics = ops.step_norm(x, v, weight, bias, key, 0.5, dropout, 1e-5, x_dtype)
        dy = y if affine else None  # post-norm uses z alone
        ops.step_norm_backward(dy, z, y, statistics, weight, key, 0.5, dropout, v_dtype, [affine] * 2)

    def euler_step(C: int, dtype: torch.dtype, dropout: float) -> None:
        x = torch.zeros(8, 3, C, dtype=dtype)
        key = seed if dropout else None
        ops.euler_step(x, x, key, 0.5, dropout)
        ops.euler_step_backward(x, key, 0.5, dropout, dtype)

    def act_dropout(width: int, dtype: torch.dtype, activation: str, dropout: float) -> None:
        u = torch.zeros(8, 3, width, dtype=dtype)
        key = seed if dropout else None
        ops.act_dropout(u, key, activation, dropout)
        ops.act_dropout_backward(u, u, key, activation, dropout)

    def cross_entropy(V: int, dtype: torch.dtype, grad: bool, row_grad: bool = False) -> None:
        x, weight, target = torch.zeros(4, 8, dtype=dtype), torch.zeros(V, 8, dtype=dtype), torch.zeros(4).long()
        rule = (0.1, 1, 4, dtype, True, row_grad, [grad] * 3)
        ops.linear_cross_entropy(x, weight, target, None, torch.ones(4) if row_grad else None, *rule)

    yield "C=512 bf16 dropout", lambda: step_norm(512, BF16, 0.1)
    yield "C=1024 bf16 dropout", lambda: step_norm(1024, BF16, 0.1)
    yield "C=8192 bf16 dropout", lambda: step_norm(8192, BF16, 0.1)
    yield "C=768 x fp32 v bf16 dropout", lambda: step_norm(768, FP32, 0.1, v_dtype=BF16)
    yield "C=8192 fp32 dropout", lambda: step_norm(8192, FP32, 0.1)
    yield "C=37 fp16 dropout", lambda: step_norm(37, FP16, 0.1)
    yield "C=512 fp32 plain, post-norm", lambda: step_norm(512, FP32, 0.0, affine=False)
    yield "C=512 bf16 dropout", lambda: euler_step(512, BF16, 0.1)
    yield "C=1024 fp32", lambda: euler_step(1024, FP32, 0.0)
    yield "F=2048 bf16 relu dropout", lambda: act_dropout(2048, BF16, "relu", 0.1)
    yield "F=3072 bf16 gelu dropout", lambda: act_dropout(3072, BF16, "gelu", 0.1)
    yield "F=1024 fp32 gelu_tanh", lambda: act_dropout(1024, FP32, "gelu_tanh", 0.0)
    yield "F=1024 fp16 silu", lambda: act_dropout(1024, FP16, "silu", 0.0)
    yield "F=37 fp32 tanh dropout", lambda: act_dropout(37, FP32, "tanh", 0.1)
    yield "V=32768 bf16 grad", lambda: cross_entropy(32768, BF16, grad=True)
    yield "V=10153 fp32 rows", lambda: cross_entropy(10153, FP32, grad=True, row_grad=True)
    yield "V=32768 bf16", lambda: cross_entropy(32768, BF16, grad=False)


def launches() -> list[Launch]:
    taken: list[tuple[Any, dict[str, Any]]] = []
    for name in ("step_norm", "act_dropout", "linear_cross_entropy"):
        module = importlib.import_module(f"macaron.ops.{name}")
        kernels = [key for key, value in vars(module).items() if isinstance(value, Kernel)]
        for kernel in kernels:
            getattr(module, kernel).load() if isinstance(getattr(module, kernel), Kernel) else None
        for kernel in kernels:
            if kernel.endswith("_kernel"):
                setattr(module, kernel, Recorder(getattr(module, kernel), taken))
    found = []
    for label, call in calls():
        call()
        found += [(label, kernel, arguments) for kernel, arguments in taken]
        taken.clear()
    return found


def compile_launch(kernel: Any, arguments: dict[str, Any], target: GPUTarget) -> Any:
    """What `kernel[grid](**arguments)` compiles: the same types, constants and alignments."""
    arguments = dict(arguments)
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments.pop(parameter.name)
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        aligned = False
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        else:
            signature[parameter.name] = "fp32"
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=arguments)  # what is left: num_warps and the like


def resources(compiled: Any, target: GPUTarget) -> tuple[int, int]:
    """Registers of a thread, and what it spills: bytes on NVIDIA, registers on AMD."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        count = {key: int(n) for key, n in re.findall(r"\.(\w+):\s+(\d+)", text)}
        return count["vgpr_count"], count["vgpr_spill_count"] + count["sgpr_spill_count"]
    cuobjdump = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return count["REG"], count["STACK"] + count["LOCAL"]


def main(names: list[str]) -> int:
    warnings.filterwarnings("ignore", module="triton")
    begin, spilled = time.time(), 0
    recorded = launches()
    print(f"{'target':7} {'kernel':22} {'case':30} {'tile':>9} {'warps':>5} {'regs':>5} {'spills':>6} {'shared':>7}")
    for name in names or list(TARGETS):
        for label, kernel, arguments in recorded:
            compiled = compile_launch(kernel, arguments, TARGETS[name])
            registers, spills = resources(compiled, TARGETS[name])
            spilled += spills > 0
            short = kernel.__name__.removeprefix("_").removesuffix("_kernel")
            tile = f"{arguments.get('ROWS', 1)}x{arguments['BLOCK']}"
            numbers = f"{arguments['num_warps']:5} {registers:5} {spills:6} {compiled.metadata.shared:7}"
            print(f"{name:7} {short:22} {label:30} {tile:>9} {numbers}{'  SPILLS' if spills else ''}", flush=True)
    seconds = time.time() - begin
    print(f"{len(recorded)} launches x {len(names or TARGETS)} targets, {spilled} with spills, {seconds:.0f} s")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
