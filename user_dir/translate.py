"""A released model as a filter: lines of raw text in, as many lines out, in their order, in bounded memory.

Lines are read in windows, sorted by length inside a window, translated in batches and written in order.
"""

import logging
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from math import log
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import regex
import torch
from tqdm import tqdm

from macaron.decoding import choose_precision
from macaron.text import is_blank

from . import hub, places, released
from .models.macaron import MacaronModel

__all__ = ["Filter", "LineError", "check_files", "open_model", "read", "sentences", "translate"]

WINDOW = 4096  # lines read ahead: enough for batches of one length, and soon translated
WINDOW_BYTES = 2**22  # the same, where lines are long
LONGEST = 2**20  # bytes of a line; nothing that is text comes near

# A sentence counts as at least so long in a batch: its translation may be, and each has scores over the vocabulary.
SHORTEST = 16

_NO_TEXT = (  # how a file begins that is something else, and what makes text of it
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"PK\x03\x04", "zip", "unzip -p"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
)


class LineError(ValueError):
    """A line that cannot be read or translated; the message says which. What stands before it is translated."""


class Line(NamedTuple):
    place: str  # for messages
    text: str
    size: int  # in bytes


# --- reading ------------------------------------------------------------------------------------------------------


def check_files(files: Iterable[str]) -> None:
    """Find out before hours of work what cannot be read.

    Args:
        files: paths; "-" is standard input.

    Raises:
        ValueError: nothing of that name, a folder, a file that may not be read, or one that is the output as well.
    """
    for name in files:
        if "\0" in name:
            raise ValueError(f"{name!r} has a null byte in its name; give another file")
        try:
            status = os.fstat(0) if name == "-" else os.stat(name)
        except OSError as error:
            where = "standard input" if name == "-" else name
            raise ValueError(f"{where}: cannot be read ({error.strerror}); correct the path, or give a pipe") from error
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{name}: is a folder; give the files in it, in the order that you want")
        if name != "-" and not os.access(name, os.R_OK):
            raise ValueError(f"{name}: may not be read; give yourself the right to it")
        if stat.S_ISREG(status.st_mode) and _is_output(status):
            raise ValueError(f"{name}: is where the translations go, too; write them to another file")


def _is_output(status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.fstat(1))
    except OSError:
        return False


def read(files: Iterable[str]) -> Iterator[Line]:
    """The lines of all files, without their ends (LF or CR LF) and without a byte order mark.

    Nothing else ends a line: U+2028, U+0085, a lone CR and the like are white space inside a sentence.

    Raises:
        LineError: no UTF-8 text, a line without end, or a file that is gone.
    """
    for name in files:
        where, number = "standard input" if name == "-" else name, 0
        try:
            with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
                while content := file.readline(LONGEST + 1):
                    number += 1
                    yield Line(f"{where}, line {number}", _text(content, number == 1), len(content))
        except UnicodeDecodeError as error:
            raise LineError(
                f"{where}, line {number}: is not UTF-8 ({error.reason} at byte {error.start + 1}); convert the text, "
                f"with iconv for instance"
            ) from error
        except ValueError as error:
            raise LineError(f"{where}, line {number}: {error}") from error
        except OSError as error:
            raise LineError(f"{where}: cannot be read after line {number} ({error.strerror or error})") from error


def _text(content: bytes, first: bool) -> str:
    if first:
        for start, kind, command in _NO_TEXT:
            if content.startswith(start):
                raise ValueError(f"begins as {kind} does, not as text; give what `{command}` makes of it, by a pipe")
        content = content.removeprefix(b"\xef\xbb\xbf")
    if len(content) > LONGEST:
        raise ValueError(f"has over {LONGEST:,} bytes, as no line of text has; put line ends where sentences end")
    if b"\0" in content:
        raise ValueError("has a NUL character, so it is UTF-16, or damaged; convert the text, with iconv for instance")
    return content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")


# --- sentences ----------------------------------------------------------------------------------------------------

_CLOSING, _OPENING = "\"'”“’‘»«)]", "\"'“„‘«»([¿¡"
_END = regex.compile(  # without looking back over closing marks, of which a line may have a million
    r"(?<=[。！？])(?=.)|"
    rf"[.!?…][{regex.escape(_CLOSING)}]*\K\s+(?=[{regex.escape(_OPENING)}]*[\p{{Lu}}\p{{Lt}}\p{{Lo}}\p{{Nd}}])"
)


_WORD = 100  # letters; no abbreviation is longer


@cache
def _prefixes(language: str) -> tuple[frozenset[str], frozenset[str]]:
    """Words whose period ends no sentence, from Moses: always, and before a digit. English ones for other languages."""
    from sacremoses.corpus import NonbreakingPrefixes

    words = [line.partition(" #") for line in NonbreakingPrefixes().words(language)]
    return tuple(frozenset(word for word, mark, _ in words if bool(mark) == numeric) for numeric in (False, True))


def sentences(text: str, language: str) -> list[str]:
    """`text` cut where sentences end: after . ! ? … and a space, before a digit or a letter that is not lower-case.

    A period after one letter ("J. S. Bach") or after what Moses knows as an abbreviation of the language ends none.
    """
    always, before_digit = _prefixes(language)
    found, start = [], 0
    for match in _END.finditer(text):
        word = text[max(start, match.start() - _WORD) : match.start()].split()[-1:]
        stem = word[0].removesuffix(".").lstrip(_OPENING) if word and word[0].endswith(".") else ""
        abbreviated = stem in always or (stem in before_digit and text[match.end()].isdigit())
        if not (abbreviated or (len(stem) == 1 and stem.isalpha())):
            found.append(text[start : match.start()])
            start = match.end()
    return [sentence for sentence in (*found, text[start:]) if sentence.strip()]


# --- translating --------------------------------------------------------------------------------------------------


def open_model(
    folder: Path, device: str | None = None, max_tokens: int | None = None, precision: str | None = None
) -> hub.ReleasedModel:
    """A released model on a device.

    Args:
        folder: of the release; a folder of bare checkpoints does not say what its pieces are, so it is refused.
        device: by torch's names; None: a GPU if there is one.
        max_tokens: tokens (padding counts) of a batch; None: `hub.BATCH_TOKENS`.
        precision: one of `macaron.decoding.PRECISIONS`; None: the release's, where the processor has it.

    Raises:
        ValueError: no released model, a damaged one, no such device, or one without that precision.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device).cpu()
    except Exception as error:  # of any kind, by the device
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device {device}: cannot be used here ({reason}); leave it out, or give cpu") from error
    try:
        precision = precision and choose_precision(precision, device)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    if folder.is_file() and not places.is_archive(folder):
        raise ValueError(f"{folder}: is a file; give the folder of a released model")
    folder = places.model_folder(folder)
    if not released.is_described(folder):
        raise ValueError(
            f"{folder}: is no released model, as there is no {released.DESCRIPTION} in it, which says how text becomes "
            f"pieces; {places.contents(folder)}. `python -m recipes.translation.release` makes one of a run"
        )
    model = hub.open_release(MacaronModel, folder, max_tokens=max_tokens or hub.BATCH_TOKENS, precision=precision)
    return model.to(device).eval()


class Filter:
    """Encoded lines to lines of output.

    Args:
        model: a released one.
        beam: None: the recipe's.
        nbest: lines that each line becomes, the best first; at most `beam`.
        scores: log2 of the probability over the length to the power of lenpen, as fairseq-generate has it, and a tab
            before each translation; 0 for an empty line.
        max_tokens: of a batch, by the source.
        split: a line longer than the model takes is translated sentence by sentence; otherwise it is refused.

    Raises:
        ValueError: options that exclude each other.
    """

    def __init__(
        self,
        model: hub.ReleasedModel,
        *,
        beam: int | None = None,
        nbest: int = 1,
        scores: bool = False,
        max_tokens: int | None = None,
        split: bool = False,
    ):
        self.model, self.nbest, self.scores, self.split = model, nbest, scores, split
        self.options = {**model.generation, "nbest": nbest}
        self.options["beam"] = beam = beam or self.options["beam"]
        self.max_tokens = max_tokens or hub.BATCH_TOKENS
        if nbest > beam:
            raise ValueError(f"--nbest {nbest}: a beam of {beam} has no more than {beam} translations; raise --beam")
        if split and nbest > 1:
            raise ValueError(
                f"--nbest {nbest} with --too-long split: a line of several sentences has no list of best translations; "
                f"give one of the two"
            )

    def encode(self, line: Line) -> list[torch.Tensor]:
        """Its sentences in numbers: none for a line without text, more than one for a line that is split.

        Raises:
            LineError: a line, or one sentence of it, is longer than the model takes.
        """
        if is_blank(line.text):
            return []
        whole = self.model.encode(line.text)
        if whole.numel() <= self.model.longest:
            return [whole] if whole.numel() > 1 else []  # more than the end of a sentence
        if not self.split:
            raise LineError(
                f"{line.place}: has {whole.numel():,} tokens, and the model takes {self.model.longest:,}; split it, or "
                f"add --too-long split"
            )
        parts = [self.model.encode(one) for one in sentences(line.text, self.model.tokenizer.source.language)]
        for number, part in enumerate(parts, 1):
            if part.numel() > self.model.longest:
                raise LineError(
                    f"{line.place}: sentence {number} of {len(parts)} has {part.numel():,} tokens, and the model takes "
                    f"{self.model.longest:,}; split it by hand"
                )
        return [part for part in parts if part.numel() > 1]

    def __call__(self, lines: list[list[torch.Tensor]]) -> Iterator[tuple[int, list[str]]]:
        """(index, what comes out for it), as it is done; the shortest first."""
        places = [(index, part) for index, parts in enumerate(lines) for part in range(len(parts))]
        found: list[list[Any]] = [[None] * len(parts) for parts in lines]
        for index, parts in enumerate(lines):
            if not parts:
                yield index, self._shown([])
        missing = [len(parts) for parts in lines]
        for number, hypotheses in self._generate([lines[index][part] for index, part in places]):
            index, part = places[number]
            found[index][part] = hypotheses
            missing[index] -= 1
            if not missing[index]:
                yield index, self._shown(found[index])

    def _generate(self, sources: list[torch.Tensor]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(number, hypotheses) of each source; batch by batch where fairseq's generator does it."""
        if not sources:
            return
        try:
            stream = self.model.stream(sources, self.max_tokens, **self.options)
            if stream is not None:
                yield from stream
                return
            lengths = [max(SHORTEST, source.numel()) for source in sources]
            for batch in _batches(lengths, self.max_tokens):
                found = self.model.generate([sources[number] for number in batch], **self.options)
                yield from zip(batch, found, strict=True)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the device has not enough memory ({str(error).splitlines()[0]}); lower --max-tokens, now "
                f"{self.max_tokens}, or --beam"
            ) from error

    def _shown(self, parts: list[list[dict[str, Any]]]) -> list[str]:
        """The translations of a line, from the hypotheses of its sentences."""
        if not parts:
            return [self._line(0.0, "")] * self.nbest
        rows = []
        for hypotheses in list(zip(*parts, strict=False))[: self.nbest]:
            text = " ".join(self.model.decode(one["tokens"]) for one in hypotheses)
            rows.append(self._line(self._score(hypotheses), text))
        return rows + [self._line(float("-inf"), "")] * (self.nbest - len(rows))

    def _score(self, hypotheses: tuple[dict[str, Any], ...]) -> float:
        """That of one sentence, or of several as if they were one."""
        settings = {**self.model.cfg.generation, **self.options}
        power = 0.0 if settings["unnormalized"] else settings["lenpen"]
        sizes = [len(one["tokens"]) for one in hypotheses]
        total = sum(float(one["score"]) * size**power for one, size in zip(hypotheses, sizes, strict=True))
        return total / sum(sizes) ** power / log(2)

    def _line(self, score: float, text: str) -> str:
        return f"{score:.4f}\t{text}" if self.scores else text


def _batches(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Indices by length, in groups whose sentences, padded to the longest, have at most `most` tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def translate(lines: Iterable[Line], to: BinaryIO, work: Filter, window: int = WINDOW, total: int | None = None) -> int:
    """Write the translation of each line, in order, and return how many lines that were.

    Args:
        to: UTF-8 goes there, flushed after each window.
        window: lines read ahead; 1 answers each line at once.
        total: lines that are to come, for the progress bar, which a terminal alone shows.

    Raises:
        LineError: a line that cannot be translated, after all lines before it have been written.
        KeyboardInterrupt: says how many lines have been written.
    """
    done = size = 0
    ready: list[list[torch.Tensor]] = []
    with tqdm(total=total, unit=" lines", disable=None) as bar:

        def flush() -> int:
            out: list[list[str]] = [[] for _ in ready]
            for index, rows in work(ready):
                out[index] = rows
                bar.update()
            to.write("".join(f"{row}\n" for rows in out for row in rows).encode("utf-8"))
            to.flush()
            ready.clear()
            return len(out)

        try:
            for line in lines:
                ready.append(work.encode(line))
                size += line.size
                if len(ready) >= window or size >= WINDOW_BYTES:
                    done, size = done + flush(), 0
        except LineError:
            flush()
            raise
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(f"interrupted; the first {done:,} lines are translated") from interrupt
        return done + flush()


def run(
    release: Path,
    files: list[str],
    *,
    device: str | None,
    window: int | None,
    max_tokens: int | None,
    precision: str | None = None,
    **options: Any,
) -> None:
    """`macaron translate`.

    Args:
        files: none: standard input.
        window: None: 1 where somebody types, else `WINDOW`.
        precision: of `open_model`.
        options: of `Filter`.
    """
    files = files or ["-"]
    if sys.stdout is None:
        raise ValueError("standard output is closed; send it to a file or a pipe")
    check_files(files)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # of torch and fairseq, about themselves
    work = Filter(open_model(release, device, max_tokens, precision), max_tokens=max_tokens, **options)
    window = window or (1 if files == ["-"] and os.isatty(0) else WINDOW)
    translate(read(files), sys.stdout.buffer, work, window, count(files) if sys.stderr.isatty() else None)


def count(files: Iterable[str]) -> int | None:
    """Lines of all files; None if one is read as it comes."""
    total = 0
    for name in files:
        if name == "-" or not os.path.isfile(name):
            return None
        with open(name, "rb") as file:
            last = b"\n"
            while block := file.read(2**20):
                total += block.count(b"\n")
                last = block[-1:]
            total += last != b"\n"
    return total
