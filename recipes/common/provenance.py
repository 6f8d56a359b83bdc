"""Where a result comes from: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def environment(command: str, packages: Iterable[str]) -> dict[str, Any]:
    """Everything beside its settings that a result depends on.

    Args:
        command: what was typed.
        packages: distributions whose versions matter.
    """
    import torch

    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    if "torch" in versions:
        versions["torch"] = torch.__version__  # with its build (+cu130, +cpu), which a wheel's metadata may lack
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": command,
        "commit": commit(),
        "python": platform.python_version(),
        **versions,
        "machine": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "GPU": gpu or "none",
    }


def commit() -> str:
    """The commit of the clone, marked when files differ from it.

    An installed package is in no clone, though it may lie inside of somebody else's.
    """
    try:
        git("ls-files", "--error-unmatch", HERE.name)
        head, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git clone)"
    return f"{head} with local changes" if status else head


def git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
