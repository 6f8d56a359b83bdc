"""`--criterion macaron_adversarial` through fairseq's own commands: start, resumption, hydra, two processes."""

from __future__ import annotations

import shlex
import shutil
import sys

import pytest
import torch

SMOOTHED = ["--label-smoothing", "0.1"]
INNER = ["--criterion", "macaron_adversarial", "--inner", "macaron_label_smoothed_cross_entropy", *SMOOTHED]
BALL = ["--adversary-norm", "l2", "--adversary-step-size", "0.1", "--adversary-radius", "0.2"]
YOPO = [*INNER, "--adversary", "yopo-2-2", *BALL, "--adversary-init", "0.1", "--adv-start-update", "2"]
DROPOUT = ["--dropout", "0.2"]


@pytest.fixture(scope="module")
def yopo(train, tiny_data_bin, batches):
    return train(tiny_data_bin, *batches, *YOPO, *DROPOUT, "--save-interval-updates", 3)


def test_until_its_start_training_is_that_of_the_inner_criterion(yopo, train, tiny_data_bin, batches):
    plain = ["--criterion", "macaron_label_smoothed_cross_entropy", *SMOOTHED]
    inner = train(tiny_data_bin, *batches, *plain, *DROPOUT, "--disable-validation")
    assert yopo.losses[:2] == inner.losses[:2]
    assert yopo.losses[2:] != inner.losses[2:]
    assert yopo.updates[0].keys() == inner.updates[0].keys() and len(yopo.losses) == 4
    assert len(yopo.valid) >= 1


def test_resumed_training_is_unbroken(yopo, train, tiny_data_bin, batches):
    checkpoint = yopo.folder / "checkpoint_1_3.pt"
    again = train(tiny_data_bin, *batches, *YOPO, *DROPOUT, "--restore-file", checkpoint, "--disable-validation")
    assert again.losses == yopo.losses[3:]
    for name, tensor in yopo.weights.items():
        assert torch.equal(again.weights[name], tensor), name


def test_hydra_trains_the_same(yopo, fairseq_cli, read_training, plugin, tiny_data_bin, tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        f"""
# @package _group_
common: {{user_dir: {plugin}, cpu: true, log_format: json, log_interval: 1}}
task: {{_name: translation, data: {tiny_data_bin}}}
model: {{_name: macaron_tiny, dropout: 0.2}}
criterion:
  _name: macaron_adversarial
  inner: macaron_label_smoothed_cross_entropy
  label_smoothing: 0.1
  adversary: yopo
  adversary_steps: 2
  adversary_inner_steps: 2
  adversary_norm: l2
  adversary_step_size: 0.1
  adversary_radius: 0.2
  adversary_init: 0.1
  adv_start_update: 2
optimizer: {{_name: adam, adam_betas: "(0.9,0.98)"}}
lr_scheduler: {{_name: fixed}}
optimization: {{lr: [0.005], max_update: 4}}
dataset: {{batch_size: 15, required_batch_size_multiple: 1, num_workers: 0}}
checkpoint: {{save_dir: {tmp_path}, no_epoch_checkpoints: true}}
""",
        encoding="utf-8",
    )
    arguments = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path}"]
    done = fairseq_cli("fairseq-hydra-train", *arguments, cwd=tmp_path)
    assert read_training(tmp_path, done.stdout).losses == yopo.losses


def test_what_makes_no_sense_is_said(train, tiny_data_bin, batches):
    flags = [*INNER, "--adversary", "pgd-2", "--adversary-step-size", "0.1", "--adversary-radius", "0.2"]
    output = train(tiny_data_bin, *batches, *flags, expect=1).output
    assert "ValueError: Attack: radius=0.2 without a norm bounds nothing; choose norm= one of l2" in output


def without_keys(name: str, bias: torch.Tensor) -> torch.Tensor:
    """The bias of keys has no gradient but what rounding leaves, of which Adam makes a step like any other."""
    parts = {"qkv_proj.bias": 3, "kv_proj.bias": 2}.get(".".join(name.split(".")[-2:]))
    return bias if parts is None else torch.cat([*bias.chunk(parts)[:-2], bias.chunk(parts)[-1]])


@pytest.mark.slow
@pytest.mark.parametrize("adversary", ["pgd-2", "freelb-fairseq-2", "yopo-2-2", "yopo-fairseq-2-2"])
def test_two_processes_equal_accumulation(
    adversary, train, fairseq_cli, read_training, training_flags, plugin, tiny_data_bin, batches, tmp_path
):
    flags = [*batches, *INNER, "--adversary", adversary, *BALL, "--disable-validation"]
    alone = train(tiny_data_bin, *flags, "--update-freq", 2, "--max-epoch", 1)
    shutil.copytree(alone.folder, tmp_path, dirs_exist_ok=True)
    alone = train(tiny_data_bin, *flags, "--update-freq", 2, "--max-epoch", 2, save_dir=alone.folder)
    words = [
        *["fairseq-train", str(tiny_data_bin), "--user-dir", str(plugin), "--arch", "macaron_tiny"],
        *["--save-dir", str(tmp_path), "--max-epoch", "2", *map(str, flags), *training_flags],
        *["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-no-spawn"],
    ]
    command = shlex.join(words)
    command += " --distributed-world-size $WORLD_SIZE --distributed-rank $RANK --distributed-init-method env://"
    done = fairseq_cli(
        "python",
        *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "--no-python"],
        *["bash", "-c", f'PATH="{sys.exec_prefix}/bin:$PATH" {command}'],
        cwd=tmp_path,
    )
    together = read_training(tmp_path, done.stdout)
    assert len(alone.losses) == 2 and together.losses == alone.losses
    for name, tensor in alone.weights.items():  # the mean of two gradients is taken in another order
        found, tensor = (without_keys(name, each) for each in (together.weights[name], tensor))
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
