"""A released model: one folder, raw text in and out, checked before it is handed out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from macaron.user_dir import released as folders

import macaron
from macaron import MacaronModel
from recipes.common.errors import RecipeError
from recipes.common.workspace import read_json, read_lines, write_json
from recipes.translation import commands, release
from recipes.translation.recipe import load
from recipes.translation.text import Codec


@pytest.fixture(scope="module")
def released(finished) -> Path:
    return finished.folder / "release"


@pytest.fixture(scope="module")
def model(released: Path):
    return MacaronModel.from_pretrained(str(released))


def test_one_folder_with_all_that_is_needed(released: Path) -> None:
    assert {path.name for path in released.iterdir()} == {
        *("model.pt", "dict.de.txt", "dict.en.txt", "bpecodes", "text.json", "scores.json", "check.json", "README.md"),
        "SHA256SUMS",
    }
    description = read_json(released / "text.json")
    assert description["generation"]["beam"] == 2 and description["source"] == "de"
    card = (released / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlanguage: ["de", "en"]\n') and 'from_pretrained("release")' in card


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


@pytest.fixture
def cut_short(finished, tmp_path: Path, fairseq_cli, monkeypatch) -> Path:
    """A run whose translations end where the longest sentence of their batch says; seven in a batch."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    monkeypatch.setattr(commands, "BATCH", 7)
    settings = read_json(run / "settings.json") | {"generation.max_len_a": 0.2, "generation.max_len_b": 1}
    write_json(run / "settings.json", settings)
    options = [(f"--{key.removeprefix('generation.').replace('_', '-')}", value) for key, value in settings.items()
               if key.startswith("generation.")]  # fmt: skip
    fairseq_cli(
        "fairseq-generate", run / "data-bin", "--user-dir", commands.USER_DIR, "--path", run / "average.pt",
        "--source-lang", "de", "--target-lang", "en", "--batch-size", 7, "--results-path", run / "generate", "--cpu",
        *(word for option in options for word in option), *commands.KEEP_LAST_BATCH, cwd=tmp_path,
    )  # fmt: skip
    codec, best = Codec.open(run / "data-bin"), commands.hypotheses(run / "generate" / "generate-test.txt")
    (run / "hyp" / "test.en").write_text(
        "".join(codec.text(best[i].pieces) + "\n" for i in range(12)), encoding="utf-8"
    )
    return run


def test_translations_are_compared_that_a_batch_cut_short(cut_short: Path, tmp_path: Path) -> None:
    """Alone, a sentence would have another greatest length than in its batch."""
    check = release.export(cut_short, tmp_path / "released")
    assert check["of these with another translation of equal score"] == 0
    model = MacaronModel.from_pretrained(tmp_path / "released")
    alone = [model.translate(line) for line in read_lines(cut_short / "raw" / "test.de")]
    assert alone != read_lines(cut_short / "hyp" / "test.en"), "or nothing is tested"
    lines = read_lines(cut_short / "hyp" / "test.en")
    (cut_short / "hyp" / "test.en").write_text("".join(f"{line} on\n" for line in lines), encoding="utf-8")
    output = cut_short / "generate" / "generate-test.txt"
    output.write_text(output.read_text(encoding="utf-8").replace("\t-", "\t-9"), encoding="utf-8")
    with pytest.raises(RecipeError, match="translates 12 of 12 test sentences otherwise than the run did"):
        release.export(cut_short, tmp_path / "other")


def test_greatest_lengths_are_those_of_batches(monkeypatch) -> None:
    monkeypatch.setattr(commands, "BATCH", 2)
    lengths, order = [3, 9, 5, 4, 8], [1, 4, 2, 3, 0]
    slope = {"generation.max_len_a": 1.5, "generation.max_len_b": 10}
    assert release.greatest_lengths(lengths, order, slope) == [14, 23, 17, 17, 23]
    assert release.greatest_lengths(lengths, order, {}) == [200] * 5
    assert release.greatest_lengths(lengths, order, {"generation.match_source_len": True}) == [3, 9, 5, 5, 9]


@pytest.mark.parametrize("name", ["generate/generate-test.txt", "hyp/test.en", "bpe/test.de"])
def test_files_that_are_cut_off_are_told(finished, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    lines = read_lines(run / name)
    (run / name).write_text("".join(f"{line}\n" for line in lines[: len(lines) // 2]), encoding="utf-8")
    told = rf"{name} has [56].* of the test sentences; one was edited or cut off; delete it .* score"
    with pytest.raises(RecipeError, match=told):
        release.export(run, tmp_path / "released")
    assert not (tmp_path / "released").exists()


def test_an_option_of_the_search_that_makes_no_sense_is_told(finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    write_json(run / "settings.json", read_json(run / "settings.json") | {"generation.max_len_a": "1.2"})
    with pytest.raises(RecipeError, match=r"cannot be released .*generation: max_len_a '1\.2' must be a finite number"):
        release.export(run, tmp_path / "released")


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.6), ("int8", 0.4)])
def test_fewer_bits(finished, released: Path, tmp_path: Path, precision: str, share: float, monkeypatch) -> None:
    target = tmp_path / precision
    assert release.main([str(finished.folder), "--out", str(target), "--precision", precision]) == 0
    check, card = read_json(target / "check.json"), (target / "README.md").read_text(encoding="utf-8")
    assert check["precision"] == precision and check["sentences"] == 12, "all sentences are looked at"
    assert check["scores"]["run"].keys() == check["scores"]["release"].keys()
    assert ("8-bit numbers" if precision == "int8" else "bfloat16") in card
    whole, small = ((folder / "model.pt").stat().st_size for folder in (released, target))
    assert small < share * whole
    model = MacaronModel.from_pretrained(target)
    raw = read_lines(finished.folder / "raw" / "test.de")
    assert model.models[0].inference_precision is None and model.models[0].released_precision == precision
    assert model.translate(raw), "in the release's precision, or in fp32 where the processor has not got it"
    monkeypatch.setattr("macaron.decoding.weights._has", lambda *names: False)
    old = MacaronModel.from_pretrained(target)
    assert old.translate(raw[:3]) == MacaronModel.from_pretrained(target, precision="fp32").translate(raw[:3])
    with pytest.raises(ValueError, match=f"precision {precision}: needs"):
        MacaronModel.from_pretrained(target, precision=precision).translate(raw[0])


def test_fewer_bits_that_cost_too_much(finished, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(release, "LOSS", -1e3)
    with pytest.raises(RecipeError, match=r"--precision int8: \w+ of 12 test sentences falls .*take another precision"):
        release.export(finished.folder, tmp_path / "released", precision="int8")
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


# --- what a folder must be ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(released, tmp_path / "copy"))


def describe(folder: Path, **values: Any) -> None:
    """Change text.json, sums and all."""
    write_json(folder / "text.json", {**read_json(folder / "text.json"), **values})
    folders.seal(folder)


def test_sums_of_all_files_but_the_card(released: Path) -> None:
    lines = (released / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    assert set(sums) == {path.name for path in released.iterdir()} - {"README.md", "SHA256SUMS"}
    assert all(hashlib.sha256((released / name).read_bytes()).hexdigest() == value for name, value in sums.items())
    assert read_json(released / "text.json")["format"] == 3


@pytest.mark.parametrize("name", ["model.pt", "dict.de.txt", "dict.en.txt", "bpecodes", "text.json", "scores.json"])
@pytest.mark.parametrize("where", [0.3, 0.7])
def test_a_flipped_bit_is_found(copy: Path, name: str, where: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(where * len(content))] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not what was released, by|text\.json: does not describe"):
        MacaronModel.from_pretrained(copy)


def test_a_setting_of_another_meaning_is_found(copy: Path) -> None:
    write_json(copy / "text.json", {**read_json(copy / "text.json"), "lowercase": False})
    with pytest.raises(ValueError, match=r"text\.json is not what was released, by the sums in SHA256SUMS; copy"):
        MacaronModel.from_pretrained(copy)


NO_FILE = "is no file of this folder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:0], "line 1 is no sum and the name of a file"),
        (lambda lines: lines[1:], r"has no sum of bpecodes|has no sum of check|missing"),
        (lambda lines: [line for line in lines if "model.pt" not in line], r"has no sum of model\.pt"),
        (lambda lines: [line for line in lines if "dict.en" not in line], r"has no sum of dict\.en\.txt"),
        (lambda lines: [line.replace("model.pt", "dict.de.txt") for line in lines], r"'dict\.de\.txt' comes twice"),
        (lambda lines: [*lines, lines[0]], "comes twice"),
        (lambda lines: [*lines, f"{'0' * 64}  absent"], "absent missing; a released model is one folder"),
        (lambda lines: [*lines, f"{'0' * 64}  README.md"], r"README\.md is not what was released"),
        (lambda lines: [*lines, f"{'0' * 64}  ../outside"], NO_FILE),
        (lambda lines: [*lines, f"{'0' * 64}  /etc/passwd"], NO_FILE),
        (lambda lines: [*lines, f"{'0' * 64}  .."], NO_FILE),
        (lambda lines: [*lines, f"{'0' * 64}  SHA256SUMS"], NO_FILE),
        (lambda lines: [*lines, f"{'0' * 64}  a\\b"], NO_FILE),
        (lambda lines: [*lines, f"{'0' * 64}  a\x00b"], NO_FILE),
        (lambda lines: [*lines, "nonsense"], "line 7 is no sum|line 8 is no sum"),
        (lambda lines: [line[1:] for line in lines], "line 1 is no sum"),
        (lambda lines: [line.upper() for line in lines], "line 1 is no sum"),
        (lambda lines: ["f" * 64 + line[64:] for line in lines], r"model\.pt.* are not what was released"),
    ],
)
def test_sums_that_do_not_fit(copy: Path, change: Any, message: str) -> None:
    lines = (copy / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    (copy / "SHA256SUMS").write_text("".join(f"{line}\n" for line in change(lines)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        MacaronModel.from_pretrained(copy)


def test_a_description_that_is_gone(copy: Path) -> None:
    (copy / "text.json").unlink()
    with pytest.raises(ValueError, match=r"text\.json missing, which says how text becomes pieces"):
        MacaronModel.from_pretrained(copy)


def test_its_own_folder_as_the_data_is_the_release(copy: Path, finished) -> None:
    raw, recorded = (read_lines(finished.folder / name)[0] for name in ("raw/test.de", "hyp/test.en"))
    assert MacaronModel.from_pretrained(str(copy), data_name_or_path=str(copy)).translate(raw) == recorded


def test_a_path_that_fairseq_takes_for_two(copy: Path) -> None:
    with pytest.raises(ValueError, match="fairseq takes ':' for the end of a path"):
        MacaronModel.from_pretrained(copy.rename(copy.with_name("a:b")))


def test_sums_that_are_gone(copy: Path) -> None:
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="SHA256SUMS missing, the sums of its files; copy the folder again"):
        MacaronModel.from_pretrained(copy)


def test_a_folder_from_before_there_were_sums(copy: Path, finished) -> None:
    content = read_json(copy / "text.json")
    del content["format"]
    write_json(copy / "text.json", content)
    (copy / "SHA256SUMS").unlink()
    raw, recorded = (read_lines(finished.folder / name)[0] for name in ("raw/test.de", "hyp/test.en"))
    assert MacaronModel.from_pretrained(copy).translate(raw) == recorded


def test_files_beside_the_model_change_nothing(copy: Path, finished) -> None:
    with (copy / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nMore about it.\n")
    (copy / ".gitattributes").write_text("*.pt filter=lfs\n", encoding="utf-8")
    for name in ("model-shard0.pt", "code", "sentencepiece.bpe.model"):  # fairseq would take these
        (copy / name).write_bytes(b"no model")
    raw, recorded = (read_lines(finished.folder / name)[0] for name in ("raw/test.de", "hyp/test.en"))
    assert MacaronModel.from_pretrained(str(copy)).translate(raw) == recorded


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "../x"}, r"source '\.\./x' is no language code"),
        ({"target": "/etc/passwd"}, "is no language code"),
        ({"source": "en"}, "source and target are both 'en'"),
        ({"subword": "gpt2"}, "subword 'gpt2' is unknown; choose"),
        ({"tokenizer": "space"}, "tokenizer 'space' is unknown; choose"),
        ({"lowercase": "no"}, "lowercase 'no': must be true or false"),
        ({"units": "60"}, "units '60': must be a whole number"),
        ({"bpe": "x"}, r"unknown fields \['bpe'\]"),
        ({"format": 0}, "format 0 is unknown; this version of macaron reads 1 to 3"),
        ({"format": True}, "format True is unknown"),
        ({"format": "2"}, "format '2' is unknown"),
        ({"precision": "int4"}, "precision 'int4' must be one of fp32, bf16, int8"),
        ({"generation": 5}, "generation 5 must be options"),
        ({"generation": {}}, r"\(KeyError: 'beam'\)"),
        ({"generation": {"beam": "5"}}, "beam '5' must be a whole number"),
        ({"generation": {"beam": 0}}, "beam 0 must be at least 1"),
        ({"generation": {"beam": 5, "lenpen": [1]}}, r"lenpen \[1\] must be a finite number"),
        ({"generation": {"beam": 5, "lenpn": 1}}, "no option 'lenpn'; did you mean lenpen"),
    ],
)
def test_descriptions_that_make_no_sense(copy: Path, values: dict[str, Any], message: str) -> None:
    describe(copy, **values)
    with pytest.raises(ValueError, match=rf"text\.json: does not describe a released model.*{message}"):
        MacaronModel.from_pretrained(copy)


def test_a_folder_of_a_later_version(copy: Path) -> None:
    """Whatever else is new in it; another copy would not help."""
    describe(copy, format=4, compression="zstd")
    with pytest.raises(ValueError, match=r"text\.json: is of format 4, and .* reads 1 to 3; update it: pip install"):
        MacaronModel.from_pretrained(copy)


def test_a_description_that_was_cut(copy: Path) -> None:
    (copy / "text.json").write_text((copy / "text.json").read_text(encoding="utf-8")[:40], encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not describe a released model .*truncated or damaged"):
        MacaronModel.from_pretrained(copy)


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("model", {"_name": "fconv", "encoder_layers": "__import__('os').system('touch WITNESS')"}),
        ("model", {"_name": "transformer"}),
        ("task", {"_name": "language_modeling"}),
    ],
)
def test_only_models_of_ours(copy: Path, tmp_path: Path, monkeypatch: Any, group: str, values: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(copy / "model.pt", weights_only=True)
    state["cfg"][group] |= values
    torch.save(state, copy / "model.pt")
    folders.seal(copy)
    # the loader is first to refuse what fairseq would run
    holds = "a released folder holds a MacaronModel for the task 'translation'|refused, because .*encoder_layers"
    with pytest.raises(ValueError, match=holds):
        MacaronModel.from_pretrained(copy)
    assert not (tmp_path / "WITNESS").exists()


def test_nothing_of_another_machine_is_looked_up(copy: Path, finished, monkeypatch: Any) -> None:
    state = torch.load(copy / "model.pt", weights_only=True)
    state["cfg"]["model"] |= {"encoder_embed_path": "/nowhere/vectors"}
    state["cfg"]["task"] |= {"data": "/nowhere", "eval_bleu": True, "eval_bleu_detok": "moses", "source_lang": "xx"}
    state["cfg"]["bpe"] = {"_name": "gpt2", "gpt2_encoder_json": "https://example.org/encoder.json"}
    state["cfg"]["generation"]["replace_unk"] = "/etc/passwd"
    torch.save(state, copy / "model.pt")
    folders.seal(copy)
    raw, recorded = (read_lines(finished.folder / name)[0] for name in ("raw/test.de", "hyp/test.en"))
    assert MacaronModel.from_pretrained(copy).translate(raw) == recorded


# --- what it takes ------------------------------------------------------------------------------------------------


def test_sentences_longer_than_a_batch_of_the_training(model) -> None:
    long = "ab " * 500
    assert len(model.encode(long)) > 120, "of --max-tokens"
    short, other = model.translate(["ab", long], beam=1, max_len_b=3)
    assert short == model.translate("ab", beam=1, max_len_b=3) and isinstance(other, str)


def test_a_sentence_that_is_too_long(finished, model) -> None:
    raw, recorded = (read_lines(finished.folder / name)[:2] for name in ("raw/test.de", "hyp/test.en"))
    sentences = [raw[0], "", "ab " * 2000, raw[1]]
    with pytest.raises(ValueError, match=r"1 of 4 sentences longer than 1,024 tokens: number 3 has [0-9,]+\. .*split"):
        model.translate(sentences)
    assert model.translate(iter(sentences), skip_invalid_size_inputs=True) == [recorded[0], "", "", recorded[1]]


def test_text_that_is_empty_only_as_words(model) -> None:
    assert model.translate(["\u200b", "\u00ad", "\ufeff", "\x01", "\u200b \u2060", "\n"]) == [""] * 6


def test_options_of_its_own(released: Path, finished, model) -> None:
    raw = read_lines(finished.folder / "raw" / "test.de")[0]
    for options, message in (({"beam": 0}, "beam 0"), ({"lenpn": 1}, "no option 'lenpn'; did you mean lenpen")):
        with pytest.raises(ValueError, match=message):
            model.translate(raw, **options)
    short = MacaronModel.from_pretrained(released, beam=1, max_len_b=3)
    assert short.translate(raw) == model.translate(raw, beam=1, max_len_b=3) != model.translate(raw)
    with pytest.raises(ValueError, match="from_pretrained: no option bem; there are those of fairseq's configuration"):
        MacaronModel.from_pretrained(released, bem=1)


def test_architectures_that_cannot_be_released_are_known_before_training() -> None:
    recipe = load("iwslt14_de_en")
    release.check_architecture(recipe)
    with pytest.raises(RecipeError, match=r"--arch transformer: a released model is one of .*iwslt14_de_en report"):
        release.check_architecture(recipe.changed(arch="transformer"))


def test_the_card_shows_the_two_step_rule(finished, released: Path, tmp_path: Path) -> None:
    """k read off the released model; under another rule the card says nothing of it."""
    assert "two-step" not in (released / "README.md").read_text(encoding="utf-8")
    assert "with splitting `strang`" in (released / "README.md").read_text(encoding="utf-8")
    state = torch.load(released / "model.pt", weights_only=True)
    state["model"] |= {
        "encoder.layers.rule.bias": torch.tensor([0.5]),
        "decoder.layers.rule.bias": torch.tensor([-2.0]),
    }
    torch.save(state, tmp_path / "model.pt")
    shutil.copytree(finished.folder / "stamps", tmp_path / "stamps")
    shutil.copy(finished.folder / "scores.json", tmp_path)
    write_json(
        tmp_path / "settings.json", {**read_json(finished.folder / "settings.json"), "model.depth_rule": "multistep"}
    )
    card = release.model_card(tmp_path, tmp_path, read_json(released / "check.json"))
    assert "with scheme `strang,multistep`" in card and "| encoder | 1 | +0.5000 | yes |" in card
    assert "NOT zero-stable in decoder layer 1 (k = -2.000)" in card
    assert card.index("## The two-step rule") < card.index("\n\n## Checked")
