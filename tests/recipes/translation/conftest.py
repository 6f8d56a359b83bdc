"""One tiny run, killed while it trains and resumed, for all tests that need a result.

It begins with the real command line; what a new interpreter adds to a command is then left out, which is seconds each.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import macaron.cli
from recipes.translation import cli, commands

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


@contextlib.contextmanager
def forking(fairseq_cli: Any) -> Iterator[list[str]]:
    """Pipelines of this process run fairseq's commands in forks, `macaron` here, and name them in what is yielded.

    Their arguments, their folder and what is read off their output are those of the commands that they replace.
    """
    done: list[str] = []

    def run(command: list[str], log: Path, lock: Any, what: str) -> None:
        assert command[:2] == [sys.executable, "-m"]
        seen = log.stat().st_size if log.exists() else 0
        if command[2] == "macaron":
            status, text = macaron.cli.main(command[3:]), ""
        else:
            name = command[2].replace("fairseq_cli.", "fairseq-").replace("_", "-")
            result = fairseq_cli(name, *command[3:], cwd=log.parent, expect=None)
            status, text = result.returncode, result.stdout
        done.append(command[2])
        with log.open("a", encoding="utf-8") as file:
            file.write(text)
        commands.check(status, what, log, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "run", run)
        patch.setattr(commands, "run_with_progress", lambda command, log, lock, total: run(command, log, lock, "train"))
        yield done


@pytest.fixture(scope="module")
def forks(fairseq_cli: Any) -> Iterator[list[str]]:
    """The names of the commands that were run, each in a fork."""
    with forking(fairseq_cli) as done:
        yield done


@pytest.fixture(scope="session")
def recipe_here(fairseq_cli: Any) -> Command:
    """`recipe_command` without its new interpreters: the recipe runs in this process, fairseq's commands in forks."""

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        words, output = [*SETTINGS, *map(str, options)], io.StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        with (
            forking(fairseq_cli),
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            patch.setattr(sys, "argv", ["iwslt14_de_en", *words])  # which the report quotes
            status = cli.main("iwslt14_de_en", words)
        signal.signal(signal.SIGTERM, handler)
        return subprocess.CompletedProcess(words, status, output.getvalue())

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
    recipe_here: Command,
    recipe_environment: dict[str, str],
    corpus_folder: Path,
    project_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A whole run. Its command and training were killed at the first checkpoint, and that checkpoint cut in half."""
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
    done = recipe_here(*options)
    assert done.returncode == 0, done.stdout
    return Finished(out, corpus_folder, done.stdout)
