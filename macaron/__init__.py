"""Macaron: the Transformer as a numerical integrator of a multi-particle system.

The names below are loaded on first use, so `import macaron` by itself pulls in neither torch, fairseq,
transformers nor triton. If fairseq is loaded already, its models are registered at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macaron.dynamics.splitting import LIE, STRANG, Splitting, Substep
    from macaron.particles.flows import CrossAttention, FeedForward, SelfAttention
    from macaron.particles.layer import ParticleLayer
    from macaron.user_dir.models.macaron import MacaronModel

__version__ = "0.1.0"

__all__ = [
    "LIE",
    "STRANG",
    "CrossAttention",
    "FeedForward",
    "MacaronModel",
    "ParticleLayer",
    "SelfAttention",
    "Splitting",
    "Substep",
    "__version__",
    "register_fairseq",
]

_HOME_OF = {
    "LIE": "macaron.dynamics.splitting",
    "STRANG": "macaron.dynamics.splitting",
    "Splitting": "macaron.dynamics.splitting",
    "Substep": "macaron.dynamics.splitting",
    "CrossAttention": "macaron.particles.flows",
    "FeedForward": "macaron.particles.flows",
    "SelfAttention": "macaron.particles.flows",
    "ParticleLayer": "macaron.particles.layer",
    "MacaronModel": "macaron.user_dir.models.macaron",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'macaron' has no attribute {name!r}; it has {', '.join(__all__)}")
    if _HOME_OF[name].startswith("macaron.user_dir"):
        register_fairseq()
    from importlib import import_module

    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_fairseq() -> None:
    """Register models, criterions and optimisers with fairseq.

    For scripts that import `macaron` before fairseq: fairseq's own `--user-dir macaron` skips the
    registration of a package that is loaded already. Calling it again changes nothing.

    Raises:
        ImportError: if fairseq, or the part of this package that needs it, is not installed.
    """
    import os
    from importlib import import_module

    try:
        utils: Any = import_module("fairseq.utils")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"macaron.register_fairseq: no module named {error.name!r}; install fairseq with what its text "
            f"tasks need: pip install 'macaron-net[fairseq]', or see the README for a machine without a GPU"
        ) from error
    # What fairseq would take `--user-dir macaron` for is herewith imported: this package beside its own (looked for
    # with `..` in its path), or a clone called macaron in the working folder. It would say "not globally unique".
    beside_fairseq = os.path.join(os.path.dirname(utils.__file__), "..", "macaron")
    imported: set[str] = vars(utils.import_user_module).setdefault("memo", set())
    imported.add(beside_fairseq)
    here = os.path.abspath("macaron")
    if not os.path.exists(os.path.join(here, "__init__.py")):  # that would be a package of somebody else's
        imported.add(here)
    if not _opened_as_folder():
        try:
            import_module("macaron.user_dir")
        except ModuleNotFoundError as error:
            if error.name != "macaron.user_dir":
                raise
            raise ImportError(
                "macaron.register_fairseq: no module named 'macaron.user_dir'; it comes with an installation, "
                "so run `pip install -e .` in the clone instead of putting the clone on the path"
            ) from error


def _opened_as_folder() -> bool:
    """Whether fairseq has loaded, or is loading, the folder itself (`--user-dir user_dir`)."""
    from importlib.util import find_spec
    from os.path import realpath

    opened = {realpath(folder) for folder in getattr(sys.modules.get("user_dir"), "__path__", ())}
    ours = find_spec("macaron.user_dir")
    return ours is not None and not opened.isdisjoint(map(realpath, ours.submodule_search_locations or ()))


def _register_if_fairseq_is_loaded() -> None:
    from importlib.util import find_spec

    spec = getattr(sys.modules.get("fairseq"), "__spec__", None)
    if spec is None or getattr(spec, "_initializing", False):
        return
    # A clone that is not installed has no macaron.user_dir; `--user-dir user_dir` registers by itself.
    if find_spec("macaron.user_dir") is not None:
        register_fairseq()


_register_if_fairseq_is_loaded()  # last, since macaron.user_dir imports from this module
