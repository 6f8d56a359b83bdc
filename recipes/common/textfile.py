"""Text files of users: UTF-8, plain or packed, with lines that end at LF or CR LF. What is not that is refused."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import RecipeError

SUFFIXES = ("", ".xz", ".gz")
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}  # by the first bytes

# Text packs to a third or a tenth. What grows more than this when unpacked is made to fill a disk.
GROWTH = 32
SMALL = 64 * 2**20  # bytes that are always unpacked

UNPACKING = (EOFError, OSError, lzma.LZMAError, zlib.error)  # what can go wrong

OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins as UTF-16 does
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def packed(path: Path) -> Path | None:
    """`path`, or the same with .xz or .gz: whichever is there."""
    return next((there for suffix in SUFFIXES if (there := path.with_name(path.name + suffix)).is_file()), None)


def page(path: Path) -> str:
    """What a server sent in the place of data, in words; empty when it is no HTML or XML."""
    with path.open("rb") as file:
        start = file.read(1024)
    return "it is an HTML or XML page" if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<") else ""


class Bounded(io.RawIOBase):
    """`file`, which may not give more than `limit` bytes."""

    def __init__(self, file: IO[bytes], limit: int, name: Path):
        self.file = file
        self.left = self.limit = limit
        self.path = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise RecipeError(
                f"{self.path}: unpacks to more than {self.limit:,} bytes, {GROWTH} times its size, as no text does. "
                f"If that is right all the same, unpack it yourself and give what comes out"
            )
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The content; gzip and xz are known by their first bytes, whatever the file is called.

    Raises:
        RecipeError: while reading, for what unpacks to much more than text does; else one of `UNPACKING`.
    """
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        start = file.peek(8)
        opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            yield file
            return
        status = os.fstat(file.fileno())
        limit = max(SMALL, GROWTH * status.st_size) if stat.S_ISREG(status.st_mode) else 2**63
        content = stack.enter_context(opener(file))
        yield stack.enter_context(io.BufferedReader(Bounded(content, limit, path), 2**18))


def lines(path: Path, errors: str = "strict") -> Iterator[str]:
    """Lines without their ends; a byte order mark at the beginning of the file is none of the text.

    Nothing else ends a line, as universal newlines and `splitlines` would have it: a lone CR, U+2028 and the like are
    white space inside a sentence.

    Args:
        errors: what is done with a line that is not UTF-8, as `bytes.decode` has it.

    Raises:
        RecipeError: the file cannot be read, or is not UTF-8. NUL is no text either: it comes from UTF-16, or from
            blocks that a broken disk left empty.
    """
    number = 0
    try:
        with unpacked(path) as file:
            for line in file:
                if number == 0:
                    for mark, encoding in OTHER_ENCODINGS.items():
                        if line.startswith(mark):
                            raise not_utf8(path, number, f"it begins as {encoding} does")
                    while line.startswith(codecs.BOM_UTF8):
                        line = line.removeprefix(codecs.BOM_UTF8)
                    if not line:
                        return
                if b"\0" in line:
                    raise not_utf8(path, number, "a NUL character: it is UTF-16, or damaged")
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", errors)
                number += 1
    except UnicodeDecodeError as error:
        raise not_utf8(path, number, str(error)) from error
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: no such file; correct the path") from error
    except UNPACKING as error:
        raise RecipeError(
            f"{path}: cannot be read after line {number} ({error}); is it complete? Fetch a truncated or corrupt file "
            f"again"
        ) from error


def not_utf8(path: Path, number: int, reason: str) -> RecipeError:
    return RecipeError(
        f"{path}: not UTF-8 after line {number} ({reason}); convert the file, with iconv for instance, or fetch it anew"
    )
