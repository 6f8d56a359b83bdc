"""fairseq-hydra-train takes the yaml of every recipe as it stands; the sizes alone are reduced here."""

from __future__ import annotations

from pathlib import Path

import pytest

import macaron
from recipes.translation.recipe import load

# Widths and layers of a model that trains in no time.
SMALL = [
    *("model.encoder_embed_dim=16", "model.encoder_layers=1", "model.encoder_attention_heads=2"),
    *("model.decoder_layers=1", "model.decoder_attention_heads=2", "distributed_training.distributed_world_size=1"),
]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("iwslt14_de_en", "small"),
        ("wmt14_en_de", "base"),
        ("wmt14_en_de", "big"),
        ("multi30k_de_en", "tiny"),
        ("demo", "tiny"),
    ],
)
def test_it_trains(name: str, size: str, tiny_data_bin: Path, fairseq_cli, tmp_path: Path) -> None:
    overrides = [f"++{option}" if option.startswith("model") else option for option in SMALL]
    done = fairseq_cli(
        "fairseq-hydra-train", "--config-dir", load(name, size).yaml.parent, "--config-name", size,
        f"common.user_dir={Path(macaron.__file__).parent}", f"task.data={tiny_data_bin}", "common.cpu=true",
        "optimization.max_update=1", "optimization.update_freq=[1]", "dataset.num_workers=0",
        "checkpoint.no_save=true", *overrides, cwd=tmp_path,
    )  # fmt: skip
    assert "num_updates: 1 >= max_update: 1" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoints"}, "hydra leaves no files of its own"
