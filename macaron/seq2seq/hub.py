"""A folder for the hub that loads with `trust_remote_code=True` where this package is not installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from macaron.hf.export import Family
from macaron.seq2seq.auto import AUTO_CLASSES
from macaron.seq2seq.configuration_macaron import MacaronConfig
from macaron.seq2seq.modeling_macaron import MacaronModel
from macaron.seq2seq.tokenization_macaron import SOURCE_VOCAB

FAMILY = Family("Macaron Net of encoder and decoder", MacaronConfig, MacaronModel, AUTO_CLASSES, (SOURCE_VOCAB,))


def export_for_hub(
    model: PreTrainedModel | str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    force: bool = False,
) -> Path:
    """Write a model, its code and its tokenizer into one folder.

    `AutoModelForSeq2SeqLM.from_pretrained(out, trust_remote_code=True)` and `AutoTokenizer` then work where this
    package is not installed: the model with nothing but transformers, the tokenizer with what its text settings ask
    for (sacremoses, regex, subword-nmt, sentencepiece). The code is that of this package, one file a module.

    Args:
        model: a Macaron Net of encoder and decoder, or a folder or hub name that `from_pretrained` takes.
        out: the folder to write; it appears when it is complete.
        tokenizer: the tokenizer to put beside it, or where to load one from; None takes the one beside `model`, if
            there is one.
        force: replace `out` if it exists.

    Returns:
        The folder.

    Raises:
        FileExistsError: `out` exists, and not `force`.
        ValueError: another kind of model, or one with a `depth_rule` or a solver that other code registers.
    """
    return FAMILY.export(model, out, tokenizer, force)


__all__ = ["export_for_hub"]
