"""python -m recipes.pde_net: PDE-Net 2.0 learns equations from fields. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..common.errors import RecipeError
from ..common.main import command_line, command_shown, module, run_command
from ..common.provenance import environment
from ..common.workspace import Stage, Workspace
from .settings import PRESETS, PDESettings, blocks, constraints_for, flag, settings_for, variants

PACKAGES = ("macaron-net", "torch", "numpy", "scipy", "matplotlib")
SETTINGS: tuple[tuple[str, type, str], ...] = (
    ("samples", int, "trajectories that a block is trained on"),
    ("iterations", int, "of BFGS in a block, at most"),
    ("size", int, "points of a filter along an axis"),
    ("max_order", int, "of the derivatives"),
    ("layers", int, "products of a SymNet"),
    ("degree", int, "of the monomials that are read off the SymNets"),
    ("sparsity", float, "weight of the SymNets' parameters in the loss"),
    ("moment_sparsity", float, "weight of the filters' moments in the loss"),
    ("noise", float, "on all data, times the standard deviation of the initial field"),
    ("grid", int, "points of an axis that are observed"),
    ("dt", float, "time between two observations"),
    ("max_dt", float, "longest time step of the solver that makes the data; the original's is 0.000625"),
    ("run_up", float, "time after which half of the trajectories are observed"),
    ("viscosity", float, "of Burgers' equation"),
    ("test", int, "trajectories of the roll-outs"),
    ("horizon", float, "time of the roll-outs"),
    ("held_out", float, "with --data: share of the samples, or of the times of a single one, for the roll-outs"),
)


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "pde_net",
        "PDE-Net 2.0: equations are learned from fields by filters that are derivatives by construction "
        "and networks that are polynomials, block by block, and printed. The talk's table: true equation, frozen and "
        "trained filters, over seeds; long roll-outs, and whether the learned equation blows up. Interrupted? The same "
        "command goes on after the last finished block; seeds, constraints and solvers can be added.",
        out="pde_net_output/SYSTEM",
        seeds=(1, 2, 3),
        jobs="seeds at a time, a process of one thread each (default: as many as cores)",
        epilog="Times are dimensionless, an axis is 2 pi long; with --data both are in the file's units, and so is the "
        "equation. settings.json and the report in the output folder show all settings. With --data "
        "FILE.npz: fields (samples, time, components, y, x), time, components, x, y.",
    )
    p.add_argument("--system", choices=[name for name in PRESETS if name != "data"], help="whose fields are made here "
                   "(default: burgers)")  # fmt: skip
    p.add_argument("--data", type=Path, metavar="FILE", help="fields of your own, npz, in the place of --system")
    p.add_argument("--components", nargs="+", metavar="NAME", help="with --data: those to use (default: all)")
    p.add_argument("--constraint", nargs="+", metavar="C",
                   help="of the filters: frozen, moment, free, or the order of accuracy that is held (default: "
                   "frozen 2; with other systems than burgers frozen and --max-order + 1)")  # fmt: skip
    p.add_argument("--solver", nargs="+", default=["euler"], metavar="NAME",
                   help="of the time steps, such as euler heun, which are then compared on equal data (default: "
                   "euler)")  # fmt: skip
    group = p.add_argument_group("settings (a folder keeps those it was made with)")
    group.add_argument("--blocks", metavar="B", help="steps of each block of training, such as 0-6,9,12; 0: the "
                       "warm-up, a step without regularisation and with the filters as they start")  # fmt: skip
    group.add_argument("--scheme", choices=("upwind", "central"), help="of the first derivatives: upwind mirrors "
                       "one-sided filters against the wind")  # fmt: skip
    for name, kind, text in SETTINGS:
        group.add_argument(
            f"--{flag(name)}",
            type=kind,
            metavar="N" if kind is int else "X",
            help=f"{text} (default: {defaults(name)})",
        )
    return p


def defaults(name: str) -> str:
    """Those of a setting in all presets that know it, as one where they are equal."""
    known = {system: value for system, s in PRESETS.items() if (value := getattr(s, name)) is not None}
    if len(set(known.values())) == 1:
        return f"{next(iter(known.values())):g}"
    return ", ".join(f"{value:g} with {'--data' if system == 'data' else system}" for system, value in known.items())


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("pde_net", lambda: command(parser().parse_args(argv)))


def settings_of(args: argparse.Namespace) -> PDESettings:
    """
    Raises:
        RecipeError: options that do not go together, or numbers that no run can have.
    """
    if args.data and args.system:
        raise RecipeError("--data and --system: give one of them; the fields are yours or made here")
    if args.components and not args.data:
        raise RecipeError("--components: goes with --data; the fields that are made here have u and v")
    if wrong := [seed for seed in args.seeds if not 1 <= seed < 2**32]:
        raise RecipeError(f"--seeds {wrong[0]}: must lie between 1 and {2**32 - 1}")
    if args.jobs is not None and args.jobs < 1:
        raise RecipeError(f"--jobs {args.jobs}: must be at least 1")
    given = {name: getattr(args, name) for name, _, _ in SETTINGS} | {"scheme": args.scheme}
    return settings_for(
        "data" if args.data else args.system or "burgers",
        **given,
        blocks=None if args.blocks is None else blocks(args.blocks),
    )


def command(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    found = variants(args.constraint or constraints_for(settings), args.solver)
    seeds = tuple(dict.fromkeys(args.seeds))
    jobs = args.jobs or len(os.sched_getaffinity(0))
    from macaron.files import digest

    from . import fields, pipeline, report

    data = args.data.resolve() if args.data else None
    if data is not None:
        own = fields.read(data, args.components)
        settings = dataclasses.replace(settings, components=own.components, data=digest(data))
    out = args.out or Path("pde_net_output") / (data.stem if data else settings.system)
    experiment = pipeline.PDEExperiment(settings, tuple(found), seeds, out.resolve(), data)
    pipeline.check(experiment)
    with Workspace(experiment.folder, dataclasses.asdict(settings), restart=args.restart) as space:
        print(f"pde_net   {data or settings.system} in {out}: {len(found)} variants, {len(seeds)} seeds", flush=True)
        started, spent = time.time(), cpu_seconds()
        facts = environment(command_shown("pde_net"), PACKAGES)
        facts |= {"threads": 1, "seeds at a time": min(jobs, len(seeds))}
        space.run([Stage("test", partial(pipeline.make_test, experiment))])
        failed = pipeline.run_seeds(experiment, jobs)
        facts["load average at the end"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
        facts["processor time of this call"] = f"{(cpu_seconds() - spent) / 60:.1f} min"
        facts["wall time of this call"] = f"{(time.time() - started) / 60:.1f} min"
        paths = report.write(experiment, failed, facts)
    print((experiment.folder / "table.md").read_text(encoding="utf-8"))
    print("\n".join(f"  {path}" for path in paths))
    for run, message in failed.items():
        print(f"{module('pde_net')}: {run} failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def cpu_seconds() -> float:
    """Of this process and those it has waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
