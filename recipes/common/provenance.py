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

PROJECT_ROOT = Path(__file__).resolve().parents[2]


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
    """The commit of the clone, marked when files differ from it."""
    try:
        run = [["git", "-C", str(PROJECT_ROOT), *rest] for rest in (["rev-parse", "HEAD"], ["status", "--porcelain"])]
        head, status = (subprocess.run(c, capture_output=True, text=True, check=True).stdout.strip() for c in run)
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git clone)"
    return f"{head} with local changes" if status else head


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
