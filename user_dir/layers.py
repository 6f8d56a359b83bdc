"""Particle layers behind the interface of fairseq's Transformer layers."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from macaron.dynamics.scheme import Scheme
from macaron.dynamics.splitting import CROSS_ATTENTION, SELF_ATTENTION
from macaron.particles.dropout import Dropout
from macaron.particles.flows import FLOWS, CrossAttention, FeedForward, SelfAttention
from macaron.particles.layer import TextLayer
from macaron.particles.surroundings import Caches, Mask, Memory, StageCache, Surroundings

# Shapes: T target or source positions, S source positions, B sentences, C channels; fairseq's layers are time first.

_ACTIVATIONS = {"gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh"}  # fairseq's names


def _flows(cfg: TransformerConfig, side: Any, scheme: Scheme) -> list[nn.Module]:
    """One flow for each substep; `side` is `cfg.encoder` or `cfg.decoder`."""
    activation = str(cfg.activation_fn)
    activation = _ACTIVATIONS.get(activation, activation)
    dropout = float(cfg.activation_dropout or cfg.relu_dropout or 0.0)
    flows: list[nn.Module] = []
    widths = scheme.per_ffn(side.first_ffn_embed_dim, side.ffn_embed_dim)
    for substep, width in zip(scheme.splitting.substeps, widths, strict=True):
        if width is not None:
            flows.append(FeedForward(side.embed_dim, width, activation=activation, dropout=dropout))
        elif substep.flow == SELF_ATTENTION:
            attention = MemorySelfAttention if cfg.cross_self_attention and side is cfg.decoder else SelfAttention
            flows.append(attention(side.embed_dim, side.attention_heads, dropout=cfg.attention_dropout))
        elif substep.flow == CROSS_ATTENTION:
            flows.append(
                CrossAttention(
                    side.embed_dim,
                    side.attention_heads,
                    memory_dim=cfg.encoder.embed_dim,
                    dropout=cfg.attention_dropout,
                )
            )
        else:
            flows.append(FLOWS[substep.flow](side.embed_dim))
    if cfg.quant_noise.pq > 0:
        for flow in flows:
            for module in flow.children():
                if isinstance(module, nn.Linear):
                    quant_noise(module, cfg.quant_noise.pq, cfg.quant_noise.pq_block_size)
    return flows


class MemorySelfAttention(SelfAttention):
    """Self-attention over the memory and the sentence together (`--cross-self-attention`, Peitz et al. 2019)."""

    def forward(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        """(T, B, C) → (T, B, C), None; the cache, once filled, holds the memory's keys and values first."""
        cache = surroundings.caches.own
        memory = surroundings.memory.particles
        if memory is None or (cache is not None and "k" + self.cache_suffix in cache):
            return self.attend(x, surroundings)
        n, batch = memory.size(0), memory.size(1)
        queries = x.size(0)
        visible = torch.ones(n + queries, n + queries, dtype=torch.bool, device=x.device)
        if surroundings.mask.causal:
            visible[n:, n:] = visible[n:, n:].tril()
        padding: Tensor | None = None
        own, theirs = surroundings.mask.padding, surroundings.memory.padding
        if own is not None or theirs is not None:
            if own is None:
                own = torch.zeros(batch, queries, dtype=torch.bool, device=x.device)
            if theirs is None:
                theirs = torch.zeros(batch, n, dtype=torch.bool, device=x.device)
            padding = torch.cat([theirs, own], dim=1)
        whole = Surroundings(Mask(padding, visible), Memory(), Caches(cache))
        velocity, _ = self.attend(torch.cat([memory, x]), whole)
        return velocity[n:], None


@cache
def _compiled(kind: str, substep: int | None = None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`TextLayer.integrate` for the layers of one kind, or the velocity of a substep of theirs, for solvers of stages.

    Layers of one kind share their graphs, in which sizes are symbols. torch keeps graphs by the code of a function,
    and takes no more than 8 of one: so each kind has a copy of it.
    """

    def velocity(layer: TextLayer, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        assert substep is not None
        return TextLayer.velocity(layer, substep, x, surroundings)

    whole: Any = TextLayer.integrate if substep is None else velocity
    copied = FunctionType(
        whole.__code__.replace(), whole.__globals__, whole.__name__, whole.__defaults__, whole.__closure__
    )
    return torch.compile(copied, dynamic=True, fullgraph=True)


class _Compiled:
    """`TextLayer.integrate` of one layer, compiled in training; layers of equal `kind` are alike but for numbers."""

    def __init__(self, layer: TextLayer, kind: str) -> None:
        self.layer, self.kind = layer, kind

    def __call__(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        if not self._pays(x, surroundings):
            return TextLayer.integrate(self.layer, x, surroundings)
        # the first layer gets a transposed view from fairseq, and strides are part of a graph
        return _compiled(self.kind)(self.layer, x.contiguous(), surroundings)

    def _pays(self, x: Tensor, surroundings: Surroundings) -> bool:
        memory = surroundings.memory.particles
        sizes = [*x.shape[:2], 2 if memory is None else memory.size(0)]
        return self.layer.training and min(sizes) > 1  # a size of 1 would be a graph of its own


class _CompiledStages(_Compiled):
    """`TextLayer.velocity` likewise. What draws equal dropout masks for all stages stays outside of the graphs."""

    def __call__(self, substep: int, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        if not self._pays(x, surroundings):
            return TextLayer.velocity(self.layer, substep, x, surroundings)
        return _compiled(self.kind, substep)(self.layer, x.contiguous(), surroundings)


class LaterState(dict[str, Any]):
    """fairseq's incremental state for a later evaluation of a layer in one step: its self-attention's keys are others.

    Those of the encoder's output are the same. Everything is written into the caches of the state itself.
    """

    @classmethod
    def of(cls, state: dict[str, Any] | None, times: int) -> Any:
        if state is None:
            return None
        later = f"#{times}"
        return cls(
            {key: StageCache(cache, later) if key.endswith("self_attn") else cache for key, cache in state.items()}
        )


class _FairseqLayer(TextLayer):
    """What both layers share: construction from fairseq's configuration, `--compile`, dropout kept for generation."""

    def __init__(self, cfg: TransformerConfig, side: Any, cross_attention: bool) -> None:
        scheme = Scheme.of(cfg)
        splitting = scheme.splitting
        splitting = splitting.with_cross_attention() if cross_attention else splitting.without(CROSS_ATTENTION)
        scheme = replace(scheme, splitting=splitting)
        super().__init__(
            scheme,
            _flows(cfg, side, scheme),
            side.embed_dim,
            dropout=cfg.dropout,
            normalize_before=side.normalize_before,
        )
        if cfg.compile:
            kind = f"{type(self).__name__} {scheme} {cfg}"
            if self.fused:
                self.integrate = _Compiled(self, kind)
            else:
                self.velocity = _CompiledStages(self, kind)

    def __prepare_scriptable__(self) -> nn.Module:
        layer = copy(super().__prepare_scriptable__())
        vars(layer).pop("integrate", None)
        return layer

    def make_generation_fast_(
        self,
        name: str = "",
        retain_dropout: bool = False,
        retain_dropout_modules: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Serve `--retain-dropout` (`retain_dropout_modules` names classes of layers)."""
        if retain_dropout and (retain_dropout_modules is None or type(self).__name__ in retain_dropout_modules):
            for module in self.modules():
                if isinstance(module, Dropout):
                    module.apply_during_inference = True


class MacaronEncoderLayer(_FairseqLayer):
    """An encoder layer: with `strang` FFN½ – self-attention – FFN½."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg, cfg.encoder, cross_attention=False)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (S, B, C).
            encoder_padding_mask: (B, S), true at padding.
            attn_mask: (S, S), nonzero where attention is not allowed.
        """
        padding: Tensor | None = None
        if encoder_padding_mask is not None:
            padding = encoder_padding_mask.to(torch.bool)
        visible: Tensor | None = None
        if attn_mask is not None:
            visible = ~attn_mask.to(torch.bool)
        x, _ = self.integrate(x, Surroundings(Mask(padding, visible), Memory(), Caches()))
        return x


@with_incremental_state
class MacaronDecoderLayer(_FairseqLayer):
    """A decoder layer: with `strang` FFN½ – self-attention – cross-attention – FFN½."""

    def __init__(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> None:
        super().__init__(cfg, cfg.decoder, cross_attention=not no_encoder_attn)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        prev_self_attn_state: list[Tensor] | None = None,
        prev_attn_state: list[Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """
        Args:
            x: (T, B, C).
            encoder_out: (S, B, C'), the memory.
            encoder_padding_mask: (B, S), true at padding.
            incremental_state: caches of step-wise decoding; x is then the newest position only.
            prev_self_attn_state, prev_attn_state: not supported; pass `incremental_state`.
            self_attn_mask: (T, T), added to the scores; an empty tensor stands for the causal mask.
            self_attn_padding_mask: (B, T), true at padding.
            need_attn: return the weights of the attention to the encoder, (B, T, S).
            need_head_weights: return them for each head, (H, B, T, S).

        Returns:
            (T, B, C), the weights or None, None.
        """
        if prev_self_attn_state is not None or prev_attn_state is not None:
            raise ValueError("prev_self_attn_state and prev_attn_state are not supported; pass incremental_state")
        is_causal = False
        attn_mask: Tensor | None = None
        if self_attn_mask is not None:
            if self_attn_mask.numel() == 0:
                is_causal = True
            else:
                attn_mask = self_attn_mask
        padding: Tensor | None = None
        if self_attn_padding_mask is not None:
            padding = self_attn_padding_mask.to(torch.bool)
        memory_padding: Tensor | None = None
        if encoder_padding_mask is not None:
            memory_padding = encoder_padding_mask.to(torch.bool)
        self_cache: dict[str, Tensor | None] | None = None
        cross_cache: dict[str, Tensor | None] | None = None
        if incremental_state is not None:
            self_cache = self.get_incremental_state(incremental_state, "self_attn")
            cross_cache = self.get_incremental_state(incremental_state, "encoder_attn")
            if self_cache is None or cross_cache is None:
                new_self: dict[str, Tensor | None] = {}
                new_cross: dict[str, Tensor | None] = {}
                self_cache, cross_cache = new_self, new_cross
                self.set_incremental_state(incremental_state, "self_attn", new_self)
                self.set_incremental_state(incremental_state, "encoder_attn", new_cross)
        surroundings = Surroundings(
            mask=Mask(padding=padding, pairs=attn_mask, causal=is_causal),
            memory=Memory(particles=encoder_out, padding=memory_padding),
            caches=Caches(own=self_cache, memory=cross_cache),
            need_memory_weights=need_attn or need_head_weights,
        )
        x, weights = self.integrate(x, surroundings)
        if weights is not None:
            weights = weights.mean(dim=1) if not need_head_weights else weights.transpose(0, 1)
        return x, weights, None

    @torch.jit.export
    def reorder_incremental_state(
        self, incremental_state: dict[str, dict[str, Tensor | None]], new_order: Tensor
    ) -> None:
        """Let the caches follow a reordering of the beams; `new_order` holds old row numbers."""
        for key in ["self_attn", "encoder_attn"]:
            cache = self.get_incremental_state(incremental_state, key)
            if cache is not None:
                for name in list(cache.keys()):
                    rows = cache[name]
                    if rows is not None:
                        cache[name] = rows.index_select(0, new_order)
