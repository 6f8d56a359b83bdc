"""What a run on a corpus of one's own is, from its command line: what was not said is chosen by the corpus, once."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.workspace import read_json
from .data.files import any_lines
from .data.own import Files, Own, OwnCorpus
from .initial import Release
from .languages import check_moses
from .recipe import ARCHITECTURES, OWN, UNITS, Recipe, by_size, for_corpus
from .text import TextSettings

# Two dictionaries have no embeddings in common, but for those of the decoder's two ends.
SEPARATE = {"model.share_all_embeddings": False, "model.share_decoder_input_output_embed": True}


def text_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of TextSettings that were given."""
    found: dict[str, Any] = {}
    if args.subword:
        found = {"subword": args.subword, "tokenizer": "none" if args.subword == "sentencepiece" else "moses"}
    if args.units is not None:
        found["units"] = args.units
    if args.vocabulary:
        found["joined_dictionary"] = args.vocabulary == "joined"
    return found


def check_beside(args: argparse.Namespace, release: Release) -> None:
    """
    Raises:
        RecipeError: an option for what a released model has settled.
    """
    names = ("subword", "units", "vocabulary", "bpe_codes", "dictionaries", "lowercase", "arch")
    if said := [name for name in names if getattr(args, name, None) and (name, args.arch) != ("arch", release.arch)]:
        raise RecipeError(
            f"--{said[0].replace('_', '-')} beside --init-from {release.folder}: the released model ({release.arch}) "
            f"has settled that; leave it out"
        )


def recipe(args: argparse.Namespace, release: Release | None) -> Recipe:
    """The recipe before what is the same for all of them: the corpus, its text, and the architecture."""
    languages = languages_of(args, release)
    made = remembered(args)
    own = Own(
        title=args.name or made.get("corpus.title") or title(args),
        **given(args),
    )
    pairs: list[int] = []  # counted when first needed

    def size() -> int:
        if not pairs:
            pairs.append(count(args, languages))
        return pairs[0]

    arch = args.arch or (release and release.arch) or made.get("model._name") or by_size(ARCHITECTURES, size())
    if release:
        text = dataclasses.replace(release.text, source=languages[0], target=languages[1])
        return for_corpus(own, text, release.arch)
    options = {"tokenizer": "none", "subword": "sentencepiece", "lowercase": args.lowercase, **text_options(args)}
    units = options.pop("units", None) or made.get("text.units") or by_size(UNITS, size())
    text = TextSettings(*languages, units=units, **options)
    if text.tokenizer == "moses":
        check_moses(languages)
    return for_corpus(own, text, str(arch))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """What was said of the corpus, by the names of `Own`."""
    values = {
        "valid_pairs": args.valid_pairs, "test_pairs": args.test_pairs, "split_seed": args.split_seed,
        "longest": args.max_length, "ratio": args.max_ratio, "form": args.text_form, "copies": args.keep_copies or None,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def languages_of(args: argparse.Namespace, release: Release | None) -> tuple[str, str]:
    theirs = release.text.languages if release else (None, None)
    found = (args.source_lang or theirs[0], args.target_lang or theirs[1])
    for option, language in zip(("--source-lang", "--target-lang"), found, strict=True):
        if not language:
            raise RecipeError(f"{option} is missing; give the code that ends the files' names, such as de of train.de")
    source, target = map(str, found)
    TextSettings(source, target)  # codes, and two of them: before they become names of files
    return source, target


def remembered(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run that goes on in --out, or shares its data by --prepared; {} without either."""
    for folder in (None if args.restart else args.out, args.prepared):
        if folder is not None and (path := folder / "settings.json").is_file():
            settings: dict[str, Any] = read_json(path)
            return settings if settings.get("name") == OWN else {}
    return {}


def files(args: argparse.Namespace, languages: tuple[str, str]) -> dict[str, Files]:
    """The two files of each split that were named.

    Raises:
        RecipeError: named in two ways, or validation and test without training pairs.
    """
    ways = [name for name in ("data_dir", "trainpref", "pair") if getattr(args, name)]
    if len(ways) > 1:
        raise RecipeError(f"{' and '.join('--' + way.replace('_', '-') for way in ways)}: name the files in one way")
    found: dict[str, Files] = {"train": (args.pair[0], args.pair[1])} if args.pair else {}
    for split in ("train", "valid", "test"):
        if prefix := getattr(args, f"{split}pref"):
            found[split] = (Path(f"{prefix}.{languages[0]}"), Path(f"{prefix}.{languages[1]}"))
    if found and "train" not in found:
        raise RecipeError(f"--{next(iter(found))}pref: is without training pairs; name them by --trainpref or --pair")
    return found


def title(args: argparse.Namespace) -> str:
    """The corpus by its files: the folder, or what comes before a language."""
    if args.data_dir:
        return str(args.data_dir.resolve().name) or "corpus"
    if args.trainpref:
        prefix = args.trainpref.resolve()
        return str(prefix.parent.name if prefix.name == "train" else prefix.name) or "corpus"
    if args.pair:
        name = args.pair[0].name
        return str(re.sub(r"(\.(gz|xz))?$", "", name).rpartition(".")[0] or name)
    raise RecipeError(
        "no corpus: name its files by --data-dir DIR, --trainpref PREFIX or --pair FILE FILE; or go on with a run by "
        "--out, or share the data of one by --prepared"
    )


def folder(args: argparse.Namespace, release: Release | None = None) -> str:
    """Where a run goes that was not told."""
    name = args.name or remembered(args).get("corpus.title") or title(args)
    return "-".join([re.sub(r"[^\w.]+", "-", name).strip("-.") or "corpus", *languages_of(args, release)])


def count(args: argparse.Namespace, languages: tuple[str, str]) -> int:
    """Training pairs, before any is split off."""
    named = files(args, languages)
    if not named and not args.data_dir:
        title(args)  # says what is missing
    if args.data_dir and args.data_dir.is_file():
        raise RecipeError(f"--data-dir {args.data_dir}: is a file; give its folder, or name both files by --pair")
    corpus = OwnCorpus(title(args), *languages, Own("corpus").rules, files=named)
    found = corpus.named() or corpus.in_folder(args.data_dir)
    if "train" not in found:
        raise RecipeError(f"--data-dir {args.data_dir}: no corpus is there. Looked for {corpus.looked_for()}")
    return sum(1 for _ in any_lines(found["train"].source))
