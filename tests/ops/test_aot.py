"""Every kernel compiles for every target, at its launch settings and without spilling registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

KERNELS = {"step_norm_fwd", "step_norm_bwd", "act_dropout", "cross_entropy"}


@pytest.fixture(scope="module")
def compiled(project_root: Path) -> subprocess.CompletedProcess[str]:
    """For all targets in one process, and not in this, where kernels are interpreted."""
    script = Path(__file__).with_name("aot.py")
    env = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=env, timeout=900, check=False
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_without_spills(target, compiled):
    """`python tests/ops/aot.py` prints the table, with the number of launches at its end."""
    rows = [line for line in compiled.stdout.splitlines() if line.split()[:1] == [target]]
    assert {row.split()[1] for row in rows} == KERNELS, compiled.stdout + compiled.stderr
    assert not any("SPILLS" in row for row in rows), "\n".join(rows)
    assert f"\n{len(rows)} launches x " in compiled.stdout, compiled.stdout + compiled.stderr
