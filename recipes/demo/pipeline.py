"""The five stages of a demo: prepare, train, translate, score, report. Each is done once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from macaron.dynamics.scheme import Scheme
from macaron.dynamics.splitting import get_splitting
from recipes.common.divergence import check_finite
from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, read_json, read_lines, write_json
from recipes.demo import corpora
from recipes.demo.settings import Settings
from recipes.translation import commands
from recipes.translation.checkpoints import average, distinct, load, mend_last
from recipes.translation.commands import KEEP_LAST_BATCH, USER_DIR, check_losses
from recipes.translation.data import binary
from recipes.translation.data.files import spaced


class Demo:
    """One run in one folder.

    text/        {train,valid,test}.{de,en} and the same in pieces
    spm.model    the joint sub-word model
    data-bin/    what fairseq-preprocess made
    checkpoints/ what fairseq-train made
    """

    def __init__(self, settings: Settings, space: Workspace, data_dir: Path | None = None):
        self.settings = settings
        self.space = space
        self.folder = space.folder
        self.data_dir = data_dir
        self.text = self.folder / "text"
        self.data_bin = self.folder / "data-bin"
        self.checkpoints = self.folder / "checkpoints"
        self.train_log = self.folder / "train.log"
        self.spm = self.folder / "spm.model"

    def run(self) -> dict[str, Any]:
        """All stages that are not done yet; the result."""
        stages = ("prepare", "train", "translate", "score", "report")
        self.space.run({stage: getattr(self, stage) for stage in stages})
        result: dict[str, Any] = read_json(self.folder / "result.json")
        return result

    # --- stages ---------------------------------------------------------------------------------------------

    def prepare(self, started: float) -> dict[str, Any]:
        """Sentences → sub-word pieces → fairseq's binary format, with one dictionary for both languages."""
        import sentencepiece

        s = self.settings
        shutil.rmtree(self.data_bin, ignore_errors=True)  # from an attempt that was cut short
        texts = corpora.write_corpus(s.corpus, self.text, train_size=s.train_size, seed=s.seed, data_dir=self.data_dir)
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=[str(self.text / f"train.{language}") for language in corpora.LANGUAGES],
                model_prefix=str(self.spm.with_suffix("")),
                model_type="bpe",
                vocab_size=s.vocab_size,
                character_coverage=1.0,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise RecipeError(
                f"vocab_size {s.vocab_size} does not suit the corpus of {s.train_size or 'all'} pairs: "
                f"sentencepiece says {str(error).splitlines()[0]!r}; choose another --vocab-size"
            ) from error
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(self.spm))
        for path in texts:
            encoded = pieces.encode([spaced(line) for line in read_lines(path)], out_type=str)
            target = path.with_name(f"{path.stem}.bpe{path.suffix}")
            target.write_text("".join(" ".join(line) + "\n" for line in encoded), encoding="utf-8")
        commands.run(
            commands.fairseq(
                "preprocess", "--source-lang", "de", "--target-lang", "en", "--joined-dictionary",
                "--trainpref", self.text / "train.bpe", "--validpref", self.text / "valid.bpe",
                "--testpref", self.text / "test.bpe", "--destdir", self.data_bin,
            ),
            self.folder / "prepare.log", self.space.lock, "fairseq-preprocess",
        )  # fmt: skip
        languages = corpora.LANGUAGES
        binary.check(self.data_bin, lambda split, side: self.text / f"{split}.bpe.{side}", corpora.SPLITS, languages)
        sizes = {split: len(read_lines(self.text / f"{split}.de")) for split in corpora.SPLITS}
        files = [
            *texts,
            self.spm,
            *sorted(self.data_bin.glob("*.bin")),
            *sorted(self.data_bin.glob("dict.*")),
        ]
        return self.space.finish("prepare", files, started, sizes=sizes)

    def train_command(self) -> list[str]:
        s = self.settings
        width = Scheme(get_splitting(s.splitting)).ffn_width(2 * s.ffn)
        sizes = []
        for side, layers in (("encoder", s.encoder_layers), ("decoder", s.decoder_layers)):
            sizes += [f"--{side}-embed-dim", s.dim, f"--{side}-ffn-embed-dim", width]
            sizes += [f"--{side}-attention-heads", s.heads, f"--{side}-layers", layers]
        return commands.fairseq(
            "train", self.data_bin, "--user-dir", USER_DIR, "--source-lang", "de", "--target-lang", "en",
            "--arch", s.arch, "--splitting", s.splitting, *sizes, "--share-all-embeddings",
            "--dropout", s.dropout,
            "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", s.label_smoothing,
            "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", 1.0,
            "--lr", s.lr, "--lr-scheduler", "polynomial_decay", "--warmup-updates", s.warmup_updates,
            "--total-num-update", s.max_update, "--max-update", s.max_update, "--max-tokens", s.max_tokens,
            "--seed", s.seed, "--distributed-world-size", 1, "--num-workers", 0,
            "--save-dir", self.checkpoints, "--keep-last-epochs", max(s.average, 2),
            "--log-format", "json", "--log-interval", 10, *KEEP_LAST_BATCH,
        )  # fmt: skip

    def train(self, started: float) -> dict[str, Any]:
        """fairseq-train; goes on from checkpoint_last.pt, which fairseq writes after every epoch."""
        mend_last(self.checkpoints)
        command = self.train_command()
        (self.folder / "train.sh").write_text(commands.shown(command) + "\n", encoding="utf-8")
        commands.run_with_progress(command, self.train_log, self.space.lock, self.settings.max_update)
        last = self.checkpoints / "checkpoint_last.pt"
        state = load(last)
        check_finite(state["model"], last)
        check_losses(self.train_log)
        updates = state["optimizer_history"][-1]["num_updates"]
        seconds = state["extra_state"]["previous_training_time"]
        parameters = sum(t.numel() for name, t in distinct(state["model"]))
        final = self.folder / "model.pt"
        if self.settings.average == 1:
            shutil.copyfile(last, final.with_suffix(".part"))
            os.replace(final.with_suffix(".part"), final)
        else:
            average(self.checkpoints, self.settings.average, final, self.train_log, self.space.lock)
        return self.space.finish(
            "train", [final], started,
            updates=updates, train_seconds=round(seconds, 1), parameters=parameters,
            command=commands.shown(command),
        )  # fmt: skip

    def translate_command(self) -> list[str]:
        s = self.settings
        return commands.fairseq(
            "generate", self.data_bin, "--user-dir", USER_DIR, "--path", self.folder / "model.pt",
            "--gen-subset", "test", "--beam", s.beam, "--lenpen", s.lenpen, "--batch-size", 64,
            "--max-len-a", 1.5, "--max-len-b", 20,
            "--results-path", self.folder / "generate", *KEEP_LAST_BATCH,
        )  # fmt: skip

    def translate(self, started: float) -> dict[str, Any]:
        """fairseq-generate with beam search; the pieces of the best hypothesis become text again."""
        import sentencepiece

        command = self.translate_command()
        print("translate with beam search ...", flush=True)
        commands.run(command, self.folder / "generate.log", self.space.lock, "fairseq-generate")
        best = commands.hypotheses(self.folder / "generate" / "generate-test.txt")
        references = read_lines(self.text / "test.en")
        if sorted(best) != list(range(len(references))):
            raise RecipeError(
                f"{self.folder / 'generate'}: {len(best)} translations for {len(references)} test sentences; "
                f"see generate.log there, then run the same command again"
            )
        model = sentencepiece.SentencePieceProcessor(model_file=str(self.spm))
        target = self.folder / "test.hyp.en"
        lines = [model.decode(best[index].pieces.split(" ")) for index in range(len(references))]
        target.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return self.space.finish("translate", [target], started, command=commands.shown(command))

    def score(self, started: float) -> dict[str, Any]:
        """sacreBLEU and chrF on cased, detokenized text, with their signatures."""
        from sacrebleu.metrics import BLEU, CHRF

        hypotheses = read_lines(self.folder / "test.hyp.en")
        references = [read_lines(self.text / "test.en")]
        scores = {}
        for name, metric in (("BLEU", BLEU()), ("chrF2", CHRF())):
            score = metric.corpus_score(hypotheses, references)
            scores[name] = {"score": round(score.score, 2), "signature": str(metric.get_signature())}
        exact = sum(h == r for h, r in zip(hypotheses, references[0], strict=True)) / len(hypotheses)
        target = self.folder / "scores.json"
        write_json(target, {**scores, "exact_match_percent": round(100 * exact, 1)})
        return self.space.finish("score", [target], started)

    def report(self, started: float) -> dict[str, Any]:
        from recipes.demo.report import write_report

        return self.space.finish("report", write_report(self), started)
