"""A published encoder of transformers, from a folder or the hub, as a folder of Macaron BERT: see `foreign`."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from macaron import checkpoint
from macaron.bert.foreign import Family, Head, find_family, find_head, from_transformers, kinds, to_macaron_config
from macaron.bert.modeling_macaron_bert import MacaronBertPreTrainedModel
from macaron.hf.folders import check_free, put
from macaron.hf.loading import listed, not_finite

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")
_TEXT = ("*.json", "*.txt", "*.model", "*.codes")
_OTHER_FORMATS = ("onnx/*", "openvino/*", "coreml/*")
_BUFFERS = ("position_ids", "token_type_ids")  # in checkpoints of old versions
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_AGAIN = "copy or download it again"


class Published(NamedTuple):
    """A converted model, which is in the folder, and what there is to say about it, a sentence each."""

    model: MacaronBertPreTrainedModel
    notes: list[str]


def convert_published(
    source: str | Path, folder: str | Path, *, revision: str | None = None, force: bool = False
) -> Published:
    """Write a published encoder as a folder of Macaron BERT that the Auto classes load after `import macaron.bert`.

    With its head, its labels, its tokenizer, and what sentence-transformers keeps beside it. `config.json` says where
    it came from: `converted_from`. Weights are in safetensors or torch's files, whole or in shards; torch's are read
    by its safe loader. They keep their type; where a file has several, that which holds all of them. Code that lies
    in the folder is not run, so that a model which is computed by some is refused.

    Args:
        source: a folder, from which alone is read, or a name on the hub, which huggingface_hub fetches or has in its
            cache.
        folder: to be made; it is complete or not there.
        revision: of a name on the hub: a branch, a tag or a commit.
        force: write into `folder` though there is something in it.

    Raises:
        FileNotFoundError: no such folder or name, or a file is missing there.
        FileExistsError: something is in `folder`.
        ValueError: a model that has no counterpart here, or files that are damaged or do not fit each other.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder stays one
    if folder == Path(source).resolve():
        raise ValueError(f"{folder} is the model itself; name another folder")
    check_free(folder, force)
    origin: dict[str, Any] = {"name": Path(source).resolve().name}
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for names on the hub, and {source} is a folder; leave it out")
        here = Path(source)
    else:
        here = _fetch(str(source), revision)
        origin = {"name": str(source), "revision": here.name}
    theirs, notes = load_published(here)
    model = from_transformers(theirs)
    notes += [f"{module} is left out: {reason}" for module, reason in _head_of(theirs).left.items()]
    model.config.converted_from = {**origin, "architecture": type(theirs).__name__}
    tokenizer = _tokenizer(here, model, find_family(theirs.config.model_type), notes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as scratch:
        complete = Path(scratch, "complete")
        model.save_pretrained(complete)
        if tokenizer is not None:
            tokenizer.save_pretrained(complete)
        copy_sentence_transformers(here, complete, notes)
        put(complete, folder)
    return Published(model, notes)


def _fetch(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub in huggingface_hub's cache, named by its commit."""
    options: dict[str, Any] = {"revision": revision, "ignore_patterns": list(_OTHER_FORMATS)}
    try:
        here = Path(snapshot_download(name, allow_patterns=[*_TEXT, "*.safetensors", "?_*/*.bin"], **options))
        if not any((here / file).is_file() for file in _SAFE):
            here = Path(snapshot_download(name, allow_patterns=[*_TEXT, "*.bin"], **options))
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # OSError: nothing in the cache, no connection
        at = "" if revision is None else f" at revision {revision!r}"
        raise FileNotFoundError(
            f"{name!r} is no folder here, and there is no model of this name{at} on the hub or in its cache, or no "
            f"connection; check the name, or give a folder ({_first_line(error)})"
        ) from error
    return here


def _head_of(model: PreTrainedModel) -> Head:
    return find_head(find_family(model.config.model_type), type(model).__name__)


def load_published(here: Path) -> tuple[PreTrainedModel, list[str]]:
    """The model of transformers in a folder, whole, and sentences about what of the folder is not in it.

    Raises:
        FileNotFoundError, ValueError: as `convert_published`.
    """
    if (here / "adapter_config.json").is_file():
        raise ValueError(
            f"{here} has an adapter of PEFT, which changes the model that it was trained on; put it into that one by "
            f"PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(FOLDER) and give that folder"
        )
    stored = _read_json(here / "config.json")
    if not isinstance(stored, dict):
        raise ValueError(f"{here / 'config.json'} holds a {type(stored).__name__}, but a configuration is an object")
    _check_no_code(here / "config.json", stored)
    if stored.get("quantization_config") is not None:
        raise ValueError(
            f"{here / 'config.json'} has a quantization_config, so these are no weights in floating point; give the "
            f"model that was quantized"
        )
    family = find_family(stored.get("model_type"))
    names = stored.get("architectures") or [f"{family.stem}Model"]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ValueError(f"{here / 'config.json'}: architectures is {names!r}, but it lists names of classes")
    head = find_head(family, names[0])
    try:
        config = CONFIG_MAPPING[stored["model_type"]].from_dict(stored)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{here / 'config.json'} is no configuration of {names[0]}: {error}") from error
    to_macaron_config(config, head, family)  # says what has no counterpart, before the weights are read
    config.dtype = None  # that of the tensors counts
    dtype = _type_of(here, _check_weights(here))
    model, report = _load(here, names[0], config, dtype)
    pairs = f"{family.stem}ForPreTraining"
    if names[0].endswith("ForMaskedLM") and any("seq_relationship" in name for name in report["unexpected_keys"]):
        whole, full = _load(here, pairs, config, dtype)  # published by the name of one of its two heads
        if not full["missing_keys"]:
            model, report = whole, full
    missing = sorted(report["missing_keys"])
    if missing and names[0].endswith("Model") and all(name.startswith("pooler.") for name in missing):
        model.pooler, missing = None, []
    wrong = [f"lacks {listed(missing)}"] if missing else []
    if report["mismatched_keys"]:
        sizes = [f"{name} {tuple(there)} for {tuple(ours)}" for name, there, ours in report["mismatched_keys"]]
        wrong.append(f"has {listed(sizes)}")
    over = [name for name in report["unexpected_keys"] if not name.endswith(_BUFFERS)]
    deep = [name for name in over if _is_of_encoder(name, model, family)]
    if deep:
        wrong.append(f"has {listed(deep)}, which its configuration does not speak of")
    if lost := not_finite(dict(model.named_parameters())):
        wrong.append(f"has NaN or infinities in {listed(lost)}")
    if wrong:
        raise ValueError(f"{here} is not a whole {type(model).__name__}: it {', and '.join(wrong)}; {_AGAIN}")
    left = [f"{listed(over)} of the file is left out, as {type(model).__name__} has no place for it"] if over else []
    return model.eval(), left


def _is_of_encoder(name: str, model: PreTrainedModel, family: Family) -> bool:
    parts = [part for found in family.encoder.values() for part in ([found] if isinstance(found, str) else found)]
    tops = {part.partition(".")[0] for part in parts} - {"pooler"}
    return name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in tops


def _load(
    here: Path, name: str, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with _reading(here), _quiet():
        return getattr(transformers, name).from_pretrained(here, config=config, local_files_only=True, **options)


def _type_of(here: Path, files: list[Path]) -> torch.dtype:
    """The type that holds all tensors, where transformers would take that of the first.

    Raises:
        ValueError: files that cannot be read, or tensors that are no floating-point numbers.
    """
    types: dict[str, Any] = {}  # a name, where it is none of `_FLOATS`
    for file in files:
        with _reading(here):
            if file.suffix == ".bin":
                types |= {name: tensor.dtype for name, tensor in _torch_file(file).items()}
            else:
                with safe_open(file, "pt") as held:
                    kinds_of = {name: held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118
                types |= {name: _FLOATS.get(kind, kind) for name, kind in kinds_of.items()}
    found = {name: kind for name, kind in types.items() if not name.endswith(_BUFFERS)}
    if odd := [f"{name} ({kind})" for name, kind in found.items() if kind not in _FLOATS.values()]:
        raise ValueError(
            f"the weights in {here} are not all in floating point, but have {listed(odd)}; they are quantized, or of "
            f"another program: give the model that they were made from"
        )
    return functools.reduce(torch.promote_types, found.values()) if found else torch.float32


def _torch_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(checkpoint.describe_load_failure(file.name, error)) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file.name} holds other things than tensors by their names")
    return tensors


@contextmanager
def _reading(here: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors, torch and transformers each have their own kinds
        raise ValueError(f"the weights in {here} cannot be read: {_first_line(error)}; {_AGAIN}") from error


def _check_no_code(path: Path, settings: dict[str, Any]) -> None:
    if found := settings.get("auto_map"):
        raise ValueError(
            f"{path} has auto_map, so code beside it says what is computed ({found}), which is not run here; where the "
            f"classes of transformers compute the same, take auto_map out of it"
        )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report on a checkpoint, in whose place ours stands."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_weights(here: Path) -> list[Path]:
    """The files of the weights: every shard is there, and torch's have the checksums that torch does not look at."""
    found = [name for name in (*_SAFE, *_TORCH) if (here / name).is_file()]
    if not found:
        there = listed(path.name for path in here.iterdir())
        raise FileNotFoundError(
            f"{here} has no weights, in {_SAFE[0]} or {_TORCH[0]} or their shards (it has {there}); {_AGAIN}"
        )
    files = [here / found[0]]
    if found[0].endswith(".index.json"):
        index = _read_json(files[0])
        table = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise ValueError(f"{files[0]} is no index of shards, an object weight_map from names to files; {_AGAIN}")
        names = sorted(set(table.values()))
        outside = [name for name in names if name != Path(name).name or "\0" in name]
        if outside:
            raise ValueError(f"{files[0]} names {listed(outside)}, which is no file beside it; {_AGAIN}")
        lost = [name for name in names if not (here / name).is_file()]
        if lost:
            raise FileNotFoundError(f"{here} lacks {len(lost)} of {len(names)} shards: {listed(lost)}; {_AGAIN}")
        files = [here / name for name in names]
    for file in files:
        if file.suffix == ".bin":
            checkpoint.check_records(file)
    return files


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}, so it is no model's folder; taken are folders of {kinds()}"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {_AGAIN}") from error


def _tokenizer(here: Path, model: MacaronBertPreTrainedModel, family: Family, notes: list[str]) -> Any:
    """The tokenizer in the folder, if there is one, cut to what the model takes."""
    if not any(path.is_file() for pattern in _TOKENIZERS for path in here.glob(pattern)):
        notes.append("there is no tokenizer in it")
        return None
    if (here / "tokenizer_config.json").is_file():
        settings = _read_json(here / "tokenizer_config.json")
        if isinstance(settings, dict):
            _check_no_code(here / "tokenizer_config.json", settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(here, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any kind, as with weights
        raise ValueError(f"the tokenizer in {here} cannot be read: {_first_line(error)}; {_AGAIN}") from error
    check_vocabulary(tokenizer, here)
    config = model.config
    ids = tokenizer.get_vocab().values()
    if max(ids, default=0) >= config.vocab_size:
        raise ValueError(
            f"the tokenizer in {here} has ids up to {max(ids)}, but the embeddings have {config.vocab_size} rows; it "
            f"is of another model, so put the right one there, or take its files away"
        )
    pad = tokenizer.pad_token_id
    if family.after_padding and pad is not None and pad != config.pad_token_id:
        raise ValueError(
            f"the tokenizer in {here} pads with {pad}, but the positions of the model begin behind pad_token_id="
            f"{config.pad_token_id}; it is of another model, so put the right one there, or take its files away"
        )
    if len(ids) < config.vocab_size:
        notes.append(f"the embeddings have {config.vocab_size:,} rows, the tokenizer has {len(ids):,} tokens")
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    for name in ("cls", "sep", "mask"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return tokenizer


def check_vocabulary(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Refuse what transformers makes where the file of the words is missing or empty: special tokens alone.

    Raises:
        ValueError: it is of that kind.
    """
    words = [word for word in tokenizer.get_vocab() if not (word in _EMPTY or re.fullmatch(r"[\[<].+[\]>].*", word))]
    if not words:
        raise ValueError(
            f"the tokenizer in {folder} has no words but {listed(tokenizer.get_vocab())}: tokenizer.json, vocab.txt, "
            f"vocab.json or a SentencePiece model is missing, empty or of another kind; {_AGAIN}"
        )


_EMPTY = ("", "\u2581", "\u0120")  # the space of SentencePiece and of byte-level BPE


def _module_folders(modules: Any) -> list[str] | None:
    """Where sentence-transformers keeps what comes behind the encoder; None where other code would be needed."""
    if not isinstance(modules, list):
        return None
    folders = []
    for module in modules:
        path, kind = (module.get("path"), module.get("type")) if isinstance(module, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            return None
        if path and not re.fullmatch(r"\w[\w.-]*", path):  # the encoder itself has none
            return None
        folders += [path] if path else []
    return folders


def copy_sentence_transformers(here: Path, complete: Path, notes: list[str]) -> None:
    """What sentence-transformers does behind the encoder: pooling, projections, its settings."""
    if not (here / "modules.json").is_file():
        return
    folders = _module_folders(_read_json(here / "modules.json"))
    if folders is None or any(path.is_dir() for name in folders for path in (here / name).glob("*")):
        notes.append(
            "modules.json is left out, as not all in it are modules of sentence-transformers in folders beside it"
        )
        return
    files = [here / "modules.json", *here.glob("*sentence_transformers.json"), *here.glob("sentence_*_config.json")]
    for name in folders:
        (complete / name).mkdir(exist_ok=True)
        files += [path for path in (here / name).glob("*") if path.suffix in (".json", ".safetensors", ".bin")]
    for file in files:
        shutil.copyfile(file, complete / file.relative_to(here))


__all__ = ["Published", "convert_published", "load_published"]
