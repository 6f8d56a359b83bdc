"""A released model as a folder: what is in it, written and read by the same rules.

model.pt                     the parameters and the architecture
dict.<language>.txt          fairseq's dictionaries
bpecodes | sentencepiece.bpe.model
text.json                    how text becomes pieces, the beam search of the recipe, and the precision
SHA256SUMS                   of all files but README.md, which may be edited; `sha256sum -c SHA256SUMS` reads it too
"""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from macaron.files import digest
from macaron.text import TextError, TextSettings, read_json

from . import generation

DESCRIPTION = "text.json"
SUMS = "SHA256SUMS"
MODEL = "model.pt"
CARD = "README.md"
FORMAT = 3  # 2: without a precision; 1, which text.json did not say: without sums

STORED = ("fp32", "bf16", "int8")

_SUM = re.compile(r"([0-9a-f]{64})  (.+)")
_AGAIN = "copy the folder again, or make it anew with `python -m recipes.translation.release`"


@dataclass(frozen=True)
class Description:
    """What text.json says.

    Args:
        text: how text becomes pieces.
        generation: the recipe's beam search, by fairseq's names.
        precision: of the matrices in model.pt, and of the products wherever the processor has it: fp32, bf16 or int8.
        format: of the folder.

    Raises:
        KeyError, ValueError: what is missing, or makes no sense.
    """

    text: TextSettings
    generation: dict[str, Any]
    format: int = FORMAT
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if not isinstance(self.generation, dict):
            raise ValueError(f"generation {self.generation!r} must be options of the beam search by name")
        generation.check(self.generation, "generation")
        self.generation["beam"]  # must be said
        check_format(self.format)
        if self.precision not in STORED:
            raise ValueError(f"precision {self.precision!r} must be one of {', '.join(STORED)}")

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Description":
        check_format(content.get("format", 1))  # first: a later one may have other settings
        own = {"generation", "format", "precision"}
        text = {name: value for name, value in content.items() if name not in own}
        for f in fields(TextSettings):
            text[f.name]  # in their order, before anything is said about what is there
        return cls(
            TextSettings.of(text), content["generation"], content.get("format", 1), content.get("precision", "fp32")
        )

    def content(self) -> dict[str, Any]:
        """What `of` reads."""
        return {
            **self.text.content(),
            "generation": self.generation,
            "format": self.format,
            "precision": self.precision,
        }

    @property
    def parts(self) -> list[str]:
        """The files beside the checkpoint that a model needs."""
        dictionaries = [f"dict.{language}.txt" for language in self.text.languages]
        return [DESCRIPTION, self.text.released_name, *dictionaries]


class FormatError(ValueError):
    """A folder of another version; copying it again does not help."""


def check_format(found: Any) -> None:
    """
    Raises:
        FormatError: of a later version, or of none.
    """
    if type(found) is not int or found < 1:
        raise ValueError(f"format {found!r} is unknown; this version of macaron reads 1 to {FORMAT}")
    if found > FORMAT:
        raise FormatError(
            f"is of format {found}, and this version of macaron reads 1 to {FORMAT}; update it: pip install --upgrade "
            f"macaron-net"
        )


def is_described(folder: Path) -> bool:
    """Whether there is a description, or sums that say there was one."""
    if (folder / DESCRIPTION).is_file():
        return True
    return (folder / SUMS).is_file() and f"  {DESCRIPTION}\n" in (folder / SUMS).read_text("utf-8", errors="replace")


def write(folder: Path, description: Description) -> None:
    """text.json; `seal` follows when all other files are there."""
    content = json.dumps(description.content(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / DESCRIPTION).write_text(content + "\n", encoding="utf-8")


def seal(folder: Path) -> None:
    """Write the sums of all files that are there."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in (SUMS, CARD))
    lines = "".join(f"{digest(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(lines, encoding="utf-8")


def read(folder: Path, checkpoint_file: str = MODEL) -> Description:
    """The description of a whole and undamaged folder.

    Raises:
        ValueError: a description that makes no sense, a part that is missing, or one that is not what was released.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ValueError(f"{folder}: {DESCRIPTION} missing, which says how text becomes pieces; {_AGAIN}")
    try:
        description = Description.of(read_json(path))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (KeyError, ValueError) as error:
        kind = "" if isinstance(error, TextError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}: does not describe a released model ({kind}{error}); {_AGAIN}") from error
    parts = [checkpoint_file, *description.parts]
    sums = _read_sums(folder) if description.format >= 2 else {}
    if missing := [name for name in dict.fromkeys([*parts, *sums]) if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing; a released model is one folder with all its files, copy it again"
        )
    if description.format >= 2:
        if unknown := [name for name in parts if name not in sums]:
            raise ValueError(f"{folder / SUMS}: has no sum of {', '.join(unknown)}, so it was not released; {_AGAIN}")
        if damaged := [name for name, expected in sums.items() if digest(folder / name) != expected]:
            raise ValueError(
                f"{folder}: {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} not what was released, by the "
                f"sums in {SUMS}; {_AGAIN}"
            )
    return description


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {SUMS} missing, the sums of its files; {_AGAIN}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _SUM.fullmatch(line)
        if not match:
            raise ValueError(f"{path}: line {number} is no sum and the name of a file; {_AGAIN}")
        name = match[2]
        if name in sums or name in (".", "..", SUMS) or not name.isprintable() or set(name) & set("/\\:"):
            raise ValueError(
                f"{path}: line {number}: {name!r} {'comes twice' if name in sums else 'is no file of this folder'}; "
                f"{_AGAIN}"
            )
        sums[name] = match[1]
    return sums
