"""The data step: text as it was found → tokenised, clean, split text → pieces → fairseq's binary format.

Every step is stamped when its files are whole; one that was interrupted is done again, a stamped one never.
What comes out does not depend on the number of workers.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import RecipeError
from ...common.textfile import lines, packed
from ...common.workspace import Workspace, digest
from .. import commands
from ..text import TextSettings
from . import binary, subword
from .corpus import SPLITS, Corpus, locate
from .files import together, whole
from .parallel import chunks, in_order
from .sentences import Pair, process, segment, tasks

Facts = dict[str, Any]

# Training pairs held out for validation and test, before those that are too long in pieces are dropped.
HELD_OUT = {"valid": "held_out", "test": "held_out_test"}


def prepare(
    corpus: Corpus,
    settings: TextSettings,
    space: Workspace,
    *,
    data_dir: Path | None = None,
    workers: int | None = None,
    bpe_codes: Path | None = None,
    dictionaries: Path | None = None,
    sha256: dict[str, str] | None = None,
    trust_first_download: bool = False,
) -> Facts:
    """Everything up to `data-bin` in the folder of a run; only what is missing is done.

    Args:
        data_dir: where the corpus is: archive, extracted, raw or tokenised text (detected); None: download it.
        workers: processes; None: one per core.
        bpe_codes: a sub-word model to take instead of learning one.
        dictionaries: a folder whose dict.<language>.txt are taken instead of counting; dict.joined.txt, when the
            dictionary is joined.
        sha256, trust_first_download: see `recipes.common.download.fetch`.

    Returns:
        kind, notice, inputs, sizes, dropped, units, dictionary, unknown: what a report says about the data.

    Raises:
        RecipeError: for anything about the input that the user can mend.
    """
    if corpus.languages != settings.languages:
        raise RecipeError(
            f"{corpus.name} is {'-'.join(corpus.languages)}, but the text settings say "
            f"{'-'.join(settings.languages)}; make them equal"
        )
    job = Preparation(corpus, settings, space, workers or os.cpu_count() or 1)
    text = job.once("text", lambda: job.text(data_dir, sha256 or {}, trust_first_download))
    units = job.once("units", lambda: job.units(bpe_codes))
    pieces = job.once("pieces", job.pieces)
    binary = job.once("binary", lambda: job.binary(dictionaries))
    foreign = unknown_pieces(binary["unknown"]) if dictionaries else ""
    notice = ". ".join(filter(None, (corpus.notice(pieces["sizes"]), text.get("notice", ""), foreign)))
    if notice:
        print(f"prepare   {notice}")
    dropped = counts(text["dropped"]) + counts(pieces["dropped"])
    if dropped:
        print(f"prepare   {sum(dropped.values()):,} training pairs dropped: {listed(dropped)}")
    return {
        "kind": text["kind"],
        "notice": notice,
        "inputs": text["inputs"],
        "sizes": pieces["sizes"],
        "dropped": dict(dropped.most_common()),
        "units": units["units"],
        **{name: binary[name] for name in ("dictionary", "unknown")},
    }


class Preparation:
    """One run's folder: raw/, text/, bpe/ and data-bin/."""

    def __init__(self, corpus: Corpus, settings: TextSettings, space: Workspace, workers: int):
        self.corpus = corpus
        self.settings = settings
        self.space = space
        self.folder = space.folder
        self.workers = workers

    def once(self, step: str, work: Callable[[], tuple[list[Path], Facts]]) -> Facts:
        """The facts of a step, which is done now unless it is stamped."""
        stamp = self.space.stamp(f"prepare-{step}")
        if stamp is None:
            started = time.time()
            files, facts = work()
            stamp = self.space.finish(f"prepare-{step}", files, started, **facts)
            print(f"prepare   {step} in {stamp['seconds']:.0f} s")
        return stamp

    def paths(self, kind: str, *splits: str) -> list[Path]:
        return [self.folder / kind / f"{split}.{language}" for split in splits for language in self.settings.languages]

    def pairs(self, kind: str, split: str) -> Iterator[Pair]:
        source, target = self.paths(kind, split)
        return together((source, target), (lines(source), lines(target)))

    # --- steps: each returns its files, for the stamp, and what is worth knowing --------------------------------

    def text(self, data_dir: Path | None, sha256: dict[str, str], trust: bool) -> tuple[list[Path], Facts]:
        """raw/{valid,test} and text/{train,valid,test}: tokenised, clean, split."""
        scratch = self.folder / "download"
        if data_dir is None:
            self.corpus.download(scratch, sha256, trust)
        shutil.rmtree(scratch / "unpacked", ignore_errors=True)  # of an attempt that was cut short
        found = locate(self.corpus, data_dir or scratch, scratch / "unpacked")
        print(f"prepare   {found.kind}")
        files = dict.fromkeys(path for _, part in found.parts() for path in part.files)
        same = Counter(path.name for path in files)
        inputs = {path.name if same[path.name] == 1 else str(path): digest(path) for path in files}
        rules = self.corpus.rules
        every = 0 if found.valid else rules.every
        split_off = {*found.split_off, *(("valid",) if every else ())} if rules.unit == "pieces" else ()
        names = {split: HELD_OUT[split] if split in split_off else split for split in SPLITS}
        valid, test = names["valid"], names["test"]
        raw, text = self.paths("raw", valid, test), self.paths("text", "train", valid, test)
        for split, name in HELD_OUT.items():  # of an attempt with other files
            if split not in split_off:
                for path in (*self.paths("raw", name), *self.paths("text", name)):
                    path.unlink(missing_ok=True)
        sizes = dict.fromkeys(SPLITS, 0)
        dropped, clean = Counter(found.dropped), 0
        with (
            whole(*raw, *text) as outputs,
            tqdm(desc="tokenise", unit=" pairs", unit_scale=True) as bar,
        ):
            output = dict(zip([*raw, *text], outputs, strict=True))

            def write(kind: str, split: str, pair: Pair) -> None:
                for path, sentence in zip(self.paths(kind, split), pair, strict=True):
                    output[path].write(sentence + "\n")

            for split, faults, kept in in_order(partial(process, self.settings, rules), tasks(found), self.workers):
                bar.update(len(kept) + sum(faults.values()))
                dropped += faults
                for sentences in kept:
                    to = split
                    if split == "train":
                        clean += 1
                        to = "valid" if every and clean % every == 0 else "train"
                    sizes[to] += 1
                    write("text", names[to], sentences.words)
                    if to != "train":
                        write("raw", names[to], sentences.raw)
        if empty := [split for split, size in sizes.items() if not size]:
            raise RecipeError(f"{found.kind}: no sentences are left for {' and '.join(empty)}; give a larger corpus")
        self.corpus.check(found, sizes, self.folder / "text", self.settings)
        facts = {"kind": found.kind, "notice": found.notice, "inputs": inputs, "sizes": sizes, "dropped": dropped}
        return [*raw, *text], facts

    def units(self, given: Path | None) -> tuple[list[Path], Facts]:
        """bpe/codes or bpe/spm.model: the joint sub-word model."""
        model = self.folder / "bpe" / self.settings.model_name
        model.parent.mkdir(exist_ok=True)
        if given is not None:
            units = subword.take(given, model, self.settings)
        else:
            soft = self.corpus.soft_units
            units = subword.learn(self.paths("text", "train"), model, self.settings, self.workers, soft)
            if units < self.settings.units:
                print(
                    f"prepare   {units:,} pieces, all that the training pairs give, instead of {self.settings.units:,}"
                )
        return [model], {"units": units}

    def pieces(self) -> tuple[list[Path], Facts]:
        """bpe/{train,valid,test}: text in pieces; where pieces count, pairs with too many are dropped."""
        rules = self.corpus.rules
        model = self.folder / "bpe" / self.settings.model_name
        made, sizes = [], {}
        dropped: Counter[str] = Counter()
        for split in SPLITS:
            held_out = HELD_OUT.get(split, "")
            split_off = bool(held_out) and self.paths("text", held_out)[0].is_file()
            from_training = split == "train" or split_off
            cleaning = rules if rules.unit == "pieces" and from_training else None
            files = self.paths("bpe", split)
            rows: Iterator[tuple[str, ...]] = self.pairs("text", split)
            if split_off:  # text and raw text lose the same pairs
                files += self.paths("text", split) + self.paths("raw", split)
                both = zip(self.pairs("text", held_out), self.pairs("raw", held_out), strict=True)
                rows = ((*words, *raw) for words, raw in both)
            work = partial(segment, self.settings, model, cleaning)
            sizes[split] = 0
            with whole(*files) as outputs, tqdm(desc=f"pieces {split}", unit=" pairs", unit_scale=True) as bar:
                for faults, kept in in_order(work, chunks(rows), self.workers):
                    bar.update(len(kept) + sum(faults.values()))
                    dropped += faults
                    sizes[split] += len(kept)
                    for row in kept:
                        for file, sentence in zip(outputs, row, strict=True):
                            file.write(sentence + "\n")
            made += files
        if empty := [split for split, size in sizes.items() if not size]:
            raise RecipeError(
                f"no pairs are left for {' and '.join(empty)}: {listed(dropped)}; give a larger corpus, or other rules"
            )
        return made, {"sizes": sizes, "dropped": dropped}

    def binary(self, dictionaries: Path | None) -> tuple[list[Path], Facts]:
        """data-bin/: fairseq's binary format, with everything that a released model needs to read raw text."""
        s = self.settings
        data_bin = self.folder / "data-bin"
        log = self.folder / "prepare.log"
        shutil.rmtree(data_bin, ignore_errors=True)  # from an attempt that was cut short
        dictionary = self.dictionary_options(dictionaries)
        prefixes = [f"--{split}pref={self.folder / 'bpe' / split}" for split in SPLITS]
        command = commands.fairseq(
            "preprocess", "--source-lang", s.source, "--target-lang", s.target, *dictionary, *prefixes,
            "--destdir", data_bin, "--workers", self.workers,
        )  # fmt: skip
        commands.run(command, log, self.space.lock, "fairseq-preprocess")
        binary.check(data_bin, lambda split, side: self.folder / "bpe" / f"{split}.{side}", SPLITS, s.languages)
        s.write(data_bin / "text.json")
        shutil.copyfile(self.folder / "bpe" / s.model_name, data_bin / s.model_name)
        report = (data_bin / "preprocess.log").read_text(encoding="utf-8")
        types = {
            language: int(count) for language, count in re.findall(r"\[([\w-]+)\] Dictionary: (\d+) types", report)
        }
        unknown = {
            f"{split}.{language}": f"{share}%"
            for language, split, share in re.findall(r"\[([\w-]+)\] .*/(\w+)\.[\w-]+: .* ([\d.e+-]+)% replaced", report)
        }
        made = [*data_bin.glob("*.bin"), *data_bin.glob("*.idx"), *data_bin.glob("dict.*.txt")]
        files = [*sorted(made), data_bin / "text.json", data_bin / s.model_name]
        return files, {"dictionary": types, "unknown": unknown, "command": commands.shown(command)}

    def dictionary_options(self, folder: Path | None) -> list[str]:
        joined = ["--joined-dictionary"] if self.settings.joined_dictionary else []
        if folder is None:
            return joined
        languages = ("joined",) if joined else self.settings.languages
        options = list(joined)
        for option, language in zip(("--srcdict", "--tgtdict"), languages, strict=False):
            there = packed(folder / f"dict.{language}.txt")
            if there is None and joined:
                there = self.joined_dictionary(folder)
            if there is None:
                raise RecipeError(f"{folder}: dict.{language}.txt is missing (plain, .xz or .gz); put it there")
            plain = self.folder / "bpe" / f"dict.{language}.txt"
            with whole(plain) as (file,):
                file.writelines(line + "\n" for line in entries(there))
            options += [option, str(plain)]
        return options

    def joined_dictionary(self, folder: Path) -> Path | None:
        """As fairseq writes it: once for each language, the same."""
        found = [packed(folder / f"dict.{language}.txt") for language in self.settings.languages]
        if not (found[0] and found[1]):
            return None
        if list(lines(found[0])) != list(lines(found[1])):
            raise RecipeError(
                f"{folder}: {found[0].name} and {found[1].name} differ, but the vocabulary is joined; give a folder "
                f"with dict.joined.txt, or say --vocabulary separate"
            )
        return found[0]


FOREIGN = 2.0  # per cent of the pieces


def unknown_pieces(shares: dict[str, str]) -> str:
    """In words, which sets a dictionary of others does not fit."""
    found = [f"{share} of {name}" for name, share in shares.items() if float(share.rstrip("%")) > FOREIGN]
    return f"pieces that the dictionary does not know: {', '.join(found)}" if found else ""


def counts(dropped: dict[str, int] | int) -> Counter[str]:
    """Pairs that were dropped, by the reason, of a stamp; earlier ones had their number alone."""
    return Counter({"by the rules": dropped} if isinstance(dropped, int) else dropped)


def listed(dropped: dict[str, int]) -> str:
    """In words, the most frequent reason first."""
    return ", ".join(f"{count:,} {why}" for why, count in Counter(dropped).most_common() if count) or "none"


def entries(dictionary: Path) -> Iterator[str]:
    """Its lines, each a symbol and a count; a CR in one would be the end of a line to fairseq."""
    seen = set()
    for number, line in enumerate(lines(dictionary), 1):
        symbol, _, count = line.rstrip().removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not re.fullmatch("[0-9]+", count) or "\r" in line or symbol in seen:
            raise RecipeError(
                f"{dictionary}, line {number}: {line!r} is not a new symbol, a space and a count, as fairseq has them; "
                f"give another folder with --dictionaries"
            )
        seen.add(symbol)
        yield line
