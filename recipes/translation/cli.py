"""The command line of the translation recipes: python -m recipes.<name> [STAGE] [OPTIONS]."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipes.common.errors import RecipeError
from recipes.common.main import run_command
from recipes.common.schemes import NAMED, OPTIONS, Variant
from recipes.common.workspace import Workspace
from recipes.translation.pipeline import STAGES, Data, Pipeline
from recipes.translation.recipe import PRECISIONS, Recipe, load
from recipes.translation.text import SUBWORDS
from recipes.translation.train import Machine

SAMPLES = 10  # translations of the test set that are shown at the end

ABOUT = {
    "iwslt14_de_en": "IWSLT14 German to English",
    "wmt14_en_de": "WMT14 English to German",
    "multi30k_de_en": "Multi30k German to English, at a size for one CPU core",
    "demo": "Numbers, dates and prices, German to English, in minutes",
}

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


def parser(name: str, parents: Sequence[argparse.ArgumentParser] = ()) -> argparse.ArgumentParser:
    sizes = list(sizes_of(name))
    p = argparse.ArgumentParser(
        prog=f"python -m recipes.{name}",
        parents=parents,
        description=f"{ABOUT[name]}: prepare the corpus, train, average checkpoints, translate the test set, score, "
        "write a report, and release a model that takes raw text. A STAGE first does what it needs and is not done "
        "yet; without one, everything is done. Interrupted? Run the same command again: finished stages are kept, "
        "the training goes on from its last checkpoint.",
        epilog=f"Defaults are those of recipes/{name}/conf; settings.json in the output folder has every value.",
    )
    p.add_argument("stage", nargs="?", choices=STAGES, default=STAGES[-1], metavar="STAGE", help=", ".join(STAGES))
    if len(sizes) > 1:
        p.add_argument("--size", choices=sizes, default=sizes[0], help="of the model (default: %(default)s)")
    p.add_argument(
        "--out", type=Path, metavar="DIR", help=f"where everything goes (default: translation_output/{name})"
    )
    p.add_argument("--restart", action="store_true", help="set an existing --out aside and begin anew")

    data = p.add_argument_group("data")
    data.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="files that are already there: raw archive, extracted folder, or tokenized text (detected); "
        "without it the corpus is downloaded",
    )
    data.add_argument("--prepared", type=Path, metavar="DIR", help="share the prepared data of another run")
    data.add_argument("--workers", type=int, metavar="N", help="processes of the preparation (default: all cores)")
    data.add_argument("--bpe-codes", type=Path, metavar="FILE", help="take this sub-word model instead of learning one")
    data.add_argument("--dictionaries", type=Path, metavar="DIR", help="take the dict.*.txt there instead of counting")
    data.add_argument("--subword", choices=SUBWORDS, help="BPE on Moses' tokens, or sentencepiece on raw text")
    data.add_argument("--units", type=int, metavar="N", help="merges, or pieces of sentencepiece")
    data.add_argument(
        "--sha256", action="append", default=[], metavar="FILE=SUM", help="of a download; may be repeated"
    )
    data.add_argument(
        "--trust-first-download",
        action="store_true",
        help="accept an archive whose sha256 nobody has stated, and remember its sum",
    )
    if load(name).valid:
        data.add_argument("--valid", metavar="SET", help="newstest2013, or train: every 100th training pair")

    settings = p.add_argument_group("settings (a folder keeps those it was made with)")
    for option, kind, text in HYPER_PARAMETERS:
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        settings.add_argument(f"--{option}", type=kind, metavar=metavar, help=text)
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


def sizes_of(name: str) -> dict[str, Recipe]:
    from importlib import import_module

    sizes: dict[str, Recipe] = import_module(f"recipes.{name}").SIZES
    return sizes


def recipe_from(name: str, argv: Sequence[str]) -> Recipe:
    """The recipe that these arguments ask for."""
    return recipe_of(name, parser(name).parse_args(argv))


def recipe_of(name: str, args: argparse.Namespace) -> Recipe:
    recipe = load(name, getattr(args, "size", None))
    text = {}
    if args.subword:
        text = {"subword": args.subword, "tokenizer": "none" if args.subword == "sentencepiece" else "moses"}
    if args.units is not None:
        text["units"] = args.units
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
    return recipe.changed(
        **values,
        precision=args.precision,
        valid=getattr(args, "valid", None),
        text=dataclasses.replace(recipe.text, **text) if text else None,
        changes=[(key, read_yaml(value)) for key, value in pairs("--set", args.set)],
    )


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
    return OmegaConf.to_container(OmegaConf.create(f"value: {value}"))["value"]  # type: ignore[index,call-overload]


def machine_of(args: argparse.Namespace) -> Machine:
    return Machine(
        cpu=args.cpu,
        processes=args.processes,
        nodes=args.nodes,
        rendezvous=args.rendezvous,
        launcher=args.launcher,
    )


def data_of(args: argparse.Namespace) -> Data:
    sums = dict(pairs("--sha256", args.sha256))
    options = {"bpe_codes": args.bpe_codes, "dictionaries": args.dictionaries, "sha256": sums}
    return Data(
        args.data_dir, args.prepared, args.workers, {**options, "trust_first_download": args.trust_first_download}
    )


def main(name: str, argv: Sequence[str] | None = None, parents: Sequence[argparse.ArgumentParser] = ()) -> int:
    """Run the recipe `name`; `parents` have options that its --help shows, too."""
    return run_command(name, lambda: translate(name, parser(name, parents).parse_args(argv)))


def translate(name: str, args: argparse.Namespace) -> None:
    size = f"-{args.size}" if getattr(args, "size", None) else ""
    out = args.out or Path("translation_output") / (name + size)
    recipe, machine, data = recipe_of(name, args), machine_of(args), data_of(args)
    space = Workspace(out.resolve(), recipe.settings(), restart=args.restart)
    with space.lock:
        print(f"recipe    {name}{size} ({recipe.arch}, {recipe.scheme}, seed {recipe.seed}) in {out}")
        pipeline = Pipeline(recipe, space, machine, data)
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
    if notice := (pipeline.space.stamp("prepare") or {}).get("notice"):
        print(f"\n  {notice}")
    made = {"report": "report/index.html", "release": "release"}
    for name, path in made.items():
        if stage >= STAGES.index(name):
            print(f"  {name + ':':<9} {pipeline.folder / path}")
    if stage >= STAGES.index("release"):
        command = ["macaron", "translate", str(pipeline.folder / "release")]
        print(f"  use it:   {shlex.join(command)} text.{pipeline.source} > text.{pipeline.target}")
