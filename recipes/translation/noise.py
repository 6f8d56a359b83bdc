"""python -m recipes.translation.noise FILE OUT: the same text with typing errors, for what a model makes of them."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.main import module, run_command
from ..common.textfile import lines

SHARE = 0.1
KINDS = ("swap", "drop", "insert", "replace")


def noised(line: str, share: float, alphabet: Sequence[str], generator: random.Random) -> str:
    """A sentence in which `share` of the characters, white space aside, are hit by one typing error each.

    Each error is a swap with the next character of the word, a lost character, one put before it, or another in its
    place, all equally likely (the synthetic noise of Belinkov & Bisk 2018, arXiv:1711.02173). Words stay words: white
    space is not touched, and no word is lost, since the only character of a word is replaced. What cannot be swapped,
    as the last of a word, is replaced, too. round(share · n) of the n characters are hit, drawn without repetition.

    Args:
        line: one sentence.
        share: in [0, 1].
        alphabet: what is put in.
        generator: of all choices.
    """
    places = [i for i, character in enumerate(line) if not character.isspace()]
    hit = set(generator.sample(places, round(share * len(places))))
    made = ""
    i = 0
    while i < len(line):
        character = line[i]
        if i in hit:
            kind = generator.choice(KINDS)
            last = i + 1 == len(line) or line[i + 1].isspace()
            alone = last and (i == 0 or line[i - 1].isspace())
            if kind == "swap" and not last and i + 1 not in hit:
                made += line[i + 1] + character
                i += 2
                continue
            if kind == "insert":
                made += generator.choice(alphabet) + character
            elif kind != "drop" or alone or made[-1:].isspace() or not made:
                made += generator.choice([other for other in alphabet if other != character])
        else:
            made += character
        i += 1
    return made


def noise_file(source: Path, target: Path, share: float = SHARE, seed: int = 1) -> tuple[int, int, int]:
    """Write `source` with errors to `target`; (lines, characters that were hit, characters).

    What is put in are the letters of the file itself. A line's errors depend on the seed, its number and its text
    alone, so that every model meets the same.

    Raises:
        RecipeError: no text, a share that is none, or a target that is there.
    """
    if not 0.0 <= share <= 1.0:
        raise RecipeError(f"--share {share} is a share of the characters: from 0 to 1")
    if target.exists():
        raise RecipeError(f"{target} is there already; give another name, or delete it")
    text = list(lines(source))
    alphabet = sorted({character for line in text for character in line if character.isalpha()})
    if len(alphabet) < 2:
        raise RecipeError(f"{source} has {len(alphabet)} different letters, and errors are made of the text's own")
    made = [noised(line, share, alphabet, random.Random(f"{seed} {n}")) for n, line in enumerate(text)]
    partial = target.with_name(target.name + ".part")
    partial.write_bytes("".join(f"{line}\n" for line in made).encode("utf-8"))
    os.replace(partial, target)
    counts = [sum(not character.isspace() for character in line) for line in text]
    return len(text), sum(round(share * count) for count in counts), sum(counts)


def noise_words(facts: Mapping[str, Any]) -> str:
    """What scores are of, from `share`, `hit` and `characters`."""
    return f"typing errors at {100 * facts['share']:g} % of the source's characters, {facts['hit']:,} of them:"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=f"python -m {module('translation.noise')}", description=__doc__.partition(": ")[2])
    p.add_argument("source", type=Path, metavar="FILE", help="UTF-8 text, plain, .xz or .gz")
    p.add_argument("target", type=Path, metavar="OUT", help="a new file")
    p.add_argument("--share", type=float, default=SHARE, metavar="X", help="of the characters (default: %(default)s)")
    p.add_argument("--seed", type=int, default=1, metavar="N", help="default: %(default)s")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> None:
        args = parser().parse_args(argv)
        count, hit, characters = noise_file(args.source, args.target, args.share, args.seed)
        print(f"written   {args.target}: {count} lines, {hit} of {characters} characters hit")

    return run_command("translation.noise", work)


if __name__ == "__main__":
    sys.exit(main())
