"""CONTRIBUTING says what is true: its examples run, and what they add is there by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from macaron.dynamics import depth, get_rule, get_solver, get_splitting, rules, solvers, splitting
from macaron.particles import flows


@pytest.fixture(scope="module")
def text(project_root: Path) -> str:
    return (project_root / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def added(text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names after all examples but that of a recipe, in registries of their own."""
    for module, registry in ((splitting, "SPLITTINGS"), (solvers, "SOLVERS"), (rules, "RULES"), (flows, "FLOWS")):
        monkeypatch.setattr(module, registry, dict(getattr(module, registry)))
    examples = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "recipes/NAME" not in block]
    assert len(examples) == 4
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)  # our own text
    return names


def test_what_the_examples_add_is_there(added: dict[str, object]) -> None:
    assert get_splitting("turned") is added["TURNED"] and get_solver("ralston") is added["RALSTON"]
    x = torch.ones(2)
    moved = get_rule("damped", 3)(depth.Step(0, 3, None, x, lambda y: y + 1))
    torch.testing.assert_close(moved, torch.full((2,), 1.9))
    velocity, weights = flows.FLOWS["drift"](4)(torch.randn(3, 4), None)
    assert velocity.shape == (3, 4) and weights is None


def test_the_files_of_the_map_exist(text: str, project_root: Path) -> None:
    named = re.findall(r"`(macaron/[\w/]+\.py)`", text)
    assert len(named) >= 5
    for name in named:
        assert (project_root / name).is_file(), name
