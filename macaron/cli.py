"""The `macaron` command: `user-dir`, `translate`, `average`, `refine`, `convert`, `export` and `export-hub`.

    fairseq-train data-bin --user-dir "$(macaron user-dir)" --arch macaron_base …
    macaron translate release text.de > text.en
    macaron average --last 10 --dir checkpoints --output checkpoints/average.pt
    macaron refine checkpoints/checkpoint_last.pt --layers 12 --output refined.pt
    macaron convert original.pt --output converted.pt
    macaron convert original-bert.pt --dict dict.txt --output folder
    macaron convert FacebookAI/roberta-base --output folder
    macaron export model --format onnx --output deployed
    macaron convert release --to transformers --output folder
    macaron export-hub model --output for-the-hub

Checkpoints are read by `macaron.checkpoint.load`, that is with torch's safe loader.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import macaron

# What `convert` can be given.
_TAKEN = (
    "macaron convert takes a checkpoint of the original Macaron implementation (a file: a translation model; a BERT or "
    "a classifier, with --dict), or a BERT, RoBERTa, DistilBERT, ELECTRA or its like of transformers (a folder with "
    "config.json, or a name on the hub); with --to transformers a released translation model, or a checkpoint of one"
)
# The parts of a model's folder that are JSON objects.
_JSON_PARTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "vocab.json")

# What `export` writes, for a BERT and for a translation model.
_FORMATS = ("onnx", "onnx-int8", "torch-int8", "torch-export", "ctranslate2")

_DEEPEST = 10_000  # layers; more are a slip, and would fill the memory


def main(argv: Sequence[str] | None = None) -> int:
    return run(_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse a command line and do what it says: 0, or 1 after one line that says what is wrong (2: the usage).

    130 after an interruption.
    """
    args, more = parser.parse_known_args(argv)
    if more and (not hasattr(args, "files") or any(word.startswith("-") and word != "-" for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.files += more  # argparse takes no files after options that stand between them
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    status = 1
    try:
        args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        message, status = str(interrupt) or "interrupted; run the same command again", 130
    except BrokenPipeError:  # `| head` has seen enough
        message = ""
    except Exception as error:  # what a damaged file leads to can be of any kind
        known = isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)) and str(error)
        message = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        if _is_full(error):
            message = f"the disk or the quota is full ({error}); make room, and run the same command again"
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # what cannot be written is not tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(f"{parser.prog.removeprefix('python -m ')} {args.command}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _is_full(error: Exception) -> bool:
    """Whether a file had no room; safetensors says so in words alone."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    said = re.search(r"\(os error (\d+)\)", str(error))
    return (error.errno if isinstance(error, OSError) else int(said[1]) if said else 0) in codes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="macaron", description="Helpers around Macaron checkpoints and fairseq.")
    parser.add_argument("--version", action="version", version=f"macaron {macaron.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    user_dir = commands.add_parser("user-dir", help="print the path for fairseq's --user-dir")
    user_dir.set_defaults(run=_user_dir)

    translate = commands.add_parser(
        "translate",
        help="translate raw text with a released model",
        description="Translate raw text (UTF-8) line by line: one line of output for each line of input, in its order; "
        "an empty line stays empty. Lines are read in blocks and translated in batches of similar lengths, so that "
        "input of any length takes the same memory. At a terminal, standard error shows the progress.",
        epilog="To score translations: sacrebleu REFERENCE --input OUTPUT.",
    )
    translate.add_argument("release", type=Path, metavar="RELEASE", help="the folder of a released model")
    translate.add_argument("files", nargs="*", metavar="FILE", help="text; - or none: standard input")
    translate.add_argument("--beam", type=_positive, metavar="N", help="beam size (default: that of the release)")
    translate.add_argument(
        "--nbest", type=_positive, default=1, metavar="N", help="lines for each line, the best first (default: 1)"
    )
    translate.add_argument(
        "--print-scores",
        dest="scores",
        action="store_true",
        help="before each translation its score and a tab: log2 of the probability over the length to the power of "
        "the length penalty, as fairseq-generate has it; 0 for an empty line",
    )
    translate.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="tokens of a batch, padding counts (default: 4096)"
    )
    translate.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    translate.add_argument(
        "--too-long",
        choices=("refuse", "split"),
        default="refuse",
        help="a line longer than the model takes: end there with its number, or translate it sentence by sentence, "
        "into one line (default: %(default)s)",
    )
    translate.add_argument(
        "--buffer-size",
        type=_positive,
        metavar="N",
        help="lines read ahead; 1 answers each line at once (default: 4096, 1 where somebody types)",
    )
    translate.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8", "auto"),
        help="of the products: int8 is made at loading, one scale for each row; auto is the fastest that the processor "
        "has (default: the release's, where the processor has it)",
    )
    translate.set_defaults(run=_translate)

    average = commands.add_parser(
        "average",
        help="average the parameters of checkpoints",
        description="Write a checkpoint whose parameters are the mean over several checkpoints of one model. "
        "Everything else is taken from the newest; the optimiser's state is left out.",
    )
    which = average.add_mutually_exclusive_group(required=True)
    which.add_argument("--inputs", nargs="+", type=Path, metavar="FILE", help="the checkpoints themselves")
    which.add_argument("--last", type=_positive, metavar="N", help="the last N checkpoints of --dir")
    average.add_argument("--dir", type=Path, metavar="DIR", help="fairseq's --save-dir, for --last")
    average.add_argument(
        "--kind",
        choices=("epoch", "update"),
        default="epoch",
        help="what --last counts: checkpointE.pt or checkpoint_E_U.pt (default: %(default)s)",
    )
    average.add_argument("--up-to", type=_positive, metavar="N", help="with --last: no epoch or update after N")
    _add_output(average)
    average.set_defaults(run=_average)

    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint of the original implementation, or a BERT of transformers; read a Transformer as a "
        "Macaron",
        description="Turn a checkpoint of the original Macaron implementation, or a published BERT, into a model of "
        "this package, as its kind asks for. A translation model of the original: a checkpoint for fairseq. A "
        "pre-trained BERT or a classifier of the original: a folder that transformers' Auto classes load after `import "
        "macaron.bert`, with model, tokenizer and, where the checkpoint has the state of Adam, optimizer.pt for "
        "torch.optim.AdamW. A BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA or another post- or pre-norm "
        "encoder of transformers with learned positions, with its head: such a folder, with equal outputs. With "
        "--splitting strang a trained pre-norm Transformer of fairseq, its own or one of this package: a Macaron that "
        "begins near it. With --to transformers a released translation model, or a checkpoint of one with --data: a "
        "folder for `generate()`, which the Auto classes load after `import macaron.seq2seq`.",
    )
    convert.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="a checkpoint file of the original; or a folder of transformers, from which alone is read, or a name on "
        "the hub; with --to transformers a released folder, or a checkpoint file",
    )
    convert.add_argument("--output", type=Path, required=True, metavar="OUT", help="the checkpoint or folder to write")
    convert.add_argument(
        "--force", action="store_true", help="overwrite --output if it exists; write into a folder with something in it"
    )
    convert.add_argument(
        "--to", choices=("transformers",), help="make a translation model of fairseq one of transformers"
    )
    convert.add_argument(
        "--data", type=Path, metavar="DIR", help="with --to: the dictionaries of a checkpoint (default: its folder)"
    )
    convert.add_argument("--revision", metavar="REV", help="of a name on the hub: a branch, a tag or a commit")
    bert = convert.add_argument_group("for a BERT or a classifier of the original")
    bert.add_argument("--dict", type=Path, metavar="FILE", help="needed: dict.txt of the data that it was trained on")
    bert.add_argument(
        "--bpe-codes",
        type=Path,
        metavar="FILE",
        help="subword-nmt's codes that the data was split by, for a tokenizer that splits words itself; without it, "
        "text has to come split (subword-nmt apply-bpe)",
    )
    strang = convert.add_argument_group("for a Transformer of fairseq")
    strang.add_argument(
        "--splitting",
        choices=("strang",),
        help="read its layers as those of a Macaron, to be trained on; see --ffn-widths",
    )
    strang.add_argument(
        "--ffn-widths",
        type=_positive,
        nargs=2,
        metavar="N",
        help="with --splitting: neurons of the FFN before the attention of a layer and of the one behind it (default: "
        "half of them each, which keeps the number of parameters); with all of them behind it the function is the same",
    )
    convert.set_defaults(run=_convert)

    finer = commands.add_parser(
        "refine",
        help="more layers of a smaller step, or fewer of a larger one",
        description="Turn a trained model of L layers with step dt into one of r L layers with step dt/r, or of L/r "
        "layers with step r dt, from which training goes on: each layer becomes r layers with its parameters, or r "
        "layers become one with their mean. The state of Adam goes with it. A checkpoint of fairseq, or a folder of a "
        "Macaron BERT.",
    )
    finer.add_argument("input", type=Path, metavar="CHECKPOINT", help="fairseq's checkpoint, or a folder of a BERT")
    finer.add_argument(
        "--layers",
        type=_layers,
        required=True,
        metavar="N",
        help="how many layers to have, a multiple or a divisor of today's; 12+6 for an encoder and a decoder of "
        "unequal numbers, which change by one ratio since they share dt",
    )
    finer.add_argument("--output", type=Path, required=True, metavar="OUT", help="the checkpoint or folder to write")
    finer.add_argument("--force", action="store_true", help="overwrite --output if it exists")
    finer.set_defaults(run=_refine)

    deploy = commands.add_parser(
        "export",
        help="write a model for onnxruntime, CTranslate2, torch.export or in 8 bits",
        description="Write a model into a folder for where it is used, with its tokenizer and a README.md that has the "
        "code to run it; what was written is run on sample input and compared with the model, and refused where it "
        "differs. A Macaron BERT of any head: onnx, onnx-int8, torch-int8, torch-export. A released translation model: "
        "onnx, torch-export, and ctranslate2 where its layers are those of the Transformer (--splitting lie).",
    )
    deploy.add_argument("model", metavar="DIR", help="the folder of a Macaron BERT, or of a release")
    deploy.add_argument("--format", choices=_FORMATS, required=True, help="what to write")
    deploy.add_argument("--output", type=Path, required=True, metavar="OUT", help="the folder to write")
    deploy.add_argument("--force", action="store_true", help="write into --output though there is something in it")
    deploy.set_defaults(run=_export)

    export = commands.add_parser(
        "export-hub",
        help="make a model for transformers loadable where this package is not installed",
        description="Write a folder with model, tokenizer and code that AutoModel….from_pretrained(FOLDER, "
        "trust_remote_code=True) loads with nothing but transformers installed; upload it with `hf upload`.",
    )
    export.add_argument(
        "model",
        metavar="MODEL",
        help="folder, or name on the hub, of a Macaron BERT, or a translation model that `macaron convert` wrote",
    )
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    export.add_argument("--tokenizer", metavar="DIR", help="where its tokenizer is (default: beside the model)")
    export.add_argument("--force", action="store_true", help="replace --output if it exists")
    export.set_defaults(run=_export_hub)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--force", action="store_true", help="overwrite --output if it exists")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return number


def _layers(text: str) -> list[int]:
    numbers = [int(word) if word.isdecimal() else 0 for word in text.split("+")]
    if len(numbers) > 2 or min(numbers) < 1 or max(numbers) > _DEEPEST:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number of layers from 1 to {_DEEPEST:,}, or encoder's+decoder's such as 12+6"
        )
    return numbers


def _user_dir(args: argparse.Namespace) -> None:
    print(Path(macaron.__file__).parent)


def _translate(args: argparse.Namespace) -> None:
    macaron.register_fairseq()  # torch and fairseq take seconds
    from macaron.user_dir import translate

    translate.run(
        args.release, args.files, device=args.device, window=args.buffer_size, max_tokens=args.max_tokens,
        precision=args.precision, beam=args.beam, nbest=args.nbest, scores=args.scores, split=args.too_long == "split",
    )  # fmt: skip


def _average(args: argparse.Namespace) -> None:
    if (args.last is None) != (args.dir is None):
        raise ValueError("--last N and --dir DIR go together; give both, or name the checkpoints with --inputs")
    if args.up_to is not None and args.last is None:
        raise ValueError(f"--up-to {args.up_to} goes with --last; with --inputs, name only what is to be averaged")
    _check_output(args.output, args.force)
    from macaron.averaging import average_checkpoints, last_checkpoints  # torch takes seconds
    from macaron.checkpoint import save

    inputs = args.inputs or last_checkpoints(args.dir, args.last, kind=args.kind, up_to=args.up_to)
    state = average_checkpoints(inputs)
    save(state, args.output)
    print(f"averaged {len(inputs)} checkpoints ({', '.join(p.name for p in inputs)}) into {args.output}")


def _convert(args: argparse.Namespace) -> None:
    from macaron import checkpoint
    from macaron.legacy.kinds import is_bert

    _check_name(args.output)
    if args.to == "transformers":
        if args.splitting:
            raise ValueError(f"--splitting {args.splitting} does not go with --to transformers; convert in two steps")
        _convert_to_transformers(args)
        return
    if args.data is not None:
        raise ValueError(f"--data {args.data} goes with --to transformers; leave it out")
    if args.ffn_widths and not args.splitting:
        raise ValueError("--ffn-widths goes with --splitting strang; add it, or leave out the widths")
    if args.input.is_dir() or _is_hub_name(args.input):
        if args.splitting:
            raise ValueError(
                f"--splitting {args.splitting} is for a checkpoint file of fairseq; a BERT is warm-started with text: "
                f"python -m recipes.warm_start --teacher {args.input} --text FILES --out DIR"
            )
        _convert_published(args)
        return
    if args.revision is not None:
        raise ValueError(
            f"--revision {args.revision} is for names on the hub, and {args.input} is a file; leave it out"
        )
    if (args.input.parent / "config.json").is_file() and args.input.is_file():
        raise ValueError(
            f"{args.input} lies in a model's folder of transformers, which is converted as a whole; give the folder "
            f"{args.input.parent}"
        )
    try:
        state = checkpoint.load(args.input)
        checkpoint.check_model(state, args.input)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; {_TAKEN}") from error
    if args.splitting:
        _convert_to_strang(args, state)
    else:
        (_convert_bert if is_bert(state["model"]) else _convert_translation)(args, state)


def _convert_bert(args: argparse.Namespace, state: dict[str, Any]) -> None:
    if args.dict is None:
        raise ValueError(
            f"{args.input} is a BERT or classifier of the original, so its dictionary is needed for the tokenizer; "
            f"add --dict FILE, the dict.txt of the data that it was trained on"
        )
    with _needs("bert"):
        from macaron.legacy.bert import convert_file
    model = convert_file(args.input, args.dict, args.output, codes=args.bpe_codes, force=args.force, state=state)
    kind = type(model).__name__
    print(f"converted {args.input} ({kind}, {model.num_parameters():,} parameters) into folder {args.output}")


def _convert_to_transformers(args: argparse.Namespace) -> None:
    given = {"--revision": args.revision, "--dict": args.dict}
    if idle := [f"{option} {value}" for option, value in given.items() if value is not None]:
        raise ValueError(f"--to transformers has no use for {' and '.join(idle)}; leave it out")
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input} does not exist; {_TAKEN}")
    from macaron.hf.folders import check_free

    if args.output.resolve() == args.input.resolve():
        raise ValueError(f"--output {args.output} is what is converted, which stays as it is; name another folder")
    check_free(args.output, args.force)
    macaron.register_fairseq()  # torch and fairseq take seconds
    from macaron.user_dir.portable import describe

    with _needs("seq2seq"):
        from macaron.seq2seq.conversion import convert
    model, notes = convert(describe(args.input, args.data, args.bpe_codes), args.output, force=args.force)
    kind = type(model).__name__
    print(f"converted {args.input} ({kind}, {model.num_parameters():,} parameters) into folder {args.output}")
    for note in notes:
        print(f"note: {note}")


def _is_hub_name(path: Path) -> bool:
    """Whether it names no file here, and has the form of a name on the hub."""
    name = str(path)
    is_file = path.exists() or path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
    return not is_file and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None


def _convert_published(args: argparse.Namespace) -> None:
    _refuse_idle(args, "a model of transformers", "its tokenizer lies beside it")
    if args.input.is_dir() and not any((args.input / f"{name}config.json").is_file() for name in ("", "adapter_")):
        raise FileNotFoundError(f"folder {args.input} has no config.json; {_TAKEN}")
    with _needs("bert"):
        from macaron.bert.published import convert_published
    try:
        model, notes = convert_published(args.input, args.output, revision=args.revision, force=args.force)
    except FileNotFoundError as error:
        if args.input.is_dir():
            raise
        raise FileNotFoundError(f"{error}; {_TAKEN}") from error
    kind = type(model).__name__
    print(f"converted {args.input} ({kind}, {model.num_parameters():,} parameters) into folder {args.output}")
    for note in notes:
        print(f"note: {note}")


def _refuse_idle(args: argparse.Namespace, what: str, why: str) -> None:
    given = {"--dict": args.dict, "--bpe-codes": args.bpe_codes}
    if idle := [f"{option} {value}" for option, value in given.items() if value is not None]:
        raise ValueError(
            f"{args.input} is {what}, for which {' and '.join(idle)} would do nothing: {why}; leave it out"
        )


def _convert_translation(args: argparse.Namespace, state: dict[str, Any]) -> None:
    from macaron import checkpoint
    from macaron.legacy import translation

    try:
        state = translation.convert(state)
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{args.input}: {error}; {_TAKEN}") from error
    _refuse_idle(args, "a translation model", "its dictionaries stay in fairseq's data folder")
    _check_output(args.output, args.force)
    checkpoint.save(state, args.output)
    # Tied parameters count once, and what fairseq keeps beside the parameters does not count.
    buffers = checkpoint.NO_PARAMETERS
    sizes = {t.data_ptr(): t.numel() for name, t in state["model"].items() if not name.endswith(buffers)}
    arch = checkpoint.architecture(state)
    print(f"converted {args.input} (arch {arch}, {sum(sizes.values()):,} parameters) into {args.output}")


def _convert_to_strang(args: argparse.Namespace, state: dict[str, Any]) -> None:
    from macaron import checkpoint
    from macaron.bracketing import Widths, rebracket_checkpoint

    _refuse_idle(args, "a checkpoint of fairseq's training", "its dictionaries stay in fairseq's data folder")
    try:
        made = rebracket_checkpoint(state, Widths(*args.ffn_widths) if args.ffn_widths else None)
    except ValueError as error:
        raise type(error)(f"{args.input}: {error}") from error
    _check_output(args.output, args.force)
    checkpoint.save(made.state, args.output)
    flags = ["--splitting strang"]
    for side, (first, second) in made.widths.items():
        flags.append(f"--{side}-first-ffn-embed-dim {first} --{side}-ffn-embed-dim {second}")
        each, last = made.dropped[side]
        lost = f"the last layer is without {last} of its {second + last} neurons" if last else "no neuron is left out"
        lost = f"every layer is without {each} neurons, and {lost}" if each else lost
        print(f"{side}: FFNs of {first} and {second} neurons; {lost}")
    for what in made.left_out:
        print(f"left out: {what}")
    print(f"converted {args.input} into {args.output}")
    print(f"train on: fairseq-train … {' '.join(flags)} --finetune-from-model {args.output}")


def _refine(args: argparse.Namespace) -> None:
    _check_name(args.output)
    if args.input.is_dir():
        _refine_bert(args)
        return
    _check_output(args.output, args.force)
    from macaron import checkpoint
    from macaron.refinement import refine_checkpoint

    state = checkpoint.load(args.input)
    checkpoint.check_model(state, args.input)
    try:
        refined = refine_checkpoint(state, args.layers)
    except ValueError as error:
        raise type(error)(f"{args.input}: {error}") from error
    checkpoint.save(refined.state, args.output)
    numbers = ["+".join(map(str, sides.values())) for sides in (refined.old, refined.new)]
    kept = bool(refined.state.get("last_optimizer_state"))
    _tell_refined(args, numbers, refined.dt, kept, refined.left_out)
    flags = [f"--{side}-layers {number}" for side, number in refined.new.items()]
    anew = "" if kept else " --reset-optimizer"
    print(f"train on: fairseq-train … {' '.join(flags)} --dt {refined.dt[1]!r} --restore-file {args.output}{anew}")


def _refine_bert(args: argparse.Namespace) -> None:
    if len(args.layers) > 1:
        raise ValueError(f"--layers {'+'.join(map(str, args.layers))}: a BERT has one stack of layers; give one number")
    for part in _JSON_PARTS:
        _check_json(args.input / part)
    with _needs("bert"):
        from macaron.bert.refinement import refine_folder
    found = refine_folder(args.input, args.layers[0], args.output, force=args.force)
    kept = (args.output / "optimizer.pt").is_file()
    _tell_refined(args, [str(found.old), str(args.layers[0])], (found.dt, found.model.config.dt), kept, found.left_out)


def _tell_refined(
    args: argparse.Namespace, layers: Sequence[str], dt: Sequence[float], kept: bool, left_out: Sequence[str]
) -> None:
    before, after = (f"{number} layers, dt {step:g}" for number, step in zip(layers, dt, strict=True))
    whether = "with" if kept else "without"
    print(f"refined {args.input} ({before}) into {args.output} ({after}), {whether} the optimiser's state")
    for what in left_out:
        print(f"left out: {what}")


def _export(args: argparse.Namespace) -> None:
    _check_name(args.output)
    folder = Path(args.model)
    if (folder / "text.json").is_file():
        _export_release(args, folder)
        return
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"folder {folder} has neither config.json nor text.json; macaron export takes the folder of a Macaron "
            f"BERT, or of a released translation model (`python -m recipes.translation.release` makes one of a run)"
        )
    if folder.is_file():
        raise ValueError(f"{folder} is a file; macaron export takes the folder of a Macaron BERT, or of a release")
    if args.format == "ctranslate2":
        raise ValueError(
            f"--format ctranslate2 is for released translation models, and {folder} is none; choose onnx, onnx-int8, "
            f"torch-int8 or torch-export"
        )
    for part in _JSON_PARTS:
        _check_json(folder / part)
    with _needs("bert"):
        from macaron.bert.deploy import export
    made = export(args.model, args.output, args.format, force=args.force)
    print(
        f"exported {args.model} as {args.format} into {made.folder}; greatest difference on sample input "
        f"{made.difference:.2g}, relative (root mean square) {made.relative:.2g}; README.md there has code that runs it"
    )


def _export_release(args: argparse.Namespace, folder: Path) -> None:
    macaron.register_fairseq()
    from macaron.user_dir.deploy import export

    for line in export(folder, args.output, args.format, force=args.force):
        print(line)


def _export_hub(args: argparse.Namespace) -> None:
    if args.output.exists() and not args.force:  # before transformers is imported, which takes seconds
        raise FileExistsError(f"--output {args.output} exists; add --force to replace it, or choose another name")
    for part in _JSON_PARTS:
        _check_json(Path(args.model, part))
    with _needs("seq2seq"):
        from transformers import AutoConfig

        from macaron import bert, seq2seq
    kind = AutoConfig.from_pretrained(args.model)
    package: Any = seq2seq if isinstance(kind, seq2seq.MacaronConfig) else bert
    folder = package.export_for_hub(args.model, args.output, args.tokenizer, force=args.force)
    print(f"exported {args.model} into {folder}; load it with from_pretrained({str(folder)!r}, trust_remote_code=True)")


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Around an import: says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"no module named {error.name!r}; install what models for transformers need: pip install "
            f"'macaron-net[{extra}]'"
        ) from error


def _check_json(path: Path) -> None:
    """transformers takes it for granted that these files hold an object."""
    if not path.is_file():  # or the model is a name on the hub
        return
    remedy = "copy the folder again, or save the model anew with save_pretrained"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} holds a {type(found).__name__}, but a model's folder has a JSON object there; {remedy}"
        )


def _check_name(path: Path) -> None:
    if "\0" in str(path):  # the system would end the name there
        raise ValueError(f"--output {str(path)!r} has a null byte in its name; choose another")


def _check_output(path: Path, force: bool) -> None:
    _check_name(path)
    if path.is_dir():
        raise IsADirectoryError(f"--output {path} is a folder; name a file in it, such as {path / 'model.pt'}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"--output {path} is no ordinary file; name one")
    if path.exists() and not force:
        raise FileExistsError(f"--output {path} exists; add --force to overwrite it, or choose another name")


if __name__ == "__main__":
    raise SystemExit(main())
