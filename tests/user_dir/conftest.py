"""A tiny model trained through fairseq's own commands, shared by the tests of the plugin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from macaron.user_dir import released
from subword_nmt.learn_bpe import learn_bpe

import macaron
from macaron.checkpoint import SAFE_GLOBALS
from macaron.text import TextSettings
from recipes.translation.release import model_only

macaron.register_fairseq()

# On the CPU, so that the numbers are the same on every machine; 60 sentences in 4 updates.
TRAINING = [
    *["--cpu", "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--lr", "0.005", "--dropout", "0"],
    *["--max-update", "4", "--num-workers", "0", "--log-format", "json", "--log-interval", "1"],
    "--no-epoch-checkpoints",
]
# fairseq drops the last batch of a data set if it is no multiple of this, by default 8, in every command.
WHOLE = ["--required-batch-size-multiple", "1"]
BATCHES = ["--batch-size", "15", *WHOLE]


@pytest.fixture(scope="module", autouse=True)
def safe_globals() -> None:
    """What fairseq's loader allows while it reads; the tests themselves read with plain `torch.load`."""
    torch.serialization.add_safe_globals(SAFE_GLOBALS)


@dataclass
class Training:
    """What a training command left behind."""

    folder: Path
    output: str
    updates: list[dict[str, str]]  # one log entry for each update
    valid: list[dict[str, str]]  # one for each validation

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint_last.pt"

    @property
    def losses(self) -> list[tuple[str, str, str]]:
        """Number, loss and gradient norm of every update."""
        return [(entry["num_updates"], entry["loss"], entry["gnorm"]) for entry in self.updates]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.checkpoint, weights_only=True)["model"]


def _logged(output: str) -> list[dict[str, str]]:
    lines = (line[line.index("{") :] for line in output.splitlines() if '": "' in line and "{" in line)
    return [json.loads(line) for line in lines if line.endswith("}")]


def training(folder: Path, output: str) -> Training:
    entries = _logged(output)
    return Training(
        folder,
        output,
        updates=[entry for entry in entries if "loss" in entry],
        valid=[entry for entry in entries if "valid_loss" in entry],
    )


@pytest.fixture(scope="session")
def plugin() -> Path:
    """What `macaron user-dir` prints."""
    return Path(macaron.__file__).parent


@pytest.fixture(scope="session")
def read_training() -> Callable[[Path, str], Training]:
    return training


Train = Callable[..., Training]


@pytest.fixture(scope="session")
def train(fairseq_cli: Any, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Run fairseq-train: `train(data, "--flag", …, arch="macaron_tiny")`."""

    def run(
        data: Path, *flags: object, arch: str = "macaron_tiny", save_dir: Path | None = None, **options: Any
    ) -> Training:
        folder = save_dir or tmp_path_factory.mktemp("train")
        arguments = [data, "--user-dir", plugin, "--arch", arch, "--save-dir", folder, *TRAINING, *flags]
        done = fairseq_cli("fairseq-train", *arguments, cwd=folder, **options)
        return training(folder, done.stdout)

    return run


@pytest.fixture(scope="session")
def trained(train: Train, tiny_data_bin: Path) -> Training:
    """Four updates of macaron_tiny, saved after two and after four; with BLEU measured on the way."""
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 12}', "--eval-bleu-detok", "space"]
    best = ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
    return train(tiny_data_bin, *BATCHES, *bleu, *best, "--save-interval-updates", 2, fresh=True)


@pytest.fixture(scope="session")
def whole() -> list[str]:
    """Flags that make a command read the whole data set."""
    return list(WHOLE)


@pytest.fixture(scope="session")
def training_flags() -> list[str]:
    return list(TRAINING)


@pytest.fixture(scope="session")
def batches() -> list[str]:
    return list(BATCHES)


@pytest.fixture(scope="session")
def dictionary_folder(tiny_data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dictionaries alone: what a user has who only translates."""
    folder = tmp_path_factory.mktemp("dictionaries")
    for language in ("de", "en"):
        shutil.copy(tiny_data_bin / f"dict.{language}.txt", folder)
    return folder


@pytest.fixture(scope="session")
def release(
    train: Train, tiny_corpus: Path, tiny_data_bin: Path, dictionary_folder: Path, tmp_path_factory: Any
) -> Path:
    """A released model, trained so long that its translations differ from each other. It takes raw text."""
    done = train(tiny_data_bin, *BATCHES, "--max-update", 80, "--disable-validation")
    folder = Path(shutil.copytree(dictionary_folder, tmp_path_factory.mktemp("released") / "release"))
    torch.save(model_only(torch.load(done.checkpoint, weights_only=True)), folder / released.MODEL)
    text = TextSettings(source="de", target="en", units=500)
    words = [line for side in text.languages for line in (tiny_corpus / f"train.{side}").read_text().splitlines()]
    with (folder / text.released_name).open("w") as codes:
        learn_bpe(words, codes, text.units, min_frequency=1)  # words of the corpus stay whole
    released.write(folder, released.Description(text, {"beam": 2, "lenpen": 1.0, "max_len_a": 0, "max_len_b": 12}))
    released.seal(folder)
    return folder


def dictionary(words: int) -> Dictionary:
    made = Dictionary()
    for i in range(words):
        made.add_symbol(f"word{i}")
    return made


@pytest.fixture
def toy_task() -> Callable[..., Any]:
    """`toy_task(words)`: what a model asks of its task, without data; `target_words` for a dictionary of its own."""

    def make(words: int = 40, target_words: int | None = None) -> Any:
        source = dictionary(words)
        target = source if target_words is None else dictionary(target_words)
        return SimpleNamespace(source_dictionary=source, target_dictionary=target)

    return make
