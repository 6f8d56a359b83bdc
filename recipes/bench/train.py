"""One training step through fairseq's own Trainer: its Transformer beside Macaron of equal size."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import options, tasks
from fairseq.data import LanguagePairDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

import macaron
from recipes.bench.lengths import wmt_lengths
from recipes.bench.measure import (
    Contender,
    Plan,
    check_equal,
    chosen_backend,
    count_parameters,
    interleaved,
    peak_mib,
    profiled,
)
from recipes.bench.record import Record

SIZES: dict[str, tuple[list[str], list[str]]] = {  # fairseq's architecture and ours
    "tiny": (
        ["--arch", "transformer_tiny", "--encoder-ffn-embed-dim", "128", "--decoder-ffn-embed-dim", "128"],
        ["--arch", "macaron_tiny"],
    ),
    "iwslt": (["--arch", "transformer_iwslt_de_en"], ["--arch", "macaron_iwslt_de_en"]),
    "base": (["--arch", "transformer_wmt_en_de"], ["--arch", "macaron_base"]),
    "big": (["--arch", "transformer_wmt_en_de_big"], ["--arch", "macaron_big"]),
}
THEIRS = ["--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam"]
OURS = ["--criterion", "macaron_label_smoothed_cross_entropy", "--optimizer", "macaron_adam"]
CONTENDERS: dict[str, tuple[bool, list[str], str]] = {  # Macaron?, options, MACARON_BACKEND
    "fairseq": (False, THEIRS, "auto"),
    "macaron": (True, OURS, "auto"),
    "macaron-lie": (True, [*OURS, "--splitting", "lie"], "auto"),
    "macaron-fairseq-loss-and-adam": (True, THEIRS, "auto"),
    "macaron-compile": (True, [*OURS, "--compile"], "auto"),
    "macaron-triton": (True, OURS, "triton"),
    "macaron-triton-compile": (True, [*OURS, "--compile"], "triton"),
}
COMMON = [
    *["--source-lang", "en", "--target-lang", "de", "--share-all-embeddings", "--dropout", "0.1"],
    *["--label-smoothing", "0.1", "--adam-betas", "(0.9, 0.98)", "--lr", "1e-4", "--lr-scheduler", "fixed"],
]
CORPUS, UNUSUAL = 20_000, 4  # sentence pairs that batches are made of; special symbols of a dictionary


@dataclass(frozen=True)
class Settings:
    size: str = "base"
    max_tokens: int = 2048
    vocabulary: int = 32768


def run(
    record: Record, plan: Plan, settings: Settings, names: list[str], precision: str, seed: int, profile: bool = False
) -> None:
    macaron.register_fairseq()
    for chatty in ("fairseq", "hydra"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        words = "".join(f"w{i} 1\n" for i in range(settings.vocabulary - UNUSUAL))
        for language in ("en", "de"):
            Path(folder, f"dict.{language}.txt").write_text(words)
        built = [trainer(name, settings.size, folder, plan.device, seed) for name in names]
    contenders = [
        Contender(name, step(it, CONTENDERS[name][2], plan.device, precision), count_parameters(it.model))
        for name, it in zip(names, built, strict=True)
    ]
    check_equal(contenders)
    works = samples(built[0].task, settings, seed)
    timing = interleaved(contenders, works, plan, amount=lambda sample: sample["ntokens"], label="train")
    rows = timing.rows()
    sample = next(works)
    for row, contender in zip(rows, contenders, strict=True):
        row["parameters"] = contender.parameters
        row["peak_mib"] = peak_mib(lambda contender=contender: contender.step(sample), plan.device)
    record.add(f"train {settings.size}", rows)
    for it in contenders if profile else ():
        print(f"\n{it.name}, {sample['ntokens']} tokens\n{profiled(lambda it=it: it.step(sample))}")


def trainer(name: str, size: str, folder: str, device: torch.device, seed: int) -> Trainer:
    """What `fairseq-train` would build."""
    ours, chosen, _ = CONTENDERS[name]
    arguments = [folder, *COMMON, *chosen, *SIZES[size][ours], "--seed", str(seed)]
    arguments += ["--cpu"] if device.type == "cpu" else []
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(seed)
    task = tasks.setup_task(cfg.task)
    it = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    it.lr_step_begin_epoch(1)
    return it


def step(it: Trainer, backend: str, device: torch.device, precision: str) -> Callable[[dict[str, Any]], None]:
    def train_step(sample: dict[str, Any]) -> None:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with chosen_backend(backend), autocast, metrics.aggregate(new_root=True):
            it.train_step([sample])

    return train_step


def samples(task: FairseqTask, settings: Settings, seed: int) -> Iterator[dict[str, Any]]:
    """Batches as fairseq makes them: of sentences of similar length, in random order; the words are random."""
    random = np.random.default_rng(seed)
    lengths = wmt_lengths(CORPUS, random)
    sides = [
        [torch.from_numpy(random.integers(UNUSUAL, settings.vocabulary, n)) for n in of_side] for of_side in lengths
    ]
    for side in sides:
        for sentence in side:
            sentence[-1] = task.source_dictionary.eos()
    data = LanguagePairDataset(
        sides[0], lengths[0], task.source_dictionary, sides[1], lengths[1], task.target_dictionary, shuffle=False
    )
    batches = data.batch_by_size(data.ordered_indices(), settings.max_tokens, required_batch_size_multiple=8)
    while True:
        for index in random.permutation(len(batches)):
            yield data.collater([data[i] for i in batches[index]])
