"""Macaron BERT: an encoder of particle layers, and the heads that BERT users expect.

Shapes: B sentences, T particles, C channels, H heads, D = C / H, V words, N real (not padding) particles of a batch.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from macaron.bert.configuration_macaron_bert import MacaronBertConfig, check_cost
from macaron.bert.horizon import (
    HorizonPolicy,
    MacaronBertHorizonClassifierOutput,
    MacaronBertHorizonOutput,
    Sentences,
    first_stop,
    horizon_loss,
    together,
)
from macaron.dynamics.depth import Depth, Systems
from macaron.dynamics.horizon import march
from macaron.dynamics.multistep import LinearMultistep
from macaron.dynamics.solvers import Gate
from macaron.dynamics.splitting import SELF_ATTENTION
from macaron.hf.context import IsRecorded, LayerContext, eager_attention_forward, lookup
from macaron.hf.losses import IGNORED, element_losses, mean_cross_entropy, mean_loss, position_loss
from macaron.hf.packing import Packing, first_particle, has_values, read_mask, sentence_numbers
from macaron.hf.positions import count_positions, sinusoids
from macaron.hf.pretrained import ParticleModel, Step
from macaron.ops.act_dropout import act_dropout
from macaron.ops.linear_cross_entropy import linear_cross_entropy
from macaron.particles.flows import FLOWS, FeedForward, SelfAttention
from macaron.particles.layer import ParticleLayer
from macaron.particles.surroundings import Mask, Packed, Surroundings

_WITH_WEIGHTS = {"multistep", "rk2_learned", "heun_learned"}  # rules and solvers that have parameters
_NUMERICS = {  # and their names, by option
    "depth_rule": re.compile(r"layers\.rule\.(bias$|gates\.)"),
    "solver": re.compile(r"layers\.\d+\.gates\."),
}
_POLICY = re.compile(r"^(.*\.)?policy\.")
_POOLER = [r"^(macaron_bert\.)?pooler\."]  # in checkpoints; heads without one leave it there


class MacaronBertEmbeddings(nn.Module):
    """[W] dropout([LN](s · E[word] + P[position] + S[segment])),  s = √(width of the tables) or 1."""

    sinusoids: Tensor

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__()
        dim = config.embedding_width
        self.position_offset = config.position_offset
        self.scale = math.sqrt(dim) if config.scale_embeddings else 1.0
        self.word_embeddings = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_token_id)
        self.max_positions = config.max_position_embeddings
        self.position_embeddings = self.token_type_embeddings = self.norm = None
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Embedding(self.max_positions, dim)
        sinusoidal = config.position_embedding_type == "sinusoidal"
        self.register_buffer("sinusoids", self.compute_sinusoids() if sinusoidal else None, persistent=False)
        if config.type_vocab_size > 0:
            segments, zero = config.type_vocab_size, config.segment_padding_idx
            self.token_type_embeddings = nn.Embedding(segments, dim, padding_idx=zero)
        if config.embedding_norm:
            self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps, elementwise_affine=config.norm_affine)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = None if config.embedding_size is None else nn.Linear(dim, config.hidden_size)

    def compute_sinusoids(self) -> Tensor:
        return sinusoids(self.position_offset, self.max_positions, self.word_embeddings.embedding_dim)

    def forward(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
    ) -> Tensor:
        """(…) ids or (…, width of the tables) embeds, with segments and positions that broadcast to (…), → (…, C)."""
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.scale != 1.0:
            x = x * self.scale
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(position_ids)
        elif self.sinusoids is not None:
            x = x + F.embedding(position_ids, self.sinusoids).to(x.dtype)
        if self.token_type_embeddings is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
            x = x + self.token_type_embeddings(token_type_ids)
        if self.norm is not None:
            x = self.norm(x)
        x = self.dropout(x)
        return x if self.projection is None else self.projection(x)


class MacaronBertSelfAttention(IsRecorded, SelfAttention):
    """The library's self-attention, with the attention function of `config._attn_implementation`."""

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            dropout=config.attention_probs_dropout_prob,
            batch_first=True,
        )
        self.config = config
        self.is_causal = False
        self.scaling = self.head_dim**-0.5

    def forward(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor | None]:
        """(B, T, C), or packed (N, C), with a `LayerContext`, → the same, and weights (B, H, T, T) or None."""
        if self.config._attn_implementation == "sdpa":
            return self.attend(x, context.surroundings)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value = self.split(self.qkv_proj(x), 3)  # (B, H, T, D)
        out, weights = attend(
            self,
            query,
            key,
            value,
            context.attention_mask,
            dropout=self.dropout_module.rate(),
            scaling=self.scaling,
            **context.options,
        )
        return self.out_proj(out.flatten(2)), weights  # out (B, T, H, D)


class MacaronBertLayer(GradientCheckpointingLayer, IsRecorded, ParticleLayer[LayerContext]):
    """One time step: a `ParticleLayer` over the flows of `config.splitting`."""

    def __init__(self, config: MacaronBertConfig) -> None:
        dim = config.hidden_size
        flows: list[nn.Module] = []
        for substep, ffn in zip(config.get_splitting().substeps, config.layer_ffns(), strict=True):
            if ffn is not None:
                width, activation = ffn
                flows.append(FeedForward(dim, width, activation=activation, dropout=config.activation_dropout))
            elif substep.flow == SELF_ATTENTION:
                flows.append(MacaronBertSelfAttention(config))
            else:
                flows.append(FLOWS[substep.flow](dim))
        super().__init__(
            config.scheme(),
            flows,
            dim,
            dropout=config.hidden_dropout_prob,
            normalize_before=config.normalize_before,
            affine=config.norm_affine,
            eps=config.layer_norm_eps,
        )

    def forward(self, hidden_states: Tensor, context: LayerContext) -> Tensor:  # type: ignore[override]
        """(B, T, C) or packed (N, C), with a `LayerContext`, → the same."""
        return self.integrate(hidden_states, context)[0]


class BertDepth(Depth):
    """Layers in a row, whose systems are the sentences, also where these are packed."""

    def systems(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Systems:
        context: LayerContext = args[0]
        packed = context.surroundings.packed
        if packed is None:
            return super().systems(x, args, kwargs)
        lengths = packed.offsets.diff()
        return len(lengths), lambda values: values.repeat_interleave(lengths, output_size=x.size(0)).unsqueeze(-1)


class MacaronBertPreTrainedModel(ParticleModel):
    config: MacaronBertConfig
    config_class = MacaronBertConfig
    base_model_prefix = "macaron_bert"
    _no_split_modules = ["MacaronBertEmbeddings", "MacaronBertLayer"]  # noqa: RUF012
    always_there = ("embeddings", "layers", "policy", "final_norm")
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": Step,
        "attentions": MacaronBertSelfAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # not in checkpoints, so from_pretrained relies on this
        if isinstance(module, MacaronBertEmbeddings) and module.sinusoids is not None:
            init.copy_(module.sinusoids, module.compute_sinusoids())
        if isinstance(module, (Gate, LinearMultistep, HorizonPolicy)):
            with init.guard_torch_init_functions():  # what a checkpoint had stays
                module.reset_parameters()

    @classmethod
    def lacking(cls, missing: Iterable[str], stored: dict[str, Any], config: Any) -> Iterable[str]:
        """See `ParticleModel`. A model of another rule or solver goes on with theirs as they begin, see
        `_init_weights`; nor is a policy missing, which begins with all steps."""
        begun = [
            names
            for option, names in _NUMERICS.items()
            if stored.get(option, "euler") not in (*_WITH_WEIGHTS, getattr(config, option))
        ]
        if stored.get("horizon") != "learned":
            begun.append(_POLICY)
        return (name for name in missing if not any(names.search(name) for names in begun))


class MacaronBertPooler(nn.Module):
    """act(W x + b) of what stands for a sentence; with tanh as in BERT."""

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__()
        self.activation = config.pooler_act
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) → (B, C)."""
        u = self.dense(x)
        return torch.tanh(u) if self.activation == "tanh" else act_dropout(u, activation=self.activation)


class MacaronBertModel(MacaronBertPreTrainedModel):
    """The encoder.

    Positions count the real particles of a sentence, so that padding on either side changes nothing. The output at
    padding positions is zero. Padded batches are run without their padding (`config.padding_free`) under the `sdpa`
    implementation, unless the model is being traced, compiled or exported, or hidden states or attentions are asked
    for.

    Args:
        add_pooling_layer: build the pooler if `config.use_pooler`; heads that do not use it do without.
    """

    def __init__(self, config: MacaronBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = MacaronBertEmbeddings(config)
        depth = config.num_hidden_layers
        scheme = config.scheme()
        layers = [MacaronBertLayer(config) for _ in range(depth if config.horizon == "none" else 1)]
        self.layers = BertDepth(layers, scheme.rule(depth, config.hidden_size), noise=scheme.noise(depth))
        self.step = Step()
        self.policy = HorizonPolicy(config.hidden_size, depth) if config.horizon == "learned" else None
        dim, eps, affine = config.hidden_size, config.layer_norm_eps, config.norm_affine
        self.final_norm = nn.LayerNorm(dim, eps, elementwise_affine=affine) if config.final_norm else None
        self.pooler = MacaronBertPooler(config) if config.use_pooler and add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Move the particles.

        Several sentences may stand in one row: mark them by positions that begin again, without a mask, or in a batch
        of one row by `cu_seq_lens_q` and `max_length_q` as `DataCollatorWithFlattening` does. They do not see each
        other.

        Args:
            input_ids: (B, T), or `inputs_embeds` (B, T, C).
            attention_mask: (B, T), 1 or True at real particles; or (B, T, T) or (B, 1 or H, T, T) for what each of
                them sees: bool or integers as before, or of a floating type, added to the scores. A particle that
                sees none gets nothing from the attention.
            token_type_ids: (B, T) segments; None is segment 0.
            position_ids: (B, T) or (1, T), from 0; None counts the real particles.

        With `output_hidden_states` these are x_0 … x_L: the embeddings, and the states to which `depth_rule` and
        stochastic depth lead after each layer; the last one is `last_hidden_state`.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`; sentences that are too long; a mask of
                another form, or that the attention implementation cannot follow; what horizon="learned" cannot do.
        """
        with_depths: bool = kwargs.pop("with_depths", False)  # type: ignore[typeddict-item]  # our own heads' training
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None
        shape, device = given.shape[:2], given.device
        real = mask = row = None  # real (B, T) bool
        marks = kwargs.get("cu_seq_lens_q")
        if attention_mask is None:
            row = sentence_numbers(position_ids, marks, shape)
        elif marks is not None:
            raise ValueError("cu_seq_lens_q says where sentences begin and end; leave out either it or attention_mask")
        else:
            mask = read_mask(attention_mask, shape, self.config.num_attention_heads).to(device)
            if mask.dim() == 2:
                real, mask = mask, None
                if real.device.type == "cpu" and has_values(real) and real.all():
                    real = None  # nothing is hidden; an accelerator would have to be waited for
        if position_ids is None:
            position_ids = count_positions(shape[1], real, row, device)
            longest = shape[1]
            if row is not None and has_values(row) and row.numel():
                longest = int(position_ids.max()) + 1
            if (row is None or has_values(row)) and longest > self.config.max_position_embeddings:
                raise ValueError(
                    f"sentences of {longest} tokens are longer than max_position_embeddings="
                    f"{self.config.max_position_embeddings}; truncate them, or train with more positions"
                )

        packing = self._packing(real, row, kwargs)
        if packing is None:
            x = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids)  # (B, T, C)
            context = self._padded_context(x, real, mask, row, kwargs)
        else:
            per_particle = (input_ids, inputs_embeds, token_type_ids, position_ids.expand(shape))
            x = self.embeddings(*(None if t is None else packing.pack(t) for t in per_particle))  # (N, C)
            around = Surroundings(packed=Packed(packing.offsets, packing.max_length))
            context = LayerContext(around, None, {})
        steps = firsts = q = None
        if self.config.horizon == "learned":
            self._check_learned(x, context, row, with_depths, kwargs)
            sentences = Sentences.of(x, context, real)
            if with_depths:
                x, firsts, q = self._all_depths(sentences)
            else:
                x, steps = self._until_stopped(sentences)
        else:
            recorded = self._wanted("output_hidden_states", kwargs)
            for layer in self._steps():
                moved = layer(x, context)
                x = self.step(x, moved) if recorded else moved
        if self.final_norm is not None:
            x = self.final_norm(x)
            firsts = None if firsts is None else self.final_norm(firsts)
        if packing is not None:
            x = packing.unpack(x, shape)
        elif real is not None:
            x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        pooled = None if self.pooler is None else self.pooler(first_particle(x, real))
        if self.config.horizon == "learned":
            firsts = self.pooler(firsts) if self.pooler is not None and firsts is not None else firsts
            return MacaronBertHorizonOutput(x, pooled, horizon_steps=steps, depth_sentences=firsts, depth_q=q)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def _steps(self) -> Any:
        """The layers to go through; under horizon="fixed" the one there is, again and again."""
        times = self.config.num_hidden_layers
        return self.layers if len(self.layers) == times else [self.layers[0]] * times

    def _all_depths(self, sentences: Sentences) -> tuple[Tensor, Tensor, Tensor]:
        """x_L of all, their first particles (L, B, C) after each step, and Q(x_n, on), (L − 1, B)."""
        assert self.policy is not None
        firsts, q = [], []
        for n, layer in enumerate(self._steps(), 1):
            sentences = sentences.step(layer)
            first, mean = sentences.pooled()
            firsts.append(first)
            if n < self.config.num_hidden_layers:
                q.append(self.policy(first.detach(), mean, n))
        return sentences.x, torch.stack(firsts), torch.stack(q)

    def _until_stopped(self, sentences: Sentences) -> tuple[Tensor, Tensor]:
        """x_τ of all, and τ, (B,)."""
        cost, policy = check_cost(self.config.horizon_cost), self.policy
        assert policy is not None

        @torch.no_grad()
        def stops(going: Sentences, n: int) -> Tensor:
            if n == 0:  # no classifier can read what no layer has moved
                return torch.zeros(going.number, dtype=torch.bool, device=going.x.device)
            return policy(*going.pooled(), n) <= cost

        ended, steps = march(
            lambda going: going.step(self.layers[0]),
            sentences,
            stops,
            self.config.num_hidden_layers,
            sentences.number,
            Sentences.take,
            sentences.x.device,
        )
        return together([part for _, part in ended], sentences.x), steps

    def _check_learned(
        self, x: Tensor, context: LayerContext, row: Tensor | None, with_depths: bool, kwargs: dict[str, Any]
    ) -> None:
        problem = "horizon='learned' "
        for name in ("output_hidden_states", "output_attentions"):
            if self._wanted(name, kwargs):
                raise ValueError(
                    f"{problem}takes sentences out of the batch on the way, so that {name} would be of batches that "
                    f"get smaller; leave it out, or take horizon='fixed'"
                )
        if self.training and not with_depths:
            raise ValueError(
                f"{problem}is trained by MacaronBertForSequenceClassification alone, whose loss a policy learns from; "
                f"train other heads with horizon='fixed', or call eval()"
            )
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"{problem}takes sentences out of the masks of attention, and those of "
                f"{self.config._attn_implementation!r} have a form of their own; choose attn_implementation='sdpa'"
            )
        if row is not None and (with_depths or context.surroundings.packed is None):
            raise ValueError(
                f"{problem}stops sentences one by one, and of several in a row can take one out in evaluation only, "
                f"and only with attn_implementation='sdpa' and padding_free; give each sentence a row"
            )
        if not has_values(x):
            raise ValueError(
                f"{problem}looks at its sentences to decide, which a traced, compiled or exported graph cannot; take "
                f"horizon='fixed' for it"
            )

    def _packing(self, real: Tensor | None, row: Tensor | None, kwargs: dict[str, Any]) -> Packing | None:
        """How to leave the padding out, or None where there is none or something needs it."""
        marks = row if real is None else real
        if marks is None or self.config._attn_implementation != "sdpa" or not self.config.padding_free:
            return None
        if self._wanted("output_attentions", kwargs) or self._wanted("output_hidden_states", kwargs):
            return None
        if not has_values(marks) or marks.numel() == 0:
            return None
        return Packing.of_sentences(marks) if real is None else Packing.of(real)

    def _wanted(self, name: str, kwargs: dict[str, Any]) -> bool:
        """Whether an output is asked for; it may also be a list of layers."""
        value = kwargs.get(name, getattr(self.config, name, False))
        return value is not None and value is not False

    def _padded_context(
        self, x: Tensor, real: Tensor | None, mask: Tensor | None, row: Tensor | None, kwargs: dict[str, Any]
    ) -> LayerContext:
        """Masks in the form that the attention implementation takes."""
        implementation = self.config._attn_implementation
        if implementation in ("sdpa", "eager"):
            if row is not None:
                mask = (row.unsqueeze(-1) == row.unsqueeze(-2)).unsqueeze(1)  # (B, 1, T, T)
            elif real is not None and (not has_values(real) or not real.all()):
                mask = real[:, None, None, :]
            need_weights = self._wanted("output_attentions", kwargs)
            return LayerContext(Surroundings(Mask(pairs=mask), need_weights=need_weights), mask, kwargs)
        apart = None if row is None else packed_sequence_mask_function(row)
        if mask is not None:
            mask = mask.expand(x.size(0), -1, x.size(1), -1)
            flex = "flex" in implementation
            if "flash" in implementation or (flex and mask.size(1) > 1):
                raise ValueError(
                    f"{implementation} cannot follow an attention_mask {tuple(mask.shape)}; choose "
                    f"attn_implementation='sdpa', or a mask (B, T)"
                )
            if not flex or mask.dtype != torch.bool:
                return LayerContext(Surroundings(), mask if mask.dtype == torch.bool else mask.to(x.dtype), kwargs)
            apart = lookup(mask)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=x, attention_mask=real, and_mask_function=apart
        )
        if row is not None and "flash" in implementation and "cu_seq_lens_q" not in kwargs:
            packing = Packing.of_sentences(row)  # flash attention has no mask of this kind
            kwargs = {**kwargs, "cu_seq_lens_q": packing.offsets, "cu_seq_lens_k": packing.offsets}
            kwargs |= {"max_length_q": packing.max_length, "max_length_k": packing.max_length}
        return LayerContext(Surroundings(), mask, kwargs)


class MaskedLMHead(nn.Module):
    """LN(act(W x + b)), then the projection onto the vocabulary."""

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__()
        self.activation = config.mlm_act or config.hidden_act
        dim = config.embedding_width
        self.dense = nn.Linear(config.hidden_size, dim)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(dim, config.vocab_size, bias=config.mlm_bias)

    def features(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C), or the width of the embeddings' tables."""
        return self.norm(act_dropout(self.dense(x), activation=self.activation))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, V)."""
        return self.decoder(self.features(x))


class _HasEncoder(MacaronBertPreTrainedModel):
    """What the heads share: how they come to the particles, and to one for each sentence."""

    def encode(self, *inputs: Tensor | None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The encoder's result of the inputs in its order."""
        return self.macaron_bert(*inputs, return_dict=True, **kwargs)

    def sentences(self, outputs: BaseModelOutputWithPooling, attention_mask: Tensor | None) -> Tensor:
        """(B, C): what stands for each sentence."""
        if outputs.pooler_output is not None:
            return outputs.pooler_output
        return first_particle(outputs.last_hidden_state, attention_mask)


class _HasMaskedLMHead(_HasEncoder):
    """What the two models with a masked-language-model head share."""

    _tied_weights_keys = {  # noqa: RUF012
        "mlm_head.decoder.weight": "macaron_bert.embeddings.word_embeddings.weight"
    }

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_head.decoder = new_embeddings

    def predict_words(
        self, x: Tensor, labels: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, T, C) → loss and logits, (B, T, V) or what `sparse_prediction` leaves of them."""
        if labels is None:
            return None, self.mlm_head(x)
        labels = labels.to(x.device)
        if self.config.sparse_prediction and not is_tracing(labels):
            chosen = labels.ne(IGNORED)
            x, labels = x[chosen], labels[chosen]  # (N, C), (N,)
        if self.config.sparse_prediction and self.training:
            decoder = self.mlm_head.decoder
            total, _ = linear_cross_entropy(self.mlm_head.features(x), decoder.weight, labels, decoder.bias)
            return mean_loss(total, labels.ne(IGNORED).sum(), num_items_in_batch), None
        logits = self.mlm_head(x)
        return mean_cross_entropy(logits, labels, num_items_in_batch), logits


class MacaronBertForMaskedLM(_HasMaskedLMHead):
    _keys_to_ignore_on_load_unexpected = _POOLER

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config)
        self.macaron_bert = MacaronBertModel(config, add_pooling_layer=False)
        self.mlm_head = MaskedLMHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """`labels` (B, T): words to predict, −100 elsewhere."""
        outputs = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        loss, logits = self.predict_words(outputs.last_hidden_state, labels, num_items_in_batch)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


@dataclass
class MacaronBertForPreTrainingOutput(ModelOutput):
    """Fields:
    loss: () where labels were given.
    prediction_logits: (B, T, V), see `MacaronBertConfig.sparse_prediction`.
    seq_relationship_logits: (B,), positive where the second sentence is taken for the real next one.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MacaronBertForPreTraining(_HasMaskedLMHead):
    """Masked language model and next-sentence prediction with one logit, as in the original."""

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config)
        self.macaron_bert = MacaronBertModel(config)
        self.mlm_head = MaskedLMHead(config)
        self.nsp_head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MacaronBertForPreTrainingOutput:
        """The mean loss of the words plus the mean loss of the pairs.

        Args:
            labels: (B, T) words to predict, −100 elsewhere.
            next_sentence_label: (B,), 1 where the second sentence really follows the first, 0 where not, −100 where
                nobody knows. (In transformers' own BERT 0 and 1 are the other way round.)
            num_items_in_batch: number of labels in the whole update, from the Trainer. As it does not say how many
                pairs there are, each pair then counts with the number of labels in it, so that any division of the
                update into batches gives the same sum.
        """
        outputs = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        loss, logits = self.predict_words(outputs.last_hidden_state, labels, num_items_in_batch)
        pair_logits = self.nsp_head(self.sentences(outputs, attention_mask)).squeeze(-1)  # (B,)
        if next_sentence_label is not None:
            target = next_sentence_label.to(pair_logits.device).view_as(pair_logits)
            pairs, counted = element_losses(F.binary_cross_entropy_with_logits, pair_logits, target)  # (B,)
            if labels is None or num_items_in_batch is None:
                pair_loss = mean_loss(pairs.sum(), counted, None)
            else:
                weights = labels.ne(IGNORED).sum(-1).to(pairs.device)  # (B,)
                pair_loss = mean_loss((weights * pairs).sum(), 1, num_items_in_batch)
            loss = pair_loss if loss is None else loss + pair_loss
        return MacaronBertForPreTrainingOutput(loss, logits, pair_logits, outputs.hidden_states, outputs.attentions)


class MacaronBertForNextSentencePrediction(_HasEncoder):
    """The pairs' head of `MacaronBertForPreTraining`, with transformers' two logits and its label order."""

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config)
        self.macaron_bert = MacaronBertModel(config)
        self.nsp_head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NextSentencePredictorOutput:
        """Logits (B, 2): of 0, the second sentence follows the first, and of 1, it does not, which is always 0.

        Only their difference means anything: it is the one logit of `MacaronBertForPreTraining`.

        Args:
            labels: (B,), 0 where the second sentence really follows the first, 1 where not, −100 where nobody knows.
                That is the order of transformers' BERT; `next_sentence_label` of `MacaronBertForPreTraining` has the
                other one, as the original.
        """
        outputs = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        follows = self.nsp_head(self.sentences(outputs, attention_mask))  # (B, 1)
        logits = torch.cat([follows, torch.zeros_like(follows)], dim=-1)  # (B, 2)
        loss = None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch)
        return NextSentencePredictorOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class _Classifies(_HasEncoder):
    """A linear classifier on the particles, behind dropout; `of_sentences` through the pooler if there is one."""

    def __init__(
        self, config: MacaronBertConfig, outputs: int, name: str = "classifier", of_sentences: bool = False
    ) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.macaron_bert = MacaronBertModel(config, add_pooling_layer=of_sentences)
        rate = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.add_module(name, nn.Linear(config.hidden_size, outputs))
        self.post_init()


class MacaronBertForSequenceClassification(_Classifies):
    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config, config.num_labels, of_sentences=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """`labels` (B,), or (B, num_labels) for several labels or values; `config.problem_type` says which loss.

        One logit with `problem_type="multi_label_classification"` is binary classification, labels 0 and 1. The label
        −100 takes no part; in regression it is a value like any other, though the Trainer does not count it.

        Under `config.horizon` = "learned" the result is a `MacaronBertHorizonClassifierOutput`; in training all steps
        are taken, and the loss is `macaron.bert.horizon.horizon_loss`, of layer, classifier and policy.
        """
        learned = self.config.horizon == "learned"
        if learned and self.training:
            kwargs["with_depths"] = True  # type: ignore[typeddict-unknown-key]
        outputs = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        if learned and self.training:
            return self._at_all_depths(outputs, labels, num_items_in_batch)
        logits = self.classifier(self.dropout(self.sentences(outputs, attention_mask)))  # (B, num_labels)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device), num_items_in_batch)
        if learned:
            return MacaronBertHorizonClassifierOutput(loss, logits, horizon_steps=outputs.horizon_steps)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def _at_all_depths(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> MacaronBertHorizonClassifierOutput:
        logits, q = self.classifier(self.dropout(outputs.depth_sentences)), outputs.depth_q  # (L, B, num_labels)
        cost = check_cost(self.config.horizon_cost)
        steps = first_stop(q.detach(), cost)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            self._choose_problem(labels)
            losses, weights = zip(*(self._sentence_losses(one, labels) for one in logits), strict=True)
            loss = horizon_loss(torch.stack(losses), q, cost, weights=weights[0], num_items_in_batch=num_items_in_batch)
        at = logits.gather(0, (steps - 1).view(1, -1, 1).expand(1, -1, logits.size(-1)))[0]
        return MacaronBertHorizonClassifierOutput(loss, at, horizon_steps=steps, depth_logits=logits, depth_q=q)

    def _sentence_losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) the mean loss of each sentence over its labels, 0 where it has none, and how many it has."""
        if self.config.problem_type == "single_label_classification":
            labels = labels.view(-1)
            losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
            return losses, labels.ne(IGNORED)
        labels = labels.view_as(logits)
        if self.config.problem_type == "regression":
            losses, counted = (logits.float() - labels.float()).square(), torch.ones_like(labels, dtype=torch.bool)
        else:
            losses, _ = element_losses(F.binary_cross_entropy_with_logits, logits, labels)
            counted = labels != IGNORED
        count = counted.sum(-1)
        return losses.sum(-1) / count.clamp(min=1), count

    def _loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        self._choose_problem(labels)
        if self.config.problem_type == "single_label_classification":
            return mean_cross_entropy(logits, labels, num_items_in_batch)
        labels = labels.view_as(logits)
        if self.config.problem_type == "regression":
            total = F.mse_loss(logits.float(), labels.float(), reduction="sum")
            return mean_loss(total, labels.numel(), num_items_in_batch)
        losses, counted = element_losses(F.binary_cross_entropy_with_logits, logits, labels)
        return mean_loss(losses.sum(), counted, num_items_in_batch)

    def _choose_problem(self, labels: Tensor) -> None:
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.is_floating_point():
                self.config.problem_type = "multi_label_classification"
            else:
                self.config.problem_type = "single_label_classification"


class MacaronBertForTokenClassification(_Classifies):
    _keys_to_ignore_on_load_unexpected = _POOLER

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """`labels` (B, T), −100 where there is none."""
        outputs = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))  # (B, T, num_labels)
        loss = None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MacaronBertForQuestionAnswering(_Classifies):
    _keys_to_ignore_on_load_unexpected = _POOLER

    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config, 2, name="qa_outputs")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """`start_positions`, `end_positions` (B,): where the answer begins and ends; outside 0 … T − 1: not here.

        The loss is the mean over all B, those with an answer elsewhere included as 0: the Trainer counts no items for
        this head, and so equal batches may be divided in any way.
        """
        outputs = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start, end = self.qa_outputs(outputs.last_hidden_state).unbind(-1)  # (B, T)
        loss = None
        if start_positions is not None and end_positions is not None:
            total = (position_loss(start, start_positions) + position_loss(end, end_positions)) / 2
            loss = mean_loss(total, start.size(0), num_items_in_batch)
        return QuestionAnsweringModelOutput(loss, start, end, outputs.hidden_states, outputs.attentions)


class MacaronBertForMultipleChoice(_Classifies):
    def __init__(self, config: MacaronBertConfig) -> None:
        super().__init__(config, 1, of_sentences=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Every input has a dimension of choices after the first: `input_ids` (B, choices, T). `labels` (B,)."""
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None, "pass input_ids or inputs_embeds"
        choices = given.size(1)
        flat = [
            None if t is None else t.flatten(0, 1)
            for t in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        ]
        outputs = self.encode(*flat, **kwargs)
        logits = self.classifier(self.dropout(self.sentences(outputs, flat[1]))).view(given.size(0), choices)
        loss = None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch)
        return MultipleChoiceModelOutput(loss, logits, outputs.hidden_states, outputs.attentions)


__all__ = [
    "MacaronBertForMaskedLM",
    "MacaronBertForMultipleChoice",
    "MacaronBertForNextSentencePrediction",
    "MacaronBertForPreTraining",
    "MacaronBertForQuestionAnswering",
    "MacaronBertForSequenceClassification",
    "MacaronBertForTokenClassification",
    "MacaronBertModel",
    "MacaronBertPreTrainedModel",
]
