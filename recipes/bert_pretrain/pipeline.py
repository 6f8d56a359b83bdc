"""The stages: clean, tokenizer, examples (the prepared folder, which runs can share); train, report (one run)."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.divergence import check_finite
from ..common.errors import RecipeError
from ..common.workspace import Made, Stage, Workspace, digest, files_of, read_json, write_json
from . import text
from .settings import ExampleSettings, PretrainSettings

SPLITS = ("train", "valid")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ExamplePreparation:
    """Text files → examples on the disk. Memory holds one document, one buffer and 16 bytes for each document.

    documents.{train,valid}.arrow   cleaned text
    tokenizer/                      what AutoTokenizer loads
    tokens.{train,valid}.arrow      ids without special tokens; removed when the examples are made
    {train,valid}.arrow             examples
    """

    def __init__(self, data: ExampleSettings, files: list[Path], folder: Path):
        self.data = data
        self.folder = folder
        record = folder / "settings.json"
        if not files and not record.exists():
            raise RecipeError(f"{folder}: nothing is prepared there; give the text files with --text")
        self.files = files
        named = [[path.name, size_of(path)] for path in files] if files else read_json(record).get("text")
        self.settings = {**dataclasses.asdict(data), "text": named}

    def run(self) -> None:
        """All stages that are not done; waits when another run is preparing the same folder."""
        stages = (Stage("clean", self.clean), Stage("tokenizer", self.tokenizer), Stage("examples", self.examples))
        with Workspace(self.folder, self.settings, wait=True) as space:
            self.check_text()
            space.run(stages)

    def check_text(self) -> None:
        """The files are still those that were cleaned: their names and sizes, which are settings, do not say it."""
        stamp = self.folder / "stamps" / "clean.json"
        sources = read_json(stamp)["sources"] if self.files and stamp.exists() else []
        for path, source in zip(self.files, sources, strict=False):
            if digest(path) != source["sha256"]:
                raise RecipeError(
                    f"--text {path}: has changed since {self.folder} was prepared from it; results are not mixed. Put "
                    f"it back, or give another folder"
                )

    def path(self, kind: str, split: str) -> Path:
        return self.folder / f"{kind}.{split}.arrow"

    # --- stages ---------------------------------------------------------------------------------------------

    def clean(self) -> Made:
        from .examples import TEXT, ArrowFile

        if not self.files:
            raise RecipeError(f"{self.folder}: the text is not cleaned yet; give the text files with --text")
        cleaner = text.Cleaner(self.data.min_characters, self.data.valid_fraction, self.data.data_seed)
        sources = []
        with (
            ArrowFile(self.path("documents", "train"), TEXT) as train,
            ArrowFile(self.path("documents", "valid"), TEXT) as valid,
            tqdm(desc="clean", unit="document") as bar,
        ):
            for path in self.files:
                before = cleaner.counts.documents
                for document in text.documents(text.lines(path), self.data.blank_lines):
                    split = cleaner.split(document)
                    if split:
                        (train if split == "train" else valid).write(document)
                    bar.update()
                count = cleaner.counts.documents - before
                sources.append({"name": path.name, "bytes": size_of(path), "sha256": digest(path), "documents": count})
        counts = dataclasses.asdict(cleaner.counts)
        if not train.written or not valid.written:
            raise RecipeError(
                f"{cleaner.counts.documents} documents in {len(self.files)} files leave {train.written} for training "
                f"and {valid.written} held out; give more text, or change --blank-lines (now {self.data.blank_lines} "
                f"blank lines end a document), --valid-fraction ({self.data.valid_fraction}) or --min-characters"
            )
        files = [self.path("documents", split) for split in SPLITS]
        return Made(files, sources=sources, **counts)

    def tokenizer(self) -> Made:
        from . import tokenizer

        trained = tokenizer.train(
            lambda: self.texts("train", "tokenizer"),
            self.data.vocab_size,
            self.data.lowercase,
            self.data.max_length,
        )
        folder = self.folder / "tokenizer"
        trained.save_pretrained(folder)
        return Made([folder / name for name in TOKENIZER_FILES], size=len(trained))

    def texts(self, split: str, what: str, batch: int = 16) -> Iterator[list[str]]:
        """Documents in small batches, off the disk."""
        from .examples import mapped

        documents = mapped(self.path("documents", split))
        with tqdm(total=len(documents), desc=f"{what} {split}", unit="document") as bar:
            for rows in documents.iter(batch_size=batch):
                yield rows["text"]
                bar.update(len(rows["text"]))

    def examples(self) -> Made:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        facts = {split: self.split_examples(split, tokenizer) for split in SPLITS}
        return Made([self.folder / f"{split}.arrow" for split in SPLITS], **facts)

    def split_examples(self, split: str, tokenizer: Any) -> dict[str, Any]:
        from . import examples

        d = self.data
        tokens = self.path("tokens", split)
        count = unknown = used = 0
        documents = (document for batch in self.texts(split, "tokenise") for document in batch)
        with examples.ArrowFile(tokens, examples.TOKENS) as file:
            for document in examples.tokenize(documents, tokenizer, text.sentences, (d.max_length - 3) // 2):
                file.write(*document)
                count += len(document.ids)
                unknown += int((document.ids == tokenizer.unk_token_id).sum())
        stored = examples.Documents(tokens)
        marks = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        if d.objective == "mlm":
            made = examples.packed(stored, d.max_length, *marks)
        elif len(stored) > 1:
            made = examples.pairs(stored, d.max_length, d.short_fraction, d.data_seed, *marks)
        else:
            raise RecipeError(
                f"{len(stored)} {split} document, but next-sentence pairs need two at least; give more text, "
                f"or raise --valid-fraction, or use --objective mlm"
            )
        with (
            examples.ArrowFile(self.folder / f"{split}.arrow", examples.EXAMPLES) as file,
            tqdm(desc=f"examples {split}", unit="example") as bar,
        ):
            for example in made:
                file.write(*example)
                used += len(example.input_ids)
                bar.update()
        del stored
        tokens.unlink()
        return {
            "tokens": count,
            "unknown": unknown,
            "examples": file.written,
            "tokens_per_example": round(used / file.written, 3),
        }


class PretrainRun:
    """One model in one folder.

    data.json      the sha256 of the tokenizer and the examples that it is trained on
    checkpoints/   Trainer's; the last two
    model/         what Auto classes load: weights, configuration, tokenizer, model card
    metrics.csv, trainer_state.json, loss.png, throughput.png, report.html, result.json
    """

    def __init__(self, settings: PretrainSettings, prepared: Path, space: Workspace, args: Any):
        self.settings = settings
        self.prepared = prepared
        self.space = space
        self.folder = space.folder
        self.args = args
        self.keep_data()

    def keep_data(self) -> None:
        """The run is trained on the data that it began with, whatever folder --data names now.

        Raises:
            RecipeError: this is other data: other examples, or the same pieces under other numbers.
        """
        stamps = [self.prepared / "stamps" / f"{stage}.json" for stage in ("tokenizer", "examples")]
        now = {name: sha256 for path in stamps for name, sha256 in files_of(read_json(path), path).items()}
        record = self.folder / "data.json"
        if not record.exists():
            write_json(record, now)
        differing = sorted(name for name, sha256 in read_json(record).items() if now.get(name) != sha256)
        if differing:
            raise RecipeError(
                f"--data {self.prepared}: not the data that {self.folder} was begun with ({', '.join(differing)} "
                f"differ); results are not mixed. Name that data, or another --out, or use --restart"
            )

    def run(self) -> dict[str, Any]:
        self.space.run([Stage("train", self.train), Stage("report", self.report)])
        result: dict[str, Any] = read_json(self.folder / "result.json")
        return result

    def train(self) -> Made:
        trainer = train(self.settings, self.prepared, self.args)
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.config.sparse_prediction = False  # an economy of training; users of a model expect all logits
        partial, final = self.folder / "model.part", self.folder / "model"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        trainer.processing_class.save_pretrained(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        history = trainer.state.log_history
        write_metrics(self.folder / "metrics.csv", history)
        trainer.state.save_to_json(str(self.folder / "trainer_state.json"))
        files = [*sorted(final.iterdir()), self.folder / "metrics.csv", self.folder / "trainer_state.json"]
        parameters = {
            "all": model.num_parameters(),
            "embeddings": sum(p.numel() for n, p in model.named_parameters() if "embeddings" in n),
        }
        return Made(
            files,
            updates=trainer.state.global_step, processes=self.args.world_size, parameters=parameters,
            device_batch=self.args.per_device_train_batch_size, accumulation=self.args.gradient_accumulation_steps,
            final={k.removeprefix("eval_"): v for row in history for k, v in row.items() if k.startswith("eval_")},
        )  # fmt: skip

    def report(self) -> Made:
        from .report import write_report

        return Made(write_report(self.folder, self.prepared, self.space.stamp("train") or {}))


def train(settings: PretrainSettings, prepared: Path, args: Any) -> Any:
    """Train, or go on from the newest complete checkpoint; every process calls this. Returns the Trainer."""
    import torch
    from transformers import AutoTokenizer

    from . import training
    from .examples import mapped
    from .masking import MaskingCollator

    t = settings.training
    facts = read_json(prepared / "stamps" / "examples.json")
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    sets = {split: mapped(prepared / f"{split}.arrow") for split in SPLITS}
    held_out = training.spread(sets["valid"], t.valid_examples)
    trainer = training.Pretraining(
        model=training.build_model(settings, tokenizer),
        args=args,
        training=t,
        tokens_per_example=facts["train"]["tokens_per_example"],
        processing_class=tokenizer,
        train_dataset=training.Passes(sets["train"], t.updates * t.batch_size, seed=t.seed),
        eval_dataset=training.Passes(held_out, len(held_out), seed=None),
        data_collator=MaskingCollator(
            tokenizer, t.mask_probability, seed=t.seed, copies=t.static_copies if t.masking == "static" else 0
        ),
        # Runs of all seeds are validated with the same masks, so that their figures compare.
        validation_collator=MaskingCollator(tokenizer, t.mask_probability, seed=0),
    )
    folder = Path(args.output_dir)
    with args.main_process_first(local=False):
        last = training.newest_checkpoint(folder)
    if last:
        training.check_checkpoint(last, trainer.model, tokenizer)
        print(f"train     going on from {last.name}", flush=True)
    torch.manual_seed(t.seed + 1000003 * args.process_index)  # dropout differs between processes
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    check_finite(trainer.model.state_dict(), folder)
    if not any("eval_loss" in row and row["step"] == t.updates for row in trainer.state.log_history):
        trainer.evaluate()
    return trainer


METRICS = {  # column → name in Trainer's log
    "update": "step",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_second": "tokens_per_second",
    "valid_mlm_loss": "eval_mlm_loss",
    "valid_mlm_accuracy": "eval_mlm_accuracy",
    "valid_nsp_loss": "eval_nsp_loss",
    "valid_nsp_accuracy": "eval_nsp_accuracy",
}


def write_metrics(path: Path, history: list[dict[str, Any]], columns: Mapping[str, str] = METRICS) -> None:
    """One row for each update that was logged; `columns`: as METRICS."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        rows.setdefault(entry["step"], {}).update({c: entry[n] for c, n in columns.items() if n in entry})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise RecipeError(f"--text {path}: cannot be read ({error.strerror}); correct the path") from error
