"""Configuration of Macaron Net for `generate()`: checked once, derived values filled in."""

from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

from huggingface_hub.dataclasses import strict

from macaron.dynamics.scheme import Scheme
from macaron.dynamics.solvers import EULER
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION
from macaron.hf.configuration import ParticleConfig, known_activation

Positions = Literal["sinusoidal", "learned", "none"]


class Side(NamedTuple):
    """The fields of the encoder or the decoder: `config.encoder_layers` is `config.side("encoder").layers`.

    Fields:
        dim: C; table: width of the table of embeddings; words: rows of it.
        limit: the name of the field that says `max_position_embeddings`.
    """

    layers: int
    attention_heads: int
    ffn_dim: int
    first_ffn_dim: int
    normalize_before: bool
    final_norm: bool
    position_embedding_type: str
    layerdrop: float
    dim: int
    table: int
    words: int
    max_position_embeddings: int
    limit: str


@strict
class MacaronConfig(ParticleConfig):
    """Everything that defines a Macaron Net of encoder and decoder. The defaults are `macaron_base`, for new training.

    A layer is one step of `splitting`: with "strang" half an FFN, attention, half an FFN (Lu et al. 2019,
    arXiv:1906.02762), with "lie" attention and FFN, the Transformer. The decoder's attention is that to itself and then
    to the encoder's output, each for the whole share. Sizes have the names that transformers' BART and Marian have.

    After construction the widths that were left open hold what is used.

    Fields:
        vocab_size: of the target, and of what `generate()` chooses from.
        source_vocab_size: of the source; None is `vocab_size`.
        share_encoder_decoder_embeddings: one vocabulary for source and target, and one table where
            `tie_word_embeddings` holds.
        tie_word_embeddings: the output projection is the decoder's table.
        d_model: width of the encoder; decoder_d_model: of the decoder, None is `d_model`.
        decoder_input_dim, decoder_output_dim: widths of the decoder's table and of the output projection's rows, which
            linear maps lead to and from `decoder_d_model` where they differ; None is `decoder_d_model`.
        encoder_layers, decoder_layers, encoder_attention_heads, decoder_attention_heads: numbers of them.
        encoder_ffn_dim, decoder_ffn_dim: width of the FFNs after attention; None is 4 · width / number of FFNs in a
            layer. encoder_first_ffn_dim, decoder_first_ffn_dim: of that before attention; None is the other's.
        splitting, solver, depth_rule, dt, multistep_init: how the layers integrate, as in `MacaronBertConfig`. A
            depth_rule of one's own must be registered wherever the model is loaded.
        stochastic_depth, stochastic_depth_schedule, stochastic_depth_form, stochastic_depth_unit: noise of the depth in
            training, see `macaron.dynamics.noise`.
        activation_function: of every FFN.
        encoder_normalize_before, decoder_normalize_before: pre-norm (True) or post-norm.
        encoder_final_norm, decoder_final_norm: normalise after the last layer; None is True for pre-norm only.
        layer_norm_eps: of every norm.
        scale_embedding: multiply embeddings (and `inputs_embeds`) by the root of `d_model`.
        layernorm_embedding: normalise the sum of embeddings and positions.
        encoder_position_embedding_type, decoder_position_embedding_type: "sinusoidal" as in fairseq (halves, not
            interleaved), "learned" or "none".
        position_offset: number of the first position in the sinusoidal table; fairseq's is 2.
        max_position_embeddings: the longest source; decoder_max_position_embeddings: the longest target, None is the
            same.
        dropout: of embeddings and velocities; attention_dropout: on attention weights; activation_dropout: after the
            activation; encoder_layerdrop, decoder_layerdrop: to leave a layer out in training.
        decoder_start_token_id: what every target begins with; fairseq's is </s>.

    Raises:
        ValueError: a value outside its range, or values that do not fit each other.
    """

    model_type = "macaron"
    remedy: ClassVar[str] = "make one of a released model: macaron convert RELEASE --to transformers --output DIR"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    vocab_size: int = 32_000
    source_vocab_size: int | None = None
    share_encoder_decoder_embeddings: bool = True
    tie_word_embeddings: bool = True
    d_model: int = 512
    decoder_d_model: int | None = None
    decoder_input_dim: int | None = None
    decoder_output_dim: int | None = None
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int | None = None
    decoder_ffn_dim: int | None = None
    encoder_first_ffn_dim: int | None = None
    decoder_first_ffn_dim: int | None = None
    activation_function: str = "relu"
    encoder_normalize_before: bool = True
    decoder_normalize_before: bool = True
    encoder_final_norm: bool | None = None
    decoder_final_norm: bool | None = None
    scale_embedding: bool = True
    layernorm_embedding: bool = False
    encoder_position_embedding_type: Positions = "sinusoidal"
    decoder_position_embedding_type: Positions = "sinusoidal"
    position_offset: int = 2
    max_position_embeddings: int = 1024
    decoder_max_position_embeddings: int | None = None
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    encoder_layerdrop: float | int = 0.0
    decoder_layerdrop: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    is_encoder_decoder: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2

    def __post_init__(self, **kwargs):
        for name, own in self.attribute_map.items():  # before anything is derived from them
            if name in kwargs:
                setattr(self, own, kwargs.pop(name))
        scheme = self.scheme()
        self.splitting = scheme.splitting.portable  # a saved model is read where nothing is registered
        for side in ("encoder", "decoder"):
            scheme.check_increments(getattr(self, f"{side}_normalize_before"))
        self.activation_function = known_activation(self.activation_function)
        self._fill(scheme)
        self._check()
        super().__post_init__(**kwargs)

    def _fill(self, scheme: Scheme) -> None:
        if self.source_vocab_size is None:
            self.source_vocab_size = self.vocab_size
        if self.decoder_d_model is None:
            self.decoder_d_model = self.d_model
        for name in ("decoder_input_dim", "decoder_output_dim"):
            if getattr(self, name) is None:
                setattr(self, name, self.decoder_d_model)
        if self.decoder_max_position_embeddings is None:
            self.decoder_max_position_embeddings = self.max_position_embeddings
        for side, width in (("encoder", self.d_model), ("decoder", self.decoder_d_model)):
            if getattr(self, f"{side}_ffn_dim") is None:
                setattr(self, f"{side}_ffn_dim", scheme.ffn_width(4 * width))
            if getattr(self, f"{side}_first_ffn_dim") is None:
                setattr(self, f"{side}_first_ffn_dim", getattr(self, f"{side}_ffn_dim"))
            if getattr(self, f"{side}_final_norm") is None:
                setattr(self, f"{side}_final_norm", getattr(self, f"{side}_normalize_before"))

    def _check(self) -> None:
        sizes = ["vocab_size", "source_vocab_size", "d_model", "max_position_embeddings"]
        for side in ("encoder", "decoder"):
            sizes += [f"{side}_{what}" for what in ("layers", "attention_heads", "ffn_dim", "first_ffn_dim")]
        sizes += [f"decoder_{what}" for what in ("d_model", "input_dim", "output_dim", "max_position_embeddings")]
        self.check_positive(*sizes)
        for name, side in (("d_model", "encoder"), ("decoder_d_model", "decoder")):
            self.check_heads(name, f"{side}_attention_heads")
            width = getattr(self, name)
            if getattr(self, f"{side}_position_embedding_type") == "sinusoidal" and width < 4:
                raise ValueError(f"{name}={width} is too small for sinusoidal positions; take at least 4")
        self.check_rates("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
        self.check_eps()
        if self.position_offset < 0:
            raise ValueError(f"position_offset={self.position_offset} is negative; fairseq's is 2")
        words = min(self.side("encoder").words, self.side("decoder").words)
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < words:
            raise ValueError(
                f"pad_token_id={self.pad_token_id} is not in the vocabularies of source_vocab_size="
                f"{self.source_vocab_size} and vocab_size={self.vocab_size}"
            )
        if self.tie_word_embeddings and self.decoder_input_dim != self.decoder_output_dim:
            raise ValueError(
                f"tie_word_embeddings: the decoder's table has decoder_input_dim={self.decoder_input_dim} columns and "
                f"the output projection decoder_output_dim={self.decoder_output_dim}; make them equal, or untie them"
            )
        if self.shares_embeddings and (self.source_vocab_size, self.d_model) != (
            self.vocab_size,
            self.decoder_input_dim,
        ):
            raise ValueError(
                f"share_encoder_decoder_embeddings: the encoder's table is {self.source_vocab_size} × {self.d_model} "
                f"and the decoder's {self.vocab_size} × {self.decoder_input_dim}; make them equal, or give each side "
                f"its own with share_encoder_decoder_embeddings=False"
            )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """As in transformers; that of the decoder has as many layers as a cache of keys and values needs."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        # transformers asks what this returned once more, which has no layers of a decoder to count any more
        if config is not self and decoder and not encoder and "decoder_layers" in vars(self):
            config.encoder_layers = self.cache_layers  # what it calls num_hidden_layers
        return config

    @property
    def shares_embeddings(self) -> bool:
        """Whether source and target have one table."""
        return self.tie_word_embeddings and self.share_encoder_decoder_embeddings

    def side(self, name: str) -> Side:
        """Of "encoder" or "decoder"."""
        own: dict[str, Any] = {field: getattr(self, f"{name}_{field}") for field in Side._fields[:8]}
        values: Any = self  # what was left open is filled in
        if name == "decoder":
            own |= {"dim": values.decoder_d_model, "table": values.decoder_input_dim, "words": self.vocab_size}
            limit = "decoder_max_position_embeddings"
        else:
            own |= {"dim": self.d_model, "table": self.d_model, "words": values.source_vocab_size}
            limit = "max_position_embeddings"
        return Side(**own, max_position_embeddings=getattr(self, limit), limit=limit)

    def scheme(self, *, cross_attention: bool | None = None) -> Scheme:
        """How the layers integrate: as it is written, or with cross-attention, a decoder's, or without, an encoder's.

        Raises:
            ValueError: options that make no scheme, or a flow that is none of this package's.
        """
        scheme = Scheme.of(self).check_flows((FFN, SELF_ATTENTION, CROSS_ATTENTION), needed=(FFN, SELF_ATTENTION))
        if cross_attention is None:
            return scheme
        splitting = scheme.splitting
        splitting = splitting.with_cross_attention() if cross_attention else splitting.without(CROSS_ATTENTION)
        return replace(scheme, splitting=splitting)

    @property
    def evaluations(self) -> int:
        """How often a rule across depth evaluates a layer in a step: the stages of a Runge–Kutta step, else once."""
        rule = self.scheme().rule(self.decoder_layers)
        return int(getattr(rule, "solver", EULER).stages)

    @property
    def cache_layers(self) -> int:
        """Layers of a cache: one for each evaluation of an attention in each layer of the decoder."""
        scheme = self.scheme(cross_attention=True)
        own = scheme.splitting.count(SELF_ATTENTION) * scheme.solver.stages * self.evaluations
        return self.decoder_layers * max(own, scheme.splitting.count(CROSS_ATTENTION))


__all__ = ["MacaronConfig"]
