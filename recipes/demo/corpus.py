"""Numbers, dates and prices in German and English, made on the spot: a corpus that a reader grasps at once.

German says 23 as "dreiundzwanzig" (three-and-twenty), the day before the thing, and the verb last:

    Anna hat am dritten Mai dreiundzwanzig Äpfel für zwölf Euro fünfzig gekauft.
    Anna bought twenty-three apples for twelve euros fifty on the third of May.
"""

import re
from functools import cache
from pathlib import Path
from random import Random

from num2words import num2words

from ..common.errors import RecipeError
from ..common.textfile import lines
from ..translation.data.corpus import Corpus, Input, Rules

SIZES = {"train": 8_000, "valid": 200, "test": 300}
SENTENCES = (
    ("{name} hat am {day}n {month} {few} {thing} für {euro} Euro {cent} {did}.",
     "{name} {did} {few} {thing} for {euro} euros {cent} on the {day} of {month}."),
    ("Im Jahr {year} wohnten in {city} {many} Menschen.", "{many} people lived in {city} in {year}."),
    ("Der Zug nach {city} fährt am {day}n {month} um {hour} Uhr {cent} von Gleis {few} ab.",
     "On the {day} of {month} the train to {city} leaves from platform {few} at {hour} {cent}."),
    ("{name} glaubt, dass {other} im Jahr {year} {many} {thing} {did} hat.",
     "{name} believes that {other} {did} {many} {thing} in {year}."),
)  # fmt: skip
WORDS = {
    "name": "Anna Paul Maria Emil Lena Jonas Clara Felix",
    "other": "Anna Paul Maria Emil Lena Jonas Clara Felix",
    "city": "Köln/Cologne Wien/Vienna Genf/Geneva München/Munich Prag/Prague",
    "thing": "Äpfel/apples Bücher/books Stühle/chairs Eier/eggs Uhren/clocks",
    "did": "gekauft/bought verkauft/sold bestellt/ordered gefunden/found",
    "month": "Januar/January März/March Mai/May Juni/June Oktober/October",
}
NUMBERS = {  # from, to, and how num2words says them
    "day": (1, 31, "ordinal"), "year": (1950, 2026, "year"), "hour": (2, 23, "cardinal"), "few": (2, 99, "cardinal"),
    "euro": (2, 999, "cardinal"), "cent": (10, 59, "cardinal"), "many": (1_000, 999_999, "cardinal"),
}  # fmt: skip


def draw(slot: str, random: Random) -> tuple[str, str]:
    """Something for a {slot}, in German and in English."""
    if slot in WORDS:
        german, _, english = random.choice(WORDS[slot].split()).partition("/")
        return german, english or german
    low, high, to = NUMBERS[slot]
    number = random.randint(low, high)
    return num2words(number, lang="de", to=to), num2words(number, lang="en", to=to)


@cache
def texts() -> dict[str, list[str]]:
    """{train,valid,test}.{de,en}, the same for every --seed of the training; no German sentence comes twice."""
    random, pairs = Random(1), dict[str, str]()
    while len(pairs) < sum(SIZES.values()):
        german, english = random.choice(SENTENCES)
        drawn = {slot: draw(slot, random) for slot in re.findall(r"{(\w+)}", german)}
        target = english.format(**{slot: pair[1] for slot, pair in drawn.items()})
        pairs[german.format(**{slot: pair[0] for slot, pair in drawn.items()})] = target[0].upper() + target[1:]
    sides = {"de": iter(pairs), "en": iter(pairs.values())}
    return {f"{split}.{side}": [next(sides[side]) for _ in range(n)] for split, n in SIZES.items() for side in sides}


class Numbers(Corpus):
    def download(self, folder: Path, sha256: dict[str, str], trust: bool) -> None:
        folder.mkdir(exist_ok=True)
        for name, text in texts().items():
            (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")

    def find(self, folder: Path) -> Input:
        splits = self.splits(folder)
        if not splits or any(list(lines(folder / name)) != text for name, text in texts().items()):
            raise RecipeError(f"{folder}: holds other text than recipes/demo/corpus.py makes; leave --data-dir out")
        return Input("numbers, dates and prices by num2words", *((splits[name],) for name in SIZES))


CORPUS = Numbers("numbers in German and English", "de", "en", Rules())
