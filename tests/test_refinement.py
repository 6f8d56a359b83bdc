"""Refinement in depth: which numbers go where, how far the result moves, and what is refused."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from macaron.cli import main
from macaron.dynamics.depth import Depth
from macaron.dynamics.scheme import Scheme
from macaron.dynamics.solvers import Gate
from macaron.particles import FeedForward, ParticleLayer, SelfAttention
from macaron.refinement import Change, refine, refine_checkpoint

RULES = ("euler", "multistep", "rk2_learned")


# -- which numbers go where


def tensors(depth: int, rule: str = "euler", *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dict with one stack and what is beside it."""
    made = {"s.embed.weight": torch.randn(5, 2)}
    for n in range(depth):
        made |= {f"s.layers.{n}.flows.0.fc1.weight": torch.randn(3, 2), f"s.layers.{n}.norms.0.bias": torch.randn(2)}
    if rule == "multistep" and depth > 1:
        made["s.layers.rule.bias"] = torch.randn(depth - 1)
    if rule == "rk2_learned":
        for n in range(depth):
            made |= {
                f"s.layers.rule.gates.{n}.{part}": torch.randn(size) for part, size in (("weight", 4), ("bias", ()))
            }
    return {**{name: tensor.to(dtype) for name, tensor in made.items()}, "s.version": torch.tensor([3.0])}


depths, ratios = st.integers(1, 5), st.integers(2, 5)


@given(depths, ratios, st.sampled_from(RULES), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_there_and_back_is_the_identity(depth: int, ratio: int, rule: str, dtype: torch.dtype) -> None:
    given_ = tensors(depth, rule, dtype=dtype)
    there, back = Change(depth, depth * ratio), Change(depth * ratio, depth)
    finer = refine(given_, "s.layers.", there, rule=rule)
    again = refine(finer, "s.layers.", back, rule=rule)
    assert list(again) == list(given_)
    for name, tensor in given_.items():
        if name.endswith("gates.0.weight") or (".gates." in name and name.endswith("weight")):
            # times r and divided by it: rounded twice
            torch.testing.assert_close(again[name], tensor, rtol=2 * torch.finfo(dtype).eps, atol=0)
        else:
            assert torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype
    assert len({t.untyped_storage().data_ptr() for t in finer.values()}) == len(finer)  # none is tied to another


@given(depths, ratios, st.sampled_from(RULES), st.sampled_from([1, 2]))
def test_moments_there_and_back(depth: int, ratio: int, rule: str, power: int) -> None:
    given_ = tensors(depth, rule, dtype=torch.float64)
    there, back = Change(depth, depth * ratio), Change(depth * ratio, depth)
    finer = refine(given_, "s.layers.", there, rule=rule, power=power)
    again = refine(finer, "s.layers.", back, rule=rule, power=power)
    for name, tensor in given_.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-14, atol=0)  # float64, two products


@given(depths, ratios)
def test_layers_come_from_those_that_held_their_time(depth: int, ratio: int) -> None:
    finer, coarser = Change(depth, depth * ratio), Change(depth * ratio, depth)
    assert [list(finer.sources(n)) for n in range(depth * ratio)] == [[n // ratio] for n in range(depth * ratio)]
    assert [i for n in range(depth) for i in coarser.sources(n)] == list(range(depth * ratio))


@given(depths, st.integers(2, 60), st.one_of(st.integers(1, 60).map(lambda n: 1 / n), st.floats(1e-6, 1e3)))
def test_the_step_comes_back(depth: int, ratio: int, dt: float) -> None:
    finer = Change(depth, depth * ratio).step(dt)
    assert finer == pytest.approx(dt / ratio, rel=1e-15)
    # of simple fractions exactly: 49 steps of 1/49 are 1, which in floats they are not
    assert Change(depth * ratio, depth).step(finer) == pytest.approx(dt, rel=1e-15)
    assert Change(49, 1).step(Change(1, 49).step(1.0)) == 1.0 != 1 / 49 * 49


def test_two_layers_become_four() -> None:
    """By hand: which layer, which k, which gate, and what of Adam's moments."""
    rule = {"s.layers.rule.bias": torch.tensor([0.25])}
    layers = {f"s.layers.{n}.w": torch.tensor([float(n + 1)]) for n in range(2)}
    finer = refine({**layers, **rule}, "s.layers.", Change(2, 4), rule="multistep")
    assert [finer[f"s.layers.{n}.w"].item() for n in range(4)] == [1, 1, 2, 2]
    assert finer["s.layers.rule.bias"].tolist() == [0.0, 0.25, 0.25]  # of layers 1, 2, 3; 0 within the first
    first = refine({**layers, **rule}, "s.layers.", Change(2, 4), rule="multistep", power=1)
    assert [first[f"s.layers.{n}.w"].item() for n in range(4)] == [0.5, 0.5, 1, 1]
    assert first["s.layers.rule.bias"].tolist() == [0.0, 0.125, 0.125]
    second = refine({**layers, **rule}, "s.layers.", Change(2, 4), rule="multistep", power=2)
    assert second["s.layers.rule.bias"].tolist() == [0.0625, 0.0625, 0.0625]
    coarser = refine({**layers, **rule}, "s.layers.", Change(2, 1), rule="multistep")
    assert coarser["s.layers.0.w"].item() == 1.5 and "s.layers.rule.bias" not in coarser


def test_a_gate_of_the_rule_weighs_as_before() -> None:
    """Its velocities are increments of a layer, half as long at half the step."""
    gate, finer = Gate(3), Gate(3)
    with torch.no_grad():
        gate.weight.normal_()
        gate.bias.normal_()
    given_ = {f"s.layers.rule.gates.0.{name}": tensor for name, tensor in gate.state_dict().items()}
    result = refine({**given_, "s.layers.0.w": torch.ones(1)}, "s.layers.", Change(1, 2), rule="rk2_learned")
    finer.load_state_dict({name: result[f"s.layers.rule.gates.1.{name}"] for name in ("weight", "bias")})
    increments = [torch.randn(4, 3), torch.randn(4, 3)]
    torch.testing.assert_close(finer([v / 2 for v in increments])[0], gate(increments)[0], rtol=0, atol=1e-6)


# -- how far the result moves


class Stack(nn.Module):
    """Layers of smooth flows over four particles in R^6, in float64."""

    def __init__(self, scheme: Scheme, depth: int) -> None:
        super().__init__()
        made = {"ffn": lambda: FeedForward(6, 12, activation="gelu"), "self_attention": lambda: SelfAttention(6, 2)}
        flows = [substep.flow for substep in scheme.splitting.substeps]
        layers = [ParticleLayer(scheme, [made[flow]() for flow in flows], dim=6) for _ in range(depth)]
        self.layers = Depth(layers, scheme.rule(depth, 6), others=(None,), batch_dim=1)
        self.double().eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return x


def jumps(scheme: dict[str, Any], *, alike: bool = False, depth: int = 2, times: int = 4) -> list[float]:
    """How far the output of a random stack moves by each of several refinements by two.

    Args:
        alike: the first and the last substep have equal parameters.
    """
    torch.manual_seed(3)
    options = argparse.Namespace(dt=1.0, **scheme)
    stack, x = Stack(Scheme.of(options), depth), torch.randn(4, 2, 6, dtype=torch.float64)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else 0.45))
        for layer in stack.layers if alike else ():
            layer.flows[2].load_state_dict(layer.flows[0].state_dict())
            layer.norms[2].load_state_dict(layer.norms[0].state_dict())
    moved, before = [], stack(x)
    for _ in range(times):
        change = Change(depth, 2 * depth)
        options.dt = change.step(options.dt)
        finer = Stack(Scheme.of(options), 2 * depth)
        finer.load_state_dict(refine(stack.state_dict(), "layers.", change, rule=scheme.get("depth_rule", "euler")))
        stack, depth = finer, 2 * depth
        before, last = stack(x), before
        moved.append(float((before - last).abs().max()))
    return moved


STRANG = {"splitting": "strang"}


@pytest.mark.parametrize(
    ("scheme", "alike", "order"),
    [
        *(
            ({"splitting": "ffn/1", "solver": name}, False, p)
            for name, p in (("euler", 1), ("midpoint", 2), ("rk4", 4))
        ),
        *(({"splitting": "lie", "solver": name}, False, 1) for name in ("euler", "midpoint", "rk4")),
        # the two FFNs of a Macaron layer are two flows: Strang's symmetry, and its order, is there when they are equal
        *(({**STRANG, "solver": name}, True, p) for name, p in (("euler", 1), ("midpoint", 2), ("rk4", 2))),
        *(({**STRANG, "solver": name}, False, 1) for name in ("euler", "midpoint", "rk4")),
        ({**STRANG, "depth_rule": "rk4"}, False, 1),  # along Δ, which is Euler's
        ({**STRANG, "depth_rule": "multistep"}, False, 1),
        ({**STRANG, "depth_rule": "rk2_learned"}, False, 1),
        ({**STRANG, "solver": "heun_learned"}, False, 1),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else str(value),
)
def test_the_jump_has_the_order_of_the_scheme(scheme: dict[str, Any], alike: bool, order: int) -> None:
    moved = jumps(scheme, alike=alike)
    measured = math.log2(moved[-2] / moved[-1])
    assert measured == pytest.approx(order, abs=0.25), moved  # at steps of 1/8 and 1/16 the next term is that small


# -- what is refused


def state(layers: int = 2, **options: Any) -> dict[str, Any]:
    """A checkpoint of fairseq's with two stacks of tiny layers."""
    model: dict[str, Tensor] = {}
    for side in ("encoder", "decoder"):
        model[f"{side}.version"] = torch.tensor([3.0])
        for n in range(layers):
            model |= {
                f"{side}.layers.{n}.flows.0.fc1.weight": torch.randn(3, 2),
                f"{side}.layers.{n}.norms.0.bias": torch.randn(2),
            }
    given_ = {f"{side}_layers": layers for side in ("encoder", "decoder")}
    given_ |= {f"{side}_normalize_before": True for side in ("encoder", "decoder")}
    return {"model": model, "cfg": {"model": {"_name": "macaron_tiny", "dt": 1.0, **given_, **options}}, "args": None}


def fails(path: Path, arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["refine", str(path), *map(str, arguments)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    return told.err


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("5", "2 layers do not become 5: each becomes several with a part of its step"),
        ("3", "ask for 4, 6, 8, …, or for 1"),
        ("2", "the model has 2 layers already"),
        ("4+2", "the model has 2 layers already"),
        ("4+6", "the encoder would change by 2 and the decoder would change by 3, but both have one step dt"),
    ],
)
def test_numbers_that_cannot_be_reached(layers: str, message: str, tmp_path: Path, capsys) -> None:
    torch.save(state(), tmp_path / "a.pt")
    told = fails(tmp_path / "a.pt", ["--layers", layers, "--output", tmp_path / "b.pt"], capsys)
    assert f"macaron refine: {tmp_path / 'a.pt'}: " in told and message in told
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("layers", ["0", "x", "4+", "1+2+3", "-2", "99999", "²"])
def test_what_is_no_number_of_layers(layers: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["refine", "a.pt", f"--layers={layers}", "--output", str(tmp_path / "b.pt")])
    assert f"got {layers!r}, expected a number of layers from 1 to 10,000" in capsys.readouterr().err


def _without(name: str, content: dict[str, Any]) -> None:
    del content["model"][name]


DAMAGES = {
    "a layer lost": (lambda s: [_without(n, s) for n in list(s["model"]) if "encoder.layers.0" in n], "found 1; the"),
    "a part lost": (lambda s: _without("decoder.layers.1.norms.0.bias", s), "norms.0.bias is missing in the one"),
    "a shape": (
        lambda s: s["model"].update({"encoder.layers.1.norms.0.bias": torch.zeros(7)}),
        "norms.0.bias is (7,) float32 in the one and (2,) float32",
    ),
    "infinite": (
        lambda s: s["model"]["encoder.layers.1.norms.0.bias"].fill_(math.inf),
        "parameter encoder.layers.1.norms.0.bias holds what is no finite number",
    ),
    "integers": (
        lambda s: s["model"].update({"encoder.layers.1.norms.0.bias": torch.zeros(2, dtype=torch.int)}),
        "holds what is no finite number",
    ),
    "a leading zero": (
        lambda s: s["model"].update({"encoder.layers.01.norms.0.bias": torch.zeros(2)}),
        "not numbered through from 0: found 0, 1, 01",
    ),
    "another number": (
        lambda s: s["cfg"]["model"].update(decoder_layers=3),
        "its option decoder_layers is 3, and it has parameters of 2 layers",
    ),
    "no options": (lambda s: s.pop("cfg"), "its option encoder_layers is None"),
    "post-norm": (
        lambda s: s["cfg"]["model"].update(decoder_normalize_before=False),
        "decoder_normalize_before is False, and only a pre-norm layer, x + Δt F(x), is a step",
    ),
    "dt": (lambda s: s["cfg"]["model"].update(dt="1"), "its option dt is '1', which is no step"),
    "k lost": (
        lambda s: s["cfg"]["model"].update(depth_rule="multistep"),
        "rule.bias is missing, and 2 layers have 1 k of depth_rule='multistep'",
    ),
    "k too many": (
        lambda s: s["model"].update({"encoder.layers.rule.bias": torch.zeros(1)}),
        "depth_rule='euler' has no such parameter",
    ),
    "a rule of one's own": (
        lambda s: (
            s["model"].update({"encoder.layers.rule.w": torch.zeros(1)}),
            s["cfg"]["model"].update(depth_rule="my"),
        ),
        "parameter encoder.layers.rule.w: depth_rule='my' is your own",
    ),
    "a BERT": (
        lambda s: s.update(model={"macaron_bert.layers.0.norms.0.bias": torch.zeros(2)}),
        "no model of this project with layers of its own names (it has macaron_bert.layers)",
    ),
    "fairseq's Transformer": (
        lambda s: s["model"].update({"encoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}),
        "convert one of the original implementation first (`macaron convert`)",
    ),
    "a shard": (lambda s: s.update(shard_metadata={"a": 1}), "it is one shard of several"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_cannot_be_refined(what: str, tmp_path: Path, capsys) -> None:
    damage, message = DAMAGES[what]
    content = state()
    damage(content)
    torch.save(content, tmp_path / "a.pt")
    told = fails(tmp_path / "a.pt", ["--layers", 4, "--output", tmp_path / "b.pt"], capsys)
    assert message in told and not (tmp_path / "b.pt").exists()


def test_files_that_are_none_and_files_that_are_there(tmp_path: Path, capsys) -> None:
    where, out = tmp_path / "a.pt", ["--layers", 4, "--output", tmp_path / "b.pt"]
    assert f"checkpoint {where} does not exist" in fails(where, out, capsys)
    torch.save(state(), where)
    where.write_bytes(where.read_bytes()[:-200])
    assert "truncated or corrupt" in fails(where, out, capsys)
    torch.save({"model": {"w": 3}}, where)
    assert "no model in it" in fails(where, out, capsys)
    torch.save(state(), where)
    (tmp_path / "b.pt").write_text("kept")
    assert "add --force to overwrite it" in fails(where, out, capsys)
    assert (tmp_path / "b.pt").read_text() == "kept"
    assert main(["refine", str(where), *map(str, out), "--force"]) == 0
    told = capsys.readouterr().out
    assert "(4+4 layers, dt 0.5), without the optimiser's state" in told and "--reset-optimizer" in told


def test_everything_else_of_a_checkpoint_stays(tmp_path: Path) -> None:
    content = state()
    content |= {"args": argparse.Namespace(encoder_layers=2, decoder_layers=2, dt=1.0, lr=[0.1])}
    content["extra_state"] = {"epoch": 3, "ema": dict(content["model"]), "ema_fp32_params": {"w": torch.zeros(1)}}
    content["optimizer_history"] = [{"num_updates": 7}]
    refined = refine_checkpoint(content, [4])
    result = refined.state
    assert result["optimizer_history"] == content["optimizer_history"] and result["extra_state"]["epoch"] == 3
    assert vars(result["args"]) == {"encoder_layers": 4, "decoder_layers": 4, "dt": 0.5, "lr": [0.1]}
    assert result["cfg"]["model"]["decoder_layers"] == 4 and content["cfg"]["model"]["decoder_layers"] == 2
    assert result["extra_state"]["ema"].keys() == result["model"].keys()
    assert (
        "ema_fp32_params" not in result["extra_state"] and "moving average ema_fp32_params (the" in refined.left_out[0]
    )
