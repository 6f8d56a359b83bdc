"""The `macaron` command: `user-dir`, `average`, `convert` and `export-hub`.

    fairseq-train data-bin --user-dir "$(macaron user-dir)" --arch macaron_base …
    macaron average --last 10 --dir checkpoints --output checkpoints/average.pt
    macaron convert original.pt --output converted.pt
    macaron export-hub model --output for-the-hub

Checkpoints are read by `macaron.legacy.checkpoint.load`, that is with torch's safe loader.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import macaron

if TYPE_CHECKING:
    from torch import Tensor

# What fairseq names its checkpoints: checkpoint<epoch>.pt and checkpoint_<epoch>_<update>.pt.
_NAMES = {"epoch": re.compile(r"checkpoint(\d+)\.pt"), "update": re.compile(r"checkpoint_\d+_(\d+)\.pt")}
# Entries of fairseq's model state that are buffers; the second is uninitialised memory in old versions.
_NO_PARAMETERS = (".version", "._float_tensor")
# Belongs to the state of one run at one moment; of no use, or wrong, beside averaged parameters.
_NOT_AVERAGED = ("last_optimizer_state", "optimizer")
_EXTRA_NOT_AVERAGED = ("ema", "ema_fp32_params", "train_meters")  # the last: objects of the original's classes
# The parts of a model's folder that are JSON objects.
_JSON_PARTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "vocab.json")


def main(argv: Sequence[str] | None = None) -> int:
    return run(_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse a command line and do what it says: 0, or 1 after one line that says what is wrong (2: the usage).

    130 after an interruption.
    """
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    status = 1
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        message, status = "interrupted; run the same command again", 130
    except Exception as error:  # what a damaged file leads to can be of any kind
        known = isinstance(error, (ValueError, OSError, ImportError)) and str(error)
        message = str(error) if known else f"unexpected {type(error).__name__}: {error}"
    print(f"{parser.prog.removeprefix('python -m ')} {args.command}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="macaron", description="Helpers around Macaron checkpoints and fairseq.")
    parser.add_argument("--version", action="version", version=f"macaron {macaron.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    user_dir = commands.add_parser("user-dir", help="print the path for fairseq's --user-dir")
    user_dir.set_defaults(run=_user_dir)

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
        choices=sorted(_NAMES),
        default="epoch",
        help="what --last counts: checkpointE.pt or checkpoint_E_U.pt (default: %(default)s)",
    )
    average.add_argument("--up-to", type=_positive, metavar="N", help="with --last: no epoch or update after N")
    _add_output(average)
    average.set_defaults(run=_average)

    convert = commands.add_parser(
        "convert",
        help="convert a translation checkpoint of the original implementation",
        description="Turn a translation checkpoint of the original Macaron implementation into one that this "
        "package loads under fairseq.",
    )
    convert.add_argument("input", type=Path, metavar="FILE", help="the original checkpoint")
    _add_output(convert)
    convert.set_defaults(run=_convert)

    export = commands.add_parser(
        "export-hub",
        help="make a Macaron BERT loadable where this package is not installed",
        description="Write a folder with model, tokenizer and code that AutoModel….from_pretrained(FOLDER, "
        "trust_remote_code=True) loads with nothing but transformers installed; upload it with `hf upload`.",
    )
    export.add_argument("model", metavar="MODEL", help="folder, or name on the hub, of a Macaron BERT")
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


def _user_dir(args: argparse.Namespace) -> None:
    print(Path(macaron.__file__).parent)


def _average(args: argparse.Namespace) -> None:
    if (args.last is None) != (args.dir is None):
        raise ValueError("--last N and --dir DIR go together; give both, or name the checkpoints with --inputs")
    if args.up_to is not None and args.last is None:
        raise ValueError(f"--up-to {args.up_to} goes with --last; with --inputs, name only what is to be averaged")
    _check_output(args.output, args.force)
    inputs = args.inputs or last_checkpoints(args.dir, args.last, kind=args.kind, up_to=args.up_to)
    state = average_checkpoints(inputs)
    _save(state, args.output)
    print(f"averaged {len(inputs)} checkpoints ({', '.join(p.name for p in inputs)}) into {args.output}")


def _convert(args: argparse.Namespace) -> None:
    from macaron.legacy import checkpoint, translation

    _check_output(args.output, args.force)
    state = checkpoint.load(args.input)
    _check_model(state, args.input)
    state = translation.convert(state)
    _save(state, args.output)
    # Tied parameters count once, and what fairseq keeps beside the parameters does not count.
    sizes = {t.data_ptr(): t.numel() for name, t in state["model"].items() if not name.endswith(_NO_PARAMETERS)}
    print(f"converted {args.input} (arch {_arch(state)}, {sum(sizes.values()):,} parameters) into {args.output}")


def _export_hub(args: argparse.Namespace) -> None:
    if args.output.exists() and not args.force:  # before transformers is imported, which takes seconds
        raise FileExistsError(f"--output {args.output} exists; add --force to replace it, or choose another name")
    for part in _JSON_PARTS:
        _check_json(Path(args.model, part))
    try:
        from macaron.bert import export_for_hub
    except ModuleNotFoundError as error:
        raise ImportError(
            f"no module named {error.name!r}; install what the BERT side needs: pip install 'macaron-net[bert]'"
        ) from error
    folder = export_for_hub(args.model, args.output, args.tokenizer, force=args.force)
    print(f"exported {args.model} into {folder}; load it with from_pretrained({str(folder)!r}, trust_remote_code=True)")


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


def last_checkpoints(folder: Path, n: int, *, kind: str = "epoch", up_to: int | None = None) -> list[Path]:
    """The last `n` checkpoints of `folder`, oldest first.

    Args:
        folder: what fairseq was given as `--save-dir`.
        n: how many.
        kind: "epoch" for checkpoint<epoch>.pt, "update" for checkpoint_<epoch>_<update>.pt.
        up_to: no epoch (or update) after this one.

    Raises:
        FileNotFoundError: if `folder` is not a folder.
        ValueError: if it holds fewer than `n` such checkpoints.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder that fairseq had as --save-dir")
    matches = ((_NAMES[kind].fullmatch(path.name), path) for path in folder.iterdir())
    found = sorted((int(match[1]), path) for match, path in matches if match)
    found = [entry for entry in found if up_to is None or entry[0] <= up_to]
    if len(found) < n:
        pattern = {"epoch": "checkpoint<epoch>.pt", "update": "checkpoint_<epoch>_<update>.pt"}[kind]
        limit = "" if up_to is None else f" up to {kind} {up_to}"
        raise ValueError(
            f"{folder} holds {len(found)} checkpoints {pattern}{limit}, but --last asks for {n}; ask for "
            f"fewer, or keep more in training (--save-interval, --save-interval-updates, --keep-last-epochs)"
        )
    return [path for _, path in found[-n:]]


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """A checkpoint with the mean of the parameters of several checkpoints of one model.

        θ = (θ_1 + … + θ_n) / n,  summed in float64

    Parameters keep their dtype and tied ones stay tied. Buffers (counters, versions) and everything beside
    the model come from the newest checkpoint, the one with the most updates. The optimiser's state is left
    out.

    Raises:
        FileNotFoundError: if a checkpoint is missing.
        ValueError: if a file is no checkpoint, is named twice or belongs to another model, or if a parameter
            is not finite.
    """
    import torch

    from macaron.legacy import checkpoint

    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice; every checkpoint counts once, so name it once")
        seen.add(path.resolve())

    newest: dict[str, Any] = {}
    newest_path = Path()
    newest_updates = -1
    totals: dict[str, Tensor] = {}
    for path in paths:
        state = {key: value for key, value in checkpoint.load(path).items() if key not in _NOT_AVERAGED}
        _check_model(state, path)
        if newest:
            _check_same_model(newest, newest_path, state, path)
        for name, value in state["model"].items():
            if not value.is_floating_point() or name.endswith(_NO_PARAMETERS):
                continue
            if not torch.isfinite(value).all():
                raise ValueError(f"{path}: parameter {name} is not finite, so the run diverged; leave this one out")
            if name in totals:
                totals[name] += value
            else:
                totals[name] = value.to(torch.float64, copy=True)
        if _updates(state) >= newest_updates:
            newest, newest_path, newest_updates = state, path, _updates(state)

    model = {name: value.clone() for name, value in newest["model"].items() if name not in totals}
    tied: dict[tuple[Any, ...], str] = {}  # where a tensor lies in the newest checkpoint -> its first name
    for name, value in newest["model"].items():
        if name not in totals:
            continue
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        first = tied.setdefault(place, name)
        if first != name and torch.equal(totals[first], totals[name]):
            model[name] = model[first]
        else:
            model[name] = (totals[name] / len(paths)).to(value.dtype)

    average = {**newest, "model": {name: model[name] for name in newest["model"]}}
    if isinstance(average.get("extra_state"), dict):
        average["extra_state"] = {
            key: value for key, value in average["extra_state"].items() if key not in _EXTRA_NOT_AVERAGED
        }
    average["averaged_from"] = [str(path) for path in paths]
    return average


def _check_model(state: dict[str, Any], path: Path) -> None:
    import torch

    model = state.get("model")
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in model.items()
    ):
        raise ValueError(
            f"{path}: no model in it (found {', '.join(map(str, state))}); a fairseq checkpoint has "
            f"a dictionary 'model' of tensors, so check that the file was written by fairseq"
        )


def _check_same_model(a: dict[str, Any], a_path: Path, b: dict[str, Any], b_path: Path) -> None:
    remedy = "only checkpoints of one model can be averaged, so take them from one training run"
    if _arch(a) != _arch(b):
        raise ValueError(f"{b_path} is of architecture {_arch(b)} but {a_path} is of {_arch(a)}; {remedy}")
    if (x := _dictionaries(a)) and (y := _dictionaries(b)) and x != y:
        raise ValueError(f"{b_path} was trained with other dictionaries than {a_path}; {remedy}")
    ours, theirs = a["model"], b["model"]
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            has, lacks = (a_path, b_path) if name in ours else (b_path, a_path)
            raise ValueError(f"parameter {name} is in {has} but not in {lacks}; {remedy}")
        for what in ("shape", "dtype"):
            x, y = getattr(ours[name], what), getattr(theirs[name], what)
            if x != y:
                x, y = (tuple(x), tuple(y)) if what == "shape" else (x, y)
                raise ValueError(f"parameter {name} has {what} {y} in {b_path} but {x} in {a_path}; {remedy}")


def _dictionaries(state: dict[str, Any]) -> Any:
    from macaron.legacy.checkpoint import DICTIONARIES

    task_state = state.get("task_state")
    return task_state.get(DICTIONARIES) if isinstance(task_state, dict) else None


def _updates(state: dict[str, Any]) -> int:
    history = state.get("optimizer_history")
    newest = history[-1] if isinstance(history, list) and history else None
    updates = newest.get("num_updates") if isinstance(newest, dict) else None
    return updates if isinstance(updates, int) else 0


def _arch(state: dict[str, Any]) -> str:
    """The name of the architecture, from either of fairseq's two ways to keep the configuration."""
    cfg = state.get("cfg")
    config = (cfg.get("model") if isinstance(cfg, dict) else None) or state.get("args")
    for name in ("_name", "arch"):
        value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if value:
            return str(value)
    return "unknown"


def _check_output(path: Path, force: bool) -> None:
    if "\0" in str(path):  # the system would end the name there
        raise ValueError(f"--output {str(path)!r} has a null byte in its name; choose another")
    if path.is_dir():
        raise IsADirectoryError(f"--output {path} is a folder; name a file in it, such as {path / 'model.pt'}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"--output {path} is no ordinary file; name one")
    if path.exists() and not force:
        raise FileExistsError(f"--output {path} exists; add --force to overwrite it, or choose another name")


def _save(state: dict[str, Any], path: Path) -> None:
    """Write `path` whole or not at all."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{os.fsdecode(os.fsencode(path.name)[:200])}."  # a file's name has 255 bytes at most
    _sweep(path.parent, prefix)
    partial = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except RuntimeError as error:  # of torch, which does not say what the system said
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} cannot be written; {free:,} bytes are free in {path.parent} ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _sweep(folder: Path, prefix: str) -> None:
    """Delete what a killed process left of an earlier attempt."""
    for path in folder.iterdir():
        pid = path.name.removeprefix(prefix).removesuffix(".tmp")
        if path.name == f"{prefix}{pid}.tmp" and pid.isdecimal() and not _runs(int(pid)):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


if __name__ == "__main__":
    raise SystemExit(main())
