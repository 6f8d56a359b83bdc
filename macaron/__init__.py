"""Macaron: the Transformer as a numerical integrator of a multi-particle system.

The names below are loaded on first use, so `import macaron` by itself pulls in neither torch, fairseq,
transformers nor triton. If fairseq is loaded already, its models are registered at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from macaron._fairseq import register_fairseq, register_if_fairseq_is_loaded

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


register_if_fairseq_is_loaded()  # last, since macaron.user_dir imports from this module
