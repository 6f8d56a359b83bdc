"""Commands of fairseq as these tests run them, forks of one process, do what they do for a user."""

from __future__ import annotations

from pathlib import Path

import macaron


def test_a_fork_prints_and_returns_what_a_fresh_process_does(fairseq_cli, tmp_path: Path) -> None:
    arguments = ["fairseq-train", "data", "--user-dir", Path(macaron.__file__).parent, "--arch", "macaron_huge"]
    fresh, fork = (fairseq_cli(*arguments, cwd=tmp_path, expect=2, fresh=fresh).stdout for fresh in (True, False))
    assert "invalid choice: 'macaron_huge'" in fork and "macaron_tiny" in fork
    assert fork == fresh


def test_a_fork_reads_its_input_in_its_folder_and_fails_with_a_traceback(fairseq_cli, tmp_path: Path) -> None:
    (tmp_path / "ref").write_text("a b c d\n")
    arguments = ["--ref", "ref", "--order", 4]
    assert "BLEU4 = 100.00" in fairseq_cli("fairseq-score", *arguments, cwd=tmp_path, stdin="a b c d\n").stdout
    failed = fairseq_cli("fairseq-score", "--ref", "other", cwd=tmp_path, expect=1).stdout
    assert "Traceback" in failed and failed.endswith("AssertionError: Reference file other does not exist\n")
