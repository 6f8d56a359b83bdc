"""Published encoders of transformers as Macaron BERT: with `splitting="lie"` they are the same function.

A `Family` says how one kind of model spells what ours spells: its configuration, and its modules by names. Rows of
several modules are packed into one, the table of positions begins at its first position, and two logits for pairs
become one. Everything else is copied, so that outputs, hidden states, losses and gradients are equal.

What differs, as it is Macaron BERT's own:

* Positions count real particles. A BERT counts padding too, so of a batch that is padded on the left ours is what the
  same sentences give it without padding. `position_ids`, where they are passed, begin at 0 in every family.
* What stands for a sentence is its first real particle, and outputs of the encoder at padding are 0. So a head's logits
  there are its bias alone, which enters the loss of questions, a softmax over the whole row.
* A token is real unless `attention_mask` says that it is not, whatever its id.
* In training, dropout is where `MacaronBertConfig` has it: on every velocity, and once before a classifier.
* The loss of questions is a mean over all of them, those with an answer outside the row included as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import (
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForNextSentencePrediction,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
    MacaronBertPreTrainedModel,
)
from macaron.hf.loading import listed

logger = logging.get_logger(__name__)

# Our modules, by theirs: several are packed, their rows one below the other; {n} counts layers.
Names = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Head:
    """A kind of model in a family.

    Fields:
        model: ours.
        names: modules beside the encoder, and those of the encoder that lie in their head.
        fields: our field → theirs, of the configuration; values: our field → its value. They go before the family's.
        left: modules of theirs, with the reason why they have no counterpart.
        refused: field of their configuration → (the value that is taken, why others are not).
    """

    model: type[MacaronBertPreTrainedModel]
    names: Names = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What one `model_type` of transformers calls what Macaron BERT has.

    Fields:
        stem: of its classes' names: "Bert" of BertForMaskedLM.
        encoder: modules of the encoder, under its prefix.
        heads: by the rest of the classes' names.
        fields, values, refused: as in `Head`.
        after_padding: positions begin behind `pad_token_id`.
    """

    stem: str
    encoder: Names
    heads: Mapping[str, Head]
    fields: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    after_padding: bool = False
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_TABLES = _same("embeddings.word_embeddings", "embeddings.position_embeddings")
_SEGMENTS = _same("embeddings.token_type_embeddings")
_EMBEDDING_NORM = {"embeddings.norm": "embeddings.LayerNorm"}
_FLOWS: Names = {
    "layers.{n}.flows.0.qkv_proj": tuple(f"encoder.layer.{{n}}.attention.self.{x}" for x in ("query", "key", "value")),
    "layers.{n}.flows.0.out_proj": "encoder.layer.{n}.attention.output.dense",
    "layers.{n}.flows.1.fc1": "encoder.layer.{n}.intermediate.dense",
    "layers.{n}.flows.1.fc2": "encoder.layer.{n}.output.dense",
}
_POST_NORMS = {
    "layers.{n}.norms.0": "encoder.layer.{n}.attention.output.LayerNorm",
    "layers.{n}.norms.1": "encoder.layer.{n}.output.LayerNorm",
}
_POOLER = _same("pooler.dense")
_CLASSIFIER = _same("classifier")
_QUESTIONS = Head(
    MacaronBertForQuestionAnswering,
    _same("qa_outputs"),
    refused={"num_labels": (2, "as an answer has a beginning and an end")},
)
_WORDS = {
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
    "mlm_head.decoder": "cls.predictions.decoder",
}
_PAIRS = {"nsp_head": "cls.seq_relationship"}

_BERT_HEADS = {
    "Model": Head(MacaronBertModel),
    "ForMaskedLM": Head(MacaronBertForMaskedLM, _WORDS),
    "ForPreTraining": Head(MacaronBertForPreTraining, {**_WORDS, **_PAIRS}),
    "ForNextSentencePrediction": Head(MacaronBertForNextSentencePrediction, _PAIRS),
    "ForSequenceClassification": Head(MacaronBertForSequenceClassification, _CLASSIFIER),
    "ForTokenClassification": Head(MacaronBertForTokenClassification, _CLASSIFIER),
    "ForQuestionAnswering": _QUESTIONS,
    "ForMultipleChoice": Head(MacaronBertForMultipleChoice, _CLASSIFIER),
}
# A linear layer and an activation on the first particle are a pooler, though they stand in the head.
_DENSE_AND_PROJECTION = {"macaron_bert.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"}
_ROBERTA_HEADS = {
    "Model": Head(MacaronBertModel),
    "ForMaskedLM": Head(
        MacaronBertForMaskedLM,
        {
            "mlm_head.dense": "lm_head.dense",
            "mlm_head.norm": "lm_head.layer_norm",
            "mlm_head.decoder": "lm_head.decoder",
        },
    ),
    "ForSequenceClassification": Head(MacaronBertForSequenceClassification, _DENSE_AND_PROJECTION),
    "ForTokenClassification": Head(MacaronBertForTokenClassification, _CLASSIFIER),
    "ForQuestionAnswering": _QUESTIONS,
    "ForMultipleChoice": Head(MacaronBertForMultipleChoice, _CLASSIFIER, values={"classifier_dropout": None}),
}

_ENDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_LABELS = ("problem_type", "id2label", "label2id")
_FIELDS = _same(
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    *_ENDS,
    *_LABELS,
)
_WITH_DROPOUT = {**_FIELDS, **_same("classifier_dropout")}
_POST = {"normalize_before": False}
_PRE = {"normalize_before": True}
_GELU = {"mlm_act": "gelu"}  # whatever hidden_act is

_POST_ENCODER: Names = {**_TABLES, **_SEGMENTS, **_EMBEDDING_NORM, **_FLOWS, **_POST_NORMS}
_BERT = Family("Bert", {**_POST_ENCODER, **_POOLER}, _BERT_HEADS, _WITH_DROPOUT, _POST)


def _roberta(stem: str) -> Family:
    return Family(stem, _BERT.encoder, _ROBERTA_HEADS, _WITH_DROPOUT, {**_POST, **_GELU}, after_padding=True)


def _pre_norm(attention: str, ffn: str, final: str) -> Names:
    """Pre-norm layers, by the names of their norms."""
    norms = {
        "layers.{n}.norms.0": f"encoder.layer.{{n}}.{attention}",
        "layers.{n}.norms.1": f"encoder.layer.{{n}}.{ffn}",
    }
    return {**_TABLES, **_SEGMENTS, **_FLOWS, **norms, "final_norm": final, **_POOLER}


_SUMMARY = "as the first particle, behind a linear layer, stands for a sentence in Macaron BERT"
_DISTILBERT_SENTENCES: dict[str, Any] = {
    "names": {"macaron_bert.pooler.dense": "pre_classifier", **_CLASSIFIER},
    "fields": {"classifier_dropout": "seq_classif_dropout"},
    "values": {"pooler_act": "relu"},
}

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "data2vec-text": _roberta("Data2VecText"),
    "ernie": Family(
        "Ernie",
        _BERT.encoder,
        _BERT_HEADS,
        _WITH_DROPOUT,
        _POST,
        refused={"use_task_id": (False, "as Macaron BERT embeds no tasks")},
    ),
    "distilbert": Family(
        "DistilBert",
        {
            **_TABLES,
            **_EMBEDDING_NORM,
            "layers.{n}.flows.0.qkv_proj": tuple(f"transformer.layer.{{n}}.attention.{x}_lin" for x in "qkv"),
            "layers.{n}.flows.0.out_proj": "transformer.layer.{n}.attention.out_lin",
            "layers.{n}.flows.1.fc1": "transformer.layer.{n}.ffn.lin1",
            "layers.{n}.flows.1.fc2": "transformer.layer.{n}.ffn.lin2",
            "layers.{n}.norms.0": "transformer.layer.{n}.sa_layer_norm",
            "layers.{n}.norms.1": "transformer.layer.{n}.output_layer_norm",
        },
        {
            "Model": Head(MacaronBertModel),
            "ForMaskedLM": Head(
                MacaronBertForMaskedLM,
                {
                    "mlm_head.dense": "vocab_transform",
                    "mlm_head.norm": "vocab_layer_norm",
                    "mlm_head.decoder": "vocab_projector",
                },
            ),
            "ForSequenceClassification": Head(MacaronBertForSequenceClassification, **_DISTILBERT_SENTENCES),
            "ForTokenClassification": Head(MacaronBertForTokenClassification, _CLASSIFIER),
            "ForQuestionAnswering": _QUESTIONS,
            "ForMultipleChoice": Head(MacaronBertForMultipleChoice, **_DISTILBERT_SENTENCES),
        },
        {
            "vocab_size": "vocab_size",
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            **_same("max_position_embeddings", "initializer_range", "tie_word_embeddings", *_ENDS, *_LABELS),
        },
        {**_POST, "layer_norm_eps": 1e-12, "type_vocab_size": 0},
    ),
    "electra": Family(
        "Electra",
        {**_POST_ENCODER, "embeddings.projection": "embeddings_project"},
        {
            "Model": Head(MacaronBertModel),
            "ForPreTraining": Head(
                MacaronBertModel,
                left={"discriminator_predictions": "the head that finds replaced words has no counterpart"},
            ),
            "ForMaskedLM": Head(
                MacaronBertForMaskedLM,
                {
                    "mlm_head.dense": "generator_predictions.dense",
                    "mlm_head.norm": "generator_predictions.LayerNorm",
                    "mlm_head.decoder": "generator_lm_head",
                },
            ),
            "ForSequenceClassification": Head(
                MacaronBertForSequenceClassification, _DENSE_AND_PROJECTION, values={"pooler_act": "gelu"}
            ),
            "ForTokenClassification": Head(MacaronBertForTokenClassification, _CLASSIFIER),
            "ForQuestionAnswering": _QUESTIONS,
            "ForMultipleChoice": Head(
                MacaronBertForMultipleChoice,
                {"macaron_bert.pooler.dense": "sequence_summary.summary", **_CLASSIFIER},
                {"pooler_act": "summary_activation", "classifier_dropout": "summary_last_dropout"},
                refused={"summary_type": ("first", _SUMMARY), "summary_use_proj": (True, _SUMMARY)},
            ),
        },
        {**_WITH_DROPOUT, **_same("embedding_size")},
        {**_POST, **_GELU},
    ),
    "roberta-prelayernorm": Family(
        "RobertaPreLayerNorm",
        {**_pre_norm("attention.LayerNorm", "intermediate.LayerNorm", "LayerNorm"), **_EMBEDDING_NORM},
        _ROBERTA_HEADS,
        _WITH_DROPOUT,
        {**_PRE, **_GELU, "embedding_norm": True},
        after_padding=True,
    ),
    "xlm-roberta-xl": Family(
        "XLMRobertaXL",
        _pre_norm("attention.self_attn_layer_norm", "LayerNorm", "encoder.LayerNorm"),
        _ROBERTA_HEADS,
        _WITH_DROPOUT,
        {**_PRE, **_GELU},
        after_padding=True,
    ),
    "megatron-bert": Family("MegatronBert", _pre_norm("attention.ln", "ln", "encoder.ln"), _BERT_HEADS, _FIELDS, _PRE),
}

# Names of activations in transformers that are ours, up to rounding, beside those that the configuration knows.
_ACTIVATIONS = {
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "": "linear",
}

# Encoders that look alike and are not.
_OTHERS = {
    "mpnet": "its attention adds a bias learned for each relative position, which Macaron BERT has not",
    "albert": "all its layers are one",
    "deberta": "its attention has relative positions",
    "deberta-v2": "its attention has relative positions",
    "modernbert": "its positions are rotary",
    "nomic_bert": "its positions are rotary",
    "roformer": "its positions are rotary",
    "xlnet": "its attention has relative positions",
    "t5": "its attention has relative positions",
    "macaron_bert": "it is one already",
}

# Parameters of theirs that are copies: the bias of the output projection.
_COPIES = ("cls.predictions.bias", "lm_head.bias")


def kinds() -> str:
    """What can be converted, in words."""
    return f"models of transformers of the types {', '.join(FAMILIES)}"


def from_transformers(model: PreTrainedModel) -> MacaronBertPreTrainedModel:
    """A Macaron BERT that computes what a BERT, or another encoder of transformers, computes.

    Its layers are attention and FFN, `splitting="lie"`; parameters are copies in their own types and on their own
    devices, so that the model given stays as it is. The head is the one of the same name. Of two logits for pairs
    of sentences, ours is their difference: positive where the second follows the first. Modules without a
    counterpart, such as ELECTRA's discriminator, are left out, and the log says so.

    Args:
        model: of a class of transformers for one of `FAMILIES`.

    Raises:
        ValueError: a model of another kind, or with a configuration or parameters that have no counterpart.
    """
    family, head = _kind_of(model)
    config = to_macaron_config(model.config, head, family)
    prefix = "" if type(model).__name__.endswith("Model") else f"{model.base_model_prefix}."
    tensors, left = to_macaron_names(model.state_dict(), model.config, head, family, prefix)
    table = tensors.get(f"{'' if head.model is MacaronBertModel else 'macaron_bert.'}embeddings.word_embeddings.weight")
    decoder = tensors.get("mlm_head.decoder.weight")
    if decoder is not None and table is not None and not decoder.is_meta and not torch.equal(decoder, table):
        config.tie_word_embeddings = False  # as in transformers: what a file has apart is not tied, whatever it says
    has_pooler = any(name.endswith("pooler.dense.weight") for name in tensors)
    # a head that needs none leaves it to later ones, which then begin with a new one, as in transformers
    keeps_none = head.model not in _POOLING and head.model is not MacaronBertModel
    config.use_pooler = has_pooler or (keeps_none and "pooler.dense" in family.encoder)
    with torch.device("meta"):
        made = head.model(config)
    _fill(made, tensors, left, head, type(model).__name__)
    made.config.architectures = [head.model.__name__]
    for module, reason in head.left.items():
        logger.warning(f"{type(model).__name__}: {module} is left out: {reason}")
    return made.train(model.training)


_POOLING = (
    MacaronBertForPreTraining,
    MacaronBertForNextSentencePrediction,
    MacaronBertForSequenceClassification,
    MacaronBertForMultipleChoice,
)


def find_family(model_type: str | None) -> Family:
    """The family of a `model_type`.

    Raises:
        ValueError: there is none, with the reason.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = _OTHERS.get(str(model_type), "Macaron BERT has no counterpart of it")
    raise ValueError(f"a model of type {model_type!r} does not become a Macaron BERT: {reason}; taken are {kinds()}")


def find_head(family: Family, class_name: str) -> Head:
    """The head of a class of the family.

    Raises:
        ValueError: none of its classes, or a decoder.
    """
    head = family.heads.get(class_name.removeprefix(family.stem)) if class_name.startswith(family.stem) else None
    if head is None:
        known = ", ".join(family.stem + rest for rest in family.heads)
        raise ValueError(f"{class_name} has no counterpart among the heads of Macaron BERT; taken are {known}")
    return head


def _kind_of(model: PreTrainedModel) -> tuple[Family, Head]:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"from_transformers takes a model of transformers, not a {type(model).__name__}")
    family = find_family(getattr(model.config, "model_type", None))
    if not type(model).__module__.startswith("transformers."):
        raise ValueError(
            f"{type(model).__name__} is a class of {type(model).__module__}, and what it computes stands there; pass "
            f"the model of transformers in it"
        )
    return family, find_head(family, type(model).__name__)


def to_macaron_config(theirs: PreTrainedConfig, head: Head, family: Family) -> MacaronBertConfig:
    """The configuration of our model; whether it has a pooler is left open.

    Raises:
        ValueError: a value that has no counterpart.
    """
    kind = theirs.model_type
    taken = {"is_decoder": (False, "a decoder"), "add_cross_attention": (False, "cross-attention")}
    for name, (value, what) in taken.items():
        if getattr(theirs, name, value) != value:
            raise ValueError(f"{kind}: {name}={getattr(theirs, name)} makes it {what}, and Macaron BERT is an encoder")
    absolute = getattr(theirs, "position_embedding_type", "absolute")  # a field of old configurations
    if absolute not in ("absolute", None):
        raise ValueError(
            f"{kind}: position_embedding_type={absolute!r} puts relative positions into the attention, which Macaron "
            f"BERT has not; taken is 'absolute'"
        )
    for name, (value, reason) in {**family.refused, **head.refused}.items():
        if getattr(theirs, name) != value:
            raise ValueError(
                f"{kind}: {name}={getattr(theirs, name)!r} has no counterpart, {reason}; taken is {value!r}"
            )
    fields = {ours: getattr(theirs, name) for ours, name in {**family.fields, **head.fields}.items()}
    fields |= {**family.values, **head.values, "splitting": "lie", "mlm_bias": True}
    for name in ("hidden_act", "pooler_act"):
        if name in fields:
            fields[name] = _ACTIVATIONS.get(fields[name], fields[name])
    fields["max_position_embeddings"] -= _first_position(theirs, family)
    try:
        return MacaronBertConfig(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"the configuration of this {kind} does not become one of Macaron BERT: {error}") from error


def _first_position(theirs: PreTrainedConfig, family: Family) -> int:
    """Row of the table of positions that belongs to a sentence's first token."""
    if not family.after_padding:
        return 0
    if theirs.pad_token_id is None:
        raise ValueError(f"{theirs.model_type}: pad_token_id is None, but its positions begin behind it; set it")
    return int(theirs.pad_token_id) + 1


def to_macaron_names(
    tensors: Mapping[str, Tensor], theirs: PreTrainedConfig, head: Head, family: Family, prefix: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters, or their like such as gradients, under our names and in our form, and the names that found none.

    Args:
        tensors: by their names; those of a packed module are there together.
        theirs: the configuration of their model.
        prefix: of the encoder in their names, "" or with a dot at its end.
    """
    own = "" if head.model is MacaronBertModel else "macaron_bert."
    layers = range(getattr(theirs, family.fields["num_hidden_layers"]))
    modules: dict[str, tuple[str, ...]] = {}
    for names, ours_prefix, theirs_prefix in ((family.encoder, own, prefix), (head.names, "", "")):
        for ours, found in names.items():
            parts = (found,) if isinstance(found, str) else found
            for n in layers if "{n}" in ours else (0,):
                modules[f"{ours_prefix}{ours}".format(n=n)] = tuple(f"{theirs_prefix}{p}".format(n=n) for p in parts)
    first = _first_position(theirs, family)
    result: dict[str, Tensor] = {}
    used = set()
    for ours, parts in modules.items():
        for kind in ("weight", "bias"):
            names_of = [f"{part}.{kind}" for part in parts]
            if not all(name in tensors for name in names_of):
                continue
            used.update(names_of)
            found_tensors = [tensors[name].detach() for name in names_of]
            tensor = found_tensors[0].clone() if len(found_tensors) == 1 else torch.cat(found_tensors)
            if ours.endswith("position_embeddings"):
                tensor = tensor[first:].clone()
            elif ours == "nsp_head":
                tensor = tensor[:1] - tensor[1:]
            result[f"{ours}.{kind}"] = tensor
    return result, [name for name in tensors if name not in used and name not in _COPIES]


def _fill(
    model: MacaronBertPreTrainedModel, tensors: dict[str, Tensor], left: Iterable[str], head: Head, source: str
) -> None:
    """Give each parameter its tensor, in the tensor's own type; strictly."""
    expected = {name: p.shape for name, p in model.state_dict().items()}
    lost = [name for name in expected if name not in tensors]
    over = [name for name in left if name.partition(".")[0] not in head.left]
    over += [name for name in tensors if name not in expected]
    if lost or over:
        wrong = [f"gives nothing for {listed(lost)}"] if lost else []
        wrong += [f"has {listed(over)}, for which there is no place"] if over else []
        raise ValueError(
            f"{source} {' and '.join(wrong)} in {type(model).__name__}; it is a variant that cannot be converted"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{source} gives {tuple(tensor.shape)} for {name}, but its configuration says {tuple(expected[name])}; "
                f"it is damaged or another variant"
            )
        if tensor.is_meta or not tensor.is_floating_point():
            raise ValueError(
                f"{source}: {name} is {'on the meta device' if tensor.is_meta else f'of type {tensor.dtype}'}; load it "
                f"with its parameters in floating point"
            )
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()


__all__ = ["FAMILIES", "Family", "Head", "from_transformers", "kinds"]
