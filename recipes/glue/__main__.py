"""python -m recipes.glue: fine-tune an encoder on GLUE, score it, write the submission. `--help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.main import command_line, module, run_command, shown
from ..common.workspace import Workspace
from .data import HUB, load
from .settings import ADVERSARY, ATTACK, PRESETS, SCHEDULES, FineTuning, FineTuningOptions, Setting, plan
from .tasks import TASKS, Task, tasks_named

OVERRIDES = ("epochs", "lr", "batch_size", "weight_decay", "schedule", "warmup", "max_length", "max_train_examples")
OVERRIDES += ("dropout", "adversary", *ADVERSARY, "attack", *ATTACK)


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "glue",
        "Fine-tune an encoder on GLUE, score it on the dev sets, and write what the GLUE server takes. Any "
        "model works that AutoModelForSequenceClassification loads. Finished runs are kept; the same command goes on "
        "with an interrupted one from its last checkpoint.",
        out="",
        seeds=(),
        jobs="runs at a time (default: one per GPU, 1 without)",
        epilog=f"Two models side by side: python -m {module('glue')} compare --runs A B; their losses, update by "
        f"update: python -m {module('glue')} curves --runs A B. Several processes for one "
        f"run: python -m torch.distributed.run --nproc_per_node 2 -m {module('glue')} …",
    )
    p.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="folder of a saved model and its tokenizer, or a hub name; no code from there is run",
    )
    p.add_argument(
        "--task", nargs="+", default=["all"], metavar="TASK",
        help=f"{', '.join(TASKS)}, or all (default); ax is answered by the model of mnli",
    )  # fmt: skip
    p.add_argument("--name", help="of the model in tables (default: the folder's)")
    data = p.add_argument_group("data")
    data.add_argument("--data-dir", type=Path, metavar="DIR", help="TSV files as in the official zip, plain or .xz")
    data.add_argument("--dataset", default=HUB, help="for `datasets`: hub name or local folder (default: %(default)s)")
    how = p.add_argument_group("settings (a folder keeps those it was made with; tasks and seeds may be added)")
    how.add_argument(
        "--preset", choices=PRESETS, default="paper",
        help="; ".join(f"{name}: {text}" for name, text in PRESETS.items()) + " (default: %(default)s)",
    )  # fmt: skip
    kinds = {"lr": float, "weight_decay": float, "warmup": float, "schedule": str}
    for name in (name for name in OVERRIDES if not name.startswith(("adversary", "attack", "dropout"))):
        words = name.replace("_", " ")
        how.add_argument(
            f"--{name.replace('_', '-')}",
            type=kinds.get(name, int),
            metavar={float: "X", int: "N"}.get(kinds.get(name, int)),
            choices=SCHEDULES if name == "schedule" else None,
            help=f"in place of the preset's {words}",
        )
    how.add_argument(
        "--no-dropout", dest="dropout", action="store_const", const=False, help="in place of the model's own rates"
    )
    adversary_options(p)
    attack_options(p)
    run = p.add_argument_group("how it is run (results do not depend on these, but for rounding)")
    run.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches that a batch is cut into")
    run.add_argument("--eval-batch-size", type=int, default=64, metavar="N")
    run.add_argument("--save-steps", type=int, default=500, metavar="N", help="updates between checkpoints")
    run.add_argument(
        "--logging-steps", type=int, metavar="N", help="updates whose mean loss is noted (default: a fiftieth of all)"
    )
    run.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on a GPU with it"
    )
    run.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    run.add_argument("--workers", type=int, default=0, metavar="N", help="processes that tokenise for a run")
    run.add_argument("--save-model", action="store_true", help="keep each run's fine-tuned model")
    p.add_argument(
        "--fill-missing", action="store_true", help="constant predictions for tasks that a submission would lack"
    )
    return p


def adversary_options(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("adversary (a setting, too; none unless --adversary is given)")
    group.add_argument(
        "--adversary", metavar="METHOD-K[-n]",
        help="train on embeddings that it moves: freelb-hf-K, freelb-fairseq-K, pgd-K, yopo-full-K-n, yopo-K-n, …",
    )  # fmt: skip
    sizes_of("adversary", group)
    group.add_argument("--adversary-start", type=int, metavar="N", help="updates before it begins (default: 0)")


def attack_options(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("attack (a setting, too; dev sets are scored without any unless --attack is given)")
    group.add_argument(
        "--attack", metavar="pgd-K",
        help="score the dev sets also on embeddings that K ascents of the task's loss have moved, each sentence alone",
    )  # fmt: skip
    sizes_of("attack", group)


def sizes_of(kind: str, group: argparse._ArgumentGroup) -> None:
    group.add_argument(f"--{kind}-step-size", type=float, metavar="X", help="of an ascent (default: 0.1)")
    group.add_argument(
        f"--{kind}-norm", choices=("l2", "linf-sign", "linf-largest"),
        help="of steps and radius, per sentence (default: l2)",
    )  # fmt: skip
    group.add_argument(f"--{kind}-radius", type=float, metavar="X", help="of its ball (default: none)")
    group.add_argument(f"--{kind}-init", type=float, metavar="X", help="of its random start (default: 0)")


def compare_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m {module('glue')} compare",
        description="Print two models side by side, with paired tests, and a Markdown table.",
    )
    p.add_argument(
        "--runs", nargs=2, required=True, metavar=("A", "B"),
        help="--out folders; several of one model (pre-training seeds) are joined by commas, in the same order",
    )  # fmt: skip
    p.add_argument("--names", nargs=2, metavar=("A", "B"), help="in the table (default: the models')")
    p.add_argument("--samples", type=int, default=1000, metavar="N", help="of the bootstrap (default: %(default)s)")
    p.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table there too; refuses a file that exists"
    )
    return p


def curves_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m {module('glue')} curves",
        description="Compare the losses of two models update by update, where both ran with equal settings, seeds and "
        "data: how far apart one model in two implementations gets.",
    )
    p.add_argument("--runs", nargs=2, required=True, metavar=("A", "B"), type=Path, help="--out folders")
    p.add_argument("--updates", type=int, default=100, metavar="N", help="the first ones (default: %(default)s)")
    p.add_argument("--within", type=float, metavar="X", help="end with status 1 where losses differ by more")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command("glue", lambda: command(words))


def command(words: list[str]) -> int:
    if words[:1] == ["compare"]:
        return show_comparison(compare_parser().parse_args(words[1:]))
    if words[:1] == ["curves"]:
        from .curves import show

        args = curves_parser().parse_args(words[1:])
        return show(*args.runs, args.updates, args.within)
    return finetune(parser().parse_args(words), words)


def finetune(args: argparse.Namespace, words: list[str]) -> int:
    load.cache_clear()  # files may have changed since another call in this process
    tasks = tasks_named(args.task)
    for name in ("accumulate", "eval_batch_size", "save_steps", "logging_steps", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise RecipeError(f"--{name.replace('_', '-')} is {value} but must be at least 1")
    overrides = {name: getattr(args, name) for name in OVERRIDES}
    plans = {task.name: plan(args.preset, task, args.seeds, **overrides) for task in tasks}
    from . import runner
    from .finetune import load_model, quiet_hosts

    identity = runner.model_identity(args.model)
    given = {name: value for name, value in overrides.items() if value is not None}
    source = {"data_dir": str(args.data_dir.resolve())} if args.data_dir else {"dataset": args.dataset}
    record = {**identity, "preset": args.preset, "overrides": given, **source}
    trainable, notes = survey(tasks, args)
    if not trainable:
        raise RecipeError("nothing to fine-tune: " + "; ".join(notes))
    for note in notes if runner.rank() == 0 else []:
        print(f"data      {note}")
    fields = {field.name for field in dataclasses.fields(FineTuningOptions)}
    options = FineTuningOptions(**{name: value for name, value in vars(args).items() if name in fields})
    runs: dict[str, FineTuning] = {}
    for task in trainable:
        for setting, seed in plans[task.name]:
            run = FineTuning(identity["model"], task.trained_as, setting, seed, Path())
            runs[run.stage] = dataclasses.replace(run, folder=args.out.resolve() / "runs" / run.stage)
    jobs = job_count(args, len(runs))
    options = dataclasses.replace(options, quiet=jobs > 1 or runner.rank() > 0)
    quiet_hosts()
    load_model(identity["model"], TASKS[trainable[0].trained_as], seed=0)  # what is wrong with it is said at once
    if runner.rank():
        runner.execute(list(runs.values()), options, None, jobs)
        return 0
    with Workspace(args.out.resolve(), record, restart=args.restart) as space:
        failed = runner.execute(list(runs.values()), options, space, jobs)
        return conclude(args, words, space, record, notes, failed, plans)


def survey(tasks: list[Task], args: argparse.Namespace) -> tuple[list[Task], list[str]]:
    """(tasks that can be trained here, what is absent). Partial data is reported, not fatal."""
    trainable, notes = [], []
    for task in tasks:
        data = load(task.name, args.data_dir, args.dataset)
        base = data if task.trained_as == task.name else load(task.trained_as, args.data_dir, args.dataset)
        if base.train is not None and base.dev is not None:
            trainable.append(task)
            notes += data.notes
        else:
            why = data.notes or [f"{task.title}: no {TASKS[task.trained_as].title} model can be trained here"]
            notes.append("; ".join(why) + ": skipped")
    return trainable, notes


def job_count(args: argparse.Namespace, runs: int) -> int:
    from ..common.jobs import visible_gpus
    from . import runner

    if runner.world_size() > 1:
        if args.jobs and args.jobs > 1:
            raise RecipeError("--jobs and several processes for one run (torch.distributed.run) exclude each other")
        return 1
    gpus = [] if args.cpu else visible_gpus()
    jobs = min(args.jobs or max(1, len(gpus)), max(1, runs))
    if jobs == 1 and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]  # or Trainer would spread a batch over all of them
    return jobs


def conclude(
    args: argparse.Namespace,
    words: list[str],
    space: Workspace,
    record: dict[str, Any],
    notes: list[str],
    failed: dict[str, str],
    plans: dict[str, list[tuple[Setting, int]]],
) -> int:
    """Tables, report, submission."""
    from ..common.provenance import environment
    from . import report, results

    runs = results.finished(space)
    for task in TASKS.values():  # of earlier commands in this folder too
        plans.setdefault(task.name, plan(args.preset, task, **record["overrides"]))
    settings = {name: [setting.record() for setting, _ in pairs] for name, pairs in plans.items()}
    table = results.by_task(runs, settings)
    remarks = dict.fromkeys(note for run in runs for note in run["notes"])
    facts = {
        "name": args.name or Path(record["model"]).name,
        "parameters": runs[0]["parameters"] if runs else None,
        "notes": list(dict.fromkeys([*notes, *remarks])),
        "failed": failed,
        "settings": record,
        "environment": environment(shown([sys.executable, "-m", module("glue"), *words]), report.PACKAGES),
    }
    files = report.write_report(space, facts, table, runs)
    if table:
        print(f"\n{results.as_text(*results.dev_table({facts['name']: table}))}\n")
    for note in [note for note in remarks if note not in notes]:  # the others were said before
        print(f"note      {note}")
    print("written   " + ", ".join(str(path) for path in files))
    submit(args, space, table)
    for stage, message in failed.items():
        print(f"failed    {stage}: {message}", file=sys.stderr)
    return 1 if failed else 0


def submit(args: argparse.Namespace, space: Workspace, table: dict[str, Any]) -> None:
    """submission.zip from the best dev run of each task; AX from that of MNLI-m."""
    from .finetune import load_predictions
    from .submission import write_submission

    predictions = {}
    for task in TASKS.values():
        source = table.get("mnli" if task.name == "ax" else task.name)
        if source:
            arrays = load_predictions(space.folder / "runs" / source["best"]["run"] / "predictions.npz")
            logits = arrays.get(f"{task.name}.test.logits")
            if logits is not None and len(logits) == task.test_size:
                predictions[task.name] = [task.written(value) for value in task.decode(logits)]
    missing = [task.title for task in TASKS.values() if task.name not in predictions]
    if missing and not args.fill_missing:
        print(f"no submission.zip: {', '.join(missing)} missing (--fill-missing takes constant predictions for them)")
        return
    path = space.folder / "submission.zip"
    filled = write_submission(path, predictions, args.fill_missing)
    print(f"written   {path}" + (f"; CONSTANT predictions, not a model's, for {', '.join(filled)}" if filled else ""))


def show_comparison(args: argparse.Namespace) -> int:
    from ..common.report import Table
    from .compare import EXPLANATION, Side, compare, comparison_table
    from .results import as_text

    if args.samples < 1:
        raise RecipeError(f"--samples is {args.samples} but must be at least 1")
    if args.markdown and args.markdown.exists():
        raise RecipeError(f"--markdown {args.markdown}: is there already; give a new name or delete it")
    first, second = (Side([Path(part) for part in word.split(",")]) for word in args.runs)
    names = args.names or [first.name, second.name]
    table = comparison_table(*names, compare(first, second, args.samples))
    markdown = f"{Table(table[1], table[0]).markdown()}\n\n{EXPLANATION}\n"
    print(f"{as_text(*table)}\n\n{markdown}", end="")
    if args.markdown:
        args.markdown.write_text(markdown, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
