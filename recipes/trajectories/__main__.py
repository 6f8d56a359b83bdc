"""python -m recipes.trajectories: what happens to the words of a sentence inside of a model. `--help` says more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.main import command_line, positive, run_command


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "trajectories",
        "Look inside a model: where the words of sentences are after each substep of each layer, how fast "
        "they move and turn, how well a layer's step solves its equation, and which word the output layer would read "
        "on the way. Writes tokens.csv, layers.csv, layers.png and trajectories.html, a page that opens offline.",
    )
    p.add_argument(
        "model", type=Path, metavar="MODEL",
        help="a released translation model (a folder with text.json), a Macaron BERT (a folder with config.json), or a "
        "checkpoint of fairseq (FILE.pt, with --data)",
    )  # fmt: skip
    p.add_argument(
        "--text", type=Path, required=True, metavar="FILE",
        help="a sentence a line, UTF-8, plain, .gz or .xz; raw text, but for a checkpoint pieces as it was trained on",
    )  # fmt: skip
    p.add_argument(
        "--target", type=Path, metavar="FILE",
        help="of a translation model: the translations, line by line; the decoder is then looked into as well",
    )  # fmt: skip
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet, or empty")
    p.add_argument("--data", type=Path, metavar="DIR", help="of a checkpoint: the folder of its dict.*.txt")
    p.add_argument("--source-lang", metavar="XX", help="of a checkpoint that does not say it")
    p.add_argument("--target-lang", metavar="XX", help="of a checkpoint that does not say it")
    p.add_argument("--lines", type=positive, default=64, metavar="N", help="read so many (default: %(default)s)")
    p.add_argument("--shown", type=positive, default=12, metavar="N", help="on the page (default: the first 12)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("trajectories", lambda: command(parser().parse_args(argv), argv), "nothing was written")


def command(args: argparse.Namespace, argv: Sequence[str] | None) -> None:
    from .look import look

    look(args, argv)


if __name__ == "__main__":
    raise SystemExit(main())
