"""python -m recipes.warm_start: a published BERT in, a Macaron near it out. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bert_pretrain.__main__ import add_setting
from ..common.errors import RecipeError
from ..common.main import command_line, positive, run_command
from ..common.workspace import Workspace
from .settings import WarmStartSettings, settings_of


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "warm_start",
        "Read the layers of a published BERT as those of a Macaron: divide the neurons of each FFN between the half "
        "steps, fit what is left to the teacher's states, try the possibilities and keep the nearest; then distil the "
        "teacher on text without labels. Interrupted? Run the same command again: finished stages are kept and the "
        "training goes on, exactly, from its last checkpoint.",
        out="",
        dry_run=True,
        epilog="A teacher of the hub becomes a folder by `macaron convert NAME --output DIR`.",
    )
    p.add_argument("--teacher", type=Path, required=True, metavar="FOLDER",
                   help="a post-norm BERT: of transformers, or a Macaron BERT with splitting lie")  # fmt: skip
    p.add_argument("--splitting", choices=("strang",), default="strang", help="what it becomes (default: strang)")
    p.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE",
                   help="UTF-8 text, plain, .xz or .gz; --blank-lines blank lines end a document")  # fmt: skip
    p.add_argument("--data", type=Path, metavar="DIR", help="the prepared text, shared by runs of one tokenizer "
                   "(default: OUT/data)")  # fmt: skip
    p.add_argument("--device-batch", type=positive, metavar="N", help="examples on the device at once (default: 32)")
    p.add_argument("--save-every", type=positive, metavar="N", help="updates between checkpoints (default: at every "
                   "measurement)")  # fmt: skip
    for part in dataclasses.fields(WarmStartSettings):
        group = p.add_argument_group(f"{part.name} settings (a folder keeps those it was made with)")
        for field in dataclasses.fields(getattr(WarmStartSettings(), part.name)):
            add_setting(group, shown(field))
    return p


def shown(field: dataclasses.Field[Any]) -> dataclasses.Field[Any]:
    """With its default in the help, where the help does not say it."""
    text = field.metadata["help"]
    said = text if "default" in text or field.default is None else f"{text} (default: {field.default})"
    copy = dataclasses.field(default=field.default, metadata={**field.metadata, "help": said})
    copy.name, copy.type = field.name, field.type
    return copy


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("warm_start", lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    parts = [getattr(WarmStartSettings(), part.name) for part in dataclasses.fields(WarmStartSettings)]
    settings = settings_of(**{f.name: getattr(args, f.name) for part in parts for f in dataclasses.fields(part)})
    out = args.out.resolve()
    prepared = (args.data or out / "data").resolve()
    if not args.text and not (prepared / "settings.json").exists():
        raise RecipeError(f"--text: missing, and nothing is prepared in {prepared}; give text files, or --data DIR")
    from ..bert_pretrain.pipeline import size_of
    from .pipeline import WarmStart, record

    for path in args.text:
        size_of(path)
    kept = record(settings, args.teacher)
    if args.dry_run:
        return dry_run(settings, args)
    from ..bert_pretrain.training import Devices

    machine = {name: getattr(args, name) for name in ("device_batch", "save_every") if getattr(args, name)}
    with Workspace(out, kept, restart=args.restart) as space:
        print(f"warm start of strang from {args.teacher} in {args.out}", flush=True)
        run = WarmStart(settings, args.teacher.resolve(), args.text, prepared, space, Devices(**machine))
        show(run.run(), args.out)
    return 0


def dry_run(settings: WarmStartSettings, args: argparse.Namespace) -> int:
    """Read the teacher, and say what would be done; nothing is written."""
    import tempfile

    from macaron.bert import to_strang

    from ..bert_pretrain.pipeline import size_of
    from .pipeline import UPDATES, widths_of
    from .teacher import converted, is_ours, read_teacher

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.teacher
        if not is_ours(folder):
            folder = Path(scratch, "teacher")
            converted(args.teacher, folder)
        read = read_teacher(folder)
    neurons = read.encoder.config.intermediate_size
    widths = widths_of(settings, neurons)
    student = to_strang(read.model, widths)
    d = settings.distill
    budget = f"{d.minutes:g} minutes" if d.minutes is not None else f"{d.updates or UPDATES:,} updates"
    print(f"teacher   {args.teacher}: {read.model.num_parameters():,} parameters, FFNs of {neurons} neurons")
    print(f"student   FFNs of {widths.first} and {widths.second} neurons, {student.num_parameters():,} parameters")
    for path in args.text:
        print(f"text      {path}: {size_of(path):,} bytes")
    print(f"distil    {budget} of {d.batch_size} examples, seed {d.seed}\nout       {args.out}; nothing was written")
    return 0


def show(result: dict[str, Any], out: Path) -> None:
    start = next(row for row in result["start"]["tried"] if row["name"] == result["start"]["chosen"])
    print()
    for name, value in result["results"].items():
        print(f"  {name:<10} {start[name]:.4f} at the start, {value:.4f} at the end")
    print(f"\n  model: {out / 'model'}\n  report: {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
