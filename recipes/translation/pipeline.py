"""The stages of a translation run: prepare, train, average, translate, score, report, release. Each is done once."""

from __future__ import annotations

import os
import random
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import multistep
from ..common.divergence import check_finite
from ..common.errors import RecipeError
from ..common.main import command_shown, module
from ..common.provenance import environment
from ..common.workspace import (
    Made,
    Stage,
    Workspace,
    digest,
    files_of,
    inside,
    read_json,
    read_lines,
    write_json,
)
from . import checkpoints, commands, train
from .commands import check_losses
from .data.corpus import Corpus
from .data.own import Files, OwnCorpus
from .held_out import check_held_out
from .initial import Release
from .recipe import Recipe
from .release import check_architecture, export
from .text import Codec
from .train import Machine

if TYPE_CHECKING:
    from .scoring import MetricSet

STAGES = ("prepare", "train", "average", "translate", "score", "report", "release")

NOISE = "noise"  # between score and report, where it is asked for

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
        files: the two of each split of a corpus of one's own, that were named.
    """

    folder: Path | None = None
    prepared: Path | None = None
    workers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)


class Pipeline:
    """One run in one folder.

    raw/, text/, bpe/, data-bin/   the corpus, from raw text to fairseq's binary format
    conf/train.yaml, train.sh      what is trained, as fairseq-hydra-train takes it
    checkpoints/, train.log        what came of it
    average.pt                     the model that is evaluated
    generate/, hyp/, scores.json   its translations, pieces joined (test.tok.L) and as text (test.L), and their scores
    noise/                         the same of the test set with typing errors, where it was asked for
    report/, release/              for people, and for users
    """

    def __init__(
        self,
        recipe: Recipe,
        space: Workspace,
        machine: Machine | None = None,
        data: Data | None = None,
        release: Release | None = None,
        tensorboard: bool = False,
        noise: float = 0.0,
    ):
        self.recipe = recipe
        self.space = space
        self.machine = machine or Machine()
        self.data = data or Data()
        self.begins_with = release
        self.tensorboard = tensorboard
        self.noise = noise
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
        self.check_corpus()
        stages = STAGES[: STAGES.index(last) + 1]
        if self.space.stamp("train") is None and "train" in stages:  # before hours go into what cannot be trained
            self.machine.processes_for(self.recipe)
            train.check_names(self.recipe)
            train.check_model(self.recipe)
            if self.tensorboard:
                train.check_tensorboard()
            if "release" in stages:
                check_architecture(self.recipe)
        work = (self.prepare, self.train, self.average, self.translate, self.score, self.report, self.release)
        plan = {name: Stage(name, done) for name, done in zip(STAGES, work, strict=True)}
        plan["release"] = Stage("release", self.release, needs=STAGES[: STAGES.index("report")])
        there = self.space.stamp(NOISE)
        self.noise = self.noise or (there["share"] if there else 0.0)
        if there and there["share"] != self.noise:
            self.space.forget([NOISE])
        if self.noise:
            order = list(plan.values())
            order.insert(STAGES.index("report"), Stage(NOISE, self.score_noised))
            last = NOISE if last == "score" else last
            self.space.run(order, last)
        else:
            self.space.run(list(plan.values()), last)

    def check_corpus(self) -> None:
        """
        Raises:
            RecipeError: the corpus is another than that which was prepared here; what is gone since is not asked for.
        """
        stamp = self.space.folder / "stamps" / "prepare-text.json"
        if self.data.prepared is not None or not stamp.is_file():
            return
        inputs = read_json(stamp).get("inputs")
        made_of = set(inputs.values()) if isinstance(inputs, dict) else set()
        there: list[Path] = []
        with suppress(RecipeError):
            there = corpus_of(self.recipe, self.data.files).files_in(self.data.folder)
        if made_of and (others := [str(path) for path in there if digest(path) not in made_of]):
            raise RecipeError(
                f"{', '.join(others)}: not what was prepared in {self.folder}, by the sha256 in {stamp}; put back what "
                f"was there, or give another folder with --out, or --restart to set this one aside and begin anew"
            )

    # --- stages ---------------------------------------------------------------------------------------------------

    def prepare(self) -> Made:
        """Raw text → words → pieces → fairseq's binary format."""
        from .data.prepare import prepare

        if self.data.prepared is not None:
            share(self.data.prepared.resolve(), self.space, self.recipe)
        options = dict(self.data.options)
        if self.begins_with:
            options |= {"bpe_codes": self.begins_with.codes, "dictionaries": self.begins_with.folder}
        facts = prepare(
            corpus_of(self.recipe, self.data.files), self.recipe.text, self.space,
            data_dir=self.data.folder, workers=self.data.workers, **options,
        )  # fmt: skip
        check_held_out(self.recipe, self.folder)
        made = sorted(path for path in self.data_bin.iterdir() if path.suffix != ".log")
        return Made(made, **facts)

    def train(self) -> Made:
        """fairseq-hydra-train; goes on from checkpoint_last.pt, which fairseq writes with every other checkpoint."""
        checkpoints.mend_last(self.checkpoints)
        conf = self.folder / "conf"
        tree = train.configuration(
            self.recipe, self.machine, self.data_bin, self.checkpoints,
            initial=self.begins_with.checkpoint if self.begins_with else None,
            tensorboard=self.folder / "tensorboard" if self.tensorboard else None,
        )  # fmt: skip
        train.write_configuration(tree, conf)
        command = train.command(self.recipe, self.machine, conf)
        script = self.folder / "train.sh"
        script.write_text(shlex.join(command) + "\n", encoding="utf-8")
        if self.machine.nodes > 1 and not self.machine.launcher:
            nodes = " ".join(map(str, range(1, self.machine.nodes)))
            print(f"train     on the other nodes, with N = {nodes}: PET_NODE_RANK=N bash {script}", flush=True)
        last = self.checkpoints / "checkpoint_last.pt"
        if not (last.exists() and self.is_complete(checkpoints.load(last, mmap=True))):
            commands.run_with_progress(command, self.train_log, self.space.lock, self.recipe.max_update)
        state = checkpoints.load(last)
        check_finite(state["model"], last)
        check_losses(self.train_log)
        updates = updates_of(state)
        stopped = updates < self.recipe.max_update and self.is_complete(state)
        if stopped:
            print(f"train     stopped early, after {updates:,} of {self.recipe.max_update:,} updates")
        if updates < self.recipe.max_update and not self.may_stop_early():
            raise RecipeError(
                f"training ended after {updates} of {self.recipe.max_update} updates; see the end of "
                f"{self.train_log}, then run the same command again"
            )
        seconds = float(state["extra_state"]["previous_training_time"])  # a tensor, where several processes shared it
        return Made(
            updates=updates, train_seconds=round(seconds, 1),
            parameters=sum(tensor.numel() for _, tensor in checkpoints.distinct(state["model"])),
            processes=tree["distributed_training"]["distributed_world_size"], batch_tokens=self.recipe.batch_tokens,
            command=commands.shown(command), **({"best": best_validation(state)} if self.recipe.patience > 0 else {}),
        )  # fmt: skip

    def is_complete(self, state: dict[str, Any]) -> bool:
        """Whether a checkpoint is the end of the training: fairseq itself would make one more update of it."""
        if updates_of(state) >= self.recipe.max_update:
            return True
        waited = (state["extra_state"].get("patience") or {}).get("num_runs", 0)
        return 0 < self.recipe.patience <= waited

    def may_stop_early(self) -> bool:
        """Whether the yaml lets training end before max_update."""
        limits = (self.recipe.get("optimization.max_epoch", 0), self.recipe.get("checkpoint.patience", -1))
        return limits[0] > 0 or limits[1] > 0 or self.recipe.get("optimization.stop_time_hours", 0) > 0

    def average(self) -> Made:
        """`macaron average` of the newest checkpoints."""
        command, inputs = checkpoints.average(
            self.checkpoints, self.recipe.average, self.model, self.folder / "average.log", self.space.lock,
            kind=self.recipe.checkpoint_kind,
        )  # fmt: skip
        names = [path.name for path in inputs]
        if len(names) < self.recipe.average:
            print(f"average   {len(names)} checkpoints, all there are, instead of {self.recipe.average}")
        return Made([self.model], averaged=names, command=commands.shown(command))

    def translate_command(self) -> list[str]:
        settings = self.recipe.tree["generation"]
        options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        cpu = ["--cpu"] if self.machine.cpu else []
        return commands.fairseq(
            "generate", self.data_bin, "--user-dir", commands.USER_DIR, "--path", self.model,
            "--source-lang", self.source, "--target-lang", self.target, "--gen-subset", "test",
            *options, "--batch-size", commands.BATCH, "--results-path", self.folder / "generate", *cpu,
            *commands.KEEP_LAST_BATCH,
        )  # fmt: skip

    def translate(self) -> Made:
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
        return Made([output, *made], command=commands.shown(command))

    def lines(self, kind: str, name: str = "test", language: str | None = None) -> list[str]:
        """The sentences of kind/name.language, of the target language by default."""
        return read_lines(self.folder / kind / f"{name}.{language or self.target}")

    @property
    def metrics(self) -> MetricSet:
        from .scoring import metric_set

        return metric_set(self.recipe.metrics, self.recipe.text)

    def words(
        self, text: list[str] | None = None, tokens: list[str] | None = None
    ) -> tuple[list[str], list[str], list[str]]:
        """Hypotheses, references and sources of the test set in Moses' words, whatever the model works on; as text
        where no paper counts words. Other hypotheses than the run's are given as text and as tokens.
        """
        from .scoring import tokenize

        if not self.metrics.published:
            return text or self.lines("hyp"), self.lines("raw"), self.lines("raw", language=self.source)
        if self.recipe.text.tokenizer == "moses":
            hypotheses = tokens or self.lines("hyp", "test.tok")
            return hypotheses, self.lines("text"), self.lines("text", language=self.source)
        raw = [(self.lines("raw", language=language), language) for language in (self.target, self.source)]
        texts = [(text or self.lines("hyp"), self.target), *raw]
        hypotheses, references, sources = (tokenize(lines, language) for lines, language in texts)
        return hypotheses, references, sources

    def score(self) -> Made:
        """The papers' BLEU, sacreBLEU and chrF of the test set."""
        from . import scoring

        hypotheses, references, _ = self.words()
        tokenized = (hypotheses, references) if self.metrics.published else (None, None)
        scores = scoring.score(self.lines("hyp"), self.lines("raw"), *tokenized, self.metrics)
        target = self.folder / "scores.json"
        write_json(target, scores)
        return Made([target], shown=scoring.show(scores))

    def score_noised(self) -> Made:
        """The scores of the same model where a share of the source's characters is hit by typing errors."""
        from . import scoring
        from .noise import noise_file

        folder = self.folder / NOISE
        shutil.rmtree(folder, ignore_errors=True)  # of another share, or of an attempt that was cut short
        folder.mkdir()
        made = [folder / name for name in (f"test.{self.source}", f"test.bpe.{self.source}", "generate.txt")]
        raw, pieces, output = made
        count, hit, characters = noise_file(self.folder / "raw" / f"test.{self.source}", raw, self.noise)
        codec = Codec.open(self.data_bin)
        pieces.write_text("".join(codec.pieces(line) + "\n" for line in read_lines(raw)), encoding="utf-8")
        print(f"noise     translate with {hit} of {characters} characters hit ...", flush=True)
        command = self.interactive_command(pieces)
        commands.run(command, output, self.space.lock, "fairseq-interactive")
        best = commands.hypotheses(output)
        if sorted(best) != list(range(count)):
            raise RecipeError(f"{output}: {len(best)} translations for {count} sentences; run the same command again")
        tokens, text = ([form(best[n].pieces) for n in range(count)] for form in (codec.tokens, codec.text))
        made.append(folder / f"test.{self.target}")
        made[-1].write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
        hypotheses, references, _ = self.words(text, tokens)
        tokenized = (hypotheses, references) if self.metrics.published else (None, None)
        scores = scoring.score(text, self.lines("raw"), *tokenized, self.metrics)
        made.append(folder / "scores.json")
        write_json(made[-1], scores)
        return Made(
            made, share=self.noise, hit=hit, characters=characters, scores=scores, shown=scoring.show(scores),
            command=commands.shown(command),
        )  # fmt: skip

    def interactive_command(self, pieces: Path) -> list[str]:
        """`translate_command` for a file of pieces."""
        settings = self.recipe.tree["generation"]
        options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        cpu = ["--cpu"] if self.machine.cpu else []
        return commands.fairseq(
            "interactive", self.data_bin, "--user-dir", commands.USER_DIR, "--path", self.model,
            "--source-lang", self.source, "--target-lang", self.target, "--input", pieces,
            *options, "--batch-size", commands.BATCH, "--buffer-size", 4096, *cpu,
        )  # fmt: skip

    def report(self) -> Made:
        from .figures import attention_sample, cross_attention
        from .report import page

        result = self.result()
        sample = attention_sample(result["samples"])
        attention = cross_attention(self.model, self.data_bin, sample["source pieces"], sample["hypothesis pieces"])
        folder = self.folder / "report"
        made = page(result, attention).write(folder, "index.html")
        write_json(folder / "result.json", result)
        return Made([*made, folder / "result.json"])

    def result(self) -> dict[str, Any]:
        """Everything a row of results needs: scores, data, settings, commands, times, versions, hardware."""
        from .report import PACKAGES, SAMPLES
        from .scoring import bleu_by_length

        stamps = {stage: self.space.stamp(stage) or {} for stage in STAGES[: STAGES.index("report")]}
        texts = [self.lines("raw", language=self.source), self.lines("raw"), self.lines("hyp")]
        best = commands.hypotheses(self.folder / "generate" / "generate-test.txt")
        pieces = [self.lines("bpe", language=self.source), [found.pieces for _, found in sorted(best.items())]]
        rows = list(zip(*texts, *pieces, strict=True))
        noised = self.space.stamp(NOISE)
        names = ("source", "reference", "hypothesis", "source pieces", "hypothesis pieces")
        chosen = random.Random(1).sample(rows, min(SAMPLES, len(rows)))
        two_step = dict(self.recipe.scheme.options).get("depth_rule") == "multistep"
        return {
            "recipe": self.recipe.name,
            "title": self.recipe.title,
            "languages": [self.source, self.target],
            "scores": self.scores(),
            **({"noised": {name: noised[name] for name in ("share", "hit", "characters", "scores")}} if noised else {}),
            "by_length": bleu_by_length(*self.words(), self.metrics),
            "data": {key: value for key, value in stamps["prepare"].items() if key not in ("files", "seconds")},
            **{name: stamps["train"][name] for name in ("parameters", "updates", "processes")},
            "averaged": stamps["average"]["averaged"],
            "best_validation": stamps["train"].get("best"),
            "seconds": {
                "training, over all attempts": stamps["train"]["train_seconds"],
                **{stage: stamp["seconds"] for stage, stamp in stamps.items()},
            },
            "settings": read_json(self.folder / "settings.json"),
            "commands": {name: stamps[name]["command"] for name in ("train", "average", "translate")},
            "configuration": (self.folder / "conf" / "train.yaml").read_text(encoding="utf-8"),
            "environment": environment(command_shown(self.recipe.name), PACKAGES),
            "samples": [dict(zip(names, row, strict=True)) for row in chosen],
            "learning_curve_bits_per_token": commands.learning_curve(self.train_log),
            **({"multistep": multistep.weights(checkpoints.load(self.model)["model"], self.model)} if two_step else {}),
        }

    def release(self) -> Made:
        """The model as one folder that takes raw text, checked by translating with it."""
        target = self.folder / "release"
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that was cut short
        check = export(self.folder, target)
        return Made(sorted(path for path in target.iterdir() if path.is_file()), check=check)

    def scores(self) -> dict[str, Any]:
        scores: dict[str, Any] = read_json(self.folder / "scores.json")
        return scores


def updates_of(state: dict[str, Any]) -> int:
    return int(state["optimizer_history"][-1]["num_updates"])


def best_validation(state: dict[str, Any]) -> float | None:
    """What early stopping has looked at, at its best."""
    best = state["extra_state"].get("best")
    return None if best is None else float(best)


def corpus_of(recipe: Recipe, files: dict[str, Files] | None = None) -> Corpus:
    if recipe.own:
        return OwnCorpus(recipe.own.title, *recipe.text.languages, recipe.own.rules, own=recipe.own, files=files or {})
    found = import_module(module(f"{recipe.name}.corpus"))
    corpus: Corpus = found.corpus(recipe.valid) if recipe.valid else found.CORPUS
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
            f"--prepared {other}: no run whose data is prepared; do that first with `python -m {module(recipe.name)} "
            f"prepare --out {other}`"
        )
    theirs, ours = read_json(other / "settings.json"), recipe.settings()
    names = [
        name for name in sorted({*ours, *theirs})
        if name in ("name", "valid", "init_from") or name.startswith(("text.", "corpus."))
    ]  # fmt: skip
    differing = [f"{name} = {theirs.get(name)!r} there, {ours.get(name)!r} here" for name in names
                 if theirs.get(name) != ours.get(name)]  # fmt: skip
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
