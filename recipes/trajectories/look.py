"""From a model and lines of text to the folder of results."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from macaron.text import is_blank

from ..common.errors import RecipeError
from ..common.main import module, shown
from ..common.provenance import environment
from ..common.textfile import lines
from . import figure, page, tables
from .measure import Mean, Sighted, means, measure
from .models import LineError, Opened, open_model

PACKAGES = ("macaron-net", "torch", "fairseq-fixed", "transformers", "numpy", "matplotlib")


def look(args: argparse.Namespace, argv: Sequence[str] | None = None) -> None:
    """Do what the command line says; the folder appears when all of it is there."""
    quiet()
    out: Path = args.out
    check_out(out)
    texts = list(chosen_lines(args.text, args.target, args.lines))
    languages = {"source_lang": args.source_lang, "target_lang": args.target_lang}
    opened = open_model(args.model, args.data, {k: v for k, v in languages.items() if v}, args.device)
    if args.target and not opened.takes_targets:
        raise RecipeError(f"--target {args.target}: {args.model} is a {opened.kind}, which has no target; leave it out")
    sighted = list(see(opened, args.model, texts, args.text))
    about = facts(args, argv, opened, sighted)
    mean = means(sighted)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made.chmod(0o755)  # a temporary folder is for its owner alone
        tables.write_tokens(made / "tokens.csv", sighted)
        tables.write_layers(made / "layers.csv", mean)
        figure.draw(made / "layers.png", mean, title(args.model, opened))
        shown = [s for s in sighted if s.line in {line for line, *_ in texts[: args.shown]}]
        html = page.render(shown, about, (made / "layers.png").read_bytes(), title(args.model, opened))
        (made / "trajectories.html").write_text(html, encoding="utf-8")
        os.replace(made, out)  # onto an empty folder too
    finally:
        shutil.rmtree(made, ignore_errors=True)
    print("\n".join(summary(mean)))
    print(f"\n{out}: tokens.csv, layers.csv, layers.png, and trajectories.html to be opened in a browser")


def quiet() -> None:
    """Libraries that would talk to the terminal: hydra, which fairseq starts, lets everything through."""
    for library in ("fairseq", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)


def check_out(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if os.path.lexists(out):
        raise RecipeError(f"--out {out}: is there already, and nothing is overwritten; give another folder")


def chosen_lines(text: Path, target: Path | None, most: int) -> Iterator[tuple[int, str, str | None]]:
    """The first `most` lines in which there is anything to be seen, with their numbers and translations.

    Raises:
        RecipeError: no such line, files of unequal length, or a line without its translation.
    """
    missing = object()
    taken = 0
    pairs: Any = zip_longest(lines(text), lines(target) if target else [], fillvalue=missing)
    for number, (line, translation) in enumerate(pairs, 1):
        if target and (line is missing or translation is missing):
            short, long = (text, target) if line is missing else (target, text)
            raise RecipeError(f"{short}: ends after line {number - 1}, but {long} goes on; give files of equal length")
        if taken == most or is_blank(line):
            if target:
                continue  # to the end, since another length tells that the lines do not belong together
            if taken == most:
                break
            continue
        if target and is_blank(translation):
            raise RecipeError(f"{target}: line {number} is blank, but that of {text} is not; give each its translation")
        taken += 1
        yield number, line, translation if target else None
    if not taken:
        raise RecipeError(f"{text}: no line with anything to be seen; give text, a sentence a line")


def see(opened: Opened, model: Path, texts: list[tuple[int, str, str | None]], place: Path) -> Iterator[Sighted]:
    for number, line, translation in texts:
        try:
            for view in opened.views(line, translation):
                yield measure(view, number, line if view.side == "encoder" or translation is None else translation)
        except LineError as error:
            raise RecipeError(f"{place}: line {number} {error}") from error
        except RecipeError as error:
            raise RecipeError(f"{model}: {error} (seen at line {number} of {place})") from error


def title(place: Path, opened: Opened) -> str:
    return f"{'/'.join(place.resolve().parts[-2:])}, {opened.kind}"


def facts(
    args: argparse.Namespace, argv: Sequence[str] | None, opened: Opened, sighted: list[Sighted]
) -> list[tuple[str, str]]:
    """What the page says about how it was made."""
    words = sys.argv[1:] if argv is None else argv
    made = environment(shown([sys.executable, "-m", module("trajectories"), *words]), PACKAGES)
    parameters = sum({id(p): p.numel() for p in opened.model.parameters()}.values())
    sides = {s.side: s for s in sighted}
    rows = {side: f"{s.substeps[-1][0]} layers: {notation(s)}" for side, s in sides.items()}
    if (rule := rule_of(opened)) != "euler":
        rows["rule across depth"] = f"{rule}; each layer is seen at x_n, and the state after it is the rule's x_{{n+1}}"
    read = len({s.line for s in sighted})
    return [
        ("model", str(args.model)),
        ("parameters", f"{parameters:,}"),
        *rows.items(),
        ("sentences", f"{read} of {args.text}"),
        *((name, str(value)) for name, value in made.items()),
    ]


def rule_of(opened: Opened) -> str:
    options = getattr(opened.model, "args", None) or getattr(opened.model, "config", None)  # of fairseq, of a BERT
    return str(getattr(options, "depth_rule", "euler"))


def notation(sighted: Sighted) -> str:
    """The substeps of a layer, as in `ffn ½ → self-attention 1 → ffn ½`."""
    return " → ".join(f"{named(flow)} {step:g}" for layer, flow, step in sighted.substeps if layer == 1)


def named(flow: str) -> str:
    return flow.replace("_", "-").replace("ffn", "FFN")


def summary(mean: dict[str, Mean]) -> list[str]:
    """A line for the beginning and each layer: what a terminal shows."""
    found = []
    for side, m in mean.items():
        found += ["", f"{side}, the mean over {m.particles:,} tokens"]
        head = ("after", "‖x‖", "‖F‖/‖G‖", "angle", "error", "commutator/‖x‖", "lens agrees")
        found.append("".join(f"{name:>15}" for name in head))
        start = 0
        for k in range(len(m.substeps) + 1):
            last = k == len(m.substeps)
            if k and not last and m.substeps[k][0] == m.substeps[k - 1][0]:
                continue
            angles = m.mean["angle"][start + 1 : k + 1]
            angle = angles[angles == angles].mean() if (angles == angles).any() else float("nan")
            cells = [f"layer {m.substeps[k - 1][0]}" if k else "the embedding", f"{m.mean['length'][k]:.2f}"]
            cells += [
                cell(m.mean["ratio"][k], ".2f"),
                cell(angle, ".0f", "°"),
                cell(m.mean["splitting_error"][k], ".3f"),
            ]
            cells += [cell(m.mean["commutator_relative"][k], ".3f")]
            cells += [cell(100 * m.mean["lens_agrees"][k], ".0f", " %")]
            found.append("".join(f"{text:>15}" for text in cells))
            start = k
    return found[1:]


def cell(value: float, form: str, unit: str = "") -> str:
    return "–" if value != value else f"{value:{form}}{unit}"
