"""One training step through fairseq's own Trainer: its Transformer beside Macaron of equal size."""

from __future__ import annotations

import itertools
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
from macaron.dynamics.rules import RULES
from macaron.dynamics.solvers import SOLVERS

from ..common.errors import RecipeError
from .lengths import wmt_lengths
from .measure import (
    Contender,
    Plan,
    check_equal,
    chosen_backend,
    count_parameters,
    flops,
    interleaved,
    peak_mib,
    product,
    profiled,
)
from .record import Record

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
GRAPHS = ["--cuda-graphs", "256"]
CONTENDERS: dict[str, tuple[bool, list[str], str]] = {  # Macaron?, options, MACARON_BACKEND
    "fairseq": (False, THEIRS, "auto"),
    "macaron": (True, OURS, "auto"),
    "macaron-lie": (True, [*OURS, "--splitting", "lie"], "auto"),
    "macaron-fairseq-loss-and-adam": (True, THEIRS, "auto"),
    "macaron-compile": (True, [*OURS, "--compile"], "auto"),
    "macaron-graphs": (True, [*OURS, *GRAPHS], "auto"),
    "macaron-reference": (True, OURS, "reference"),
    "macaron-triton": (True, OURS, "triton"),
    "macaron-triton-compile": (True, [*OURS, "--compile"], "triton"),
}
NUMERICS = {
    **{f"solver-{name}": ["--solver", name] for name in SOLVERS if name != "euler"},
    **{f"rule-{name}": ["--depth-rule", name] for name in RULES if name != "euler"},
    "stochastic-depth": ["--stochastic-depth", "0.2"],
}
PARTICULAR = {f"macaron-{name}": (True, [*OURS, *flags], "auto") for name, flags in NUMERICS.items()}
CONTENDERS |= PARTICULAR
COMMON = [
    *["--source-lang", "en", "--target-lang", "de", "--share-all-embeddings", "--dropout", "0.1"],
    *["--label-smoothing", "0.1", "--adam-betas", "(0.9, 0.98)", "--lr", "1e-4", "--lr-scheduler", "fixed"],
]
CORPUS, UNUSUAL = 20_000, 4  # sentence pairs that batches are made of; special symbols of a dictionary
PRODUCT_TOKENS, PRODUCT_DIM = {"cpu": 1024, "cuda": 16384}, 1024  # of the product whose rate is the limit
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class StepSettings:
    size: str = "base"
    max_tokens: int = 2048
    vocabulary: int = 32768
    length: int | None = None  # of every sentence; None for WMT14's
    buckets: int = 0  # to which lengths are padded, as by fairseq's --num-batch-buckets; 0 for none


def parse(name: str, precision: str) -> tuple[str, str]:
    """Contender and its precision, from `macaron` or `macaron:bf16`."""
    contender, _, own = name.partition(":")
    if contender not in CONTENDERS or (own or precision) not in PRECISIONS:
        raise RecipeError(
            f"--contenders: {name} unknown; choose from {', '.join(CONTENDERS)}, alone or with a precision of its own, "
            f"as in macaron:bf16"
        )
    return contender, own or precision


def run(
    record: Record,
    plan: Plan,
    settings: StepSettings,
    names: list[str],
    precision: str,
    seed: int,
    profile: bool = False,
    case: str = "",
) -> None:
    parsed = [parse(name, precision) for name in names]
    if any("--cuda-graphs" in CONTENDERS[name][1] for name, _ in parsed):
        if plan.device.type != "cuda":
            raise RecipeError(
                f"--contenders macaron-graphs: --device {plan.device} records no CUDA graphs; leave it out"
            )
        if not (settings.buckets or settings.length):  # else steps that are not replayed would be rows of its name
            raise RecipeError("--contenders macaron-graphs: shapes have to come back; add --buckets 32 or --length 32")
    macaron.register_fairseq()
    for chatty in ("fairseq", "hydra"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        words = "".join(f"w{i} 1\n" for i in range(settings.vocabulary - UNUSUAL))
        for language in ("en", "de"):
            Path(folder, f"dict.{language}.txt").write_text(words)
        built = [trainer(name, chosen, settings, folder, plan.device, seed) for name, chosen in parsed]
    contenders = [
        Contender(text, step(it, CONTENDERS[name][2]), count_parameters(it.model))
        for text, (name, _), it in zip(names, parsed, built, strict=True)
    ]
    check_equal(contenders)
    works = samples(built[0].task, settings, seed)
    if plan.device.type == "cuda" and (settings.buckets or settings.length):
        # where shapes come back: kernels are chosen when one comes first, and graphs recorded when it comes again
        for contender, sample in itertools.product(contenders, one_of_each_shape(built[0].task, settings, seed)):
            contender.step(sample)
            contender.step(sample)
    tokens = PRODUCT_TOKENS[plan.device.type]
    limits = [product(tokens, PRODUCT_DIM, plan.device, dtype) for dtype in (torch.float32, torch.bfloat16)]
    bounds = [Contender(name, run) for name, (run, _) in zip(PRECISIONS, limits, strict=True)]
    timing = interleaved(
        [*contenders, *bounds], works, plan, amount=lambda sample: sample["ntokens"], label=case or "train"
    )
    rows = timing.rows()[: len(contenders)]
    rates = {
        bound.name: count / np.array(timing.seconds[bound.name])
        for bound, (_, count) in zip(bounds, limits, strict=True)
    }
    sample = next(works)
    counts: dict[str, float] = {}
    for contender, (name, _) in zip(contenders, parsed, strict=True):
        kind = name if name in PARTICULAR else "layers"  # the same for all others
        if kind not in counts and "--compile" not in CONTENDERS[name][1]:  # torch cannot count within a compiled layer
            counts[kind] = flops(lambda contender=contender: contender.step(sample)) / sample["ntokens"]
    for row, contender, (name, chosen) in zip(rows, contenders, parsed, strict=True):
        per_token = counts.get(name if name in PARTICULAR else "layers")
        row["precision"] = chosen
        row["parameters"] = contender.parameters
        if "--cuda-graphs" not in CONTENDERS[name][1]:  # whose memory is held between steps
            row["peak_mib"] = peak_mib(lambda contender=contender: contender.step(sample), plan.device)
        if per_token is not None:
            rate = per_token * np.array(timing.work) / np.array(timing.seconds[contender.name])
            row["gflop_per_s"] = round(float(np.median(rate)) / 1e9, 1)
            row["share_of_products"] = round(float(np.median(rate / rates[chosen])), 3)
    record.add(case or f"train {settings.size}", rows)
    for it in contenders if profile else ():
        print(f"\n{it.name}, {sample['ntokens']} tokens\n{profiled(lambda it=it: it.step(sample))}")


def trainer(name: str, precision: str, settings: StepSettings, folder: str, device: torch.device, seed: int) -> Trainer:
    """What `fairseq-train` would build."""
    ours, chosen, _ = CONTENDERS[name]
    arguments = [folder, *COMMON, *chosen, *SIZES[settings.size][ours], "--seed", str(seed)]
    arguments += ["--cpu"] if device.type == "cpu" else []
    arguments += ["--bf16"] if precision == "bf16" else []
    if settings.length is not None:
        limit = str(max(1024, settings.length))
        arguments += ["--max-source-positions", limit, "--max-target-positions", limit]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    args.tpu = False  # which fairseq alone asks for with --bf16
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(seed)
    task = tasks.setup_task(cfg.task)
    it = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    it.lr_step_begin_epoch(1)
    return it


def step(it: Trainer, backend: str) -> Callable[[dict[str, Any]], None]:
    def train_step(sample: dict[str, Any]) -> None:
        with chosen_backend(backend), metrics.aggregate(new_root=True):
            it.train_step([sample])

    return train_step


def samples(task: FairseqTask, settings: StepSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Batches as fairseq makes them: of sentences of similar length, in random order; the words are random."""
    random = np.random.default_rng(seed)
    data, batches = batched(task, settings, random)
    while True:
        for index in random.permutation(len(batches)):
            yield data.collater([data[i] for i in batches[index]])


def one_of_each_shape(task: FairseqTask, settings: StepSettings, seed: int) -> list[dict[str, Any]]:
    """Of the batches that `samples` goes through."""
    data, batches = batched(task, settings, np.random.default_rng(seed))
    found: dict[Any, dict[str, Any]] = {}
    for batch in batches:
        sample = data.collater([data[i] for i in batch])
        found.setdefault((sample["net_input"]["src_tokens"].shape, sample["target"].shape), sample)
    return list(found.values())


def batched(task: FairseqTask, settings: StepSettings, random: np.random.Generator) -> tuple[LanguagePairDataset, Any]:
    """Sentences, and the numbers of those that are together in a batch."""
    if settings.length is None:
        lengths = wmt_lengths(CORPUS, random)
    else:
        lengths = (np.full(max(8, 4 * settings.max_tokens // settings.length), settings.length),) * 2
    sides = [
        [torch.from_numpy(random.integers(UNUSUAL, settings.vocabulary, n)) for n in of_side] for of_side in lengths
    ]
    for side in sides:
        for sentence in side:
            sentence[-1] = task.source_dictionary.eos()
    longest = max(int(of_side.max()) for of_side in lengths)
    if longest > settings.max_tokens:
        raise RecipeError(f"--max-tokens {settings.max_tokens}: the longest sentence has {longest} tokens; raise it")
    data = LanguagePairDataset(
        sides[0], lengths[0], task.source_dictionary, sides[1], lengths[1], task.target_dictionary,
        shuffle=False, num_buckets=settings.buckets,
    )  # fmt: skip
    return data, data.batch_by_size(data.ordered_indices(), settings.max_tokens, required_batch_size_multiple=8)
