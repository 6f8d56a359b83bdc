"""The command line: what it plans, refuses, keeps and does again; and, slowly, a whole experiment that is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes.common import jobs, multistep
from recipes.compare import __main__ as cli
from recipes.compare.experiment import Experiment
from recipes.compare.matched import Size
from recipes.translation.checkpoints import load

# A recipe in milliseconds: it copies a finished run, unless a file called fail-<run> is there.
FAKE = """
import json, pathlib, shutil, sys
arguments, templates = sys.argv[1:], pathlib.Path({templates!r})
out = pathlib.Path(arguments[arguments.index("--out") + 1])
if (templates / f"fail-{{out.name}}").exists():
    sys.exit("no memory left")
shutil.copytree(templates / ("data" if "prepare" in arguments else "run"), out, dirs_exist_ok=True)
if "--scheme" in arguments and "--max-update" in arguments:
    stamp = json.loads((out / "stamps" / "train.json").read_text())
    updates = int(arguments[len(arguments) - arguments[::-1].index("--max-update")])
    (out / "stamps" / "train.json").write_text(json.dumps({{**stamp, "updates": updates}}))
with (templates / "calls").open("a") as calls:
    print(out.name, file=calls)
"""


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders as the real recipe makes them, and the fake recipe in its place."""
    folder = tmp_path / "templates"
    lines = [f"line {number} is about a green house ." for number in range(30)]
    contents = {
        "data/stamps/prepare.json": json.dumps({"notice": "a subset, not comparable with anything"}),
        "data/raw/test.en": "\n".join(lines) + "\n",
        "data/text/test.en": "\n".join(lines) + "\n",
        "run/hyp/test.en": "\n".join(lines).replace("green", "red") + "\n",
        "run/hyp/test.tok.en": "\n".join(lines).replace("green", "red") + "\n",
        "run/train.log": '1 | INFO | train_inner | {"num_updates": "5", "wpb": "9", "bsz": "3", "lr": "1"}\n'
        '2 | INFO | valid | {"valid_num_updates": "5", "valid_nll_loss": "3.5"}\n',
        "run/stamps/train.json": json.dumps({"parameters": 10, "updates": 5, "train_seconds": 6}),
        "run/stamps/prepare-binary.json": json.dumps({"files": {}}),
        "run/stamps/score.json": "{}",
        "run/scores.json": json.dumps(
            {name: {"title": name, "score": 50.0, "signature": "v:1"} for name in ("paper", "sacreBLEU", "chrF2")}
        ),
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "fake.py").write_text(FAKE.format(templates=str(folder)))
    command = [sys.executable, str(folder / "fake.py")]
    monkeypatch.setattr(Experiment, "_command", lambda _, *arguments: [*command, *map(str, arguments)])
    monkeypatch.setattr("recipes.compare.matched.size_of", lambda *_: Size(8, 2))
    monkeypatch.setattr("recipes.common.jobs.POLL_SECONDS", 0.02)
    return folder


def compare(folder: Path, *more: str, jobs: int = 2) -> int:
    seeds = () if "--seeds" in more else ("--seeds", "1", "2")
    # the handler that main() installs must not outlive the test
    before = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main(["--recipe=multi30k_de_en", "--out", str(folder), f"--jobs={jobs}", *seeds, *more])
    finally:
        signal.signal(signal.SIGTERM, before)


def calls(templates: Path) -> list[str]:
    path = templates / "calls"
    names = sorted(path.read_text().split()) if path.exists() else []
    path.unlink(missing_ok=True)
    return names


@pytest.mark.parametrize("count", [1, 2])
def test_one_failure_loses_nothing_else(
    templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    out = tmp_path / "out"
    (templates / "fail-strang-seed2").touch()
    assert compare(out, jobs=count) == 1
    assert calls(templates) == ["data", "lie-seed1", "lie-seed2", "strang-seed1"]
    printed = capsys.readouterr()
    assert "no memory left" in printed.out and "Unfinished and left out: strang-seed2." in printed.out
    assert "1 runs failed (strang-seed2); the others are kept" in printed.err
    assert json.loads((out / "results.json").read_text())["seeds"] == [1]

    (templates / "fail-strang-seed2").unlink()
    assert compare(out) == 0
    assert calls(templates) == ["data", "strang-seed2"]
    printed = capsys.readouterr()
    assert printed.out.count("done before") == 3 and "a subset, not comparable with anything" in printed.out
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == [1, 2] and results["systems"]["lie"]["paper"]["mean"] == 50
    assert results["environment"]["runs at a time"] == 2 and results["notice"].startswith("a subset")

    assert compare(out, "--seeds", "1", "2", "3") == 0
    assert calls(templates) == ["data", "lie-seed3", "strang-seed3"]


def test_other_options_are_not_mixed_in(templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path / "out", "--", "--max-update", "5") == 0
    assert compare(tmp_path / "out", "--", "--max-update", "6") == 1
    assert "made with other settings" in capsys.readouterr().err
    assert compare(tmp_path / "out", "--restart", "--", "--max-update", "6") == 0
    assert (tmp_path / "out.old1" / "results.json").exists()


def test_data_that_cannot_be_prepared(templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (templates / "fail-data").touch()
    assert compare(tmp_path / "out") == 1
    assert "the data could not be prepared" in capsys.readouterr().err and calls(templates) == []


def test_runs_that_are_not_matched(templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1, and the report says it."""
    start, folder = jobs.start, tmp_path / "out" / "runs" / "strang-seed1"

    def meddle(command: Sequence[str], *others: Any, **options: Any) -> subprocess.Popen[bytes]:
        if str(folder) in command:
            shutil.copytree(templates / "run", folder)
            stamp = templates / "run" / "stamps" / "train.json"
            stamp.write_text(stamp.read_text().replace('"updates": 5', '"updates": 4'))
        return start(command, *others, **options)

    monkeypatch.setattr(jobs, "start", meddle)
    assert compare(tmp_path / "out", "--seeds", "1", "--jobs=1") == 1
    assert "NOT MATCHED: seed 1: strang and lie differ in updates: 4 and 5" in (tmp_path / "out/results.md").read_text()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_unequal_sizes_stop_before_the_preparation(
    templates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str],
) -> None:
    sizes = iter((Size(1000, 10), Size(1002, 10)))
    monkeypatch.setattr("recipes.compare.matched.size_of", lambda *_: next(sizes))
    assert compare(tmp_path / "out", *more) == 1
    assert "strang has 1,002 parameters in its weight matrices and lie 1,000" in capsys.readouterr().err
    assert calls(templates) == [] and not (tmp_path / "out").exists()


def test_the_norms_of_a_small_model(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five per cent apart, all of it the scheme's own: allowed, and said."""
    sizes = iter([Size(1000, 10), Size(1000, 60)] * 2)
    monkeypatch.setattr("recipes.compare.matched.size_of", lambda *_: next(sizes))
    assert compare(tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "strang has 50 more than lie in norms and biases, which is the scheme's own" in printed
    assert "parameters: lie 1,010, strang 1,060" in printed and "parameters within 4.950 % of lie" in printed


def test_a_damaged_run_is_named(templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the others are reported; moved away, it is done again."""
    out = tmp_path / "out"
    assert compare(out) == 0 and len(calls(templates)) == 5
    (out / "runs" / "lie-seed1" / "scores.json").write_text("[1, 2")
    (out / "results.json").write_text("damaged as well")
    assert compare(out) == 1
    assert "NOT READABLE and left out: lie-seed1: " in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text())["seeds"] == [2]
    assert calls(templates) == ["data"]
    (out / "runs" / "lie-seed1").rename(tmp_path / "away")
    assert compare(out) == 0
    assert calls(templates) == ["data", "lie-seed1"]


def test_logs_that_are_too_short(templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before, and said of the result; it is not called another order of the data."""
    log = templates / "run" / "train.log"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "train_inner" not in line))
    assert compare(tmp_path / "out", "--", "--max-update", "5") == 1
    printed = capsys.readouterr()
    assert "note: 5 updates will leave too few lines in the logs" in printed.err
    assert "NOT CHECKED: seed 1: too few lines in the logs" in printed.out and "NOT MATCHED" not in printed.out


COSTS = """
import json, pathlib, sys
out, variants = pathlib.Path(sys.argv[1]), sys.argv[2:]
cost = {"low": 1, "high": 1, "seconds": 1, "updates": 3}
costs = {name: {**cost, "ratio": 1.25 if "," in name else 1} for name in variants}
out.write_text(json.dumps({"baseline": variants[0], "variants": costs}))
print("measured")
"""


def test_equal_cost(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What costs 1.25 times as much gets 1/1.25 of the updates; measured once, and again for what is added."""
    monkeypatch.setattr(
        Experiment,
        "cost_command",
        lambda of, updates: [sys.executable, "-c", COSTS, str(of.cost), *of.variants],
    )
    out, more = tmp_path / "out", ("--", "--max-update=5", "--warmup-updates=1")
    given = (out, "--seeds=1", "--equal=cost", "--variants", "lie", "strang,rk2")
    assert compare(*given, *more) == 0
    printed = capfd.readouterr().out
    assert "measured\n" in printed and calls(templates) == ["data", "lie-seed1", "strang-rk2-seed1"]
    assert "| lie | 10 | 5 | 1.000 [1.000, 1.000] | 1.000 |" in printed
    assert "| strang,rk2 | 10 | 4 | 1.250 [1.000, 1.000] | 1.000 |" in printed
    assert "the same batches in all 1 windows of updates" in printed and "(and what its rule or solver" in printed
    assert "Equal cost: the time of an update was measured with the variants in turn" in printed
    results = json.loads((out / "results.json").read_text())
    assert (
        "--scheme strang,rk2 --seed 1 --max-update=5 --warmup-updates=1 --max-update 4"
        in (results["commands"]["strang-rk2-seed1"])
    )
    assert [(r["variant"], r["splitting"]) for r in results["runs"]] == [("lie", "lie"), ("strang,rk2", "strang")]

    assert compare(*given, "lie,dt=0.5", *more) == 0
    assert "measured\n" in capfd.readouterr().out and calls(templates) == ["data", "lie-dt-0.5-seed1"]
    assert compare(*given, *more) == 0
    assert "measured\n" not in capfd.readouterr().out and calls(templates) == ["data"]
    assert compare(out, "--seeds=1", "--variants", "lie", "strang,rk2", *more) == 1
    assert "made with other settings (equal = 'cost' there, None now)" in capfd.readouterr().err

    cost = json.loads((out / "cost.json").read_text())
    cost["variants"]["strang,rk2"]["ratio"] = 2.0
    (out / "cost.json").write_text(json.dumps(cost))
    assert compare(*given, *more) == 1
    assert "strang,rk2 has made 4 updates, and was to make 2 by its cost" in capfd.readouterr().out


# --- the real recipe ----------------------------------------------------------------------------------------------


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan are commands that can be typed, and nothing is done."""
    out = tmp_path / "out"
    assert compare(out, "--dry-run", "--", "--max-update", "7") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("4 runs, 2 at a time") and len(lines) == 7
    assert "strang has 1,536 more than lie in norms and biases" in lines[1]
    assert lines[2] == f"python -m recipes.multi30k_de_en prepare --out {out}/data --max-update 7"
    assert lines[4] == (
        f"python -m recipes.multi30k_de_en score --out {out}/runs/strang-seed1 --prepared {out}/data "
        f"--splitting strang --seed 1 --max-update 7"
    )
    assert not out.exists()


def test_dry_run_of_a_splitting_in_notation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two attentions and one FFN have more matrices than one and two: not comparable, and said before anything."""
    given = (tmp_path / "out", "--seeds", "1", "--dry-run", "--splittings")
    assert compare(*given, "strang", "ffn/2 attention cross_attention ffn/2.0") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == (
        f"python -m recipes.multi30k_de_en score --out {tmp_path}/out/runs/ffn-2-attention-cross_attention-ffn-2-seed1 "
        f"--prepared {tmp_path}/out/data --splitting 'ffn/2 attention cross_attention ffn/2' --seed 1"
    )
    assert compare(*given, "lie", "attention/2 ffn attention/2") == 1
    assert "attention/2 ffn attention/2 has " in capsys.readouterr().err
    assert compare(*given, "lie", "attention/2 ffn") == 1
    assert "--splittings attention/2 ffn: " in capsys.readouterr().err


def test_dry_run_of_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal matrices; what rules learn is told apart, and counted as the scheme's own."""
    given = (tmp_path / "out", "--seeds", "1", "--dry-run", "--equal", "cost", "--variants", "lie")
    assert compare(*given, "strang,multistep,solver=heun", "ode-transformer") == 0
    _, sizes, _, measure, *_, last = capsys.readouterr().out.splitlines()
    assert "learn (k, gates): strang,solver=heun,multistep 2, ode-transformer 1,028" in sizes  # 2; 4 · (2 · 128 + 1)
    assert measure.startswith(
        "python -m recipes.compare.cost --recipe multi30k_de_en --variants lie strang,solver=heun"
    )
    assert last == (
        f"python -m recipes.multi30k_de_en score --out {tmp_path}/out/runs/ode-transformer-seed1 "
        f"--prepared {tmp_path}/out/data --scheme ode-transformer --seed 1  # and --max-update, by its cost"
    )


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        (["strang,solver=magic"], [], "--variants strang,solver=magic: solver='magic' is unknown; choose one of euler"),
        (["strang,stochastic_depth=1"], [], "no drop rate in [0, 1)"),
        (["lie,multistep_init=0.5"], [], "depth_rule='euler' has none; leave it out, or choose that rule"),
        (["ode-transformer", "lie,rk2_learned"], [], "lie ode-transformer ode-transformer: one is there twice"),
        (["strang,rk2"], ["--dt", "0.5"], "--dt after --: set for each run here"),
        (["strang,rk2"], ["--set", "model.dt=0.5"], "or another part of the scheme, the same for all runs"),
        (["strang,rk2"], ["--set", "optimization.max_update=9"], "give the baseline's as --max-update N"),
        (["strang,rk2"], ["--arch", "transformer_iwslt_de_en_macaron"], "needs the increment"),
        (["attention/2 ffn attention/2,rk2"], [], "parameters in its weight matrices and lie"),
    ],
)
def test_dry_run_refuses_variants_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variants: list[str], options: list[str], message: str
) -> None:
    given = (tmp_path / "out", "--dry-run", "--equal=cost", "--variants", "lie")
    assert compare(*given, *variants, "--", *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_options_that_the_recipe_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is prepared or trained."""
    assert compare(tmp_path / "out", "--", "--dropout", "1.5") == 1
    assert "--dropout 1.5: must be at least 0 and below 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare(tmp_path / "out", "--", "--max-updates-typo", "7")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "model.splitting=lie"), "sets splitting or seed after --"),
        (("--set=common.seed=3",), "sets splitting or seed after --"),
        (("--see", "3"), "sets splitting or seed after --"),
        (("--prep", "x"), "sets prepared after --"),
        (("train",), "sets stage after --"),
        (("--set", "modle.dropout=0"), "no configuration of fairseq"),
        (("--set", "model.decoder_ffn_embed_dim=64"), "model.decoder_ffn_embed_dim is the width of every FFN"),
    ],
)
def test_options_that_leave_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    """However they are spelt: else all runs would be the same, or none would start, after the preparation."""
    assert compare(tmp_path / "out", "--dry-run", "--", *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path, project_root: Path, shared: Path) -> None:
    """Multi30k, four updates: the whole experiment is killed in a training, goes on, and is matched all the same."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "recipes.compare", "--recipe=multi30k_de_en", "--seeds=1", "--jobs=1",
               f"--out={out}", f"--data-dir={shared / 'data' / 'multi30k'}", "--", "--max-update=4", "--average=1",
               "--beam=1", "--units=8000", "--set=common.log_interval=1",
               "--set=checkpoint.save_interval_updates=2"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    with (tmp_path / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=project_root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.time() + 900
            while not (out / "runs" / "strang-seed1" / "checkpoints" / "checkpoint_last.pt").exists():
                assert process.poll() is None and time.time() < deadline, (tmp_path / "killed.log").read_text()
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    done = subprocess.run(
        command, cwd=project_root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    assert "run       lie-seed1 done before" in done.stdout
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["matched"]["violations"] == [] and results["matched"]["windows"]["1"] >= 3
    assert results["matched"]["parameters"] < 1e-3
    assert re.search(r"parameters: lie [\d,]+, strang [\d,]+", done.stdout)
    assert all(row["updates"] == 4 for row in results["runs"])


@pytest.mark.slow
def test_equal_cost_on_the_real_recipe(tmp_path: Path, project_root: Path, shared: Path) -> None:
    """Multi30k, twelve updates of the baseline: measured on its batches, trained, and matched as far as all went."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "recipes.compare", "--recipe=multi30k_de_en", "--seeds=1", "--jobs=1",
               "--variants", "lie", "strang,multistep", "ode-transformer", "--equal=cost", "--cost-updates=5",
               f"--out={out}", f"--data-dir={shared / 'data' / 'multi30k'}", "--", "--max-update=12", "--average=1",
               "--beam=1", "--warmup-updates=2", "--set=common.log_interval=1",
               "--set=checkpoint.save_interval_updates=4"]  # fmt: skip
    done = subprocess.run(
        command, cwd=project_root, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    updates = {row["variant"]: row["updates"] for row in results["runs"]}
    assert results["matched"]["violations"] == [] and updates["lie"] == 12
    assert results["matched"]["windows"]["1"] == min(updates.values())
    # its rule evaluates every layer twice, and the output layer once
    assert 1 < results["costs"]["ode-transformer"]["ratio"] < 3 and updates["ode-transformer"] < 12
    model = out / "runs" / "strang-multistep-seed1" / "average.pt"
    assert [len(k) for k in multistep.weights(load(model)["model"], model).values()] == [1, 1]
