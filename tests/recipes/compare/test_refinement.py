"""The table of what a refinement costs: its numbers, and the whole command on Multi30k."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipes.compare.refinement import compared, main, table


def test_what_a_refinement_moves() -> None:
    """The loss may stay where every word moves."""
    scores = [torch.tensor(values, dtype=torch.float64) for values in ([-1, -3], [-2, -2], [-2, -1.5])]
    found = compared(scores)
    assert found == {"loss": [2.0, 2.0, 1.75], "moved": [1.0, 0.25]}
    lines = table([{"splitting": "lie", "solver": "euler", **found}], 2).splitlines()
    assert lines[0].startswith("| splitting | solver | loss, 2 layers | loss 2 → 4 | loss 4 → 8 | a word, 2 → 4 |")
    assert lines[2] == "| lie | euler | 2.0000 | +0.0000 | -0.2500 | 1.0000 | 0.2500 |"


@pytest.mark.slow
def test_the_command(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared / "data" / "multi30k"
    if not data.is_dir():
        pytest.skip(f"no {data}")
    command = ["--data-dir", str(data), "--out", str(tmp_path), "--splittings", "lie", "--solvers", "midpoint"]
    assert main([*command, "--times", "1", "--max-update", "2"]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert all(5 < loss < 12 for loss in row["loss"]) and 0 < row["moved"][0] < 1
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
    assert main([*command, "--max-update", "3"]) == 1
    assert "was made with other settings" in capsys.readouterr().err
