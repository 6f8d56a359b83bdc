"""macaron.text as the recipes have it: what cannot be used is a RecipeError, and settings know their file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import macaron.text
from macaron.text import SUBWORDS, TextError, Words

from ..common.errors import RecipeError
from ..common.workspace import write_json

__all__ = ["SUBWORDS", "Codec", "Pieces", "TextSettings", "Words"]


@contextmanager
def explained(where: str = "") -> Iterator[None]:
    try:
        yield
    except TextError as error:
        raise RecipeError(f"{where}{error}") from error


class TextSettings(macaron.text.TextSettings):
    __doc__ = macaron.text.TextSettings.__doc__

    def __post_init__(self) -> None:
        with explained():
            super().__post_init__()

    def write(self, path: Path) -> None:
        write_json(path, self.content())

    @classmethod
    def read(cls, path: Path) -> TextSettings:
        """
        Raises:
            RecipeError: a setting that is missing, unknown, of another type, or makes no sense.
        """
        with explained(f"{path}: "):
            content = macaron.text.read_json(path)
            try:
                macaron.text.TextSettings.of(content)  # the name of the file goes before what is wrong
            except KeyError as error:
                raise TextError(f"{error} is missing; prepare the data anew") from error
        return cls(**content)


class Pieces(macaron.text.Pieces):
    __doc__ = macaron.text.Pieces.__doc__

    def encode(self, words: str) -> str:
        with explained():
            return super().encode(words)


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
