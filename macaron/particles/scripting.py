"""What is here for TorchScript alone.

TorchScript reads annotations by name, knows no type parameter, no `super()`, no `strict` of zip and no default that is
a part of a named tuple, and compiles what a module has as attributes. Hence:

    scriptable                  gives a generic method its types; `TextLayer` is made of such
    integrate, attend           are `forward` under a name that a sub-class with a `forward` of its own can call
    torch.jit.is_scripting()    guards what has no script
    __prepare_scriptable__      of `ParticleLayer` and `Depth` refuses what cannot be scripted

All of it may go when fairseq's generation and its users no longer call `torch.jit.script`, which torch deprecates in
favour of `torch.export`.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def scriptable(method: Callable[..., Any], **types: Any) -> Any:
    """The same function, in which the given names of type parameters mean these types; other names as they are now."""
    made = FunctionType(
        method.__code__, {**method.__globals__, **types}, method.__name__, method.__defaults__, method.__closure__
    )
    made.__annotations__, made.__doc__, made.__qualname__ = method.__annotations__, method.__doc__, method.__qualname__
    return made
