"""What a folder may hold: whole weights of the model it names, that model's tokenizer, and no code that is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.common.errors import RecipeError
from recipes.glue.model import load_model, tokenizer_digest
from recipes.glue.tasks import TASKS

COLA, MNLI, STSB = TASKS["cola"], TASKS["mnli"], TASKS["stsb"]


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        pytest.fail("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)


@pytest.fixture
def folder(stock_bert: Path, tmp_path: Path) -> Path:
    """A copy of the stock BERT to spoil."""
    return Path(shutil.copytree(stock_bert, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def saved(kind: str, folder: Path, like: Path, **options: Any) -> Path:
    """A model of another kind around the encoder of `like`."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(like)
    for name, value in options.items():
        setattr(config, name, value)
    model = getattr(transformers, kind)(config)
    encoder = transformers.BertModel.from_pretrained(like)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)  # without a pooler where the kind has none
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


# --- the head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
        ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "single_label_classification"}),
        ("BertForTokenClassification", {"num_labels": 9}),
        ("BertForQuestionAnswering", {}),
        ("BertForMaskedLM", {}),
        ("BertForPreTraining", {}),
    ],
)
def test_the_head_is_fresh_whatever_the_folder_held(
    kind: str, options: dict[str, Any], stock_bert: Path, tmp_path: Path
) -> None:
    other = saved(kind, tmp_path / "other", stock_bert, **options)
    pooled = kind not in ("BertForTokenClassification", "BertForQuestionAnswering", "BertForMaskedLM")
    for task in (COLA, MNLI, STSB):
        before, after = load_model(str(stock_bert), task, seed=5), load_model(str(other), task, seed=5)
        for name, expected in before.model.state_dict().items():
            if pooled or ("pooler" not in name and "classifier" not in name):
                torch.testing.assert_close(after.model.state_dict()[name], expected, rtol=0, atol=0)  # copies
        assert not torch.equal(after.model.classifier.weight, load_model(str(other), task, 6).model.classifier.weight)
        assert after.model.config.num_labels == len(after.model.classifier.weight) == task.num_labels
        assert after.model.config.problem_type == before.model.config.problem_type
        assert any("no pooler" in note for note in after.notes) == (not pooled)


@pytest.mark.parametrize("use_pooler", [False, True])
def test_the_head_of_macaron_bert_is_fresh(use_pooler: bool, stock_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification, MacaronBertModel

    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    config = MacaronBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, use_pooler=use_pooler, num_labels=3,
    )  # fmt: skip
    classifier = MacaronBertForSequenceClassification(config)
    classifier.save_pretrained(tmp_path / "classifier")
    classifier.macaron_bert.save_pretrained(tmp_path / "encoder")
    for name in ("classifier", "encoder"):
        tokenizer.save_pretrained(tmp_path / name)
    one, two = (load_model(str(tmp_path / name), MNLI, 5).model for name in ("classifier", "encoder"))
    assert isinstance(one.macaron_bert, MacaronBertModel)
    for name, expected in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], expected, rtol=0, atol=0)  # copies
    assert not torch.equal(one.classifier.weight, classifier.classifier.weight)


def test_a_splitting_of_ones_own(stock_bert: Path, tmp_path: Path) -> None:
    """As config.json has it; what does not hold together there is refused with the reason."""
    from transformers import AutoTokenizer

    from macaron.bert import MacaronBertConfig, MacaronBertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    config = MacaronBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, splitting="attention/2 ffn attention/2",
    )  # fmt: skip
    model = MacaronBertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), COLA, 1).model
    assert loaded.config.splitting == "attention/2 ffn attention/2" and len(loaded.macaron_bert.layers[0].flows) == 3
    for name, expected in model.macaron_bert.state_dict().items():
        torch.testing.assert_close(loaded.macaron_bert.state_dict()[name], expected, rtol=0, atol=0)  # copies
    stored = json.loads((tmp_path / "config.json").read_text())
    for change, reason in (
        ({"splitting": "gone"}, "splitting='gone' is unknown; choose one of strang, lie"),
        ({"splitting": "attention/2 ffn"}, "add up to 0.5"),
        ({"splitting": "attention ffn conv"}, "flow 'conv' is unknown here"),
        ({"depth_rule": "gone"}, "depth_rule='gone' is unknown; choose one of euler"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**stored, **change}))
        with pytest.raises(RecipeError, match=reason):
            load_model(str(tmp_path), COLA, 1)


def test_a_classifier_goes_on_with_what_pre_training_made_for_it(stock_bert: Path, tmp_path: Path) -> None:
    """ModernBERT's dense layer before the classifier is that of its masked language model."""
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM

    # of two layers, for transformers 5.6 refuses a ModernBERT of one kind of them
    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ModernBertForMaskedLM(ModernBertConfig(vocab_size=24, pad_token_id=0, **options))
    model.config.update({"cls_token_id": 2, "sep_token_id": 3})
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(stock_bert).save_pretrained(tmp_path)
    torch.testing.assert_close(load_model(str(tmp_path), COLA, 1).model.head.dense.weight, model.head.dense.weight)


def test_outputs_are_named(stock_bert: Path) -> None:
    names = {name: load_model(str(stock_bert), TASKS[name], 1).model.config for name in TASKS if name != "ax"}
    assert names["cola"].id2label == {0: "acceptable"} and names["cola"].label2id == {"acceptable": 0}
    assert names["cola"].glue["classes"] == ["unacceptable", "acceptable"]
    assert names["sst2"].id2label == {0: "negative", 1: "positive"}
    assert names["mrpc"].id2label == {0: "equivalent"} and names["qqp"].id2label == {0: "duplicate"}
    assert names["mnli"].id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert names["rte"].id2label == names["qnli"].id2label == {0: "entailment", 1: "not_entailment"}
    assert names["wnli"].id2label == {0: "not_entailment", 1: "entailment"}
    assert names["stsb"].id2label == {0: "(similarity - 3) / 2"}
    assert (names["stsb"].glue["scale"], names["stsb"].glue["offset"], names["stsb"].glue["range"]) == (2, 3, [0, 5])


# --- the weights ----------------------------------------------------------------------------------------------


def without(part: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("encoder.layer.0", "encoder.layer.0.attention"),
        ("word_embeddings", "embeddings.word_embeddings.weight"),
        ("LayerNorm.bias", "LayerNorm.bias"),
        ("pooler.dense.weight", "pooler.dense.weight"),
        ("pooler", "pooler.dense.bias, pooler.dense.weight"),
        ("", "embeddings.LayerNorm"),
    ],
)
def test_missing_tensors_are_named(folder: Path, part: str, named: str) -> None:
    edit_weights(folder, lambda tensors: (without(part)(tensors), tensors.update(something=torch.zeros(1))))
    with pytest.raises(RecipeError, match=rf"the weights lack \d+ of 23 tensors of the encoder: .*{named}"):
        load_model(str(folder), COLA, 1)


def test_a_pooler_of_half_is_missed_in_a_folder_that_names_no_architecture(folder: Path) -> None:
    edit(folder / "config.json", architectures=None)
    edit_weights(folder, without("pooler.dense.weight"))
    with pytest.raises(RecipeError, match=r"lack 1 of 23 .*pooler\.dense\.weight"):
        load_model(str(folder), COLA, 1)
    edit_weights(folder, without("pooler"))
    assert any("no pooler" in note for note in load_model(str(folder), COLA, 1).notes)


def test_missing_tensors_of_macaron_bert_are_named(stock_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from macaron.bert import MacaronBertConfig, MacaronBertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    config = MacaronBertConfig(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    MacaronBertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), COLA, 1).notes == []
    edit_weights(tmp_path, without("layers.1."))
    with pytest.raises(RecipeError, match=r"layers\.1\."):
        load_model(str(tmp_path), COLA, 1)


def test_other_shapes_layers_and_kinds(folder: Path) -> None:
    for changes, message in [
        ({"num_hidden_layers": 2}, r"lack 16 of 39 .*encoder\.layer\.1\."),
        ({"intermediate_size": 48}, r"other shapes than config.json says, .* \[32\] instead of \[48\]"),
        ({"vocab_size": 30}, r"other shapes than config.json says, .*word_embeddings"),
        ({"model_type": "roberta"}, "model_type 'roberta', but its architecture BertModel is of 'bert'"),
        ({"model_type": "macaron_bert"}, "model_type 'macaron_bert', but its architecture BertModel"),
        ({"model_type": "macaron_bert", "architectures": None}, "the weights lack|cannot load it"),
        ({"model_type": "roberta", "architectures": None, "type_vocab_size": 1}, "shapes|lack|segments"),
        ({"model_type": "no_such_model"}, "cannot load it"),
        ({"attn_implementation": "somebody/attention"}, "names code on the hub"),
    ]:
        shutil.copy(folder / "config.json", folder / "whole")
        edit(folder / "config.json", **changes)
        with pytest.raises(RecipeError, match=message):
            load_model(str(folder), COLA, 1)
        shutil.move(folder / "whole", folder / "config.json")


def test_layers_that_the_configuration_has_no_place_for_are_said(stock_bert: Path, tmp_path: Path) -> None:
    other = saved("BertForMaskedLM", tmp_path / "deep", stock_bert)
    edit_weights(
        other,
        lambda tensors: tensors.update(
            {n.replace("layer.0", "layer.1"): t.clone() for n, t in tensors.items() if "layer.0" in n}
        ),
    )
    (note,) = [note for note in load_model(str(other), COLA, 1).notes if "unused" in note]
    assert note.startswith("16 tensors") and "encoder.layer.1." in note


def test_weights_that_are_not_finite(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["embeddings.LayerNorm.bias"].fill_(float("nan")))
    with pytest.raises(RecipeError, match=r"1 tensors are not finite: embeddings\.LayerNorm\.bias"):
        load_model(str(folder), COLA, 1)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00"])
def test_damaged_files_are_one_message(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_model(str(folder), COLA, 1)
    assert str(caught.value).startswith(f"--model {folder}: ") and "\n" not in str(caught.value)


def test_cut_off_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for size in (7, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(RecipeError, match="cannot load it"):
            load_model(str(folder), COLA, 1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="cannot load it"):
        load_model(str(folder), COLA, 1)


# --- the tokenizer --------------------------------------------------------------------------------------------


def test_a_folder_without_its_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(RecipeError, match=r"has no tokenizer, no vocab\.txt or tokenizer\.json.*save_pretrained"):
        load_model(str(folder), COLA, 1)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(RecipeError, match="has no tokenizer"):
        load_model(str(folder), COLA, 1)


def put_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    from transformers import BertTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ([*SPECIAL, *map(str, range(90))], "the tokenizer has 95 entries but the model 24 embeddings"),
        ([*SPECIAL, "a", "b"], "the tokenizer has only 7 entries for the model's 24 embeddings"),
        (["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *map(str, range(19))], "pad_token_id is 0 .* and 3 in the tok"),
    ],
)
def test_the_tokenizer_of_another_model(folder: Path, vocabulary: list[str], message: str) -> None:
    put_tokenizer(folder, vocabulary)
    with pytest.raises(RecipeError, match=message):
        load_model(str(folder), COLA, 1)


def test_special_tokens_that_the_configuration_numbers_otherwise(folder: Path) -> None:
    for name in ("cls", "sep", "mask"):
        edit(folder / "config.json", **{f"{name}_token_id": 9})
        with pytest.raises(RecipeError, match=rf"{name}_token_id is 9 in config.json .* write \d into config.json"):
            load_model(str(folder), COLA, 1)
        edit(folder / "config.json", **{f"{name}_token_id": None})
    edit(folder / "config.json", pad_token_id=None)
    assert load_model(str(folder), COLA, 1).notes == []


def test_numbers_of_special_tokens_that_nobody_chose_say_nothing(stock_bert: Path, tmp_path: Path) -> None:
    """XLM's configuration numbers its mask 0 and BigBird's its separator 66, in published models too."""
    from transformers import AutoTokenizer, FlaubertConfig, FlaubertWithLMHeadModel

    config = FlaubertConfig(vocab_size=24, emb_dim=16, n_layers=1, n_heads=2, pad_index=0, pad_token_id=0)
    assert config.mask_token_id != AutoTokenizer.from_pretrained(stock_bert).mask_token_id
    FlaubertWithLMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(stock_bert).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), COLA, 1).model.config.model_type == "flaubert"


def test_a_few_spare_embeddings_are_said_and_taken(folder: Path) -> None:
    put_tokenizer(folder, [*SPECIAL, *map(str, range(18))])
    assert "1 of the model's 24 embeddings" in load_model(str(folder), COLA, 1).notes[0]


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_byte_order_marks_are_refused_where_they_would_be_text(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    with pytest.raises(RecipeError, match=f"{name} begins with a byte order mark"):
        load_model(str(folder), COLA, 1)


def test_the_digest_of_a_tokenizer(folder: Path) -> None:
    before = tokenizer_digest(str(folder))
    edit(folder / "config.json", hidden_act="relu")
    assert tokenizer_digest(str(folder)) == before != None  # noqa: E711
    (folder / "vocab.txt").write_text("other\n", encoding="utf-8")
    assert tokenizer_digest(str(folder)) != before
    assert tokenizer_digest("some/name-on-the-hub") is None


# --- code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["configuration", "model", "tokenizer", "elsewhere"])
def test_code_in_a_folder_is_never_run_nor_asked_about(folder: Path, place: str, tmp_path: Path) -> None:
    (folder / "code.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')\n", encoding="utf-8")
    if place == "configuration":
        edit(folder / "config.json", model_type="strange", auto_map={"AutoConfig": "code.Strange"})
    elif place == "model":  # a kind without a classifier
        heads = {"AutoModelForSequenceClassification": "code.Strange", "AutoModel": "code.Strange"}
        edit(folder / "config.json", model_type="dpr", architectures=None, auto_map=heads)
    elif place == "elsewhere":
        edit(folder / "config.json", model_type="strange", auto_map={"AutoConfig": "some/repository--code.Strange"})
    else:
        auto_map = {"AutoTokenizer": ["code.Strange", "code.Strange"]}
        edit(folder / "tokenizer_config.json", tokenizer_class="Strange", auto_map=auto_map)
        edit(folder / "config.json", model_type="strange")
    with pytest.raises(RecipeError, match=r"cannot load it|code from a model's folder is never run here"):
        load_model(str(folder), COLA, 1)
    assert not (tmp_path / "witness").exists()


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return open, (str(self.witness), "w")


def test_weights_that_hold_code_are_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil(tmp_path / "witness")}, folder / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"weights hold more than tensors, perhaps code, .*save it as model.safetens"):
        load_model(str(folder), COLA, 1)
    assert not (tmp_path / "witness").exists()


def test_a_known_kind_is_loaded_without_the_code_beside_it(stock_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from macaron.bert import MacaronBertConfig, MacaronBertForMaskedLM, export_for_hub

    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    model = MacaronBertForMaskedLM(MacaronBertConfig(vocab_size=24, hidden_size=16, num_attention_heads=2))
    exported = export_for_hub(model, tmp_path / "exported", tokenizer)
    for path in exported.glob("*.py"):
        path.write_text("raise SystemExit('run')\n", encoding="utf-8")
    assert type(load_model(str(exported), COLA, 1).model).__module__ == "macaron.bert.modeling_macaron_bert"


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/where"}', encoding="utf-8")
    with pytest.raises(RecipeError, match="merge"):
        load_model(str(folder), COLA, 1)
