"""Which implementation of an operation runs: the one place that decides.

`auto` follows the tensor: fused Triton kernels for a CUDA or ROCm tensor where they exist, have passed their check
on this device (`_selfcheck.py`) and are worth their launch, the plain PyTorch reference otherwise. An explicit request,
by argument or by the environment variable `MACARON_BACKEND`, is met or raises; it is never replaced in silence. The
variable speaks of the operations that have a kernel of ours; `attention`, which is in front of torch's own, has none.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from macaron.ops._triton import DTYPES

BACKENDS = ("auto", "reference", "triton")
ENVIRONMENT_VARIABLE = "MACARON_BACKEND"


def requested_backend(backend: str | None = None) -> str:
    """The backend asked for: the argument, else the environment variable, else `auto`.

    Raises:
        ValueError: if the name is not one of `BACKENDS`.
    """
    name, source = backend, "backend"
    if name is None:
        name, source = os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE
    if name not in BACKENDS:
        raise ValueError(f"{source}={name!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    return name


# Looked for once, without importing it: torch.compile traces `triton_installed`.
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def triton_installed() -> bool:
    return _TRITON_INSTALLED


def triton_interpreted() -> bool:
    """Triton's interpreter runs kernels on the CPU; it must be chosen before the kernels are imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def on_accelerator(x: Tensor) -> bool:
    """Whether kernels are compiled for where `x` is."""
    return x.is_cuda


def passes(op: str, kind: str, index: int | None, dtype: torch.dtype) -> bool:
    """Whether the kernels of `op` have passed their check on this device."""
    from macaron.ops._selfcheck import passes as checked  # which a CPU does not need

    return checked(op, kind, index, dtype)


# torch.compile takes the verdict as a constant; it comes from another process, so that nothing of it is traced. This is
# what torch.compiler.assume_constant_result does, which imports torch's compiler and with it Triton.
passes._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Entries from which an eager call of an elementwise kernel spares more than its launch takes: autograd and Triton are
# some 0.1 ms of the processor, several times torch's own. A graph that is compiled or captured launches for nothing.
LEAST = 2**23
_free = False


def launches_are_free() -> bool:
    """Whether what runs is to be captured as a graph."""
    return _free


@contextlib.contextmanager
def free_launches() -> Iterator[None]:
    """Within, what runs is to be captured as a graph: `auto` takes kernels of any size, in the runs before it, too."""
    global _free
    before, _free = _free, True
    try:
        yield
    finally:
        _free = before


def use_triton(op: str, x: Tensor, backend: str | None = None, max_width: int | None = None, least: int = 0) -> bool:
    """Whether operation `op` runs its Triton kernel on `x`, or the reference.

    Args:
        op: name of the operation, for messages.
        x: tensor whose device, dtype and width decide under `auto`.
        backend: `auto`, `reference` or `triton`; None takes the environment variable.
        max_width: the widest last dimension that the kernel takes; None for any.
        least: entries of `x` from which `auto` takes the kernel in an eager call.

    Raises:
        ValueError: unknown backend name.
        RuntimeError: `triton` is requested and cannot run, with the reason and the remedy.
    """
    name = requested_backend(backend)
    if name == "reference":
        return False
    fits = x.dtype in DTYPES and (max_width is None or x.size(-1) <= max_width)
    if name == "auto":
        if not (fits and on_accelerator(x) and triton_installed()):
            return False
        worth = _free or torch.compiler.is_compiling() or x.numel() >= least
        return worth and passes(op, x.device.type, x.device.index, x.dtype)
    if not triton_installed():
        reason, remedy = "triton is not installed", "pip install 'macaron-net[kernels]', or use 'auto'"
    elif not (x.is_cuda or triton_interpreted()):
        reason = f"its input is on {x.device}"
        remedy = "move it to a GPU, use 'auto', or set TRITON_INTERPRET=1 before the import to interpret kernels"
    elif not fits:
        reason = f"its input is {x.dtype} of width {x.size(-1)}"
        remedy = "pass float32, float16 or bfloat16"
        remedy += "" if max_width is None else f" no wider than {max_width}"
        remedy += ", or use 'auto'"
    else:
        return True
    raise RuntimeError(f"{op}: backend 'triton' was requested but cannot run: {reason}; {remedy}")
