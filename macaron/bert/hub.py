"""A folder for the hub that loads with `trust_remote_code=True` where this package is not installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from macaron.bert.auto import AUTO_CLASSES
from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import MacaronBertModel
from macaron.dynamics.rules import is_built_in_rule
from macaron.dynamics.solvers import is_built_in_solver
from macaron.hf.export import load_whole, reference, write_folder
from macaron.particles.flows import FLOWS


def export_for_hub(
    model: PreTrainedModel | str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    force: bool = False,
) -> Path:
    """Write a model, its code and its tokenizer into one folder.

    `AutoModel…from_pretrained(out, trust_remote_code=True)` then works for every head, with nothing but transformers
    installed. The code is that of this package, one file a module.

    Args:
        model: a Macaron BERT, or a folder or hub name that `from_pretrained` takes.
        out: the folder to write; it appears when it is complete.
        tokenizer: the tokenizer to put beside it, or where to load one from; None takes the one beside `model`, if
            there is one.
        force: replace `out` if it exists.

    Returns:
        The folder.

    Raises:
        FileExistsError: `out` exists, and not `force`.
        ValueError: another kind of model, or one with a `depth_rule` or a flow that other code registers.
    """
    out = Path(out)
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; choose another folder, or replace it with force (--force)")
    card = None
    if not isinstance(model, PreTrainedModel):
        card = Path(model, "README.md")
        if tokenizer is None and any(Path(model, name).exists() for name in ("tokenizer.json", "vocab.txt")):
            tokenizer = model
        model = load(model)
    if not isinstance(model.config, MacaronBertConfig):
        raise ValueError(f"{type(model).__name__} is no Macaron BERT, so its code is not in this package")
    for option, known in (("depth_rule", is_built_in_rule), ("solver", is_built_in_solver)):
        if not known(value := getattr(model.config, option)):
            raise ValueError(
                f"{option}={value!r} is of another module than this package's, which an export does not carry; choose "
                f"one of this package's"
            )
    if foreign := [flow for flow in model.config.get_splitting().flows if flow in FLOWS]:
        raise ValueError(
            f"splitting={model.config.splitting!r}: the flow {', '.join(foreign)} is of another module than this "
            f"package's, which an export does not carry; only ffn and attention are known where this package is not "
            f"installed"
        )
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    return write_folder(out, model, MacaronBertModel.__module__, auto_map(), tokenizer, card)


def load(source: str | os.PathLike[str], **options: str) -> PreTrainedModel:
    """A Macaron BERT by the class that it was saved with, whole.

    Args:
        options: of `load_whole`.

    Raises:
        ValueError: another kind of model, or not all of it.
    """
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, MacaronBertConfig):
        raise ValueError(f"{source} holds a model of type {config.model_type!r}, not {MacaronBertConfig.model_type!r}")
    heads = {model.__name__: model for model in AUTO_CLASSES.values()}
    name = (config.architectures or [MacaronBertModel.__name__])[0]
    if name not in heads:
        raise ValueError(f"{source} names the architecture {name!r}; this package has {', '.join(heads)}")
    return load_whole(heads[name], source, **options)


def auto_map() -> dict[str, str]:
    """Which Auto class finds which class in which file, as `config.json` says it."""
    entries = {"AutoConfig": MacaronBertConfig, **{a.__name__: model for a, model in AUTO_CLASSES.items()}}
    return {auto: reference(c) for auto, c in entries.items()}


__all__ = ["export_for_hub"]
