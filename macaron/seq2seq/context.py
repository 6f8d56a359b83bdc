"""What a layer of an encoder or decoder sees besides its particles, and where caches keep what it has computed.

Shapes: B sentences, T target positions, S source positions, H heads, D channels of a head, C channels.
"""

from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from macaron.seq2seq.configuration_macaron import MacaronConfig


class Places(NamedTuple):
    """Which layer of transformers' cache holds the keys of which evaluation of an attention.

    The first `layers` are those of a model that evaluates each attention once, in order; then come the others, by
    evaluation of the layer (a rule across depth), stage of the solver, and number of the attention in the splitting.
    """

    layers: int
    stages: int
    evaluations: int
    attentions: int

    @classmethod
    def of(cls, config: MacaronConfig) -> "Places":
        scheme = config.scheme(cross_attention=True)
        attentions = scheme.splitting.count("self_attention")
        return cls(config.decoder_layers, scheme.solver.stages, config.evaluations, attentions)

    def own(self, layer: int, attention: int, stage: int, evaluation: int) -> int:
        """Of a self-attention.

        Raises:
            ValueError: a rule of one's own that evaluates its layer several times.
        """
        if evaluation >= self.evaluations:
            raise ValueError(
                f"the rule across depth evaluates a layer {evaluation + 1} times, and the cache has a place for "
                f"{self.evaluations}; pass use_cache=False, or give the rule a `solver` with that many stages"
            )
        more = (evaluation * self.stages + stage) * self.attentions + attention
        return layer + self.layers * more

    def memory(self, layer: int, attention: int) -> int:
        """Of a cross-attention, whose keys are the same in every evaluation."""
        return layer + self.layers * attention


class Context(NamedTuple):
    """What a layer sees besides its particles.

    Fields:
        mask: of self-attention, in the form of the attention function.
        memory: (B, S, C') the encoder's output, for cross-attention; memory_mask: of it.
        cache: transformers' cache, in step-wise decoding.
        options: keyword arguments of transformers' attention functions.
        evaluation: of the layer in this step of the rule across depth; stage: of the flow in this step of its solver.
    """

    mask: Any
    memory: Tensor | None = None
    memory_mask: Any = None
    cache: Cache | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  read only
    evaluation: int = 0
    stage: int = 0

    def at_stage(self, stage: int) -> "Context":
        """The same for a later evaluation of the flow."""
        return self._replace(stage=stage)

    def extended(self, place: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all particles so far, (B, H, T, D) each, from those of the newest, which are kept."""
        if self.cache is None:
            return key, value
        cache = self.cache.self_attention_cache if isinstance(self.cache, EncoderDecoderCache) else self.cache
        return cache.update(key, value, place)

    def remembered(self, place: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the memory, (B, H, S, D) each, if an earlier step or evaluation computed them."""
        if not isinstance(self.cache, EncoderDecoderCache) or not self.cache.is_updated.get(place):
            return None
        layer = self.cache.cross_attention_cache.layers[place]
        return layer.keys, layer.values

    def remember(self, place: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values of the memory."""
        if isinstance(self.cache, EncoderDecoderCache):
            key, value = self.cache.cross_attention_cache.update(key, value, place)
            self.cache.is_updated[place] = True
        return key, value
