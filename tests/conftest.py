"""Fixtures for all tests: seeds, the reference data, fairseq's commands, a tiny parallel corpus."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

if not torch.cuda.is_available():
    # Read when triton is imported, by whichever test comes first; `Kernel.load` says so if it came too late.
    os.environ["TRITON_INTERPRET"] = "1"

# A shell that starts a job with `&` has it ignore interruptions, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As in the processes that tests start, so that sums are taken in the same order; and each worker has a core.
torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers and threads, whatever ran before it."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """`torch.empty` returns NaN, so that a value which a kernel forgot to write shows."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real corpora and reference data that lies beside a developer's clone."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: real corpora and reference data are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """What the original implementation computes; golden/README.md says how it was made."""
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the numbers of the original implementation are not there")
    return folder


# Long files first, so that no worker is left with one when the others have finished.
LONG = ("recipes", "user_dir/test_translation_cli.py", "test_packaging.py", "user_dir", "bert/test_training.py")
# One worker for the files that share a training.
TOGETHER = tuple(f"recipes/translation/test_{name}" for name in ("pipeline.py", "noise.py", "re"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        return next(
            (i for i, stem in enumerate((*TOGETHER, *LONG)) if path.startswith(stem)), len(LONG) + len(TOGETHER)
        )

    items.sort(key=rank)  # stable


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """`--dist loadfile` in the order above."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            return "together" if path.removeprefix("tests/").startswith(TOGETHER) else path

    config.option.loadscopereorder = False
    return Scheduling(config, log)


FairseqCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def fairseq_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FairseqCli]:
    """Run a fairseq command as a user does: `fairseq_cli("fairseq-train", *arguments, cwd=folder)`.

    The command's output comes back in `stdout`, with what it wrote to stderr mixed in. A status other than
    `expect` (None: any) fails the test and shows the output. Commands of fairseq are forks of an interpreter that has
    imported it, see warm.py; others, those with an environment of their own, and with `fresh=True`, get a new one.
    """
    warm = _Warm(tmp_path_factory.mktemp("commands"))
    yield warm.run
    warm.end()


class _Warm:
    """The process of warm.py, started by the first command, and the way to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.count = 0

    def start(self) -> None:
        inbox, jobs = os.pipe()
        answers, outbox = os.pipe()
        script = [sys.executable, str(ROOT / "tests" / "warm.py"), str(inbox), str(outbox)]
        environment = _environment({"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
        with (self.folder / "warm.log").open("wb") as log:
            self.process = subprocess.Popen(
                script, pass_fds=(inbox, outbox), env=environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        os.close(inbox)
        os.close(outbox)
        self.jobs, self.answers = open(jobs, "w", encoding="utf-8"), open(answers, encoding="utf-8")  # noqa: SIM115

    def end(self) -> None:
        if self.process:
            self.jobs.close()
            self.process.wait(60)
            self.answers.close()

    def run(
        self,
        command: str,
        *arguments: object,
        cwd: Path,
        expect: int | None = 0,
        stdin: str = "",
        env: dict[str, str] | None = None,
        timeout: float = 600,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).parent / command
        if not script.exists():
            pytest.fail(f"no {script}; fairseq is not installed beside this Python, run `make install`")
        words = [str(script), *map(str, arguments)]
        if env or fresh or not command.startswith("fairseq-"):
            done = subprocess.run(
                words, cwd=cwd, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=_environment(env or {}), timeout=timeout, check=False,
            )  # fmt: skip
        else:
            done = self._fork(words, cwd, stdin, timeout)
        if expect is not None and done.returncode != expect:
            pytest.fail(f"{command} ended with status {done.returncode}, not {expect}:\n{done.stdout}")
        return done

    def _fork(self, words: list[str], cwd: Path, stdin: str, timeout: float) -> subprocess.CompletedProcess[str]:
        if self.process is None:
            self.start()
        self.count += 1
        given, output = (self.folder / f"{self.count}.{name}" for name in ("in", "out"))
        given.write_text(stdin, encoding="utf-8")
        output.touch()
        job = {"command": words[0], "arguments": words[1:], "cwd": str(cwd), "stdin": str(given), "output": str(output)}
        print(json.dumps(job), file=self.jobs, flush=True)
        child = self.answers.readline()
        if not child:
            pytest.fail(f"warm.py has ended:\n{(self.folder / 'warm.log').read_text()}")
        killer = threading.Timer(timeout, os.kill, (int(child), signal.SIGKILL))
        killer.start()
        status = self.answers.readline()
        killer.cancel()
        return subprocess.CompletedProcess(words, int(status), output.read_text(encoding="utf-8", errors="replace"))


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **more}


def _sentences(count: int, generator: random.Random, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a sentence and its "translation": every word spelt backwards, in reversed order."""
    for _ in range(count):
        source = generator.choices(words, k=generator.randint(3, 9))
        yield " ".join(source), " ".join(word[::-1] for word in reversed(source))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with {train,valid,test}.{de,en}: 60, 12 and 12 lines of synthetic words."""
    folder = tmp_path_factory.mktemp("tiny_corpus")
    generator = random.Random(1906)
    words = ["".join(generator.choices("abdeiklmnorstu", k=generator.randint(2, 6))) for _ in range(30)]
    for split, count in {"train": 60, "valid": 12, "test": 12}.items():
        pairs = list(_sentences(count, generator, words))
        for side, language in enumerate(("de", "en")):
            lines = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_data_bin(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory, fairseq_cli: FairseqCli) -> Path:
    """`tiny_corpus` as fairseq-preprocess writes it, with one dictionary for both languages."""
    folder = tmp_path_factory.mktemp("tiny_data_bin")
    arguments = ["--source-lang=de", "--target-lang=en", "--joined-dictionary", f"--destdir={folder}"]
    arguments += [f"--{split}pref={split}" for split in ("train", "valid", "test")]
    fairseq_cli("fairseq-preprocess", *arguments, cwd=tiny_corpus)
    return folder
