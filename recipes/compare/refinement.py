"""python -m recipes.compare.refinement: what a refinement of the depth costs, scheme by scheme. See `--help`.

A tiny translation model of each scheme is trained on Multi30k, refined by `macaron refine` again and again, and its
validation loss taken right after, without a further update.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from macaron.cli import main as macaron
from macaron.dynamics.solvers import SOLVERS

from ..common.errors import RecipeError
from ..common.jobs import ENVIRONMENT
from ..common.main import command_line, command_shown, run_command
from ..common.provenance import environment
from ..common.report import Table
from ..common.workspace import read_json, write_json
from ..multi30k_de_en.corpus import NAMES, read_verified
from ..translation.commands import KEEP_LAST_BATCH, USER_DIR, fairseq, quiet

LANGUAGES = ("de", "en")
PACKAGES = ("macaron-net", "torch", "fairseq-fixed")
WORDS = 2000  # of each language; the others are <unk>, which is enough to compare schemes
TRAINING = [
    *("--user-dir", USER_DIR, "--arch", "macaron_tiny", "--dropout", 0.1, "--share-decoder-input-output-embed"),
    *("--criterion", "macaron_label_smoothed_cross_entropy", "--label-smoothing", 0.1),
    *("--optimizer", "macaron_adam", "--adam-betas", "(0.9,0.98)", "--lr", 0.005, "--clip-norm", 1.0),
    *("--lr-scheduler", "inverse_sqrt", "--warmup-updates", 40, "--max-tokens", 1000, *KEEP_LAST_BATCH),
    *("--no-epoch-checkpoints", "--disable-validation", "--num-workers", 0, "--log-format", "simple"),
]


def parser() -> argparse.ArgumentParser:
    p = command_line(
        "compare.refinement",
        "Train a tiny model of each scheme on Multi30k, and measure how far its validation loss moves when "
        "`macaron refine` doubles its layers and halves its step. The same command goes on where it was interrupted.",
    )
    p.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="with Multi30k's files")
    p.add_argument("--out", type=Path, default=Path("compare_output/refinement"), metavar="DIR")
    p.add_argument("--splittings", nargs="+", default=["lie", "strang"], metavar="S")
    p.add_argument("--solvers", nargs="+", choices=SOLVERS, default=["euler", "midpoint", "rk4"], metavar="NAME")
    p.add_argument("--times", type=int, choices=range(1, 6), default=2, help="how often the depth is doubled")
    p.add_argument("--max-update", type=int, default=120, metavar="N", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=1, metavar="N", help="default: %(default)s")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("compare.refinement", lambda: measure(parser().parse_args(argv)))


def measure(args: argparse.Namespace) -> None:
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = {"max_update": args.max_update, "seed": args.seed, "words": WORDS}
    if (out / "settings.json").exists() and read_json(out / "settings.json") != settings:
        raise RecipeError(f"--out {args.out} was made with other settings (settings.json); choose another folder")
    write_json(out / "settings.json", settings)
    data = prepare(args.data_dir, out)
    rows = []
    about = environment(command_shown("compare.refinement"), PACKAGES)
    for splitting, solver in itertools.product(args.splittings, args.solvers):
        folder = out / f"{re.sub(r'[^a-z]+', '_', splitting)}-{solver}"
        print(f"train     {folder.name}", flush=True)
        train(data, folder, args, "--splitting", splitting, "--solver", solver)
        paths = refined(folder, args.times)
        scores = [log_probabilities(path, data) for path in paths]
        rows.append({"splitting": splitting, "solver": solver, **compared(scores)})
        print(f"measured  {folder.name}: {', '.join(f'{loss:.4f}' for loss in rows[-1]['loss'])}", flush=True)
        write_json(out / "results.json", {"rows": rows, "settings": settings, "environment": about})
        (out / "results.md").write_text(table(rows, args.times), encoding="utf-8")
    print(table(rows, args.times))


def prepare(source: Path, out: Path) -> Path:
    """Binary data of lower-cased words, made once."""
    data = out / "data"
    if (data / "preprocess.log").exists() and (data / "test.de-en.en.idx").exists():
        return data
    for (split, name), language in itertools.product(NAMES.items(), LANGUAGES):
        lines = read_verified(source, f"{name}.{language}")
        words = [" ".join(re.findall(r"\w+|[^\w\s]", line.lower())) for line in lines]
        (out / f"{split}.{language}").write_text("\n".join(words) + "\n", encoding="utf-8")
    sizes = ("--nwordssrc", WORDS, "--nwordstgt", WORDS)
    prefixes = [word for split in NAMES for word in (f"--{split}pref", out / split)]
    call(fairseq("preprocess", "-s", "de", "-t", "en", *prefixes, "--destdir", data, *sizes), out / "prepare.log")
    return data


def train(data: Path, folder: Path, args: argparse.Namespace, *scheme: str) -> None:
    """By fairseq's command, which goes on from the folder's last checkpoint."""
    options = ["--max-update", args.max_update, "--seed", args.seed, "--save-dir", folder, *scheme]
    if not torch.cuda.is_available():
        options.append("--cpu")
    folder.mkdir(exist_ok=True)
    call(fairseq("train", data, *TRAINING, *options), folder / "train.log")


def call(command: list[str], log: Path) -> None:
    with log.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise RecipeError(f"{command[2]} ended with status {done.returncode}; see the end of {log}")


def refined(folder: Path, times: int) -> list[Path]:
    """The trained checkpoint, and that of twice as many layers, and again."""
    paths = [folder / "checkpoint_last.pt"]
    layers = 2
    for _ in range(times):
        layers *= 2
        paths.append(folder / f"layers{layers}.pt")
        command = ["refine", paths[-2], "--layers", layers, "--output", paths[-1], "--force"]
        if macaron(list(map(str, command))):
            raise RecipeError(f"{paths[-2]} cannot be refined; what is wrong stands above")
    return paths


@torch.no_grad()
def log_probabilities(path: Path, data: Path) -> torch.Tensor:
    """log₂ p of every word of the validation set, (N,) in float64."""
    import macaron as package

    package.register_fairseq()
    from fairseq import checkpoint_utils

    quiet()
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})
    model = models[0].eval()
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_tokens=4000, required_batch_size_multiple=1)
    found: list[tuple[int, torch.Tensor]] = []
    for batch in batches.next_epoch_itr(shuffle=False):
        scores = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
        target: Any = batch["target"]
        per_word = scores.gather(-1, target.unsqueeze(-1)).squeeze(-1).double()
        for number, row, real in zip(
            batch["id"].tolist(), per_word, target != task.target_dictionary.pad(), strict=True
        ):
            found.append((number, row[real]))
    return torch.cat([row for _, row in sorted(found, key=lambda pair: pair[0])]) / torch.log(torch.tensor(2.0))


def compared(scores: list[torch.Tensor]) -> dict[str, list[float]]:
    """Loss in bits per word at each depth, and how far a word's log₂ p moves by each refinement, on average."""
    return {
        "loss": [float(-score.mean()) for score in scores],
        "moved": [float((b - a).abs().mean()) for a, b in itertools.pairwise(scores)],
    }


def table(rows: list[dict[str, Any]], times: int) -> str:
    depths = [2 ** (i + 1) for i in range(times + 1)]
    arrows = [f"{a} → {b}" for a, b in itertools.pairwise(depths)]
    head = ["splitting", "solver", f"loss, {depths[0]} layers", *(f"loss {arrow}" for arrow in arrows)]
    head += [f"a word, {arrow}" for arrow in arrows]
    lines = []
    for row in rows:
        jumps = [f"{b - a:+.4f}" for a, b in itertools.pairwise(row["loss"])]
        moved = [f"{value:.4f}" for value in row["moved"]]
        lines.append([row["splitting"], row["solver"], f"{row['loss'][0]:.4f}", *jumps, *moved])
    return Table(lines, head).markdown() + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
