"""Beam search: fairseq's generator with its Transformer, ours with a Macaron of equal size, and CTranslate2."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.sequence_generator import SequenceGenerator

import macaron
from macaron.decoding import BeamSearch, Source, choose_precision

from ..common.errors import RecipeError
from .measure import (
    Contender,
    Plan,
    check_equal,
    count_parameters,
    interleaved,
    peak_mib,
    profiled,
)
from .record import Record
from .train import SIZES, UNUSUAL

CONTENDERS = (
    *("fairseq", "macaron", "macaron-lie", "macaron-by-fairseq"),
    *("ctranslate2", "onnxruntime", "onnxruntime-lie"),
)
PRECISIONS = ("fp32", "bf16", "int8")
VALUES = {"sentences": (1, 8, 32), "beam": (1, 4, 8), "length": (15, 30, 60)}
_CTRANSLATE2 = {"fp32": "float32", "int8": "int8_float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class DecodeSettings:
    size: str = "base"
    vocabulary: int = 32000
    sentences: int = 32
    beam: int = 4
    length: int = 30  # of sources and translations, without </s>; each translation has exactly these


def parse(name: str) -> tuple[str, str]:
    """Contender and precision, from `macaron` or `macaron:int8`.

    Raises:
        RecipeError: no such contender, a package that is missing, or a precision that the processor has not.
    """
    contender, _, precision = name.partition(":")
    precision = precision or "fp32"
    if contender not in CONTENDERS or precision not in PRECISIONS:
        raise RecipeError(
            f"--contenders: {name} unknown; choose from {', '.join(CONTENDERS)}, alone or with a precision "
            f"({', '.join(PRECISIONS)}), as in macaron:int8"
        )
    if contender in ("fairseq", "macaron-by-fairseq") and precision != "fp32":
        raise RecipeError(f"--contenders: {name}: fairseq's generator has fp32 alone on a CPU")
    if contender.startswith("onnxruntime") and precision != "fp32":
        raise RecipeError(f"--contenders: {name}: is exported in fp32 alone")
    if contender == "ctranslate2" and importlib.util.find_spec("ctranslate2") is None:
        raise RecipeError(
            "--contenders: ctranslate2 is not installed; pip install 'macaron-net[ctranslate2]', or leave it out"
        )
    return contender, precision


def run(
    record: Record,
    plan: Plan,
    settings: DecodeSettings,
    names: list[str],
    seed: int,
    profile: bool = False,
    over: str | None = None,
    values: list[int] | None = None,
) -> None:
    parsed = [parse(name) for name in names]
    for name, (contender, precision) in zip(names, parsed, strict=True):
        if contender.startswith("macaron"):
            try:
                choose_precision(precision, plan.device)
            except ValueError as error:
                raise RecipeError(f"--contenders: {name}: {error}") from error
    macaron.register_fairseq()
    for chatty in ("fairseq", "hydra"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    cases = [settings] if over is None else [replace(settings, **{over: n}) for n in values or VALUES[over]]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        words = "".join(f"w{i} 1\n" for i in range(settings.vocabulary - UNUSUAL))
        for language in ("en", "de"):
            Path(folder, f"dict.{language}.txt").write_text(words)
        built = [model(name, precision, settings, folder, plan.device, seed) for name, precision in parsed]
        engines = [
            ctranslate2_engine(it, precision, folder, plan)
            if name == "ctranslate2"
            else onnx_steps(it, task, Path(folder, name))
            if name.startswith("onnxruntime")
            else None
            for (name, precision), (it, task) in zip(parsed, built, strict=True)
        ]
        for case in cases:
            contenders = [
                Contender(text, step(name, it, task, case, engine), count_parameters(it))
                for text, (name, _), (it, task), engine in zip(names, parsed, built, engines, strict=True)
            ]
            check_equal(contenders)
            works = samples(case, plan.device, seed)
            text = f"decode {settings.size}" if over is None else f"{over} {getattr(case, over)}"
            timing = interleaved(
                contenders, works, plan, amount=lambda _, case=case: case.sentences * (case.length + 1), label=text
            )
            rows = timing.rows()
            work = next(works)
            for row, contender, (_, precision) in zip(rows, contenders, parsed, strict=True):
                row["precision"], row["parameters"] = precision, contender.parameters
                row["peak_mib"] = peak_mib(partial(contender.step, work), plan.device)
            record.describe(vars(case))
            record.add(text, rows)
            for contender in contenders if profile else ():
                print(f"\n{contender.name}\n{profiled(partial(contender.step, work))}")


def model(
    name: str, precision: str, settings: DecodeSettings, folder: str, device: torch.device, seed: int
) -> tuple[Any, Any]:
    """What `fairseq-generate` would load, and its task; CTranslate2 gets fairseq's."""
    ours = name.startswith(("macaron", "onnxruntime"))
    arguments = [folder, "--source-lang", "en", "--target-lang", "de", "--share-all-embeddings"]
    arguments += [
        "--optimizer",
        "adam",
        *SIZES[settings.size][ours],
        *(["--splitting", "lie"] if name.endswith("-lie") else []),
    ]
    args = options.parse_args_and_arch(options.get_training_parser(), [*arguments, "--seed", str(seed)])
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(seed)
    task = tasks.setup_task(cfg.task)
    it = task.build_model(cfg.model).to(device).eval()
    it.prepare_for_inference_(cfg)
    if ours:
        it.inference_precision = precision
    return it, task


def step(name: str, it: Any, task: Any, case: DecodeSettings, engine: Any) -> Callable[[Any], object]:
    settings = {"beam": case.beam, "max_len_a": 0, "max_len_b": case.length, "min_len": case.length, "lenpen": 1.0}
    if name == "ctranslate2":
        return lambda work: engine(work, case)
    from fairseq.dataclass.configs import GenerationConfig

    kind = SequenceGenerator if name in ("fairseq", "macaron-by-fairseq") else None
    generator = task.build_generator([it], GenerationConfig(**settings), seq_gen_cls=kind)

    if engine is not None:
        search = generator.engine()
        search = BeamSearch(engine, search.symbols, search.options)
        return lambda work: list(search(of_one_length(work, case)))

    def decode(work: dict[str, Any]) -> None:
        found = task.inference_step(generator, [it], work)
        assert all(len(best[0]["tokens"]) == case.length + 1 for best in found)

    return decode


def onnx_steps(it: Any, task: Any, folder: Path) -> Any:
    """The model as `macaron export --format onnx` writes it."""
    from fairseq.dataclass.configs import GenerationConfig
    from macaron.user_dir.deploy import write_onnx

    from macaron.decoding.runtime import OnnxSteps

    folder.mkdir()
    write_onnx(it, task, task.build_generator([it], GenerationConfig()).engine(), folder)
    return OnnxSteps(folder, torch.get_num_threads())


def of_one_length(work: dict[str, Any], case: DecodeSettings) -> Iterator[Source]:
    for number, tokens in enumerate(work["net_input"]["src_tokens"]):
        yield Source(number, tokens, case.length)


def ctranslate2_engine(it: Any, precision: str, folder: str, plan: Plan) -> Callable[[Any, DecodeSettings], None]:
    """CTranslate2 with the weights of fairseq's Transformer, by its own converter's functions."""
    import ctranslate2
    from ctranslate2.converters import fairseq as converter

    heads, layers = it.decoder.layers[0].self_attn.num_heads, len(it.decoder.layers)
    spec = ctranslate2.specs.TransformerSpec.from_config(layers, heads, pre_norm=it.decoder.layer_norm is not None)
    converter.set_transformer_encoder(spec.encoder, it.encoder)
    converter.set_transformer_decoder(spec.decoder, it.decoder)
    words = converter._get_vocab(it.decoder.dictionary)
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization=_CTRANSLATE2[precision])
    where = Path(folder, f"ctranslate2-{precision}")
    where.mkdir()
    spec.save(str(where))
    kind = plan.device.type
    translator = ctranslate2.Translator(
        str(where),
        device=kind,
        compute_type=_CTRANSLATE2[precision],
        inter_threads=1,
        intra_threads=torch.get_num_threads(),
    )

    def decode(work: dict[str, Any], case: DecodeSettings) -> None:
        sources = [[words[i] for i in row[:-1]] for row in work["net_input"]["src_tokens"].tolist()]
        found = translator.translate_batch(
            sources, beam_size=case.beam, min_decoding_length=case.length, max_decoding_length=case.length
        )
        assert all(len(one.hypotheses[0]) == case.length for one in found)

    return decode


def samples(case: DecodeSettings, device: torch.device, seed: int) -> Iterator[dict[str, Any]]:
    """Sentences of random words, of one length."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        shape = (case.sentences, case.length + 1)
        source = torch.randint(UNUSUAL, case.vocabulary, shape, generator=generator)
        source[:, -1] = 2  # </s>
        lengths = torch.full((case.sentences,), case.length + 1)
        yield {"net_input": {"src_tokens": source.to(device), "src_lengths": lengths.to(device)}}
