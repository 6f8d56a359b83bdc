"""python -m recipes.compare: one recipe, several variants and seeds, and a test of the difference. See `--help`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common import jobs
from ..common.errors import RecipeError
from ..common.main import command_line, command_shown, module, run_command, shown
from ..common.provenance import environment
from ..common.schemes import NAMED
from ..common.workspace import Workspace, read_json
from ..translation.recipe import RECIPES, Recipe
from . import cost, matched
from .experiment import EQUAL, MatchedExperiment
from .progress import Progress

PACKAGES = ("macaron-net", "torch", "fairseq-fixed", "sacrebleu", "sacremoses", "subword-nmt", "numpy", "scipy")


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "compare",
        "A matched experiment: the data is prepared once, every variant is trained with every seed at "
        "equal parameters, data and order of data, and at equal updates or equal cost, and the scores are compared: "
        "mean ± sd, paired t-test over seeds, paired bootstrap over sentences. Runs are spread over the GPUs at hand. "
        "Interrupted? The same command goes on; finished runs are kept, and seeds and variants can be added.",
        out="compare_output/RECIPE",
        seeds=(1, 2, 3),
        jobs="trainings at a time (default: one per GPU; without a GPU one per core, of one thread each)",
        dry_run=True,
        epilog="Options of the recipe follow --, such as: -- --max-update 2000 --beam 4",
    )
    p.add_argument("--recipe", choices=RECIPES, required=True)
    p.add_argument("--size", help="of the recipe, such as base or big for wmt14_en_de")
    variants = p.add_mutually_exclusive_group()
    variants.add_argument(
        "--variants",
        nargs="+",
        metavar="V",
        help="a splitting, and after commas a rule across depth or options of the scheme: strang, strang,multistep, "
        f"strang,solver=heun, lie,stochastic_depth=0.2; or {', '.join(NAMED)}. The first is what the others are "
        "compared with (default: lie strang)",
    )
    variants.add_argument("--splittings", nargs="+", metavar="S", help="the former name of --variants")
    p.add_argument(
        "--equal",
        choices=EQUAL,
        default=EQUAL[0],
        help="what all variants spend; cost: the time of an update is measured first, and each gets as many updates of "
        "the baseline's as take the same time (default: %(default)s)",
    )
    p.add_argument(
        "--cost-updates", type=int, default=cost.UPDATES, metavar="N", help="that are timed (default: %(default)s)"
    )
    p.add_argument("--data-dir", type=Path, metavar="DIR", help="the corpus, if it is already there")
    p.add_argument("options", nargs="*", metavar="-- OPTION", help="passed on to the recipe, the same for every run")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("compare", lambda: compare(parser().parse_args(argv)))


def compare(args: argparse.Namespace) -> int:
    out = args.out or Path("compare_output") / "-".join(filter(None, (args.recipe, args.size)))
    experiment = MatchedExperiment(
        recipe=args.recipe,
        variants=tuple(args.variants or args.splittings or ("lie", "strang")),
        option="--splittings" if args.splittings else "--variants",
        equal=args.equal,
        seeds=tuple(args.seeds),
        folder=out.resolve(),
        options=(*(("--size", args.size) if args.size else ()), *args.options),
        data_options=("--data-dir", str(args.data_dir.resolve())) if args.data_dir else (),
    )
    recipes = recipes_of(experiment)
    recipe = next(iter(recipes.values()))
    slots = jobs.slots(args.jobs)
    print(f"compare   {args.recipe} in {out}: {len(experiment.runs)} runs, {len(slots)} at a time")
    check_before(recipes, experiment.option)
    if args.cost_updates < 3:
        raise RecipeError(f"--cost-updates {args.cost_updates}: a measurement needs 3 or more")
    if args.dry_run:
        plan(with_budgets(experiment, recipe), args.cost_updates)
        return 0
    with Workspace(experiment.folder, experiment.settings(), restart=args.restart) as space:
        started = time.time()
        prepare(experiment, space)
        if args.equal == "cost":
            measure(experiment, space, slots[0], args.cost_updates)
            experiment = with_budgets(experiment, recipe)
            recipes = recipes_of(experiment)
        difference = show_sizes(experiment, recipes)
        failed = train(experiment, space, slots, {variant: r.max_update for variant, r in recipes.items()})
        facts = environment(command_shown("compare"), PACKAGES) | {
            "runs at a time": len(slots),
            "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
            "wall time of this call": f"{(time.time() - started) / 60:.1f} min",
        }
        return publish(experiment, recipe, difference, facts, failed)


def recipes_of(experiment: MatchedExperiment) -> dict[str, Recipe]:
    """{variant: what the recipe's own command line makes of the options}.

    Raises:
        RecipeError: for a value that no run could have, or options that would make runs equal which are to differ.
    """
    from ..translation import cli

    given = vars(cli.parser(experiment.recipe).parse_args(experiment.options))
    unset = vars(cli.parser(experiment.recipe).parse_args([]))
    for name in ("stage", "out", "prepared", "data_dir", "restart"):  # however they are abbreviated
        if given[name] != unset[name]:
            raise RecipeError(
                f"{' '.join(experiment.options)}: sets {name} after --, as this command does; leave it out"
            )
    if experiment.equal == "cost" and any(text.startswith("optimization.max_update=") for text in given["set"]):
        raise RecipeError(
            f"{' '.join(experiment.options)}: sets optimization.max_update for all runs, and --equal cost sets it for "
            f"each; give the baseline's as --max-update N"
        )
    found = {}
    for run in experiment.runs:
        recipe = cli.recipe_from(experiment.recipe, [*experiment.run_options(run), *experiment.corpus_options])
        if (recipe.scheme.name, recipe.seed) != (run.variant, run.seed):
            raise RecipeError(
                f"{' '.join(experiment.options)}: sets splitting or seed after --, or another part of the scheme, the "
                f"same for all runs, so that nothing would be compared; use {experiment.option} and --seeds"
            )
        if recipe.patience > 0:
            raise RecipeError(
                f"{' '.join(experiment.options)}: stops early, each run after another number of updates, so that they "
                f"would not be matched; leave --patience out, and give --max-update N"
            )
        found[run.variant] = recipe
    return found


def check_before(recipes: dict[str, Recipe], option: str) -> None:
    """Whether the variants can be compared, before minutes go into the data."""
    from ..translation.train import check_names

    recipe = next(iter(recipes.values()))
    check_names(recipe)
    sizes = matched.stand_in_sizes({variant: r.tree for variant, r in recipes.items()}, option)
    print(f"compare   parameters: {matched.check_sizes(sizes, recipe.tree['model'])}")
    interval = recipe.get("common.log_interval", 100)
    if not matched.due_windows(recipe.max_update, interval):
        print(
            f"compare   note: {recipe.max_update} updates will leave {matched.too_few_lines(interval)}", file=sys.stderr
        )


def plan(experiment: MatchedExperiment, cost_updates: int) -> None:
    """The commands that would be run."""
    print(shown(experiment.prepare_command()))
    if experiment.equal == "cost":
        print(shown(experiment.cost_command(cost_updates)))
    for run in experiment.runs:
        unknown = experiment.equal == "cost" and run.variant not in experiment.budgets
        state = "finished" if run.finished else "and --max-update, by its cost" if unknown else ""
        print(shown(experiment.run_command(run)) + (f"  # {state}" if state else ""))


def measure(experiment: MatchedExperiment, space: Workspace, slot: Mapping[str, str], updates: int) -> None:
    """What an update of each variant costs, of those for which that is not known; as one of the runs would find it."""
    known = cost.read(experiment.cost, experiment.variants[0])
    if all(variant in known for variant in experiment.variants):
        print(f"cost      of an update, as before: {', '.join(f'{name} {c.ratio:.3f}' for name, c in known.items())}")
        return
    command = experiment.cost_command(updates)
    if jobs.call(command, space.lock, stderr=None, env=jobs.environment(slot)):
        raise RecipeError(f"the cost of an update could not be measured; see above. The command was: {shown(command)}")


def with_budgets(experiment: MatchedExperiment, recipe: Recipe) -> MatchedExperiment:
    """The experiment with the updates of those variants whose cost is known; under equal updates itself.

    Args:
        recipe: the baseline's, with its number of updates.
    """
    if experiment.equal == "updates":
        return experiment
    known = cost.read(experiment.cost, experiment.variants[0])
    budgets = {name: cost.budget(name, recipe, of.ratio) for name, of in known.items() if name in experiment.variants}
    return dataclasses.replace(experiment, budgets=budgets)


def prepare(experiment: MatchedExperiment, space: Workspace) -> None:
    """Once for all runs; its progress is on the terminal."""
    command = experiment.prepare_command()
    if jobs.call(command, space.lock, stderr=None, env=jobs.environment()):
        raise RecipeError(f"the data could not be prepared; see above. The command was: {shown(command)}")


def show_sizes(experiment: MatchedExperiment, recipes: dict[str, Recipe]) -> float:
    """The largest difference from the first variant, relative to it; with the real vocabulary."""
    sizes = {name: matched.size_of(recipe.tree, experiment.data / "data-bin") for name, recipe in recipes.items()}
    matched.check_sizes(sizes, next(iter(recipes.values())).tree["model"])
    print("compare   parameters: " + ", ".join(f"{name} {size.total:,}" for name, size in sizes.items()))
    baseline, *others = (size.total for size in sizes.values())
    return max(abs(other - baseline) / baseline for other in others)


def train(
    experiment: MatchedExperiment, space: Workspace, slots: list[dict[str, str]], updates: Mapping[str, int]
) -> list[str]:
    """All runs that are not finished, of so many updates a variant; the names of those that failed."""
    (experiment.folder / "runs").mkdir(exist_ok=True)
    waiting = [run for run in experiment.runs if not run.finished]
    for run in experiment.runs:
        if run.finished:
            print(f"run       {run.name} done before")
    if not waiting:
        return []

    def done(task: jobs.Job, outcome: jobs.Outcome) -> None:
        state = f"FAILED, it {outcome.error}" if outcome.error else "done"
        tqdm.write(f"run       {task.name} {state}")

    seen = [Progress(run.folder / "train.log") for run in waiting]
    outcomes = jobs.run_all(
        [jobs.Command(run.name, experiment.run_command(run), run.log) for run in waiting],
        slots,
        lock=space.lock,
        desc="train",
        unit="update",
        total=sum(updates[run.variant] for run in waiting),
        progress=lambda: sum(progress.updates() for progress in seen),
        done=done,
    )
    failed = [run for run in waiting if outcomes[run.name].error]
    for run in failed:
        print(f"run       {run.name} {outcomes[run.name].error}; the end of {run.log}:\n{end_of(run.log)}")
    return [run.name for run in failed]


def end_of(log: Path) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
    except OSError as error:
        return str(error)


def publish(
    experiment: MatchedExperiment, recipe: Recipe, difference: float, facts: dict[str, Any], failed: list[str]
) -> int:
    """Results of what is finished; status 1 if a run failed or the runs were not matched."""
    from . import report, results

    logging.getLogger("sacrebleu").setLevel(logging.WARNING)  # hydra lets everything through to the terminal
    data = read_json(experiment.data / "stamps" / "prepare.json")
    found = results.collect(experiment, recipe)
    found |= {
        "notice": data.get("notice", "") if isinstance(data, dict) else "",
        "matched": {"parameters": difference, **results.check(experiment, found, recipe)},
        "environment": facts,
        "commands": {run.name: shown(experiment.run_command(run)) for run in experiment.runs},
    }
    files = report.write(found, experiment.folder)
    print(report.brief_report(found).markdown())
    print("\n".join(f"  {path}" for path in files))
    if failed:
        print(
            f"{module('compare')}: {len(failed)} runs failed ({', '.join(failed)}); the others are kept. When the "
            f"cause is gone, the same command does what is missing",
            file=sys.stderr,
        )
    incomplete = found["unreadable"] or found["matched"]["violations"] or found["matched"]["unknown"]
    return 1 if failed or incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
