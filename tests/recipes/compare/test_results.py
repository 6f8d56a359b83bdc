"""From the folders of finished runs to tables: every figure is checked against the runs it comes from."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import RecipeError
from recipes.compare import report, results
from recipes.compare.experiment import MatchedExperiment
from recipes.translation import scoring
from recipes.translation.recipe import load

SEEDS = (1, 2, 3)
WORDS = ["the", "a", "cat", "dog", "sees", "runs", "to", "house", "and", "tree", "in", "green", "big", "old"]
NOTICE = "This is a subset of 28 % and not comparable with published IWSLT14 numbers."


def sentences(generator: random.Random) -> list[str]:
    return [" ".join(generator.choices(WORDS, k=generator.randint(5, 15))) + " ." for _ in range(80)]


def translated(lines: list[str], errors: float, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(w if generator.random() > errors else "tree" for w in line.split()) for line in lines]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(line + "\n" for line in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def log(seed: int, shift: float) -> str:
    lines = []
    for update in (10, 20):
        inner = {"wpb": f"{100 + seed}.5", "bsz": "8", "lr": "0.001", "num_updates": str(update)}
        valid = {"valid_num_updates": str(update), "valid_nll_loss": f"{5 - update / 10 + shift + seed / 100:.3f}"}
        lines += [f"2026 | INFO | train_inner | {json.dumps(inner)}", f"2026 | INFO | valid | {json.dumps(valid)}"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two splittings; strang makes half as many errors."""
    folder = tmp_path_factory.mktemp("experiment")
    reference = sentences(random.Random(0))
    raw = scoring.detokenize(reference, "en")
    write(folder / "data" / "raw" / "test.en", raw)
    write(folder / "data" / "text" / "test.en", reference)
    for run in experiment(folder).runs:
        hypotheses = translated(reference, 0.2 if run.variant == "lie" else 0.1, run.seed)
        write(run.folder / "hyp" / "test.tok.en", hypotheses)
        write(run.folder / "hyp" / "test.en", scoring.detokenize(hypotheses, "en"))
        scores = scoring.score(None, raw, hypotheses, reference, "multi30k", samples=40)
        write(run.folder / "scores.json", scores)
        write(run.folder / "train.log", log(run.seed, 0.3 if run.variant == "lie" else 0.0))
        stamps = run.folder / "stamps"
        write(stamps / "train.json", {"parameters": 1000, "updates": 20, "train_seconds": 60.0 * run.seed, "files": {}})
        write(stamps / "prepare-binary.json", {"files": {"data-bin/train.de-en.de.bin": "abc", "data-bin/x.txt": "d"}})
        write(stamps / "score.json", {})
    return folder


def experiment(folder: Path, seeds: tuple[int, ...] = SEEDS, **others: Any) -> MatchedExperiment:
    return MatchedExperiment("multi30k_de_en", ("lie", "strang"), seeds, folder, **others)


def collect(folder: Path, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    of = experiment(folder, seeds)
    found = results.collect(of, load("multi30k_de_en"), samples=100)
    matched = {"parameters": 0.0005, **results.check(of, found, load("multi30k_de_en"))}
    return found | {"notice": NOTICE, "matched": matched, "environment": {"cores": 2}, "commands": {"a": "b <c>"}}


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return collect(folder)


def test_means_and_deviations(found: dict[str, Any], folder: Path) -> None:
    for splitting in ("lie", "strang"):
        values = [
            json.loads((folder / "runs" / f"{splitting}-seed{seed}" / "scores.json").read_text())["paper"]["score"]
            for seed in SEEDS
        ]
        system = found["systems"][splitting]["paper"]
        assert system["values"] == values and system["mean"] == pytest.approx(sum(values) / 3)
        assert system["sd"] == pytest.approx((sum((v - system["mean"]) ** 2 for v in values) / 2) ** 0.5)
    assert found["systems"]["strang"]["valid_bits"]["mean"] == pytest.approx(3.02)
    assert found["systems"]["lie"]["train_minutes"]["values"] == [1, 2, 3]


def test_the_better_system_is_found(found: dict[str, Any]) -> None:
    systems = found["systems"]
    for name, entry in found["differences"]["strang"].items():
        if name == "valid_bits":
            assert entry["over_seeds"]["value"] == pytest.approx(-0.3) and entry["over_seeds"]["p"] < 0.01
            continue
        value = systems["strang"][name]["mean"] - systems["lie"][name]["mean"]
        assert entry["over_seeds"]["value"] == pytest.approx(value, abs=0.01) and entry["over_seeds"]["p"] < 0.05
        assert entry["over_sentences"]["value"] == pytest.approx(value, abs=0.02)
        assert entry["over_sentences"]["low"] > 0 and entry["over_sentences"]["p"] == pytest.approx(1 / 101)
        assert list(entry["per_seed"]) == list(SEEDS) and all(e["difference"] > 0 for e in entry["per_seed"].values())


def test_matched(found: dict[str, Any]) -> None:
    assert found["matched"]["violations"] == [] and found["matched"]["windows"] == {1: 2, 2: 2, 3: 2}


def test_markdown(found: dict[str, Any]) -> None:
    text = report.report_of(found).markdown()
    mean, sd = (found["systems"]["strang"]["paper"][key] for key in ("mean", "sd"))
    assert f"| strang | 1,000 | 20 | {mean:.2f} ± {sd:.2f} |" in text
    assert NOTICE in text and "Matched: parameters within 0.050 % of lie" in text
    assert "| strang − lie | best validation loss, bits per token | -0.300 |" in text
    widths = {line.count("|") for line in text.split("\n\n")[4].splitlines()}
    assert len(widths) == 1
    assert "nrefs:1|bs:40" in text


def test_recipes_without_moses_are_scored_on_words(folder: Path) -> None:
    """With sentencepiece the `tokenized` files hold raw text; BLEU is of Moses' tokens all the same."""
    moses = load("multi30k_de_en")
    plain = moses.changed(text=dataclasses.replace(moses.text, tokenizer="none", subword="sentencepiece"))
    raw, tokenized = (folder / "data" / kind / "test" for kind in ("raw", "text"))
    assert results.output(plain, raw, tokenized).tokenized is None
    assert results.output(moses, raw, tokenized).tokenized == results.output(plain, raw, raw).completed("en")[1]


def test_csv(found: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(results.csv_text(found))))
    assert [(r["splitting"], r["seed"]) for r in rows] == [(s, str(n)) for s in ("lie", "strang") for n in SEEDS]
    assert float(rows[0]["paper"]) == found["systems"]["lie"]["paper"]["values"][0]
    assert rows[0]["chrF2_signature"].startswith("nrefs:1|")


def test_report_opens_offline(found: dict[str, Any], tmp_path: Path) -> None:
    names = [path.name for path in report.write(found, tmp_path)]
    assert names == ["results.json", "runs.csv", "index.html", "results.md", "curves.png"]
    page = (tmp_path / "index.html").read_text()
    assert f'<strong class="wrong">{NOTICE}</strong>' in page and "b &lt;c&gt;" in page
    assert page.count("data:image/png;base64,") == 1 and not re.search(r'(src|href)="http', page)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text())["systems"]["lie"]["parameters"] == 1000


def test_what_the_figure_shows(found: dict[str, Any]) -> None:
    curves, scores, *_ = report.figure(found).axes
    line = next(line for line in curves.lines if line.get_label().startswith("lie"))
    assert list(line.get_xdata()) == [10, 20] and list(line.get_ydata()) == pytest.approx([4.32, 3.32])
    dots = [tuple(offset) for dots in scores.collections[:1] for offset in dots.get_offsets()]
    assert [y for _, y in dots] == found["systems"]["lie"]["paper"]["values"]


def test_one_seed(folder: Path) -> None:
    """No spread is claimed."""
    found = collect(folder, seeds=(2,))
    assert found["differences"]["strang"]["paper"]["over_seeds"] is None
    text = report.report_of(found).markdown()
    assert "one seed: unknown" in text and "±" not in text.split("\n\n")[4]
    report.figure(found)


def test_unfinished_runs_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    found = collect(folder, seeds=(1, 2, 9))
    assert found["seeds"] == [1, 2] and found["unfinished"] == ["lie-seed9", "strang-seed9"]
    assert "Unfinished and left out: lie-seed9, strang-seed9." in report.report_of(found).markdown()
    nothing = collect(folder, seeds=(9,))
    assert nothing["systems"] == {} and "lie-seed9" in report.report_of(nothing).markdown()
    assert (
        "nothing to compare" in report.report_of(nothing).markdown()
        and "Matched" not in report.report_of(nothing).markdown()
    )
    assert (tmp_path / "index.html") in report.write(nothing, tmp_path)


DAMAGE = {
    "scores.json": {"cut off": '{"paper": {"sco', "a list": "[]", "NaN": '{"paper": {"score": NaN}}', "empty": ""},
    "stamps/train.json": {"text for a number": '{"parameters": "many"}', "null": "null"},
    "stamps/prepare-binary.json": {"no files": "{}", "files as text": '{"files": "none"}'},
    "train.log": {
        "a loss of NaN": log(1, 0).replace("4.010", "nan"),
        "no rate": log(1, 0).replace('"lr": "0.001", ', ""),
        "no number": log(1, 0).replace('"num_updates": "20"', '"num_updates": "x"'),
    },
    "hyp/test.en": {"cut off": "one line\n", "no UTF-8": b"\xff\xfe\n" * 80},
    "hyp/test.tok.en": {"gone": None},
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in DAMAGE.items() for kind in kinds])
def test_a_damaged_run_does_not_take_the_others_along(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path, content = copy / "runs" / "strang-seed1" / name, DAMAGE[name][kind]
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = collect(copy)
    assert found["seeds"] == [2, 3] and list(found["unreadable"]) == ["strang-seed1"]
    assert "NOT READABLE and left out: strang-seed1: " in report.report_of(found).markdown()
    assert f"Move {copy / 'runs' / 'strang-seed1'} away" in report.report_of(found).markdown()
    report.write(found, tmp_path)
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_references_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "data" / "raw" / "test.en").unlink()
    with pytest.raises(RecipeError, match=r"references of the test set cannot be read .* move the folder away"):
        collect(copy)


def test_runs_without_validation(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in copy.glob("runs/*/train.log"):
        path.write_text("".join(line for line in path.read_text().splitlines(True) if "| valid |" not in line))
    found = collect(copy)
    assert "not validated" in report.report_of(found).markdown() and found["matched"]["violations"] == []
    report.write(found, tmp_path)


def test_logs_that_are_too_short_to_tell(found: dict[str, Any]) -> None:
    short = found | {"matched": {**found["matched"], "unknown": ["seed 1: too few lines"], "windows": {1: 0}}}
    text = report.report_of(short).markdown()
    assert "NOT CHECKED: seed 1: too few lines" in text and "Matched:" not in text and "NOT MATCHED" not in text


def test_windows_that_are_missing_are_counted(found: dict[str, Any]) -> None:
    cut = found | {"matched": {**found["matched"], "due": {1: 2, 2: 2, 3: 4}}}
    assert "in all 6 windows of updates that fairseq logged (8 were due" in report.report_of(cut).markdown()


def test_runs_that_are_not_matched_say_so(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    broken = found | {"matched": {**found["matched"], "violations": ["seed 1: strang and lie differ in updates"]}}
    text = report.report_of(broken).markdown()
    assert "NOT MATCHED: seed 1: strang and lie differ in updates" in text and "Matched: " not in text
    assert '<strong class="wrong">NOT MATCHED' in report.report_of(broken).html()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("lie",)}, "a comparison needs two or more"),
        ({"variants": ("lie", "lie")}, "--splittings lie lie: one is there twice"),
        ({"variants": ("strang", "ffn/2 attention ffn/2")}, "--splittings strang strang: one is there twice"),
        ({"variants": ("lie", "strange")}, "--splittings strange: .*choose one of strang, lie"),
        ({"seeds": (1, -1)}, "--seeds -1: must be whole numbers of at least 0"),
        ({"seeds": (1, 1)}, "--seeds 1 1: one is there twice"),
        ({"options": ("--max-update", "5", "--seed=4")}, "--seed after --: set for each run here"),
    ],
)
def test_experiments_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"variants": ("lie", "strang"), "seeds": SEEDS, **changes}
    with pytest.raises(RecipeError, match=message):
        MatchedExperiment("multi30k_de_en", folder=tmp_path, **given)
