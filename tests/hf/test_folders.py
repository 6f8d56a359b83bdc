"""Folders that a conversion writes."""

from __future__ import annotations

import pytest

from macaron.hf.folders import check_free, put


def make(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_is_free_if_nothing_is_in_it(tmp_path):
    (tmp_path / "empty").mkdir()
    full = make(tmp_path / "full", config_json="")
    for path in (tmp_path / "none", tmp_path / "empty"):
        check_free(path, force=False)
    check_free(full, force=True)
    with pytest.raises(FileExistsError, match=r"full is not empty; name another one, or add --force"):
        check_free(full, force=False)
    with pytest.raises(FileExistsError, match=r"config\.json is a file; name a folder"):
        check_free(full / "config.json", force=True)


def test_what_an_earlier_conversion_wrote_and_this_one_did_not_goes_away(tmp_path):
    folder = make(tmp_path / "out", config_json="old", tokenizer_json="old", notes="mine", pooling__config_json="old")
    (folder / "pooling" / "weights").write_text("old")
    make(folder, target_vocab_json="of two dictionaries", generation_config_json="old", bpecodes="old")
    put(make(tmp_path / "new", config_json="new", pooling__config_json="new"), folder)
    names = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json": "new", "notes": "mine", "pooling/config.json": "new"}
    put(make(tmp_path / "newer", config_json="newer"), tmp_path / "other")
    assert (tmp_path / "other" / "config.json").read_text() == "newer" and not (tmp_path / "newer").exists()
