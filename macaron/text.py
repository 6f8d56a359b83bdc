"""What happens to a sentence between raw text and sub-word pieces, and back: for training, and for a released model.

Loaded neither by `import macaron` nor by fairseq. Tokenisers are imported when they are needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macaron.moses import Moses

__all__ = [
    "PART_OF_A_WORD",
    "Pieces",
    "TextError",
    "TextSettings",
    "Words",
    "is_blank",
    "join_bpe",
    "join_sentencepiece",
    "read_json",
]

TOKENIZERS = ("moses", "none")
SUBWORDS = ("subword_nmt", "sentencepiece")
# The sub-word model's file: in the folder of a run, and in a released one, where fairseq looks for it by these names.
MODEL_NAMES = {"subword_nmt": "codes", "sentencepiece": "spm.model"}
RELEASED_NAMES = {"subword_nmt": "bpecodes", "sentencepiece": "sentencepiece.bpe.model"}

_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # a part of file names
_TYPES: dict[str, tuple[type, str]] = {
    "str": (str, "a string"),
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
}


class TextError(ValueError):
    """Settings or a sub-word model that cannot be used; the message names the value, the rule and the remedy."""


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

    Raises:
        TextError: a value of another type, or one that makes no sense.
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
        for field in fields(self):
            kind, words = _TYPES[str(field.type)]
            value = getattr(self, field.name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise TextError(f"{field.name} {value!r}: must be {words}")
        for name, value in (("source", self.source), ("target", self.target)):
            if not _LANGUAGE.fullmatch(value):
                raise TextError(f"{name} {value!r} is no language code; give letters and digits, such as de or pt_BR")
        for name, value, known in (
            ("tokenizer", self.tokenizer, TOKENIZERS),
            ("subword", self.subword, SUBWORDS),
        ):
            if value not in known:
                raise TextError(f"{name} {value!r} is unknown; choose {' or '.join(known)}")
        if self.units < 1:
            raise TextError(f"units {self.units}: a sub-word model needs at least one merge or piece; give more")
        if self.source == self.target:
            raise TextError(f"source and target are both {self.source!r}; give two languages")

    @property
    def languages(self) -> tuple[str, str]:
        return self.source, self.target

    @property
    def model_name(self) -> str:
        """The file of the sub-word model in the folder of a run."""
        return MODEL_NAMES[self.subword]

    @property
    def released_name(self) -> str:
        """The file of the sub-word model in a released folder."""
        return RELEASED_NAMES[self.subword]

    @classmethod
    def of(cls, content: dict[str, Any]) -> TextSettings:
        """The settings of a file, all of which must be there: one left out would silently be another text.

        Raises:
            KeyError: the name of a setting that is missing.
            TextError: settings that are unknown, or make no sense.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(map(str, content.keys() - set(known))):
            raise TextError(f"unknown fields {unknown}; known are {', '.join(sorted(known))}")
        return cls(**{name: content[name] for name in known})

    def content(self) -> dict[str, Any]:
        """What `of` reads."""
        return asdict(self)


def read_json(path: Path) -> dict[str, Any]:
    """A file of settings.

    Raises:
        TextError: no JSON object; numbers that are none (NaN) count as that.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise TextError(f"no JSON, so it is truncated or damaged: {error}") from error
    if not isinstance(content, dict):
        raise TextError(f"holds a {type(content).__name__}, not a JSON object of settings")
    return content


PART_OF_A_WORD = "@@ "  # stands in BPE after every piece but the last of a word


def join_bpe(pieces: str) -> str:
    """Pieces of subword-nmt to words: `ab@@ c d` → `abc d`, as fairseq's `--remove-bpe`."""
    return f"{pieces} ".replace(PART_OF_A_WORD, "").rstrip()


def join_sentencepiece(pieces: str) -> str:
    """Pieces of sentencepiece to words: `▁ab c ▁d` → `abc d`."""
    return pieces.replace(" ", "").replace("▁", " ").strip()


def is_blank(text: str) -> bool:
    """Whether nothing of `text` is to be seen: white space, control characters, what Unicode calls ignorable."""
    import regex  # type: ignore[import-untyped]

    unseen = r"[\p{White_Space}\p{Cc}\p{Default_Ignorable_Code_Point}\uFFF9-\uFFFB]*"
    return regex.fullmatch(unseen, text) is not None


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
        try:
            from macaron.moses import Moses  # raw text without Moses needs no sacremoses
        except ModuleNotFoundError as error:
            raise ImportError(
                f"this model takes text that Moses tokenises, but there is no module named {error.name!r}; "
                f"pip install sacremoses subword-nmt sentencepiece, or 'macaron-net[recipes]'"
            ) from error
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
        return self._sentencepiece() if self.settings.subword == "sentencepiece" else self._codes()

    def _sentencepiece(self) -> Callable[[str], str]:
        import sentencepiece

        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(self.model))
        except (OSError, RuntimeError) as error:
            raise TextError(f"{self.model}: this is no model of sentencepiece ({error}); give another file") from error
        return lambda words: " ".join(processor.encode(words, out_type=str))

    def _codes(self) -> Callable[[str], str]:
        from subword_nmt.apply_bpe import BPE  # type: ignore[import-untyped]

        try:
            # a carriage return, or U+2028, may be a part of a code
            with self.model.open(encoding="utf-8-sig", newline="\n") as codes:
                if not codes.read(1):
                    raise ValueError("empty")
                codes.seek(0)
                split: Callable[[str], str] = BPE(codes).process_line
        except (SystemExit, ValueError) as error:
            raise TextError(
                f"{self.model}: these are no BPE codes of subword-nmt (two units a line); give another file"
            ) from error
        return split

    def encode(self, words: str) -> str:
        """
        Raises:
            TextError: a sub-word model that cannot be read.
        """
        return self._split(words)

    def decode(self, pieces: str) -> str:
        if self.settings.subword == "sentencepiece":
            return join_sentencepiece(pieces)
        return join_bpe(pieces)
