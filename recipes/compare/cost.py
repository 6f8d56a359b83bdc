"""What an update costs: variants take turns at the batches of the experiment, in one process. See --help.

python -m recipes.compare.cost --recipe multi30k_de_en --variants lie strang,rk2 --data DIR/data --out cost.json

Under `--equal cost` a variant whose update takes r times as long as the baseline's gets 1/r of its updates.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import RecipeError
from ..common.main import command_line, command_shown, module, run_command
from ..common.provenance import environment
from ..common.schemes import Variant
from ..common.workspace import read_json, write_json
from ..translation.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from fairseq.trainer import Trainer

UPDATES = 40
WARMUP = 2  # that are not counted: the first allocate
SAMPLES, CONFIDENCE = 1000, 95  # of the bootstrap over updates, in per cent
ROUNDING = 0.02  # of its budget, that a variant may be off so that its last checkpoint is one of those averaged
PACKAGES = ("macaron-net", "torch", "fairseq-fixed")


@dataclass(frozen=True)
class Cost:
    """Of an update of one variant.

    Args:
        ratio: mean time of an update over the baseline's, on the same batches. The mean, as layers that are dropped
            at random make some updates short.
        low, high: 95 % interval of the ratio, by bootstrap over updates.
        seconds: mean time of an update.
        updates: how many were measured.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    updates: int

    @classmethod
    def read(cls, entry: Any, where: str) -> Cost:
        """From a file.

        Raises:
            RecipeError: an entry is missing, or no positive number.
        """
        values = {name: entry.get(name) if isinstance(entry, dict) else None for name in cls.__dataclass_fields__}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise RecipeError(
                    f"{where}: {name} is {value!r}, no positive number; the file was edited or is cut off. Put it "
                    f"back, or use --restart"
                )
        return cls(**values)


def read(path: Path, baseline: str) -> dict[str, Cost]:
    """{variant: its cost} of what has been measured so far; {} without a file.

    Raises:
        RecipeError: a damaged file, or one whose ratios are to another baseline.
    """
    if not path.exists():
        return {}
    record = read_json(path)
    if record["baseline"] != baseline:
        raise RecipeError(
            f"{path}: costs are measured against {record['baseline']}, and the first variant now is {baseline}; name "
            f"{record['baseline']} first, or give another --out"
        )
    entries = record["variants"]
    if not isinstance(entries, dict) or baseline not in entries:
        raise RecipeError(f"{path}: 'variants' must name variants with their costs; put it back, or use --restart")
    found = {name: Cost.read(entry, f"{path}, {name}") for name, entry in entries.items()}
    if found[baseline].ratio != 1.0:
        raise RecipeError(f"{path}: {baseline} costs {found[baseline].ratio} of itself; put it back, or use --restart")
    return found


# --- budgets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The updates of a variant, and the options by which the recipe's command line makes as many."""

    updates: int
    options: tuple[str, ...] = ()


def budget(variant: str, recipe: Recipe, ratio: float) -> Budget:
    """What `recipe` (the baseline's number of updates) becomes for a variant whose updates cost `ratio` as much.

    Where checkpoints are counted in updates their interval is divided too, so that as many are made, at the same
    shares of the training, and the last is its end; the number of updates is rounded to a multiple of it.

    Raises:
        RecipeError: so few that the warm-up would not end.
    """
    if ratio == 1.0:
        return Budget(recipe.max_update)
    updates, options = max(1, round(recipe.max_update / ratio)), []
    interval = recipe.get("checkpoint.save_interval_updates", 0)
    if interval:
        shorter = max(1, round(interval / ratio))
        whole = shorter * (recipe.max_update // interval)
        if recipe.max_update % interval == 0 and abs(whole / updates - 1) <= ROUNDING:
            updates = whole
        options = ["--set", f"checkpoint.save_interval_updates={shorter}"]
    warmup = recipe.get("lr_scheduler.warmup_updates", 0)
    if warmup >= updates and warmup < recipe.max_update:
        raise RecipeError(
            f"--equal cost: an update of {variant} costs {ratio:.3g} times the baseline's, which leaves {updates} of "
            f"{recipe.max_update} updates, and the warm-up alone has {warmup}; give more (-- --max-update N) or a "
            f"shorter warm-up (-- --warmup-updates N)"
        )
    return Budget(updates, ("--max-update", str(updates), *options))


# --- measuring --------------------------------------------------------------------------------------------------


def measure(recipes: Mapping[str, Recipe], data_bin: Path, updates: int, cpu: bool = False) -> dict[str, Cost]:
    """{variant: cost}, the first being the baseline; every one trains on the same batches, in turn.

    On the CPU with one thread it is the time of the process, which leaves out what else the machine does.
    """
    import torch

    from ..bench.measure import Contender, Plan, interleaved

    on_cpu = cpu or not torch.cuda.is_available()
    trainers = {name: trainer(recipe, data_bin, cpu) for name, recipe in recipes.items()}
    plan = Plan(
        device=torch.device("cpu" if on_cpu else "cuda"),
        repeats=updates,
        seconds=math.inf,
        warmup=WARMUP,
        clock="cpu" if on_cpu and torch.get_num_threads() == 1 else "wall",
    )
    contenders = [Contender(name, it.train_step) for name, it in trainers.items()]
    timing = interleaved(contenders, batches(next(iter(trainers.values()))), plan, label="cost")
    return costs(timing.seconds)


def costs(seconds: Mapping[str, Sequence[float]]) -> dict[str, Cost]:
    """From the seconds of each update, the same updates for all; the first is the baseline."""
    import numpy as np

    base = np.array(next(iter(seconds.values())))
    drawn = np.random.default_rng(1).integers(len(base), size=(SAMPLES, len(base)))
    found = {}
    for name, values in seconds.items():
        times = np.array(values)
        ratios = times[drawn].sum(1) / base[drawn].sum(1)
        tail = (100 - CONFIDENCE) / 2
        low, high = np.percentile(ratios, (tail, 100 - tail))
        found[name] = Cost(float(times.sum() / base.sum()), float(low), float(high), float(times.mean()), len(times))
    return found


def trainer(recipe: Recipe, data_bin: Path, cpu: bool) -> Trainer:
    """What fairseq-hydra-train would build of the recipe, in one process with the batch of the whole update."""
    import torch
    from fairseq import tasks
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.dataclass.initialize import add_defaults
    from fairseq.dataclass.utils import omegaconf_no_object_check
    from fairseq.trainer import Trainer
    from omegaconf import OmegaConf

    import macaron

    from ..translation import train

    macaron.register_fairseq()
    tree = train.configuration(recipe, train.Machine(cpu=cpu, processes=1), data_bin, Path("checkpoints"))
    given = {group: values for group, values in tree.items() if group not in ("defaults", "hydra")}
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqConfig), OmegaConf.create(given))
    add_defaults(cfg)
    with omegaconf_no_object_check():
        cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))  # type: ignore[arg-type]
    OmegaConf.set_struct(cfg, True)
    torch.manual_seed(recipe.seed)
    task = tasks.setup_task(cfg.task)
    it = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    it.lr_step_begin_epoch(1)
    return it


def batches(it: Trainer) -> Iterator[list[dict[str, Any]]]:
    """Of each update in turn, as its training would see them, epoch after epoch."""
    from fairseq.data.iterators import GroupedIterator

    load = True
    while True:
        epoch = it.get_train_iterator(1, load_dataset=load)
        load = False
        (accumulated,) = it.cfg.optimization.update_freq
        yield from GroupedIterator(epoch.next_epoch_itr(shuffle=True), accumulated)


# --- the command ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "compare.cost",
        "Measure what an update of each variant costs, on prepared data. Variants that a file has already "
        "are kept, the others are measured against the first anew.",
        epilog=f"Options of the recipe follow --, as in {module('compare')}.",
    )
    p.add_argument("--recipe", choices=RECIPES, required=True)
    p.add_argument("--variants", nargs="+", required=True, metavar="V", help="the first is the baseline")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="--out of a recipe that prepared the data")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="cost.json")
    p.add_argument("--updates", type=int, default=UPDATES, metavar="N", help="that are timed (default: %(default)s)")
    p.add_argument("options", nargs="*", metavar="-- OPTION")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(
        "compare.cost", lambda: command(parser().parse_args(argv)), "nothing was measured; the same command begins anew"
    )


def command(args: argparse.Namespace) -> None:
    from ..translation import cli, commands

    if args.updates < 3:
        raise RecipeError(f"--updates {args.updates}: a measurement needs 3 or more")
    if not (args.data / "data-bin").is_dir():
        raise RecipeError(f"--data {args.data}: no data-bin there; prepare it: python -m {module(args.recipe)} prepare")
    names = list(dict.fromkeys(Variant.parse(given, "--variants").name for given in args.variants))
    known = read(args.out, names[0])
    todo = [name for name in names if name not in known]
    if not todo:
        print(f"cost      done before: {args.out}")
        return
    commands.quiet()
    chosen = dict.fromkeys([names[0], *todo])
    options = [*args.options, "--prepared", str(args.data)]  # which say what was chosen by the corpus
    recipes = {name: cli.recipe_from(args.recipe, ["--scheme", name, *options]) for name in chosen}
    cpu = cli.parser(args.recipe).parse_args(args.options).cpu
    started = time.time()
    found = measure(recipes, args.data.resolve() / "data-bin", args.updates, cpu)
    known |= {name: found[name] for name in todo}
    record = {
        "baseline": names[0],
        "variants": {name: asdict(cost) for name, cost in known.items()},
        "measured in": round(time.time() - started, 1),
        "environment": environment(command_shown("compare.cost"), PACKAGES),
    }
    write_json(args.out, record)
    print("cost      of an update: " + ", ".join(f"{name} {cost.ratio:.3f}" for name, cost in known.items()))


if __name__ == "__main__":
    sys.exit(main())
