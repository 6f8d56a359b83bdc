"""Typing errors: how many, where, and the same for everybody."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from recipes.common.workspace import Made, Workspace, read_json, read_lines
from recipes.translation.cli import parser, recipe_from
from recipes.translation.noise import main, noised
from recipes.translation.pipeline import NOISE, STAGES, Pipeline

TEXT = ["Ein Mann steht auf einer Straße und wartet.", "Zwei  Hunde im Gras", "", "a b c d e f g h i j"]
ALPHABET = sorted(set("".join(TEXT)) - set(" ."))


def distance(a: str, b: str) -> int:
    """Damerau–Levenshtein: insertions, deletions, replacements and swaps of neighbours."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            ways = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])]
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                ways.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(ways)
    return table[len(a), len(b)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_the_characters_is_hit_and_words_stay_words(share: float) -> None:
    for seed in range(50):
        for line in TEXT:
            made = noised(line, share, ALPHABET, random.Random(seed))
            assert [w.isspace() for w in made.split(" ")] == [w.isspace() for w in line.split(" ")]
            assert len(made.split(" ")) == len(line.split(" ")) and all(
                bool(a) == bool(b) for a, b in zip(made.split(" "), line.split(" "), strict=True)
            )
            assert distance(line, made) <= round(share * sum(not c.isspace() for c in line))
    if share:
        lengths = {len(noised(TEXT[0], share, ALPHABET, random.Random(seed))) - len(TEXT[0]) for seed in range(50)}
        assert min(lengths) < 0 < max(lengths)  # some lost, some put in


def test_every_hit_changes_something() -> None:
    """One error in a sentence of different letters is one error, whichever kind it was."""
    kinds = {noised("abcdefghij", 0.1, ALPHABET, random.Random(seed)) for seed in range(200)}
    assert all(distance("abcdefghij", made) == 1 for made in kinds)
    assert {len(made) for made in kinds} == {9, 10, 11}
    assert any(sorted(made) == sorted("abcdefghij") for made in kinds)  # swapped


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, one, two, other = (tmp_path / name for name in ("test.de", "one", "two", "other"))
    source.write_text("".join(f"{line}\n" for line in TEXT), encoding="utf-8")
    assert main([str(source), str(one)]) == main([str(source), str(two)]) == 0
    assert main([str(source), str(other), "--seed", "2"]) == 0
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert len(one.read_text(encoding="utf-8").splitlines()) == 4
    assert "4 lines, 7 of 61 characters hit" in capsys.readouterr().out
    for arguments, message in [
        ([source, one], "is there already"),
        ([source, tmp_path / "new", "--share", "1.5"], "from 0 to 1"),
        ([tmp_path / "none", tmp_path / "new"], "none"),
    ]:
        assert main([str(word) for word in arguments]) == 1
        assert message in capsys.readouterr().err
    source.write_text("1 2 3\n", encoding="utf-8")
    assert main([str(source), str(tmp_path / "new")]) == 1
    assert "0 different letters" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_scored_with_noise_beside_the_clean_source(finished, recipe_here, tmp_path: Path) -> None:
    """And only that is done, and its report again; another share is another score, and stays without the option."""
    copy = tmp_path / "out"
    shutil.copytree(finished.folder, copy)
    done = recipe_here("report", "--out", copy, "--noise=0.2")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("done before") == 5 and "noise     done in" in done.stdout
    result = read_json(copy / "report" / "result.json")
    assert result["scores"] == read_json(copy / "scores.json")
    noised_scores = result["noised"]
    assert noised_scores["share"] == 0.2 and set(noised_scores["scores"]) == set(result["scores"])
    clean, hit = (read_lines(copy / folder / "test.de") for folder in ("raw", "noise"))
    assert len(clean) == len(hit) and sum(a != b for a, b in zip(clean, hit, strict=True)) == len(clean)
    said = f"typing errors at 20 % of the source's characters, {noised_scores['hit']:,} of them"
    assert said in done.stdout and "With noise" in (copy / "report" / "index.html").read_text(encoding="utf-8")
    assert read_json(copy / "stamps" / "noise.json")["scores"] == noised_scores["scores"]
    assert len(read_lines(copy / "noise" / "test.en")) == len(clean)
    assert "release" in {path.stem for path in (copy / "stamps").iterdir()}  # which is of the model alone


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "much"])
def test_shares_that_are_none(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser("iwslt14_de_en").parse_args(["--noise", share])
    assert "--noise" in capsys.readouterr().err


def test_another_share_is_another_score_and_stays_without_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from("iwslt14_de_en", [])
    done: list[str] = []

    def run(last: str, noise: float) -> list[str]:
        done.clear()
        with Workspace(tmp_path / "out", recipe.settings()) as space:
            pipeline = Pipeline(recipe, space, noise=noise)
            monkeypatch.setattr("recipes.translation.train.check_names", lambda recipe: None)
            for stage in STAGES:
                monkeypatch.setattr(pipeline, stage, lambda stage=stage: done.append(stage) or Made())
            noised_scores = lambda: done.append(NOISE) or Made(share=pipeline.noise)  # noqa: E731
            monkeypatch.setattr(pipeline, "score_noised", noised_scores)
            pipeline.run(last)
        return list(done)

    assert run("release", 0.0) == list(STAGES)
    assert run("score", 0.1) == [NOISE]
    assert run("release", 0.0) == ["report"]  # which was made without
    assert run("release", 0.1) == []
    assert run("release", 0.2) == [NOISE, "report"]
    assert run("release", 0.0) == []
