"""The folder for the hub, loaded where this package cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

from macaron.bert import (
    AUTO_CLASSES,
    MacaronBertBpeTokenizer,
    MacaronBertForPreTraining,
    MacaronBertForSequenceClassification,
    MacaronBertModel,
    export_for_hub,
)
from macaron.hf.export import sources
from macaron.legacy.bert_tokenizer import SPECIAL_SYMBOLS, build_tokenizer
from macaron.particles.flows import FLOWS, register_flow


class Drift(torch.nn.Linear):
    """dx/dt = W x + b."""

    kind = "drift"

    def __init__(self, dim):
        super().__init__(dim, dim)

    def forward(self, x, context):
        return super().forward(x), None


# A Python without this package and without what is optional: None in sys.modules marks what must not be found.
LOAD = """
import os, sys
for name in ("macaron", "triton", "flash_attn"):
    sys.modules[name] = None
import torch, transformers
folder, names = sys.argv[1], sys.argv[2:]
inputs = torch.load(f"{folder}.pt")
outputs = {}
for name in names:
    torch.manual_seed(0)
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    if name == "AutoModelForPreTraining":
        outputs = dict(model(**inputs))
        labels = inputs["input_ids"]
        model.config.sparse_prediction = True
        model.train()(**inputs, labels=labels).loss.backward()
        model.save_pretrained(f"{folder}-again")
again = transformers.AutoModel.from_pretrained(f"{folder}-again", trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
outputs["tokens"] = tokenizer("ab a", "bab")["input_ids"]
torch.save(outputs, f"{folder}-outputs.pt")
"""


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(vocab=str(tmp_path / "vocab.txt"))


def test_loads_without_this_package(build, batch, tmp_path):
    """All heads, and a tokenizer whose class is of this package too."""
    (tmp_path / "codes").write_text("#version: 0.2\na b</w>\n")
    symbols = [*SPECIAL_SYMBOLS, "a", "b@@", "ab"]
    tokenizer = build_tokenizer(symbols, max_length=40, codes=tmp_path / "codes")
    assert isinstance(tokenizer, MacaronBertBpeTokenizer)
    model = build(MacaronBertForPreTraining, position_embedding_type="sinusoidal")
    folder = export_for_hub(model, tmp_path / "model", tokenizer)
    torch.save(batch, tmp_path / "model.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, folder, *(auto.__name__ for auto in AUTO_CLASSES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "code")},
    )
    assert done.returncode == 0, done.stderr
    outputs = torch.load(tmp_path / "model-outputs.pt")
    assert outputs.pop("tokens") == tokenizer("ab a", "bab")["input_ids"] == [5, 8, 6, 2, 7, 8, 2]
    expected = model(**batch)
    for name, value in outputs.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)  # the same code in another process


def test_the_folder(build, tokenizer, tmp_path):
    model = build(MacaronBertForSequenceClassification, num_labels=3)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "local")
    tokenizer.save_pretrained(tmp_path / "local")
    (tmp_path / "local" / "README.md").write_text("a card")
    folder = export_for_hub(tmp_path / "local", tmp_path / "deep" / "hub")
    stored = json.loads((folder / "config.json").read_text())
    assert stored["architectures"] == ["MacaronBertForSequenceClassification"]
    assert set(stored["auto_map"]) == {"AutoConfig", *(auto.__name__ for auto in AUTO_CLASSES)}
    assert stored["dtype"] == "bfloat16"
    for entry in stored["auto_map"].values():
        module, name = entry.split(".")
        assert f"class {name}(" in (folder / f"{module}.py").read_text()
    assert (folder / "tokenizer.json").exists()
    assert (folder / "README.md").read_text() == "a card"
    # and where the package is installed, the folder is an ordinary one
    assert type(AutoModel.from_pretrained(folder)) is MacaronBertModel
    assert not hasattr(model.config, "auto_map")


def test_nothing_is_overwritten_unasked(build, tmp_path):
    export_for_hub(build(), tmp_path / "hub")
    kept = (tmp_path / "hub" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"hub exists; choose another folder, or replace it with force"):
        export_for_hub(build(), tmp_path / "hub")
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == kept
    export_for_hub(build(), tmp_path / "hub", force=True)
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() != kept
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_another_model_is_refused(config, tmp_path):
    bert = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="BertModel is no Macaron BERT"):
        export_for_hub(bert, tmp_path / "hub")
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a model of type 'bert', not 'macaron_bert'"):
        export_for_hub(tmp_path / "bert", tmp_path / "hub")
    named = config()
    named.architectures = ["Bart"]
    named.save_pretrained(tmp_path / "named")
    with pytest.raises(ValueError, match="names the architecture 'Bart'; this package has MacaronBertModel"):
        export_for_hub(tmp_path / "named", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_an_export_changes_nothing(build, tmp_path):
    """A folder with less, more or other tensors than its class has is refused; nothing is written."""
    source = tmp_path / "model"
    build(MacaronBertForPreTraining).save_pretrained(source)
    stored, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")

    def refused(message: str, without: str = "-", **changes: object) -> None:
        kept = {name: t for name, t in tensors.items() if without not in name}
        save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
        (source / "config.json").write_text(json.dumps({**stored, **changes}))
        with pytest.raises(ValueError, match=message):
            export_for_hub(source, tmp_path / "hub")

    refused(r"is not a whole MacaronBertForPreTraining, .* it lacks macaron_bert\.layers\.0\.", without="layers.")
    refused(r"it lacks nsp_head\.bias, lacks nsp_head\.weight", without="nsp_head")
    refused(r"it has mlm_head\.decoder\.bias, for which there is no place", architectures=None)
    refused(r"has macaron_bert\.embeddings\.word_embeddings\.weight \(50, 32\) for \(60, 32\)", vocab_size=60)
    refused(r"it has macaron_bert\.layers\.1\.", num_hidden_layers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_code_in_the_folder_is_the_code_of_the_package():
    """Apart from imports and names of operators; nothing in it asks for this package."""
    texts = sources([MacaronBertModel.__module__])
    assert {"modeling_macaron_bert.py", "macaron_particles_layer.py", "macaron_ops_step_norm.py"} <= set(texts)
    assert {f"macaron_hf_{name}.py" for name in ("context", "loading", "losses", "packing", "positions")} <= set(texts)
    for text in texts.values():
        assert text.startswith("# Part of macaron-net ")
        assert "from macaron" not in text.partition("\n")[2] and '"macaron::' not in text


def test_a_flow_of_ones_own_is_not_exported(build, tmp_path):
    """Its code is in another module, without which the folder could not be loaded."""
    register_flow("drift", Drift)
    try:
        model = build(splitting="ffn/2 attention drift ffn/2")
        with pytest.raises(ValueError, match=r"the flow drift is of another module .* an export does not carry"):
            export_for_hub(model, tmp_path / "out")
    finally:
        del FLOWS["drift"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_notation_is_exported(build, tmp_path):
    model = build(splitting="attention/2 ffn attention/2")
    export_for_hub(model, tmp_path / "out")
    text = (
        "import sys; sys.modules['macaron'] = None; from transformers import AutoModel; "
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "print([flow.kind for flow in model.layers[0].flows], model.config.splitting)"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", text, str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['self_attention', 'ffn', 'self_attention'] attention/2 ffn attention/2", done.stderr
