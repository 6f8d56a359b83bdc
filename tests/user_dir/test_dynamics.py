"""Solvers, rules and noise as options of the fairseq models: training, going on, decay, pruning, the command line."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, optim
from fairseq.models import MODEL_REGISTRY
from fairseq.optim.fp16_optimizer import FP16Optimizer
from macaron.user_dir import match
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel
from omegaconf import OmegaConf

from macaron import MacaronModel
from macaron.dynamics.solvers import SOLVERS

SIZES = {"encoder_embed_dim": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_embed_dim": 24}
SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZES |= {"encoder_normalize_before": True, "decoder_normalize_before": True}
SIZES |= {"max_source_positions": 64, "max_target_positions": 64}
K = ["encoder.layers.rule.bias", "decoder.layers.rule.bias"]


def build(toy_task: Any, **options: Any) -> MacaronModel:
    torch.manual_seed(1)
    return MacaronModel.build_model(Namespace(**{"dropout": 0.0, **SIZES, **options}), toy_task())


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    source = torch.randint(4, 44, (3, 6))
    source[0, :2] = 1
    return {
        "src_tokens": source,
        "src_lengths": (source != 1).sum(1),
        "prev_output_tokens": torch.randint(4, 44, (3, 5)),
    }


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    model(**batch())[0].float().log_softmax(-1).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler"])
@pytest.mark.parametrize("rule", ["euler", "rk2"])
def test_activation_checkpointing_gives_the_same_gradients(solver: str, rule: str, toy_task) -> None:
    """Masks of dropout are drawn again as they were, once a sub-step and not once a stage."""
    options = {
        "solver": solver,
        "depth_rule": rule,
        "dropout": 0.3,
        "attention_dropout": 0.2,
        "activation_dropout": 0.2,
    }
    plain, again = build(toy_task, **options), build(toy_task, checkpoint_activations=True, **options)
    again.load_state_dict(plain.state_dict())
    expected, found = gradients(plain.double()), gradients(again.double())
    assert expected.keys() == found.keys() and len(expected) > 40
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)  # float64, the same operations


def test_defaults_are_the_model_of_before(toy_task) -> None:
    plain = build(toy_task)
    named = build(toy_task, solver="euler", dt=1.0, depth_rule="euler", stochastic_depth=0.0)
    assert list(plain.state_dict()) == list(named.state_dict())
    assert not any("rule" in name or "gates" in name for name in plain.state_dict())
    assert torch.equal(plain(**batch())[0], named(**batch())[0])


@pytest.mark.parametrize("splitting", ["lie", "strang"])
def test_a_trained_model_goes_on_with_multistep(splitting: str, toy_task, caplog: pytest.LogCaptureFixture) -> None:
    plain, multistep = (build(toy_task, splitting=splitting, depth_rule=rule) for rule in ("euler", "multistep"))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with caplog.at_level(logging.INFO):
        multistep.load_state_dict(plain.state_dict())
    assert (
        "the checkpoint has no parameters of a rule across depth or a solver: encoder.layers.rule.bias" in caplog.text
    )
    assert set(multistep.state_dict()) - set(plain.state_dict()) == set(K)
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(**batch())[0], multistep.train(mode)(**batch())[0])
    found = gradients(multistep)
    assert all((found[name] != 0).all() and found[name].shape == (2,) for name in K)
    with pytest.raises(ValueError, match=r"not expected: encoder\.layers\.rule\.bias"):
        plain.load_state_dict(multistep.state_dict())


@pytest.mark.parametrize("form", ["scaled", "unscaled", "sde"])
@pytest.mark.filterwarnings("ignore:stochastic depth")
def test_the_rate_is_free_where_evaluation_does_not_know_it(form: str, toy_task) -> None:
    options = {"stochastic_depth_form": form, "stochastic_depth": 0.2}
    before, after = build(toy_task, **options), build(toy_task, **{**options, "stochastic_depth": 0.5})
    after.load_state_dict(before.state_dict())
    same = torch.equal(before.eval()(**batch())[0], after.eval()(**batch())[0])
    told = match.changed_options(after, {"args": before.args})
    assert same == (form == "scaled") == (told is None)
    assert told is None or "it was trained with --stochastic-depth 0.2 (now 0.5): its weights fit, but" in told
    assert match.changed_options(before, {"args": before.args}) is None


def test_a_solver_that_learned_goes_on_with_multistep(toy_task) -> None:
    """And what is lost of either is not taken for new."""
    before, after = (build(toy_task, solver="heun_learned", depth_rule=rule) for rule in ("euler", "multistep"))
    with torch.no_grad():
        for name, parameter in before.named_parameters():
            if ".gates." in name:
                parameter.add_(torch.randn_like(parameter))
    after.load_state_dict(before.state_dict())
    assert torch.equal(before.eval()(**batch())[0], after.eval()(**batch())[0])
    state = {"args": after.args, "model": after.state_dict()}
    assert match.lost_numerics(state) is None
    for part, option in ((".rule.", "--depth-rule multistep"), (".gates.", "--solver heun_learned")):
        kept = {name: tensor for name, tensor in state["model"].items() if part not in name}
        told = match.lost_numerics({**state, "model": kept})
        assert told is not None and told.startswith(f"it was trained with {option}, and what that learned is not in it")


def test_a_language_model(toy_task) -> None:
    options = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 3, "decoder_attention_heads": 2}
    options |= {"decoder_normalize_before": True, "max_target_positions": 64, "dropout": 0.0}

    def lm(**more: Any) -> MacaronLanguageModel:
        torch.manual_seed(1)
        return MacaronLanguageModel.build_model(Namespace(**options, **more), toy_task()).eval()

    tokens = batch()["prev_output_tokens"]
    plain = lm()(tokens)[0]
    assert torch.equal(lm(depth_rule="multistep")(tokens)[0], plain)
    model = lm(depth_rule="multistep", multistep_init="0.5", solver="rk4", dt=0.5)
    whole, state = model(tokens)[0], {}
    assert not torch.allclose(whole, plain, atol=1e-3)  # the scheme acts, far above rounding
    for t in range(tokens.size(1)):
        found, _ = model.decoder(tokens[:, : t + 1], incremental_state=state)
        torch.testing.assert_close(found[:, -1], whole[:, t], rtol=0, atol=1e-5)  # float32, products of other shapes


@pytest.mark.parametrize("name", ["adam", "macaron_adam", "sgd"])
@pytest.mark.parametrize("half", ["", "bf16", "fp16"], ids=["fp32", "bf16", "fp16"])
def test_weight_decay_spares_k(name: str, half: str, toy_task) -> None:
    """With gradients of zero an update is decay alone."""
    model = build(toy_task, depth_rule="multistep", multistep_init="0.5")
    if half:
        model = model.bfloat16() if half == "bf16" else model.half()
    adam = {
        "adam_betas": "(0.9, 0.98)",
        "adam_eps": 1e-8,
        "use_old_adam": False,
        "fp16_adam_stats": False,
        "tpu": False,
    }
    chosen = {"_name": name, "lr": [0.5], "weight_decay": 0.1, **({"momentum": 0.0} if name == "sgd" else adam)}
    common = {
        "bf16": half == "bf16",
        "fp16": half == "fp16",
        "fp16_init_scale": 4,
        "fp16_scale_window": None,
        "min_loss_scale": 1e-4,
    }
    common |= {"fp16_scale_tolerance": 0.0, "threshold_loss_scale": None, "model_parallel_size": 1}
    cfg = OmegaConf.create(
        {
            "optimizer": chosen,
            "common": common,
            "optimization": {"update_freq": [1]},
            "distributed_training": {"distributed_world_size": 1},
        }
    )
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = FP16Optimizer.build_optimizer(cfg, params) if half else optim.build_optimizer(cfg.optimizer, params)
    optimizer.set_lr(0.5)
    before = {n: p.detach().clone().float() for n, p in model.named_parameters()}
    if not half:
        for p in params:
            p.grad = torch.zeros_like(p)
    else:
        for p in optimizer.fp32_params:
            p.grad = torch.zeros_like(p)
        optimizer._needs_sync = False
    optimizer.step()
    decayed = {n for n, p in model.named_parameters() if not torch.equal(p.detach().float(), before[n])}
    nonzero = {n for n, p in before.items() if p.any()}
    assert decayed == nonzero - set(K) and all(torch.equal(before[n], torch.full((2,), 0.5)) for n in K)


@pytest.mark.parametrize("rule", ["multistep", "rk2_learned"])
def test_pruning_keeps_what_belongs_to_the_layers_kept(rule: str, toy_task) -> None:
    whole = build(toy_task, depth_rule=rule)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if ".rule." in name:
                parameter.copy_(torch.randn_like(parameter))
    pruned = build(toy_task, depth_rule=rule, encoder_layers_to_keep="0,2")
    pruned.load_state_dict(whole.state_dict())
    if rule == "multistep":
        assert torch.equal(pruned.encoder.layers.rule.bias, whole.encoder.layers.rule.bias[1:])
    else:
        assert torch.equal(pruned.encoder.layers.rule.gates[1].weight, whole.encoder.layers.rule.gates[2].weight)
    assert torch.equal(pruned.encoder.layers[1].flows[0].fc1.weight, whole.encoder.layers[2].flows[0].fc1.weight)


def test_sentences_are_dropped_one_by_one(toy_task) -> None:
    """fairseq's particles are (T, B, C): a sentence that is dropped by every layer is its own embedding."""
    options = {"stochastic_depth": 0.5, "stochastic_depth_schedule": "constant", "stochastic_depth_unit": "sentence"}
    model = build(toy_task, encoder_layers=1, **options).train()
    source, lengths = torch.randint(4, 44, (40, 6)), torch.full((40,), 6)
    torch.manual_seed(5)
    found = model.encoder(source, lengths)["encoder_out"][0]
    untouched = model.encoder.layer_norm(model.encoder.forward_embedding(source)[0].transpose(0, 1))
    same = (found == untouched).all(-1)  # (T, B)
    assert torch.equal(same.all(0), same.any(0)) and 8 < int(same.all(0).sum()) < 32  # four standard deviations


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "--solver",
            "rk5",
            "solver='rk5' is unknown; choose one of euler, backward_euler, midpoint, heun",
        ),
        ("--depth-rule", "rk3", "depth_rule='rk3' is unknown; choose one of euler, multistep, rk2"),
        ("--dt", "0", "dt=0.0 is not a step"),
        ("--dt", "nan", "dt=nan is not a step"),
        ("--multistep-init", "-1", "multistep_init='-1' is neither 'lm_resnet' nor a number"),
        ("--stochastic-depth", "1", "stochastic_depth=1.0 is no drop rate in [0, 1)"),
        ("--stochastic-depth-form", "ito", "stochastic_depth_form='ito' is unknown; choose one of scaled, sde"),
        ("--stochastic-depth-schedule", "linear", "choose one of lm_resnet, torch, constant"),
        ("--stochastic-depth-unit", "token", "choose one of batch, sentence"),
    ],
)
def test_the_command_line_refuses(option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="fairseq-train")
    MODEL_REGISTRY["macaron_tiny"].add_args(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"{option}={value}"])
    assert f"argument {option}: " in (told := capsys.readouterr().err) and message in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_rule": "multistep", "encoder_normalize_before": False}, "needs the increment Δ of each layer"),
        ({"multistep_init": "lm_resnet"}, "leave it out, or choose that rule"),
        ({"stochastic_depth_form": "sde"}, "means nothing without stochastic depth"),
    ],
)
def test_what_means_nothing_together_is_refused(options: dict[str, Any], message: str, toy_task) -> None:
    with pytest.raises(ValueError, match=message):
        build(toy_task, **options)


def test_through_the_commands(train, tiny_data_bin, batches, whole, fairseq_cli, plugin, tmp_path) -> None:
    """Training, going on, generating: the checkpoint says how the model integrates."""
    flags = ["--solver", "heun", "--depth-rule", "multistep", "--multistep-init", "lm_resnet", "--dt", "0.5"]
    flags += ["--stochastic-depth", "0.2", "--stochastic-depth-unit", "sentence", "--weight-decay", "0.01"]
    first = train(tiny_data_bin, *batches, *flags)
    logged = [(entry["enc_k_min"], entry["enc_k_max"], entry["dec_k_max"]) for entry in first.updates]
    assert len(logged) == 4 and all(-0.2 < float(value) <= 0.1 for entry in logged for value in entry)
    assert logged[0] != logged[-1]
    weights = first.weights
    assert float(logged[-1][0]) == pytest.approx(float(weights[K[0]].min()), abs=0.006)  # an update of lr 0.005 later
    state = torch.load(first.checkpoint, weights_only=True)
    torch.save({**state, "model": {n: t for n, t in state["model"].items() if n not in K}}, tmp_path / "lost.pt")
    with pytest.raises(
        ValueError, match=r"lost\.pt: it was trained with --depth-rule multistep, and what that learned"
    ):
        checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "lost.pt")], {"data": str(tiny_data_bin)})
    generated = fairseq_cli(
        *["fairseq-generate", tiny_data_bin, "--user-dir", plugin, "--path", first.checkpoint, "--cpu", "--quiet"],
        *["--batch-size", "10", "--gen-subset", "valid", "--max-len-b", "8", *whole],
        cwd=tmp_path,
    )
    assert "Generate valid with beam=5" in generated.stdout
    resumed = train(tiny_data_bin, *batches, *flags, "--restore-file", first.checkpoint, "--max-update", 5)
    assert [entry["num_updates"] for entry in resumed.updates] == ["5"]


def test_going_on_from_a_plain_checkpoint(train, trained, tiny_data_bin, batches) -> None:
    finetuned = train(
        *[tiny_data_bin, *batches, "--depth-rule", "multistep", "--finetune-from-model", trained.checkpoint],
        *["--max-update", 1],
    )
    plain = train(*[tiny_data_bin, *batches, "--finetune-from-model", trained.checkpoint, "--max-update", 1])
    assert finetuned.updates[0]["loss"] == plain.updates[0]["loss"]
    assert set(finetuned.weights) - set(plain.weights) == set(K)
