"""The whole recipe through its command line: interrupted and resumed, added to, spread over processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macaron import checkpoint
from macaron.files import digest
from recipes.common.errors import RecipeError
from recipes.pde_net import pipeline, report, training
from recipes.pde_net.__main__ import main

OWN = ["--scheme=central", "--layers=1", "--blocks=0-1", "--iterations=40", "--samples=6", "--seeds", "1"]
BURGERS = [
    "--samples=2", "--blocks=0-1", "--iterations=3", "--grid=8", "--horizon=0.1", "--run-up=0.05", "--test=2",
    "--max-dt=0.01", "--jobs=1",
]  # fmt: skip


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """They take longer to draw than these trainings."""
    for name in ("coefficients_figure", "rollouts_figure", "fields_figure"):
        monkeypatch.setattr(report, name, lambda experiment, found: None)
    monkeypatch.setattr("recipes.common.report.Figure.png", b"")


def networks(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        str(path.relative_to(out)): checkpoint.load(path)["model"] for path in sorted(out.glob("seed-*/*/block*.pt"))
    }


def same(a: Path, b: Path) -> None:
    first, second = networks(a), networks(b)
    assert first and first.keys() == second.keys()
    for name, state in first.items():
        for key, tensor in state.items():
            assert torch.equal(tensor, second[name][key]), f"{name}: {key}"
    for path in a.glob("seed-*/*/rollout.json"):
        assert path.read_bytes() == (b / path.relative_to(a)).read_bytes()


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def test_an_equation_comes_out_of_a_file(content, written, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(["--data", str(written(content)), "--out", str(out), *OWN, "--constraint", "3"]) == 0
    said = capsys.readouterr().out
    assert "none of 1 roll-outs" in said
    (run,) = result(out)["runs"]["3-euler"].values()
    found = run["blocks"][-1]["equations"][0]["coefficients"]
    known = {"c01": (-0.5, 0.02), "c02": (0.1, 0.04), "c20": (0.1, 0.04), "c00": (-0.2, 0.04)}
    for name, (c, off) in known.items():  # what the sparsity and Euler's step take away
        assert found[name] == pytest.approx(c, abs=off)
    assert max(abs(c) for name, c in found.items() if name not in known) < 0.01
    assert run["rollout"]["error"][-1][0] < 1e-3
    assert result(out)["truth"] is None and "c_t = " in (out / "report.html").read_text(encoding="utf-8")
    for name in ("coefficients.png", "rollouts.png", "fields.png", "table.md"):
        assert (out / name).stat().st_size > 100
    # What the recipe writes, it reads.
    with np.load(out / "test.npz") as test:
        assert np.array_equal(test["fields"], content["fields"][3:])


def test_interrupted_and_resumed_gives_the_same_bits(tmp_path: Path, monkeypatch, capsys, no_figures):
    arguments = [*BURGERS, "--seeds", "1"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    whole = result(tmp_path / "whole")
    assert set(whole["runs"]) == {"frozen-euler", "2-euler"}

    real, calls = training.train_block, 0

    def interrupted(*given, **more):
        nonlocal calls
        calls += 1
        if calls == 4:  # in the last block of the second variant
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(training, "train_block", interrupted)
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 130
    monkeypatch.setattr(training, "train_block", real)
    before = (out / "seed-1" / "frozen-euler" / "block-1.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*arguments, "--out", str(out)]) == 0
    lines = capsys.readouterr().out
    assert "2-euler  block 1" in lines and "frozen-euler  block" not in lines and "2-euler  block 0" not in lines
    assert (out / "seed-1" / "frozen-euler" / "block-1.pt").stat().st_mtime_ns == before
    same(tmp_path / "whole", out)

    # A seed and a solver are added; what was there stays.
    more = [*BURGERS, "--seeds", "1", "2", "--constraint", "2", "--solver", "euler", "heun"]
    assert main([*more, "--out", str(out)]) == 0
    runs = result(out)["runs"]
    assert {name: set(seeds) for name, seeds in runs.items()} == {"2-euler": {"1", "2"}, "2-heun": {"1", "2"}}
    assert runs["2-euler"]["1"] == whole["runs"]["2-euler"]["1"] | {
        "seconds": runs["2-euler"]["1"]["seconds"], "blocks": runs["2-euler"]["1"]["blocks"],
    }  # fmt: skip
    first, second = (runs[name]["1"]["blocks"][0]["loss"] for name in ("2-euler", "2-heun"))
    assert first != second

    # Other settings are refused, and what was changed by hand is noticed.
    assert main([*arguments, "--out", str(out), "--noise=0.5"]) == 1
    assert "made with other settings" in capsys.readouterr().err
    (out / "seed-1" / "data-1.npz").write_bytes(b"")
    assert main([*arguments, "--out", str(out)]) == 1
    assert "has changed since stage 'data-1'" in capsys.readouterr().err


def test_a_variant_that_fails_leaves_the_others(tmp_path: Path, monkeypatch, capsys, no_figures):
    real = training.train_block

    def failing(net, u, block, *rest):
        if block and net.filter("fd01").constraint == "frozen":
            raise RecipeError("block 1: the loss is nan")
        return real(net, u, block, *rest)

    monkeypatch.setattr(training, "train_block", failing)
    assert main([*BURGERS, "--seeds", "1", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "seed 1, frozen-euler failed: block 1: the loss is nan" in said.err
    assert "frozen filters, euler: no seed is finished" in said.out
    found = result(tmp_path / "out")
    assert not found["runs"]["frozen-euler"] and set(found["runs"]["2-euler"]) == {"1"}
    assert "the loss is nan" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_changed_file_of_data_is_another_run(content, written, tmp_path: Path, capsys, no_figures):
    path = written(content)
    arguments = ["--data", str(path), "--out", str(tmp_path / "out"), *OWN, "--iterations=2", "--constraint=frozen"]
    assert main(arguments) == 0
    written(content | {"fields": content["fields"] + 1})
    assert main(arguments) == 1
    assert "data = " in capsys.readouterr().err


def test_a_file_that_changes_under_a_run_is_noticed(content, written):
    path = written(content)
    known = digest(path)
    assert pipeline.own_fields(path, ("c",), known).components == ("c",)
    written(content | {"fields": content["fields"] + 1})
    pipeline.own_fields.cache_clear()
    with pytest.raises(RecipeError, match="has changed since the run began"):
        pipeline.own_fields(path, ("c",), known)


def test_what_was_changed_by_hand_is_told_and_not_in_the_report(tmp_path: Path, capsys, no_figures):
    out = tmp_path / "out"
    arguments = [*BURGERS, "--seeds", "1", "2", "--iterations=1", "--out", str(out)]
    assert main(arguments) == 0
    record = out / "seed-1" / "2-euler" / "block-1.json"
    whole = record.read_bytes()
    for changed in (whole.replace(b'"loss": ', b'"loss": 9'), whole[:100]):
        record.write_bytes(changed)
        capsys.readouterr()
        assert main(arguments) == 1
        assert "block-1.json: has changed since stage '2-euler-1'" in capsys.readouterr().err
        assert {name: set(runs) for name, runs in result(out)["runs"].items()} == {
            "frozen-euler": {"1", "2"}, "2-euler": {"2"},
        }  # fmt: skip
    record.write_bytes(whole)
    # The other seed's data in the place of one's own.
    own, other = (out / f"seed-{seed}" / "data-1.npz" for seed in (1, 2))
    kept = own.read_bytes()
    own.write_bytes(other.read_bytes())
    assert main(arguments) == 1
    assert {name: set(runs) for name, runs in result(out)["runs"].items()} == {"frozen-euler": {"2"}, "2-euler": {"2"}}
    own.write_bytes(kept)
    assert main(arguments) == 0 and set(result(out)["runs"]["2-euler"]) == {"1", "2"}


@pytest.mark.slow
def test_processes_give_the_same_bits(tmp_path: Path, no_figures):
    arguments = [*BURGERS, "--seeds", "1", "2"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    assert main([*arguments, "--jobs=2", "--out", str(tmp_path / "two")]) == 0
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["burgers", "reaction_diffusion"])
def test_equations_are_found(system, tmp_path: Path, no_figures):
    """One seed and six samples: coefficients of the right size, few others."""
    arguments = ["--system", system, "--samples=6", "--blocks=0-2", "--iterations=300", "--seeds", "1", "--test=2"]
    assert main([*arguments, "--horizon=0.4", "--constraint", "2", "--out", str(tmp_path / "out")]) == 0
    (run,) = result(tmp_path / "out")["runs"]["2-euler"].values()
    for equation, known in zip(run["blocks"][-1]["equations"], result(tmp_path / "out")["truth"], strict=True):
        for name, c in known.items():
            assert equation["coefficients"][name] == pytest.approx(c, abs=0.15 if abs(c) >= 0.2 else 0.03)
        others = [abs(c) for name, c in equation["coefficients"].items() if name not in known]
        assert max(others) < 0.1


def test_the_equation_hangs_on_no_unit(content, written, tmp_path: Path, no_figures):
    """Fields times 1000, time in thousandths, lengths in millionths: the same equation, each term in its units."""
    found = []
    for name, field, time, length in (("one", 1.0, 1.0, 1.0), ("other", 1e3, 1e-3, 1e-6)):
        path = written(
            content
            | {"fields": field * content["fields"], "time": time * content["time"]}
            | {axis: length * content[axis] for axis in "xy"}
        )
        out = tmp_path / name
        assert main(["--data", str(path), "--out", str(out), *OWN, "--constraint", "3"]) == 0
        (run,) = result(out)["runs"]["3-euler"].values()
        equation = run["blocks"][-1]["equations"][0]
        terms = {"c00": 1.0, "c01": length, "c02": length**2, "c20": length**2}
        found.append([equation["coefficients"][term] * time / unit for term, unit in terms.items()])
        found.append([equation["shares"][term] for term in terms])
    # BFGS carries the units' rounding on.
    assert found[2:] == [pytest.approx(found[0], rel=1e-3), pytest.approx(found[1], rel=1e-3)]


def test_a_component_that_rests_in_a_block_is_no_error(content, written, tmp_path: Path, no_figures):
    """The files of a run are read for what they are, not judged as a user's."""
    values = np.concatenate([content["fields"], 0 * content["fields"]], 2)
    values[2, 5, 1] = content["fields"][2, 5, 0]  # so that it is not the same value everywhere
    path = written(content | {"fields": values, "components": np.array(["c", "d"])})
    arguments = ["--data", str(path), "--out", str(tmp_path / "out"), *OWN, "--samples=2", "--iterations=2"]
    assert main([*arguments, "--constraint=frozen"]) == 0


def test_too_long_a_step_of_the_solver_is_named(tmp_path: Path, capsys, no_figures):
    more = ["--max-dt=0.5", "--dt=0.5", "--horizon=40", "--run-up=40", "--seeds=1", "--grid=16"]
    assert main([*BURGERS, *more, "--out", str(tmp_path / "out")]) == 1
    assert "--max-dt 0.5: the solver that makes the data overflows" in capsys.readouterr().err


def test_the_help_says_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "BFGS in a block, at most (default: 400)" in said
    assert "solver that makes the data; the original's is 0.000625 (default: 0.0025 with burgers, 0.01 with" in said
