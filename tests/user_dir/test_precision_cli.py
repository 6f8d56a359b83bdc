"""Mixed precision and bfloat16 through fairseq's own commands."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def generate(fairseq_cli, plugin, tiny_data_bin, whole):
    """The number of hypotheses for the 12 test sentences."""

    def run(checkpoint) -> int:
        arguments = [tiny_data_bin, "--user-dir", plugin, "--path", checkpoint, "--cpu", "--beam", 2]
        arguments += ["--max-len-b", 12, *whole, "--results-path", checkpoint.parent]
        fairseq_cli("fairseq-generate", *arguments, cwd=checkpoint.parent)
        return (checkpoint.parent / "generate-test.txt").read_text(encoding="utf-8").count("\nH-")

    return run


def test_automatic_mixed_precision(train, trained, generate, tiny_data_bin, batches):
    mixed = train(tiny_data_bin, *batches, "--amp", "--disable-validation")
    # fairseq casts on a GPU only; on the CPU the option has to change nothing
    assert mixed.losses == trained.losses
    assert {tensor.dtype for name, tensor in mixed.weights.items() if "weight" in name} == {torch.float32}
    assert generate(mixed.checkpoint) == 12


@pytest.fixture(scope="module")
def bf16(train, tiny_data_bin, batches):
    return train(tiny_data_bin, *batches, "--bf16", "--save-interval-updates", 2)


def test_bf16_trains_in_bfloat16(bf16, trained):
    # fairseq widens the weights when it saves them
    assert all(tensor.bfloat16().float().equal(tensor.float()) for tensor in bf16.weights.values())
    assert not all(tensor.bfloat16().float().equal(tensor.float()) for tensor in trained.weights.values())
    for entry, full in zip(bf16.updates, trained.updates, strict=True):
        # eight bits are 0.4 % of each number and each weight; their mean over all tokens was measured to 0.06 %
        assert float(entry["loss"]) == pytest.approx(float(full["loss"]), rel=0.01)


def test_bf16_resumes(bf16, train, tiny_data_bin, batches):
    resumed = train(tiny_data_bin, *batches, "--bf16", "--restore-file", bf16.folder / "checkpoint_1_2.pt")
    # its weights in float32, which training keeps beside those in bfloat16, are not saved
    for entry, unbroken in zip(resumed.updates, bf16.updates[2:], strict=True):
        assert entry["num_updates"] == unbroken["num_updates"]
        # so that weights start anew from eight bits, 0.4 %; the loss was measured to 0.02 %
        assert float(entry["loss"]) == pytest.approx(float(unbroken["loss"]), rel=0.004)


def test_a_bf16_checkpoint_generates(bf16, generate):
    assert generate(bf16.checkpoint) == 12


def test_bf16_by_hydra(bf16, fairseq_cli, read_training, plugin, tiny_data_bin, tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        f"""
# @package _group_
common: {{user_dir: {plugin}, bf16: true, cpu: true, log_format: json, log_interval: 1}}
task: {{_name: translation, data: {tiny_data_bin}}}
model: {{_name: macaron_tiny, dropout: 0}}
criterion: {{_name: cross_entropy}}
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
    assert read_training(tmp_path, done.stdout).losses == bf16.losses
