"""python -m recipes.demo [--corpus multi30k] [STAGE]: from corpus to scores, report and release. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..translation import cli

CORPORA = {"numbers": "demo", "multi30k": "multi30k_de_en"}


def option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--corpus",
        choices=CORPORA,
        default="numbers",
        help="numbers: sentences that the demo makes itself, minutes; multi30k: image captions, by "
        "recipes.multi30k_de_en, downloaded unless --data-dir says where they are (default: %(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(add_help=False)
    option(p)
    chosen, rest = p.parse_known_args(argv)
    return cli.main(CORPORA[chosen.corpus], rest, option)


if __name__ == "__main__":
    sys.exit(main())
