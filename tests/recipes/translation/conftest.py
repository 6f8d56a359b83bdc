"""One tiny run through the real command line, killed while it trains and resumed, for all tests that need a result."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# macaron_tiny on 60 synthetic sentences; two batches an update.
SETTINGS = [
    *("--cpu", "--workers=1", "--arch=macaron_tiny", "--units=60", "--dropout=0", "--beam=2", "--average=2"),
    *("--max-update=24", "--warmup-updates=4", "--batch-tokens=240", "--max-tokens=120", "--set=common.log_interval=1"),
    *("--set=checkpoint.save_interval_updates=4", "--set=checkpoint.no_epoch_checkpoints=true"),
    *("--set=generation.max_len_b=10", "--set=model.attention_dropout=0", "--set=model.activation_dropout=0"),
]

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass
class Finished:
    folder: Path
    data_dir: Path
    output: str  # of the command that finished it


@pytest.fixture(scope="session")
def recipe_environment(project_root: Path) -> dict[str, str]:
    paths = f"{project_root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": paths}


@pytest.fixture(scope="session")
def recipe_settings() -> list[str]:
    return list(SETTINGS)


@pytest.fixture(scope="session")
def recipe_command(project_root: Path, recipe_environment: dict[str, str]) -> Command:
    """Run `python -m recipes.iwslt14_de_en` with the tiny settings and these options."""

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "recipes.iwslt14_de_en", *SETTINGS, *map(str, options)]
        return subprocess.run(
            command, cwd=project_root, env=recipe_environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def corpus_folder(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_corpus` as raw text: cased, with full stops."""
    folder = tmp_path_factory.mktemp("corpus")
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = (tiny_corpus / f"{split}.{language}").read_text(encoding="utf-8").splitlines()
            text = "".join(line.capitalize() + ".\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(
    recipe_command: Command,
    recipe_environment: dict[str, str],
    corpus_folder: Path,
    project_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A whole run. Recipe and training were killed at the first checkpoint, and that checkpoint cut in half."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = ["--out", str(out), "--data-dir", str(corpus_folder)]
    command = [sys.executable, "-m", "recipes.iwslt14_de_en", "train", *options, *SETTINGS]
    log_path = out.parent / "killed.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, cwd=project_root, env=recipe_environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.time() + 600
        try:
            while not (out / "checkpoints" / "checkpoint_last.pt").exists():
                assert process.poll() is None, log_path.read_text()
                assert time.time() < deadline, "no checkpoint after ten minutes"
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with (out / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free when the training has gone too, which ends after its parent
    assert not (out / "stamps" / "train.json").exists()
    last = out / "checkpoints" / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:5000])  # as if the kill had come in the middle of writing it
    done = recipe_command(*options)
    assert done.returncode == 0, done.stdout
    return Finished(out, corpus_folder, done.stdout)
