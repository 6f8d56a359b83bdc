"""A translation model of fairseq, taken apart for another host."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macaron.portable import Portable
from macaron.text import TextSettings

from . import hub, places, released
from .models.macaron import MacaronModel


def describe(place: Path, data: Path | None = None, codes: Path | None = None) -> Portable:
    """A released folder, or a checkpoint of a translation model: of ours or of the original.

    Args:
        place: the folder, or the file of the checkpoint.
        data: of a checkpoint: the folder of its dictionaries; None is that of the checkpoint.
        codes: of a checkpoint: subword-nmt's, by which words have been split.

    Raises:
        ValueError: another kind of model, a part that is missing or damaged, or what does not belong to a release.
    """
    with _by_options():
        return _describe(place, data, codes)


@contextmanager
def _by_options() -> Iterator[None]:
    """What is an argument of `from_pretrained` elsewhere is an option of the command here."""
    try:
        yield
    except ValueError as error:
        if "data_name_or_path" not in str(error):
            raise
        told = str(error).replace(", and its languages as source_lang and target_lang", "")
        raise ValueError(told.replace("data_name_or_path", "--data")) from error


def _describe(place: Path, data: Path | None, codes: Path | None) -> Portable:
    if place.is_dir() and released.is_described(place):
        if data is not None or codes is not None:
            raise ValueError(f"{place}: a released model has its dictionaries and codes; leave out --data, --bpe-codes")
        opened: Any = hub.open_release(MacaronModel, place)
        return _of(opened, str(place), opened.bpe.settings, opened.bpe.model, opened.generation)
    if not place.is_file():
        folder = places.model_folder(place)
        raise ValueError(
            f"{place}: is no released model, as there is no {released.DESCRIPTION} in it; {places.contents(folder)}. "
            f"Give a released folder, or the file of a checkpoint and --data, the folder with its dict.*.txt"
        )
    _check_kind(place)
    opened = hub.open_checkpoints(MacaronModel, place.parent, place.name, data or place.parent.resolve())
    text = None
    if codes is not None:
        if not codes.is_file():
            raise ValueError(f"--bpe-codes {codes}: there is no such file")
        source, target = opened.task.cfg.source_lang, opened.task.cfg.target_lang
        text = TextSettings(source=source, target=target, tokenizer="none")
    return _of(opened, str(place), text, codes, {})


def _check_kind(path: Path) -> None:
    """Before fairseq asks for the data of another task."""
    from macaron import checkpoint

    state = checkpoint.load(path, mmap=True)
    names = [str(name) for name in state["model"]]
    if not any(name.startswith("encoder.") for name in names):
        raise ValueError(
            f"{path}: is the checkpoint of a language model (arch {checkpoint.architecture(state)}), which has no "
            f"encoder; only translation models become a MacaronForConditionalGeneration"
            if any(name.startswith("decoder.") for name in names)
            else f"{path}: holds no encoder and decoder, so it is no translation model"
        )
    cfg = state.get("cfg")
    task = cfg.get("task") if isinstance(cfg, dict) else None
    name = task.get("_name") if isinstance(task, dict) else getattr(state.get("args"), "task", "translation")
    if name != "translation":
        raise ValueError(f"{path}: was trained for the task {name!r}; only 'translation' can be converted")


def _of(
    opened: Any, name: str, text: TextSettings | None, subword: Path | None, generation: dict[str, Any]
) -> Portable:
    (model,) = opened.models
    dictionaries = opened.task.source_dictionary, opened.task.target_dictionary
    special = [(one.bos(), one.pad(), one.eos(), one.unk()) for one in dictionaries]
    if special != [(0, 1, 2, 3)] * 2:
        raise ValueError(
            f"{name}: its dictionaries number <s>, <pad>, </s> and <unk> as {special}, and fairseq's own begin with "
            f"them; make them anew with fairseq-preprocess"
        )
    for one in dictionaries:
        if len(one) > one.nspecial and one[one.nspecial].startswith("\ufeff"):
            raise ValueError(
                f"{name}: a dictionary begins with a byte order mark, which would be a part of its first symbol; "
                f"save it as UTF-8 without one"
            )
    return Portable(
        name=name,
        options=vars(model.args),
        tensors=model.state_dict(),
        symbols=(list(dictionaries[0].symbols), list(dictionaries[1].symbols)),
        pad=dictionaries[0].pad(),
        longest=(model.encoder.max_source_positions, model.decoder.max_target_positions),
        text=text,
        subword=subword,
        generation=generation,
        logits=lambda source, target: _logits(model, source, target),
    )


@torch.no_grad()
def _logits(model: Any, source: Tensor, target: Tensor) -> Tensor:
    lengths = source.ne(model.encoder.padding_idx).sum(1)
    found: Tensor = model.eval()(source, lengths, target)[0]
    return found
