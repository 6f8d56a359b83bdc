"""The teacher: a published BERT of transformers, or a folder of Macaron BERT with splitting lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from macaron.bert.bracketing import check_lie
from macaron.bert.hub import load
from macaron.bert.published import check_vocabulary, convert_published
from macaron.hf.loading import listed, not_finite

from ..common.errors import RecipeError
from ..common.workspace import digest, read_json

READ = (".json", ".safetensors", ".bin", ".txt", ".model", ".codes")


class Teacher(NamedTuple):
    """A Macaron BERT with splitting lie, in evaluation, in float32, and its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def encoder(self) -> Any:
        return encoder_of(self.model)


def encoder_of(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


def fingerprint(folder: Path) -> str:
    """sha256 of all that is read of a model's folder, names included.

    Raises:
        RecipeError: it is no model's folder.
    """
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder here"
        raise RecipeError(
            f"--teacher {folder}: {what}; give the folder of a BERT. One of the hub becomes a folder by `macaron "
            f"convert NAME --output DIR`"
        )
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in READ:
            whole.update(f"{path.name} {digest(path)}\n".encode())
    return whole.hexdigest()


def is_ours(folder: Path) -> bool:
    return bool(read_json(folder / "config.json").get("model_type") == "macaron_bert")


def converted(folder: Path, out: Path) -> list[str]:
    """Make of a model of transformers a folder `out` of Macaron BERT; sentences about what is not in it.

    Raises:
        RecipeError: a model that has no counterpart, or damaged files.
    """
    try:
        return convert_published(folder, out, force=True).notes
    except (ValueError, OSError) as error:
        raise RecipeError(f"--teacher {folder}: {error}") from error


def read_teacher(folder: Path) -> Teacher:
    """
    Raises:
        RecipeError: a model whose layers are not read as Strang's, a damaged one, or a tokenizer that is missing or
            another's.
    """
    problem = f"--teacher {folder}:"
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model: Any = load(folder)
        check_lie(model.config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_vocabulary(tokenizer, folder)
    except Exception as error:  # safetensors, torch, tokenizers and transformers have kinds of their own
        raise RecipeError(f"{problem} {' '.join(str(error).split())[:500]}") from error
    finally:
        logging.set_verbosity(before)
    config = model.config
    if damaged := not_finite(model.state_dict()):
        raise RecipeError(f"{problem} it has NaN or infinities in {listed(damaged)}; copy or download it again")
    if config.normalize_before:
        raise RecipeError(
            f"{problem} its layers are pre-norm, and the fit of the start is written for post-norm ones, as BERT's "
            f"are; `macaron.bert.to_strang` reads its layers anew without text"
        )
    most = max(tokenizer.get_vocab().values(), default=-1)
    if most < 0 or most >= config.vocab_size:
        raise RecipeError(
            f"{problem} its tokenizer has ids up to {most}, but its embeddings have {config.vocab_size} rows; it is "
            f"of another model, so put the right one there"
        )
    lost = [name for name in ("cls_token", "sep_token", "pad_token") if getattr(tokenizer, f"{name}_id") is None]
    if lost:
        raise RecipeError(f"{problem} its tokenizer has no {', '.join(lost)}, which examples need")
    if tokenizer.pad_token_id != config.pad_token_id:
        raise RecipeError(
            f"{problem} its tokenizer pads with {tokenizer.pad_token_id}, its configuration with "
            f"{config.pad_token_id}; it is of another model, so put the right one there"
        )
    return Teacher(model.eval().to(torch.float32).requires_grad_(False), tokenizer)


def objective(config: Any) -> str:
    """Examples are pairs where the teacher tells segments apart or reads [SEP] between them, else packed text."""
    return "mlm" if config.type_vocab_size == 1 else "mlm+nsp"
