"""Results as rows of a CSV file, each with all that it depends on; appended to, never rewritten."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.main import PACKAGE, command_shown
from ..common.provenance import environment
from .measure import Plan, load

# In a clone beside the sources, where the figures of record are; an installed package is not written to.
RESULTS = (Path(__file__).parent if PACKAGE == "recipes" else Path("bench_output")) / "results.csv"
PACKAGES = ("torch", "transformers", "fairseq-fixed", "triton", "numpy")
FIGURES = (
    *("benchmark", "case", "contender", "baseline", "median_ms", "q1_ms", "q3_ms"),
    *("speedup", "speedup_q1", "speedup_q3", "tokens_per_s", "peak_mib", "gb_per_s", "share_of_copy"),
    *("gflop_per_s", "share_of_products"),
    *("parameters", "repeats", "precision", "settings", "seed", "clock", "load"),
)
ORIGIN = ("date", "command", "commit", "python", *PACKAGES, "machine", "processor", "cores", "threads", "GPU")
FIELDS = (*FIGURES, *ORIGIN)


class Record:
    """Where the rows of one command go."""

    def __init__(
        self, path: Path, benchmark: str, precision: str, seed: int, plan: Plan, settings: dict[str, Any]
    ) -> None:
        self.path = path
        self.common: dict[str, Any] = {
            "benchmark": benchmark,
            "precision": precision,
            "seed": seed,
            "clock": plan.clock,
        }
        self.describe(settings)
        self.origin = environment(command_shown("bench"), PACKAGES)
        if plan.device.type == "cpu":  # beside a GPU, too
            self.origin["GPU"] = "none"
        read(path)  # a file of another kind is refused before hours are spent

    def describe(self, settings: dict[str, Any]) -> None:
        """Settings of the rows to come."""
        self.common["settings"] = json.dumps(settings, sort_keys=True)

    def add(self, case: str, rows: list[dict[str, Any]]) -> None:
        """Append the rows and print them."""
        common = self.common
        print(f"\n{common['benchmark']}  {case}  {common['precision']}  {common['clock']} time  load {load()}")
        print(aligned(rows))
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, restval="", lineterminator="\n")
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer.writeheader()
        for row in rows:
            writer.writerow({**self.origin, **self.common, "load": load(), "case": case, **row})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())


def read(path: Path) -> list[dict[str, str]]:
    """All rows; none where there is no file.

    Raises:
        RecipeError: where the file is not one of these.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
        reader = csv.DictReader(io.StringIO(text, newline=""))
        heads, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); name another file with --out") from error
    if heads != FIELDS:
        raise RecipeError(f"{path}: its columns are not those of this benchmark; name another file with --out")
    for number, row in enumerate(rows, 1):
        cut = number == len(rows) and not text.endswith("\n")  # and the next row would become a part of it
        if cut or None in row or None in row.values():
            raise RecipeError(f"{path}: row {number} is not whole, it was cut off or edited; delete it")
    return rows


def aligned(rows: list[dict[str, Any]]) -> str:
    """What differs between the rows, as a table."""
    heads = [key for key in rows[0] if any(row.get(key, "") not in ("", None) for row in rows) and key != "baseline"]
    table = [heads, *([str(row.get(key, "")) for key in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    )
