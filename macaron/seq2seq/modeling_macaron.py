"""Macaron Net for `generate()`: an encoder and a decoder of particle layers.

Shapes: B sentences, S source positions, T target positions, C channels, H heads, D = C / H, V words of the target.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import ForcedEOSTokenLogitsProcessor, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from macaron.dynamics.depth import Arguments, Depth
from macaron.dynamics.multistep import LinearMultistep
from macaron.dynamics.solvers import Gate
from macaron.dynamics.splitting import SELF_ATTENTION
from macaron.hf.context import IsRecorded, eager_attention_forward
from macaron.hf.losses import IGNORED, mean_cross_entropy
from macaron.hf.positions import count_positions, sinusoids
from macaron.hf.pretrained import ParticleModel, Step
from macaron.particles.dropout import Dropout
from macaron.particles.flows import CrossAttention, FeedForward, SelfAttention
from macaron.particles.layer import ParticleLayer
from macaron.seq2seq.configuration_macaron import MacaronConfig
from macaron.seq2seq.context import Context, Places

# What outputs and masks call a cache; "past_key_values" in older versions of transformers.
CACHE = "cache" if "cache" in {field.name for field in fields(Seq2SeqLMOutput)} else "past_key_values"


def with_former_name(forward: Callable) -> Callable:
    """A `forward` that takes its `cache` as `past_key_values` too, as older versions of transformers call it."""
    if CACHE == "cache":
        return deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")(forward)

    @wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    return renamed


def shifted(labels: Tensor, start: int, pad: int) -> Tensor:
    """What the decoder reads to predict `labels`: (B, T), begun with `start`, the last one left out."""
    read = labels.new_full(labels.shape, start)
    read[:, 1:] = labels[:, :-1]
    return read.masked_fill(read == IGNORED, pad)


class _Interface(IsRecorded):
    """Goes in front of an attention of the library: transformers' attention functions instead of its own."""

    config: MacaronConfig
    cache_suffix: str
    dropout_module: Dropout
    out_proj: nn.Linear

    def set_place(self, config: MacaronConfig, layer_idx: int | None, is_causal: bool) -> None:
        """`layer_idx`: of the decoder; None in an encoder, which has no cache."""
        self.config, self.layer_idx, self.is_causal = config, layer_idx, is_causal
        self.places = Places.of(config)

    @property
    def number(self) -> int:
        """Of this attention among those of its kind in a layer."""
        return int(self.cache_suffix or 0)

    def interact(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """(B, H, T, D) and (B, H, S, D) → (B, T, C), and weights (B, H, T, S) or None."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        rate, scale = self.dropout_module.rate(), query.size(-1) ** -0.5
        out, weights = attend(self, query, key, value, mask, dropout=rate, scaling=scale, **options)
        return self.out_proj(out.flatten(2)), weights  # out (B, T, H, D)


class MacaronSelfAttention(_Interface, SelfAttention):
    """The library's self-attention, with the attention function of `config._attn_implementation`."""

    def forward(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) with a `Context` → the same, and weights (B, H, T, T) or None."""
        query, key, value = self.split(self.qkv_proj(x), 3)  # (B, H, T, D)
        if self.layer_idx is not None and context.cache is not None:
            place = self.places.own(self.layer_idx, self.number, context.stage, context.evaluation)
            key, value = context.extended(place, key, value)
        return self.interact(query, key, value, context.mask, context.options)


class MacaronCrossAttention(_Interface, CrossAttention):
    """The library's cross-attention, likewise; in step-wise decoding its keys are computed once."""

    def __init__(self, dim: int, *args: Any, memory_dim: int, **kwargs: Any) -> None:
        super().__init__(dim, *args, memory_dim=memory_dim, **kwargs)
        # fairseq's distribution: Xavier on each of three matrices, with gain 1/√2 where all are of one size
        gain = math.sqrt(1 / 2) if memory_dim == dim else 1.0
        self.q_proj.xavier_gain = gain  # type: ignore[assignment]
        self.kv_proj.xavier_gain = gain * math.sqrt((2 * dim + memory_dim) / (dim + memory_dim))  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) with a `Context` → the same, and weights (B, H, T, S) or None."""
        query = self.split(self.q_proj(x), 1)[0]
        assert self.layer_idx is not None, "an encoder has no memory"
        place = self.places.memory(self.layer_idx, self.number)
        known = context.remembered(place)
        if known is None:
            key, value = self.split(self.kv_proj(context.memory), 2)  # (B, H, S, D)
            known = context.remember(place, key, value)
        key, value = known
        return self.interact(query, key, value, context.memory_mask, context.options)


class MacaronLayer(GradientCheckpointingLayer, IsRecorded, ParticleLayer[Context]):
    """One time step of one side: a `ParticleLayer` over the flows of `config.splitting`.

    Args:
        side: "encoder", or "decoder", which attends to the memory too.
        layer_idx: its number.
    """

    def __init__(self, config: MacaronConfig, side: str, layer_idx: int) -> None:
        decoding, sizes = side == "decoder", config.side(side)
        scheme, dim, heads = config.scheme(cross_attention=decoding), sizes.dim, sizes.attention_heads
        act, drop = config.activation_function, {"dropout": config.attention_dropout, "batch_first": True}
        widths = scheme.per_ffn(sizes.first_ffn_dim, sizes.ffn_dim)
        flows: list[nn.Module] = []
        for substep, width in zip(scheme.splitting.substeps, widths, strict=True):
            if width is not None:
                flows.append(FeedForward(dim, width, activation=act, dropout=config.activation_dropout))
                continue
            attention: Any
            if own := substep.flow == SELF_ATTENTION:
                attention = MacaronSelfAttention(dim, heads, **drop)  # type: ignore[arg-type]
            else:
                attention = MacaronCrossAttention(dim, heads, memory_dim=config.d_model, **drop)
            attention.set_place(config, layer_idx if decoding else None, is_causal=decoding and own)
            flows.append(attention)
        super().__init__(
            scheme,
            flows,
            dim,
            dropout=config.dropout,
            normalize_before=sizes.normalize_before,
            eps=config.layer_norm_eps,
        )

    def forward(self, hidden_states: Tensor, context: Context, memory: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B, T, C) with a `Context`, and the memory, (B, S, C'), apart from it for its gradient → (B, T, C)."""
        return self.integrate(hidden_states, context._replace(memory=memory))[0]


class DecodingDepth(Depth):
    """Layers in a row, of which a cache has a place for each evaluation."""

    def again(self, times: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return (args[0]._replace(evaluation=times), *args[1:]), kwargs


class MacaronPreTrainedModel(ParticleModel):
    config: MacaronConfig
    config_class = MacaronConfig
    base_model_prefix = "model"
    _no_split_modules = ["MacaronLayer"]  # noqa: RUF012
    always_there = ("encoder", "decoder")
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As fairseq: matrices Xavier, embeddings normal with the inverse root of their width."""
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear):
            if getattr(module, "is_projection", False):
                init.normal_(module.weight, std=module.in_features**-0.5)
            else:
                init.xavier_uniform_(module.weight, gain=getattr(module, "xavier_gain", 1.0))
        elif isinstance(module, MacaronStack) and module.sinusoids is not None:
            init.copy_(module.sinusoids, module.compute_sinusoids())  # not in checkpoints
        elif isinstance(module, (Gate, LinearMultistep)):
            with init.guard_torch_init_functions():
                module.reset_parameters()


class MacaronStack(MacaronPreTrainedModel):
    """What encoder and decoder share: embeddings, layers, the final norm.

    x_0 = dropout([LN]([W] s · E[token] + P[position])),   x_L by the layers,   [LN](x_L)
    """

    side: str
    sinusoids: Tensor

    def __init__(self, config: MacaronConfig) -> None:
        super().__init__(config)
        self.sizes = sizes = config.side(self.side)
        dim, eps, scheme = sizes.dim, config.layer_norm_eps, config.scheme()
        self.scale = math.sqrt(dim) if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(sizes.words, sizes.table, padding_idx=config.pad_token_id)
        self.project_in_dim = nn.Linear(sizes.table, dim, bias=False) if sizes.table != dim else None
        learned, sinusoidal = (sizes.position_embedding_type == kind for kind in ("learned", "sinusoidal"))
        self.embed_positions = nn.Embedding(sizes.max_position_embeddings, dim) if learned else None
        self.register_buffer("sinusoids", self.compute_sinusoids() if sinusoidal else None, persistent=False)
        self.layernorm_embedding = nn.LayerNorm(dim, eps=eps) if config.layernorm_embedding else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = DecodingDepth(
            [MacaronLayer(config, self.side, n) for n in range(sizes.layers)],
            scheme.rule(sizes.layers, dim),
            noise=scheme.noise(sizes.layers),
            layerdrop=sizes.layerdrop,
        )
        self.step = Step()
        self.layer_norm = nn.LayerNorm(dim, eps=eps) if sizes.final_norm else None
        self.gradient_checkpointing = False

    def compute_sinusoids(self) -> Tensor:
        return sinusoids(self.config.position_offset, self.sizes.max_position_embeddings, self.sizes.dim)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.embed_tokens = value

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, mask: Any, past: Any) -> Tensor:
        """(B, T) ids, or (B, T, width of the table) → (B, T, C), at positions that count what the mask says is real.

        Raises:
            ValueError: neither or both of them; a sentence that is too long.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(f"{self.side}: pass exactly one of token ids and embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * self.scale
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        length = x.size(1)
        tables = (self.embed_positions, self.sinusoids)
        if any(table is not None for table in tables):
            limit, most = self.sizes.limit, self.sizes.max_position_embeddings
            if isinstance(past, int) and past + length > most:
                raise ValueError(
                    f"{past + length} tokens are more than the {self.side}'s {limit}={most}; "
                    f"truncate them (tokenizer: truncation=True; generate: max_length), or train with more positions"
                )
            if torch.is_tensor(mask) and mask.dim() == 2:
                places = count_positions(mask.size(1), mask.bool(), None, x.device)[:, -length:]
            else:
                places = count_positions(length, None, None, x.device) + past
            if self.embed_positions is not None:
                x = x + self.embed_positions(places)
            else:
                x = x + F.embedding(places, self.sinusoids).to(x.dtype)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout(x)

    def move(self, x: Tensor, context: Context, memory: Tensor | None = None) -> Tensor:
        """(B, T, C) → the same, through all layers."""
        for layer in self.layers:
            x = self.step(x, layer(x, context, memory))
        return x if self.layer_norm is None else self.layer_norm(x)


class MacaronEncoder(MacaronStack):
    """With `strang` FFN½ – self-attention – FFN½ in each layer."""

    side = "encoder"
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": Step,
        "attentions": MacaronSelfAttention,
    }

    def __init__(self, config: MacaronConfig) -> None:
        super().__init__(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """(B, S) → (B, S, C). Positions count the real particles, so that padding on either side changes nothing."""
        x = self.embed(input_ids, inputs_embeds, attention_mask, 0)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
        return BaseModelOutput(last_hidden_state=self.move(x, Context(mask, options=_options(kwargs))))


class MacaronDecoder(MacaronStack):
    """With `strang` FFN½ – self-attention – cross-attention – FFN½ in each layer."""

    side = "decoder"
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": Step,
        "attentions": MacaronSelfAttention,
        "cross_attentions": MacaronCrossAttention,
    }

    def __init__(self, config: MacaronConfig) -> None:
        super().__init__(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @with_former_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """(B, T) → (B, T, C), with the encoder's (B, S, C') as the memory.

        Args:
            cache: keys and values of what came before, to which those of the inputs are added; an
                `EncoderDecoderCache` keeps those of the memory too. `past_key_values` is its former name.

        Raises:
            ValueError: no memory, or too many tokens.
        """
        if encoder_hidden_states is None:
            raise ValueError("the decoder attends to an encoder's output; pass encoder_hidden_states")
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        past = 0 if cache is None else cache.get_seq_length()
        x = self.embed(input_ids, inputs_embeds, attention_mask, past)
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        mask = create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask, **{CACHE: own})
        memory_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        context = Context(mask, None, memory_mask, cache, _options(kwargs))
        x = self.move(x, context, encoder_hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x, **{CACHE: cache})


def _options(kwargs: Any) -> dict[str, Any]:
    """What attention functions are told; not what is recorded, nor of the loss."""
    left = ("output_attentions", "output_hidden_states", "output_cross_attentions", "use_cache", "num_items_in_batch")
    return {name: value for name, value in kwargs.items() if name not in left}


class _HasTables(MacaronPreTrainedModel):
    """Where the tables of both sides are, whether they are one or two."""

    def _sides(self) -> tuple[MacaronEncoder, MacaronDecoder]:
        return self.get_encoder(), self.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        return self._sides()[0].embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        encoder, decoder = self._sides()
        encoder.embed_tokens = value
        if self.config.shares_embeddings:
            decoder.embed_tokens = value

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for both sides.

        Raises:
            ValueError: they have vocabularies of their own, so that it would not be clear which of them has grown.
        """
        if not self.config.share_encoder_decoder_embeddings:
            raise ValueError(
                "resize_token_embeddings: source and target have vocabularies of their own here; build a model of "
                "another source_vocab_size or vocab_size, and copy the rows"
            )
        if not self.config.tie_word_embeddings:
            decoder = self._sides()[1]
            decoder.embed_tokens = self._get_resized_embeddings(decoder.embed_tokens, *args, **kwargs)
        table = super()._resize_token_embeddings(*args, **kwargs)
        self.config.source_vocab_size = self.config.vocab_size = table.num_embeddings
        return table


class MacaronModel(_HasTables):
    """Encoder and decoder."""

    _tied_weights_keys = {  # noqa: RUF012
        "encoder.embed_tokens.weight": "decoder.embed_tokens.weight"
    }

    def __init__(self, config: MacaronConfig) -> None:
        super().__init__(config)
        if not config.share_encoder_decoder_embeddings:
            self._tied_weights_keys = {}
        self.encoder = MacaronEncoder(config)
        self.decoder = MacaronDecoder(config)
        self.post_init()

    @can_return_tuple
    @with_former_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """(B, S) sources and (B, T) targets → (B, T, C).

        Args:
            attention_mask: (B, S), 1 at real particles; decoder_attention_mask: (B, T), of everything so far.
            encoder_outputs: the encoder's, a `BaseModelOutput` or a tuple of its fields, in place of the sources.
            inputs_embeds, decoder_inputs_embeds: in place of ids.
            cache: see `MacaronDecoder`; past_key_values is its former name.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{CACHE: decoded.get(CACHE)},
        )


class EndsAtLength(LogitsProcessor):
    """At the greatest length </s> alone may follow. transformers' own processor gives it the score 0 there, so that a
    hypothesis would be preferred for having been cut off."""

    def __init__(self, max_length: int, end: Tensor) -> None:
        self.max_length, self.end = max_length, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.size(-1) != self.max_length - 1:
            return scores
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[:, self.end] = True
        return scores.masked_fill(~kept, -math.inf)


class MacaronForConditionalGeneration(_HasTables, GenerationMixin):
    """Macaron Net with its output projection: translation, and whatever else maps a sentence to a sentence."""

    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.decoder.embed_tokens.weight",
        "model.encoder.embed_tokens.weight": "model.decoder.embed_tokens.weight",
    }

    def __init__(self, config: MacaronConfig) -> None:
        super().__init__(config)
        if not config.share_encoder_decoder_embeddings:
            self._tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
        self.model = MacaronModel(config)
        width, out = config.side("decoder").dim, config.decoder_output_dim
        assert out is not None, "the configuration fills it in"
        self.project_out_dim = nn.Linear(width, out, bias=False) if width != out else None
        self.lm_head = nn.Linear(out, config.vocab_size, bias=False)
        self.lm_head.is_projection = True  # type: ignore[assignment]
        self.post_init()

    @can_return_tuple
    @with_former_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """(B, S) sources and (B, T) targets → logits (B, T, V).

        Args:
            labels: (B, T), with </s> at the end and −100 at padding; the decoder reads them shifted by one, unless
                decoder_input_ids are given. The loss is the mean cross-entropy over them.
            others: see `MacaronModel`.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            cache,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache,
            return_dict=True,
            **kwargs,
        )
        x = outputs.last_hidden_state
        logits = self.lm_head(x if self.project_out_dim is None else self.project_out_dim(x))
        loss = None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch)
        rest = {name: outputs[name] for name in outputs if name != "last_hidden_state"}
        return Seq2SeqLMOutput(loss=loss, logits=logits, **rest)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """As in transformers, but </s> at the end of the greatest length counts with its probability, as in fairseq."""
        processors = super()._get_logits_processor(*args, **kwargs)
        for i, processor in enumerate(processors):
            if type(processor) is ForcedEOSTokenLogitsProcessor:
                processors[i] = EndsAtLength(processor.max_length, processor.eos_token_id)
        return processors

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """See `shifted`; transformers' `DataCollatorForSeq2Seq` calls it."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                f"labels are read shifted, which takes decoder_start_token_id={start} and pad_token_id={pad}"
            )
        return shifted(labels, start, pad)


__all__ = ["MacaronForConditionalGeneration", "MacaronModel", "MacaronPreTrainedModel"]
