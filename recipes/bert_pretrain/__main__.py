"""python -m recipes.bert_pretrain: text files in, a Macaron BERT out. `--help` says more."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.leash import end_with_parent
from ..common.main import command_line, run_command
from ..common.workspace import Workspace
from .settings import PRESETS, PretrainSettings, flag, recorded, settings_for

MACHINE = {  # as in training.Devices, which this file does not import: --help should not wait for torch
    "device-batch": (
        int,
        "examples on a device at once, at most; the rest of --batch-size is accumulated (default: 32)",
    ),
    "workers": (int, "processes that read data, for each device (default: 0)"),
    "save-every": (int, "updates between checkpoints (default: at every validation)"),
    "report-to": (str, "where Trainer logs to as well, such as tensorboard (default: none)"),
}


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "bert_pretrain",
        "Clean text, train a WordPiece tokenizer, make examples, pre-train a Macaron BERT, report. "
        "Interrupted? Run the same command again: finished stages are kept and the training goes on, exactly, from "
        "its last checkpoint. Several devices: put `torchrun --nproc_per_node N -m` or `accelerate launch -m` in "
        "place of `python -m`; the result is the same as on one, up to rounding and dropout.",
        out="none; the model is DIR/model",
        epilog="Defaults of the settings depend on the preset; settings.json in the output folder shows them.",
    )
    p.add_argument("--preset", choices=PRESETS, default="tiny", help="tiny: minutes on a CPU; base_original: the "
                   "paper's sizes and schedule; base: one GPU, one day (default: %(default)s)")  # fmt: skip
    p.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE",
                   help="UTF-8 text, plain, .xz or .gz; --blank-lines blank lines end a document")  # fmt: skip
    p.add_argument("--data", type=Path, metavar="DIR", help="the prepared text, shared by runs of equal data "
                   "settings (default: OUT/data)")  # fmt: skip
    p.add_argument("--stage", choices=("prepare", "all"), default="all",
                   help="prepare: stop before the training, into --data (default: %(default)s)")  # fmt: skip
    machine = p.add_argument_group("machine (the result does not depend on it, but for rounding)")
    for name, (kind, text) in MACHINE.items():
        machine.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "NAME", help=text)
    machine.add_argument("--compile", action="store_true", default=None, help="torch.compile")
    for part in dataclasses.fields(PretrainSettings):
        group = p.add_argument_group(f"{part.name} settings (a folder keeps those it was made with)")
        for field in dataclasses.fields(getattr(PRESETS["tiny"], part.name)):
            add_setting(group, field)
    return p


def add_setting(group: Any, field: dataclasses.Field[Any]) -> None:
    name, text = f"--{flag(field.name)}", field.metadata["help"].replace("%", "%%")
    kind = str(field.type).removesuffix(" | None")
    if kind == "bool":
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    convert = {"int": int, "float": float, "str": str}[kind]
    choices = field.metadata["choices"]
    group.add_argument(name, type=convert, choices=choices, help=text,
                       metavar=None if choices else {"int": "N", "float": "X", "str": "NAME"}[kind])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("bert_pretrain", lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    parts = (getattr(PRESETS["tiny"], part.name) for part in dataclasses.fields(PretrainSettings))
    names = [field.name for part in parts for field in dataclasses.fields(part)]
    settings = settings_for(args.preset, **{name: getattr(args, name) for name in names})
    if args.stage == "prepare":
        return prepare_only(settings, args)
    if args.out is None:
        raise RecipeError("--out: missing; name the folder for the run, or prepare text alone with --stage prepare")
    return pretrain(settings, args)


def prepare_only(settings: PretrainSettings, args: argparse.Namespace) -> int:
    from .pipeline import ExamplePreparation

    if args.data is None and args.out is None:
        raise RecipeError("--stage prepare: name the folder for the prepared text with --data")
    ExamplePreparation(settings.data, args.text, (args.data or args.out / "data").resolve()).run()
    return 0


def pretrain(settings: PretrainSettings, args: argparse.Namespace) -> int:
    """Every process runs this; the first prepares and reports, all train."""
    from . import training
    from .pipeline import ExamplePreparation, PretrainRun, train

    training.model_config(settings)  # what cannot be built is said before anything is prepared
    if "LOCAL_RANK" in os.environ:  # torchrun and accelerate end them only if they are not killed themselves
        end_with_parent()
    out = args.out.resolve()
    prepared = (args.data or out / "data").resolve()
    given = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in [*MACHINE, "compile"]}
    machine = training.Devices(**{name: value for name, value in given.items() if value is not None})
    targs = training.arguments(settings, machine, out / "checkpoints")
    if targs.process_index:
        with targs.main_process_first(local=False):
            pass  # the first process has prepared, or failed and said why
        if not (prepared / "stamps" / "examples.json").exists():
            return 1
        if not (out / "stamps" / "train.json").exists():
            train(settings, prepared, targs)
        return 0
    with contextlib.ExitStack() as stack:
        with targs.main_process_first(local=False):
            record = {"preset": args.preset, **recorded(settings)}
            space = stack.enter_context(Workspace(out, record, restart=args.restart))
            print(f"pre-train {args.preset} in {args.out}", flush=True)
            ExamplePreparation(settings.data, args.text, prepared).run()
            one = PretrainRun(settings, prepared, space, targs)
        show(one.run(), args.out)
    return 0


def show(result: dict[str, Any], out: Path) -> None:
    print()
    for name, value in result["results"].items():
        print(f"  {name:<18} {value:.4g}")
    for sample in result["samples"]:
        print(f"  {sample['text']}\n    {', '.join(sample['words'])}")
    print(f"\n  model: {out / 'model'}\n  report: {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
