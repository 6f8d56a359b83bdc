"""The figures as CSV: tokens.csv, of every token at every state, and layers.csv, their mean and quartiles.

UTF-8, a header, a comma between, a point in numbers; a field that is empty does not exist there (the first state has
no velocity, the encoder no output layer).
"""

from __future__ import annotations

import csv
from pathlib import Path

from .measure import QUANTITIES, Mean, Sighted

TOKEN = ("line", "side", "position", "token", "id", "state", "layer", "flow", "step")
STATE = ("side", "state", "layer", "flow", "step", "tokens")


def write_tokens(path: Path, sighted: list[Sighted]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*TOKEN, *QUANTITIES, "lens_token"])
        for s in sighted:
            for n, (token, number) in enumerate(zip(s.tokens, s.ids, strict=True)):
                for k, place in enumerate([(0, "", ""), *s.substeps]):
                    row = [s.line, s.side, n + 1, token, number, k, *place]
                    values = [number_of(s.values[name][k, n]) for name in QUANTITIES]
                    table.writerow([*row, *values, s.words[k][n] if s.words else ""])


def write_layers(path: Path, means: dict[str, Mean]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*STATE, *(f"{name}_{what}" for name in QUANTITIES for what in ("mean", "q1", "q3"))])
        for side, m in means.items():
            for k, (layer, flow, step) in enumerate([(0, "", ""), *m.substeps]):
                values = [number_of(part[name][k]) for name in QUANTITIES for part in (m.mean, m.low, m.high)]
                table.writerow([side, k, layer, flow, step, m.particles, *values])


def number_of(value: float) -> str:
    return "" if value != value else f"{value:.7g}"
