"""What is read off fairseq's log."""

from __future__ import annotations

import fcntl
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from recipes.common import leash
from recipes.common.errors import RecipeError
from recipes.translation import commands

LOG = """\
2026-01-01 10:00:00 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "9", "ppl": "300", "num_updates": "5"}
2026-01-01 10:00:01 | INFO | valid | {"epoch": 1, "valid_nll_loss": "5.5", "valid_num_updates": "10"}
2026-01-01 10:00:02 | INFO | train | {"epoch": 1, "train_nll_loss": "6.5", "train_num_updates": "10"}
2026-01-01 10:00:03 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.0", "valid_num_updates": "20"}
2026-01-01 10:00:04 | INFO | valid | {"epoch": 2, "valid_nll_l
2026-01-01 10:01:00 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.5", "valid_num_updates": "20"}
"""


def test_learning_curve_of_an_interrupted_run(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(LOG)
    assert commands.learning_curve(log) == {"train": [(10, 6.5)], "valid": [(10, 5.5), (20, 4.5)]}


def test_lines_are_read_when_complete(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntw")
    with log.open("rb") as reader:
        assert commands.complete_lines(reader) == ["one"]
        with log.open("ab") as writer:
            writer.write(b"o\n")
        assert commands.complete_lines(reader) == ["two"]
        assert commands.complete_lines(reader) == []


def test_commands_are_shown_as_typed() -> None:
    command = commands.fairseq("train", "data bin", "--adam-betas", "(0.9, 0.98)")
    assert commands.shown(command) == "fairseq-train 'data bin' --adam-betas '(0.9, 0.98)'"


def test_a_failing_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log, lock = tmp_path / "log", (tmp_path / "lock").open("w")
    with lock, pytest.raises(RecipeError, match=r"(?s)cooking ended with status 3; .*no salt.*the same command"):
        commands.run([sys.executable, "-c", "print('no salt'); raise SystemExit(3)"], log, lock, "cooking")


# --- what a failed command said -----------------------------------------------------------------------------------

TRACEBACK = """\
Traceback (most recent call last):
  File "trainer.py", line 970, in train_step
    raise FloatingPointError("gradients are Nan/Inf")
FloatingPointError: gradients are Nan/Inf

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "module.py", line 1862, in inner
StopIteration
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (TRACEBACK, "FloatingPointError: gradients are Nan/Inf"),
        ("[rank1]: FloatingPointError: Minimum loss scale reached (0.0001).\n"
         "[rank0]: RuntimeError: [gloo] Connection closed by peer\n"
         "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n",
         "FloatingPointError: Minimum loss scale reached (0.0001)."),
        ("KeyError: 'x'\nRuntimeError: Error(s) in loading state_dict for Macaron:\n\tMissing key(s): \"a\".\n\nbye\n",
         "RuntimeError: Error(s) in loading state_dict for Macaron: Missing key(s): \"a\"."),
        ("usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --lrr\n",
         "train.py: error: unrecognized arguments: --lrr"),
        ("omegaconf.errors.ConfigKeyError: Key 'lrr' not in struct\n    full_key: lrr\n\nSet HYDRA_FULL_ERROR=1\n",
         "ConfigKeyError: Key 'lrr' not in struct full_key: lrr"),
        ("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n", "ChildFailedError: "),
        ("2026 | INFO | the Error: rate is low\nall is well\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_cause_is_read_off_the_log(log: str, said: str) -> None:
    assert commands.cause(log.splitlines()) == said.strip()


def run_code(tmp_path: Path, code: str) -> None:
    with (tmp_path / "lock").open("w") as lock:
        commands.run([sys.executable, "-c", code], tmp_path / "log", lock, "cooking")


def test_divergence_is_quoted_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        run_code(tmp_path, f"print({TRACEBACK!r}); print('\\n'.join('noise' * 30)); raise SystemExit(1)")
    said = str(raised.value)
    assert "cooking diverged" in said and "FloatingPointError: gradients are Nan/Inf. Take a smaller --lr" in said
    assert "\n" not in said


def test_the_exception_of_this_attempt_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("FloatingPointError: of another attempt\n")
    with pytest.raises(RecipeError, match=r"cooking ended with status 1; .*log says: ValueError: no salt\. When the"):
        run_code(tmp_path, "raise ValueError('no salt')")


def test_a_command_that_was_killed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ended with status 137 \(SIGKILL; out of memory\?\)"):
        run_code(tmp_path, "import os; os.kill(os.getpid(), 9)")


def test_lines_of_another_shape_are_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    deep = '{"a": ' * 9999 + "1" + "}" * 9999
    log.write_text(f'{LOG}x | train | {{"train_nll_loss": "nan", "train_num_updates": "30"}}\n'
                   f'x | train | {{"epoch": 1}}\nx | valid | {{}}\nx | valid | {deep}\n')  # fmt: skip
    assert commands.learning_curve(log) == {"train": [(10, 6.5)], "valid": [(10, 5.5), (20, 4.5)]}


@pytest.mark.parametrize("line", ["H-0", "H-x\t-1\ta b", "H-0\tlow\ta b", "H-0\t-1\ta\tb"])
def test_damaged_translations_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "generate.txt").write_text(f"S-0\ta\n{line}\n")
    with pytest.raises(RecipeError, match="is no line of fairseq-generate"):
        commands.hypotheses(tmp_path / "generate.txt")


# --- commands end with who started them ---------------------------------------------------------------------------

PARENT = """
import os, signal, sys; sys.path.insert(0, {root!r})
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from pathlib import Path
from recipes.translation import commands
lock = open({lock!r}, "a"); os.set_inheritable(lock.fileno(), True)
import fcntl; fcntl.flock(lock, fcntl.LOCK_EX)
try:
    commands.run([sys.executable, "-c", {child!r}], Path({log!r}), lock, "cooking")
finally:
    print("left", flush=True)
"""
# A command with a worker, which waits as those of multiprocessing do, and would not hear of the end of anything.
CHILD = """
import os, signal, sys, time
if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = os.fork()
os.write(1, f"{{'worker' if worker == 0 else 'command'}} {{os.getpid()}}\\n".encode())  # at once: two write here
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.time() + 120
    while not true():
        assert time.time() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize(("how", "deaf"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGINT, False),
                                           (signal.SIGKILL, True)])  # fmt: skip
def test_a_command_and_its_workers_end_with_their_parent(
    tmp_path: Path, project_root: Path, how: int, deaf: bool
) -> None:
    log, lock = tmp_path / "log", tmp_path / "lock"
    code = PARENT.format(root=str(project_root), lock=str(lock), log=str(log), child=CHILD.format(deaf=deaf))
    if deaf:
        code = code.replace(
            "lock = open",
            "from recipes.common import leash; leash.__file__ = " + repr(str(hasty(tmp_path))) + "\nlock = open",
        )
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr)

    def begun() -> list[int]:
        """The processes that have said so, whatever else an interpreter writes beside it."""
        text = log.read_text() if log.exists() else ""
        return [int(pid) for pid in re.findall(r"^(?:worker|command) (\d+)$", text, re.MULTILINE)]

    def started() -> bool:
        assert parent.poll() is None, said.read_text()
        return len(begun()) == 2

    try:
        try:
            wait_until(started, "the command has not started")
        except AssertionError as error:
            raise AssertionError(f"{error}: {log.exists() and log.read_text()!r}, {said.read_text()!r}") from error
        pids = begun()
        assert all(map(alive, pids))
        parent.send_signal(how)
        out, _ = parent.communicate(timeout=120)
    finally:
        parent.kill()
    assert out == (b"" if how == signal.SIGKILL else b"left\n")
    wait_until(lambda: not any(map(alive, pids)), "the command outlives its parent")
    with lock.open("a") as file:
        wait_until(lambda: lockable(file), "the lock is held by nobody that is left")


def hasty(tmp_path: Path) -> Path:
    """The leash, without its patience."""
    path = tmp_path / "hasty.py"
    source = Path(leash.__file__).read_text().replace("GRACE_SECONDS = 20.0", "GRACE_SECONDS = 0.2")
    path.write_text(source)
    return path


def lockable(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("apart", ["pass", "os.setsid()"])  # as torchrun starts its workers
def test_workers_that_a_command_left_behind_are_ended(tmp_path: Path, apart: str) -> None:
    child = f"{apart}; print(os.getpid(), flush=True); os.write(said, b'.'); time.sleep(600)"
    code = f"import os, time\nheard, said = os.pipe()\nif os.fork() == 0:\n  {child}\nos.read(heard, 1)"
    run_code(tmp_path, code)
    wait_until(lambda: not alive(int((tmp_path / "log").read_text())), "the worker is still there")


def test_a_process_of_a_pool_ends_with_its_parent(tmp_path: Path, project_root: Path) -> None:
    child = f"import sys, time; sys.path.insert(0, {str(project_root)!r})\n"
    child += (
        "from recipes.common.leash import end_with_parent\nend_with_parent(); print('on', flush=True); time.sleep(600)"
    )
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True)"
    code += "; p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "on\n"
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(pid), "the process outlives its parent")
