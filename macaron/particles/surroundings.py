"""What a text layer sees besides its particles.

Shapes: B sentences, T particles, S particles of the memory, H heads, D channels of a head, C channels.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple

from torch import Tensor


class Mask(NamedTuple):
    """Who sees whom in self-attention; by default everybody everybody.

    Fields:
        padding: (B, T) bool, True where a particle is padding.
        pairs: broadcastable to (B, H, T, T): bool, True = seen, or added to the scores.
        causal: particle t sees particles 0 … t only.
    """

    padding: Tensor | None = None
    pairs: Tensor | None = None
    causal: bool = False


class Memory(NamedTuple):
    """The encoder's output, for cross-attention.

    Fields:
        particles: (S, B, C'), or (B, S, C') with batch_first; None where a cache holds their keys and values.
        padding: (B, S) bool, True at padding.
    """

    particles: Tensor | None = None
    padding: Tensor | None = None


class Caches(NamedTuple):
    """Keys and values of earlier steps, of step-wise decoding, where x holds the newest particles only.

    Each is filled and read by its flow: "k", "v" (B, H, T, D), and of self-attention "padding" (B, T); of a second flow
    of the kind "k1" and so on. A cache of another kind attends itself, see `macaron.decoding.lattice`.
    """

    own: dict[str, Tensor | None] | None = None  # of self-attention
    memory: dict[str, Tensor | None] | None = None  # of cross-attention


class StageCache(MutableMapping[str, Any]):
    """The part of a cache that belongs to one evaluation of its flow, where a step has several.

    It writes into the cache itself, by names of its own, so that whoever reorders or drops the cache's entries does
    that to all evaluations.

    Args:
        cache: of all evaluations.
        which: its name, that of the first being nothing: "@1" the second stage of a solver, and of a rule across depth
            "#1"; both may come together.
    """

    def __init__(self, cache: MutableMapping[str, Any], which: str) -> None:
        self._cache, self._end = cache, which

    @property
    def attend(self) -> Any:
        """That of a cache which attends itself, with keys of this evaluation's own; else None."""
        attend = getattr(self._cache, "attend", None)
        return None if attend is None else lambda suffix, q, k, v: attend(suffix + self._end, q, k, v)

    def __getitem__(self, name: str) -> Any:
        return self._cache[name + self._end]

    def __setitem__(self, name: str, value: Any) -> None:
        self._cache[name + self._end] = value

    def __delitem__(self, name: str) -> None:
        del self._cache[name + self._end]

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(self._end) for name in self._cache if name.endswith(self._end))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Packed(NamedTuple):
    """That x is (N, C): the particles of all sentences one after another, without padding.

    Fields:
        offsets: (B + 1,) int32, where the sentences begin and end in x.
        max_length: the greatest number of particles in a sentence.
    """

    offsets: Tensor
    max_length: int


class Surroundings(NamedTuple):
    """What a text layer sees besides its particles. Every part may be left out.

    Fields:
        mask: of self-attention.
        memory: for cross-attention.
        caches: in step-wise decoding.
        packed: particles without padding, for self-attention without padding, pairs, cache or weights.
        need_weights: return the weights of self-attention; need_memory_weights: those of cross-attention.
    """

    mask: Mask = Mask()
    memory: Memory = Memory()
    caches: Caches = Caches()
    packed: Packed | None = None
    need_weights: bool = False
    need_memory_weights: bool = False

    def at_stage(self, stage: int) -> "Surroundings":
        """The same for a later evaluation of the flow, whose keys are others; those of the memory are not."""
        own = self.caches.own
        if own is None:
            return self
        cache: Any = StageCache(own, f"@{stage}")  # behaves as a dictionary
        return self._replace(caches=self.caches._replace(own=cache))
