"""WMT 2014 English-German: Europarl, CommonCrawl, News Commentary v9; fairseq's prepare-wmt14en2de.sh --icml17.

Validation is newstest2013, as in the papers, or every 100th training pair, as in the script; the test set is
newstest2014 (all 3,003 sentences).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.download import Remote
from ..common.errors import RecipeError
from ..common.textfile import packed
from ..translation.data.corpus import Corpus, Input, Part, Rules, detected, places
from ..translation.text import TextSettings

VALID = ("newstest2013", "train")
TRAIN_SIZE = 4_500_000  # about; what counts as the whole corpus
NEWSTEST_SIZES = {"newstest2013": 3_000, "newstest2014": 3_003}

MEBI = 2**20
ARCHIVES = (
    Remote(
        "training-parallel-europarl-v7.tgz",
        ("https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz", "http://statmt.org/wmt13/training-parallel-europarl-v7.tgz"),
        limit=1024 * MEBI,
        members=("europarl-v7.de-en.*",),
    ),
    Remote(
        "training-parallel-commoncrawl.tgz",
        ("https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz", "http://statmt.org/wmt13/training-parallel-commoncrawl.tgz"),
        limit=2048 * MEBI,
        members=("commoncrawl.de-en.*",),
    ),
    Remote(
        "training-parallel-nc-v9.tgz",
        ("https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz", "http://statmt.org/wmt14/training-parallel-nc-v9.tgz"),
        limit=512 * MEBI,
        members=("news-commentary-v9.de-en.*",),
    ),
    Remote(
        "dev.tgz",
        ("https://data.statmt.org/wmt17/translation-task/dev.tgz", "http://data.statmt.org/wmt17/translation-task/dev.tgz"),
        limit=128 * MEBI,
        members=("newstest2013.de", "newstest2013.en"),
    ),
    Remote(
        "test-full.tgz",
        ("https://www.statmt.org/wmt14/test-full.tgz", "http://statmt.org/wmt14/test-full.tgz"),
        limit=64 * MEBI,
        members=("newstest2014-deen-*.sgm",),
    ),
)  # fmt: skip
TRAINING = ("europarl-v7.de-en", "commoncrawl.de-en")
NEWS_COMMENTARY = ("news-commentary-v9.de-en", "news-commentary-v12.de-en")


@dataclass(frozen=True)
class Wmt14(Corpus):
    valid: str = "newstest2013"

    def find(self, folder: Path) -> Input | None:
        parts = [self.pair_below(folder, stem) for stem in TRAINING]
        news = next((part for stem in NEWS_COMMENTARY if (part := self.pair_below(folder, stem))), None)
        if all(parts) and news:
            train = tuple(part for part in (*parts, news) if part)
            return self.with_newstests(folder, "WMT14 training corpora", train, canonical=True)
        for place in (folder / "tmp", folder):
            if splits := self.splits(place):
                train_part, valid, test = (detected(part, final=True) for part in splits.values())
                kind = "tokenised text" if train_part.form == "final" else "raw text"
                return Input(kind, (train_part,), (valid,), (test,))
        stems = sorted({path.name[: path.name.index(f".{self.source}")] for path in folder.glob(f"*.{self.source}*")})
        pairs = [self.pair(folder, stem) for stem in stems if not stem.startswith("newstest201")]
        train = tuple(detected(pair) for pair in pairs if pair)
        return self.with_newstests(folder, "parallel text", train) if train else None

    def with_newstests(self, folder: Path, kind: str, train: tuple[Part, ...], canonical: bool = False) -> Input:
        valid = (self.newstest(folder, "newstest2013"),) if self.valid == "newstest2013" else ()
        return Input(kind, train, valid, (self.newstest(folder, "newstest2014"),), canonical)

    def newstest(self, folder: Path, name: str) -> Part:
        """Plain text or SGM, in the folder, below it, or in a folder beside it."""
        for place in (*places(folder), *places(folder.parent, depth=1)):
            if plain := self.pair(place, name):
                return plain
            source = packed(place / f"{name}-deen-src.{self.source}.sgm")
            reference = packed(place / f"{name}-deen-ref.{self.target}.sgm")
            if source and reference:
                return Part(source, reference, reader="sgm")
        raise RecipeError(
            f"{folder}: {name} is missing; looked there, below and beside it for {name}.{{en,de}} and "
            f"{name}-deen-{{src.en,ref.de}}.sgm (plain, .xz or .gz). Put one of them there"
        )

    def looked_for(self) -> str:
        return (
            f"the archives {', '.join(remote.name for remote in self.remotes)}; what is in them "
            f"({', '.join((*TRAINING, *NEWS_COMMENTARY[:1]))}.{{de,en}}); train, valid and test.{{en,de}}; or any "
            f"*.{{en,de}} with newstest2014 and newstest2013 (text plain, .xz or .gz)"
        )

    def notice(self, sizes: dict[str, int]) -> str:
        if sizes["train"] > 0.8 * TRAIN_SIZE:
            return ""
        return (
            f"{sizes['train']:,} training pairs of the about {TRAIN_SIZE:,} of WMT14: a subset, not comparable with "
            f"published WMT14 scores"
        )

    def check(self, found: Input, sizes: dict[str, int], text: Path, settings: TextSettings) -> None:
        tests = {"valid": found.valid, "test": found.test}
        for split, parts in tests.items():
            for part in parts:
                known = next((n for name, n in NEWSTEST_SIZES.items() if part.source.name.startswith(name)), None)
                if known is not None and sizes[split] != known:
                    raise RecipeError(
                        f"{part.source}: {sizes[split]:,} sentences, but {part.source.name[:12]} has {known:,}; "
                        f"fetch the file again"
                    )


def corpus(valid: str = "newstest2013") -> Wmt14:
    """The corpus with its validation set: "newstest2013", or "train" for every 100th training pair."""
    if valid not in VALID:
        raise RecipeError(f"validation set {valid!r} is unknown; choose {' or '.join(VALID)}")
    rules = Rules(longest=250, ratio=1.5, unit="pieces", every=100, normalise=True)
    return Wmt14("WMT14 En-De", "en", "de", rules, ARCHIVES, valid)
