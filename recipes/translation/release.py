"""A trained model as one folder that takes raw text, checked by translating with it.

python -m recipes.translation.release RUN --out DIR [--precision int8]

model.pt                     the parameters, in as many bits as was asked for, and the architecture; no optimiser
                             state, no paths
dict.<language>.txt          fairseq's dictionaries
bpecodes | sentencepiece.bpe.model
text.json                    tokenizer settings, and the recipe's beam search
SHA256SUMS                   of all these files; checked whenever the folder is opened
scores.json, check.json      what it reached on the test set, and what was seen before it was handed out
README.md                    the model card, without a sum: it may be edited

from macaron import MacaronModel
MacaronModel.from_pretrained("DIR").translate("Ein roher Satz.")
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common import multistep
from ..common.errors import RecipeError
from ..common.jobs import ENVIRONMENT
from ..common.main import module, run_command
from ..common.report import untagged
from ..common.schemes import Variant
from ..common.workspace import read_json, read_lines, write_json
from . import commands
from .checkpoints import load
from .data.prepare import counts, listed
from .recipe import Recipe
from .report import beginning_and_end
from .text import TextSettings

SENTENCES = 100  # of the test set, translated anew
LOSS = 0.5  # of the first metric, that fewer bits may cost
TIE = 1e-3  # where the scores (bits per token) of two hypotheses differ by less, rounding may choose

# Parts of fairseq's configuration that are about a machine, or about the training's end.
_PATHS = {"task": {"data": ""}, "common": {"user_dir": None, "bf16": False, "fp16": False, "cpu": False}}


def export(run: Path, target: Path, sentences: int | None = None, precision: str = "fp32") -> dict[str, Any]:
    """Write the released model of the finished run in `run` to the new folder `target`; what the check found.

    Args:
        sentences: of the test set, to check with; None: `SENTENCES`, and all where bits are fewer than the run's.
        precision: of the released matrices: fp32, bf16 or int8.

    Raises:
        RecipeError: the run is not finished, `target` holds files, or the folder does not translate as the run did.
    """
    check_finished(run)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"--out {target}: exists; give a new or empty folder, nothing is overwritten")
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        seal = write_parts(run, partial, precision)
        check = check_release(run, partial, sentences, precision)
        write_json(partial / "check.json", check)
        seal(partial)  # with what the check has seen
        (partial / "README.md").write_text(model_card(run, partial, check), encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return check


def check_finished(run: Path) -> None:
    for name in ("settings.json", "average.pt", "scores.json", "data-bin/text.json", "generate/generate-test.txt"):
        if not (run / name).is_file():
            raise RecipeError(
                f"{run}: no {name}, so it is not the folder of a run that was trained and scored; finish it first: "
                f"python -m {module('<name>')} score --out {run}"
            )


def write_parts(run: Path, folder: Path, precision: str = "fp32") -> Callable[[Path], None]:
    """What the model needs, checked by the code that will open the folder; returns what writes the sums."""
    import torch

    import macaron

    macaron.register_fairseq()
    from macaron.user_dir import hub, released

    from macaron.quantization import stored

    data_bin = run / "data-bin"
    text = TextSettings.read(data_bin / "text.json")
    settings = read_json(run / "settings.json")
    generation = {key.split(".")[1]: value for key, value in settings.items() if key.startswith("generation.")}
    state = model_only(load(run / "average.pt"))
    try:
        hub.check_settings(run / "average.pt", state, macaron.MacaronModel)
        released.write(folder, released.Description(text, generation, precision=precision))
        state = stored(state, precision)
    except (KeyError, ValueError) as error:
        raise RecipeError(f"{run}: cannot be released ({type(error).__name__}: {error})") from error
    torch.save(state, folder / released.MODEL)
    for language in text.languages:
        shutil.copyfile(data_bin / f"dict.{language}.txt", folder / f"dict.{language}.txt")
    shutil.copyfile(data_bin / text.model_name, folder / text.released_name)
    shutil.copyfile(run / "scores.json", folder / "scores.json")
    released.seal(folder)
    return released.seal


def check_architecture(recipe: Recipe) -> None:
    """A released folder opens models of ours alone; said before hours go into another.

    Raises:
        RecipeError: for an architecture that is not ours.
    """
    import macaron

    macaron.register_fairseq()
    from macaron.user_dir.models.macaron import MODELS

    if recipe.arch not in MODELS:
        raise RecipeError(
            f"--arch {recipe.arch}: a released model is one of {', '.join(MODELS)}; choose one of them, or stop before "
            f"the release: python -m {module(recipe.name)} report"
        )


def model_only(state: dict[str, Any]) -> dict[str, Any]:
    """What a user of the model needs of a checkpoint, for any of fairseq's commands."""
    cfg = {group: dict(values) if isinstance(values, dict) else values for group, values in state["cfg"].items()}
    for group, values in _PATHS.items():
        cfg[group] |= values
    cfg["checkpoint"]["save_dir"] = "checkpoints"
    for group in ("distributed_training", "job_logging_cfg"):
        cfg.pop(group, None)
    history = state.get("optimizer_history") or [{}]
    return {
        "cfg": cfg,
        "args": None,
        "model": state["model"],
        "optimizer_history": [{**history[-1], "lr_scheduler_state": {}}],
        "task_state": state.get("task_state") or {},
        "extra_state": {"epoch": 0, "val_loss": None},
        "last_optimizer_state": None,
    }


# --- the check --------------------------------------------------------------------------------------------------

# In a process of its own, outside the repository: as a user has it, but with the greatest lengths of the run.
_TRANSLATE = """
import json, math, sys
from macaron import MacaronModel
model = MacaronModel.from_pretrained(sys.argv[1])
sentences, limits = json.load(sys.stdin)
answer = {
    "pieces": [model.apply_bpe(model.tokenize(sentence)) for sentence in sentences],
    "translations": [""] * len(sentences),
    "bits": [0.0] * len(sentences),
}
for limit in sorted(set(limits)):
    places = [i for i, own in enumerate(limits) if own == limit]
    options = {**model.generation, "max_len_a": 0, "max_len_b": limit, "match_source_len": False}
    texts = model.translate([sentences[i] for i in places], **options)
    found = model.generate([model.encode(sentences[i]) for i in places], **options)
    for i, text, best in zip(places, texts, found):
        answer["translations"][i] = text
        answer["bits"][i] = float(best[0]["score"]) / math.log(2)
json.dump(answer, open(sys.argv[2], "w"))
"""


def check_release(run: Path, folder: Path, sentences: int | None, precision: str) -> dict[str, Any]:
    """Reload the folder in a clean process, translate a part of the raw test set, and compare with the run.

    Where the raw sentence gives the very pieces that the run translated, the translation must be the same. (Raw
    sentences that were made from tokens by detokenising may tokenise differently; the scores of both are recorded.)
    Each has the greatest length that it had in the run. Fewer bits than the run's may choose other words; then the
    scores say what that costs.

    Raises:
        RecipeError: the folder does not translate as the run did, or files of the run do not belong to each other.
    """
    from . import scoring

    settings = read_json(run / "settings.json")
    source, target = settings["text.source"], settings["text.target"]
    fewer = precision != "fp32"
    texts = {
        path: read_lines(run / path)
        for path in (f"raw/test.{source}", f"raw/test.{target}", f"bpe/test.{source}", f"hyp/test.{target}")
    }
    raw, reference, known, recorded = texts.values()
    best = commands.hypotheses(run / "generate" / "generate-test.txt")
    sizes = {path: len(lines) for path, lines in texts.items()} | {"generate/generate-test.txt": len(best)}
    if sorted(best) != list(range(len(raw))) or len(set(sizes.values())) > 1:
        raise RecipeError(
            f"{run}: {', '.join(f'{path} has {size:,}' for path, size in sizes.items())} of the test sentences; one "
            f"was edited or cut off; delete it and make it anew: python -m {module('<name>')} score --out {run}"
        )
    limits = greatest_lengths([len(pieces.split()) + 1 for pieces in known], list(best), settings)
    raw = raw[: sentences or (None if fewer else SENTENCES)]
    found = translate_alone(folder, raw, limits[: len(raw)])
    reference, recorded = reference[: len(raw)], recorded[: len(raw)]
    same = [i for i, pieces in enumerate(found["pieces"]) if pieces == known[i]]
    differing = [i for i in same if found["translations"][i] != recorded[i]]
    wrong = [] if fewer else [i for i in differing if abs(found["bits"][i] - best[i].score) > TIE]
    if not same:
        raise RecipeError(
            f"{folder}: none of {len(raw)} raw test sentences becomes the pieces that the model was tested with, such "
            f"as {found['pieces'][0]!r} instead of {known[0]!r}; text.json or the sub-word model does not fit"
        )
    if wrong:
        i = wrong[0]
        raise RecipeError(
            f"{folder}: translates {len(wrong)} of {len(same)} test sentences otherwise than the run did, such as "
            f"{found['translations'][i]!r} instead of {recorded[i]!r} for {raw[i]!r}; the folder is not released"
        )
    metrics = scoring.metric_set(settings["metrics"], TextSettings.read(run / "data-bin" / "text.json"))
    scores = {
        name: {metric: entry["score"] for metric, entry in scoring.score(lines, reference, None, None, metrics).items()}
        for name, lines in (("release", found["translations"]), ("run", recorded))
    }
    metric, before = next(iter(scores["run"].items()))
    if fewer and before - scores["release"][metric] > LOSS:
        raise RecipeError(
            f"--precision {precision}: {metric} of {len(raw)} test sentences falls from {before:.2f} to "
            f"{scores['release'][metric]:.2f}, by more than {LOSS}; the folder is not released, take another precision"
        )
    name = "of these with another translation" + ("" if fewer else " of equal score")
    return {
        "sentences": len(raw),
        "with the pieces of the run": len(same),
        name: len(differing),
        "precision": precision,
        "scores": scores,
    }


def greatest_lengths(lengths: Sequence[int], order: Sequence[int], settings: dict[str, Any]) -> list[int]:
    """Of each translation in the run: fairseq takes it by the longest sentence of a batch.

    Args:
        lengths: of the sources, their ends included.
        order: of the sentences in fairseq's output, which is batch by batch.
    """
    slope, most = settings.get("generation.max_len_a", 0), settings.get("generation.max_len_b", 200)
    limits = [0] * len(lengths)
    for start in range(0, len(order), commands.BATCH):
        batch = order[start : start + commands.BATCH]
        longest = max(lengths[i] for i in batch)
        limit = longest if settings.get("generation.match_source_len") else int(slope * longest + most)
        for i in batch:
            limits[i] = limit
    return limits


def translate_alone(folder: Path, sentences: Sequence[str], limits: Sequence[int]) -> dict[str, list[Any]]:
    import tempfile

    with tempfile.TemporaryDirectory() as elsewhere:
        answer = Path(elsewhere) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-c", _TRANSLATE, str(folder.resolve()), str(answer)],
            input=json.dumps([list(sentences), list(limits)]), text=True, cwd=elsewhere, env=ENVIRONMENT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-12:])
            raise RecipeError(f"{folder}: the released model cannot be used; a clean process says\n{tail}")
        result: dict[str, list[Any]] = json.loads(answer.read_text(encoding="utf-8"))
    return result


_BITS = {
    "bf16": " Matrices are in bfloat16, and are multiplied so where the processor does.",
    "int8": " Matrices are 8-bit numbers with a scale for each row, and are multiplied so where the processor does.",
}

# --- the model card ---------------------------------------------------------------------------------------------


def model_card(run: Path, folder: Path, check: dict[str, Any]) -> str:
    """README.md, with the metadata block that model hubs read."""
    settings = read_json(run / "settings.json")
    stamps = {name: read_json(path) for name in ("prepare", "train", "average")
              if (path := run / "stamps" / f"{name}.json").is_file()}  # fmt: skip
    source, target = settings["text.source"], settings["text.target"]
    scores = read_json(run / "scores.json")
    rows = []
    for entry in scores.values():
        signature = entry["signature"].replace("|", "\\|")  # a bar ends a cell
        rows.append(
            f"| {entry['title']} | {entry['score']:.2f} | {entry['low']:.2f} to {entry['high']:.2f} | {signature} |"
        )
    data, training = stamps.get("prepare", {}), stamps.get("train", {})
    sizes = ", ".join(f"{split} {size:,}" for split, size in data.get("sizes", {}).items())
    scheme = Variant.of_settings(settings)
    chosen = "splitting" if scheme.is_splitting else "scheme"
    released = check["scores"]
    dropped = listed(counts(data.get("dropped", {})))
    begun = "".join(
        f"* {name[0].upper()}{name[1:]} {value}.\n"
        for name, value in beginning_and_end({"settings": settings, "best_validation": training.get("best")})
    )
    otherwise = next(
        f"{count} were translated otherwise" + (", with an equal score" if name.endswith("score") else "")
        for name, count in check.items()
        if name.startswith("of these")
    )
    bits = _BITS.get(check["precision"], "")
    lower = " Text is lower-cased." if settings["text.lowercase"] else ""
    return f"""---
language: {json.dumps([source, target])}
library_name: fairseq
pipeline_tag: translation
tags: [macaron, {settings["model._name"]}]
---
# {untagged(settings.get("corpus.title", settings["name"]))}: {source} to {target}, {scheme.described}

```python
from macaron import MacaronModel

model = MacaronModel.from_pretrained("{folder.name.strip(".").removesuffix(".part")}")
print(model.translate("…"))
```

Takes and gives raw text; `pip install macaron-net` says how to install. A list of sentences is translated in batches;
beam size {settings["generation.beam"]} and length penalty {settings["generation.lenpen"]} unless given.{lower}{bits}

## Scores on the test set

| metric | score | 95 % interval | signature |
|---|---|---|---|
{chr(10).join(rows)}

{data.get("notice", "")}

## How it was made

* `{settings["model._name"]}` with {chosen} `{scheme}`, {training.get("parameters", 0):,} \
parameters, seed {settings["common.seed"]}; {training.get("updates", 0):,} updates of \
{settings["batch_tokens"]:,} tokens.
{begun}* Data: {untagged(data.get("kind", ""))}; pairs: {sizes}; dropped from training: {dropped}.
* Averaged: {", ".join(stamps.get("average", {}).get("averaged", []))}.
* Lu et al. 2019, arXiv:1906.02762; `settings.json` of the run has every value.

{two_step_section(folder, scheme)}## Checked

This folder, alone in a clean process, translated the first {check["sentences"]} raw test sentences, each under the \
greatest length that it had in the run: \
{check["with the pieces of the run"]} became the very pieces of the run, and of these \
{otherwise}. On these sentences: \
{"; ".join(f"{name} {score:.2f} (run: {released['run'][name]:.2f})" for name, score in released["release"].items())}.
"""


def two_step_section(folder: Path, scheme: Variant) -> str:
    """What training made of the rule multistep; nothing under another."""
    if dict(scheme.options).get("depth_rule") != "multistep":
        return ""
    found = multistep.weights(load(folder / "model.pt")["model"], folder / "model.pt")
    parts = ["## The two-step rule", f"{multistep.RULE}. {multistep.verdict(found)}"]
    if found:
        lines = (multistep.HEAD, ["---"] * len(multistep.HEAD), *multistep.rows(found))
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return "\n\n".join([*parts, ""])


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("translation.release", lambda: release(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m {module('translation.release')}",
        description="Write the model of a finished run as one folder that takes raw text, and check it by translating "
        "a part of the test set with it.",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="--out of the run")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    p.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="of the matrices: half or a quarter of the size, and faster where the processor has it (default: fp32)",
    )
    p.add_argument(
        "--sentences", type=int, metavar="N", help=f"to check with (default: {SENTENCES}; all where bits are fewer)"
    )
    return p


def release(args: argparse.Namespace) -> None:
    commands.quiet()
    if args.sentences is not None and args.sentences < 1:
        raise RecipeError(f"--sentences {args.sentences}: the check needs at least one")
    print(f"{args.out}: {json.dumps(export(args.run, args.out, args.sentences, args.precision))}")


if __name__ == "__main__":
    sys.exit(main())
