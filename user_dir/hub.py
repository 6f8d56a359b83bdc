"""A released model in a script: raw text in, raw text out."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq import hub_utils
from fairseq.data import encoders

# The description of a released folder: how text becomes pieces, and the recipe's beam search.
DESCRIPTION = "text.json"
# Where fairseq's own from_pretrained looks for the sub-word model.
MODEL_NAMES = {"subword_nmt": "bpecodes", "sentencepiece": "sentencepiece.bpe.model"}
_OPTIONS = {"subword_nmt": "bpe_codes", "sentencepiece": "sentencepiece_model"}


class Words:
    """Source sentence → words, target words → sentence: what fairseq's hub calls a tokenizer."""

    def __init__(self, settings: dict[str, Any]):
        self.lower = settings["lowercase"]
        self.moses = None
        if settings["tokenizer"] == "moses":
            try:
                from macaron.moses import Moses  # training needs no sacremoses
            except ModuleNotFoundError as error:
                raise ImportError(
                    f"this model takes text that Moses tokenises, but there is no module named {error.name!r}; "
                    f"pip install sacremoses subword-nmt sentencepiece, or 'macaron-net[recipes]'"
                ) from error
            options = {"aggressive_hyphens": settings["aggressive_hyphens"], "lower": self.lower}
            self.moses = [Moses(settings[side], **options) for side in ("source", "target")]

    def encode(self, sentence: str) -> str:
        if self.moses:
            return self.moses[0].encode(sentence)
        text = " ".join(sentence.split())
        return text.lower() if self.lower else text

    def decode(self, words: str) -> str:
        return self.moses[1].decode(words) if self.moses else words


class ReleasedModel(hub_utils.GeneratorHubInterface):
    """fairseq's hub interface with the text settings and the beam search of the recipe that trained the model.

    Args:
        description: content of the folder's text.json.
        folder: where the sub-word model is.
    """

    def __init__(self, cfg: Any, task: Any, models: list[Any], description: dict[str, Any], folder: Path):
        super().__init__(cfg, task, models)
        kind = description["subword"]
        self.tokenizer = Words(description)
        self.bpe = encoders.build_bpe(Namespace(bpe=kind, **{_OPTIONS[kind]: str(folder / MODEL_NAMES[kind])}))
        self.generation = dict(description["generation"])

    def translate(
        self, sentences: str | list[str], beam: int | None = None, verbose: bool = False, **kwargs: Any
    ) -> Any:
        """Raw sentences of the source language → raw sentences of the target language.

        Args:
            sentences: one, or a list.
            beam, kwargs: fairseq's options of generation (`lenpen`, `max_len_b`, …); the recipe's by default.

        Returns:
            One sentence for one, a list for a list. An empty sentence stays empty.
        """
        if isinstance(sentences, str):
            return self.translate([sentences], beam, verbose, **kwargs)[0]
        options = {**self.generation, **kwargs}
        beam = beam or options["beam"]
        del options["beam"]
        wanted = [index for index, sentence in enumerate(sentences) if sentence.strip()]
        result = [""] * len(sentences)
        if wanted:
            found = self.sample([sentences[index] for index in wanted], beam, verbose, **options)
            for index, translation in zip(wanted, found, strict=True):
                result[index] = translation
        return result


def is_release(folder: str | Path, data: str | None) -> bool:
    """Whether `folder` is a released model that is asked for as a whole."""
    return data in (None, ".") and (Path(folder) / DESCRIPTION).is_file()


def load(folder: Path, checkpoint_file: str, **kwargs: Any) -> ReleasedModel:
    """Open a released folder.

    Raises:
        ValueError: if a part of it is missing or unreadable.
    """
    folder = folder.resolve()
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        languages = {"source_lang": description["source"], "target_lang": description["target"]}
        parts = [checkpoint_file, MODEL_NAMES[description["subword"]], *(f"dict.{x}.txt" for x in languages.values())]
        description["generation"]["beam"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION}: does not describe a released model ({type(error).__name__}: {error}); "
            f"copy the folder again, or make it anew with `python -m recipes.translation.release`"
        ) from error
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing; a released model is one folder with all its files, copy it again"
        )
    loaded = hub_utils.from_pretrained(str(folder), checkpoint_file, ".", **languages, **kwargs)
    return ReleasedModel(loaded["args"], loaded["task"], loaded["models"], description, folder)
