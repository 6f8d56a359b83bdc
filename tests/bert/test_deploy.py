"""`macaron export` of a Macaron BERT: what is written runs without this package, and gives the model's numbers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from macaron.bert import (
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
    deploy,
    load_int8,
)
from macaron.cli import main
from macaron.decoding import choose_precision

needs_int8 = pytest.mark.skipif(
    choose_precision("auto") != "int8", reason="no products of 8-bit numbers on this processor"
)
WITHOUT_MACARON = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "macaron":
            raise ImportError(name)
sys.meta_path.insert(0, Hidden())
exec(sys.argv[1])
"""


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "another", "sentence", "."]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=40
    )


@pytest.fixture
def folder(build, tmp_path):
    """A classifier of three labels with a tokenizer."""
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    model = build(MacaronBertForSequenceClassification, num_hidden_layers=1, id2label=labels, num_labels=3)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_onnx_runs_where_this_package_is_not(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(folder), "--format", "onnx", "--output", str(out)]) == 0
    assert "greatest difference on sample input" in capsys.readouterr().out
    assert b"/" + str(tmp_path).encode()[1:] not in (out / "model.onnx").read_bytes()
    assert b"stack_trace" not in (out / "model.onnx").read_bytes()
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT_MACARON, code_of(out)],
        cwd=out, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "(2, 3)"
    model = deploy.load(folder).eval()
    batch = tokenizer()(["One sentence.", "Another one."], padding=True, return_tensors="pt")
    labels = [model.config.id2label[i] for i in model(**batch).logits.argmax(-1).tolist()]
    assert lines[1] == str(labels)


def test_sentence_embeddings(build, tmp_path):
    from onnxruntime import InferenceSession

    folder = tmp_path / "model"
    model = build(MacaronBertModel, num_hidden_layers=1, use_pooler=True)
    model.save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}))
    deploy.export(folder, tmp_path / "onnx", "onnx-int8")
    session = InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [one.name for one in session.get_outputs()] == ["sentence_embedding", "last_hidden_state"]
    ids = torch.tensor([[5, 9, 7], [8, 6, 0]])
    given = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}
    found = session.run(["sentence_embedding"], {name: t.numpy() for name, t in given.items()})[0]
    x = model(**given).last_hidden_state
    mean = torch.stack([x[0].mean(0), x[1, :2].mean(0)])
    wanted = torch.nn.functional.normalize(mean, dim=-1)
    assert torch.cosine_similarity(torch.from_numpy(found), wanted).min() > 0.99
    assert torch.from_numpy(found).norm(dim=-1).sub(1).abs().max() < 1e-5

    pooling.write_text(json.dumps({"pooling_mode": "max"}))
    with pytest.raises(ValueError, match="knows mean, and cls"):
        deploy.export(folder, tmp_path / "other", "torch-export")
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "3_Dense", "type": "x.Dense"}]))
    with pytest.raises(ValueError, match=r"Normalize, Dense; an export knows"):
        deploy.export(folder, tmp_path / "other", "torch-export")
    assert not (tmp_path / "other").exists()


@needs_int8
def test_what_sentence_transformers_says_of_the_text(build, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    build(MacaronBertModel, num_hidden_layers=1).save_pretrained(folder)
    text = tokenizer()
    text.model_max_length = 10**30
    text.save_pretrained(folder)
    names = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in names.items()]
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode": "cls"},
        "sentence_roberta_config.json": {"max_seq_length": 4},
        "config_sentence_transformers.json": {"prompts": {"query": "one ", "none": ""}, "default_prompt_name": "query"},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    deploy.export(folder, tmp_path / "out", "torch-int8")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert 'Prompts, to be put before a text: {"query": "one "}' in readme
    monkeypatch.chdir(tmp_path / "out")
    found: dict = {}
    exec(code_of(tmp_path / "out"), found)  # our own text
    assert found["batch"]["input_ids"].shape == (2, 4)  # cut off
    assert found["batch"]["input_ids"][0].tolist() == [2, 4, 1, 3] == found["tokenizer"]("one One")["input_ids"]

    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean", "include_prompt": False}))
    with pytest.raises(ValueError, match=r"leaves the prompts \(query\) out of the mean"):
        deploy.export(folder, tmp_path / "other", "torch-int8")
    (folder / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    with pytest.raises(ValueError, match=r"default_prompt_name is 'query', which is none of none"):
        deploy.export(folder, tmp_path / "other", "torch-int8")
    (folder / "modules.json").unlink()  # the encoder alone, which takes as many tokens as it has positions
    deploy.export(folder, tmp_path / "other", "torch-int8")
    longest = AutoTokenizer.from_pretrained(tmp_path / "other").model_max_length
    assert longest == AutoConfig.from_pretrained(folder).max_position_embeddings


def test_the_first_token_behind_padding():
    x, real = torch.randn(2, 4, 3), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert torch.equal(deploy.Pooling("cls", False)(x, real), torch.stack([x[0, 2], x[1, 0]]))


@needs_int8
@pytest.mark.parametrize(
    ("head", "options", "shape"),
    [
        (MacaronBertForMultipleChoice, {}, (1, 2)),
        (MacaronBertForSequenceClassification, {"num_labels": 1}, (2, 1)),
    ],
)
def test_the_code_of_other_heads(head, options, shape, build, tmp_path, monkeypatch, capsys):
    build(head, num_hidden_layers=1, **options).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    deploy.export(tmp_path / "model", tmp_path / "out", "torch-int8")
    monkeypatch.chdir(tmp_path / "out")
    exec(code_of(tmp_path / "out"), {})  # our own text
    assert capsys.readouterr().out == f"torch.Size({list(shape)})\n"


def test_torch_export_of_a_model_without_a_tokenizer(build, tmp_path):
    build(MacaronBertForQuestionAnswering, num_hidden_layers=1, type_vocab_size=0).save_pretrained(tmp_path / "model")
    deploy.export(tmp_path / "model", tmp_path / "out", "torch-export")
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called and not any("macaron" in name for name in called)
    ids = torch.randint(1, 50, (4, 9))
    start, end = program.module()(input_ids=ids, attention_mask=torch.ones_like(ids))
    found = deploy.load(tmp_path / "model").eval()(ids)
    torch.testing.assert_close(start, found.start_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(end, found.end_logits, rtol=0, atol=1e-5)


@needs_int8
@pytest.mark.parametrize(
    ("head", "options"),
    [
        (MacaronBertForMaskedLM, {"position_embedding_type": "sinusoidal"}),
        (MacaronBertForPreTraining, {"use_pooler": True}),
        (MacaronBertForTokenClassification, {"splitting": "lie", "normalize_before": False}),
    ],
)
def test_eight_bits_of_torch(head, options, build, batch, tmp_path):
    model = build(head, **options)
    model.save_pretrained(tmp_path / "model")
    made = deploy.export(tmp_path / "model", tmp_path / "out", "torch-int8")
    assert 0 < made.relative < 0.1
    small = load_int8(tmp_path / "out")
    for ours, theirs in zip(model(**batch).to_tuple(), small(**batch).to_tuple(), strict=True):
        assert (ours - theirs).norm() / ours.norm() < 0.1
    tensors = load_file(tmp_path / "out" / deploy.INT8_FILE)
    matrices = [name for name in tensors if name + deploy.SCALE in tensors]
    assert all(tensors[name].dtype == torch.int8 for name in matrices) and len(matrices) > 8
    with pytest.raises(OSError, match=r"model\.safetensors"):  # not to be taken for a model of full precision
        head.from_pretrained(tmp_path / "out")


@needs_int8
def test_eight_bits_that_are_damaged(build, tmp_path, monkeypatch):
    build(MacaronBertModel).save_pretrained(tmp_path / "model")
    deploy.export(tmp_path / "model", tmp_path / "out", "torch-int8")
    file = tmp_path / "out" / deploy.INT8_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"cannot be read .*export the model again"):
        load_int8(tmp_path / "out")
    tensors = load(whole)
    save_file(tensors, file, metadata={"kind": "macaron-int8 2"})
    with pytest.raises(ValueError, match="says it is 'macaron-int8 2'"):
        load_int8(tmp_path / "out")
    name = next(name for name in tensors if name.endswith(deploy.SCALE))
    save_file({n: t for n, t in tensors.items() if n != name}, file, metadata={"kind": deploy.INT8_KIND})
    with pytest.raises(ValueError, match="and its scales do not fit"):
        load_int8(tmp_path / "out")
    gone = {n: t for n, t in tensors.items() if not n.startswith("final_norm")}
    save_file(gone, file, metadata={"kind": deploy.INT8_KIND})
    with pytest.raises(ValueError, match="do not fit each other: final_norm"):
        load_int8(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"has no model\.int8\.safetensors"):
        load_int8(tmp_path / "model")
    monkeypatch.setattr("macaron.decoding.weights._onednn", lambda: False)
    for act in (lambda: load_int8(tmp_path / "out"), lambda: deploy.export(tmp_path / "model", "x", "torch-int8")):
        with pytest.raises(ValueError, match="needs a CPU with products of 8-bit numbers"):
            act()


def test_what_is_refused(folder, build, tmp_path, capsys, monkeypatch):
    def refused(*arguments: object) -> str:
        assert main(["export", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "neither config.json nor text.json" in refused(tmp_path / "empty", "--format", "onnx", "--output", "x")
    assert "there is no folder" in refused(tmp_path / "none", "--format", "onnx", "--output", tmp_path / "x")
    assert "is a file" in refused(folder / "config.json", "--format", "onnx", "--output", "x")
    assert "is for released translation models" in refused(folder, "--format", "ctranslate2", "--output", "x")
    assert "is not empty" in refused(folder, "--format", "onnx", "--output", folder.parent)
    assert "is the model itself" in refused(folder, "--format", "onnx", "--output", folder, "--force")
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "model_type": "bert"}))
    assert "type 'bert', not 'macaron_bert'" in refused(other, "--format", "onnx", "--output", tmp_path / "x")
    (other / "model.safetensors").unlink()
    (other / "config.json").write_text(json.dumps(settings))
    assert "model.safetensors" in refused(other, "--format", "onnx", "--output", tmp_path / "x")
    build(MacaronBertForSequenceClassification, horizon="learned").save_pretrained(tmp_path / "learned")
    said = refused(tmp_path / "learned", "--format", "torch-export", "--output", tmp_path / "x")
    assert "looks at its sentences to decide" in said
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = refused(folder, "--format", "onnx", "--output", tmp_path / "x")
    assert "pip install 'macaron-net[export]'" in said
    assert not (tmp_path / "x").exists()


@needs_int8
def test_numbers_that_differ_are_refused(folder, tmp_path, monkeypatch):
    quantized = deploy.quantized
    monkeypatch.setattr(deploy, "quantized", lambda values: (quantized(values)[0], quantized(values)[1] * 2))
    with pytest.raises(ValueError, match=r"the numbers differ by .* so nothing was written"):
        deploy.export(folder, tmp_path / "out", "torch-int8")
    assert not (tmp_path / "out").exists()
