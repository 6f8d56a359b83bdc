"""Two gloo processes on the CPU go on from a checkpoint as one process does that accumulates two batches."""

from __future__ import annotations

import shlex
import shutil
import sys

import torch


def test_two_processes_equal_accumulation(
    train, fairseq_cli, read_training, training_flags, plugin, tiny_data_bin, batches, tmp_path
):
    alone = train(tiny_data_bin, *batches, "--update-freq", 2, "--max-epoch", 1, "--disable-validation")
    shutil.copytree(alone.folder, tmp_path, dirs_exist_ok=True)
    alone = train(
        *[tiny_data_bin, *batches, "--update-freq", 2, "--max-epoch", 2, "--disable-validation"], save_dir=alone.folder
    )

    command = shlex.join(
        [
            *["fairseq-train", str(tiny_data_bin), "--user-dir", str(plugin), "--arch", "macaron_tiny"],
            *["--save-dir", str(tmp_path), "--max-epoch", "2", "--disable-validation", *batches],
            *[*training_flags, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"],
            "--distributed-no-spawn",
        ]
    )
    # what torchrun tells each process by its environment
    command += " --distributed-world-size $WORLD_SIZE --distributed-rank $RANK --distributed-init-method env://"
    path = f'PATH="{sys.exec_prefix}/bin:$PATH" '
    done = fairseq_cli(
        "python",
        *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "--no-python"],
        *["bash", "-c", path + command],
        cwd=tmp_path,
    )
    together = read_training(tmp_path, done.stdout)

    assert len(alone.losses) == 2  # of the second epoch
    assert together.losses == alone.losses
    for name, tensor in alone.weights.items():
        torch.testing.assert_close(
            together.weights[name], tensor, rtol=0, atol=1e-5
        )  # the mean of two gradients is taken in another order
