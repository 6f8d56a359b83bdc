"""A translation model of fairseq as a folder of transformers."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from macaron.hf.folders import check_free, put
from macaron.hf.loading import listed
from macaron.portable import Portable
from macaron.seq2seq.configuration_macaron import MacaronConfig
from macaron.seq2seq.modeling_macaron import MacaronForConditionalGeneration
from macaron.seq2seq.tokenization_macaron import SOURCE_VOCAB, TARGET_VOCAB, MacaronTokenizer

CLOSE = 1e-5  # of the host's logits, relative to their size where that is above 1

# Options of fairseq whose models have parts that are not here; what they are when nothing is to be had of them.
_FOREIGN = {
    "adaptive_softmax_cutoff": None,
    "adaptive_input": False,
    "char_inputs": False,
    "cross_self_attention": False,
    "no_cross_attention": False,
    "base_layers": 0,
    "quant_noise_pq": 0,
    "quant_noise_scalar": 0,  # evaluates with rounded weights
}
_ACTIVATIONS = {"gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh"}
_SCHEME = (
    *("splitting", "solver", "depth_rule", "dt", "multistep_init"),
    *("stochastic_depth", "stochastic_depth_schedule", "stochastic_depth_form", "stochastic_depth_unit"),
)
_SHARED = ("dropout", "attention_dropout", "layernorm_embedding", "encoder_layerdrop", "decoder_layerdrop")
# fairseq's defaults; other values of these have no counterpart.
_SEARCH = {
    "sampling": False,
    "diverse_beam_groups": -1,
    "diversity_rate": -1.0,
    "match_source_len": False,
    "constraints": None,
    "prefix_size": 0,
}


class Converted(NamedTuple):
    """A converted model, which is in the folder, and what there is to say about it, a sentence each."""

    model: MacaronForConditionalGeneration
    notes: list[str]


def convert(found: Portable, folder: Path, *, force: bool = False) -> Converted:
    """Write it as a folder of model, tokenizer and generation settings, which the Auto classes load after
    `import macaron.seq2seq`.

    Before that, its logits are compared with the host's own on a batch of random sentences of several lengths.

    Args:
        found: see `macaron.user_dir.portable.describe`.
        folder: to be made; it is complete or not there.
        force: write into `folder` though there is something in it.

    Raises:
        FileExistsError: something is in `folder`.
        ValueError: parts that have no counterpart here, parameters that do not fit, or outputs that differ.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder stays one
    check_free(folder, force)
    notes: list[str] = []
    config = config_of(found)
    model = MacaronForConditionalGeneration(config).eval()
    _load(model, found)
    check_equal(model, found)
    model.generation_config = generation_config(found, config, notes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        complete = Path(scratch, "complete")
        model.save_pretrained(complete)
        tokenizer(found, Path(scratch), config).save_pretrained(complete)
        put(complete, folder)
    if found.text is None:
        notes.append(
            "a checkpoint does not say how text becomes pieces, so the tokenizer takes pieces separated by spaces; "
            "convert a released folder for raw text"
        )
    elif found.text.tokenizer == "none" and not found.generation:
        notes.append("words are split at spaces; if the model was trained on tokens of Moses, give it such")
    return Converted(model, notes)


def config_of(found: Portable) -> MacaronConfig:
    """The configuration of the same model.

    Raises:
        ValueError: an option for which there is nothing here.
    """
    given = found.options
    for name, plain in _FOREIGN.items():
        if given.get(name) not in (plain, None, False, 0):
            raise ValueError(
                f"{found.name}: was trained with --{name.replace('_', '-')} {given[name]}, for which there is no "
                f"counterpart in MacaronForConditionalGeneration; use it with fairseq"
            )
    tied = bool(given["share_decoder_input_output_embed"] or given["share_all_embeddings"])
    options: dict[str, Any] = {name: given[name] for name in (*_SCHEME, *_SHARED) if given.get(name) is not None}
    for side in ("encoder", "decoder"):
        learned = "learned" if given[f"{side}_learned_pos"] else "sinusoidal"
        options |= {
            f"{side}_layers": given[f"{side}_layers"],
            f"{side}_attention_heads": given[f"{side}_attention_heads"],
            f"{side}_ffn_dim": given[f"{side}_ffn_embed_dim"],
            f"{side}_first_ffn_dim": given[f"{side}_first_ffn_embed_dim"],
            f"{side}_normalize_before": given[f"{side}_normalize_before"],
            f"{side}_final_norm": f"{side}.layer_norm.weight" in found.tensors,  # old versions have none
            f"{side}_position_embedding_type": "none" if given["no_token_positional_embeddings"] else learned,
        }
    activation = str(given["activation_fn"])
    return MacaronConfig(
        **options,
        vocab_size=len(found.symbols[1]),
        source_vocab_size=len(found.symbols[0]),
        tie_word_embeddings=tied,
        share_encoder_decoder_embeddings=bool(given["share_all_embeddings"]),
        d_model=given["encoder_embed_dim"],
        decoder_d_model=given["decoder_embed_dim"],
        decoder_input_dim=found.tensors["decoder.embed_tokens.weight"].size(1),
        decoder_output_dim=found.tensors["decoder.output_projection.weight"].size(1),
        activation_function=_ACTIVATIONS.get(activation, activation),
        activation_dropout=given["activation_dropout"] or given.get("relu_dropout") or 0.0,
        scale_embedding=not given["no_scale_embedding"],
        position_offset=found.pad + 1,
        max_position_embeddings=found.longest[0],
        decoder_max_position_embeddings=found.longest[1],
        pad_token_id=found.pad,
    )


def renamed(found: Portable) -> dict[str, Tensor]:
    """The parameters by the names that they have here; learned positions begin at 0."""
    result = {}
    for name, tensor in found.tensors.items():
        side, _, rest = name.partition(".")
        if rest == "version" or rest.startswith("embed_positions._") or rest == "embed_positions.weights":
            continue  # buffers of fairseq
        if rest == "embed_positions.weight":
            tensor = tensor[found.pad + 1 :]
        outside = {"output_projection.weight": "lm_head.weight", "project_out_dim.weight": "project_out_dim.weight"}
        result[outside.get(rest, f"model.{name}") if side == "decoder" else f"model.{name}"] = tensor.clone()
    return result


def _load(model: MacaronForConditionalGeneration, found: Portable) -> None:
    tensors = renamed(found)
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"there is no place for {name}" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{found.name}: its parameters do not fit the model of its options: {listed(wrong)}")
    model.load_state_dict(tensors)
    model.tie_weights()


@torch.no_grad()
def check_equal(model: MacaronForConditionalGeneration, found: Portable) -> float:
    """The greatest difference between the logits of both, on a batch with padding.

    Raises:
        ValueError: it is more than rounding makes.
    """
    sizes = (len(found.symbols[0]), len(found.symbols[1]))
    length = min(11, *found.longest)
    draw = torch.Generator().manual_seed(1906)
    lengths = torch.tensor([length, max(1, length // 2), max(1, length // 3)])
    source = torch.randint(min(4, sizes[0] - 1), sizes[0], (3, length), generator=draw)
    real = torch.arange(length) < lengths[:, None]
    source = source.masked_fill(~real, found.pad)
    target = torch.randint(min(4, sizes[1] - 1), sizes[1], (3, length), generator=draw)
    target[:, 0] = 2  # </s>
    theirs = found.logits(source, target)
    ours = model(source, real.long(), decoder_input_ids=target, use_cache=False).logits.to(theirs)
    difference = float((ours - theirs).abs().max())
    if not difference <= CLOSE * max(1.0, float(theirs.abs().max())):
        raise ValueError(
            f"{found.name}: the converted model's logits differ from fairseq's by {difference:.3g}, so it is not "
            f"written; please report the options of the model"
        )
    return difference


def generation_config(found: Portable, config: MacaronConfig, notes: list[str]) -> GenerationConfig:
    """`generate()`'s settings for fairseq's: the same hypotheses, but for what `docs/howto/transformers.md` names."""
    given = dict(found.generation)
    a, b = float(given.pop("max_len_a", 0.0)), int(given.pop("max_len_b", 200))
    # </s> at the beginning and the end are counted here, and not in fairseq's numbers
    most = min(int(a * found.longest[0] + b), found.longest[1] - 1) + 2
    if a:
        notes.append(
            f"fairseq bounds a translation by {a:g} times the length of its source and {b}; generate() has one bound, "
            f"max_length={most}"
        )
    beam = int(given.pop("beam", 5))
    options: dict[str, Any] = {
        "num_beams": beam,
        "early_stopping": beam > 1,
        "length_penalty": float(given.pop("lenpen", 1.0)) if not given.pop("unnormalized", False) else 0.0,
        "max_length": most,
        "min_length": int(given.pop("min_len", 1)) + 1,
        "no_repeat_ngram_size": int(given.pop("no_repeat_ngram_size", 0)),
        "suppress_tokens": [found.pad],
    }
    if unkpen := float(given.pop("unkpen", 0.0)):
        options["sequence_bias"] = [[[3], -unkpen]]
    given.pop("nbest", None)
    left = {name: value for name, value in given.items() if _SEARCH.get(name, value) != value or name == "temperature"}
    if left:
        notes.append(f"of the recipe's search generate() has no counterpart to {', '.join(sorted(left))}")
    if beam == 1:
        del options["early_stopping"], options["length_penalty"]
    return GenerationConfig(
        **options,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_eos_token_id=config.eos_token_id,
    )


def tokenizer(found: Portable, scratch: Path, config: MacaronConfig) -> MacaronTokenizer:
    """With the model's dictionaries and sub-word model; `scratch` is a folder to write to."""
    files: dict[str, Any] = {}
    separate = found.symbols[0] != found.symbols[1]
    names = {"source_vocab_file": SOURCE_VOCAB, "target_vocab_file": TARGET_VOCAB}
    for (argument, name), symbols in zip(names.items(), found.symbols[: 1 + separate], strict=False):
        files[argument] = str(scratch / name)
        Path(files[argument]).write_text(json.dumps(symbols, ensure_ascii=False), encoding="utf-8")
    text: dict[str, Any] | None = None
    if found.text is not None:
        text = found.text.content()
        kind = {"subword_nmt": "codes_file", "sentencepiece": "sentencepiece_file"}[found.text.subword]
        files[kind] = str(found.subword)
    return MacaronTokenizer(**files, text=text, model_max_length=config.max_position_embeddings)


__all__ = ["Converted", "convert"]
