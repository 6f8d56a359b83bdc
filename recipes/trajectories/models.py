"""The models of both hosts, each with what turns a line into particles and what its output layer reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from macaron.analysis import Trajectories, Trajectory, record

from ..common.errors import RecipeError


class LineError(RecipeError):
    """A line that the model cannot take; the message goes on after its number."""


class View(NamedTuple):
    """One sentence on its way through one row of layers.

    Fields:
        side: encoder or decoder.
        tokens: the piece of each particle.
        ids: their numbers.
        trajectory: of these N particles.
        readout: (N, C) → (N, V), or None where there is no output layer.
        word: what the number of an output is.
    """

    side: str
    tokens: list[str]
    ids: list[int]
    trajectory: Trajectory
    readout: Callable[[Tensor], Tensor] | None
    word: Callable[[int], str]


class Opened(Protocol):
    """A model that can be looked into."""

    kind: str  # in words
    model: nn.Module
    takes_targets: bool

    def views(self, line: str, target: str | None) -> list[View]:
        """One sentence, and of a translation model its translation.

        Raises:
            LineError: a sentence that is too long for the model, or empty for it.
            RecipeError: the model's layers are not simply in a row.
        """


def open_model(place: Path, data: Path | None, languages: dict[str, str], device: str) -> Opened:
    """The model of a released folder, of a folder of Macaron BERT, or of a checkpoint; without dropout.

    Raises:
        RecipeError: there is none, or it cannot be read, or it is of another kind.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(f"--device {device}: not usable here ({first_line(error)}); take cpu") from error
    if not place.exists():
        raise RecipeError(f"{place}: there is no such file or folder; models are not downloaded by name")
    is_bert = place.is_dir() and (place / "config.json").is_file()
    if (data or languages) and (is_bert or place.is_dir()):
        raise RecipeError(
            f"{place}: is a folder, which has its dictionaries or its tokenizer itself; leave out --data, "
            f"--source-lang and --target-lang, or give the checkpoint in it, FILE.pt"
        )
    try:
        if is_bert:
            return Bert(place, where)
        if place.is_dir():
            return Translation(*released(place), where)
        if data is None:
            raise RecipeError(
                f"{place}: a checkpoint holds no dictionaries; give the folder of those that it was trained with, the "
                f"one with dict.*.txt, as --data"
            )
        hub, language_model = checkpoint(place, data, languages)
        return (LanguageModel if language_model else Translation)(hub, where)
    except RecipeError:
        raise
    except ImportError as error:
        raise RecipeError(f"{place}: needs what is not installed ({error})") from error
    except Exception as error:  # fairseq, transformers, tokenizers and safetensors raise kinds of their own
        raise RecipeError(f"{place}: cannot be opened: {first_line(error)}") from error


def only(trajectories: Trajectories, name: str) -> Trajectory:
    """The one pass through the row of layers of that name.

    Raises:
        RecipeError: the results of its layers are not its states, and no rule across depth tells which are.
    """
    found = trajectories[name]
    if len([key for key in trajectories if key.startswith(name)]) > 1 or (
        not found.is_joined and bool(found.states.isfinite().all())  # what is no number equals nothing
    ):
        raise RecipeError(
            "it makes other states than its layers do, and no rule across depth tells which; give a model whose layers "
            "are in a row, or look at it by macaron.analysis.record"
        )
    return found


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__


def released(folder: Path) -> tuple[Any]:
    import macaron

    macaron.register_fairseq()
    from macaron.user_dir.hub import is_release

    if not is_release(folder, None):
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise RecipeError(
            f"{folder}: neither a released model (no text.json) nor a Macaron BERT (no config.json), it holds "
            f"{inside}; give such a folder, or a checkpoint FILE.pt with --data"
        )
    return (macaron.MacaronModel.from_pretrained(str(folder)),)


def checkpoint(path: Path, data: Path, languages: dict[str, str]) -> tuple[Any, bool]:
    """fairseq's hub interface on a checkpoint, and whether it is a language model."""
    import macaron

    macaron.register_fairseq()
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from macaron.user_dir.hub import open_checkpoints
    from macaron.user_dir.models import MacaronLanguageModel, MacaronModel

    from macaron.checkpoint import load

    state = load(path, mmap=True)
    cfg, args = state.get("cfg"), state.get("args")
    group = cfg.get("model") if isinstance(cfg, dict) else None
    name = group.get("_name") if isinstance(group, dict) else getattr(args, "arch", None)
    model = (MODEL_REGISTRY.get(name) or ARCH_MODEL_REGISTRY.get(name)) if isinstance(name, str) else None
    family = next((f for f in (MacaronModel, MacaronLanguageModel) if model and issubclass(model, f)), None)
    if family is None:
        raise RecipeError(
            f"{path}: its architecture is {name!r}, and there are no particle layers in it; give a checkpoint of a "
            f"macaron model (one of the original implementation goes through `macaron convert` first)"
        )
    hub = open_checkpoints(family, str(path.parent), path.name, str(data.resolve()), **languages)
    return hub, family is MacaronLanguageModel


# --- fairseq ------------------------------------------------------------------------------------------------------


class Fairseq:
    """What both kinds share: dictionaries, and a decoder with an output layer."""

    model: Any

    def __init__(self, hub: Any, device: torch.device) -> None:
        if len(hub.models) != 1:
            raise RecipeError(f"an ensemble of {len(hub.models)} models; give one checkpoint")
        self.hub, self.device = hub, device
        self.model = hub.models[0].eval().to(device)

    def pieces(self, line: str, dictionary: Any, tokenizer: Any, limit: int) -> tuple[list[str], list[int]]:
        """The pieces of a sentence with their numbers, without the end of the sentence."""
        words = tokenizer.encode(line) if tokenizer is not None else line
        text = self.hub.bpe.encode(words) if self.hub.bpe is not None else words
        ids = dictionary.encode_line(text, add_if_not_exist=False, append_eos=False).tolist()
        if not ids:
            raise LineError("has no piece; leave it out")
        if len(ids) >= limit:
            raise LineError(f"has {len(ids):,} pieces, and the model takes {limit - 1:,}; split or shorten it")
        return text.split(), ids

    def readout(self) -> Callable[[Tensor], Tensor] | None:
        """The final norm and the output layer; None with an adaptive softmax, which has no logits."""
        decoder = self.model.decoder
        if decoder.adaptive_softmax is not None:
            return None

        def read(x: Tensor) -> Tensor:
            for part in (decoder.layer_norm, decoder.project_out_dim):
                x = x if part is None else part(x)
            logits: Tensor = decoder.output_layer(x)
            return logits

        return read

    def batch(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.device)

    def shifted(self, dictionary: Any, tokens: list[str], ids: list[int]) -> tuple[list[str], list[int]]:
        """What a decoder reads when it writes these: the end of the sentence before stands at the beginning."""
        return [dictionary[dictionary.eos()], *tokens], [dictionary.eos(), *ids]


class Translation(Fairseq):
    """A translation model, of a released folder or a checkpoint."""

    kind = "translation model"
    takes_targets = True

    def views(self, line: str, target: str | None) -> list[View]:
        task, model = self.hub.task, self.model
        tokenizers = (
            getattr(self.hub.tokenizer, "source", self.hub.tokenizer),
            getattr(self.hub.tokenizer, "target", self.hub.tokenizer),
        )
        source = task.source_dictionary
        tokens, ids = self.pieces(line, source, tokenizers[0], model.max_positions()[0])
        tokens, ids = [*tokens, source[source.eos()]], [*ids, source.eos()]
        written = task.target_dictionary
        with torch.no_grad(), record(model) as trajectories:
            memory = model.encoder(self.batch(ids), torch.tensor([len(ids)], device=self.device))
            if target is not None:
                there = self.pieces(target, written, tokenizers[1], model.max_positions()[1])
                read = self.shifted(written, *there)
                model.decoder(self.batch(read[1]), memory)
        views = [View("encoder", tokens, ids, only(trajectories, "encoder.layers"), None, source.__getitem__)]
        if target is not None:
            decoder = only(trajectories, "decoder.layers")
            views.append(View("decoder", *read, decoder, self.readout(), written.__getitem__))
        return views


class LanguageModel(Fairseq):
    """A language model's checkpoint."""

    kind = "language model"
    takes_targets = False

    def views(self, line: str, target: str | None) -> list[View]:
        words = self.hub.task.source_dictionary
        limit = self.model.max_positions()
        read = self.shifted(words, *self.pieces(line, words, self.hub.tokenizer, limit))
        with torch.no_grad(), record(self.model) as trajectories:
            self.model(self.batch(read[1]))
        output = self.hub.task.target_dictionary
        return [View("decoder", *read, only(trajectories, "decoder.layers"), self.readout(), output.__getitem__)]


# --- Macaron BERT -------------------------------------------------------------------------------------------------


class Bert:
    """A folder of Macaron BERT, with its tokenizer."""

    kind = "Macaron BERT"
    takes_targets = False

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind, names = config["model_type"], config.get("architectures") or []
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
            raise RecipeError(
                f"{folder / 'config.json'}: is no configuration of a model ({type(error).__name__}); copy the folder "
                f"again"
            ) from error
        if kind != "macaron_bert":
            raise RecipeError(
                f"{folder}: its model_type is {kind!r}, and there are no particle layers in it; give a macaron_bert"
            )
        from transformers import AutoTokenizer
        from transformers.utils import logging

        from macaron.bert import MacaronBertForMaskedLM, MacaronBertForPreTraining, MacaronBertModel

        from ..glue.model import check_tokenizer

        logging.disable_progress_bar()
        with_head = {m.__name__: m for m in (MacaronBertForMaskedLM, MacaronBertForPreTraining)}
        family: Any = next((with_head[name] for name in names if name in with_head), MacaronBertModel)
        self.model: Any = family.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
        self.model.eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        check_tokenizer(f"{folder}: ", str(folder), self.tokenizer, self.model)
        self.device = device
        self.encoder: Any = getattr(self.model, "macaron_bert", self.model)

    def views(self, line: str, target: str | None) -> list[View]:
        ids = self.tokenizer(line, truncation=False, verbose=False)["input_ids"]
        limit = self.model.config.max_position_embeddings
        if len(ids) > limit:
            raise LineError(f"has {len(ids):,} pieces, and the model takes {limit:,}; split or shorten it")
        if len(ids) <= self.tokenizer.num_special_tokens_to_add():
            raise LineError("has no piece; leave it out")
        with torch.no_grad(), record(self.encoder) as trajectories:
            self.encoder(torch.tensor([ids], device=self.device))
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return [View("encoder", tokens, ids, only(trajectories, "layers"), self.readout(), self.word)]

    def word(self, number: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(number) or "")  # a row that no piece uses

    def readout(self) -> Callable[[Tensor], Tensor] | None:
        """The final norm and the masked-language-model head, if there is one."""
        head, norm = getattr(self.model, "mlm_head", None), self.encoder.final_norm
        if head is None:
            return None
        return lambda x: head(x if norm is None else norm(x))
