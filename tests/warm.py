"""A process that has imported fairseq and forks into its commands, so that none of them takes six seconds to start.

`python warm.py IN OUT` reads a job a line from the file descriptor IN: command, arguments, cwd, stdin and output, the
last two names of files. It answers on OUT with the process id, and at the end with the exit status. In the fork the
script of the command runs as the main module, as in a fresh interpreter: nothing of this project is imported before
it, nor any of fairseq's command modules, which set up the logging.
"""

import atexit
import gc
import json
import logging
import os
import runpy
import sys
import traceback
from typing import Any

import numpy as np
import torch

# ruff: isort: off
import fairseq.data.data_utils
import fairseq.dataclass.initialize
import fairseq.model_parallel.megatron_trainer
import fairseq.sequence_generator
import fairseq.trainer  # noqa: F401

torch.compile(len)  # imports what every model with `--compile` as an option asks for


def served(inbox: int, outbox: int) -> dict[str, Any]:
    """The job of this process, which is a fork; the parent only leaves with the end of the jobs."""
    with open(inbox, encoding="utf-8") as jobs, open(outbox, "w", encoding="utf-8") as answers:
        for line in jobs:
            child = os.fork()
            if child == 0:
                return json.loads(line)
            print(child, file=answers, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    os._exit(0)


def become(job: dict[str, Any]) -> str:
    """Take the job's folder, streams and arguments; the script to run."""
    os.chdir(job["cwd"])
    for stream, path, flags in (
        (0, job["stdin"], os.O_RDONLY),
        (1, job["output"], os.O_WRONLY | os.O_APPEND),
        (2, job["output"], os.O_WRONLY | os.O_APPEND),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, stream)
        os.close(opened)
    np.random.seed()
    sys.argv = [job["command"], *job["arguments"]]
    sys.path[0] = os.path.dirname(job["command"])
    return job["command"]


def run(script: str) -> int:
    """As the interpreter runs it; the exit status."""
    try:
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    assert not {"macaron", "user_dir", "fairseq_cli"} & set(sys.modules)
    logging.root.handlers.clear()  # of fairseq's modules; the commands set up their own
    gc.freeze()
    status = run(become(served(*map(int, sys.argv[1:]))))
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # to take so large an interpreter apart would take a second
