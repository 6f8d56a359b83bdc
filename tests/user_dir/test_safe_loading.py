"""Checkpoints load with torch's safe loader, and what they may contain is no more than they do."""

from __future__ import annotations

import argparse
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils

from macaron.legacy.checkpoint import SAFE_GLOBALS, CheckpointError, load


class Attack:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.fixture
def attack(tmp_path) -> Path:
    torch.save({"model": {}, "args": Attack(tmp_path / "witness")}, tmp_path / "attack.pt")
    return tmp_path / "attack.pt"


@pytest.fixture
def no_safe_globals():
    """What torch allows by itself, without the plugin."""
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(known)


def test_fairseq_refuses_a_malicious_checkpoint(attack, fairseq_cli, plugin, tiny_data_bin):
    arguments = [tiny_data_bin, "--user-dir", plugin, "--path", attack, "--cpu"]
    done = fairseq_cli("fairseq-generate", *arguments, cwd=attack.parent, expect=1)
    assert f"{attack}: refused, because it refers to {os.system.__module__}.system" in done.stdout
    assert not (attack.parent / "witness").exists()


def test_load_refuses_a_malicious_checkpoint(attack):
    with pytest.raises(CheckpointError, match=r"refused, because it refers to \w+\.system, .* Safe loading .* trust"):
        load(attack)
    assert not (attack.parent / "witness").exists()


def test_load_leaves_the_allow_list_of_the_process_alone(trained):
    before = set(torch.serialization.get_safe_globals())
    load(trained.checkpoint)
    assert set(torch.serialization.get_safe_globals()) == before


def test_others_cannot_take_names_away(trained, no_safe_globals):
    with torch.serialization.safe_globals([np.ndarray]):  # as transformers' Trainer does
        pass
    assert "model" in checkpoint_utils.load_checkpoint_to_cpu(str(trained.checkpoint))


def test_a_model_of_ours_needs_nothing_but_tensors(train, tiny_data_bin, batches, no_safe_globals):
    trained = train(tiny_data_bin, *batches, "--max-update", 1, "--disable-validation")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(trained.checkpoint) == []


def _other_numpy(path: Path, folder: Path) -> Path:
    """The same file as the other major version of numpy writes it."""
    renamed = folder / "other_numpy.pt"
    ours, other = (b"numpy._core", b"numpy.core") if np.__version__[0] != "1" else (b"numpy.core", b"numpy._core")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(ours, other) if name.endswith(".pkl") else old.read(name))
    return renamed


@pytest.fixture
def checkpoints(trained, golden, tmp_path) -> list[Path]:
    """One of each kind: with BLEU scores, by either numpy; from several processes; of fairseq; of the original."""
    # with several processes the n-gram counts of BLEU are summed in double precision
    distributed = torch.load(trained.checkpoint, weights_only=True)
    distributed["extra_state"]["metrics"] = np.zeros(4)
    torch.save(distributed, tmp_path / "distributed.pt")
    # fairseq's own `transformer` writes its options so
    torch.save({"model": {}, "args": argparse.Namespace(arch="transformer")}, tmp_path / "transformer.pt")
    return [
        trained.checkpoint,
        _other_numpy(trained.checkpoint, tmp_path),
        tmp_path / "distributed.pt",
        tmp_path / "transformer.pt",
        golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt",
    ]


def _loads(path: Path, safe_globals: list) -> bool:
    try:
        with torch.serialization.safe_globals(safe_globals):
            torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def test_the_allow_list_is_enough(checkpoints, no_safe_globals):
    assert all(_loads(path, SAFE_GLOBALS) for path in checkpoints)


def test_the_allow_list_is_minimal(checkpoints, no_safe_globals):
    superfluous = [
        entry
        for entry in SAFE_GLOBALS
        if all(_loads(path, [other for other in SAFE_GLOBALS if other is not entry]) for path in checkpoints)
    ]
    assert superfluous == []
