"""BERT and classifier checkpoints of the original Macaron Net (Lu et al. 2019), as folders of Hugging Face.

| original                        | here                                                                  |
|---------------------------------|-----------------------------------------------------------------------|
| encoder.embed_tokens            | macaron_bert.embeddings.word_embeddings                               |
| encoder.embed_positions         | macaron_bert.embeddings.position_embeddings, without its first 2 rows |
| encoder.embed_segment           | macaron_bert.embeddings.token_type_embeddings, rows swapped           |
| encoder.layers                  | macaron_bert.layers, see `macaron.names`                       |
| encoder.layer_norm              | macaron_bert.final_norm                                               |
| mid_layer.0, mid_layer.2        | mlm_head.dense, mlm_head.norm                                         |
| embed_out                       | the word embeddings, or mlm_head.decoder.weight if it is no copy      |
| classifier of a pre-trained one | nsp_head                                                              |
| classifier of a classifier      | classifier                                                            |

Losses. The original sums over a batch of B sentences with N predicted positions and divides the gradient by N (by B
in classifiers); the heads here return means. So

    pre-training     mlm + nsp · N / B = N · loss             labels: target, with -100 instead of <pad>
    classifiers      original's sum    = B · loss             one logit with a sigmoid: problem_type
                                                              "multi_label_classification" with one label
    regression       trains on (score − 3) / 2, so the score is 2 · logit + 3
"""

import os
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from macaron import checkpoint
from macaron.bert import MacaronBertConfig, MacaronBertForPreTraining, MacaronBertForSequenceClassification
from macaron.bert.modeling_macaron_bert import MacaronBertPreTrainedModel
from macaron.checkpoint import CheckpointError
from macaron.hf.folders import check_free, put
from macaron.legacy.adam import BUFFERS, read_adam
from macaron.legacy.bert_tokenizer import SPECIAL_SYMBOLS, build_tokenizer, read_dictionary
from macaron.names import is_foreign, to_particle_names

_PAD = SPECIAL_SYMBOLS.index("<pad>")
_ROLES = {"pad": "<pad>", "sep": "</s>", "mask": "<mask>", "cls": "<cls>"}
_OPTIMIZER = "optimizer.pt"
_FIRST_POSITION = _PAD + 1  # rows before it are of padding

# What the original's plain architectures, and those with a size in their name, take for an option that is not stored.
_PLAIN = {
    "encoder_attention_heads": 8,
    "encoder_normalize_before": False,
    "attention_dropout": 0.0,
    "relu_dropout": 0.0,
    "dropout": 0.1,
    "act_fn": "relu",
}
_SIZED = {
    **_PLAIN,
    "encoder_attention_heads": 12,
    "encoder_normalize_before": True,
    "attention_dropout": 0.1,
    "act_fn": "gelu",
}
_ACTIVATIONS = ("relu", "gelu")
_PROBLEM_OF_CRITERION = {
    "cross_entropy_classify": "single_label_classification",
    "cross_entropy_classify_binary": "multi_label_classification",
    "mean_squared_error": "regression",
}


class Converted(NamedTuple):
    """A converted model, and Adam's state for its parameters where the file has one that fits."""

    model: MacaronBertPreTrainedModel
    optimizer: dict[str, Any] | None


def convert(state: Mapping[str, Any]) -> Converted:
    """The model of a checkpoint of the original, in float32: for pre-training, or for classification.

    Args:
        state: the loaded file: `args`, `model`, `last_optimizer_state`, …

    Raises:
        CheckpointError: not a BERT model or classifier of the original, or one with parameters or options that have
            no counterpart here.
    """
    tensors: Mapping[str, Tensor] = state["model"]
    _check_kind(tensors)
    checkpoint.check_finite(tensors)
    config = _read_config(state)
    model_class = MacaronBertForPreTraining if _is_pretrained(tensors) else MacaronBertForSequenceClassification
    model = model_class(config)
    model.config.architectures = [model_class.__name__]
    converted = to_hub_names(tensors, tied=config.tie_word_embeddings)
    _load(model, {name: tensor.float() for name, tensor in converted.items()})
    return Converted(model.eval(), _convert_adam(state, model))


def to_hub_names(tensors: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Rename and repack the state dict of a BERT or classifier, or its like, such as Adam's first moments.

    Args:
        tensors: name → tensor, with the names of the original.
        tied: whether `embed_out` is the matrix of word embeddings.
    """
    pretrained = _is_pretrained(tensors)
    result: dict[str, Tensor] = {}
    for name, tensor in to_particle_names(tensors).items():
        if name.endswith(BUFFERS):
            continue
        if name == "encoder.embed_segment.weight":
            tensor = tensor.flip(0)
        elif name == "encoder.embed_positions.weight":
            tensor = tensor[_FIRST_POSITION:]
        result[_rename(name, pretrained=pretrained, tied=tied)] = tensor
    return result


_STEMS = {
    "encoder.embed_tokens": "macaron_bert.embeddings.word_embeddings",
    "encoder.embed_positions": "macaron_bert.embeddings.position_embeddings",
    "encoder.embed_segment": "macaron_bert.embeddings.token_type_embeddings",
    "encoder.layer_norm": "macaron_bert.final_norm",
    "mid_layer.0": "mlm_head.dense",
    "mid_layer.2": "mlm_head.norm",
}


def _rename(name: str, *, pretrained: bool, tied: bool) -> str:
    stem, _, kind = name.rpartition(".")
    if name == "embed_out":
        return f"{_STEMS['encoder.embed_tokens']}.weight" if tied else "mlm_head.decoder.weight"
    if stem == "classifier" and pretrained:
        return f"nsp_head.{kind}"
    if stem in _STEMS:
        return f"{_STEMS[stem]}.{kind}"
    return re.sub(r"^encoder\.layers\.", "macaron_bert.layers.", name)


def _is_pretrained(tensors: Iterable[str]) -> bool:
    return any(name.startswith("mid_layer.") for name in tensors)


def _check_kind(tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError("the checkpoint's entry 'model' is no table of tensors; the file is damaged")
    parts = sorted({name.split(".")[0] for name in tensors})
    if any(name.startswith("decoder.") for name in tensors):
        remedy = "a translation model becomes a checkpoint for fairseq (`macaron convert`)"
    elif not is_foreign(tensors):
        remedy = "a model of this project or of another one needs no conversion from it"
    elif not {"encoder", "classifier"} <= set(parts):
        remedy = "expected the parts classifier and encoder, and embed_out and mid_layer after pre-training"
    else:
        return
    raise CheckpointError(
        f"not a BERT model or classifier of the original implementation: its model has the parts {', '.join(parts)}; "
        f"{remedy}"
    )


def _read_config(state: Mapping[str, Any]) -> MacaronBertConfig:
    """Sizes come from the tensors, which cannot be wrong, the rest from the stored options."""
    tensors: Mapping[str, Tensor] = state["model"]
    args = state.get("args")
    if not isinstance(args, Namespace):
        raise CheckpointError(
            f"the checkpoint's entry 'args' is {args!r}, but the number of heads, the activation and the place of the "
            f"norms stand nowhere else; use a file that the original's own training wrote"
        )
    arch = str(getattr(args, "arch", ""))
    stored = {**(_PLAIN if arch in ("transformer_bert", "transformer_classifier") else _SIZED), **vars(args)}
    activation = stored["act_fn"]
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"act_fn={activation!r} is unknown; the original has {', '.join(_ACTIVATIONS)}")
    try:
        vocab_size, hidden_size = tensors["encoder.embed_tokens.weight"].shape
        intermediate_size = tensors["encoder.layers.0.fc1.weight"].size(0)
    except KeyError as error:
        raise CheckpointError(f"parameter {error.args[0]} is missing; the checkpoint is incomplete") from error
    except ValueError as error:
        raise CheckpointError("encoder.embed_tokens.weight is no matrix; the checkpoint is damaged") from error
    first = tensors.get("encoder.layers.0.macaron_fc1.weight")
    layers = {int(m[1]) for name in tensors if (m := re.match(r"encoder\.layers\.(\d+)\.", name))}
    _check_whole(tensors, vars(args), max(layers) + 1)
    pretrained = _is_pretrained(tensors)
    version = tensors.get("encoder.version")
    learned = tensors.get("encoder.embed_positions.weight")
    max_positions = stored.get("max_positions") or (384 if pretrained else 256)
    if learned is not None:
        max_positions = learned.size(0) - _FIRST_POSITION
        positions = "learned"
    else:
        positions = "none" if stored.get("no_token_positional_embeddings") else "sinusoidal"
    segments = "encoder.embed_segment.weight" in tensors
    fields = dict(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=stored["encoder_attention_heads"],
        splitting="lie" if first is None else "strang",
        intermediate_size=intermediate_size,
        first_intermediate_size=None if first is None else first.size(0),
        hidden_act=activation,
        first_hidden_act=None if first is None else "relu",
        normalize_before=bool(stored["encoder_normalize_before"]),
        final_norm=bool(stored["encoder_normalize_before"]) and version is not None and version.item() >= 2,
        norm_affine=any(".layer_norms." in name for name in tensors),
        layer_norm_eps=1e-5,
        position_embedding_type=positions,
        position_offset=_FIRST_POSITION if positions == "sinusoidal" else 0,
        max_position_embeddings=max_positions,
        scale_embeddings=True,
        embedding_norm=False,
        type_vocab_size=2 if segments else 0,
        segment_padding_idx=0 if segments else None,
        hidden_dropout_prob=stored["dropout"],
        attention_probs_dropout_prob=stored["attention_dropout"],
        activation_dropout=stored["relu_dropout"],
        classifier_dropout=0.0,
        mlm_bias=False,
        use_pooler=False,
        tie_word_embeddings=_is_tied(tensors),
        **{f"{name}_token_id": SPECIAL_SYMBOLS.index(symbol) for name, symbol in _ROLES.items()},
        **({} if pretrained else _head_options(tensors, stored)),
    )
    try:
        return MacaronBertConfig(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"options of the checkpoint do not fit: {error}") from error


def _check_whole(tensors: Mapping[str, Tensor], stored: Mapping[str, Any], layers: int) -> None:
    """What the stored options speak of is there: sizes and kinds are read from the tensors, so none may be lost."""
    if stored.get("encoder_layers", layers) != layers:
        raise CheckpointError(
            f"the checkpoint has parameters of {layers} layers, but its option encoder_layers is "
            f"{stored['encoder_layers']!r}; it is incomplete, or of another model"
        )
    places = not stored.get("no_token_positional_embeddings")
    expected = {
        "encoder.layers.0.macaron_fc1.weight": ("macaron", stored.get("macaron")),
        "encoder.embed_positions.weight": ("encoder_learned_pos", stored.get("encoder_learned_pos") and places),
        "encoder.layers.0.layer_norms.0.weight": ("no_normalize_affine", stored.get("no_normalize_affine") is False),
        "embed_out": ("share_all_embeddings", _is_pretrained(tensors) and stored.get("share_all_embeddings") is False),
    }
    for name, (option, wanted) in expected.items():
        if wanted and name not in tensors:
            raise CheckpointError(
                f"parameter {name} is missing, though the option {option} is {stored[option]!r}; the checkpoint is "
                f"incomplete"
            )


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    return "embed_out" not in tensors or torch.equal(tensors["embed_out"], tensors["encoder.embed_tokens.weight"])


def _head_options(tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> dict[str, Any]:
    if "classifier.weight" not in tensors:
        raise CheckpointError("parameter classifier.weight is missing; the checkpoint is incomplete")
    n_classes = tensors["classifier.weight"].size(0)
    criterion = stored.get("criterion")
    problem = _PROBLEM_OF_CRITERION.get(str(criterion))
    if problem is None:
        raise CheckpointError(
            f"criterion={criterion!r} says not what the classifier's {n_classes} outputs mean; the original's "
            f"classifiers have one of {', '.join(_PROBLEM_OF_CRITERION)}"
        )
    return {"num_labels": n_classes, "problem_type": problem}


def _load(model: MacaronBertPreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Strictly: every parameter has its tensor, and every tensor its parameter."""
    expected = {name: p.shape for name, p in model.named_parameters()}
    unknown = [_original_name(name) for name in tensors if name not in expected]
    missing = [name for name in expected if name not in tensors]
    if unknown or missing:
        wrong = [f"has no counterpart for {', '.join(unknown)}"] if unknown else []
        wrong += [f"finds nothing for {', '.join(missing)}"] if missing else []
        raise CheckpointError(
            f"{type(model).__name__} with the checkpoint's options {' and '.join(wrong)}; this model is a variant "
            f"that cannot be converted"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"parameter {_original_name(name)} gives {tuple(tensors[name].shape)} for {name}, but the other "
                f"sizes of the checkpoint imply {tuple(shape)}; the checkpoint is damaged or of another variant"
            )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _original_name(name: str) -> str:
    return re.sub(r"^macaron_bert\.layers\.", "encoder.layers.", name)


def _convert_adam(state: Mapping[str, Any], model: MacaronBertPreTrainedModel) -> dict[str, Any] | None:
    """Adam's state as that of `torch.optim.AdamW(model.parameters())`.

    The original adds eps to √v before the bias correction, torch after it:

        lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)  =  lr / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε / √(1 − β₂ᵗ))

    so torch's step t is the original's if its `eps` is set to ε / √(1 − β₂ᵗ) before it, and is so for large t anyway.
    """
    stored = state.get("last_optimizer_state")
    if not isinstance(stored, Mapping) or not stored.get("state"):
        return None
    read = read_adam(stored, state["model"])
    if read is None:
        return None
    tied = model.config.tie_word_embeddings
    moments = {m: to_hub_names(tensors, tied=tied) for m, tensors in read.moments.items()}
    names = [name for name, _ in model.named_parameters()]
    group = stored["param_groups"][0]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=group["lr"],
        betas=tuple(group["betas"]),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
    ).state_dict()
    optimizer["state"] = {
        i: {"step": torch.tensor(float(read.step)), **{m: moments[m][name].float() for m in moments}}
        for i, name in enumerate(names)
    }
    return optimizer


def convert_file(
    path: str | Path,
    dictionary: str | Path,
    folder: str | Path,
    *,
    codes: str | Path | None = None,
    force: bool = False,
    state: Mapping[str, Any] | None = None,
) -> MacaronBertPreTrainedModel:
    """Convert a checkpoint file and its dictionary into a folder that the Auto classes load.

    The folder gets `config.json`, `model.safetensors`, the tokenizer's files and, where the checkpoint has the state
    of Adam, `optimizer.pt`, the state of `torch.optim.AdamW(model.parameters())`.

    Args:
        path: the original's checkpoint.
        dictionary: its `dict.txt`.
        folder: to be made; it is complete or not there.
        codes: subword-nmt's BPE codes, so that the tokenizer splits words itself; without them it takes split text.
        force: write into `folder` though there is something in it.
        state: what is in the checkpoint, where it has been read already.

    Raises:
        FileNotFoundError: no such checkpoint, dictionary or codes.
        FileExistsError: something is in `folder`.
        CheckpointError: a file that is damaged, of another kind, or does not fit the other.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder stays one
    check_free(folder, force)
    symbols = read_dictionary(dictionary)
    if codes is not None and not Path(codes).is_file():
        raise FileNotFoundError(f"BPE codes {codes} do not exist; check the path")
    try:
        model, optimizer = convert(checkpoint.load(path) if state is None else state)
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error
    if len(symbols) != model.config.vocab_size:
        raise CheckpointError(
            f"{dictionary} has {len(symbols)} symbols with the {len(SPECIAL_SYMBOLS)} special ones, but the embeddings "
            f"in {path} have {model.config.vocab_size} rows; give the dict.txt that the model was trained with"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        complete = Path(scratch, "complete")
        model.save_pretrained(complete)
        config = model.config
        segments = config.type_vocab_size > 0
        build_tokenizer(symbols, config.max_position_embeddings, segments=segments, codes=codes).save_pretrained(
            complete
        )
        if optimizer is not None:
            torch.save(optimizer, complete / _OPTIMIZER)
        put(complete, folder)
    return model
