"""A rule across depth of one's own under fairseq's loops, which know nothing of it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

import pytest
import torch
from fairseq.models import MODEL_REGISTRY
from torch import Tensor, nn

from macaron import MacaronModel
from macaron.dynamics import rules as module
from macaron.dynamics.depth import Depth, Step
from macaron.dynamics.rules import register_rule

SIZES = {"encoder_embed_dim": 16, "encoder_layers": 3, "decoder_layers": 3, "max_source_positions": 64}
SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_target_positions": 64}
SIZES |= {"encoder_normalize_before": True, "decoder_normalize_before": True}


class Multistep(nn.Module):
    """x_{n+1} = (1 − k_n) x_n + k_n x_{n−1} + Δ_n(x_n), the first step plain."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.linspace(0.1, 0.3, depth))

    def forward(self, step: Step) -> Tensor:
        moved = step.layer(step.x)
        return moved if step.previous is None else moved + self.k[step.n] * (step.previous - step.x)


def midpoint(step: Step) -> Tensor:
    """x_{n+1} = x_n + Δ_n(x_n + ½ Δ_n(x_n))."""
    half = (step.x + step.layer(step.x)) / 2
    return step.x + step.layer(half) - half


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    register_rule("two_steps", Multistep)
    register_rule("whole_midpoint", lambda depth: midpoint)
    yield
    del module.RULES["two_steps"], module.RULES["whole_midpoint"]


def build(task: object, rule: str = "euler", **options: object) -> MacaronModel:
    torch.manual_seed(1)
    return MacaronModel.build_model(Namespace(depth_rule=rule, **SIZES, **options), task)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    source = torch.randint(4, 44, (3, 6))
    source[0, :2] = 1
    return source, (source != 1).sum(1), torch.randint(4, 44, (3, 5))


def by_hand(model: MacaronModel, rule: str) -> Tensor:
    """The encoder's output, (S, B, C), by a loop of our own."""
    source, _, _ = batch()
    encoder, padding = model.encoder, batch()[0].eq(1)
    x = (encoder.forward_embedding(source)[0] * ~padding.unsqueeze(-1)).transpose(0, 1)
    previous = None
    for n in range(len(encoder.layers)):
        layer = encoder.layers[n]
        if rule == "two_steps":
            moved = layer(x, padding)
            if previous is not None:
                moved = moved + encoder.layers.rule.k[n] * (previous - x)
        else:
            half = (x + layer(x, padding)) / 2
            moved = x + layer(half, padding) - half
        previous, x = x, moved
    return encoder.layer_norm(x)


@pytest.mark.parametrize("rule", ["two_steps", "whole_midpoint"])
def test_encoder(rule: str, toy_task) -> None:
    model = build(toy_task(), rule).double().eval()
    source, lengths, _ = batch()
    (found,) = model.encoder(source, lengths)["encoder_out"]
    torch.testing.assert_close(found, by_hand(model, rule), rtol=1e-12, atol=1e-12)  # float64
    assert not torch.allclose(found, build(toy_task()).double().eval().encoder(source, lengths)["encoder_out"][0])


def test_names_of_the_layers_stay_and_the_rule_is_trained(toy_task) -> None:
    plain, model = build(toy_task()), build(toy_task(), "two_steps")
    own = {f"{side}.layers.rule.k" for side in ("encoder", "decoder")}
    assert isinstance(plain.encoder.layers, Depth)
    assert set(model.state_dict()) - set(plain.state_dict()) == own
    source, lengths, tokens = batch()
    logits, extra = model(source, lengths, tokens)
    logits.square().mean().backward()
    assert all(dict(model.named_parameters())[name].grad.abs().sum() > 0 for name in own)
    assert extra["attn"][0].shape == (3, 5, 6)


@pytest.mark.parametrize("rule", ["two_steps", "whole_midpoint"])
def test_step_by_step(rule: str, toy_task) -> None:
    model = build(toy_task(), rule).double().eval()
    source, lengths, tokens = batch()
    memory = model.encoder(source, lengths)
    expected, state = model.decoder(tokens, memory)[0], {}
    for t in range(tokens.size(1)):
        found, _ = model.decoder(tokens[:, : t + 1], memory, incremental_state=state)
        torch.testing.assert_close(found[:, -1], expected[:, t], rtol=1e-10, atol=1e-10)  # float64, other products


def test_layerdrop_draws_as_fairseq_does(toy_task) -> None:
    """One number for each layer, in each pass of the training."""
    model = build(toy_task(), encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    assert len(model.encoder.layers) == len(model.decoder.layers) == 3
    for seed in range(8):
        torch.manual_seed(seed)
        expected = [
            layer for layer, p in zip(model.encoder.layers.eval(), torch.empty(3).uniform_(), strict=True) if p > 0.5
        ]
        torch.manual_seed(seed)
        assert list(model.encoder.layers.train()) == expected
    assert len(list(model.encoder.layers.eval())) == 3


def test_scripts_of_other_rules_are_refused(toy_task) -> None:
    torch.jit.script(build(toy_task()))
    with pytest.raises(ValueError, match="TorchScript knows no rule across depth but Euler's"):
        torch.jit.script(build(toy_task(), "two_steps"))


def test_unknown_rules_are_refused(toy_task) -> None:
    with pytest.raises(ValueError, match=r"depth_rule='leapfrog' is unknown; choose one of euler, .*two_steps"):
        build(toy_task(), "leapfrog")


def test_a_script_leaves_the_model_as_it_is(toy_task) -> None:
    model = build(toy_task(), encoder_layerdrop=0.5, compile=True)
    before = list(model.named_modules())
    torch.jit.script(model)
    torch.jit.script(model.encoder)
    assert list(model.named_modules()) == before
    assert isinstance(model.encoder.layers, Depth) and model.encoder.layers.layerdrop == 0.5
    assert all("integrate" in vars(layer) for layer in model.encoder.layers.eval())


def test_the_command_line_takes_and_lists_rules(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="fairseq-train")
    MODEL_REGISTRY["macaron_tiny"].add_args(parser)
    assert "(registered: euler, multistep, rk2, rk2_learned, rk4, two_steps, whole_midpoint)" in " ".join(
        parser.format_help().split()
    )
    assert parser.parse_args(["--depth-rule", "two_steps"]).depth_rule == "two_steps"
    with pytest.raises(SystemExit):
        parser.parse_args(["--depth-rule", "leapfrog"])
    assert "argument --depth-rule: depth_rule='leapfrog' is unknown; choose one of euler" in capsys.readouterr().err


class Damped(nn.Module):
    """x_{n+1} = x_n + g Δ_n(x_n): one number, whatever the depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(0.9))

    def forward(self, step: Step) -> Tensor:
        return step.x + self.g * (step.layer(step.x) - step.x)


def test_pruning_under_a_rule(toy_task) -> None:
    """A rule with a parameter for each layer has none for those that are kept; one without is kept whole."""
    state = build(toy_task(), "two_steps").state_dict()
    pruned = build(toy_task(), "two_steps", encoder_layers_to_keep="0,2")
    with pytest.raises(ValueError) as error:
        pruned.load_state_dict(state)
    assert "--encoder-layers-to-keep 0,2: the rule across depth (--depth-rule two_steps) has para" in str(error.value)
    assert "(encoder.layers.rule.k (3,) for (2,))" in str(error.value) and "another architecture" not in str(
        error.value
    )
    register_rule("damped", Damped)
    try:
        whole = build(toy_task(), "damped")
        pruned = build(toy_task(), "damped", encoder_layers_to_keep="0,2")
        names = pruned.load_state_dict(whole.state_dict())
    finally:
        del module.RULES["damped"]
    assert not names.missing_keys and not names.unexpected_keys
    for i, n in enumerate((0, 2)):
        a, b = (side.state_dict() for side in (pruned.encoder.layers[i], whole.encoder.layers[n]))
        assert all(torch.equal(a[name], b[name]) for name in b)
