"""What happens to a sentence between raw text and sub-word pieces, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from macaron.moses import Moses
from recipes.common.errors import RecipeError
from recipes.common.workspace import read_json, write_json

TOKENIZERS = ("moses", "none")
SUBWORDS = ("subword_nmt", "sentencepiece")
MODEL_NAMES = {"subword_nmt": "codes", "sentencepiece": "spm.model"}


@dataclass(frozen=True)
class TextSettings:
    """Everything that the pieces of a sentence depend on, beside the sub-word model itself.

    Attributes:
        source, target: ISO 639-1 codes; they choose Moses' rules and the files' names.
        tokenizer: "moses", or "none" to give raw text to the sub-word model.
        aggressive_hyphens: Moses splits "a-b" into "a @-@ b".
        lowercase: everything, on both sides.
        subword: "subword_nmt" (BPE) or "sentencepiece" (BPE with the space as a character).
        units: merges of subword_nmt, or pieces of sentencepiece.
        joined_dictionary: one dictionary for both languages; the sub-word model is joint in any case.
    """

    source: str
    target: str
    tokenizer: str = "moses"
    aggressive_hyphens: bool = False
    lowercase: bool = False
    subword: str = "subword_nmt"
    units: int = 10_000
    joined_dictionary: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("tokenizer", self.tokenizer, TOKENIZERS),
            ("subword", self.subword, SUBWORDS),
        ):
            if value not in known:
                raise RecipeError(f"{name} {value!r} is unknown; choose {' or '.join(known)}")
        if self.units < 1:
            raise RecipeError(f"units {self.units}: a sub-word model needs at least one merge or piece; give more")
        if self.source == self.target:
            raise RecipeError(f"source and target are both {self.source!r}; give two languages")

    @property
    def languages(self) -> tuple[str, str]:
        return self.source, self.target

    @property
    def model_name(self) -> str:
        """The file of the sub-word model."""
        return MODEL_NAMES[self.subword]

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> TextSettings:
        content: dict[str, Any] = read_json(path)
        known = {field.name for field in fields(cls)}
        if unknown := content.keys() - known:
            raise RecipeError(f"{path}: unknown fields {sorted(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**content)


@dataclass(frozen=True)
class Words:
    """Raw sentences of one language to words (before the sub-word model) and back."""

    settings: TextSettings
    language: str

    @cached_property
    def moses(self) -> Moses | None:
        s = self.settings
        if s.tokenizer == "none":
            return None
        return Moses(self.language, aggressive_hyphens=s.aggressive_hyphens, lower=s.lowercase)

    def training(self, sentence: str) -> str:
        return self.moses.tokenize(sentence) if self.moses else self._plain(sentence)

    def encode(self, sentence: str) -> str:
        """Of a test set, or of a user."""
        return self.moses.encode(sentence) if self.moses else self._plain(sentence)

    def decode(self, words: str) -> str:
        return self.moses.decode(words) if self.moses else words

    def _plain(self, sentence: str) -> str:
        text = " ".join(sentence.split())
        return text.lower() if self.settings.lowercase else text


@dataclass(frozen=True)
class Pieces:
    """Words to pieces of the sub-word model, separated by spaces, and back."""

    settings: TextSettings
    model: Path

    @cached_property
    def _split(self) -> Callable[[str], str]:
        if self.settings.subword == "sentencepiece":
            import sentencepiece

            processor = sentencepiece.SentencePieceProcessor(model_file=str(self.model))
            return lambda words: " ".join(processor.encode(words, out_type=str))
        from subword_nmt.apply_bpe import BPE

        try:
            with self.model.open(encoding="utf-8") as codes:
                split: Callable[[str], str] = BPE(codes).process_line
        except (SystemExit, ValueError) as error:
            raise RecipeError(
                f"{self.model}: these are no BPE codes of subword-nmt (two units a line); give another file"
            ) from error
        return split

    def encode(self, words: str) -> str:
        return self._split(words)

    def decode(self, pieces: str) -> str:
        if self.settings.subword == "sentencepiece":
            return pieces.replace(" ", "").replace("▁", " ").strip()
        return (pieces + " ").replace("@@ ", "").rstrip()


class Codec:
    """The whole way for one folder with text.json and the sub-word model, such as data-bin.

    >>> codec = Codec.open(folder)
    >>> codec.pieces("Guten Morgen!")  # of the source language
    'guten mor@@ gen !'
    >>> codec.text("good mor@@ ning !")  # of the target language
    'good morning!'
    """

    def __init__(self, settings: TextSettings, folder: Path):
        self.settings = settings
        self._source = Words(settings, settings.source)
        self._target = Words(settings, settings.target)
        self._pieces = Pieces(settings, folder / settings.model_name)

    @classmethod
    def open(cls, folder: Path) -> Codec:
        return cls(TextSettings.read(folder / "text.json"), folder)

    def pieces(self, sentence: str) -> str:
        """A raw source sentence, ready for the model."""
        return self._pieces.encode(self._source.encode(sentence))

    def tokens(self, pieces: str) -> str:
        """What the model said, as words: for BLEU on tokenised text."""
        return self._pieces.decode(pieces)

    def text(self, pieces: str) -> str:
        """What the model said, as text for people."""
        return self._target.decode(self.tokens(pieces))
