"""python -m recipes.bench: how fast, and beside what. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.device import device_of
from ..common.errors import RecipeError
from ..common.main import command_line, positive, run_command

if TYPE_CHECKING:
    from .measure import Plan


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "bench",
        "Measure speed and memory, side by side in one process, contenders taking turns; append rows to "
        "a CSV file, with hardware, versions and commit.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    bert = command(commands, "bert", "Macaron BERT beside transformers' BERT, with random or published weights")
    bert.add_argument("--size", choices=("tiny", "small", "base"), help="with random weights (default: base)")
    bert.add_argument("--batch-size", type=positive, default=32, metavar="N", help="sentences (default: %(default)s)")
    bert.add_argument(
        "--cases", nargs="+", choices=("forward", "finetune", "mlm", "int8"),
        help="mlm with random weights alone, int8 with --weights (default: all)",
    )  # fmt: skip
    bert.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="the first is what others are compared with; transformers, macaron, macaron-padded (with its padding), "
        "macaron-lie (the Transformer's splitting), macaron-lie-padded, macaron-all-logits (of words not masked too) "
        "(default: the first two)",
    )
    bert.add_argument(
        "--lengths",
        metavar="glue|N",
        help="tokens per sentence: as in GLUE's tasks, which take turns, or always N (default: glue)",
    )
    profile = {"action": "store_true", "help": "also print where a step's time goes (torch.profiler)"}
    bert.add_argument("--profile", **profile)
    bert.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="measure GLUE's lengths in these files instead of the table"
    )
    published = bert.add_argument_group(
        "published weights", "on sentences of GLUE in --data-dir, in batches at random, grouped by length, and unpadded"
    )
    published.add_argument("--weights", metavar="FOLDER", help="a BERT or its like as transformers saves it")
    published.add_argument("--task", nargs="+", metavar="TASK", help="of GLUE (default: all that have a training set)")
    published.add_argument(
        "--max-length", type=positive, metavar="N", help="tokens that a sentence is cut to (default: 128)"
    )

    train = command(
        commands, "train", "one training step of fairseq's Transformer and of Macaron, by fairseq's Trainer"
    )
    train.add_argument("--profile", **profile)
    train.add_argument(
        "--length", type=positive, metavar="N", help="tokens of every sentence (default: as long as WMT14's)"
    )
    translation(train, max_tokens=2048)

    cost = command(commands, "cost", "the same step against the length of sentences or the size of the vocabulary")
    cost.add_argument("--over", choices=("length", "vocabulary"), required=True)
    cost.add_argument("--values", type=positive, nargs="+", metavar="N", help="default: 128 … 4096, 8192 … 262144")
    translation(cost, max_tokens=4096)

    decode = command(commands, "decode", "beam search: fairseq's generator, ours, and CTranslate2")
    decode.add_argument("--size", choices=("tiny", "iwslt", "base", "big"), default="base")
    decode.add_argument("--vocabulary", type=positive, default=32000, metavar="V", help="default: %(default)s")
    decode.add_argument("--sentences", type=positive, default=32, metavar="N", help="default: %(default)s")
    decode.add_argument("--beam", type=positive, default=4, metavar="K", help="default: %(default)s")
    decode.add_argument(
        "--length", type=positive, default=30, metavar="N", help="words of sources and translations (default: 30)"
    )
    decode.add_argument("--over", choices=("sentences", "beam", "length"), help="a curve over this, with --values")
    decode.add_argument("--values", type=positive, nargs="+", metavar="N", help="default: 1 8 32, 1 4 8, 15 30 60")
    decode.add_argument(
        "--contenders",
        nargs="+",
        default=["fairseq", "macaron", "macaron:int8"],
        metavar="NAME",
        help="fairseq, macaron, macaron-lie (the Transformer's splitting), macaron-by-fairseq (with its generator), "
        "ctranslate2 (fairseq's Transformer, where installed), onnxruntime, onnxruntime-lie (macaron, macaron-lie as "
        "`macaron export` writes them); macaron:int8, macaron:bf16 and ctranslate2:int8 have a "
        "precision of their own (default: the first two and macaron:int8)",
    )
    decode.add_argument("--profile", **profile)

    deploy = command(commands, "deploy", "a Macaron BERT in each format of `macaron export`, on the CPU")
    deploy.add_argument("--weights", type=Path, required=True, metavar="DIR", help="the folder of a Macaron BERT")
    deploy.add_argument("--text", type=Path, required=True, metavar="FILE", help="sentences, one a line (UTF-8)")
    deploy.add_argument("--batch-size", type=positive, default=16, metavar="N", help="sentences (default: %(default)s)")
    deploy.add_argument(
        "--formats",
        nargs="+",
        default=["onnx", "onnx-int8", "torch-int8"],
        metavar="NAME",
        help="onnx, onnx-int8, torch-int8, torch-export (default: the first three); fp32 of torch is beside them",
    )

    loss = command(commands, "loss", "linear_cross_entropy beside fairseq's label_smoothed_cross_entropy")
    loss.add_argument("--tokens", type=positive, default=1024, metavar="N", help="default: %(default)s")
    loss.add_argument("--dim", type=positive, default=512, metavar="C", help="default: %(default)s")
    loss.add_argument("--vocabularies", type=positive, nargs="+", default=[32768, 262144], metavar="V")

    adversary = command(commands, "adversary", "one update under each adversary, and what a frozen co-state loses")
    adversary.add_argument("--layers", type=positive, nargs="+", default=[6, 12], metavar="N", help="default: 6 12")
    adversary.add_argument("--dim", type=positive, default=256, metavar="C", help="default: %(default)s")
    adversary.add_argument("--heads", type=positive, default=4, metavar="N", help="default: %(default)s")
    adversary.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default: %(default)s")
    adversary.add_argument("--length", type=positive, default=64, metavar="N", help="tokens (default: %(default)s)")
    adversary.add_argument(
        "--contenders",
        nargs="+",
        default=["pgd-9", "freelb-fairseq-9", "yopo-3-3", "yopo-full-3-3", "natural"],
        metavar="METHOD-K[-n]",
        help="the first is what others are compared with (default: those of 9 ascents, and natural)",
    )
    adversary.add_argument("--profile", **profile)

    horizon = command(commands, "horizon", "a fine-tuned Macaron BERT whose policy stops sentences, beside all steps")
    horizon.add_argument("--model", type=Path, required=True, metavar="DIR", help="that recipes.glue --save-model left")
    horizon.add_argument("--task", choices=("cola", "sst2", "mrpc", "stsb", "rte"), default="sst2", help="whose dev "
                         "set is read (default: sst2)")  # fmt: skip
    horizon.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="of GLUE's TSV files")
    horizon.add_argument("--costs", type=float, nargs="+", default=[0.0, 0.001, 0.003, 0.01, 0.1], metavar="X",
                         help="prices of a step (default: 0 0.001 0.003 0.01 0.1)")  # fmt: skip
    horizon.add_argument("--batch-size", type=positive, default=32, metavar="N", help="default: %(default)s")

    ops = command(commands, "ops", "each operation beside plain PyTorch, eager and compiled")
    ops.add_argument("--tokens", type=positive, default=16384, metavar="N", help="default: %(default)s")
    ops.add_argument("--dim", type=positive, default=1024, metavar="C", help="default: %(default)s")
    ops.add_argument("--vocabulary", type=positive, default=32768, metavar="V", help="default: %(default)s")
    ops.add_argument("--ops", nargs="+", metavar="OP", help="default: all")
    ops.add_argument(
        "--contenders",
        nargs="+",
        default=["eager", "compile", "macaron"],
        metavar="NAME",
        help="eager, compile, macaron (as its default chooses), triton, liger (where liger-kernel is installed) "
        "(default: the first three)",
    )

    lengths = commands.add_parser("lengths", help="measure the tables of sentence lengths")
    lengths.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="with glue/, wmt14_train_subset/")

    gpu = commands.add_parser(
        "gpu",
        help="on a GPU: tests, all measurements in order of worth, plots, and the goals beside what was measured",
        description="Run the gpu tests and then the measurements in order of worth, as many as fit into the time; "
        "append rows, draw them, and print the goals beside what was measured. Needs a GPU.",
    )
    gpu.add_argument("--minutes", type=float, default=25, metavar="M", help="for everything (default: %(default)s)")
    gpu.add_argument("--out", type=Path, metavar="FILE", help="CSV file (default: results.csv of the recipe)")
    gpu.add_argument("--figures", type=Path, metavar="DIR", help="where to (default: beside the CSV file)")

    plot = commands.add_parser("plot", help="draw all results")
    plot.add_argument("--out", type=Path, metavar="FILE", help="the CSV file (default: that of the recipe)")
    plot.add_argument("--figures", type=Path, metavar="DIR", help="where to (default: beside the CSV file)")
    return p


def command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """A benchmark, with the options that all have."""
    p: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU where there is one)")
    p.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 is by autocast; with train and cost by --bf16",
    )
    p.add_argument("--threads", type=positive, metavar="N", help="of torch on the CPU (default: its own choice)")
    p.add_argument("--repeats", type=positive, default=20, metavar="N", help="default: %(default)s")
    p.add_argument("--seconds", type=float, default=600, metavar="S", help="at most for a case (default: %(default)s)")
    p.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: count the time of this process alone, for a machine that others use too; with --threads 1",
    )
    p.add_argument("--seed", type=int, default=1, metavar="N")
    p.add_argument("--out", type=Path, metavar="FILE", help="CSV file (default: results.csv of the recipe)")
    return p


def translation(p: argparse.ArgumentParser, max_tokens: int) -> None:
    """Options of fairseq's training step."""
    p.add_argument("--size", choices=("tiny", "iwslt", "base", "big"), default="base")
    p.add_argument("--max-tokens", type=positive, default=max_tokens, metavar="N", help="default: %(default)s")
    p.add_argument("--vocabulary", type=positive, default=32768, metavar="V", help="default: %(default)s")
    p.add_argument("--buckets", type=positive, default=0, metavar="N",
                   help="pad lengths to so many, as fairseq's --num-batch-buckets does (default: none)")  # fmt: skip
    p.add_argument(
        "--contenders",
        nargs="+",
        default=["fairseq", "macaron"],
        metavar="NAME",
        help="fairseq, macaron, macaron-lie (the Transformer's splitting), macaron-fairseq-loss-and-adam, "
        "macaron-compile, macaron-graphs (CUDA graphs; with --buckets), macaron-reference, macaron-triton, "
        "macaron-triton-compile; macaron:bf16 has a precision of its own "
        "(default: the first two)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("bench", lambda: chosen(parser().parse_args(argv)), "what was finished is in the CSV file")


def chosen(args: argparse.Namespace) -> None:
    if args.command == "lengths":
        from .lengths import show

        show(args.data_dir)
    elif args.command == "gpu":
        from . import gpu
        from .record import RESULTS

        gpu.run(args.minutes, args.out or RESULTS, args.figures or (args.out or RESULTS).parent)
    elif args.command == "plot":
        from .plot import draw_all
        from .record import RESULTS

        results = args.out or RESULTS
        draw_all(results, args.figures or results.parent)
    else:
        benchmark(args)


def benchmark(args: argparse.Namespace) -> None:
    import torch

    from .measure import Plan
    from .record import RESULTS, Record

    if args.threads:
        torch.set_num_threads(args.threads)
    device = device_of(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.clock == "cpu" and (device.type != "cpu" or args.threads != 1):
        raise RecipeError(
            "--clock cpu adds up the time of all threads and knows none of a GPU; use --threads 1 on a CPU"
        )
    plan = Plan(device, args.repeats, args.seconds, clock=args.clock)
    if args.command == "bert":
        published_bert(args, plan) if args.weights else random_bert(args, plan)
    elif args.command in ("train", "cost"):
        from . import cost, train

        length = args.length if args.command == "train" else None
        chosen = train.StepSettings(args.size, args.max_tokens, args.vocabulary, length, args.buckets)
        if length is not None and length > args.max_tokens:
            raise RecipeError(f"--length {length}: such a sentence does not fit into --max-tokens {args.max_tokens}")
        record = Record(args.out or RESULTS, args.command, args.precision, args.seed, plan, dataclasses.asdict(chosen))
        if args.command == "train":
            train.run(record, plan, chosen, args.contenders, args.precision, args.seed, args.profile)
        else:
            values = args.values or list(cost.VALUES[args.over])
            cost.run(record, plan, chosen, args.over, values, args.contenders, args.precision, args.seed)
    elif args.command == "adversary":
        from . import adversary

        if args.dim % args.heads or args.length > 512:
            raise RecipeError(f"--dim {args.dim} has to be a multiple of --heads {args.heads}, --length at most 512")
        made = adversary.AttackSettings(args.dim, args.heads, args.batch_size, args.length)
        for name in args.contenders:
            adversary.attack(name)
        record = Record(args.out or RESULTS, "adversary", args.precision, args.seed, plan, dataclasses.asdict(made))
        adversary.run(record, plan, made, args.layers, args.contenders, args.precision, args.seed, args.profile)
    elif args.command == "horizon":
        from . import horizon

        if wrong := [cost for cost in args.costs if not 0 <= cost < float("inf")]:
            raise RecipeError(f"--costs {wrong[0]}: a price of a step is a number, and not below 0")
        if args.precision != "fp32":
            raise RecipeError(f"--precision {args.precision}: horizon is measured in fp32; leave it out")
        model, tokenizer = horizon.load_model(args.model)
        texts = horizon.sentences(args.task, args.data_dir)
        asked = {"task": args.task, "batch_size": args.batch_size, "width": model.config.hidden_size}
        record = Record(args.out or RESULTS, "horizon", args.precision, args.seed, plan, asked)
        horizon.run(record, plan, model, tokenizer, texts, sorted(set(args.costs)), asked)
    elif args.command == "decode":
        from . import decode

        task = decode.DecodeSettings(args.size, args.vocabulary, args.sentences, args.beam, args.length)
        if args.values and not args.over:
            raise RecipeError("--values: of what? Say --over sentences, beam or length")
        name = "decode" if args.over is None else "decode_curves"
        record = Record(args.out or RESULTS, name, "fp32", args.seed, plan, dataclasses.asdict(task))
        decode.run(record, plan, task, args.contenders, args.seed, args.profile, args.over, args.values)
    elif args.command == "deploy":
        from . import deploy

        if device.type != "cpu":
            raise RecipeError(f"--device {device}: what is exported is measured on the CPU; add --device cpu")
        check_choices("--formats", args.formats, deploy.FORMATS)
        how = deploy.DeploySettings(str(args.weights), args.batch_size)
        record = Record(args.out or RESULTS, "deploy", "fp32", args.seed, plan, dataclasses.asdict(how))
        deploy.run(record, plan, how, args.text, args.formats, args.seed)
    elif args.command == "ops":
        from . import ops

        check_choices("--contenders", args.contenders, ops.CONTENDERS)
        check_choices("--ops", args.ops or [], ops.OPS)
        shape = ops.OpsSettings(args.tokens, args.dim, args.vocabulary)
        record = Record(args.out or RESULTS, "ops", args.precision, args.seed, plan, dataclasses.asdict(shape))
        ops.run(record, plan, shape, args.ops or list(ops.OPS), args.contenders, args.precision, args.seed)
    elif args.command == "loss":
        from . import loss

        sizes = loss.LossSettings(args.tokens, args.dim)
        record = Record(args.out or RESULTS, "loss", args.precision, args.seed, plan, dataclasses.asdict(sizes))
        loss.run(record, plan, sizes, args.vocabularies, args.precision, args.seed)


def random_bert(args: argparse.Namespace, plan: Plan) -> None:
    from . import bert
    from .record import RESULTS, Record

    refuse(args, ("task", "max_length"), "is of --weights; add a folder, or leave it out")
    cases = args.cases or list(bert.CASES)
    check_choices("--cases without --weights", cases, bert.CASES)
    names, lengths = args.contenders or ["transformers", "macaron"], args.lengths or "glue"
    check_choices("--contenders", names, bert.CONTENDERS)
    if lengths != "glue" and not (lengths.isdigit() and 0 < int(lengths) <= 512):
        raise RecipeError(f"--lengths {lengths}: give glue, or a number from 1 to 512")
    data_dir = None if args.data_dir is None else str(args.data_dir)
    settings = bert.BertSettings(args.size or "base", args.batch_size, lengths, data_dir)
    record = Record(args.out or RESULTS, "bert", args.precision, args.seed, plan, dataclasses.asdict(settings))
    bert.run(record, plan, settings, cases, names, args.precision, args.seed, args.profile)


def published_bert(args: argparse.Namespace, plan: Plan) -> None:
    from . import published
    from .record import RESULTS, Record

    refuse(args, ("size", "lengths", "contenders"), "is of random weights; with --weights leave it out")
    cases = args.cases or list(published.CASES)
    check_choices("--cases with --weights", cases, published.CASES)
    if args.data_dir is None:
        raise RecipeError("--weights: needs sentences; name a folder of GLUE's TSV files with --data-dir")
    name, digest = published.identity(args.weights)
    settings = published.PublishedSettings(name, digest, args.batch_size, args.max_length or 128)
    tasks = published.tasks_there(args.task, args.data_dir)
    record = Record(
        args.out or RESULTS, "published_bert", args.precision, args.seed, plan, dataclasses.asdict(settings)
    )
    published.run(
        record, plan, settings, args.weights, tasks, args.data_dir, cases, args.precision, args.seed, args.profile
    )


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise RecipeError(f"--{name.replace('_', '-')} {why}")


def check_choices(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RecipeError(f"{option}: {', '.join(unknown)} unknown; choose from {', '.join(known)}")


if __name__ == "__main__":
    sys.exit(main())
