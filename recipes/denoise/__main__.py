"""python -m recipes.denoise: DURR learns to restore images, and when to stop. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..common.device import check_threads, device_of
from ..common.errors import RecipeError
from ..common.main import command_line, command_shown, module, run_command
from ..common.provenance import environment
from ..common.workspace import Workspace
from .settings import HORIZONS, PRESETS, flag, settings_for

PACKAGES = ("macaron-net", "torch", "numpy", "Pillow", "bm3d", "matplotlib")
SETTINGS: tuple[tuple[str, type, str], ...] = (
    ("most", int, "steps there may be"),
    ("width", int, "channels of the unit; the original has 32"),
    ("policy_width", int, "channels of the policy"),
    ("dncnn_depth", int, "layers of the baselines"),
    ("dncnn_width", int, "channels of the baselines; 0: as many as cost what DURR costs in training"),
    ("patch", int, "pixels a side of the training patches"),
    ("batch", int, "patches of an update"),
    ("updates", int, "of unit and baselines, each"),
    ("rate", float, "of Adam, at its highest"),
    ("policy_patch", int, "pixels a side of the policy's training patches"),
    ("policy_batch", int, "patches of an update of the policy"),
    ("policy_updates", int, "of the policy"),
    ("policy_rate", float, "of the policy's Adam"),
    ("epsilon", float, "probability that an episode's decision is drawn"),
    ("lag", int, "updates after which the copy that makes the targets is renewed"),
    ("test_count", int, "of the test set, evenly spaced; 0: all"),
    ("crop", int, "pixels a side of the test images' centres; 0: whole images"),
    ("bm3d_images", int, "of these that BM3D restores too, which is slow; 0: none"),
)


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "denoise",
        "DURR (arXiv:1805.07709): a unit is repeated until a policy stops it, trained beside a DnCNN and "
        "its twin without biases at equal cost, and tested at levels that it has seen and others. Prints the talk's "
        "table with ours beside it. Interrupted? The same command goes on from the last state, with the same bits on a "
        "CPU; seeds can be added.",
        out="denoise_output/TASK",
        seeds=(1,),
        epilog=f"Pictures of your own: python -m {module('denoise')} restore --help. settings.json and the report in "
        "the output folder show all settings.",
    )
    p.add_argument("--task", choices=("gaussian", "jpeg"), default="gaussian", help="noise (tested on BSD68) or JPEG "
                   "(LIVE1, luma); default: gaussian")  # fmt: skip
    p.add_argument("--data-dir", type=Path, metavar="DIR", help="holds train400, and bsd68 or live1")
    p.add_argument("--train-images", type=Path, metavar="DIR", help="or a folder of PNG or JPEG files to train on")
    p.add_argument("--test-images", dest="test_folder", type=Path, metavar="DIR", help="and to test on")
    p.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: as torch finds); the same bits come "
                   "of the same number")  # fmt: skip
    p.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default: cpu)")
    group = p.add_argument_group("settings (a folder keeps those it was made with)")
    group.add_argument("--size", choices=("small", "full"), default="small", help="what the defaults below are: for a "
                       "core and half an hour, or for a GPU (default: small)")  # fmt: skip
    group.add_argument("--horizon", choices=HORIZONS, help="fixed: all images get the same number of steps; table: "
                       "by their level; policy: trained by table, then a policy is learned that stops (default: "
                       "policy)")  # fmt: skip
    group.add_argument("--levels", nargs="+", type=float, metavar="X", help=f"to train on, σ of 255 or quality "
                       f"({defaults('levels')})")  # fmt: skip
    group.add_argument("--steps", nargs="+", type=int, metavar="N", help=f"in training, a number a level, or one for "
                       f"all ({defaults('steps')})")  # fmt: skip
    group.add_argument("--test-levels", nargs="+", type=float, metavar="X", help=f"({defaults('test_levels')})")
    for name, kind, about in SETTINGS:
        group.add_argument(
            f"--{flag(name)}",
            type=kind,
            metavar="N" if kind is int else "X",
            help=f"{about} ({defaults(name)})",
        )
    return p


def defaults(name: str) -> str:
    """Those of a setting in all presets, as one where they are equal."""
    found: dict[str, list[str]] = {}
    for (task, size), preset in PRESETS.items():
        value = getattr(preset, name)
        shown = " ".join(f"{x:g}" for x in value) if isinstance(value, tuple) else f"{value:g}"
        found.setdefault(shown, []).append(f"{task} {size}")
    if len(found) == 1:
        return f"default: {next(iter(found))}"
    return "default: " + ", ".join(f"{shown} ({', '.join(where)})" for shown, where in found.items())


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["restore"]:
        from .restore import command as restore
        from .restore import parser as restore_parser

        left = "what is written is whole; with --skip the same command does the rest"
        return run_command("denoise", lambda: restore(restore_parser().parse_args(given[1:])), interrupted=left)
    return run_command("denoise", lambda: command(parser().parse_args(given)))


def command(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name, _, _ in SETTINGS} | {"horizon": args.horizon}
    for name in ("levels", "steps", "test_levels"):
        given[name] = None if getattr(args, name) is None else tuple(getattr(args, name))
    settings = settings_for(args.task, args.size, **given)
    if wrong := [seed for seed in args.seeds if not 1 <= seed < 2**32]:
        raise RecipeError(f"--seeds {wrong[0]}: must lie between 1 and {2**32 - 1}")
    check_threads(args.threads)
    if settings.bm3d_images:
        check_bm3d()
    import torch

    from . import images, pipeline, report

    device = device_of(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    train, test = images.FOLDERS[args.task]
    seeds = tuple(dict.fromkeys(args.seeds))
    out = args.out or Path("denoise_output") / args.task
    experiment = pipeline.gather(
        settings, seeds, out.resolve(), folder(args.train_images, args.data_dir, train),
        folder(args.test_folder, args.data_dir, test), device,
    )  # fmt: skip
    with Workspace(experiment.folder, dataclasses.asdict(experiment.settings), restart=args.restart) as space:
        print(f"denoise   {args.task} in {out}: {len(experiment.train)} images to train on, {len(experiment.test)} to "
              f"test on, seeds {' '.join(map(str, seeds))}", flush=True)  # fmt: skip
        started, spent = time.time(), cpu_seconds()
        facts = environment(command_shown("denoise"), PACKAGES)
        facts["device"] = str(device)
        pipeline.run(experiment, space)
        facts["load average at the end"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
        facts["processor time of this call"] = f"{(cpu_seconds() - spent) / 60:.1f} min"
        facts["wall time of this call"] = f"{(time.time() - started) / 60:.1f} min"
        paths = report.write(pipeline.results(experiment), experiment.folder, facts)
    print((experiment.folder / "table.md").read_text(encoding="utf-8"))
    print("\n".join(f"  {path}" for path in paths))
    return 0


def folder(given: Path | None, data_dir: Path | None, name: str) -> Path:
    """
    Raises:
        RecipeError: neither is given.
    """
    if given is not None:
        return given
    if data_dir is None:
        raise RecipeError(f"--data-dir: give the folder that holds {name}, or the images themselves by --train-images "
                          f"and --test-images")  # fmt: skip
    return data_dir / name


def check_bm3d() -> None:
    """
    Raises:
        RecipeError: it is not installed, which is better said before hours of training.
    """
    from importlib.util import find_spec

    if find_spec("bm3d") is None:
        raise RecipeError("--bm3d-images: the package bm3d is not installed; pip install 'macaron-net[bm3d]' (its "
                          "licence is for use that is not commercial), or --bm3d-images 0")  # fmt: skip


def cpu_seconds() -> float:
    """Of this process and those it has waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
