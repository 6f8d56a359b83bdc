"""The encoder of a folder or of the hub, its tokenizer, and a fresh head: loaded only where they belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from macaron.bert import AUTO_CLASSES  # importing it registers Macaron BERT with the Auto classes

from ..common.errors import RecipeError
from ..common.workspace import digest
from .data import first_line
from .tasks import BINARY, CLASSES, SCORE, Task

PROBLEM = {CLASSES: "single_label_classification", BINARY: "multi_label_classification", SCORE: "regression"}
PRETRAINING = ("ForMaskedLM", "ForPreTraining")  # of whose heads some classifiers, ModernBERT's, go on with a part
TEXTS = (".json", ".txt", ".codes")
BOM = b"\xef\xbb\xbf"
SHOWN = 5  # names of tensors in a message
SPARE = 0.1  # share of the embeddings that no piece uses, above which the tokenizer is another model's


class Loaded(NamedTuple):
    tokenizer: Any
    model: Any
    notes: list[str]


def load_model(source: str, task: Task, seed: int, *, dropout: bool = True) -> Loaded:
    """The encoder with a head for `task` that is fresh, whatever model the folder held; all from `seed`.

    Args:
        dropout: at the rates of its configuration; False: none anywhere.

    No code from `source` is run, and nobody is asked whether it should.

    Raises:
        RecipeError: `source` does not load, its weights are not whole, or its tokenizer is not its own.
    """
    problem = f"--model {source}: "
    check_files(source)
    outputs = dict(enumerate(task.outputs))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_config(problem, config)
        if not dropout:
            without_dropout(config)
        named = architecture(problem, config)
        for name, value in {
            "id2label": outputs,
            "label2id": {name: number for number, name in outputs.items()},
            "problem_type": PROBLEM[task.head],
            "glue": task.meaning(),
        }.items():
            setattr(config, name, value)
        with torch.device("meta"):
            wanted = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        weights, notes = encoder(problem, source, config, named, wanted)
        set_seed(seed)
        if named and named.__name__.endswith(PRETRAINING):
            model = type(wanted).from_pretrained(source, config=config, dtype=torch.float32)
        else:
            model = type(wanted).from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    except RecipeError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise kinds of their own
        if "trust_remote_code" in str(error):
            raise RecipeError(
                f"{problem}wants code of its own to be run (auto_map), and code from a model's folder is never run "
                f"here. Give a model whose model_type transformers or this package has classes for"
            ) from error
        if "weights only" in str(error).lower():  # torch's message says how to run it
            raise RecipeError(
                f"{problem}its weights hold more than tensors, perhaps code, and such a file is not read. Have its "
                f"owner save it as model.safetensors"
            ) from error
        raise RecipeError(
            f"{problem}AutoTokenizer and AutoModelForSequenceClassification cannot load it: {first_line(error)}. "
            f"Give a folder with config.json, weights and tokenizer of an encoder"
        ) from error
    notes += check_tokenizer(problem, source, tokenizer, model)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    left = sorted(name for name, rate in rates.items() if rate and not dropout)
    if left:
        raise RecipeError(f"{problem}its configuration has no rate for the dropout of {listed(left)}; it cannot be off")
    return Loaded(tokenizer, model, notes)


def check_files(source: str) -> None:
    folder = Path(source)
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in TEXTS and path.is_file():
            with path.open("rb") as file:
                if file.read(len(BOM)) == BOM:
                    raise RecipeError(
                        f"--model {source}: {path.name} begins with a byte order mark, which would count as text; "
                        f"save the file as UTF-8 without one"
                    )
    if (folder / "adapter_config.json").exists():
        raise RecipeError(
            f"--model {source}: holds an adapter beside the model; merge the two (merge_and_unload) and save the result"
        )


def check_config(problem: str, config: Any) -> None:
    kernel = getattr(config, "_attn_implementation", None)
    if "/" in str(kernel):
        raise RecipeError(f"{problem}config.json names code on the hub, attn_implementation {kernel!r}; take it out")


def without_dropout(config: Any) -> None:
    """Rates to 0: a number under a name that has "dropout" in it, as transformers' models and ours call them."""
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def architecture(problem: str, config: Any) -> type | None:
    """The class that the folder was saved from, if it is known here.

    Raises:
        RecipeError: it is of another kind than the configuration.
    """
    name = next(iter(config.architectures or []), None)
    known = {model.__name__: model for model in AUTO_CLASSES.values()}
    found = known.get(name) or (getattr(transformers, name, None) if isinstance(name, str) else None)
    kind = getattr(getattr(found, "config_class", None), "model_type", None)
    if kind and kind != config.model_type:
        raise RecipeError(
            f"{problem}config.json says model_type {config.model_type!r}, but its architecture {name} is of {kind!r}; "
            f"give the configuration that the weights were saved with"
        )
    return found if kind else None


def encoder(
    problem: str, source: str, config: Any, named: type | None, wanted: Any
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(the encoder's tensors that `source` holds, remarks). Only what no model like the saved one has may be absent.

    Args:
        named: the class that `source` was saved from, if it is known.
        wanted: the classifier that the tensors are for.
    """
    model, found = AutoModel.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    if found["mismatched_keys"]:
        name, there, wanted = min(found["mismatched_keys"])
        raise RecipeError(
            f"{problem}{len(found['mismatched_keys'])} tensors have other shapes than config.json says, {name} "
            f"{list(there)} instead of {list(wanted)}; give the configuration that the weights were saved with"
        )
    tensors = model.state_dict()
    missing = set(found["missing_keys"])
    required = {name for name in tensors if not name.startswith("pooler.")}
    if named:
        with torch.device("meta"):
            required = inner(named(config))
    poolers = {name for name in tensors if name.startswith("pooler.")}
    if missing & required or (missing & poolers and not poolers <= missing):
        lost = sorted(missing & required or missing & poolers)
        raise RecipeError(
            f"{problem}the weights lack {len(lost)} of {len(tensors)} tensors of the encoder: {listed(lost)}. They "
            f"would be random numbers; give a whole model"
        )
    fresh = sorted(missing & inner(wanted))
    notes = [f"the model has no {listed(fresh)}: random at first, as the classifier"] if fresh else []
    parts = {name for name, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    unused = sorted(n for n in found["unexpected_keys"] if n.removeprefix(prefix).partition(".")[0] in parts)
    if unused:
        notes.append(
            f"{len(unused)} tensors of the model are unused, config.json has no place for them: {listed(unused)}"
        )
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise RecipeError(
            f"{problem}{len(broken)} tensors are not finite: {listed(broken)}. Its training diverged, give another"
        )
    return {name: value for name, value in tensors.items() if name not in missing}, notes


def inner(model: Any) -> set[str]:
    """Names of the encoder's tensors in a model with a head, or in an encoder."""
    return set(getattr(model, model.base_model_prefix, model).state_dict())


def listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_tokenizer(problem: str, source: str, tokenizer: Any, model: Any) -> list[str]:
    """Remarks; RecipeError unless the two can have been trained together."""
    names = list(dict.fromkeys(tokenizer.vocab_files_names.values()))
    if Path(source).is_dir() and names and not has_vocabulary(source, tokenizer):
        raise RecipeError(
            f"{problem}has no tokenizer, no {' or '.join(names)}; put the one that the model was trained with there "
            f"(tokenizer.save_pretrained)"
        )
    rows = model.get_input_embeddings().num_embeddings
    pieces = max(tokenizer.get_vocab().values(), default=-1) + 1
    another = "the two do not belong together. Give the model with the tokenizer it was trained with"
    if pieces > rows:
        raise RecipeError(f"{problem}the tokenizer has {pieces} entries but the model {rows} embeddings; {another}")
    padded = rows in {-(-pieces // multiple) * multiple for multiple in (8, 64, 128)}
    if rows - pieces > SPARE * rows and not padded:
        raise RecipeError(
            f"{problem}the tokenizer has only {pieces} entries for the model's {rows} embeddings; {another}"
        )
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        ours, theirs = getattr(model.config, name, None), getattr(tokenizer, name, None)
        silent = name != "pad_token_id" and ours == getattr(type(model.config), name, None)  # nobody chose it
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs and not silent:
            raise RecipeError(
                f"{problem}{name} is {ours} in config.json and {theirs} in the tokenizer; {another}, or, if it is that "
                f"one, write {theirs} into config.json"
            )
    if tokenizer.pad_token_id is None:
        raise RecipeError(f"{problem}the tokenizer has no padding token, which batches need; {another}")
    segments = max(tokenizer("a", "b").get("token_type_ids", [0]))
    if segments >= (getattr(model.config, "type_vocab_size", None) or segments + 1):
        raise RecipeError(f"{problem}the tokenizer makes {segments + 1} segments but the model has fewer; {another}")
    return [f"{rows - pieces} of the model's {rows} embeddings have no piece in the tokenizer"] if rows > pieces else []


def has_vocabulary(source: str, tokenizer: Any) -> bool:
    """Whether the folder has the file of the whole tokenizer, or each of its parts."""
    names = dict(tokenizer.vocab_files_names)
    whole = names.pop("tokenizer_file", None)
    return any(
        parts and all(Path(source, name).is_file() for name in parts)
        for parts in ([whole] if whole else [], names.values())
    )


def tokenizer_digest(source: str) -> str | None:
    """Of the files in a folder that tokenisation depends on; None for a model of the hub."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    return digest_of(path for path in folder.iterdir() if path.is_file() and is_tokenizer_file(path.name))


def is_tokenizer_file(name: str) -> bool:
    return name.endswith((".model", ".codes")) or name.startswith(("tokenizer", "vocab", "merges", "special_tokens"))


def digest_of(paths: Iterable[Path]) -> str:
    names = "".join(f"{path.name}:{digest(path)}" for path in sorted(paths))
    return hashlib.sha256(names.encode()).hexdigest()[:16]
