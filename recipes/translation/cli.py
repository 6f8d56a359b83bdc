"""The command line of the translation recipes: python -m recipes.<name> [STAGE] [OPTIONS]."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..common.errors import RecipeError
from ..common.main import command_line, module, positive, run_command
from ..common.schemes import NAMED, OPTIONS, Variant
from ..common.workspace import Workspace
from . import choose, initial
from .data.own import FORMS
from .noise import noise_words
from .pipeline import NOISE, STAGES, Data, Pipeline
from .recipe import OWN, PRECISIONS, Recipe, load, sizes_of
from .text import SUBWORDS
from .train import STOP_BY, Machine, stopping

SAMPLES = 10  # translations of the test set that are shown at the end

# Options of the same name as the setting, with their types and help texts.
HYPER_PARAMETERS: tuple[tuple[str, type, str], ...] = (
    ("seed", int, "random seed of the training"),
    (
        "splitting",
        str,
        "strang (Macaron), lie (Transformer of the same size), or such as 'attention/2 ffn attention/2'",
    ),
    ("arch", str, "architecture, a name of `macaron.user_dir`"),
    ("dropout", float, "dropout"),
    ("label-smoothing", float, "label smoothing"),
    ("lr", float, "peak learning rate"),
    ("warmup-updates", int, "updates of warm-up"),
    ("weight-decay", float, "decoupled weight decay"),
    ("max-update", int, "updates"),
    ("batch-tokens", int, "tokens of one update, over all GPUs: the effective batch"),
    ("max-tokens", int, "tokens that one GPU holds at a time; the effective batch stays what it is"),
    ("average", int, "newest checkpoints that are averaged; 1: the last one alone"),
    ("beam", int, "beam size"),
    ("lenpen", float, "length penalty"),
)


def parser(name: str, more: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.ArgumentParser:
    """The options of the recipe `name`; `more` adds others."""
    sizes = [] if name == OWN else list(sizes_of(name))
    about = (import_module(module(name)).__doc__ or "").partition("\n")[0]
    whose = "the recipe that the architecture was tuned in (recipes/*/conf)" if name == OWN else f"recipes/{name}/conf"
    p = command_line(
        name,
        f"{about} Prepare the corpus, train, average checkpoints, translate the test set, score, write a report, and "
        "release a model that takes raw text. A STAGE first does what it needs and is not done yet; without one, "
        "everything is done. Interrupted? Run the same command again: finished stages are kept, the training goes on "
        "from its last checkpoint.",
        out=f"translation_output/{'NAME-X-Y' if name == OWN else name}",
        epilog=f"Defaults are those of {whose}; settings.json in the output folder has every value.",
    )
    p.usage = f"python -m {module(name)} [STAGE] [OPTION …]"  # all of them are listed below
    p.add_argument("stage", nargs="?", choices=STAGES, default=STAGES[-1], metavar="STAGE", help=", ".join(STAGES))
    if more:
        more(p)
    if len(sizes) > 1:
        p.add_argument("--size", choices=sizes, default=sizes[0], help="of the model (default: %(default)s)")
    if name == OWN:
        add_corpus(p)
    data = p.add_argument_group("data")
    if name != OWN:
        data.add_argument(
            "--data-dir",
            type=Path,
            metavar="DIR",
            help="files that are already there: raw archive, extracted folder, or tokenized text (detected); "
            "without it the corpus is downloaded",
        )
    data.add_argument("--prepared", type=Path, metavar="DIR", help="share the prepared data of another run")
    data.add_argument("--workers", type=positive, metavar="N", help="processes of the preparation (default: all cores)")
    data.add_argument("--bpe-codes", type=Path, metavar="FILE", help="take this sub-word model instead of learning one")
    data.add_argument("--dictionaries", type=Path, metavar="DIR", help="take the dict.*.txt there instead of counting")
    usual, by_size = ("sentencepiece", " (default: by the size of the corpus)") if name == OWN else ("the recipe's", "")
    data.add_argument(
        "--subword",
        type=lambda given: "subword_nmt" if given == "bpe" else given,
        choices=SUBWORDS,
        metavar="{bpe,sentencepiece}",
        help=f"BPE on Moses' tokens, or sentencepiece on raw text (default: {usual})",
    )
    data.add_argument("--units", type=positive, metavar="N", help=f"merges, or pieces of sentencepiece{by_size}")
    data.add_argument(
        "--vocabulary",
        choices=("joined", "separate"),
        help="one dictionary (and matrix of embeddings) for both languages, or one for each (default: joined)",
    )
    if name != OWN:
        data.add_argument(
            "--sha256", action="append", default=[], metavar="FILE=SUM", help="of a download; may be repeated"
        )
        data.add_argument(
            "--trust-first-download",
            action="store_true",
            help="accept an archive whose sha256 nobody has stated, and remember its sum",
        )
    if name != OWN and load(name).valid:
        data.add_argument("--valid", metavar="SET", help="newstest2013, or train: every 100th training pair")

    p.add_argument(
        "--noise",
        type=share_of_characters,
        metavar="X",
        help="also translate and score the test set with typing errors at this share of the source's characters, as "
        "0.1; a finished run is scored so when its command is given again with it",
    )
    course = p.add_argument_group("course of the training")
    course.add_argument(
        "--init-from",
        type=Path,
        metavar="RELEASE",
        help="fine-tune a released model: its languages, pieces, dictionaries and architecture are taken over; "
        f"--lr is then {initial.LR:g} of the recipe's, --warmup-updates at most {initial.WARMUP}, unless given",
    )
    course.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N validations without a better one, and average the best checkpoints, not the newest; there "
        "is a validation wherever a checkpoint is saved",
    )
    course.add_argument(
        "--stop-by", choices=STOP_BY, help="what --patience looks at, on the validation set (default: bleu)"
    )
    course.add_argument(
        "--tensorboard", action="store_true", help="also write the training's figures to tensorboard/ in --out"
    )

    settings = p.add_argument_group("settings (a folder keeps those it was made with)")
    for option, kind, text in HYPER_PARAMETERS:
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        settings.add_argument(
            f"--{option}", type=kind, metavar=metavar, help=text + (by_size if option == "arch" else "")
        )
    settings.add_argument(
        "--scheme",
        metavar="VARIANT",
        help="all that is chosen of the integrator: a splitting, and after commas a rule across depth, or options of "
        f"those below: strang,multistep or strang,solver=heun,dt=0.5; or {', '.join(NAMED)}",
    )
    for option, kind, text in OPTIONS:
        name = option.replace("_", "-")
        settings.add_argument(f"--{name}", type=kind, metavar={float: "X", str: "NAME"}[kind], help=text)
    settings.add_argument("--precision", choices=PRECISIONS, help="of the training (default: fp32)")
    settings.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other entry of fairseq's configuration, such as model.attention_dropout=0; may be repeated",
    )

    machine = p.add_argument_group("machine (the effective batch stays the same)")
    machine.add_argument("--cpu", action="store_true", help="train on the CPU even where there are GPUs")
    machine.add_argument(
        "--gpus",
        "--processes",
        dest="processes",
        type=int,
        metavar="N",
        help="GPUs of each machine (default: as many as can share the batch); with --cpu: processes (default: 1)",
    )
    machine.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")
    machine.add_argument("--rendezvous", metavar="HOST:PORT", help="of the first machine, for --nodes")
    machine.add_argument(
        "--launcher",
        metavar="COMMAND",
        help="what runs a command on every machine (see recipes/translation/slurm); without it, you start the others",
    )
    return p


def share_of_characters(text: str) -> float:
    share = float(text)
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is a share of the characters: above 0, at most 1")
    return share


def add_corpus(p: argparse.ArgumentParser) -> None:
    """What only a corpus of one's own has to say."""
    files = p.add_argument_group("corpus: its languages, and one of the three ways to name its files")
    files.add_argument("--source-lang", metavar="X", help="what is translated; a code such as de, which ends the files")
    files.add_argument("--target-lang", metavar="Y", help="what it becomes")
    files.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="with train.X and train.Y, and perhaps valid (or val, dev) and test; or with one pair of files of any "
        "name. Plain, .gz or .xz",
    )
    for option, what in (("train", "training pairs"), ("valid", "of the validation"), ("test", "of the test")):
        files.add_argument(f"--{option}pref", type=Path, metavar="P", help=f"{what}: P.X and P.Y")
    files.add_argument("--pair", type=Path, nargs=2, metavar="FILE", help="training pairs: source and target")
    files.add_argument("--name", metavar="NAME", help="what reports call the corpus (default: by its files)")

    split = p.add_argument_group("corpus: its pairs")
    split.add_argument(
        "--valid-pairs", type=int, metavar="N", help="split off where there is no validation set "
        "(default: 1,000, at most 5 %%)",
    )  # fmt: skip
    split.add_argument(
        "--test-pairs", type=int, metavar="N", help="split off where there is no test set (default: same)"
    )
    split.add_argument("--split-seed", type=int, metavar="N", help="which pairs are split off (default: 1)")
    split.add_argument(
        "--max-length", type=int, metavar="N", help="pieces of a side, or the pair is dropped; 0: no limit "
        "(default: 250)",
    )  # fmt: skip
    split.add_argument(
        "--max-ratio", type=float, metavar="X", help="between the lengths of the sides, or the pair is dropped; 0: no "
        "limit (default: 9)",
    )  # fmt: skip
    split.add_argument("--keep-copies", action="store_true", help="training pairs whose sides are equal stay")
    split.add_argument("--lowercase", action="store_true", help="both sides (default: cased)")
    split.add_argument(
        "--text-form", choices=FORMS, help="of the files: tokenized ones are detokenized first (default: it shows)"
    )


def recipe_from(name: str, argv: Sequence[str]) -> Recipe:
    """The recipe that these arguments ask for."""
    args = parser(name).parse_args(argv)
    return recipe_of(name, args, release_of(args))


def release_of(args: argparse.Namespace) -> initial.Release | None:
    return initial.read(args.init_from) if args.init_from else None


def recipe_of(name: str, args: argparse.Namespace, release: initial.Release | None = None) -> Recipe:
    if name == OWN:
        recipe = choose.recipe(args, release)
    else:
        recipe = load(name, getattr(args, "size", None))
        recipe = recipe.changed(text=dataclasses.replace(recipe.text, **choose.text_options(args)))
    if release:
        choose.check_beside(args, release)
        recipe = initial.begun(recipe, release)
    elif not recipe.text.joined_dictionary:
        recipe = recipe.changed(changes=choose.SEPARATE.items())
    begun_as = recipe
    names = [option.replace("-", "_") for option, *_ in (*HYPER_PARAMETERS, *OPTIONS)]
    values = {name: getattr(args, name) for name in names}
    if args.scheme is not None:
        single = [name for name in ("splitting", *(name for name, *_ in OPTIONS)) if values[name] is not None]
        if single:
            raise RecipeError(
                f"--scheme {args.scheme}: says all of the scheme, and --{single[0].replace('_', '-')} is beside it; "
                f"give either --scheme or single options"
            )
        variant = Variant.parse(args.scheme)
        values |= {"splitting": variant.splitting, **variant.values}
    recipe = recipe.changed(
        **values,
        precision=args.precision,
        valid=getattr(args, "valid", None),
        changes=[(key, read_yaml(value)) for key, value in pairs("--set", args.set)],
    )
    if recipe.own and args.max_length is None and recipe.own.longest >= recipe.max_tokens:
        # a pair that fits no batch would end the training; the end of the sentence is one token
        recipe = dataclasses.replace(recipe, own=dataclasses.replace(recipe.own, longest=recipe.max_tokens - 1))
    if release:
        initial.check(recipe, begun_as, release)
    if args.patience is not None or args.stop_by:
        asked = {key for key, _ in pairs("--set", args.set)}
        options = stopping(recipe, args.patience, args.stop_by or STOP_BY[0])
        recipe = recipe.changed(changes=[(key, value) for key, value in options.items() if key not in asked])
    return recipe


def pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """KEY=VALUE, each apart."""
    result = []
    for text in given:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise RecipeError(f"{option} {text}: must be of the form KEY=VALUE")
        result.append((key, value))
    return result


def read_yaml(value: str) -> Any:
    """`true`, `0.1`, `[1, 2]` … as in the recipes' yaml files."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {value}"))["value"]  # type: ignore[index,call-overload]
    except (YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(
            f"--set …={value}: {value!r} is no value of yaml ({' '.join(str(error).split())[:200]}); quote it, or give "
            f"another"
        ) from error


def machine_of(args: argparse.Namespace) -> Machine:
    return Machine(
        cpu=args.cpu,
        processes=args.processes,
        nodes=args.nodes,
        rendezvous=args.rendezvous,
        launcher=args.launcher,
    )


def data_of(args: argparse.Namespace, recipe: Recipe) -> Data:
    options: dict[str, Any] = {"bpe_codes": args.bpe_codes, "dictionaries": args.dictionaries}
    if recipe.own:
        return Data(args.data_dir, args.prepared, args.workers, options, choose.files(args, recipe.text.languages))
    options["sha256"] = dict(pairs("--sha256", args.sha256))
    options["trust_first_download"] = args.trust_first_download
    return Data(args.data_dir, args.prepared, args.workers, options)


def main(
    name: str,
    argv: Sequence[str] | None = None,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Run the recipe `name`; `more` adds options that its --help shows, too."""
    return run_command(name, lambda: translate(name, parser(name, more).parse_args(argv)))


def translate(name: str, args: argparse.Namespace) -> None:
    size = f"-{args.size}" if getattr(args, "size", None) else ""
    release = release_of(args)
    if name == OWN:
        args.out = args.out or Path("translation_output") / choose.folder(args, release)
    recipe, machine = recipe_of(name, args, release), machine_of(args)
    data = data_of(args, recipe)
    out = args.out or Path("translation_output") / (name + size)
    space = Workspace(out.resolve(), recipe.settings(), restart=args.restart)
    with space:
        print(f"recipe    {recipe.title}{size} ({recipe.arch}, {recipe.scheme}, seed {recipe.seed}) in {out}")
        pipeline = Pipeline(recipe, space, machine, data, release, args.tensorboard, args.noise or 0.0)
        pipeline.run(args.stage)
        show(pipeline, STAGES.index(args.stage))


def show(pipeline: Pipeline, stage: int) -> None:
    """What the stages up to this one have to say."""
    if stage >= STAGES.index("translate"):
        names = (pipeline.source, "reference", "translation")
        texts = (pipeline.lines("raw", language=pipeline.source), pipeline.lines("raw"), pipeline.lines("hyp"))
        for row in list(zip(*texts, strict=True))[:SAMPLES]:
            print(*(f"\n  {name:<11} {text}" for name, text in zip(names, row, strict=True)), sep="")
    if stage >= STAGES.index("score"):
        print("", *(pipeline.space.stamp("score") or {})["shown"], sep="\n  ")
        if noised := pipeline.space.stamp(NOISE):
            print("", noise_words(noised), *noised["shown"], sep="\n  ")
    if notice := (pipeline.space.stamp("prepare") or {}).get("notice"):
        print(f"\n  {notice}")
    made = {"report": "report/index.html", "release": "release"}
    for name, path in made.items():
        if stage >= STAGES.index(name):
            print(f"  {name + ':':<9} {pipeline.folder / path}")
    if stage >= STAGES.index("release"):
        command = ["macaron", "translate", str(pipeline.folder / "release")]
        print(f"  use it:   {shlex.join(command)} text.{pipeline.source} > text.{pipeline.target}")
