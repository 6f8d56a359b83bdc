"""Folders that a conversion writes: complete or not there."""

import os
import shutil
from pathlib import Path

# What conversions and exports write beside config.json, some of them not every time.
_OPTIONAL = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "optimizer.pt",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "bpe.codes",
    "bpecodes",
    "*_vocab.json",
    "generation_config.json",
    "modules.json",
    "*sentence_transformers.json",
    "sentence_*_config.json",
    "*.onnx",
    "*.onnx.data",
    "model.pt2",
)


def check_free(folder: Path, force: bool) -> None:
    """Raise FileExistsError if it is a file, or if there is something in it and not `force`."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise FileExistsError(f"folder {folder} is not empty; name another one, or add --force to write into it")


def put(complete: Path, folder: Path) -> None:
    """Move what is in `complete` to `folder`, in one go unless there is something in it already.

    What an earlier conversion wrote there and this one did not goes away; it does not belong to this model.
    """
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(complete, folder)
        return
    names = {file.name for file in complete.iterdir()}
    for pattern in _OPTIONAL:
        for old in folder.glob(pattern):
            if old.name not in names and not old.is_dir():
                old.unlink()
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        os.replace(complete / name, folder / name)
