"""Translation by onnxruntime: the search of this package over a decoder's step that is an ONNX file.

A folder of `macaron export RELEASE --format onnx` has

encoder.onnx     tokens (B, S) → hidden (B, S), True at padding, and keys and values of the memory, (B, H, S, D) each
decoder.onnx     one step of B sentences with K places each: tokens (B, K), positions (B,), hidden, the memory's keys
                 and values, mask (B, 1, K, N) of N earlier cells (0 seen, −∞ not), their keys and values (B, H, N, D)
                 → logits (B K, V), and keys and values of the K new cells, (B, H, K, D) each; at first N is 0
decoder.json     the names of keys and values, the symbols, and the options of the release's search
vocabulary.json  words of the source and of the target, by number
text.json        how text becomes words and pieces, with the sub-word model beside it

Neither fairseq nor the model's code is needed: torch, numpy and onnxruntime, and for raw text what the text settings
ask for (sacremoses, subword-nmt or sentencepiece).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macaron.decoding.lattice import Lattice
from macaron.decoding.search import BeamSearch, Hypothesis, Options, Source, Symbols
from macaron.onnx import Session
from macaron.text import Pieces, TextSettings, Words, is_blank, read_json

ENCODER, DECODER, DESCRIPTION, VOCABULARY = "encoder.onnx", "decoder.onnx", "decoder.json", "vocabulary.json"
FORMAT = 1

_AGAIN = "export the release again, or copy the whole folder"


class OnnxSteps:
    """A decoder in onnxruntime as `macaron.decoding.Stepper`.

    Args:
        folder: what `macaron export --format onnx` wrote.
        threads: of onnxruntime; None: its own choice.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: files that are missing, damaged or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        path = Path(folder, DESCRIPTION)
        if not path.is_file():
            raise ValueError(f"{folder} has no {DESCRIPTION}, so `macaron export --format onnx` did not write it")
        try:
            told = read_json(path)
            if told["format"] != FORMAT:
                raise ValueError(f"format {told['format']!r}; this version of macaron reads {FORMAT}")
            self.vocabulary, self.longest = int(told["vocabulary"]), int(told["longest"])
            self.memory = [str(name) for name in told["memory"]]
            self.past = {str(name): (int(heads), int(dim)) for name, (heads, dim) in told["past"].items()}
            self.symbols = Symbols(**{name: int(told["symbols"][name]) for name in Symbols._fields})
            self.options = Options(**{field.name: told["options"][field.name] for field in fields(Options)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} does not describe a decoder ({what}); {_AGAIN}") from error
        self._encoder, self._decoder = (Session(Path(folder, name), threads) for name in (ENCODER, DECODER))
        own = ["tokens", "positions", "hidden", "mask"]
        count = len(own) + 2 * (len(self.memory) + len(self.past))
        if len(self._decoder.inputs) != count or len(self._encoder.outputs) != 1 + 2 * len(self.memory):
            raise ValueError(f"{path} and the files beside it do not fit each other; {_AGAIN}")

    def begin(self, beam: int) -> Lattice:
        return Lattice(beam)

    def read(self, lattice: Lattice, tokens: list[Tensor]) -> None:
        longest = max(map(len, tokens))
        source = torch.full((len(tokens), longest), self.symbols.pad)
        for row, sentence in zip(source, tokens, strict=True):
            row[: len(sentence)] = sentence
        hidden, *pairs = self._encoder(tokens=source).values()
        for name, k, v in zip(self.memory, pairs[::2], pairs[1::2], strict=True):
            lattice.remember(name, k, v, hidden)

    def step(self, lattice: Lattice, tokens: Tensor, positions: Tensor) -> Tensor:
        beam, past = lattice.beam, slice(lattice.low, lattice.now)
        hidden = lattice["hidden"]
        longest = int((~hidden).sum(1).max())  # padding is on the right
        given = {"tokens": tokens, "positions": positions, "hidden": hidden[:, :longest]}
        given["mask"] = self._seen(lattice)
        for i, name in enumerate(self.memory):
            for j, part in enumerate("kv"):
                given[f"memory_{2 * i + j}"] = lattice[f"memory {part} {name}"][:, :, :longest]
        for i, (name, (heads, dim)) in enumerate(self.past.items()):
            for j, part in enumerate("kv"):
                if f"{part} {name}" not in lattice:
                    lattice.add(f"{part} {name}", torch.float32, (heads, 0, beam, dim), time=2)
                given[f"past_{2 * i + j}"] = lattice[f"{part} {name}"][:, :, past].flatten(2, 3)
        logits, *new = self._decoder(**given).values()
        for i, name in enumerate(self.past):
            for j, part in enumerate("kv"):
                lattice[f"{part} {name}"][:, :, lattice.now] = new[2 * i + j]
        return logits

    def _seen(self, lattice: Lattice) -> Tensor:
        """(B, 1, K, N) of the cells before the present column."""
        ancestry = lattice["ancestry"][:, :, lattice.low : lattice.now, None]  # (B, K, T, 1)
        unseen = (ancestry != torch.arange(lattice.beam)).flatten(2)[:, None]
        return torch.zeros(unseen.shape).masked_fill_(unseen, -torch.inf)


class OnnxTranslator:
    """Raw text in, raw text out, by onnxruntime.

    >>> OnnxTranslator("deployed").translate(["Ein Satz, wie man ihn schreibt."])

    Args:
        folder: what `macaron export --format onnx` wrote.
        threads: of onnxruntime; None: its own choice.

    Raises:
        ImportError: onnxruntime is missing, or what the text settings ask for.
        ValueError: files that are missing, damaged or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        self.steps = OnnxSteps(folder, threads)
        try:
            told = read_json(Path(folder, "text.json"))
            text = TextSettings.of({f.name: told[f.name] for f in fields(TextSettings)})
            words = read_json(Path(folder, VOCABULARY))
            source, self._words = ([str(word) for word in words[side]] for side in ("source", "target"))
        except (KeyError, TypeError, ValueError, OSError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{folder}: its text cannot be read ({what}); {_AGAIN}") from error
        if len(self._words) != self.steps.vocabulary:
            raise ValueError(
                f"{folder}: {VOCABULARY} has {len(self._words)} words, the decoder {self.steps.vocabulary}; {_AGAIN}"
            )
        self._numbers = {word: number for number, word in enumerate(source)}
        self._sides = [Words(text, language) for language in text.languages]
        self._pieces = Pieces(text, Path(folder) / text.released_name)

    def encode(self, sentence: str) -> Tensor:
        """(S,) numbers of its pieces and </s>."""
        symbols = self.steps.symbols
        pieces = self._pieces.encode(self._sides[0].encode(sentence)).split()
        return torch.tensor([*(self._numbers.get(piece, symbols.unknown) for piece in pieces), symbols.end])

    def decode(self, tokens: Tensor) -> str:
        pieces = " ".join(self._words[i] for i in tokens.tolist() if i != self.steps.symbols.end)
        return self._sides[1].decode(self._pieces.decode(pieces))

    def generate(self, sources: Iterable[Tensor], tokens: int = 4096, **options: Any) -> list[list[Hypothesis]]:
        """Hypotheses of each source, (S,) numbers with </s>, the best first.

        Args:
            tokens: of a batch, by the sources.
            options: of the search (`macaron.decoding.Options`) in place of the release's.

        Raises:
            TypeError, ValueError: an option that does not exist or makes no sense, or a source that is too long.
        """
        chosen = replace(self.steps.options, **options)
        sources = list(sources)
        for number, source in enumerate(sources, 1):
            if len(source) > self.steps.longest:
                raise ValueError(
                    f"sentence {number} of {len(sources)} has {len(source):,} tokens, and the model takes "
                    f"{self.steps.longest:,}; split it"
                )
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        queue = (Source(i, sources[i], chosen.most(len(sources[i])), len(sources[i])) for i in order)
        found = dict(BeamSearch(self.steps, self.steps.symbols, chosen)(queue, tokens=tokens))
        return [found[i] for i in range(len(sources))]

    def translate(self, sentences: Iterable[str], **options: Any) -> list[str]:
        """One line for each; a line without text stays empty. `options` are those of `generate`."""
        if isinstance(sentences, str):
            raise TypeError("takes sentences in order, such as a list; for one sentence give a list of one")
        texts = list(sentences)
        encoded = [self.encode(text) if not is_blank(text) else torch.empty(0) for text in texts]
        wanted = [i for i, source in enumerate(encoded) if len(source) > 1]  # more than the end of a sentence
        result = [""] * len(texts)
        for i, found in zip(wanted, self.generate([encoded[i] for i in wanted], **options), strict=True):
            result[i] = self.decode(found[0].tokens)
        return result


def describe(steps: dict[str, Any], symbols: Symbols, options: Options) -> dict[str, Any]:
    """What decoder.json holds."""
    return {"format": FORMAT, **steps, "symbols": symbols._asdict(), "options": asdict(options)}


__all__ = ["OnnxSteps", "OnnxTranslator", "describe"]
