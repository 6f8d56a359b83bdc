"""The stages of a translation run: prepare, train, average, translate, score, report, release. Each is done once."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from recipes.common.divergence import check_finite
from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, digest, files_of, inside, read_json, read_lines, write_json
from recipes.translation import checkpoints, commands, train
from recipes.translation.commands import check_losses
from recipes.translation.data.corpus import Corpus
from recipes.translation.held_out import check_held_out
from recipes.translation.recipe import Recipe
from recipes.translation.release import check_architecture, export
from recipes.translation.text import Codec
from recipes.translation.train import Machine

STAGES = ("prepare", "train", "average", "translate", "score", "report", "release")

# The files of one step of the preparation are described by a stamp of their own.
PREPARED = "prepare-*.json"
PREPARED_FOLDERS = ("raw", "text", "bpe", "data-bin")


@dataclass(frozen=True)
class Data:
    """Where the corpus comes from.

    Args:
        folder: files that are already there (detected); None: download them.
        prepared: the folder of another run whose prepared data is shared; goes before everything else.
        workers: processes of the preparation; None: one per core.
        options: further arguments of `recipes.translation.data.prepare.prepare`.
    """

    folder: Path | None = None
    prepared: Path | None = None
    workers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Pipeline:
    """One run in one folder.

    raw/, text/, bpe/, data-bin/   the corpus, from raw text to fairseq's binary format
    conf/train.yaml, train.sh      what is trained, as fairseq-hydra-train takes it
    checkpoints/, train.log        what came of it
    average.pt                     the model that is evaluated
    generate/, hyp/, scores.json   its translations, pieces joined (test.tok.L) and as text (test.L), and their scores
    report/, release/              for people, and for users
    """

    def __init__(self, recipe: Recipe, space: Workspace, machine: Machine | None = None, data: Data | None = None):
        self.recipe = recipe
        self.space = space
        self.machine = machine or Machine()
        self.data = data or Data()
        self.folder = space.folder
        self.source, self.target = recipe.text.languages
        self.data_bin = self.folder / "data-bin"
        self.checkpoints = self.folder / "checkpoints"
        self.train_log = self.folder / "train.log"
        self.model = self.folder / "average.pt"
        if ":" in str(self.folder):
            raise RecipeError(f"--out {self.folder}: fairseq takes ':' for the end of a path; give a folder without it")

    def run(self, last: str = STAGES[-1]) -> None:
        """All stages up to `last` that are not done yet. What follows a stage that had to be done is done again."""
        commands.quiet()
        stages = STAGES[: STAGES.index(last) + 1]
        if self.space.stamp("train") is None and "train" in stages:  # before hours go into what cannot be trained
            self.machine.processes_for(self.recipe)
            train.check_names(self.recipe)
            train.check_model(self.recipe)
            if "release" in stages:
                check_architecture(self.recipe)
        anew = False
        for stage in stages:
            if not anew and self.space.stamp(stage) is not None:
                print(f"{stage:<9} done before")
                continue
            if not anew:
                self.forget(STAGES[STAGES.index(stage) :])
            anew = True
            facts = getattr(self, stage)(time.time())
            print(f"{stage:<9} done in {facts['seconds']:.0f} s")

    def forget(self, stages: tuple[str, ...]) -> None:
        for stage in stages:
            (self.folder / "stamps" / f"{stage}.json").unlink(missing_ok=True)

    # --- stages ---------------------------------------------------------------------------------------------------

    def prepare(self, started: float) -> dict[str, Any]:
        """Raw text → words → pieces → fairseq's binary format."""
        from recipes.translation.data.prepare import prepare

        if self.data.prepared is not None:
            share(self.data.prepared.resolve(), self.space, self.recipe)
        facts = prepare(
            corpus_of(self.recipe), self.recipe.text, self.space,
            data_dir=self.data.folder, workers=self.data.workers, **self.data.options,
        )  # fmt: skip
        check_held_out(self.recipe, self.folder)
        made = sorted(path for path in self.data_bin.iterdir() if path.suffix != ".log")
        return self.space.finish("prepare", made, started, **facts)

    def train(self, started: float) -> dict[str, Any]:
        """fairseq-hydra-train; goes on from checkpoint_last.pt, which fairseq writes with every other checkpoint."""
        checkpoints.mend_last(self.checkpoints)
        conf = self.folder / "conf"
        tree = train.configuration(self.recipe, self.machine, self.data_bin, self.checkpoints)
        train.write_configuration(tree, conf)
        command = train.command(self.recipe, self.machine, conf)
        script = self.folder / "train.sh"
        script.write_text(shlex.join(command) + "\n", encoding="utf-8")
        if self.machine.nodes > 1 and not self.machine.launcher:
            nodes = " ".join(map(str, range(1, self.machine.nodes)))
            print(f"train     on the other nodes, with N = {nodes}: PET_NODE_RANK=N bash {script}", flush=True)
        commands.run_with_progress(command, self.train_log, self.space.lock, self.recipe.max_update)
        state = checkpoints.load(self.checkpoints / "checkpoint_last.pt")
        check_finite(state["model"], self.checkpoints / "checkpoint_last.pt")
        check_losses(self.train_log)
        updates = state["optimizer_history"][-1]["num_updates"]
        if updates < self.recipe.max_update and not self.may_stop_early():
            raise RecipeError(
                f"training ended after {updates} of {self.recipe.max_update} updates; see the end of "
                f"{self.train_log}, then run the same command again"
            )
        seconds = float(state["extra_state"]["previous_training_time"])  # a tensor, where several processes shared it
        return self.space.finish(
            "train", [], started, updates=updates, train_seconds=round(seconds, 1),
            parameters=sum(tensor.numel() for _, tensor in checkpoints.distinct(state["model"])),
            processes=tree["distributed_training"]["distributed_world_size"], batch_tokens=self.recipe.batch_tokens,
            command=commands.shown(command),
        )  # fmt: skip

    def may_stop_early(self) -> bool:
        """Whether the yaml lets training end before max_update."""
        limits = (self.recipe.get("optimization.max_epoch", 0), self.recipe.get("checkpoint.patience", -1))
        return limits[0] > 0 or limits[1] > 0 or self.recipe.get("optimization.stop_time_hours", 0) > 0

    def average(self, started: float) -> dict[str, Any]:
        """`macaron average` of the newest checkpoints."""
        command, inputs = checkpoints.average(
            self.checkpoints, self.recipe.average, self.model, self.folder / "average.log", self.space.lock,
            kind=self.recipe.checkpoint_kind,
        )  # fmt: skip
        names = [path.name for path in inputs]
        if len(names) < self.recipe.average:
            print(f"average   {len(names)} checkpoints, all there are, instead of {self.recipe.average}")
        return self.space.finish("average", [self.model], started, averaged=names, command=commands.shown(command))

    def translate_command(self) -> list[str]:
        settings = self.recipe.tree["generation"]
        options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        cpu = ["--cpu"] if self.machine.cpu else []
        return commands.fairseq(
            "generate", self.data_bin, "--user-dir", commands.USER_DIR, "--path", self.model,
            "--source-lang", self.source, "--target-lang", self.target, "--gen-subset", "test",
            *options, "--batch-size", 128, "--results-path", self.folder / "generate", *cpu,
            *commands.KEEP_LAST_BATCH,
        )  # fmt: skip

    def translate(self, started: float) -> dict[str, Any]:
        """fairseq-generate with beam search, in float32; the best hypotheses as words and as text."""
        command = self.translate_command()
        print("translate the test set with beam search ...", flush=True)
        commands.run(command, self.folder / "generate.log", self.space.lock, "fairseq-generate")
        output = self.folder / "generate" / "generate-test.txt"
        best = commands.hypotheses(output)
        lines = len(read_lines(self.folder / "text" / f"test.{self.target}"))
        if sorted(best) != list(range(lines)):
            raise RecipeError(
                f"{output}: {len(best)} translations for {lines} test sentences; see {self.folder / 'generate.log'}, "
                f"then run the same command again"
            )
        codec = Codec.open(self.data_bin)
        (self.folder / "hyp").mkdir(exist_ok=True)
        made = []
        forms: dict[str, Callable[[str], str]] = {"test.tok": codec.tokens, "test": codec.text}
        for name, form in forms.items():
            made.append(self.folder / "hyp" / f"{name}.{self.target}")
            made[-1].write_text("".join(form(best[n].pieces) + "\n" for n in range(lines)), encoding="utf-8")
        return self.space.finish("translate", [output, *made], started, command=commands.shown(command))

    def lines(self, kind: str, name: str = "test", language: str | None = None) -> list[str]:
        """The sentences of kind/name.language, of the target language by default."""
        return read_lines(self.folder / kind / f"{name}.{language or self.target}")

    def words(self) -> tuple[list[str], list[str], list[str]]:
        """Hypotheses, references and sources of the test set in Moses' words, whatever the model works on."""
        from recipes.translation.scoring import tokenize

        if self.recipe.text.tokenizer == "moses":
            return self.lines("hyp", "test.tok"), self.lines("text"), self.lines("text", language=self.source)
        raw = (("hyp", self.target), ("raw", self.target), ("raw", self.source))
        hypotheses, references, sources = (tokenize(self.lines(kind, language=x), x) for kind, x in raw)
        return hypotheses, references, sources

    def score(self, started: float) -> dict[str, Any]:
        """The papers' BLEU, sacreBLEU and chrF of the test set."""
        from recipes.translation import scoring

        hypotheses, references, _ = self.words()
        scores = scoring.score(self.lines("hyp"), self.lines("raw"), hypotheses, references, self.recipe.metrics)
        target = self.folder / "scores.json"
        write_json(target, scores)
        return self.space.finish("score", [target], started, shown=scoring.show(scores))

    def report(self, started: float) -> dict[str, Any]:
        from recipes.translation.report import write_report

        return self.space.finish("report", write_report(self), started)

    def release(self, started: float) -> dict[str, Any]:
        """The model as one folder that takes raw text, checked by translating with it."""
        target = self.folder / "release"
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that was cut short
        check = export(self.folder, target)
        return self.space.finish("release", sorted(p for p in target.iterdir() if p.is_file()), started, check=check)

    def scores(self) -> dict[str, Any]:
        scores: dict[str, Any] = read_json(self.folder / "scores.json")
        return scores


def corpus_of(recipe: Recipe) -> Corpus:
    module = import_module(f"recipes.{recipe.name}.corpus")
    corpus: Corpus = module.corpus(recipe.valid) if recipe.valid else module.CORPUS
    return corpus


def share(other: Path, space: Workspace, recipe: Recipe) -> None:
    """Take over what another run prepared: its files by hard link (by copy from another file system), and its stamps.

    Raises:
        RecipeError: nothing is prepared there, with other text settings, or the files have changed since.
    """
    if other == space.folder:
        raise RecipeError(f"--prepared {other}: is the folder of this run itself; leave the option out")
    stamps = sorted((other / "stamps").glob(PREPARED))
    if not (other / "stamps" / "prepare.json").is_file() or not stamps:
        raise RecipeError(
            f"--prepared {other}: no run whose data is prepared; do that first with `python -m recipes.{recipe.name} "
            f"prepare --out {other}`"
        )
    theirs, ours = read_json(other / "settings.json"), recipe.settings()
    names = [name for name in ours if name in ("name", "valid") or name.startswith("text.")]
    differing = [f"{name} = {theirs.get(name)!r} there, {ours[name]!r} here" for name in names
                 if theirs.get(name) != ours[name]]  # fmt: skip
    if differing:
        raise RecipeError(f"--prepared {other}: prepared otherwise ({'; '.join(differing)}); prepare the data anew")
    made = {path: files_of(read_json(path), path) for path in stamps}
    for name, sha256 in [entry for files in made.values() for entry in files.items()]:
        source, target = inside(other, name), inside(space.folder, name)
        if name.partition("/")[0] not in PREPARED_FOLDERS or target.is_dir():
            raise RecipeError(f"--prepared {other}: a stamp names {name!r}, which no preparation makes; refused")
        if not source.is_file():
            raise RecipeError(f"--prepared {other}: {name} is gone since it was made; prepare the data there anew")
        if digest(source) != sha256:
            raise RecipeError(f"--prepared {other}: {name} has changed since it was made; prepare the data there anew")
    for path, files in made.items():
        for name in files:
            source, target = (other / name).resolve(), space.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        write_json(space.folder / "stamps" / path.name, read_json(path))
        space.stamp(path.stem)  # the files must be what they were
    print(f"prepare   shared with {other}")
