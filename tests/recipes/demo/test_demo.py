"""The demo: a corpus that is what it says, and the pipeline of every translation recipe on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from num2words import num2words

from recipes.common.errors import RecipeError
from recipes.common.workspace import read_json, read_lines
from recipes.demo.__main__ import main
from recipes.demo.corpus import CORPUS, SIZES, WORDS, texts
from recipes.translation import cli
from recipes.translation.data.corpus import locate


def pairs(split: str) -> list[tuple[str, str]]:
    return list(zip(texts()[f"{split}.de"], texts()[f"{split}.en"], strict=True))


def test_its_sizes_and_no_test_sentence_was_trained_on() -> None:
    assert {split: len(pairs(split)) for split in SIZES} == SIZES
    german = [source for split in SIZES for source, _ in pairs(split)]
    assert len(set(german)) == sum(SIZES.values())


def test_both_sides_say_the_same_numbers_and_words() -> None:
    names = {german: german for slot in ("name", "other") for german in WORDS[slot].split()}
    names |= dict(pair.split("/") for slot in ("city", "thing", "did", "month") for pair in WORDS[slot].split())
    numbers = {num2words(n, lang="de"): num2words(n, lang="en") for n in range(1000)}
    days = {num2words(n, lang="de", to="ordinal") + "n": num2words(n, lang="en", to="ordinal") for n in range(1, 32)}
    price = re.compile(r"(\S+) hat am (\S+) (\S+) (\S+) (\S+) für (\S+) Euro (\S+) (\S+)\.")
    seen = 0
    for source, target in pairs("test"):
        assert source[0].isupper() and target[0].isupper() and source[-1] == target[-1] == "."
        assert not re.search(r"[{}\d_/]", source + target)
        if match := price.fullmatch(source):
            name, day, month, few, thing, euro, cent, did = match.groups()
            assert target == (
                f"{names[name]} {names[did]} {numbers[few]} {names[thing]} for {numbers[euro]} euros {numbers[cent]} "
                f"on the {days[day]} of {names[month]}."
            )
            seen += 1
    assert seen > SIZES["test"] / 8, "a quarter of the sentences are of this form"


def test_another_folder_is_refused(tmp_path: Path) -> None:
    CORPUS.download(tmp_path, {}, False)
    assert [len(list(part.pairs())) for _, part in locate(CORPUS, tmp_path, tmp_path / "scratch").parts()] == [
        *SIZES.values()
    ]
    with (tmp_path / "valid.en").open("a") as file:
        file.write("One more.\n")
    for folder in (tmp_path, tmp_path / "empty"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(RecipeError, match=r"holds other text than recipes/demo/corpus\.py makes; leave --data-dir"):
            locate(CORPUS, folder, tmp_path / "scratch")


def test_multi30k_is_its_own_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(cli, "translate", lambda name, args: asked.append((name, args.data_dir, args.max_update)))
    assert main(["--corpus", "multi30k", "--data-dir", str(tmp_path), "--max-update=9"]) == 0
    assert main(["train", "--max-update=9"]) == 0
    assert asked == [("multi30k_de_en", tmp_path, 9), ("demo", None, 9)]


def test_help_names_the_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--corpus {numbers,multi30k}" in told and "unless --data-dir says where" in told
    with pytest.raises(SystemExit) as ended:
        main(["--corpus", "grammar"])
    assert ended.value.code == 2


@pytest.mark.slow
def test_from_corpus_to_a_release_that_the_command_uses(tmp_path: Path, project_root: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "recipes.demo", "--cpu", "--workers=1", "--max-update=20", f"--out={out}"]
    command += ["--set=generation.max_len_a=0"]  # by `macaron translate` each sentence has a greatest length of its own
    done = subprocess.run(command, cwd=project_root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    sizes = read_json(out / "stamps" / "prepare.json")["sizes"]
    assert sizes == SIZES
    use = re.search(r"use it: +(macaron translate .*/release) text\.de > text\.en\n", done.stdout)
    assert use is not None
    told = subprocess.run(
        [sys.executable, "-m", *use[1].split(), str(out / "raw" / "test.de")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == read_lines(out / "hyp" / "test.en") and told.stderr == ""
