"""Released models and checkpoints of fairseq with random parameters, made without a training."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import MODEL_REGISTRY
from macaron.user_dir import released
from omegaconf import OmegaConf
from subword_nmt.learn_bpe import learn_bpe
from torch import nn

import macaron
from macaron.text import Pieces, TextSettings, Words

macaron.register_fairseq()

TEXT = [
    "Der Hund läuft über die Straße, und die Katze schläft.",
    "Zwei Männer - einer davon im T-Shirt - reden miteinander.",
    'The dog isn\'t running; "the cat" is asleep (on the sofa) & purrs.',
    "Ein Kind spielt im Sand.",
    "Two men are talking to each other, aren't they?",
]
SEARCH = {"beam": 4, "lenpen": 1.0, "max_len_a": 0, "max_len_b": 24}
SIZES = {"encoder_embed_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.1}


def dictionary(lines: list[str], more: int = 0) -> Dictionary:
    made = Dictionary()
    for line in lines:
        for symbol in line.split():
            made.add_symbol(symbol)
    for i in range(more):
        made.add_symbol(f"madeupword{i:04d}")
    return made


def randomised(model: nn.Module) -> nn.Module:
    """All parameters random, norms, biases, k and gates too, and logits that differ enough for a search."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.dim() < 2:
                parameter.copy_(0.1 * noise)
            elif "embed" in name or "output_projection" in name:
                parameter.copy_(parameter.size(1) ** -0.5 * (3.0 if "output" in name else 1.0) * noise)
                parameter[2] *= 1.5  # </s>
            else:
                parameter.copy_(parameter.size(1) ** -0.5 * noise)
    return model


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXT)


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_release(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make_release(**options)`: a released folder of a macaron_tiny with these options.

    text: fields of `TextSettings`; search: options of the generation; arch: the architecture.
    """

    def make(
        text: dict[str, Any] | None = None,
        search: dict[str, Any] | None = None,
        arch: str = "macaron_tiny",
        seal: bool = True,
        **options: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("release")
        settings = TextSettings(**{"source": "de", "target": "en", "units": 60, **(text or {})})
        model_file = folder / settings.released_name
        words = [[Words(settings, language).training(line) for line in TEXT] for language in settings.languages]
        if settings.subword == "subword_nmt":
            with model_file.open("w", encoding="utf-8") as codes:
                learn_bpe(words[0] + words[1], codes, settings.units, min_frequency=1)
        else:
            trained = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(words[0] + words[1]), model_writer=trained, vocab_size=settings.units,
                model_type="bpe", hard_vocab_limit=False, minloglevel=2,
            )  # fmt: skip
            model_file.write_bytes(trained.getvalue())
        pieces = Pieces(settings, model_file)
        split = [[pieces.encode(line) for line in lines] for lines in words]
        if settings.joined_dictionary:
            source = target = dictionary(split[0] + split[1], 3)
        else:
            source, target = dictionary(split[0]), dictionary(split[1], 5)
        for language, symbols in zip(settings.languages, (source, target), strict=True):
            symbols.save(str(folder / f"dict.{language}.txt"))
        torch.save(checkpoint(source, target, arch, {**SIZES, **options}), folder / released.MODEL)
        released.write(folder, released.Description(settings, {**SEARCH, **(search or {})}))
        if seal:
            released.seal(folder)
        return folder

    return make


def checkpoint(source: Dictionary, target: Dictionary, arch: str, options: dict[str, Any]) -> dict[str, Any]:
    """As fairseq-train saves it."""
    task = {"_name": "translation", "source_lang": "de", "target_lang": "en", "data": ""}
    sizes = {name: options.pop(name, 64) for name in ("max_source_positions", "max_target_positions")}
    given = Namespace(**{"share_all_embeddings": source is target, **options, **sizes})
    tasked = Namespace(source_dictionary=source, target_dictionary=target)
    model = randomised(MODEL_REGISTRY[arch].build_model(given, tasked))
    cfg = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), enum_to_str=True)
    known = {
        name: value for name, value in vars(model.args).items() if value is None or isinstance(value, (str, int, float))
    }
    cfg.update(model={**known, "_name": arch}, task={**task, **sizes}, bpe=None, tokenizer=None)
    history = [
        {"criterion_name": "LabelSmoothed", "optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 1}
    ]
    extra = {"train_iterator": {"epoch": 1}}
    return {"args": None, "cfg": cfg, "model": model.state_dict(), "extra_state": extra, "optimizer_history": history}
