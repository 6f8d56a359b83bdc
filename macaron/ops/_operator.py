"""Custom operators that cost little where nothing looks at graphs.

torch's custom operators are opaque to its compiler, exporters and tracers, as a kernel has to be; but each call goes
through several layers of Python, which takes longer than the kernel of a batch that is not large. So an eager call is
a plain `autograd.Function`, or the function itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operator:
    """A function of tensors as a custom operator, called by the shortest way that is right.

    Args:
        name: the operator's, as in `macaron::step_norm`.
        fn: annotated as torch wants it; its outputs are no views of its inputs.
    """

    def __init__(self, name: str, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.custom = torch.library.custom_op(name, fn, mutates_args=())
        namespace, _, short = name.partition("::")
        self.overload = getattr(getattr(torch.ops, namespace), short).default
        self.function: Any = None

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        return self.custom.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        self.custom.register_autograd(backward, setup_context=setup_context)

        def forward(ctx: Any, *args: Any) -> Any:  # with a setup_context of its own torch reads signatures in each call
            output = self.fn(*args)
            setup_context(ctx, args, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.function = type(self.fn.__name__, (torch.autograd.Function,), methods)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or observed(args):
            return self.overload(*args)
        if not torch.is_grad_enabled():
            return self.fn(*args)
        # without a formula of its own the operator says so where somebody differentiates twice
        return self.overload(*args) if self.function is None else self.function.apply(*args)


def observed(args: tuple[Any, ...]) -> bool:
    """Whether something records or replaces operators, so that a kernel must not be launched behind its back."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or any(isinstance(arg, Tensor) and type(arg) not in _PLAIN for arg in args)
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    return lambda fn: Operator(name, fn)
