"""Models of each kind, tiny and untrained, as folders and files."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["the", "a", "dog", "cat", "man", "hat", "sees", "red", "big", "house", ".", "<b>", "&", "run", "##ning"]


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("trajectories") / "bert")


def save_bert(folder: Path, model: str = "MacaronBertForMaskedLM", **options: Any) -> Path:
    """A Macaron BERT of three layers with a WordPiece tokenizer."""
    from transformers import BertTokenizer

    from macaron import bert

    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, *"<>/=\"'{}b;cript"]) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(3)
    config = bert.MacaronBertConfig(**{**sizes, "max_position_embeddings": 128, "pad_token_id": 0, **options})
    getattr(bert, model)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dictionaries of both languages; the German words are BPE pieces."""
    folder = tmp_path_factory.mktemp("trajectories_data")
    for language, pieces in {"de": ["Hau@@", "s", "ein", "Mann", "."], "en": ["a", "man", "house", ".", "e"]}.items():
        (folder / f"dict.{language}.txt").write_text("".join(f"{p} 9\n" for p in pieces), encoding="utf-8")
    (folder / "dict.txt").write_text("a 9\nman 9\nhouse 9\n. 9\n", encoding="utf-8")
    return folder


SIZES = {
    **dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim"), 16),
    **dict.fromkeys(("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"), 24),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **{"encoder_layers": 3, "decoder_layers": 2, "max_source_positions": 20, "max_target_positions": 20},
}


def save_checkpoint(path: Path, data: Path, arch: str = "macaron_tiny", **options: Any) -> Path:
    """A checkpoint as fairseq writes one, of a model that has learnt nothing."""
    from fairseq.data import Dictionary
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models import MODEL_REGISTRY
    from fairseq.tasks import TASK_DATACLASS_REGISTRY
    from omegaconf import OmegaConf, open_dict

    import macaron

    macaron.register_fairseq()
    language_model = arch.startswith("macaron_lm")
    names = ("dict.txt", "dict.txt") if language_model else ("dict.de.txt", "dict.en.txt")
    source, target = (Dictionary.load(str(data / name)) for name in names)
    torch.manual_seed(4)
    kept = {name: size for name, size in SIZES.items() if not language_model or name.startswith("decoder")}
    model = {"_name": arch, **kept, **options}
    built = MODEL_REGISTRY[arch].build_model(
        Namespace(**{k: v for k, v in model.items() if k != "_name"}, tokens_per_sample=20),
        Namespace(source_dictionary=source, target_dictionary=target),
    )
    task = {"_name": "language_modeling", "data": "", "tokens_per_sample": 20, "max_target_positions": 20}
    if not language_model:
        task = {"_name": "translation", "data": "", "source_lang": "de", "target_lang": "en"}
    cfg = OmegaConf.structured(FairseqConfig)
    with open_dict(cfg):
        every = OmegaConf.structured(TASK_DATACLASS_REGISTRY[task["_name"]])
        cfg.model, cfg.task, cfg.bpe, cfg.tokenizer = model, OmegaConf.merge(every, task), None, None
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=False, enum_to_str=True),
        "model": built.state_dict(),
        "optimizer_history": [{"num_updates": 0, "criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}],
        "extra_state": {"epoch": 0, "val_loss": None},
        "last_optimizer_state": None,
        "task_state": {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def release(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder: raw text without Moses, and one merge of BPE."""
    import shutil

    folder = tmp_path_factory.mktemp("trajectories") / "release"
    save_checkpoint(folder / "model.pt", data_folder)
    from macaron.user_dir import released

    from macaron.text import TextSettings

    merges = ["H a", "Ha u", "M a", "Ma n", "Man n</w>", "e i", "ei n</w>", "m a", "ma n</w>", "h o", "ho u", "hou s",
              "hous e</w>"]  # fmt: skip
    (folder / "bpecodes").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    for language in ("de", "en"):
        shutil.copyfile(data_folder / f"dict.{language}.txt", folder / f"dict.{language}.txt")
    text = TextSettings("de", "en", tokenizer="none", joined_dictionary=False)
    released.write(folder, released.Description(text, {"beam": 2}))
    released.seal(folder)
    assert json.loads((folder / "text.json").read_text())["source"] == "de"
    return folder
