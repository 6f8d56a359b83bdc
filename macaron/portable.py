"""A translation model between the hosts: what is needed to build it anew, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from macaron.text import TextSettings


class Portable(NamedTuple):
    """What `macaron.user_dir.portable.describe` finds and `macaron.seq2seq.conversion.convert` takes.

    Fields:
        name: of the file or folder, for messages.
        options: of the model, by fairseq's names, all of them.
        tensors: its parameters, by ours, which begin with `encoder.` and `decoder.`.
        symbols: of the source's and the target's dictionary, in the order of their numbers.
        pad: the number of padding; the parameters of its positions begin behind it.
        longest: tokens of a source and of a target that it takes at most.
        text: how text becomes pieces; None: it comes in pieces.
        subword: the file of the sub-word model, where `text` is known.
        generation: options of the beam search, by fairseq's names.
        logits: (B, S) sources, padded on the right, and (B, T) targets so far → (B, T, V), by the host's own model.
    """

    name: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    symbols: tuple[list[str], list[str]]
    pad: int
    longest: tuple[int, int]
    text: TextSettings | None
    subword: Path | None
    generation: Mapping[str, Any]
    logits: Callable[[Tensor, Tensor], Tensor]
