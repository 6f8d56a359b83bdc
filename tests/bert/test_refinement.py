"""`macaron refine` of a Macaron BERT's folder: every head, tokenizer and card, and the optimisers that write one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from macaron.bert import AUTO_CLASSES, MacaronBertForMaskedLM, MacaronBertForSequenceClassification, MacaronBertModel
from macaron.bert.refinement import refine_folder
from macaron.cli import main
from macaron.dynamics.solvers import HEUN_LEARNED


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gates" in name or ".rule." in name:
                parameter.normal_(0.0, 0.3)
    return model


@pytest.mark.parametrize("head", AUTO_CLASSES.values(), ids=lambda head: head.__name__)
def test_every_head_comes_back(head: type[nn.Module], build, tmp_path: Path) -> None:
    model = build(head, solver="midpoint")
    model.save_pretrained(tmp_path / "a")
    finer = refine_folder(tmp_path / "a", 6, tmp_path / "b").model
    assert type(finer) is head and finer.config.num_hidden_layers == 6 and finer.config.dt == 1 / 3
    refine_folder(tmp_path / "b", 2, tmp_path / "c")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ac")
    assert after == before
    again = head.from_pretrained(tmp_path / "c")
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


GATED = {"depth_rule": "rk2_learned", "solver": HEUN_LEARNED.name}


@pytest.mark.parametrize("scheme", [{"depth_rule": "multistep"}, GATED, {"splitting": "lie", "solver": "rk4"}], ids=str)
def test_outputs_stay_near(scheme: dict[str, Any], build, batch, tmp_path: Path) -> None:
    """Refined again and again, the output settles: each time it moves by about half as much."""
    model = randomised(build(**scheme))
    model.save_pretrained(tmp_path / "2")
    moved, before = [], model(**batch).last_hidden_state
    for layers in (4, 8, 16):
        model = refine_folder(tmp_path / str(layers // 2), layers, tmp_path / str(layers)).model
        after = MacaronBertModel.from_pretrained(tmp_path / str(layers)).eval()(**batch).last_hidden_state
        moved.append(float((after - before).abs().max()))
        before = after
    assert 0 < moved[2] < 0.7 * moved[1] < 0.5 * moved[0], moved  # first order, and a next term at steps of 1/4


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["euler", "multistep"])
def test_the_state_of_adamw_as_convert_writes_it(rule: str, build, batch, tmp_path: Path) -> None:
    model = build(MacaronBertForMaskedLM, depth_rule=rule)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps(model, optimizer, batch)
    model.save_pretrained(tmp_path / "a")
    torch.save(optimizer.state_dict(), tmp_path / "a" / "optimizer.pt")
    assert refine_folder(tmp_path / "a", 4, tmp_path / "b").left_out == []
    finer = MacaronBertForMaskedLM.from_pretrained(tmp_path / "b")
    again = torch.optim.AdamW(finer.parameters(), lr=1e-3)
    again.load_state_dict(torch.load(tmp_path / "b" / "optimizer.pt", weights_only=True))
    old, new = dict(model.named_parameters()), dict(finer.named_parameters())
    name = "macaron_bert.layers.{}.flows.1.qkv_proj.weight"
    for n in range(4):
        here, there = again.state[new[name.format(n)]], optimizer.state[old[name.format(n // 2)]]
        torch.testing.assert_close(here["exp_avg"] * 2, there["exp_avg"], rtol=1e-6, atol=0)
        torch.testing.assert_close(here["exp_avg_sq"] * 4, there["exp_avg_sq"], rtol=1e-6, atol=0)
        assert here["step"] == 2
    embeddings = "macaron_bert.embeddings.word_embeddings.weight"
    assert torch.equal(again.state[new[embeddings]]["exp_avg"], optimizer.state[old[embeddings]]["exp_avg"])
    steps(finer, again, batch)


def test_a_trainer_goes_on(build, tmp_path: Path, capsys) -> None:
    """From a folder of its own, with the two groups of its optimiser."""
    data = [{"input_ids": torch.randint(1, 50, (6,)), "labels": n % 2} for n in range(8)]

    def trainer(model: nn.Module, most: int) -> Trainer:
        options = {"per_device_train_batch_size": 4, "save_steps": 2, "report_to": [], "use_cpu": True, "seed": 3}
        options |= {"disable_tqdm": True, "logging_strategy": "no", "weight_decay": 0.1}
        return Trainer(model, TrainingArguments(str(tmp_path), max_steps=most, **options), train_dataset=data)

    trainer(build(MacaronBertForSequenceClassification, depth_rule="multistep"), 2).train()
    (tmp_path / "checkpoint-2" / "README.md").write_text("a card")
    (tmp_path / "checkpoint-2" / "model.onnx").write_text("other weights")
    (tmp_path / "checkpoint-2" / "1_Pooling").mkdir()
    (tmp_path / "checkpoint-2" / "1_Pooling" / "config.json").write_text("{}")
    arguments = ["refine", str(tmp_path / "checkpoint-2"), "--layers", "4", "--output", str(tmp_path / "finer")]
    capsys.readouterr()
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "(2 layers, dt 1) into" in told and "(4 layers, dt 0.5), with the optimiser's state" in told
    assert "left out: model.onnx, which holds the model of before" in told
    assert not (tmp_path / "finer" / "model.onnx").exists()
    assert (tmp_path / "finer" / "1_Pooling" / "config.json").read_text() == "{}"
    finer = MacaronBertForSequenceClassification.from_pretrained(tmp_path / "finer")
    resumed = trainer(finer, 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "finer"))
    assert resumed.state.global_step == 4
    assert {float(entry["step"]) for entry in resumed.optimizer.state.values()} == {4.0}
    assert (tmp_path / "finer" / "README.md").read_text() == "a card"
    assert main(arguments) == 1
    assert "is not empty; name another one, or add --force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


@pytest.mark.parametrize(
    "scheme", [{}, {"depth_rule": "multistep", "solver": "heun"}, {"stochastic_depth": 0.3}], ids=str
)
def test_the_loss_goes_on_falling(scheme: dict[str, Any], build, batch, tmp_path: Path) -> None:
    """From where the coarser model was, without a jump as large as what was learned, and with its moments."""
    model = build(MacaronBertForMaskedLM, **scheme)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model.eval()(**batch, labels=batch["input_ids"]).loss)

    def trained(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> float:
        for _ in range(updates):
            optimizer.zero_grad()
            model.train()(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
        return loss(model)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start, before = loss(model), trained(model, optimizer, 20)
    model.save_pretrained(tmp_path / "2")
    torch.save(optimizer.state_dict(), tmp_path / "2" / "optimizer.pt")
    refine_folder(tmp_path / "2", 4, tmp_path / "4")
    finer = MacaronBertForMaskedLM.from_pretrained(tmp_path / "4")
    again = torch.optim.AdamW(finer.parameters(), lr=1e-3)
    again.load_state_dict(torch.load(tmp_path / "4" / "optimizer.pt", weights_only=True))
    jumped, after = loss(finer), trained(finer, again, 20)
    assert abs(jumped - before) < 0.5 * (start - before) and after < 0.8 * min(before, jumped), (
        start,
        before,
        jumped,
        after,
    )


def fails(folder: Path, out: Path, capsys, layers: str = "4", *more: str) -> str:
    assert main(["refine", str(folder), "--layers", layers, "--output", str(out), *more]) == 1
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    return told.err


def test_what_is_refused(build, tmp_path: Path, capsys) -> None:
    where, out = tmp_path / "a", tmp_path / "b"
    build().save_pretrained(where)
    capsys.readouterr()
    assert "2 layers do not become 5" in fails(where, out, capsys, "5")
    assert "a BERT has one stack of layers" in fails(where, out, capsys, "4+4")
    out.mkdir()
    (out / "thesis.tex").touch()
    assert "add --force to replace it" in fails(where, out, capsys)
    assert "is no model's, which alone --force replaces" in fails(where, out, capsys, "4", "--force")
    assert "so it is no folder of a Macaron BERT; of fairseq's --save-dir name a" in fails(out, tmp_path / "c", capsys)
    (where / "modeling_macaron_bert.py").touch()
    assert "is an export with its own code" in fails(where, tmp_path / "c", capsys)
    (where / "modeling_macaron_bert.py").unlink()
    weights = where / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "its weights cannot be read (Error while" in fails(where, tmp_path / "c", capsys)
    weights.write_bytes(whole)
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "what is left random or out would be refined with it: it lacks layers.2" in fails(
        where, tmp_path / "c", capsys
    )
    (where / "config.json").write_text("{")
    assert "config.json is no JSON" in fails(where, tmp_path / "c", capsys)
    assert not (tmp_path / "c").exists()
    build(normalize_before=False).save_pretrained(tmp_path / "post")
    capsys.readouterr()
    assert "normalize_before is False, and only a pre-norm layer" in fails(tmp_path / "post", tmp_path / "c", capsys)


@pytest.mark.parametrize("content", [b"PK\x03\x04 no zip", b"", None], ids=["damaged", "empty", "of SGD"])
def test_a_state_that_cannot_be_read_is_left_out(content: bytes | None, build, tmp_path: Path, capsys) -> None:
    model = build()
    model.save_pretrained(tmp_path / "a")
    state = tmp_path / "a" / "optimizer.pt"
    if content is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        torch.save(optimizer.state_dict(), state)
    else:
        state.write_bytes(content)
    assert main(["refine", str(tmp_path / "a"), "--layers", "4", "--output", str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "without the optimiser's state" in told and "left out: the optimiser's state (" in told
    assert ("momentum_buffer" if content is None else "not a readable checkpoint") in told
    assert not (tmp_path / "b" / "optimizer.pt").exists()
