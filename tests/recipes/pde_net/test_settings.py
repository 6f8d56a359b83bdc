"""Options, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.pde_net.__main__ import main, parser, settings_of
from recipes.pde_net.settings import PDEVariant, blocks, constraint, constraints_for, settings_for, variants


def test_blocks():
    assert blocks("0-6,9,12") == (0, 1, 2, 3, 4, 5, 6, 9, 12)
    assert blocks("3") == (3,)
    for text in ("", "0-", "2-1", "1,1", "3,2", "-1", "a", "1,,2", "0-9999"):
        with pytest.raises(RecipeError, match="--blocks"):
            blocks(text)


def test_constraints():
    assert [constraint(text) for text in ("frozen", "free", "moment", "2", "12")] == ["frozen", "free", "moment", 2, 12]
    for text in ("0", "-1", "1.5", "none", "02", ""):
        with pytest.raises(RecipeError, match="--constraint"):
            constraint(text)


def test_variants_are_named_once():
    found = variants(["2", "frozen", "2"], ["euler", "heun"])
    assert [variant.name for variant in found] == ["2-euler", "frozen-euler", "2-heun", "frozen-heun"]
    assert PDEVariant(2, "heun").title == "trained filters, constraint 2, heun"


def test_constraint_of_systems():
    assert constraints_for(settings_for("burgers")) == ("frozen", "2")
    assert constraints_for(settings_for("data", max_order=1)) == ("frozen", "2")
    assert constraints_for(settings_for("reaction_diffusion")) == ("frozen", "3")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--samples=0"], "--samples 0"),
        (["--iterations=0"], "--iterations 0"),
        (["--noise=-1"], "--noise -1"),
        (["--noise=nan"], "--noise nan"),
        (["--dt=0"], "--dt 0"),
        (["--viscosity=inf"], "--viscosity inf"),
        (["--held-out=0.5"], "--held-out 0.5: does not go with --system burgers"),
        (["--system=reaction_diffusion", "--viscosity=0.1"], "--viscosity 0.1: does not go with"),
        (["--data=f.npz", "--grid=32"], "--grid 32: does not go with --data"),
        (["--data=f.npz", "--held-out=1"], "--held-out 1.0"),
        (["--data=f.npz", "--system=burgers"], "--data and --system"),
        (["--components", "u"], "--components"),
        (["--seeds", "0"], "--seeds 0"),
        (["--seeds", "4294967296"], "--seeds 4294967296"),
        (["--jobs=0"], "--jobs 0"),
        (["--horizon=0.001"], "--horizon 0.001"),
        (["--max-dt=1e-300"], "--dt 0.01 in steps of --max-dt 1e-300 has more than 1,000,000"),
        (["--run-up=1e9"], "--run-up 1e+09 in steps"),
        (["--horizon=1e9"], "--horizon 1e+09 in steps of --dt 0.01"),
    ],
)
def test_options_that_no_run_can_have(words, message):
    with pytest.raises(RecipeError) as error:
        settings_of(parser().parse_args(words))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--size=4"], "size=4"),
        (["--size=401"], "fewer than the filters, which have --size 401"),
        (["--size=15", "--max-order=10", "--degree=1"], "at most 9"),
        (["--constraint=9"], "enlarge size"),
        (["--solver=leapfrog"], "leapfrog"),
        (["--degree=7"], "50,388 monomials of 12 derivatives"),
        (["--grid=5", "--size=7", "--scheme=central"], "5 x 5 points"),
    ],
)
def test_networks_that_cannot_be_built_leave_no_folder(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_torch(project_root: Path):
    code = "import sys; from recipes.pde_net.__main__ import parser; parser().format_help()"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=project_root, check=True)
