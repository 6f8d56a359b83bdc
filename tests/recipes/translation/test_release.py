"""A released model: one folder, raw text in and out, checked before it is handed out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import macaron
from macaron import MacaronModel
from recipes.common.errors import RecipeError
from recipes.common.workspace import read_json, read_lines, write_json
from recipes.translation import release


@pytest.fixture(scope="module")
def released(finished) -> Path:
    return finished.folder / "release"


@pytest.fixture(scope="module")
def model(released: Path):
    return MacaronModel.from_pretrained(str(released))


def test_one_folder_with_all_that_is_needed(released: Path) -> None:
    assert {path.name for path in released.iterdir()} == {
        *("model.pt", "dict.de.txt", "dict.en.txt", "bpecodes", "text.json", "scores.json", "check.json", "README.md")
    }
    description = read_json(released / "text.json")
    assert description["generation"]["beam"] == 2 and description["source"] == "de"
    card = (released / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: [de, en]\n") and 'from_pretrained("release")' in card


def test_only_the_model_is_in_the_checkpoint(finished, released: Path) -> None:
    state = torch.load(released / "model.pt", weights_only=True)
    assert state["last_optimizer_state"] is None
    assert str(finished.folder) not in json.dumps(state["cfg"]), "paths of the machine are left out"
    trained = torch.load(finished.folder / "average.pt", weights_only=True)["model"]
    assert state["model"].keys() == trained.keys()
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in trained.items())


def test_raw_text_in_raw_text_out(finished, model) -> None:
    raw = read_lines(finished.folder / "raw" / "test.de")
    recorded = read_lines(finished.folder / "hyp" / "test.en")
    assert model.translate(raw) == recorded
    assert model.translate(raw[0]) == recorded[0]
    assert model.translate(["", raw[1], " "]) == ["", recorded[1], ""]
    assert all("@@" not in line and "&apos;" not in line for line in recorded)
    assert len(model.translate(raw[0], beam=1, max_len_b=3).split()) <= 4


def test_the_check_says_what_was_seen(released: Path) -> None:
    check = read_json(released / "check.json")
    assert check["sentences"] == check["with the pieces of the run"] == 12
    assert check["of these with another translation of equal score"] == 0
    assert check["scores"]["release"] == check["scores"]["run"]


def test_by_command_and_nothing_is_overwritten(finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "my model"
    assert release.main([str(finished.folder), "--out", str(target), "--sentences", "3"]) == 0
    assert '"sentences": 3' in capsys.readouterr().out and (target / "model.pt").is_file()
    assert release.main([str(finished.folder), "--out", str(target)]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_folder_that_translates_otherwise_is_not_released(finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    lines = read_lines(run / "hyp" / "test.en")
    (run / "hyp" / "test.en").write_text("".join(f"not {line}\n" for line in lines), encoding="utf-8")
    output = run / "generate" / "generate-test.txt"
    shifted = [line.replace("\t-", "\t-9", 1) if line.startswith("H-") else line for line in read_lines(output)]
    output.write_text("\n".join(shifted) + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"translates 12 of 12 test sentences otherwise than the run did, such as"):
        release.export(run, tmp_path / "released")
    assert not (tmp_path / "released").exists()


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no settings\.json, so it is not the folder of a run that was trained"):
        release.export(tmp_path, tmp_path / "released")


def test_parts_that_are_missing_or_broken(released: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(released, copy)
    (copy / "bpecodes").unlink()
    with pytest.raises(ValueError, match=r"bpecodes missing; a released model is one folder with all its files"):
        MacaronModel.from_pretrained(str(copy))
    write_json(copy / "text.json", {"source": "de"})
    with pytest.raises(ValueError, match=r"text\.json: does not describe a released model \(KeyError: 'target'\)"):
        MacaronModel.from_pretrained(str(copy))


def test_fairseq_reads_the_folder_by_its_own_rules(released: Path, fairseq_cli, tmp_path: Path) -> None:
    done = fairseq_cli(
        "fairseq-interactive", released, "--user-dir", Path(macaron.__file__).parent, "--path", released / "model.pt",
        "--cpu", "--source-lang=de", "--target-lang=en", "--beam=2", "--max-len-b=5", cwd=tmp_path, stdin="a b\n",
    )  # fmt: skip
    assert "\nH-0\t" in done.stdout


def test_moving_the_folder_changes_nothing(finished, released: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(released, moved)
    raw = read_lines(finished.folder / "raw" / "test.de")[0]
    recorded = read_lines(finished.folder / "hyp" / "test.en")[0]
    assert MacaronModel.from_pretrained(str(moved)).translate(raw) == recorded
