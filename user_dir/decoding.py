"""fairseq's beam search by `macaron.decoding`: the same hypotheses, sooner.

Wherever fairseq builds its `SequenceGenerator` for models of ours (`fairseq-generate`, `fairseq-interactive`, the hub,
`--eval-bleu`), `Generator` takes its place if it knows the search that is asked for; of any other it says once what it
leaves to fairseq's. `MACARON_GENERATOR=fairseq` in the environment leaves all to it.

A model that is ready to generate, and so cannot be trained any more, is packed for it (`macaron.decoding.weights`), in
the precision of the hub, of `macaron translate --precision`, or of `MACARON_PRECISION` (fp32, bf16, int8, auto).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from fairseq import search as fairseq_search
from fairseq.data.data_utils import collate_tokens
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from macaron.decoding import BeamSearch, Hypothesis, Lattice, Options, Source, Symbols, choose_precision, packed
from macaron.decoding.lattice import MemoryCache, SelfCache
from macaron.dynamics.splitting import CROSS_ATTENTION

from .generation import ONE_WORD
from .layers import MacaronDecoderLayer, MemorySelfAttention

logger = logging.getLogger(__name__)

SWITCH, PRECISION = "MACARON_GENERATOR", "MACARON_PRECISION"


class Steps:
    """The decoder of one of our models as `macaron.decoding.Stepper`.

    Args:
        encoder, decoder: its parts.
        vocabulary: of the target.
        left_pad: where the sources have their padding.
    """

    def __init__(self, encoder: Any, decoder: Any, vocabulary: int, left_pad: bool = False) -> None:
        self.encoder, self.decoder, self.vocabulary, self.left_pad = encoder, decoder, vocabulary, left_pad
        self.padding = decoder.padding_idx
        self._layers = _layers(decoder)
        self._state: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    def begin(self, beam: int) -> Lattice:
        lattice = Lattice(beam, self.device)
        self.use(lattice)
        return lattice

    def use(self, lattice: Any) -> None:
        """Keys and values are attended to by this lattice from now on."""
        self._state = {}
        for n, layer in enumerate(self._layers):
            for key, kind in (("self_attn", SelfCache), ("encoder_attn", MemoryCache)):
                layer.set_incremental_state(self._state, key, kind(lattice, f"{n}."))

    def read(self, lattice: Lattice, tokens: list[Tensor]) -> None:
        source = collate_tokens(tokens, self.padding, left_pad=self.left_pad).to(self.device)
        lengths = source.ne(self.padding).sum(1)
        found = self.encoder.forward_torchscript({"src_tokens": source, "src_lengths": lengths})
        memory = found["encoder_out"][0]  # (S, B', C)
        hidden = found["encoder_padding_mask"][0] if found["encoder_padding_mask"] else None
        for n, layer in enumerate(self._layers):
            for flow in layer.flows:
                if getattr(flow, "kind", None) == CROSS_ATTENTION:
                    k, v = flow.split(flow.kv_proj(memory), 2)  # (B', H, S, D)
                    lattice.remember(f"{n}.{flow.cache_suffix}", k, v, hidden)

    def step(self, lattice: Lattice, tokens: Tensor, positions: Tensor) -> Tensor:
        decoder = self.decoder
        x = decoder.embed_scale * decoder.embed_tokens(tokens)  # (B, K, C)
        if decoder.project_in_dim is not None:
            x = decoder.project_in_dim(x)
        if decoder.embed_positions is not None:
            x = x + self._places(lattice, positions)[:, None]
        if decoder.layernorm_embedding is not None:
            x = decoder.layernorm_embedding(x)
        x = x.flatten(0, 1)[None]  # (1, B K, C)
        for layer in decoder.layers:
            x = layer(x, None, None, self._state)[0]
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        x = x[0]
        if decoder.project_out_dim is not None:
            x = decoder.project_out_dim(x)
        logits: Tensor = decoder.output_projection(x)
        return logits

    def _places(self, lattice: Lattice, positions: Tensor) -> Tensor:
        """(B,) → (B, C)."""
        table = self.decoder.embed_positions
        index = table.padding_idx + 1 + positions
        if isinstance(table, LearnedPositionalEmbedding):
            return table.weight[index]
        most = lattice.now + table.padding_idx + 2
        if most > table.weights.size(0):
            weights = table.get_embedding(2 * most, table.embedding_dim, table.padding_idx)
            table.weights = weights.to(table.weights)
        found: Tensor = table.weights[index]
        return found


def _layers(decoder: Any) -> list[Any]:
    """The layers themselves, whatever rule walks them."""
    return list(nn.ModuleList.__getitem__(decoder.layers, i) for i in range(len(decoder.layers)))


# --- precision -----------------------------------------------------------------------------------------------------

_PACKED: WeakKeyDictionary[Any, tuple[Any, tuple[Any, Any]]] = WeakKeyDictionary()


def parts(model: Any) -> tuple[Any, Any]:
    """Its encoder and decoder, packed if the model is ready to generate; anew where its parameters are others.

    Raises:
        ValueError: a precision that the device has not, or another than that of the parameters.
    """
    asked = getattr(model, "inference_precision", None) or os.environ.get(PRECISION)
    if not model._is_generation_fast:
        return model.encoder, model.decoder
    first = next(model.parameters())
    asked = asked or _released(model, first)
    if first.dtype == torch.float16 and first.device.type == "cpu":
        _warn("float16 is slow on a CPU: leave out --fp16; a checkpoint in float16 is then read into float32")
    if asked is None and first.dtype != torch.float32:
        return model.encoder, model.decoder
    precision = choose_precision(asked or "fp32", first.device)
    seen = (precision, [(p.data_ptr(), p._version) for p in model.parameters()])
    if model not in _PACKED or _PACKED[model][0] != seen:
        if precision == "fp32":  # the encoder's products have many rows
            both = [model.encoder, packed(model.decoder, precision)]
        else:
            both = list(packed(nn.ModuleList([model.encoder, model.decoder]), precision))  # type: ignore[call-overload]
        _PACKED[model] = (seen, (both[0], both[1]))
    return _PACKED[model][1]


def _released(model: Any, parameter: Tensor) -> str | None:
    """The precision that a released model's matrices have, where the device computes in it."""
    wanted: str = getattr(model, "released_precision", "fp32")
    if wanted == "fp32" or parameter.dtype != torch.float32:
        return None
    try:
        return choose_precision(wanted, parameter.device)
    except ValueError as error:
        _warn(f"the released model is computed in fp32, with the matrices that it has ({error})")
        return None


# --- what it knows --------------------------------------------------------------------------------------------------


def unknown(models: list[Any], generator: SequenceGenerator) -> str:
    """What of a generator's search is left to fairseq's, in words; "" if nothing is."""
    from .models.macaron import MacaronDecoder, MacaronEncoder

    if len(models) != 1:
        return "an ensemble of models"
    encoder, decoder = models[0].encoder, models[0].decoder
    kind = type(generator.search)
    if kind not in (fairseq_search.BeamSearch, fairseq_search.LengthConstrainedBeamSearch):
        return {
            fairseq_search.Sampling: "sampling",
            fairseq_search.DiverseBeamSearch: "a diverse beam search",
            fairseq_search.DiverseSiblingsSearch: "a search with a diversity rate",
            fairseq_search.LexicallyConstrainedBeamSearch: "constraints",
            fairseq_search.PrefixConstrainedBeamSearch: "a function of allowed tokens",
        }.get(kind, f"the search {kind.__name__}")
    if generator.lm_model is not None:
        return "a language model beside the model"
    if generator.token_indices_to_suppress is not None:
        return "words that are suppressed"
    if generator.vocab_size - 1 < 2 * generator.beam_size:
        return "a beam of half the vocabulary"
    if not isinstance(encoder, MacaronEncoder) or not isinstance(decoder, MacaronDecoder):
        return f"a model of {type(encoder).__name__} and {type(decoder).__name__}"
    if decoder.adaptive_softmax is not None or type(decoder.output_projection) is not nn.Linear:
        return "an adaptive softmax, or a projection of one's own"
    places = decoder.embed_positions
    if places is not None and not isinstance(places, (LearnedPositionalEmbedding, SinusoidalPositionalEmbedding)):
        return "positions of one's own"
    layers = _layers(decoder)
    if not all(isinstance(layer, MacaronDecoderLayer) for layer in layers):
        return "layers of one's own"
    if any(isinstance(flow, MemorySelfAttention) for layer in layers for flow in layer.flows):
        return "attention to source and target at once (--cross-self-attention)"
    if any(getattr(module, "apply_during_inference", False) for module in models[0].modules()):
        return "dropout in generation (--retain-dropout)"
    return ""


@cache
def _warn(message: str) -> None:
    logger.warning("%s", message)


def _say(what: str, models: list[Any]) -> None:
    asked = {getattr(model, "inference_precision", None) or os.environ.get(PRECISION) for model in models}
    asked |= {getattr(model, "released_precision", None) for model in models if asked <= {None, ""}}
    fewer = sorted(filter(None, asked - {"fp32"}))
    unused = f" and computes with the parameters as they are: precision {', '.join(fewer)} is not used" if fewer else ""
    _warn(f"{what} is left to fairseq's generator, which is slower{unused}")


class Generator(SequenceGenerator):
    """fairseq's generator, with our search in the place of its own wherever that gives the same.

    Raises:
        ValueError: n-grams of one word, which fairseq would ignore.
    """

    def __init__(self, models: list[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(models, *args, **kwargs)
        if self.repeat_ngram_blocker is not None and self.repeat_ngram_blocker.no_repeat_ngram_size < 2:
            raise ValueError(f"--no-repeat-ngram-size 1: {ONE_WORD}")
        self._unknown = unknown(list(self.model.models), self)
        if self.left:
            _say(self.left, models)

    @property
    def left(self) -> str:
        """What is left to fairseq's, in words; "" if nothing is. Layers may come to be recorded at any time."""
        if self._unknown:
            return self._unknown
        layers = _layers(self.model.single_model.decoder)
        recorded = any("integrate" in vars(layer) for layer in layers)
        return "a decoder whose layers are recorded or compiled" if recorded else ""

    def engine(self, left_pad: bool = True) -> BeamSearch:
        """Our search with this generator's options.

        Raises:
            ValueError: it does not know them.
        """
        if self.left:
            raise ValueError(f"{self.left}: fairseq's generator alone knows it")
        model = self.model.single_model
        blocker = self.repeat_ngram_blocker
        options = Options(
            beam=self.beam_size,
            max_len_a=self.max_len_a,
            max_len_b=self.max_len_b,
            longest=self.max_len - 1,
            min_len=self.min_len,
            normalize=self.normalize_scores,
            lenpen=self.len_penalty,
            unkpen=self.unk_penalty,
            temperature=self.temperature,
            no_repeat_ngram_size=0 if blocker is None else blocker.no_repeat_ngram_size,
            match_source_len=self.match_source_len,
        )
        symbols = Symbols(start=self.eos, end=self.eos, pad=self.pad, unknown=self.unk)
        return BeamSearch(Steps(*parts(model), self.vocab_size, left_pad), symbols, options)

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        given = sample["net_input"]
        if self.left or constraints is not None or "src_tokens" not in given or given["src_tokens"].dim() != 2:
            found: list[list[dict[str, Tensor]]] = super()._generate(sample, prefix_tokens, constraints, bos_token)
            return found
        tokens = given["src_tokens"]
        lengths = given["src_lengths"] if "src_lengths" in given else (tokens.ne(self.eos) & tokens.ne(self.pad)).sum(1)
        engine = self.engine()
        if bos_token is not None:
            engine.symbols = engine.symbols._replace(start=bos_token)
        size = int(lengths.max()) if self.match_source_len else tokens.size(1)
        most = engine.options.most(size)  # of the batch, as fairseq's
        prefixes = [None] * len(tokens) if prefix_tokens is None else list(prefix_tokens)
        sources = [
            Source(i, sentence[sentence.ne(self.pad)], most, length, prefix)
            for i, (sentence, length, prefix) in enumerate(zip(tokens, lengths.tolist(), prefixes, strict=True))
        ]
        done = dict(engine(sources))
        return [[_as_fairseq(one) for one in done[i]] for i in range(len(sources))]

    def stream(
        self, sentences: Iterable[tuple[Any, Tensor]], tokens: int
    ) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """(name, source) → (name, hypotheses), as soon as each is done; others take its place in the batch.

        Args:
            sentences: best in the order of their lengths. Each has the greatest length of its own tokens.
            tokens: of a batch, by the sources.

        Raises:
            ValueError: this generator's search is left to fairseq.
        """
        engine = self.engine(left_pad=False)
        sources = (
            Source(name, source, engine.options.most(source.numel()), source.numel()) for name, source in sentences
        )
        for name, found in engine(sources, tokens=tokens):
            yield name, [_as_fairseq(one) for one in found]


def _as_fairseq(found: Hypothesis) -> dict[str, Tensor]:
    nothing = torch.empty(0)
    return {
        "tokens": found.tokens,
        "score": found.score,
        "attention": nothing,
        "alignment": nothing,
        "positional_scores": found.positional_scores,
    }


def generator_class(models: list[Any], options: Any) -> type[SequenceGenerator] | None:
    """`Generator` where fairseq would take its `SequenceGenerator` for models of ours; else None."""
    from .models.macaron import MacaronModel

    chosen = os.environ.get(SWITCH) or "auto"
    if chosen not in ("auto", "fairseq"):
        raise ValueError(f"{SWITCH}={chosen} in the environment is unknown; give auto or fairseq, or unset it")
    if chosen == "fairseq" or not models:
        return None
    if not all(isinstance(model, MacaronModel) for model in models):
        return None
    if not hasattr(options, "print_alignment"):
        return None  # no configuration of fairseq's, but a caller's own options: who may read the attention
    if options.print_alignment:
        _say("--print-alignment", models)
        return None
    return Generator
