"""The stages of one warm start: teacher, start, budget, distil, report."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any

from macaron.bert.hub import load
from macaron.bert.published import copy_sentence_transformers
from macaron.bracketing import Widths

from ..bert_pretrain import training
from ..bert_pretrain.examples import mapped
from ..bert_pretrain.pipeline import write_metrics
from ..common.errors import RecipeError
from ..common.workspace import Made, Stage, Workspace, files_of, read_json, write_json
from . import distill, fit
from .settings import WarmStartSettings
from .teacher import Teacher, converted, encoder_of, fingerprint, is_ours, objective, read_teacher
from .text import Collator, TeachersText, encoded, held_out

STAGES = ("teacher", "start", "budget", "distil", "report")
UPDATES = 1000  # where no budget is given
COLUMNS = {"update": "step", "loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm",
           "tokens_per_second": "tokens_per_second", "distance": "eval_distance", "cosine": "eval_cosine"}  # fmt: skip


def widths_of(settings: WarmStartSettings, neurons: int) -> Widths:
    """
    Raises:
        RecipeError: widths that do not divide the teacher's FFN.
    """
    given, halves = settings.start, Widths.halves(neurons)
    first, second = given.first_width, given.second_width
    if first is None:
        first = halves.first if second is None else max(1, neurons - second)
    if second is None:
        second = max(1, min(neurons, neurons - first))
    try:
        return Widths(first, second).check(neurons)
    except ValueError as error:
        raise RecipeError(f"--first-width, --second-width: {error}") from error


class WarmStart:
    """One student in one folder.

    teacher/       a foreign teacher as a Macaron BERT of splitting lie; of our own only its name is kept
    data/          the text, unless --data names a folder that runs share
    start/         the student before the first update; start.json: every possibility with its distance
    checkpoints/   Trainer's; the last two
    model/         what Auto classes, sentence-transformers and recipes.glue load
    metrics.csv, trainer_state.json, distance.png, report.html, result.json
    """

    def __init__(
        self, settings: WarmStartSettings, teacher: Path, files: list[Path], prepared: Path, space: Workspace,
        machine: training.Devices,
    ):  # fmt: skip
        self.settings = settings
        self.given = teacher
        self.files = files
        self.prepared = prepared
        self.space = space
        self.folder = space.folder
        self.machine = machine
        self.read: Teacher | None = None

    def run(self) -> dict[str, Any]:
        works = (self.convert, self.start, self.budget, self.distil, self.report)
        stages = [Stage(name, work) for name, work in zip(STAGES, works, strict=True)]
        self.space.run(stages, last=STAGES[0])
        self.prepare()  # every time: it says whether the text is still the same
        self.space.run(stages, say=lambda line: line.startswith(STAGES[0]) or print(line, flush=True))
        result: dict[str, Any] = read_json(self.folder / "result.json")
        return result

    # --- teacher and text -----------------------------------------------------------------------------------

    @property
    def teacher_folder(self) -> Path:
        return self.given if is_ours(self.given) else self.folder / "teacher"

    def teacher(self) -> Teacher:
        if self.read is None:
            self.read = read_teacher(self.teacher_folder)
        return self.read

    def convert(self) -> Made:
        notes = [] if is_ours(self.given) else converted(self.given, self.folder / "teacher")
        read = self.teacher()
        widths_of(self.settings, read.encoder.config.intermediate_size)
        self.check_length(read)
        files = [] if is_ours(self.given) else [p for p in sorted((self.folder / "teacher").rglob("*")) if p.is_file()]
        return Made(files, notes=notes, parameters=read.model.num_parameters())

    def check_length(self, read: Teacher) -> None:
        most = read.encoder.config.max_position_embeddings
        if self.settings.text.max_length > most:
            raise RecipeError(
                f"max_length is {self.settings.text.max_length}, but the teacher has {most} positions; change "
                f"--max-length"
            )

    def prepare(self) -> None:
        """The text in the teacher's word pieces, which stays the one that the run was begun with."""
        read = self.teacher()
        data = self.settings.text.examples(objective(read.encoder.config), len(read.tokenizer))
        TeachersText(data, self.files, self.prepared, read.tokenizer).run()
        stamp = self.prepared / "stamps" / "examples.json"
        now = files_of(read_json(stamp), stamp)
        record = self.folder / "data.json"
        if not record.exists():
            write_json(record, now)
        if read_json(record) != now:
            raise RecipeError(
                f"{self.prepared}: not the examples that {self.folder} was begun with; results are not mixed. Name "
                f"that --data, or another --out, or use --restart"
            )

    def sentences(self) -> list[Any]:
        texts = held_out(mapped(self.prepared / "documents.valid.arrow"), self.settings.start.sentences)
        most = self.teacher().encoder.config.max_position_embeddings
        return list(encoded(texts, self.teacher().tokenizer, min(most, self.settings.text.max_length)))

    # --- stages ---------------------------------------------------------------------------------------------

    def start(self) -> Made:
        """Try the possibilities, measure each, keep the nearest."""
        read, chosen = self.teacher(), self.settings.start
        widths = widths_of(self.settings, read.encoder.config.intermediate_size)
        sentences = self.sentences()
        batches = self.calibration()
        whole = widths.second == read.encoder.config.intermediate_size
        tried = [p for p in fit.POSSIBILITIES if chosen.start in ("best", p.name)]
        if whole and chosen.start == "best":
            tried = tried[:1]  # exact: there is nothing to choose, nor to fit
        rows: list[dict[str, Any]] = []
        best: Any = None
        print(f"{'start':<12} {'distance':>9} {'cosine':>8}", flush=True)
        for possibility in tried:
            student = fit.begin(possibility, read.model, widths, batches, chosen.ridge)
            apart = fit.distance(encoder_of(student), read.encoder, sentences)
            row: dict[str, Any] = {**dataclasses.asdict(possibility), **apart}
            rows.append(row)
            if not math.isfinite(row["distance"]):
                raise RecipeError(
                    f"start '{possibility.name}': its states are no numbers; give more --fit-tokens or a greater "
                    f"--ridge"
                )
            print(f"{row['name']:<12} {row['distance']:>9.4f} {row['cosine']:>8.4f}  {row['meaning']}", flush=True)
            if best is None or row["distance"] < best[0]["distance"]:
                best = row, student
        row, student = best
        self.save(student, self.folder / "start")
        target = self.folder / "start.json"
        write_json(target, {"widths": list(widths), "exact": whole, "chosen": row["name"], "tried": rows})
        made = sorted(path for path in (self.folder / "start").rglob("*") if path.is_file())
        return Made([target, *made], chosen=row["name"])

    def calibration(self) -> list[Any]:
        examples = mapped(self.prepared / "train.arrow")
        facts = read_json(self.prepared / "stamps" / "examples.json")
        number = math.ceil(self.settings.start.fit_tokens / facts["train"]["tokens_per_example"])
        passes = training.Passes(training.spread(examples, number), number, seed=None)
        collate = Collator(self.teacher().tokenizer)
        count = min(number, len(examples))
        return [collate(passes.__getitems__(range(n, min(n + 16, count)))) for n in range(0, count, 16)]

    def trainer(self, updates: int) -> distill.Distillation:
        student = load(self.folder / "start")
        return distill.trainer_of(
            self.settings, updates, self.teacher(), student, self.prepared, self.sentences(), self.machine,
            self.folder / "checkpoints",
        )  # fmt: skip

    def budget(self) -> Made:
        """The number of updates: given, or what fits into the minutes; from then on it stays."""
        given = self.settings.distill
        if given.minutes is None:
            return Made(updates=UPDATES if given.updates is None else given.updates)
        updates, seconds = distill.updates_within(given.minutes, self.trainer(given.eval_every))
        print(f"budget    {seconds:.2f} s an update: {updates:,} updates in {given.minutes:g} minutes", flush=True)
        return Made(updates=updates, seconds_of_an_update=round(seconds, 3))

    def distil(self) -> Made:
        budget = self.space.stamp("budget")
        assert budget is not None
        trainer = distill.distilled(self.trainer(budget["updates"]))
        model = trainer.accelerator.unwrap_model(trainer.model)
        config = self.teacher().model.config
        for name in distill.DROPOUT:
            setattr(model.config, name, getattr(config, name))
        model.config.warm_started_from = {"teacher": self.given.resolve().name, "updates": budget["updates"]}
        self.save(model.requires_grad_(True), self.folder / "model")
        write_metrics(self.folder / "metrics.csv", trainer.state.log_history, COLUMNS)
        trainer.state.save_to_json(str(self.folder / "trainer_state.json"))
        last = {k.removeprefix("eval_"): v for row in trainer.state.log_history for k, v in row.items() if "eval_" in k}
        begun = min(row["distance"] for row in read_json(self.folder / "start.json")["tried"])
        if last["distance"] > begun:
            print(
                f"note      the distance is {last['distance']:.4f} and was {begun:.4f}: the start, in "
                f"{self.folder / 'start'}, is nearer to the teacher; more --updates or a lower --lr go beyond it",
                flush=True,
            )
        made = sorted(path for path in (self.folder / "model").rglob("*") if path.is_file())
        return Made(
            [*made, self.folder / "metrics.csv", self.folder / "trainer_state.json"],
            updates=budget["updates"], parameters=model.num_parameters(), final=last,
        )  # fmt: skip

    def save(self, model: Any, folder: Path) -> None:
        """A folder with the model, the teacher's tokenizer, and what sentence-transformers keeps beside it."""
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        self.teacher().tokenizer.save_pretrained(partial)
        notes: list[str] = []
        copy_sentence_transformers(self.teacher_folder, partial, notes)
        for note in notes:
            print(f"note      {note}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def report(self) -> Made:
        from .report import write_report

        return Made(write_report(self.folder, self.prepared, self.space))


def record(settings: WarmStartSettings, teacher: Path) -> dict[str, Any]:
    """For settings.json: with another teacher, or the same after a change, it is another run."""
    return {
        "teacher": {"name": teacher.resolve().name, "sha256": fingerprint(teacher)},
        "splitting": "strang",
        **dataclasses.asdict(settings),
    }
