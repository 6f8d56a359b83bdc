"""IWSLT 2014 German-English: TED talks, cleaned and split as in fairseq's prepare-iwslt14.sh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.download import Remote
from ..common.errors import RecipeError
from ..common.workspace import digest
from ..translation.data.corpus import Corpus, Input, Part, Rules, detected
from ..translation.text import TextSettings

SIZES = {"train": 160_239, "valid": 7_283, "test": 6_750}

# Of the tokenised, lower-cased text before BPE, as prepare-iwslt14.sh leaves it in its tmp folder.
SHA256 = {
    "valid.de": "3f051579c9d8c7281a6ea8c72ad4ae09dbaa9bb24dfd41166f2c3a3df7cd940a",
    "valid.en": "e6d7317a9772cd1ed970910c611e9e7dada1f34439269b44a9d801334bff948d",
    "test.de": "e718c783e33160b7d72af8f733756a466e0d0c016eff8ab624c1b0d1d01cbbdf",
    "test.en": "4b127beb9050511a3e6209cd837ff36f623a3a423666b32aba6e208b7330cf4c",
}

ARCHIVE = Remote(
    "de-en.tgz",
    urls=(
        "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",
        "https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz",
    ),
    limit=64 * 2**20,
    members=("train.tags.de-en.*", "IWSLT14.*.xml"),
)

TALKS = "train.tags.de-en"
TEST_SETS = [
    f"IWSLT14.{name}.de-en" for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
]


@dataclass(frozen=True)
class Iwslt14(Corpus):
    def find(self, folder: Path) -> Input | None:
        if talks := self.pair_below(folder, TALKS, reader="ted"):
            return Input("TED talks with tags", (talks,), (), self.test_sets(folder, needed=True), canonical=True)
        for place in (folder / "tmp", folder):  # where fairseq's script leaves text without and with BPE
            if splits := self.splits(place):
                train, valid, test = (detected(part, final=True) for part in splits.values())
                kind = "tokenised text" if train.form == "final" else "raw text"
                return Input(kind, (train,), (valid,), self.test_sets(folder) or (test,))
        return None

    def test_sets(self, folder: Path, needed: bool = False) -> tuple[Part, ...]:
        """The five test sets in their order, which make up the canonical one; cased, untokenised."""
        found = {stem: self.pair_below(folder, stem, suffix=".xml", reader="segments") for stem in TEST_SETS}
        parts = tuple(part for part in found.values() if part)
        if needed and len(parts) < len(TEST_SETS):
            missing = ", ".join(f"{stem}.{{de,en}}.xml" for stem, part in found.items() if not part)
            raise RecipeError(f"{folder}: {missing} not found beside {TALKS}.de; unpack the whole archive there")
        return parts if len(parts) == len(TEST_SETS) else ()

    def looked_for(self) -> str:
        return (
            f"the archive {ARCHIVE.name}; {TALKS}.{{de,en}} with IWSLT14.TED*.xml; or train, valid and test.{{de,en}}, "
            f"tokenised (plain, .xz or .gz)"
        )

    def notice(self, sizes: dict[str, int]) -> str:
        if sizes == SIZES:
            return ""
        whole = SIZES["train"]
        if sizes["train"] < whole:
            what = f"{sizes['train']:,} training pairs, {sizes['train'] / whole:.0%} of the {whole:,} of IWSLT14"
        else:
            what = f"{', '.join(f'{n:,} {split}' for split, n in sizes.items())} pairs, which are not those of IWSLT14"
        return f"{what}: a subset, not comparable with published IWSLT14 scores"

    def check(self, found: Input, sizes: dict[str, int], text: Path, settings: TextSettings) -> None:
        if not found.canonical:
            return
        wrong = [
            f"{sizes[split]:,} {split} pairs, not {count:,}" for split, count in SIZES.items() if sizes[split] != count
        ]
        if settings.tokenizer == "moses" and settings.lowercase and not settings.aggressive_hyphens:
            wrong += [
                f"sha256 of text/{name} differs" for name, known in SHA256.items() if digest(text / name) != known
            ]
        if wrong:
            raise RecipeError(
                f"{found.train[0].source.parent}: this does not give the canonical IWSLT14 text ({'; '.join(wrong)}); "
                f"the files are another release or were changed. Fetch {ARCHIVE.name} again"
            )


CORPUS = Iwslt14("IWSLT14 De-En", "de", "en", Rules(longest=175, ratio=1.5, every=23), (ARCHIVE,))
