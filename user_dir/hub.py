"""A model in a script: from a folder of checkpoints as fairseq has it, or from a released one, raw text in and out."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils, hub_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks.language_modeling import LanguageModelingTask
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import LongTensor

from macaron.checkpoint import CheckpointError
from macaron.checkpoint import load as load_raw
from macaron.decoding import PRECISIONS
from macaron.text import RELEASED_NAMES, Pieces, Words, is_blank

from . import decoding, generation, places, released
from .released import DESCRIPTION  # a name of this module from before there was that one

__all__ = ["DESCRIPTION", "HubModel", "ReleasedModel", "is_release", "open_checkpoints", "open_release"]

logger = logging.getLogger(__name__)

BATCH_TOKENS = 4096  # of a released model's batches; one sentence alone may always be as long as the model takes


class HubModel(hub_utils.GeneratorHubInterface):
    """fairseq's hub interface, with inputs and options that are checked before anything is computed."""

    def __init__(self, cfg: DictConfig, task: Any, models: list[Any]):
        super().__init__(cfg, task, models)
        limit = self.max_positions[0] if isinstance(self.max_positions, tuple) else self.max_positions
        self.longest = limit or float("inf")
        if cfg.dataset.max_tokens is not None and limit:
            # that of the training's machine, or less than one sentence
            cfg.dataset.max_tokens = max(cfg.dataset.max_tokens, limit)

    def translate(
        self,
        sentences: str | Iterable[str],
        beam: int = 5,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Sentences of the source language → sentences of the target language.

        Args:
            sentences: one, or any number of them.
            beam, kwargs: fairseq's options of generation (`lenpen`, `max_len_b`, `sampling`, …), and `seed` for it.
            skip_invalid_size_inputs: leave the translation of a sentence that is too long empty.

        Returns:
            One sentence for one, a list for many. A sentence without anything to be seen stays empty.

        Raises:
            TypeError: what is no text.
            ValueError: a sentence that is too long, or an option that does not exist or makes no sense.
        """
        if isinstance(sentences, str):
            return self.translate([sentences], beam, verbose, skip_invalid_size_inputs, **kwargs)[0]
        texts = _texts(sentences)
        self._check_options(beam, kwargs)
        none = torch.empty(0, dtype=torch.long)
        encoded = [none if is_blank(text) else self.encode(text) for text in texts]
        fitting = self._fitting(encoded, skip_invalid_size_inputs)
        wanted = [index for index in fitting if encoded[index].numel() > 1]  # more than the end of a sentence
        found = self.generate([encoded[index] for index in wanted], beam, verbose, **kwargs)
        result = [""] * len(texts)
        for index, hypotheses in zip(wanted, found, strict=True):
            result[index] = self.decode(hypotheses[0]["tokens"])
        return result

    def sample(self, sentences: str | Iterable[str], beam: int = 1, verbose: bool = False, **kwargs: Any) -> Any:
        """As fairseq's: what the model makes of each sentence, of an empty one too; "" for one that is skipped."""
        if isinstance(sentences, str):
            return self.sample([sentences], beam, verbose, **kwargs)[0]
        found = self.generate([self.encode(text) for text in _texts(sentences)], beam, verbose, **kwargs)
        return [self.decode(hypotheses[0]["tokens"]) if hypotheses else "" for hypotheses in found]

    def score(self, sentences: str | Iterable[str], *args: Any, **kwargs: Any) -> Any:
        """As fairseq's: the model's score of each sentence."""
        if kwargs.get("skip_invalid_size_inputs"):
            raise ValueError("score: a sentence that is skipped has none; leave out those that are too long")
        return super().score(sentences if isinstance(sentences, str) else _texts(sentences), *args, **kwargs)

    def generate(
        self,
        tokenized_sentences: Any,
        beam: int = 5,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        *args: Any,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As fairseq's, with one list of hypotheses for each sentence: an empty one for a sentence that is skipped."""
        if torch.is_tensor(tokenized_sentences) and tokenized_sentences.dim() == 1:
            only = [tokenized_sentences]
            return self.generate(only, beam, verbose, skip_invalid_size_inputs, *args, seed=seed, **kwargs)[0]
        sentences = list(tokenized_sentences)
        self._check_options(beam, kwargs)
        fitting = self._fitting(sentences, skip_invalid_size_inputs)
        result: list[Any] = [[] for _ in sentences]
        if fitting:
            with torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                found = super().generate([sentences[index] for index in fitting], beam, verbose, False, *args, **kwargs)
            for index, hypotheses in zip(fitting, found, strict=True):
                result[index] = hypotheses
        return result

    def stream(
        self, tokenized_sentences: list[LongTensor], tokens: int, beam: int = 5, **options: Any
    ) -> Iterator[tuple[int, list[dict[str, Any]]]] | None:
        """(index, hypotheses) of each sentence, as soon as it is done; others take its place in the batch.

        Unlike in `generate`, the greatest length of a translation is by its own sentence, not a batch's longest.

        Args:
            tokenized_sentences: taken up in the order of their lengths.
            tokens: of a batch, by the sources, all counted as long as the longest.
            options: of the generation.

        Returns:
            None where fairseq's generator alone knows the search.
        """
        self._check_options(beam, options)
        self._fitting(tokenized_sentences, skip=False)
        settings = copy.deepcopy(self.cfg.generation)
        with open_dict(settings):
            for name, value in {**options, "beam": beam}.items():
                setattr(settings, name, value)
        generator = self.task.build_generator(self.models, settings)
        if not isinstance(generator, decoding.Generator) or generator.left:
            return None
        order = sorted(range(len(tokenized_sentences)), key=lambda index: tokenized_sentences[index].numel())
        return generator.stream(((index, tokenized_sentences[index]) for index in order), tokens)

    def set_precision(self, precision: str | None) -> "HubModel":
        """In what its products are computed from now on, by our own search: one of `macaron.decoding.PRECISIONS`.

        Raises:
            ValueError: an unknown name. A device without it is told when there is something to compute.
        """
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        for model in self.models:
            model.inference_precision = precision
        return self

    def _check_options(self, beam: int, options: Mapping[str, Any]) -> None:
        others = {"inference_step_args", "prefix_allowed_tokens_fn", "seed"}
        if isinstance(self.task, LanguageModelingTask):
            others.add("score_reference")  # which is how `score` asks; a translation's score wants a reference
        given = {name: value for name, value in options.items() if name not in others}
        generation.check({"beam": beam, **given}, "options of the generation")
        words = len(self.task.target_dictionary)
        if given.get("sampling_topk", -1) > words:
            raise ValueError(
                f"options of the generation: sampling_topk {given['sampling_topk']}: the model has {words:,} words; "
                f"give fewer, or -1 for all"
            )

    def _fitting(self, sentences: list[LongTensor], skip: bool) -> list[int]:
        """Indices of the sentences that the model can take."""
        long = {index: tokens.numel() for index, tokens in enumerate(sentences) if tokens.numel() > self.longest}
        if long:
            shown = ", ".join(f"number {index + 1} has {size:,}" for index, size in list(long.items())[:5])
            more = f" and {len(long) - 5} more" if len(long) > 5 else ""
            message = f"{len(long)} of {len(sentences)} sentences longer than {self.longest:,} tokens: {shown}{more}"
            if not skip:
                raise ValueError(
                    f"{message}. The model takes no longer ones; split them, or pass skip_invalid_size_inputs=True, "
                    f"which leaves their place empty"
                )
            logger.warning("%s; skipped, their place is left empty", message)
        return [index for index in range(len(sentences)) if index not in long]


def _texts(sentences: Any) -> list[str]:
    """
    Raises:
        TypeError: what is no text, or has no order.
        ValueError: text that cannot be written as UTF-8.
    """
    if isinstance(sentences, (bytes, bytearray, Mapping, set, frozenset)) or not isinstance(sentences, Iterable):
        raise TypeError(
            f"takes a sentence (str), or sentences in order, such as a list; not {type(sentences).__name__}"
        )
    texts = list(sentences)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TypeError(f"sentence number {number} is of type {type(text).__name__}; give text (str)")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"sentence number {number} is no valid Unicode ({error.reason}); decode it anew"
            ) from error
    return texts


# How fairseq's errors of reading a dictionary begin.
_BROKEN = ("Incorrect dictionary format", "Incorrect encoding detected", "Duplicate word found")


def open_checkpoints(
    family: type, model_name_or_path: Any, checkpoint_file: Any, data_name_or_path: Any, **kwargs: Any
) -> HubModel:
    """`family`'s checkpoints in a folder of this machine, as fairseq's from_pretrained opens them.

    Raises:
        ValueError: a wrong place, or another kind of model; says what was expected and what was found.
    """
    precision = kwargs.pop("precision", None)
    folder = places.model_folder(model_name_or_path)
    places.check_checkpoints(folder, checkpoint_file)
    data = places.data_folder(data_name_or_path, folder)
    places.check_dictionaries(data, str(data_name_or_path))
    try:
        loaded = hub_utils.from_pretrained(str(folder), str(checkpoint_file), str(data.resolve()), **kwargs)
    except FileNotFoundError as error:
        missing = Path(str(error.filename))
        if missing.parent.resolve() != data.resolve():
            raise
        raise ValueError(
            f"{data}: no {missing.name} there; {places.contents(data)}. Give the folder with the dictionaries that the "
            f"checkpoint was trained with as data_name_or_path, and its languages as source_lang and target_lang"
        ) from error
    except Exception as error:  # fairseq's, of no type of their own
        if str(error).startswith(_BROKEN):
            raise ValueError(
                f"{data}: one of its dictionaries is damaged ({error}); copy it again from the data that the "
                f"checkpoint was trained on"
            ) from error
        if "Could not infer language pair" not in str(error):
            raise
        raise ValueError(
            f"{data}: the checkpoint does not say its languages, and {places.contents(data)}; give them as source_lang "
            f"and target_lang"
        ) from error
    unused = [name for name in RELEASED_NAMES.values() if (folder / name).is_file()]
    if unused and loaded["args"].get("bpe") is None:
        logger.warning(
            "%s: %s lies there, but no bpe is given, so sentences are taken as pieces already; if they are not, pass "
            "bpe='subword_nmt' or 'sentencepiece', and a tokenizer. (A released model has a text.json, which says it.)",
            *(folder, unused[0]),
        )
    for model in loaded["models"]:
        if not isinstance(model, family):
            raise ValueError(
                f"{folder}: {checkpoint_file} holds a {type(model).__name__}, no {family.__name__}; open it with "
                f"from_pretrained of its own class"
            )
    return HubModel(loaded["args"], loaded["task"], loaded["models"]).set_precision(precision)


# --- released folders -------------------------------------------------------------------------------------------


class Sides(NamedTuple):
    """Source sentence → words, target words → sentence: what fairseq's hub calls a tokenizer."""

    source: Words
    target: Words

    def encode(self, sentence: str) -> str:
        return self.source.encode(sentence)

    def decode(self, words: str) -> str:
        return self.target.decode(words)


class ReleasedModel(HubModel):
    """The hub interface with the text settings and the beam search of the recipe that trained the model.

    Args:
        description: of the folder.
        folder: where the sub-word model is.
    """

    def __init__(self, cfg: DictConfig, task: Any, models: list[Any], description: released.Description, folder: Path):
        super().__init__(cfg, task, models)
        text = description.text
        self.tokenizer = Sides(*(Words(text, language) for language in text.languages))
        self.bpe = Pieces(text, folder / text.released_name)
        self.encode("a")  # now is the time to find that it cannot be read
        self.generation = dict(description.generation)

    def translate(
        self,
        sentences: str | Iterable[str],
        beam: int | None = None,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `HubModel`'s, from raw text to raw text; options that are not given are the recipe's."""
        options = {**self.generation, **kwargs}
        recommended = options.pop("beam")
        beam = recommended if beam is None else beam
        return super().translate(sentences, beam, verbose, skip_invalid_size_inputs, **options)


def is_release(folder: Any, data: Any) -> bool:
    """Whether `folder` is a released model that is asked for as a whole."""
    try:
        folder = Path(folder)
        if data not in (None, ".", "./") and Path(data).resolve() != folder.resolve():
            return False
        return released.is_described(folder) and not any(folder.glob("*.idx"))  # no data-bin
    except (TypeError, ValueError, OSError):
        return False


def open_release(family: type, folder: Path, checkpoint_file: Any = released.MODEL, **kwargs: Any) -> ReleasedModel:
    """Open a released folder, whose checkpoint must hold one of `family`'s models.

    Args:
        kwargs: options of the generation, in place of the recipe's, or other options of fairseq's configuration;
            `precision` is that of `HubModel.set_precision`; None: the release's, where the processor has it.

    Raises:
        ValueError: a part of it is missing, damaged, or says what no release does.
    """
    precision = kwargs.pop("precision", None)
    folder = folder.resolve()
    places.check_one_path(folder)
    description = released.read(folder, str(checkpoint_file))
    ours = {name: kwargs.pop(name) for name in list(kwargs) if name in generation.TYPES}
    description.generation.update(ours | dict(kwargs.pop("generation_args", None) or {}))
    generation.check(description.generation, "options of the generation")
    path = folder / checkpoint_file
    state = load_raw(path)
    check_settings(path, state, family)
    state["cfg"] = _configuration(path, state["cfg"], description, kwargs)
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], state=state)
    opened = ReleasedModel(cfg, task, models, description, folder)
    for model in models:
        model.released_precision = description.precision
    opened.set_precision(precision)
    return opened


def check_settings(path: Path, state: Mapping[str, Any], family: type) -> None:
    """A released checkpoint holds one of our models for translation, before anything is built by its word.

    Raises:
        CheckpointError: it does not.
    """
    cfg = state.get("cfg")
    groups = [cfg.get(name) if isinstance(cfg, dict) else None for name in ("model", "task")]
    model, task = (group.get("_name") if isinstance(group, dict) else None for group in groups)
    known = MODEL_REGISTRY.get(model) if isinstance(model, str) else None
    if state.get("args") is not None or task != "translation" or not (known and issubclass(known, family)):
        raise CheckpointError(
            f"{path}: is for the task {task!r} and the architecture {model!r}; a released folder holds a "
            f"{family.__name__} for the task 'translation', with its settings"
        )
    for side in ("encoder", "decoder"):
        beginning = f"{side}.layers."
        parts = [
            str(name).removeprefix(beginning) for name in state.get("model") or () if str(name).startswith(beginning)
        ]
        held = len({part.split(".")[0] for part in parts if part[0].isdecimal()})  # a rule across depth is beside them
        said = groups[0].get(f"{side}_layers", held)
        if said != held and not groups[0].get(f"{side}_layers_to_keep"):
            raise CheckpointError(
                f"{path}: says {side}_layers={said!r}, but holds the parameters of {held}; copy the folder again"
            )


# What a model's or the task's settings may not say about another machine.
PLACES = ("encoder_embed_path", "decoder_embed_path")
_TASK = ("left_pad_source", "left_pad_target", "max_source_positions", "max_target_positions")


def _configuration(path: Path, found: dict[str, Any], description: released.Description, overrides: Any) -> DictConfig:
    """fairseq's defaults with the model and the sizes of the task from the file, and nothing else of it."""
    model, task = found["model"], found["task"]
    source, target = description.text.languages
    cfg = OmegaConf.structured(FairseqConfig)
    with open_dict(cfg):
        cfg.model = {name: value for name, value in model.items() if name not in PLACES and not refers(value)}
        cfg.task = {
            "_name": "translation", "data": str(path.parent), "source_lang": source, "target_lang": target,
            **{name: task[name] for name in _TASK if name in task and not refers(task[name])},
        }  # fmt: skip
        cfg.tokenizer = cfg.bpe = None
    cfg.dataset.max_tokens = BATCH_TOKENS
    known = {name for group in cfg.values() if isinstance(group, DictConfig) for name in group}
    if unknown := sorted(overrides.keys() - known):
        raise ValueError(f"from_pretrained: no option {', '.join(unknown)}; there are those of fairseq's configuration")
    overwrite_args_by_name(cfg, overrides)
    return cfg


def refers(value: Any) -> bool:
    """To another entry, or to the environment, of the machine that trained: omegaconf would look it up here."""
    return isinstance(value, str) and "${" in value
