"""Every kernel compiles for every target, at its launch settings and without spilling registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_without_spills(target, project_root):
    """In a process of its own: here kernels are interpreted. `python tests/ops/aot.py` prints the table."""
    script = Path(__file__).with_name("aot.py")
    env = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), target]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
