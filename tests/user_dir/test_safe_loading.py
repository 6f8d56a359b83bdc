"""Checkpoints load with torch's safe loader, and what they may contain is no more than they do."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, hub_utils

import macaron
from macaron.averaging import average_checkpoints
from macaron.checkpoint import SAFE_GLOBALS, CheckpointError, load


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


@pytest.fixture
def evaluated(tmp_path) -> Path:
    """No code but in an option, which fairseq evaluates when it builds the model."""
    options = {"adaptive_input": True, "adaptive_input_cutoff": f"__import__('os').system('touch {tmp_path}/witness')"}
    args = argparse.Namespace(arch="macaron_lm_tiny", task="language_modeling", data=".", **options)
    history = [{"criterion_name": "x", "best_loss": 0}]
    state = {"args": args, "model": {}, "optimizer_history": history, "extra_state": {"ema": {}}}
    torch.save(state, tmp_path / "evaluated.pt")
    return tmp_path / "evaluated.pt"


REFUSED = r"evaluated\.pt: refused, because its option adaptive_input_cutoff is .*system"


@pytest.mark.parametrize("form", ["args", "cfg"])
@pytest.mark.parametrize("old_format", [False, True])
def test_no_way_into_fairseq_runs_code_in_an_option(evaluated, form, old_format, toy_task, dictionary_folder):
    state = load_unchecked(evaluated)
    if form == "cfg":
        options = {**vars(state.pop("args")), "_name": "macaron_lm_tiny"}
        state["cfg"] = {"model": options, "task": {"_name": "language_modeling", "data": "."}}
    torch.save(state, evaluated, _use_new_zipfile_serialization=not old_format)
    encoder = argparse.Namespace()
    for open_it in (
        lambda: checkpoint_utils.load_checkpoint_to_cpu(str(evaluated)),
        lambda: checkpoint_utils.load_checkpoint_to_cpu(str(evaluated), arg_overrides={"data": "."}),
        lambda: checkpoint_utils.load_model_ensemble([str(evaluated)]),
        lambda: checkpoint_utils.load_model_ensemble_and_task([str(evaluated)], task=toy_task()),
        lambda: checkpoint_utils.load_pretrained_component_from_model(encoder, str(evaluated)),
        lambda: checkpoint_utils.load_ema_from_checkpoint(str(evaluated)),
        lambda: checkpoint_utils.save_ema_as_checkpoint(str(evaluated), str(evaluated.with_suffix(".ema"))),
        lambda: hub_utils.from_pretrained(str(evaluated.parent), evaluated.name),
        lambda: macaron.MacaronModel.from_pretrained(str(evaluated.parent), evaluated.name, str(dictionary_folder)),
        lambda: load(evaluated),
        lambda: average_checkpoints([evaluated]),
    ):
        with pytest.raises(CheckpointError, match=REFUSED):
            open_it()
    assert [path.name for path in evaluated.parent.iterdir()] == ["evaluated.pt"]


def load_unchecked(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_fairseqs_commands_run_no_code_in_an_option(evaluated, fairseq_cli, plugin, tiny_data_bin, train, batches):
    arguments = [tiny_data_bin, "--user-dir", plugin, "--path", evaluated, "--cpu"]
    done = fairseq_cli("fairseq-generate", *arguments, cwd=evaluated.parent, expect=1)
    resumed = train(tiny_data_bin, *batches, "--restore-file", evaluated, save_dir=evaluated.parent, expect=1)
    for output in (done.stdout, resumed.output):
        assert re.search(REFUSED, output)
    assert not (evaluated.parent / "witness").exists()


def test_a_damaged_checkpoint_is_refused_by_every_way_into_fairseq(trained, tmp_path):
    content = bytearray(trained.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(content)
    for open_it in (checkpoint_utils.load_checkpoint_to_cpu, checkpoint_utils.load_ema_from_checkpoint, load):
        with pytest.raises(CheckpointError, match=r"damaged\.pt: not a readable checkpoint; .* checksum of record"):
            open_it(str(damaged))


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
