"""How far a training is, read off its log."""

from __future__ import annotations

from pathlib import Path

from ..translation import commands


class Progress:
    """Updates done so far, read off what is new in a training log."""

    def __init__(self, log: Path):
        self.log = log
        self.position = 0
        self.count = 0

    def updates(self) -> int:
        try:
            with self.log.open("rb") as reader:
                reader.seek(self.position)
                for line in commands.complete_lines(reader):
                    kind, stats = commands.parse(line) or ("", {})
                    prefix = "" if kind == "train_inner" else f"{kind}_"
                    self.count = int(stats.get(f"{prefix}num_updates", self.count))
                self.position = reader.tell()
        except (OSError, ValueError, TypeError):  # not there yet, or damaged: which is no reason to end the jobs
            pass
        return self.count
