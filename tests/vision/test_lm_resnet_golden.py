"""LM-ResNet's own numbers: logits, states, gradients, statistics, coins, counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from macaron.dynamics import Scheme
from macaron.vision import PUBLISHED, PreActResNet, from_original

PLAIN, MULTISTEP = Scheme(), Scheme(depth_rule="multistep")
SCHEMES = {"plain": PLAIN, "multistep": MULTISTEP}
FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "golden_vision" / "lm_resnet"
SAID = json.loads((FOLDER / "lm_resnet.json").read_text(encoding="utf-8")) if FOLDER.is_dir() else {}
NETS = [name for name, said in SAID.items() if "block" in said] or ["basic_2_3_2"]
NOISY = [name for name, said in SAID.items() if "coins" in said] or ["stochastic_depth"]


def parameters(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("param/"): value for name, value in stored.items() if name.startswith("param/")}


def original_names(net: PreActResNet) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter but k, by its name in the original."""
    first = [sum(net.blocks[:s]) for s in range(len(net.blocks))]
    for name, parameter in net.named_parameters():
        if match := re.fullmatch(r"stages\.(\d)\.layers\.(\d+)\.branch\.(.+)", name):
            yield f"blocks.{first[int(match[1])] + int(match[2])}.{match[3]}", parameter
        elif match := re.fullmatch(r"stages\.(\d)\.shortcut\.(bn|conv)(.+)", name):
            place = ("1", "21", "31")[int(match[1])]
            yield f"downsample{place}.downsample.{'0' if match[2] == 'bn' else '2'}{match[3]}", parameter
        elif not name.endswith("rule.bias"):
            yield name, parameter


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("name", NETS)
def test_evaluation(name, kind, golden, facts, closely):
    stored, said = golden(f"lm_resnet/{name}"), facts("lm_resnet")[name]
    net = from_original(parameters(stored), SCHEMES[kind]).eval()
    assert net.blocks == tuple(said["layers"])
    seen: list[tuple[Tensor, Tensor]] = []
    for stage in net.stages:
        for layer in stage.layers[:]:
            layer.branch.register_forward_hook(lambda _, given, f: seen.append((given[0].detach(), f.detach())))
    logits = net(stored["input"])
    closely(logits, stored[f"{kind}/eval/logits"])
    assert len(seen) == sum(net.blocks)
    compared = 0
    for i, pair in enumerate(seen):
        for letter, got in zip("xf", pair, strict=True):
            if (key := f"{kind}/eval/{letter}{i}") in stored:
                closely(got[:1], stored[key])
                compared += 1
    if kind == "multistep":
        assert compared >= sum(net.blocks)

    loss = F.cross_entropy(logits, stored["target"], reduction="sum")
    assert loss.item() == pytest.approx(said[f"{kind}/eval/loss_sum"], abs=1e-4)
    loss.backward()
    closely(net.conv1.weight.grad, stored[f"{kind}/eval/grad_conv1"])
    norms = said[f"{kind}/eval/grad_l2_norm"]
    ours = dict(original_names(net))
    for key, parameter in ours.items():
        assert parameter.grad.norm().item() == pytest.approx(norms[key], rel=1e-4), key  # float32 over many terms
    # and whatever of the original got a gradient is here
    assert {key for key, norm in norms.items() if norm is not None and not key.startswith("ks.")} == set(ours)


def k_gradients(net: PreActResNet) -> Tensor:
    """As the original's of s = 1 − k: the other sign, and 0 for the first block of each stage."""
    grads = [torch.cat([torch.zeros(1, dtype=torch.float64), -stage.layers.rule.bias.grad]) for stage in net.stages]
    return torch.cat(grads)[:, None]


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("name", NETS)
def test_training(name, kind, golden, facts, closely):
    stored, said = golden(f"lm_resnet/{name}"), facts("lm_resnet")[name]
    net = from_original(parameters(stored), SCHEMES[kind])
    assert net.training
    logits = net(stored["input"])
    closely(logits, stored[f"{kind}/train/logits"])
    loss = F.cross_entropy(logits, stored["target"], reduction="sum")
    assert loss.item() == pytest.approx(said[f"{kind}/train/loss_sum"], abs=1e-4)
    first, last = net.stages[0].layers[0].branch.bn1, net.bn
    for norm, place in ((first, "blocks.0.bn1"), (last, "bn")):
        for part in ("running_mean", "running_var"):
            closely(getattr(norm, part), stored[f"{kind}/train/after/{place}.{part}"])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_gradients_of_k(name, mode, golden):
    """In float64. In float32, with the statistics of two or three images, an input of ReLU falls on either side of 0
    with the order of sums: the original's own gradients move by 1e-3 when another kernel takes its convolutions.
    """
    stored = golden(f"lm_resnet/{name}")
    state = {key: value.double() for key, value in parameters(stored).items()}
    net = from_original(state).train(mode == "train")
    F.cross_entropy(net(stored["input"].double()), stored["target"], reduction="sum").backward()
    want = stored[f"multistep/{mode}/grad_ks"].double()
    torch.testing.assert_close(k_gradients(net), want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NOISY)
def test_stochastic_depth(name, golden, facts, closely, monkeypatch):
    stored, said = golden(f"lm_resnet/{name}"), facts("lm_resnet")[name]
    scheme = Scheme(depth_rule="multistep", stochastic_depth=1 - said["PL"])
    net = from_original(parameters(stored), scheme).eval()
    rates = [1 - p for stage in net.stages for p in stage.layers.noise.survival]
    assert rates == pytest.approx(said["death_rates"], abs=1e-12)  # float64
    closely(net(stored["input"]), stored["eval/logits"])
    for number, coins in said["coins"].items():
        net = from_original(parameters(stored), scheme)
        # the original lives where its uniform number reaches the death rate; ours where it is below p = 1 − rate
        assert coins["alive"] == [u >= rate for u, rate in zip(coins["uniform"], rates, strict=True)]
        tossed = iter([1 - u for u, rate in zip(coins["uniform"], rates, strict=True) if rate > 0])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *a, tossed=tossed, **k: torch.tensor(next(tossed)))
            closely(net(stored["input"]), stored[f"train{number}/logits"])
        assert next(tossed, None) is None  # one a block and batch


@pytest.mark.parametrize("depth", [d if d < 1000 else pytest.param(d, marks=pytest.mark.slow) for d in PUBLISHED])
def test_counts(depth, facts):
    """Ours are what the original has less what gets no gradient there."""
    counts = facts("lm_resnet")["param_counts"]
    assert {int(key.partition("/")[0]) for key in counts} == set(PUBLISHED)
    with torch.device("meta"):
        net = PreActResNet.of_depth(depth, scheme=MULTISTEP)
    for classes in (10, 100):
        said = counts[f"{depth}/{classes} classes"]
        net.fc = nn.Linear(net.fc.in_features, classes, device="meta")
        multistep = sum(p.numel() for p in net.parameters())
        k = sum(map(len, (stage.layers.rule.bias for stage in net.stages)))
        bottleneck = PUBLISHED[depth][0] == "bottleneck"
        dead = 3 + 2 * 16 + (0 if bottleneck else 2 * 16 + 16 * 64)  # three k, bn1, downsample1
        assert (multistep, k) == (said["total"] - dead, said["k_stored"] - 3)
        if said["receive_gradient"] is not None:
            assert (multistep, k) == (said["receive_gradient"], said["trainable_k_used"])


def test_counts_that_the_docstring_names():
    for scheme, count in ((MULTISTEP, 272_384), (PLAIN, 272_378)):
        assert sum(p.numel() for p in PreActResNet.of_depth(20, scheme=scheme).parameters()) == count


def test_initial_spread(facts):
    """Of every convolution, sd √(2/(k² c_out)), as the original says of its own."""
    said = facts("lm_resnet")["basic_2_3_2"]["conv_init"]
    found = {key.removesuffix(".weight"): p for key, p in original_names(PreActResNet((2, 3, 2)))}
    for name, (_, sd) in said.items():
        if name in found:
            got = found[name].std().item()
            # five standard errors of a standard deviation
            assert got == pytest.approx(sd, rel=5 / (2 * found[name].numel()) ** 0.5), name
    assert len(found.keys() & said.keys()) == len(said) - 1  # but downsample1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.3.bn1.weight"), r"missing: stages\.1\.layers\.1\.branch\.bn1\.weight"),
        (lambda s: s.pop("ks.4"), r"ks\.4 is missing; .* pass scheme=Scheme\(\)"),
        (lambda s: s.update({"layer9.weight": torch.ones(1)}), r"does not know layer9\.weight"),
        (lambda s: s.update({"fc.bias": torch.ones(3)}), r"fc\.bias .* has shape \(3,\), not \(10,\)"),
        (lambda s: s["bn.weight"].fill_(torch.nan), r"bn\.weight holds NaN"),
        (lambda s: s.update({"epoch": 3}), "'epoch' is no tensor with a name"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("blocks.1.")], r"blocks\.0 … blocks\.N−1 are complete"),
        (lambda s: s.clear(), "this is no MResNet"),
        (
            lambda s: s.update({"conv1.weight": torch.ones(1, 3, 3, 3).expand(10**5, 3, 3, 3)}),
            r"stages.* has shape \(16\S*, not \(100000",
        ),
        (lambda s: s.update({"blocks.4.conv2.weight": torch.ones(31, 32, 3, 3)}), "4 stages, .* an MResNet has 3"),
        (lambda s: s.update({k: v.int() for k, v in s.items()}), r"weights of type torch\.int32"),
        (lambda s: s.update({"conv1.weight": torch.ones(3)}), r"conv1\.weight has shape \(3,\), but 4 dimensions"),
    ],
)
def test_weights_that_are_damaged(change, message, golden):
    state = parameters(golden("lm_resnet/basic_2_3_2"))
    change(state)
    with pytest.raises(ValueError, match=message):
        from_original(state)


def test_weights_are_copies_on_their_device(golden):
    state = parameters(golden("lm_resnet/basic_2_3_2"))
    before = torch.get_rng_state()
    net = from_original(state)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad and p.device.type == "cpu" for p in net.parameters())
    assert not any(b.is_meta for b in net.buffers())
    with torch.no_grad():
        net.fc.bias.zero_()
    assert state["fc.bias"].any()


def test_plain_weights_need_no_k(golden, closely):
    stored = golden("lm_resnet/basic_2_3_2")
    state = {f"module.{k}": v.double() for k, v in parameters(stored).items() if not k.startswith("ks.")}
    net = from_original(state, PLAIN).eval()
    closely(net(stored["input"].double()).float(), stored["plain/eval/logits"])
