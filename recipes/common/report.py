"""Reports: texts, tables and figures in a row, as one HTML page that opens without a network, and as Markdown.

Whatever is text stays text: HTML is made by a template that escapes, and Markdown gets no tag and no cell too many.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TEMPLATE = Path(__file__).with_name("report.html")
MARKDOWN = {
    "plain": "{}",
    "big": "**{}**",
    "warning": "**{}**",
    "heading": "## {}",
    "subheading": "### {}",
    "item": "* {}",
    "code": "{fence}text\n{}\n{fence}",
}


@dataclass(frozen=True)
class Text:
    """
    Args:
        style: plain, big, warning, heading, subheading, item (of a list), or code.
    """

    text: str
    style: str = "plain"

    kind = "text"

    def __post_init__(self) -> None:
        if self.style not in MARKDOWN:
            raise ValueError(f"style {self.style!r}: choose one of {', '.join(MARKDOWN)}")

    def markdown(self) -> str:
        fence = "`" * (1 + max([2, *map(len, re.findall("`+", self.text))]))
        return MARKDOWN[self.style].format(self.text if self.style == "code" else untagged(self.text), fence=fence)


@dataclass(frozen=True)
class Table:
    """
    Args:
        rows: of cells, which are text.
        head: of the columns.
        marks: the rows that are shaded.
    """

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    marks: Sequence[bool] = ()

    kind = "table"

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Table:
        """Of names and values."""
        return cls([[name, str(value)] for name, value in entries.items()])

    @property
    def marked(self) -> list[tuple[Sequence[str], bool]]:
        return list(zip(self.rows, self.marks or [False] * len(self.rows), strict=True))

    def markdown(self) -> str:
        """The first column to the left, the others, which are numbers as a rule, to the right."""
        width = max(map(len, [self.head, *self.rows]))
        lines = [list(self.head) or [""] * width, ["---", *["--:"] * (width - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


@dataclass(frozen=True)
class Figure:
    """
    Args:
        name: of its PNG file, which lies beside the page for use elsewhere.
        title: for those who do not see it.
    """

    name: str
    drawing: Drawing
    title: str = ""

    kind = "figure"

    @cached_property
    def png(self) -> bytes:
        logging.getLogger("matplotlib").setLevel(logging.WARNING)
        buffer = io.BytesIO()
        self.drawing.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    @property
    def inlined(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    def markdown(self) -> str:
        return f"![{untagged(self.title or self.name)}]({self.name}.png)"


Part = Text | Table | Figure


@dataclass
class Report:
    """What a run leaves to read.

    Args:
        title: its first heading.
        parts: in their order.
    """

    title: str
    parts: list[Part] = field(default_factory=list)

    def add(self, *parts: Part) -> Report:
        self.parts += parts
        return self

    def section(self, title: str, *parts: Part) -> Report:
        """Parts under a heading; nothing without parts."""
        return self.add(Text(title, "heading"), *parts) if parts else self

    def html(self) -> str:
        """One file: figures are inside, and nothing is fetched."""
        from jinja2 import Environment

        made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return made.from_string(TEMPLATE.read_text(encoding="utf-8")).render(title=self.title, parts=self.parts) + "\n"

    def markdown(self) -> str:
        blocks = [f"# {untagged(self.title)}"]
        for before, part in zip([None, *self.parts], self.parts, strict=False):
            following = [getattr(p, "style", "") for p in (before, part)] == ["item", "item"]
            blocks.append(("\n" if following else "\n\n") + part.markdown())
        return "".join(blocks) + "\n"

    def write(self, folder: Path, html: str = "report.html", markdown: str | None = None) -> list[Path]:
        """The page, the figures as PNG beside it, and the same as Markdown, if that has a name; returns their paths."""
        files: dict[str, str | bytes] = {html: self.html()}
        if markdown:
            files[markdown] = self.markdown()
        figures = {f"{part.name}.png": part.png for part in self.parts if isinstance(part, Figure)}
        return write_all(folder, {**files, **figures})


def write_all(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Files by their names, each all or nothing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = folder / f"{name}.part"
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, folder / name)
    return [folder / name for name in files]


def untagged(text: str) -> str:
    """What looks like a tag of HTML is shown by Markdown, not obeyed."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)


def cell(text: str) -> str:
    """In one line, and one cell."""
    return re.sub(r"(\\*)\|", r"\1\1\\|", untagged(" ".join(text.split())))
