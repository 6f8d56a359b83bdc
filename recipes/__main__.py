"""python -m recipes: the recipes with a line each; `python -m recipes NAME …` is `python -m recipes.NAME …`."""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .common.errors import RecipeError
from .common.main import PACKAGE, module, run_command


def recipes() -> dict[str, str]:
    """{name: what it does}, read and not imported, since this should not wait for torch."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*/__main__.py")):
        about = ast.get_docstring(ast.parse(path.with_name("__init__.py").read_text(encoding="utf-8"))) or ""
        found[path.parent.name] = " ".join(about.partition("\n\n")[0].split())
    return found


def listed() -> str:
    """A line each, as wide as the terminal, with what follows indented."""
    known = recipes()
    width, column = shutil.get_terminal_size().columns, max(map(len, known)) + 4
    indents = {"initial_indent": "  ", "subsequent_indent": " " * column}
    lines = [
        textwrap.fill(f"{name:<{column - 4}}  {about}", max(width, 60), **indents) for name, about in known.items()
    ]
    return "\n".join([*lines, "", f"How to use one: python -m {module('NAME')} --help"])


def main(argv: Sequence[str] | None = None) -> int | None:
    name, *words = (sys.argv[1:] if argv is None else argv) or ("--help",)
    if name in ("-h", "--help"):
        print(f"python -m {PACKAGE}.NAME, where NAME is one of\n\n{listed()}")
        return 0
    if name not in recipes():
        raise RecipeError(f"{name!r} is no recipe; choose one of\n\n{listed()}")
    sys.argv = [os.fsdecode(name), *words]
    runpy.run_module(module(name), run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("", main))
