"""A folder for the hub that loads with `trust_remote_code=True` where this package is not installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from macaron.bert.auto import AUTO_CLASSES
from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import MacaronBertModel
from macaron.hf.export import Family

FAMILY = Family("Macaron BERT", MacaronBertConfig, MacaronBertModel, AUTO_CLASSES, ("tokenizer.json", "vocab.txt"))
load = FAMILY.load


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
    return FAMILY.export(model, out, tokenizer, force)


__all__ = ["export_for_hub"]
