"""Configuration of Macaron BERT: checked once, derived values filled in."""

import contextlib
import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from macaron.dynamics.scheme import Scheme
from macaron.dynamics.splitting import FFN, SELF_ATTENTION, Splitting, get_splitting
from macaron.ops.act_dropout import check_activation
from macaron.particles.flows import FLOWS

# transformers' names of activations that ours computes under another one.
_SAME_ACTIVATION = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}

HORIZONS = ("none", "fixed", "learned")


@strict
class MacaronBertConfig(PreTrainedConfig):
    """Everything that defines a Macaron BERT. The defaults are `base` size, for new training.

    The layer is one step of `splitting`: with "strang" half an FFN, attention, half an FFN (Lu et al. 2019,
    arXiv:1906.02762), with "lie" attention and FFN, which is an ordinary pre-norm BERT. Where the widths are left open,
    both have weight matrices of the same total size.

    After construction `intermediate_size`, `first_intermediate_size`, `first_hidden_act` and `embedding_norm` hold what
    is used.

    Fields:
        splitting: name of a `macaron.dynamics.splitting.SPLITTINGS`, or its flows in order, each with its divisor, such
            as "attention/2 ffn/2 attention/2 ffn/2".
        solver: how each flow of a layer is followed, one of `macaron.dynamics.solvers.SOLVERS`.
        depth_rule: how the next state follows from those before and a layer, one of `macaron.dynamics.rules.RULES`. One
            of your own must be registered wherever the model is loaded.
        dt: time step of a layer, which scales all that it adds.
        multistep_init: where the k of depth_rule="multistep" begin, a number or "lm_resnet".
        stochastic_depth: drop rate of the last layer in training, in [0, 1); stochastic_depth_schedule ("lm_resnet",
            "torch", "constant"): of the others; stochastic_depth_form ("scaled", "sde", "unscaled") and
            stochastic_depth_unit ("batch", "sentence"): see `macaron.dynamics.noise`.
        horizon: "none": each of the num_hidden_layers has parameters of its own. "fixed": one layer, whose parameters
            all num_hidden_layers steps share. "learned": the same, but after each step a small policy decides for every
            sentence whether it goes on; see `macaron.bert.horizon`. Only MacaronBertForSequenceClassification trains
            under "learned"; a model pretrained with "fixed" is loaded with horizon="learned" for that.
        horizon_cost: price of a step under "learned", in units of the task's loss: a sentence goes on while it is
            expected to gain more. May be set anew on a trained model.
        intermediate_size: width of the FFNs after attention; None is 4 · hidden_size / number of FFNs in a layer.
        first_intermediate_size: width of the FFN before attention; None is `intermediate_size`.
        hidden_act: activation of the FFNs after attention.
        first_hidden_act: activation of the FFN before attention; None is `hidden_act`.
        normalize_before: pre-norm (True) or post-norm.
        final_norm: normalise after the last layer; None is True for pre-norm only.
        norm_affine: whether the norms of layers and embeddings and the final one have gain and offset.
        layer_norm_eps: of every norm.
        position_embedding_type: "learned", "sinusoidal" as in fairseq (halves, not interleaved), or "none".
        position_offset: number of the first position in the sinusoidal table.
        max_position_embeddings: the longest sentence.
        scale_embeddings: multiply word embeddings (and `inputs_embeds`) by the root of their width.
        embedding_norm: normalise the sum of embeddings; None is True for post-norm only.
        type_vocab_size: number of segments; 0 takes no segment table, and `token_type_ids` are ignored.
        embedding_size: width of the tables of embeddings and of their norm, behind which a linear layer leads to
            hidden_size, as in ELECTRA; the masked-language-model head goes back to it. None is hidden_size, without
            that layer.
        segment_padding_idx: the segment whose vector is always zero, if there is one.
        hidden_dropout_prob: on embeddings and on every velocity; attention_probs_dropout_prob: on attention weights;
            activation_dropout: after the activation; classifier_dropout: before a classifier, None is
            `hidden_dropout_prob`.
        mlm_bias: whether the output projection over the vocabulary has a bias.
        mlm_act: activation of the masked-language-model head; None is `hidden_act`.
        sparse_prediction: the masked-language-model heads, when given labels, compute logits at labelled positions
            only: (labels, V) in evaluation, none at all in training, where the loss is fused with the projection.
        use_pooler: a linear layer and `pooler_act` on the first particle, before sentence-level heads, as in BERT.
        pooler_act: activation of the pooler.
        padding_free: run padded batches without their padding where nothing prevents it.

    Raises:
        ValueError: a value outside its range, or values that do not fit each other.
    """

    model_type = "macaron_bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    splitting: str = "strang"
    solver: str = "euler"
    depth_rule: str = "euler"
    dt: float | int = 1.0
    multistep_init: float | int | str = 0.0
    stochastic_depth: float | int = 0.0
    stochastic_depth_schedule: str = "lm_resnet"
    stochastic_depth_form: str = "scaled"
    stochastic_depth_unit: str = "batch"
    horizon: str = "none"
    horizon_cost: float | int = 0.0
    intermediate_size: int | None = None
    first_intermediate_size: int | None = None
    hidden_act: str = "gelu"
    first_hidden_act: str | None = None
    normalize_before: bool = True
    final_norm: bool | None = None
    norm_affine: bool = True
    layer_norm_eps: float = 1e-5
    position_embedding_type: Literal["learned", "sinusoidal", "none"] = "learned"
    position_offset: int = 0
    max_position_embeddings: int = 512
    scale_embeddings: bool = False
    embedding_norm: bool | None = None
    type_vocab_size: int = 2
    embedding_size: int | None = None
    segment_padding_idx: int | None = None
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    activation_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    mlm_bias: bool = True
    mlm_act: str | None = None
    sparse_prediction: bool = False
    use_pooler: bool = False
    pooler_act: str = "tanh"
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    padding_free: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if __name__.startswith("macaron."):
            kwargs.pop("auto_map", None)  # names files of code that saving an installed model does not write
        scheme = self.scheme()
        self.splitting = scheme.splitting.portable  # a saved model is read where nothing is registered
        self._check_ranges()
        self._check_horizon()
        if self.intermediate_size is None:
            self.intermediate_size = scheme.ffn_width(4 * self.hidden_size)
        if self.first_intermediate_size is None:
            self.first_intermediate_size = self.intermediate_size
        self.hidden_act = _activation(self.hidden_act)
        self.first_hidden_act = _activation(self.first_hidden_act or self.hidden_act)
        self.mlm_act = None if self.mlm_act is None else _activation(self.mlm_act)
        self.pooler_act = _activation(self.pooler_act)
        if self.final_norm is None:
            self.final_norm = self.normalize_before
        if self.embedding_norm is None:
            self.embedding_norm = not self.normalize_before
        if self.embedding_size == self.hidden_size:
            self.embedding_size = None
        self._check_positive("intermediate_size", "first_intermediate_size")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a `config.json`.

        Raises:
            ValueError: of another kind of model.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"this is the configuration of a model of type {kind!r}, not {cls.model_type!r}; load it with "
                f"transformers' Auto classes, which choose by this type, or make a Macaron BERT of a BERT or its like: "
                f"macaron convert NAME_OR_FOLDER --output DIR"
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; the name of a registered splitting that was given later is written out too."""
        result = super().to_dict()
        with contextlib.suppress(ValueError):  # building a model of it says what is wrong
            result["splitting"] = get_splitting(self.splitting).portable
        return result

    def _check_positive(self, *names):
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def _check_ranges(self):
        self._check_positive(
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"
        )
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not divide into num_attention_heads={self.num_attention_heads}; "
                f"choose a width that is a multiple of the number of heads"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"{name}={value} is not a probability in [0, 1); 0 switches it off")
        if not 0.0 < self.layer_norm_eps < math.inf:
            raise ValueError(
                f"layer_norm_eps={self.layer_norm_eps} must be positive and finite; it keeps norms from dividing by 0"
            )
        if self.position_embedding_type not in ("learned", "sinusoidal", "none"):
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} is unknown; choose learned, sinusoidal, none"
            )
        if self.position_offset < 0 or (self.position_offset > 0 and self.position_embedding_type != "sinusoidal"):
            raise ValueError(
                f"position_offset={self.position_offset} goes with position_embedding_type='sinusoidal' and is not "
                f"negative; a learned table starts at 0"
            )
        if self.embedding_size is not None:
            self._check_positive("embedding_size")
        if self.position_embedding_type == "sinusoidal" and self.embedding_width < 4:
            name = "hidden_size" if self.embedding_size is None else "embedding_size"
            raise ValueError(f"{name}={self.embedding_width} is too small for sinusoidal positions; take at least 4")
        if self.type_vocab_size < 0:
            raise ValueError(f"type_vocab_size={self.type_vocab_size} is negative; 0 takes no segment table")
        if self.segment_padding_idx is not None and not 0 <= self.segment_padding_idx < self.type_vocab_size:
            raise ValueError(
                f"segment_padding_idx={self.segment_padding_idx} is not one of the type_vocab_size="
                f"{self.type_vocab_size} segments; None has no segment that is always zero"
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id={self.pad_token_id} is not in the vocabulary of vocab_size={self.vocab_size}; "
                f"None has no padding token"
            )

    def _check_horizon(self):
        if self.horizon not in HORIZONS:
            raise ValueError(f"horizon={self.horizon!r} is unknown; choose one of {', '.join(HORIZONS)}")
        check_cost(self.horizon_cost)
        if self.horizon != "learned" and self.horizon_cost != 0:
            raise ValueError(
                f"horizon_cost={self.horizon_cost} is what a policy weighs, and horizon={self.horizon!r} has none; "
                f"leave it out, or take horizon='learned'"
            )
        if self.horizon == "none":
            return
        for name in ("depth_rule", "stochastic_depth"):
            value, plain = getattr(self, name), getattr(type(self), name)
            if value != plain:
                raise ValueError(
                    f"{name}={value!r} tells layers of one stack apart, and horizon={self.horizon!r} repeats a single "
                    f"one; leave out either of them"
                )
        if self.horizon == "learned" and self.num_hidden_layers < 2:
            raise ValueError(
                f"horizon='learned' decides after each step but the last whether to go on, and num_hidden_layers="
                f"{self.num_hidden_layers} leaves nothing to decide; allow at least 2 steps"
            )

    @property
    def embedding_width(self) -> int:
        """Width of the tables of embeddings."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def layer_ffns(self) -> list[Any]:
        """For each substep of a layer, (width, activation) of its FFN, or None where it is another flow."""
        first = (self.first_intermediate_size, self.first_hidden_act)
        return list(self.scheme().per_ffn(first, (self.intermediate_size, self.hidden_act)))

    def scheme(self) -> Scheme:
        """How the layers integrate."""
        scheme = Scheme.of(self).check_increments(self.normalize_before)
        return scheme.check_flows((FFN, SELF_ATTENTION, *FLOWS), needed=(FFN, SELF_ATTENTION))

    def get_splitting(self) -> Splitting:
        return self.scheme().splitting


def check_cost(cost: Any) -> float:
    """
    Raises:
        ValueError: it is no `horizon_cost`.
    """
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0.0 <= cost < math.inf:
        raise ValueError(f"horizon_cost={cost!r} is no price of a step; it must be finite and at least 0")
    return float(cost)


def _activation(name: str) -> str:
    name = _SAME_ACTIVATION.get(name, name)
    check_activation(name)
    return name


__all__ = ["MacaronBertConfig"]
