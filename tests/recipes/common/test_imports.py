"""Recipes import each other one way: whatever imports what, at the top or inside of a function, there is no circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import recipes

ROOT = Path(recipes.__path__[0])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.Module, package: str, modules: set[str]) -> set[str]:
    """The modules of recipes that are named in an import statement."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= names & modules or {origin}
    return found & modules


def test_no_circle() -> None:
    paths = {name_of(path): path for path in ROOT.rglob("*.py")}
    graph = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = imports(ast.parse(path.read_text(encoding="utf-8")), package, set(paths)) - {name}
    assert "recipes.common.errors" in graph["recipes.common.workspace"]  # the statements are understood
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
