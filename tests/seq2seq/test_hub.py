"""The folder for the hub, loaded where this package cannot be imported; and the commands that write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from macaron import cli
from macaron.bert import MacaronBertConfig, MacaronBertModel
from macaron.seq2seq import MacaronForConditionalGeneration, export_for_hub

# A Python without this package and without what is optional: None in sys.modules marks what must not be found.
LOAD = """
import sys
for name in ("macaron", "fairseq", "triton"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
batch = tokenizer(sys.argv[2:], text_target=sys.argv[2:], padding=True, return_tensors="pt")
labels = batch.pop("labels")
found = model.generate(**batch)
text = tokenizer.batch_decode(found, skip_special_tokens=True)
loss = model.train()(**batch, labels=labels).loss
loss.backward()
torch.save({"found": found, "text": text, "loss": loss.detach(), **batch}, f"{folder}-outputs.pt")
"""
OPTIONS = {
    "depth_rule": "multistep",
    "solver": "heun",
    "dropout": 0.0,
    "text": {"joined_dictionary": False},
}


def test_translates_without_this_package(make_release, texts, tmp_path, capsys):
    converted, exported = tmp_path / "converted", tmp_path / "exported"
    assert cli.main(["convert", str(make_release(**OPTIONS)), "--to", "transformers", "--output", str(converted)]) == 0
    assert cli.main(["export-hub", str(converted), "--output", str(exported)]) == 0
    assert f"from_pretrained({str(exported)!r}, trust_remote_code=True)" in capsys.readouterr().out
    code = {path.name for path in exported.glob("*.py")}
    assert {"modeling_macaron.py", "configuration_macaron.py", "tokenization_macaron.py"} < code
    assert not [name for name in code if "bert" in name or "user_dir" in name]
    home = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(exported), *texts], cwd=tmp_path, env=home, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.load(f"{exported}-outputs.pt", weights_only=True)

    tokenizer = AutoTokenizer.from_pretrained(converted)
    model = AutoModelForSeq2SeqLM.from_pretrained(converted).eval()
    batch = tokenizer(texts, text_target=texts, padding=True, return_tensors="pt")
    labels = batch.pop("labels")
    for name, value in batch.items():
        assert torch.equal(value, theirs[name])
    found = model.generate(**batch)
    assert torch.equal(found, theirs["found"])
    assert theirs["text"] == tokenizer.batch_decode(found, skip_special_tokens=True)
    torch.testing.assert_close(model(**batch, labels=labels).loss.detach(), theirs["loss"])


def test_what_is_no_model_of_this_kind(tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = MacaronBertModel(MacaronBertConfig(**sizes))
    with pytest.raises(ValueError, match="MacaronBertModel is no Macaron Net of encoder and decoder"):
        export_for_hub(bert, tmp_path / "out")
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"of type 'macaron_bert', not 'macaron'"):
        export_for_hub(tmp_path / "bert", tmp_path / "out")
    with pytest.raises(ValueError, match=r"'macaron_bert', not 'macaron'; load it with"):
        MacaronForConditionalGeneration.from_pretrained(tmp_path / "bert")
    with pytest.raises(
        ValueError, match="takes a MacaronConfig, not one of model_type='macaron_bert'; to make one of a"
    ):
        MacaronForConditionalGeneration.from_pretrained(tmp_path / "bert", config=bert.config)
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        export_for_hub(bert, tmp_path / "bert")
    assert json.loads((tmp_path / "bert" / "config.json").read_text())["model_type"] == "macaron_bert"
