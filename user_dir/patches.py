"""Every hand that the plugin lays on fairseq, but for its checkpoint loader (`checkpoints.py`): one list.

fairseq's last release is older than numpy 2 and has faults of its own, and nobody mends them any more. What a plugin
cannot reach, such as `fairseq-score`, stands in README.md beside this file.
"""

import builtins
import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fairseq import checkpoint_utils, optim, utils
from fairseq.data import data_utils, language_pair_dataset, token_block_dataset
from fairseq.data.fasta_dataset import FastaDataset
from fairseq.modules import dynamic_crf_layer
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.scoring.chrf import ChrFScorer
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import open_dict

from .decoding import generator_class
from .optim import adam, half
from .rules import SPARED


@dataclass(frozen=True)
class Patch:
    """A change to fairseq in memory; making it again changes nothing.

    Args:
        what: what works with it, as a user would say it.
        why: what fails without.
        retired_by: when it can go.
        make: makes it.
    """

    what: str
    why: str
    retired_by: str
    make: Callable[[], None]


class OldNumpy(ModuleType):
    """numpy for modules that were written for numpy 1: what is not here is numpy's own.

    numpy itself stays as it is, since other libraries ask it what it has.
    """

    int = builtins.int
    float = builtins.float
    compat = SimpleNamespace(long=builtins.int)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def percentile(*args: Any, interpolation: str = "linear", **options: Any) -> Any:
        return np.percentile(*args, **{"method": interpolation, **options})


def give_old_numpy(*modules: ModuleType) -> None:
    for module in modules:
        vars(module)["np"] = OldNumpy("numpy")


def score_chrf() -> None:
    def score(self: ChrFScorer, order: int = 4) -> float:
        value: float = self.sacrebleu.corpus_chrf(self.pred, [self.ref]).score
        return value

    ChrFScorer.score = score


def copy_unknown_words() -> None:
    load = inspect.unwrap(utils.load_align_dict)

    # the value that fairseq gives an option without one; its own code expects True, and opens this as a file
    def load_align_dict(replace_unk: Any) -> Any:
        return load(True if replace_unk == "@@ " else replace_unk)

    load_align_dict.__wrapped__ = load  # type: ignore[attr-defined]
    utils.load_align_dict = load_align_dict


def quote_fasta() -> None:
    build = inspect.unwrap(FastaDataset._build_index)

    def _build_index(self: FastaDataset, path: str) -> Any:
        return build(self, shlex.quote(path))

    _build_index.__wrapped__ = build  # type: ignore[attr-defined]
    FastaDataset._build_index = _build_index


def spare_marked_parameters() -> None:
    build = inspect.unwrap(optim.build_optimizer)

    def build_optimizer(cfg: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = build(cfg, params, *args, **kwargs)
        groups = optimizer.param_groups
        marked = [p for p in groups[0]["params"] if getattr(p, "optim_overrides", None) == SPARED]
        if len(groups) == 1 and marked:
            chosen = {id(p) for p in marked}
            groups[0]["params"] = [p for p in groups[0]["params"] if id(p) not in chosen]
            rest = {name: value for name, value in groups[0].items() if name != "params"}
            optimizer.optimizer.add_param_group({**rest, "params": marked, **SPARED})
        return optimizer

    build_optimizer.__wrapped__ = build  # type: ignore[attr-defined]
    optim.build_optimizer = build_optimizer
    build_half = inspect.unwrap(FP16Optimizer.build_optimizer.__func__)

    def build_half_optimizer(cls: Any, cfg: Any, params: Any, **kwargs: Any) -> Any:
        params = list(params)
        if any(getattr(p, "optim_overrides", None) == SPARED for p in params):
            with open_dict(cfg.common):  # one long vector of all parameters has one weight decay
                cfg.common.fp16_no_flatten_grads = True
        ours = cls is FP16Optimizer and getattr(cfg.optimizer, "_name", None) == adam.NAME
        return build_half(half.FP16Optimizer if ours else cls, cfg, params, **kwargs)

    build_half_optimizer.__wrapped__ = build_half  # type: ignore[attr-defined]
    FP16Optimizer.build_optimizer = classmethod(build_half_optimizer)


def training_command() -> ModuleType | None:
    """fairseq-train's module, in a process that trains; to import it would set up logging in any other."""
    return sys.modules.get("fairseq_cli.train")


def keep_patience() -> None:
    train = training_command()
    if train is None:
        return
    stop = train.should_stop_early
    save, load = inspect.unwrap(Trainer.save_checkpoint), inspect.unwrap(checkpoint_utils.load_checkpoint)

    def save_checkpoint(self: Trainer, filename: str, extra_state: dict[str, Any]) -> Any:
        if getattr(stop, "best", None) is not None:
            extra_state = {**extra_state, "patience": {"best": stop.best, "num_runs": stop.num_runs}}
        return save(self, filename, extra_state)

    def load_checkpoint(cfg: Any, trainer: Trainer, **options: Any) -> Any:
        extra_state, epoch_itr = load(cfg, trainer, **options)
        known = (extra_state or {}).get("patience")
        if known and not (cfg.reset_meters or cfg.reset_optimizer):
            stop.best, stop.num_runs = float(known["best"]), int(known["num_runs"])
        return extra_state, epoch_itr

    save_checkpoint.__wrapped__ = save  # type: ignore[attr-defined]
    load_checkpoint.__wrapped__ = load  # type: ignore[attr-defined]
    Trainer.save_checkpoint = save_checkpoint
    checkpoint_utils.load_checkpoint = load_checkpoint


def score_empty_translations() -> None:
    train = training_command()
    if train is None:
        return
    get = inspect.unwrap(train.get_valid_stats)

    def get_valid_stats(cfg: Any, trainer: Trainer, stats: dict[str, Any], *rest: Any) -> dict[str, Any]:
        if cfg.checkpoint.best_checkpoint_metric == "bleu" and getattr(cfg.task, "eval_bleu", False):
            stats.setdefault("bleu", 0.0)
        return get(cfg, trainer, stats, *rest)  # type: ignore[no-any-return]

    get_valid_stats.__wrapped__ = get  # type: ignore[attr-defined]
    train.get_valid_stats = get_valid_stats


def block_repeats() -> None:
    block = inspect.unwrap(NGramRepeatBlock._no_repeat_ngram)

    def _no_repeat_ngram(self: NGramRepeatBlock, tokens: Any, lprobs: Any, bsz: int, beam_size: int, step: int) -> Any:
        return block(self, tokens[:, : step + 1], lprobs, bsz, beam_size, step)

    _no_repeat_ngram.__wrapped__ = block  # type: ignore[attr-defined]
    NGramRepeatBlock._no_repeat_ngram = _no_repeat_ngram


def decode_faster() -> None:
    build = inspect.unwrap(FairseqTask.build_generator)

    def build_generator(
        self: Any, models: Any, args: Any, seq_gen_cls: Any = None, *others: Any, **options: Any
    ) -> Any:
        if seq_gen_cls is None and not getattr(args, "score_reference", False):
            seq_gen_cls = generator_class(models, args)
        return build(self, models, args, seq_gen_cls, *others, **options)

    build_generator.__wrapped__ = build  # type: ignore[attr-defined]
    FairseqTask.build_generator = build_generator


PATCHES = (
    Patch(
        what="--num-batch-buckets, --sample-break-mode eos, --arch nacrf_transformer",
        why="np.compat, np.int, np.float and percentile(interpolation=) are gone from numpy (1.24, 2.4)",
        retired_by="a fairseq that asks for numpy 2",
        make=lambda: give_old_numpy(data_utils, language_pair_dataset, token_block_dataset, dynamic_crf_layer),
    ),
    Patch(
        what="the number of --scoring chrf (`ChrFScorer.score`)",
        why="it asks the formatted string for its score: AttributeError",
        retired_by="a fairseq whose ChrFScorer.score returns a number",
        make=score_chrf,
    ),
    Patch(
        what="--replace-unk without a dictionary: the source word is copied",
        why="FileNotFoundError: fairseq takes its own default '@@ ' for the name of a dictionary",
        retired_by="a fairseq whose --replace-unk works without a value",
        make=copy_unknown_words,
    ),
    Patch(
        what="--dataset-impl fasta with any name of a file",
        why="fairseq gives the name to a shell as it is: `a;b` runs b, and a checkpoint's languages are a part of it",
        retired_by="a fairseq that reads the file without a shell",
        make=quote_fasta,
    ),
    Patch(
        what="--depth-rule multistep with --weight-decay: its k are not decayed (and --fp16-no-flatten-grads is set)",
        why="fairseq has one group of parameters for all optimisers but its composite one, and in fp16 one vector",
        retired_by="a fairseq whose optimisers read a parameter's optim_overrides",
        make=spare_marked_parameters,
    ),
    Patch(
        what="--patience in a training that was interrupted: it ends where an uninterrupted one does",
        why="fairseq counts validations in memory alone, so each interruption gave them anew",
        retired_by="a fairseq whose checkpoints hold the count",
        make=keep_patience,
    ),
    Patch(
        what="--best-checkpoint-metric bleu while a model still says nothing at all",
        why="BLEU of empty translations is left out of the figures: KeyError: 'bleu' ends the training",
        retired_by="a fairseq whose translation task always logs bleu under --eval-bleu",
        make=score_empty_translations,
    ),
    Patch(
        what="--no-repeat-ngram-size on a CPU",
        why="it looks for the n-gram at the end of a buffer that is filled with padding: nothing is ever blocked",
        retired_by="a fairseq that looks at the tokens up to this step, as its CUDA kernel does",
        make=block_repeats,
    ),
    Patch(
        what="beam search of our models by macaron.decoding (`decoding.py`); MACARON_GENERATOR=fairseq leaves it out",
        why="fairseq reorders all caches in each step, the encoder's for each beam",
        retired_by="a fairseq with a hook for a model's own generator",
        make=decode_faster,
    ),
)


def install() -> None:
    for patch in PATCHES:
        patch.make()
