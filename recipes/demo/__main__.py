"""python -m recipes.demo: train a Macaron Transformer, translate, score, report. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.main import run_command
from recipes.common.workspace import Workspace
from recipes.demo.settings import PRESETS, settings_for


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m recipes.demo",
        description="Train a Macaron Transformer from German to English, translate the test set with beam "
        "search, score it with sacreBLEU and chrF, and write a report. Interrupted? Run the same command "
        "again: finished stages are kept and the training goes on from its last checkpoint. "
        "A GPU is used when there is one.",
        epilog="Defaults depend on the corpus; settings.json and the report in the output folder show them.",
    )
    p.add_argument(
        "--corpus",
        choices=sorted(PRESETS),
        default="grammar",
        help="grammar: sentences that the demo generates itself, minutes; multi30k: 29,000 image captions, "
        "taken from ../shared/data/multi30k when that is there, else downloaded (default: %(default)s)",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where everything goes (default: demo_output/CORPUS)")
    p.add_argument("--data-dir", type=Path, metavar="DIR", help="Multi30k files, plain, .xz or .gz")
    p.add_argument("--restart", action="store_true", help="set an existing --out aside and begin anew")
    group = p.add_argument_group("settings (a folder keeps those it was made with)")
    group.add_argument(
        "--splitting",
        help="strang (Macaron), lie (Transformer of the same size), or such as 'attention/2 ffn attention/2'",
    )
    for name, kind, text in (
        ("train-size", int, "training pairs"),
        ("vocab-size", int, "sub-word pieces, both languages together"),
        ("max-update", int, "training updates"),
        ("max-tokens", int, "tokens in a batch"),
        ("lr", float, "peak learning rate"),
        ("dropout", float, "dropout"),
        ("average", int, "newest epoch checkpoints that are averaged; 1: the last one alone"),
        ("beam", int, "beam size"),
        ("seed", int, "random seed of corpus and training"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("demo", lambda: demo(parser().parse_args(argv)))


def demo(args: argparse.Namespace) -> None:
    out = args.out or Path("demo_output") / args.corpus
    overrides = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(PRESETS["grammar"])}
    settings = settings_for(**overrides)
    space = Workspace(out.resolve(), dataclasses.asdict(settings), restart=args.restart)
    with space.lock:
        print(f"demo      {settings.corpus} in {out}")
        from recipes.demo.pipeline import Demo

        show(Demo(settings, space, args.data_dir).run(), out)


def show(result: dict[str, Any], out: Path) -> None:
    print()
    for sample in result["samples"][:5]:
        print(f"  de   {sample['source']}\n  ref  {sample['reference']}\n  hyp  {sample['hypothesis']}\n")
    for name, score in result["scores"].items():
        print(f"  {name:<6} {score['score']:6.2f}   {score['signature']}")
    print(f"\n  report: {out / 'report.html'}\n  result: {out / 'result.json'}")


if __name__ == "__main__":
    sys.exit(main())
