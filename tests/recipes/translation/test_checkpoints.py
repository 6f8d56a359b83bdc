"""An interrupted training leaves half a file: what is taken instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.translation.checkpoints import average, load, mend_last, newest_first


def save(path: Path, value: float) -> None:
    torch.save({"model": {"weight": torch.full((1000,), float(value))}}, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (("9", 9), ("10", 10), ("_best", 7), ("_last", 11)):
        save(tmp_path / f"checkpoint{name}.pt", value)
    return tmp_path


def value(folder: Path) -> float:
    return load(folder / "checkpoint_last.pt")["model"]["weight"][0].item()


def test_a_good_last_checkpoint_is_left_alone(folder: Path) -> None:
    mend_last(folder)
    assert value(folder) == 11


def test_epochs_are_ordered_as_numbers(folder: Path) -> None:
    names = [path.name for path in newest_first(folder)]
    assert names == ["checkpoint10.pt", "checkpoint9.pt", "checkpoint_best.pt"]


def test_checkpoints_of_updates_are_ordered_among_those_of_epochs(folder: Path) -> None:
    for name in ("_9_95", "_10_100", "_10_99", "_11_110"):
        save(folder / f"checkpoint{name}.pt", 0)
    names = [path.name.removeprefix("checkpoint").removesuffix(".pt") for path in newest_first(folder)]
    assert names == ["_11_110", "10", "_10_100", "_10_99", "9", "_9_95", "_best"]


@pytest.mark.parametrize(
    ("count", "kind", "expected"),
    [(2, "epoch", 9.5), (9, "epoch", 9.5), (2, "update", 4.0), (1, "epoch", 11.0), (1, "update", 11.0)],
)
def test_average_of_the_newest(forks: list[str], folder: Path, count: int, kind: str, expected: float) -> None:
    for name, number in (("_9_95", 3), ("_10_99", 5)):
        save(folder / f"checkpoint{name}.pt", number)
    with (folder / ".lock").open("w") as lock:
        command, inputs = average(folder, count, folder / "average.pt", folder / "log", lock, kind=kind)
    assert load(folder / "average.pt")["model"]["weight"][0].item() == expected
    assert [str(path) for path in inputs] == command[-len(inputs) :]


def test_a_truncated_last_checkpoint_gives_way_to_the_newest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(folder / "checkpoint_last.pt")
    mend_last(folder)
    assert value(folder) == 10
    assert (folder / "checkpoint_last.pt.corrupt").exists()
    told = capsys.readouterr().err
    assert "truncated or corrupt" in told and f"going on from {folder / 'checkpoint10.pt'}" in told


@pytest.mark.parametrize("name", ["_last", "10"])
def test_a_flipped_bit_counts_as_damage(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for damaged in {"_last", name}:
        path = folder / f"checkpoint{damaged}.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    mend_last(folder)
    assert value(folder) == (10 if name == "_last" else 9)
    assert "the checksum of record" in capsys.readouterr().err


def test_what_was_set_aside_goes_once_there_is_a_good_one(forks: list[str], folder: Path) -> None:
    truncate(folder / "checkpoint_last.pt")
    (folder / "checkpoint_last.pt.part").touch()
    mend_last(folder)
    mend_last(folder)
    assert value(folder) == 10
    (folder / "checkpoint_last.pt.corrupt").touch()
    with (folder / ".lock").open("w") as lock:
        average(folder, 2, folder / "average.pt", folder / "log", lock)
    assert [path.name for path in folder.iterdir() if path.suffix in (".corrupt", ".part", ".tmp")] == []


def test_truncated_ones_are_passed_over(folder: Path) -> None:
    for name in ("_last", "10"):
        truncate(folder / f"checkpoint{name}.pt")
    mend_last(folder)
    assert value(folder) == 9


def test_a_lost_last_checkpoint_is_replaced(folder: Path) -> None:
    (folder / "checkpoint_last.pt").unlink()
    mend_last(folder)
    assert value(folder) == 10


def test_none_readable(folder: Path) -> None:
    for path in folder.iterdir():
        truncate(path)
    with pytest.raises(RecipeError, match=r"None of the 3 other checkpoints .* can be read either; put back a copy"):
        mend_last(folder)


def test_nothing_there_yet(tmp_path: Path) -> None:
    mend_last(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("kind", "count", "expected", "names"),
    [
        ("highest", 2, 3.0, ["bleu_10.0000", "bleu_9.5000"]),  # by value, not by name
        ("highest", 9, 3.0, ["bleu_10.0000", "bleu_9.5000", "bleu_9.5001"]),  # all there are; the last digit is none
        ("lowest", 2, 2.5, ["bleu_9.5000", "bleu_9.5001"]),
    ],
)
def test_the_best_are_averaged(
    forks: list[str], folder: Path, kind: str, count: int, expected: float, names: list[str]
) -> None:
    for name, number in (("bleu_9.5000", 2), ("bleu_9.5001", 3), ("bleu_10.0000", 4)):
        save(folder / f"checkpoint.best_{name}.pt", number)
    with (folder / ".lock").open("w") as lock:
        _, inputs = average(folder, count, folder / "average.pt", folder / "log", lock, kind=kind)
    assert load(folder / "average.pt")["model"]["weight"][0].item() == expected
    assert [path.name for path in inputs] == [f"checkpoint.best_{name}.pt" for name in names]


def test_the_best_alone(folder: Path) -> None:
    """Without others of the best, and where one is asked for, it is the file that fairseq calls so."""
    save(folder / "checkpoint_best.pt", 6)
    for count in (1, 3):
        with (folder / ".lock").open("w") as lock:
            _, inputs = average(folder, count, folder / "average.pt", folder / "log", lock, kind="highest")
        assert [path.name for path in inputs] == ["checkpoint_best.pt"]
