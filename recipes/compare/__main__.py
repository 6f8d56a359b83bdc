"""python -m recipes.compare: one recipe, several splittings and seeds, and a test of the difference. See `--help`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.errors import RecipeError
from recipes.common.main import run_command
from recipes.common.provenance import environment
from recipes.common.workspace import Workspace, read_json
from recipes.compare import matched, schedule
from recipes.compare.experiment import Experiment, shown
from recipes.translation import commands
from recipes.translation.recipe import RECIPES, Recipe

PACKAGES = ("macaron-net", "torch", "fairseq-fixed", "sacrebleu", "sacremoses", "subword-nmt", "numpy", "scipy")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m recipes.compare",
        description="A matched experiment: the data is prepared once, every splitting is trained with every seed at "
        "equal parameters, data, order of data and updates, and the scores are compared: mean ± sd, paired t-test "
        "over seeds, paired bootstrap over sentences. Runs are spread over the GPUs at hand. Interrupted? The same "
        "command goes on; finished runs are kept, and seeds and splittings can be added.",
        epilog="Options of the recipe follow --, such as: -- --max-update 2000 --beam 4",
    )
    p.add_argument("--recipe", choices=RECIPES, required=True)
    p.add_argument("--size", help="of the recipe, such as base or big for wmt14_en_de")
    p.add_argument(
        "--splittings",
        nargs="+",
        default=["lie", "strang"],
        metavar="S",
        help="the first is what the others are compared with (default: lie strang)",
    )
    p.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    p.add_argument("--out", type=Path, metavar="DIR", help="where everything goes (default: compare_output/RECIPE)")
    p.add_argument("--data-dir", type=Path, metavar="DIR", help="the corpus, if it is already there")
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="trainings at a time (default: one per GPU; without a GPU one per core, of one thread each)",
    )
    p.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    p.add_argument("--restart", action="store_true", help="set an existing --out aside and begin anew")
    p.add_argument("options", nargs="*", metavar="-- OPTION", help="passed on to the recipe, the same for every run")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("compare", lambda: compare(parser().parse_args(argv)))


def compare(args: argparse.Namespace) -> int:
    out = args.out or Path("compare_output") / "-".join(filter(None, (args.recipe, args.size)))
    experiment = Experiment(
        recipe=args.recipe,
        splittings=tuple(args.splittings),
        seeds=tuple(args.seeds),
        folder=out.resolve(),
        options=(*(("--size", args.size) if args.size else ()), *args.options),
        data_options=("--data-dir", str(args.data_dir.resolve())) if args.data_dir else (),
    )
    recipes = recipes_of(experiment)
    recipe = next(iter(recipes.values()))
    slots = schedule.slots(args.jobs)
    print(f"compare   {args.recipe} in {out}: {len(experiment.runs)} runs, {len(slots)} at a time")
    check_before(recipes)
    if args.dry_run:
        plan(experiment)
        return 0
    space = Workspace(experiment.folder, experiment.settings(), restart=args.restart)
    with space.lock:
        started = time.time()
        prepare(experiment, space)
        difference = show_sizes(experiment, recipes)
        failed = train(experiment, space, slots, recipe.max_update)
        facts = environment(shown([sys.executable, "-m", "recipes.compare", *sys.argv[1:]]), PACKAGES) | {
            "runs at a time": len(slots),
            "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
            "wall time of this call": f"{(time.time() - started) / 60:.1f} min",
        }
        return publish(experiment, recipe, difference, facts, failed)


def recipes_of(experiment: Experiment) -> dict[str, Recipe]:
    """{splitting: what the recipe's own command line makes of the options}.

    Raises:
        RecipeError: for a value that no run could have, or options that would make runs equal which are to differ.
    """
    from recipes.translation import cli

    given = vars(cli.parser(experiment.recipe).parse_args(experiment.options))
    unset = vars(cli.parser(experiment.recipe).parse_args([]))
    for name in ("stage", "out", "prepared", "data_dir", "restart"):  # however they are abbreviated
        if given[name] != unset[name]:
            raise RecipeError(
                f"{' '.join(experiment.options)}: sets {name} after --, as this command does; leave it out"
            )
    found = {}
    for run in experiment.runs:
        own = ["--splitting", run.splitting, "--seed", str(run.seed)]
        recipe = cli.recipe_from(experiment.recipe, [*own, *experiment.options])
        if (recipe.splitting, recipe.seed) != (run.splitting, run.seed):
            raise RecipeError(
                f"{' '.join(experiment.options)}: sets splitting or seed after --, the same for all runs, so that "
                f"nothing would be compared; use --splittings and --seeds"
            )
        found[run.splitting] = recipe
    return found


def check_before(recipes: dict[str, Recipe]) -> None:
    """Whether the splittings can be compared, before minutes go into the data."""
    from recipes.translation.train import check_names

    recipe = next(iter(recipes.values()))
    check_names(recipe)
    sizes = matched.stand_in_sizes({splitting: r.tree for splitting, r in recipes.items()})
    print(f"compare   parameters: {matched.check_sizes(sizes, recipe.tree['model'])}")
    interval = recipe.get("common.log_interval", 100)
    if not matched.due_windows(recipe.max_update, interval):
        print(
            f"compare   note: {recipe.max_update} updates will leave {matched.too_few_lines(interval)}", file=sys.stderr
        )


def plan(experiment: Experiment) -> None:
    """The commands that would be run."""
    todo = [experiment.prepare_command(), *map(experiment.run_command, experiment.runs)]
    states = ["", *("  # finished" if run.finished else "" for run in experiment.runs)]
    for command, state in zip(todo, states, strict=True):
        print(shown(command) + state)


def prepare(experiment: Experiment, space: Workspace) -> None:
    """Once for all runs; its progress is on the terminal."""
    environment = {**commands.ENVIRONMENT, "PYTHONPATH": schedule.python_path()}
    command = experiment.prepare_command()
    if commands.call(command, space.lock, stderr=None, env=environment):
        raise RecipeError(f"the data could not be prepared; see above. The command was: {shown(command)}")


def show_sizes(experiment: Experiment, recipes: dict[str, Recipe]) -> float:
    """The largest difference from the first splitting, relative to it; with the real vocabulary."""
    sizes = {name: matched.size_of(recipe.tree, experiment.data / "data-bin") for name, recipe in recipes.items()}
    matched.check_sizes(sizes, next(iter(recipes.values())).tree["model"])
    print("compare   parameters: " + ", ".join(f"{name} {size.total:,}" for name, size in sizes.items()))
    baseline, *others = (size.total for size in sizes.values())
    return max(abs(other - baseline) / baseline for other in others)


def train(experiment: Experiment, space: Workspace, slots: list[dict[str, str]], updates: int) -> list[str]:
    """All runs that are not finished; the names of those that failed."""
    (experiment.folder / "runs").mkdir(exist_ok=True)
    waiting = [run for run in experiment.runs if not run.finished]
    for run in experiment.runs:
        if run.finished:
            print(f"run       {run.name} done before")
    jobs = [schedule.Job(run.name, experiment.run_command(run), run.log, run.folder / "train.log") for run in waiting]
    statuses = schedule.run_all(jobs, slots, space.lock, updates * len(jobs)) if jobs else {}
    for run in waiting:
        if statuses[run.name]:
            print(
                f"run       {run.name} ended with status {statuses[run.name]}; the end of {run.log}:\n{end_of(run.log)}"
            )
    return [name for name, status in statuses.items() if status]


def end_of(log: Path) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
    except OSError as error:
        return str(error)


def publish(experiment: Experiment, recipe: Recipe, difference: float, facts: dict[str, Any], failed: list[str]) -> int:
    """Results of what is finished; status 1 if a run failed or the runs were not matched."""
    from recipes.compare import report, results

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
    print(results.markdown(found))
    print("\n".join(f"  {path}" for path in files))
    if failed:
        print(
            f"recipes.compare: {len(failed)} runs failed ({', '.join(failed)}); the others are kept. When the cause is "
            f"gone, the same command does what is missing",
            file=sys.stderr,
        )
    incomplete = found["unreadable"] or found["matched"]["violations"] or found["matched"]["unknown"]
    return 1 if failed or incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
