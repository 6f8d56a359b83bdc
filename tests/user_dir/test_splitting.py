"""A splitting of one's own under fairseq: by notation or by a registered name, from the options to the translation."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

import pytest
import torch
from fairseq.models import MODEL_REGISTRY
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel
from torch import nn

from macaron import MacaronModel
from macaron.cli import main
from macaron.dynamics import splitting as module
from macaron.dynamics.splitting import Splitting, register_splitting
from macaron.particles.flows import FLOWS, register_flow

SIZES = {"encoder_embed_dim": 16, "encoder_layers": 2, "decoder_layers": 2, "max_source_positions": 64}
SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_target_positions": 64}
TURNED = "attention/2 ffn attention/2"


@pytest.fixture
def registered() -> Iterator[str]:
    yield register_splitting(Splitting.parse(TURNED, name="turned")).name
    del module.SPLITTINGS["turned"]


def kinds(model: MacaronModel, side: str) -> list[str]:
    return [flow.kind for flow in getattr(model, side).layers[0].flows]


@pytest.mark.parametrize(
    ("splitting", "encoder", "decoder"),
    [
        (TURNED, "self ffn self", "self cross ffn self cross"),
        ("ffn/2 attention cross_attention ffn/2", "ffn self ffn", "ffn self cross ffn"),
        ("cross_attention ffn attention", "ffn self", "cross ffn self"),
        ("ffn/4 attention/2 ffn/2 attention/2 ffn/4", "ffn self ffn self ffn", "ffn self cross ffn self cross ffn"),
    ],
)
def test_flows(splitting: str, encoder: str, decoder: str, toy_task) -> None:
    model = MacaronModel.build_model(Namespace(splitting=splitting, **SIZES), toy_task())
    for side, expected in (("encoder", encoder), ("decoder", decoder)):
        assert [kind.removesuffix("_attention") for kind in kinds(model, side)] == expected.split()
    assert model.args.splitting == splitting


def test_notation_of_strang_is_strang(toy_task) -> None:
    def build(splitting: str) -> MacaronModel:
        torch.manual_seed(1)
        return MacaronModel.build_model(Namespace(splitting=splitting, **SIZES), toy_task())

    a, b = build("strang"), build("ffn/2.0  self_attention ffn/2")
    assert b.args.splitting == "strang"
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_ffns_have_one_width_in_all_and_the_first_is_before_attention(toy_task) -> None:
    three = "ffn/4 attention/2 ffn/2 attention/2 ffn/4"
    model = MacaronModel.build_model(Namespace(splitting=three, encoder_first_ffn_embed_dim=8, **SIZES), toy_task())
    ffns = [flow for flow in model.encoder.layers[0].flows if flow.kind == "ffn"]
    total = 2 * model.architecture.ffn
    assert [ffn.fc1.out_features for ffn in ffns] == [8, total // 3, total // 3]


def test_a_registered_name_is_saved_as_what_it_means(registered: str, toy_task) -> None:
    assert MacaronModel.build_model(Namespace(splitting=registered, **SIZES), toy_task()).args.splitting == TURNED
    lm = MacaronLanguageModel.build_model(Namespace(splitting=registered, decoder_layers=1), toy_task())
    assert kinds(lm, "decoder") == ["self_attention", "ffn", "self_attention"]


def test_the_command_line_takes_and_lists_it(registered: str, toy_task, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="fairseq-train")
    MODEL_REGISTRY["macaron_tiny"].add_args(parser)
    assert "(registered: strang, lie, turned)" in " ".join(parser.format_help().split())
    assert parser.parse_args(["--splitting", registered]).splitting == TURNED
    for given, reason in (
        ("ffn/2 attention", "the shares of 'ffn' add up to 0.5"),
        ("ffn/2 conv ffn/2 attention", "flow 'conv' is unknown here; choose from ffn, attention, cross_attention"),
        ("attention/2 attention/2", "no substep follows 'ffn'"),
        ("ffn/2 cross_attention ffn/2", "no substep follows 'attention'"),
        ("ffn/0 attention", "'ffn/0' is no substep"),
        ("", "has no substeps"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(["--splitting", given])
        assert reason in capsys.readouterr().err
        with pytest.raises(ValueError, match=reason):
            MacaronModel.build_model(Namespace(splitting=given, **SIZES), toy_task())


class Drift(nn.Linear):
    """dx/dt = W x + b."""

    kind = "drift"

    def forward(self, x, context):
        return super().forward(x), None


def test_a_flow_of_ones_own(toy_task) -> None:
    options = {"splitting": "ffn/2 attention drift ffn/2", **SIZES}
    with pytest.raises(ValueError, match="flow 'drift' is unknown here"):
        MacaronModel.build_model(Namespace(**options), toy_task())
    register_flow(Drift.kind, lambda dim: Drift(dim, dim))
    try:
        model = MacaronModel.build_model(Namespace(**options), toy_task())
        assert kinds(model, "decoder") == ["ffn", "self_attention", "cross_attention", "drift", "ffn"]
        tokens = torch.randint(4, 44, (2, 5))
        model(tokens, torch.tensor([5, 5]), tokens)[0].square().mean().backward()
        assert model.encoder.layers[0].flows[2].weight.grad.abs().sum() > 0
    finally:
        del FLOWS[Drift.kind]


@pytest.mark.parametrize("splitting", [TURNED, "ffn/2 attention ffn/2 cross_attention"])
def test_step_by_step_is_the_whole_pass(splitting: str, toy_task) -> None:
    torch.manual_seed(1)
    model = MacaronModel.build_model(Namespace(splitting=splitting, **SIZES), toy_task()).eval().double()
    source, tokens = torch.randint(4, 44, (3, 6)), torch.randint(4, 44, (3, 5))
    memory = model.encoder(source, (source != 1).sum(1))
    expected, _ = model.decoder(tokens, memory)
    state: dict = {}
    for t in range(tokens.size(1)):
        step, _ = model.decoder(tokens[:, : t + 1], memory, incremental_state=state)
        torch.testing.assert_close(step[:, -1], expected[:, t], rtol=1e-10, atol=1e-10)  # float64, other products


def test_trained_and_translated(train, fairseq_cli, plugin, whole, tiny_data_bin, batches) -> None:
    done = train(tiny_data_bin, *batches, "--splitting", TURNED, "--encoder-layers", 1, "--decoder-layers", 1)
    saved = torch.load(done.checkpoint, weights_only=True)
    assert saved["cfg"]["model"]["splitting"] == TURNED
    flags = ["--user-dir", plugin, "--path", done.checkpoint, "--cpu", "--beam", 2, "--max-len-b", 12, *whole]
    said = fairseq_cli("fairseq-generate", tiny_data_bin, *flags, cwd=done.folder).stdout
    assert re.search(r"^H-0\t-", said, re.MULTILINE)
    mean = done.folder / "mean.pt"
    assert main(["average", "--inputs", str(done.checkpoint), "--output", str(mean)]) == 0
    flags[flags.index(done.checkpoint)] = mean
    assert fairseq_cli("fairseq-generate", tiny_data_bin, *flags, cwd=done.folder).stdout.count("\nH-") == 12
    flags = ["--splitting", "strang", "--encoder-layers", 1, "--decoder-layers", 1, "--restore-file", done.checkpoint]
    assert "holds another architecture than the model" in train(tiny_data_bin, *batches, *flags, expect=1).output
