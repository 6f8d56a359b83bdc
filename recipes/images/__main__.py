"""python -m recipes.images: LM-ResNet and adversarial training on images. `--help` says more."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.jobs import slots
from ..common.main import command_line, command_shown, module, run_command
from ..common.provenance import environment
from ..common.workspace import Workspace
from .settings import (
    AUGMENTATIONS,
    DATASETS,
    DEPTHS,
    DEVICES,
    MODELS,
    PRECISIONS,
    Adversary,
    Variant,
    as_record,
    epochs_of,
    flag,
    number,
    once,
    settings_for,
)

PACKAGES = ("macaron-net", "torch", "numpy", "pillow", "scipy", "matplotlib")


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "images",
        "The talk's two tables of image classification. LM-ResNet: pre-activation ResNets whose depth is "
        "integrated by one step (resnet) or by two (lm_resnet), over paired seeds. YOPO: adversarial training by the "
        "first layer alone, against PGD and natural training, accuracy under attack over minutes. Interrupted? The "
        "same command goes on where it stopped, with the same bits on a CPU; seeds, variants and adversaries can be "
        "added.",
        out="images_output/DATASET-MODEL",
        seeds=(),
        jobs="runs at a time, a process each (default: cores divided by --threads on a CPU, one per GPU)",
        dry_run=True,
        epilog="Adversaries: natural; pgd-K as the authors of YOPO train it; madry-K; freeat-m; yopo-m-n, and "
        "yopo-full-m-n and yopo-hamiltonian-m-n, which count the first layer's gradient once. Variants: resnet or "
        "lm_resnet, and after commas options of a scheme, such as lm_resnet,stochastic_depth=0.5. Seeds: 1 2 3 4 5 "
        "with --model resnet, else 1. Schedules are those of the papers and of the authors' code, see --dry-run; other "
        "epochs move the milestones in proportion.",
    )
    p.add_argument("--dataset", choices=DATASETS, required=True)
    p.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="torchvision's folder, the published "
                   "files unpacked, MNIST's IDX files, or CIFAR-10 as sheets of PNG")  # fmt: skip
    p.add_argument("--model", choices=MODELS, help="default: small_cnn for mnist, else resnet")
    p.add_argument("--variants", nargs="+", metavar="V", help="with --model resnet: networks to compare, the first is "
                   "what the others are compared with (default: resnet lm_resnet)")  # fmt: skip
    p.add_argument("--adversary", "--adversaries", dest="adversaries", nargs="+", metavar="A", help="what to train "
                   "against, one or several (default: natural; with other models than resnet natural pgd-40 yopo-5-10 "
                   "for mnist, natural pgd-10 yopo-5-3 for the others)")  # fmt: skip
    p.add_argument("--save-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (default: "
                   "60)")  # fmt: skip
    group = p.add_argument_group("settings (a folder keeps those it was made with)")
    group.add_argument("--depth", type=int, choices=DEPTHS, help="of --model resnet (default: 20)")
    group.add_argument("--channels-scale", type=fraction, metavar="X", help="times the channels of small_cnn, preact18 "
                       "and wrn34, such as 1/2 (default: 1)")  # fmt: skip
    group.add_argument("--size", type=int, metavar="N", help="16 averages images of 32 x 32 to 16 x 16, so that they "
                       "cost a quarter; the last mean is then over 4 x 4 (default: as they are)")  # fmt: skip
    group.add_argument("--train-images", type=int, metavar="N", help="the first so many (default: all of the folder)")
    group.add_argument("--test-images", type=int, metavar="N", help="the first so many (default: all)")
    group.add_argument("--attacked-images", type=int, metavar="N", help="of the test images, for the accuracy under "
                       "attack (default: all of them)")  # fmt: skip
    group.add_argument("--attack-steps", type=int, metavar="K", help="of the PGD that scores, one random start, "
                       "evaluation mode; 0: none (default: 40 for mnist, else 20; none where all is natural on "
                       "resnet)")  # fmt: skip
    group.add_argument("--epsilon", type=fraction, metavar="X", help="radius of all adversaries, L-infinity, in units "
                       "of pixels from 0 to 1 (default: 0.3 for mnist, else 8/255)")  # fmt: skip
    group.add_argument("--step-size", type=fraction, metavar="X", help="of the adversaries (default: 0.01 for mnist, "
                       "else 2/255)")  # fmt: skip
    group.add_argument("--ramp", type=int, metavar="N", help="batches over which the radius of training grows to "
                       "--epsilon (default: 0)")  # fmt: skip
    group.add_argument("--evaluate-every", type=fraction, metavar="E", help="epochs, also parts of one, such as 1/4; "
                       "the end is always evaluated (default: 1; 5 with preact18 and wrn34)")  # fmt: skip
    group.add_argument("--augment", choices=AUGMENTATIONS, help="crop: pad by an eighth with zeros, crop, mirror; "
                       "crop_reflect: the same, padded by reflection (default: crop; none for mnist)")  # fmt: skip
    group.add_argument("--epochs", nargs="+", metavar="N", help="for all, and for single adversaries: 6 pgd-40=3")
    group.add_argument("--batch", type=int, metavar="N")
    group.add_argument("--lr", type=float, metavar="X", help="of SGD; YOPO divides it by m")
    group.add_argument("--weight-decay", type=float, metavar="X")
    group.add_argument("--milestones", nargs="+", type=int, metavar="E", help="epochs from which on the rate is a "
                       "tenth")  # fmt: skip
    group.add_argument("--device", choices=DEVICES, help="default: cuda where there is one")
    group.add_argument("--precision", choices=PRECISIONS, help="bf16: autocast on a GPU (default: float32)")
    group.add_argument("--channels-last", action="store_true", help="memory format, faster on a GPU")
    group.add_argument("--threads", type=int, metavar="N", help="of a run on a CPU; other numbers give other bits "
                       "(default: 1)")  # fmt: skip
    return p


def fraction(text: str) -> float:
    try:
        return number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write such as 0.3, 8/255 or 1/2") from None


GIVEN = ("dataset", "model", "depth", "channels_scale", "size", "train_images", "test_images", "attacked_images",
         "attack_steps", "epsilon", "step_size", "ramp", "evaluate_every", "augment", "batch", "lr", "weight_decay",
         "milestones", "precision", "channels_last", "threads")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("images", lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    model = args.model or ("small_cnn" if args.dataset == "mnist" else "resnet")
    if args.variants and model != "resnet":
        raise RecipeError(f"--variants: are of --model resnet, and {model} has none; leave them out")
    variants = once([Variant.parse(v) for v in args.variants or ["resnet", "lm_resnet"]]) if model == "resnet" else ()
    several = ["natural", "pgd-40", "yopo-5-10"] if args.dataset == "mnist" else ["natural", "pgd-10", "yopo-5-3"]
    wanted = args.adversaries or (["natural"] if model == "resnet" else several)
    adversaries = once([Adversary.parse(a) for a in wanted])
    seeds = once(args.seeds or ([1, 2, 3, 4, 5] if model == "resnet" else [1]))
    epochs = epochs_of(args.epochs or [])
    for name, _ in epochs:
        if name and name not in [adversary.name for adversary in adversaries]:
            raise RecipeError(f"--epochs {name}=…: {name} is not among --adversaries; leave it out")
    if wrong := [seed for seed in seeds if not 1 <= seed < 2**32]:
        raise RecipeError(f"--seeds {wrong[0]}: must lie between 1 and {2**32 - 1}")
    numbers = {"jobs": 1, "save_every": 0, "size": 1, "train_images": 1, "test_images": 1}
    for name, least in numbers.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise RecipeError(f"--{flag(name)} {value}: must be at least {least}")

    import torch

    from . import data, models, pipeline, report
    from .experiment import Experiment, Run

    for variant in variants:
        models.scheme_of(variant)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: torch sees no GPU here; take --device cpu, or a machine that has one")
    given: dict[str, Any] = {name: getattr(args, name) for name in GIVEN}
    given |= {"epochs": epochs, "device": device, "attacked": any(a.kind != "natural" for a in adversaries)}
    settings_for(given, args.train_images or 10**9, args.test_images or 10**9)  # what is wrong without a look at images
    folder = args.data_dir.resolve()
    images = data.load(args.dataset, folder, size=args.size or 0, train_images=args.train_images or 0,
                       test_images=args.test_images or 0)  # fmt: skip
    settings = settings_for(given | {"images": images.fingerprint}, len(images.train), len(images.test))
    runs = tuple(Run(v, a) for a in adversaries for v in (variants or (None,)))
    out = args.out or Path("images_output") / f"{args.dataset}-{model}"
    experiment = Experiment(settings, runs, seeds, out.resolve(), folder, args.save_every)
    networks = pipeline.check(experiment)
    sentence = images.sentence
    del images  # each process reads its own
    print(f"images    {sentence}", flush=True)
    for run in runs:
        print(f"{run.name}: {models.parameters(networks[run.name].net):,} parameters; {report.plan_of(settings, run)}")
    if args.dry_run:
        print(f"dry run   {len(runs) * len(seeds)} trainings would go to {out}; nothing was made")
        return 0
    share = {"OMP_NUM_THREADS": str(settings.threads)}
    jobs = args.jobs or max(1, len(os.sched_getaffinity(0)) // settings.threads)
    places = slots(args.jobs) if device == "cuda" else [share] * min(jobs, len(runs) * len(seeds))
    with Workspace(experiment.folder, as_record(settings), restart=args.restart):
        started, spent = time.time(), cpu_seconds()
        facts = environment(command_shown("images"), PACKAGES)
        facts |= {"threads": settings.threads, "runs at a time": len(places)}
        failed = pipeline.train_all(experiment, places if len(places) > 1 else [])
        facts["load average at the end"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
        facts["processor time of this call"] = f"{(cpu_seconds() - spent) / 60:.1f} min"
        facts["wall time of this call"] = f"{(time.time() - started) / 60:.1f} min"
        paths = report.write(experiment, sentence, failed, facts)
    print((experiment.folder / "report.md").read_text(encoding="utf-8").partition("\n## Schedules")[0])
    print("\n".join(f"  {path}" for path in paths))
    for name, message in failed.items():
        print(f"{module('images')}: {name} failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def cpu_seconds() -> float:
    """Of this process and those it has waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
