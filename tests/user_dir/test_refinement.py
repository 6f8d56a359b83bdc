"""`macaron refine` of fairseq's checkpoints: training goes on with the optimiser's state, parameter by parameter."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq import optim
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel
from omegaconf import OmegaConf

from macaron import MacaronModel
from macaron.cli import main
from macaron.refinement import refine_checkpoint

SIZES = {"embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2, "normalize_before": True}
SIDES = ("encoder", "decoder")


def build(toy_task: Any, layers: tuple[int, ...], **options: Any) -> Any:
    torch.manual_seed(1)
    sides = SIDES[-len(layers) :]
    given = {f"{side}_{name}": value for side in sides for name, value in SIZES.items()}
    given |= {f"{side}_layers": number for side, number in zip(sides, layers, strict=True)}
    given |= {"max_source_positions": 64, "max_target_positions": 64, "dropout": 0.0, **options}
    model = MacaronModel if len(layers) == 2 else MacaronLanguageModel
    return model.build_model(Namespace(**given), toy_task())


def optimizer_of(model: Any, name: str = "adam") -> Any:
    cfg: dict[str, Any] = {"_name": name, "lr": [0.01], "weight_decay": 0.1}
    if name == "sgd":
        cfg["momentum"] = 0.9
    else:
        cfg |= {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "use_old_adam": False}
        cfg |= {"fp16_adam_stats": False, "tpu": False}
    return optim.build_optimizer(OmegaConf.create(cfg), [p for p in model.parameters() if p.requires_grad])


def loss_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    source, target = (torch.randint(4, 44, (6, n), generator=generator) for n in (7, 5))
    given = {"src_tokens": source, "src_lengths": torch.full((6,), 7), "prev_output_tokens": target}
    out = model(**given) if hasattr(model, "encoder") else model(target)
    return -out[0].float().log_softmax(-1).gather(-1, target.unsqueeze(-1)).mean()


def update(model: Any, optimizer: Any, times: int) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def checkpoint_of(model: Any, optimizer: Any) -> dict[str, Any]:
    """As fairseq's Trainer saves it."""
    options = {"_name": "macaron_tiny", **vars(model.args)}
    state = {"model": model.state_dict(), "last_optimizer_state": optimizer.state_dict(), "cfg": {"model": options}}
    return copy.deepcopy(state)  # which keeps what is tied


def moments(model: Any, optimizer: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {name: optimizer.optimizer.state[p] for name, p in model.named_parameters()}


def coarse(name: str, ratio: int) -> str:
    """The name of the layer that a refined one is from."""
    return re.sub(r"(layers\.(?:rule\.gates\.)?)([0-9]+)", lambda m: f"{m[1]}{int(m[2]) // ratio}", name)


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ((2, 2), {"share_all_embeddings": True}),
        ((1, 2), {"splitting": "lie", "solver": "midpoint", "dt": 0.5, "share_decoder_input_output_embed": True}),
        ((2, 3), {"depth_rule": "multistep", "multistep_init": "0.25"}),
        ((1, 1), {"depth_rule": "multistep"}),
        ((2, 2), {"depth_rule": "rk2_learned", "solver": "heun_learned", "share_all_embeddings": True}),
        ((2,), {"depth_rule": "multistep", "share_decoder_input_output_embed": True}),
    ],
    ids=str,
)
def test_the_state_of_adam_goes_with_its_parameters(layers: tuple[int, ...], options: dict, toy_task) -> None:
    model = build(toy_task, layers, **options)
    optimizer = optimizer_of(model)
    update(model, optimizer, 3)
    state = checkpoint_of(model, optimizer)
    new = tuple(2 * number for number in layers)
    refined = refine_checkpoint(state, new)
    assert refined.left_out == [] and refined.dt[1] == refined.dt[0] / 2
    stored = Namespace(**refined.state["cfg"]["model"])
    assert [getattr(stored, f"{side}_layers") for side in SIDES[-len(new) :]] == list(new)
    finer = build(toy_task, new, **{**options, "dt": refined.dt[1]})
    finer.load_state_dict(refined.state["model"])
    again = optimizer_of(finer)
    again.load_state_dict(refined.state["last_optimizer_state"])
    assert [len(group["params"]) for group in again.param_groups][1:] == [len(layers)] * ("multi" in str(options))
    assert all(group["weight_decay"] == 0.0 for group in again.param_groups[1:])
    before, after = moments(model, optimizer), moments(finer, again)
    assert len(after) > len(before)
    for name, entry in after.items():
        assert entry["step"] == 3
        if name.endswith("rule.bias"):
            continue  # by hand in tests/test_refinement.py
        ratio = 2 if ".layers." in name else 1
        ratio *= 2 if ".rule.gates." in name and name.endswith("weight") else 1
        source = before[coarse(name, 2)]
        torch.testing.assert_close(entry["exp_avg"] * ratio, source["exp_avg"], rtol=1e-6, atol=0)
        torch.testing.assert_close(entry["exp_avg_sq"] * ratio**2, source["exp_avg_sq"], rtol=1e-6, atol=0)
    update(finer, again, 1)
    # there and back, to the options
    back = refine_checkpoint(refined.state, layers)
    assert back.state["cfg"] == state["cfg"] or {**back.state["cfg"]["model"], "dt": 1} == {
        **state["cfg"]["model"],
        "dt": 1,
    }
    assert all(
        torch.equal(back.state["model"][name], tensor)
        for name, tensor in state["model"].items()
        if ".gates." not in name
    )
    optimizer_of(model).load_state_dict(back.state["last_optimizer_state"])


def test_another_optimiser_is_left_out(toy_task) -> None:
    model = build(toy_task, (2, 2))
    optimizer = optimizer_of(model, "sgd")
    update(model, optimizer, 1)
    refined = refine_checkpoint(checkpoint_of(model, optimizer), [4])
    (why,) = refined.left_out
    assert "it is not that of Adam: for encoder.embed_tokens.weight it has momentum_buffer" in why
    assert "last_optimizer_state" not in refined.state


@pytest.mark.parametrize("damage", ["shape", "count", "nan", "kind", "layout", "step"])
def test_a_state_that_does_not_fit_is_left_out(damage: str, toy_task) -> None:
    model = build(toy_task, (2, 2))
    optimizer = optimizer_of(model)
    update(model, optimizer, 1)
    state = checkpoint_of(model, optimizer)
    adam = state["last_optimizer_state"]
    if damage == "shape":
        adam["state"][3]["exp_avg"] = torch.zeros(5)
    elif damage == "count":
        adam["param_groups"][0]["params"].pop()
    elif damage == "nan":
        adam["state"][3]["exp_avg"][...] = torch.nan
    elif damage == "layout":
        adam["param_groups"][0]["params"] = 3
    elif damage == "step":
        adam["state"][3]["step"] = [1]
    else:
        state["last_optimizer_state"] = [1, 2]
    (why,) = refine_checkpoint(state, [4]).left_out
    expected = {"shape": "exp_avg of encoder.layers", "count": "it covers", "nan": "no finite number", "kind": "a list"}
    expected |= {"layout": "it is not laid out as that of Adam: TypeError", "step": "TypeError"}
    assert why.startswith("the optimiser's state (") and expected[damage] in why


def refine(*arguments: object, capsys: pytest.CaptureFixture[str], expect: int = 0) -> str:
    assert main(["refine", *map(str, arguments)]) == expect
    told = capsys.readouterr()
    return told.err if expect else told.out


def test_training_goes_on(train, trained, tiny_data_bin, batches, whole, fairseq_cli, plugin, tmp_path, capsys) -> None:
    """Through the commands: updates are counted on, so the optimiser's state was taken."""
    told = refine(trained.checkpoint, "--layers", 4, "--output", tmp_path / "finer.pt", capsys=capsys)
    assert "(2+2 layers, dt 1) into" in told and "(4+4 layers, dt 0.5), with the optimiser's state" in told
    assert "fairseq-train … --encoder-layers 4 --decoder-layers 4 --dt 0.5 --restore-file" in told
    flags = ["--encoder-layers", 4, "--decoder-layers", 4, "--dt", 0.5, "--restore-file", tmp_path / "finer.pt"]
    resumed = train(tiny_data_bin, *batches, *flags, "--max-update", 6)
    assert [entry["num_updates"] for entry in resumed.updates] == ["5", "6"]
    assert "encoder.layers.3.norms.0.weight" in resumed.weights
    generated = fairseq_cli(
        *["fairseq-generate", tiny_data_bin, "--user-dir", plugin, "--path", tmp_path / "finer.pt", "--cpu", "--quiet"],
        *["--batch-size", "10", "--gen-subset", "valid", "--max-len-b", "8", *whole],
        cwd=tmp_path,
    )
    assert "Generate valid with beam=5" in generated.stdout


@pytest.mark.parametrize("options", [{}, {"depth_rule": "multistep", "solver": "heun"}], ids=str)
def test_the_loss_goes_on_falling(options: dict, toy_task) -> None:
    """From where the coarser model was, without a jump as large as what was learned, and with its moments."""
    model = build(toy_task, (2, 2), **options)
    optimizer = optimizer_of(model)
    start = float(loss_of(model))
    update(model, optimizer, 8)
    before = float(loss_of(model))
    state = refine_checkpoint(checkpoint_of(model, optimizer), [4]).state
    finer = build(toy_task, (4, 4), **options, dt=0.5)
    finer.load_state_dict(state["model"])
    again = optimizer_of(finer)
    again.load_state_dict(state["last_optimizer_state"])
    jumped = float(loss_of(finer))
    update(finer, again, 8)
    after = float(loss_of(finer))
    assert abs(jumped - before) < 0.5 * (start - before) and after < 0.8 * min(before, jumped), (
        start,
        before,
        jumped,
        after,
    )


def test_one_long_state_of_half_precision(toy_task) -> None:
    """fairseq keeps it so under --bf16 and --fp16: all parameters after one another."""
    model = build(toy_task, (2, 2), share_all_embeddings=True)
    optimizer = optimizer_of(model)
    update(model, optimizer, 1)
    state = checkpoint_of(model, optimizer)
    expected = refine_checkpoint(state, [4]).state["last_optimizer_state"]["state"]
    adam = state["last_optimizer_state"]
    state["last_optimizer_state"] = {**flattened(adam["state"], adam), "loss_scale": 4.0}
    refined = refine_checkpoint(state, [4])
    found = refined.state["last_optimizer_state"]
    assert refined.left_out == [] and found["loss_scale"] == 4.0
    for moment, tensor in flattened(expected, adam)["state"][0].items():
        assert moment == "step" or torch.equal(found["state"][0][moment], tensor)
    state["last_optimizer_state"]["state"][0]["exp_avg"] = torch.zeros(7)
    assert "exp_avg has 7 numbers, and the parameters" in refine_checkpoint(state, [4]).left_out[0]


def flattened(entries: dict[int, Any], adam: dict[str, Any]) -> dict[str, Any]:
    whole = {m: torch.cat([entry[m].flatten() for entry in entries.values()]) for m in ("exp_avg", "exp_avg_sq")}
    return {"state": {0: {"step": 1, **whole}}, "param_groups": [{**adam["param_groups"][0], "params": [0]}]}
