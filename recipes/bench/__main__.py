"""python -m recipes.bench: how fast, and beside what. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.common.errors import RecipeError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m recipes.bench",
        description="Measure speed and memory, side by side in one process, contenders taking turns; append rows to "
        "a CSV file, with hardware, versions and commit.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    bert = command(commands, "bert", "Macaron BERT beside transformers' BERT")
    bert.add_argument("--size", choices=("tiny", "small", "base"), default="base")
    bert.add_argument("--batch-size", type=positive, default=32, metavar="N", help="sentences (default: %(default)s)")
    bert.add_argument("--cases", nargs="+", choices=("forward", "finetune", "mlm"), help="default: all")
    bert.add_argument(
        "--contenders",
        nargs="+",
        default=["transformers", "macaron"],
        metavar="NAME",
        help="the first is what others are compared with; transformers, macaron, macaron-padded (with its padding), "
        "macaron-lie (the Transformer's splitting), macaron-lie-padded (default: the first two)",
    )
    bert.add_argument(
        "--lengths",
        default="glue",
        metavar="glue|N",
        help="tokens per sentence: as in GLUE's tasks, which take turns, or always N (default: %(default)s)",
    )
    bert.add_argument("--data-dir", metavar="DIR", help="measure GLUE's lengths in these files instead of the table")

    lengths = commands.add_parser("lengths", help="measure the tables of sentence lengths")
    lengths.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="with glue/, wmt14_train_subset/")

    plot = commands.add_parser("plot", help="draw all results")
    plot.add_argument("--out", type=Path, metavar="FILE", help="the CSV file (default: that of the recipe)")
    plot.add_argument("--figures", type=Path, metavar="DIR", help="where to (default: beside the CSV file)")
    return p


def command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """A benchmark, with the options that all have."""
    p: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU where there is one)")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is by autocast")
    p.add_argument("--threads", type=positive, metavar="N", help="of torch on the CPU (default: its own choice)")
    p.add_argument("--repeats", type=positive, default=20, metavar="N", help="default: %(default)s")
    p.add_argument("--seconds", type=float, default=600, metavar="S", help="at most for a case (default: %(default)s)")
    p.add_argument("--seed", type=int, default=1, metavar="N")
    p.add_argument("--out", type=Path, metavar="FILE", help="CSV file (default: results.csv of the recipe)")
    return p


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.command == "lengths":
            from recipes.bench.lengths import show

            show(args.data_dir)
        elif args.command == "plot":
            from recipes.bench.plot import draw_all
            from recipes.bench.record import RESULTS

            results = args.out or RESULTS
            draw_all(results, args.figures or results.parent)
        else:
            benchmark(args)
    except RecipeError as error:
        print(f"recipes.bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrecipes.bench: interrupted; what was finished is in the CSV file", file=sys.stderr)
        return 130
    return 0


def benchmark(args: argparse.Namespace) -> None:
    import torch

    from recipes.bench.measure import Plan
    from recipes.bench.record import RESULTS, Record

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    plan = Plan(device, args.repeats, args.seconds)
    if args.command == "bert":
        from recipes.bench import bert as module

        check_choices("--contenders", args.contenders, module.CONTENDERS)
        if args.lengths != "glue" and not (args.lengths.isdigit() and 0 < int(args.lengths) <= 512):
            raise RecipeError(f"--lengths {args.lengths}: give glue, or a number from 1 to 512")
        settings = module.Settings(args.size, args.batch_size, args.lengths, args.data_dir)
        record = Record(args.out or RESULTS, "bert", args.precision, args.seed, dataclasses.asdict(settings))
        cases = args.cases or list(module.CASES)
        module.run(record, plan, settings, cases, args.contenders, args.precision, args.seed)


def check_choices(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RecipeError(f"{option}: {', '.join(unknown)} unknown; choose from {', '.join(known)}")


if __name__ == "__main__":
    sys.exit(main())
