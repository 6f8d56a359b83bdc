"""`macaron convert --splitting strang`: fairseq's pre-norm Transformers, its own and ours, read as Macarons."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel

from macaron import MacaronModel
from macaron.bracketing import Widths, rebracket_checkpoint
from macaron.cli import main

SIZES = {
    **{"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_layers": 2, "encoder_attention_heads": 2},
    **{"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 40, "decoder_layers": 3, "decoder_attention_heads": 4},
    **{"max_source_positions": 64, "max_target_positions": 64, "dropout": 0.0, "share_all_embeddings": True},
    **{"encoder_normalize_before": True, "decoder_normalize_before": True},
}


def randomized(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def fairseqs(task: Any, **changed: Any) -> tuple[Any, dict[str, Any]]:
    """fairseq's own Transformer, and its checkpoint by fairseq-train."""
    args = Namespace(**{**SIZES, **changed, "arch": "transformer"})
    base_architecture(args)
    model = randomized(TransformerModel.build_model(args, task))
    return model, {"model": model.state_dict(), "args": None, "cfg": {"model": args}}


def ours(task: Any, **changed: Any) -> tuple[Any, dict[str, Any]]:
    model = randomized(MacaronModel.build_model(Namespace(**{**SIZES, "splitting": "lie", **changed}), task))
    return model, {"model": model.state_dict(), "cfg": {"model": {**vars(model.args), "_name": "macaron_tiny"}}}


def hydras(task: Any, **changed: Any) -> tuple[Any, dict[str, Any]]:
    """fairseq's own, and its checkpoint by fairseq-hydra-train, whose options are nested."""
    model, state = fairseqs(task, **changed)
    nested = {"_name": "transformer", **vars(TransformerConfig.from_namespace(state["cfg"]["model"]))}
    nested |= {side: dict(vars(nested[side])) for side in ("encoder", "decoder", "quant_noise")}
    return model, {**state, "cfg": {"model": nested}}


def loaded(state: dict[str, Any], task: Any) -> Any:
    """As fairseq builds and loads a checkpoint's model."""
    options = state["cfg"]["model"]
    args = options if isinstance(options, Namespace) else Namespace(**options)
    assert args._name.startswith("macaron")
    model = MacaronModel.build_model(args, task)
    model.load_state_dict(state["model"])
    return model.eval()


def output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    source, target = (torch.randint(4, 44, (6, n), generator=generator) for n in (7, 5))
    with torch.no_grad():
        return model(src_tokens=source, src_lengths=torch.full((6,), 7), prev_output_tokens=target)[0]


@pytest.mark.parametrize("made_by", [fairseqs, hydras, ours], ids=["fairseq", "hydra", "ours"])
def test_with_all_neurons_behind_the_attention_it_is_the_same_function(made_by: Any, toy_task: Any) -> None:
    task = toy_task()
    model, state = made_by(task, decoder_ffn_embed_dim=24)
    made = rebracket_checkpoint(state, Widths(8, 24))
    assert made.dropped == {"encoder": (0, 0), "decoder": (0, 0)}
    torch.testing.assert_close(output(loaded(made.state, task)), output(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("made_by", [fairseqs, hydras, ours], ids=["fairseq", "hydra", "ours"])
def test_halves_load(made_by: Any, toy_task: Any) -> None:
    """Nearer to the model it is from than another is; the parameters of the Transformer, and a norm a layer."""
    task = toy_task()
    model, state = made_by(task)
    strang = rebracket_checkpoint(state)
    assert strang.widths == {"encoder": Widths(12, 12), "decoder": Widths(20, 20)}
    assert strang.dropped == {"encoder": (0, 12), "decoder": (0, 20)}
    made = loaded(strang.state, task)
    other = loaded(rebracket_checkpoint(ours(task)[1]).state, task)
    assert (output(made) - output(model)).norm() < 0.5 * (output(other) - output(model)).norm()
    numbers = [sum(p.numel() for p in m.parameters()) for m in (made, model)]
    assert numbers[0] - numbers[1] == 5 * (2 * 16 + 16)  # in each layer a norm, and the offset of a second FFN


def test_the_first_half_step_is_that_of_the_layer_before(toy_task: Any) -> None:
    model, state = ours(toy_task())
    tensors = rebracket_checkpoint(state).state["model"]
    for part in ("weight", "bias"):
        assert torch.equal(
            tensors[f"decoder.layers.1.norms.0.{part}"], model.state_dict()[f"decoder.layers.0.norms.2.{part}"]
        )
    there = {tuple(row.tolist()) for row in model.state_dict()["decoder.layers.0.flows.2.fc1.weight"]}
    moved = {tuple(row.tolist()) for row in tensors["decoder.layers.1.flows.0.fc1.weight"]}
    stayed = {tuple(row.tolist()) for row in tensors["decoder.layers.0.flows.3.fc1.weight"]}
    assert moved | stayed == there and not moved & stayed


def test_what_belongs_to_other_parameters_is_left_out(toy_task: Any) -> None:
    _, state = ours(toy_task())
    state |= {"last_optimizer_state": {"state": {}}, "extra_state": {"ema": {"a": 1}, "epoch": 3}}
    made = rebracket_checkpoint(state)
    assert "last_optimizer_state" not in made.state and made.state["extra_state"] == {"epoch": 3}
    assert len(made.left_out) == 2
    assert state["extra_state"] == {"ema": {"a": 1}, "epoch": 3}


def refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebracket_checkpoint(state)


def test_what_does_not_fit(toy_task: Any) -> None:
    task = toy_task()
    refused(ours(task, splitting="strang")[1], "its splitting is 'strang'; only a Transformer, lie")
    refused(ours(task, solver="heun_learned")[1], "a solver with weights for each of its flows")
    refused(fairseqs(task, decoder_normalize_before=False)[1], "its decoder is post-norm")
    state = fairseqs(task)[1]
    state["cfg"]["model"].arch = "fconv"
    refused(state, "its architecture is 'fconv'")
    broken = ours(task)[1]
    del broken["model"]["decoder.layers.1.flows.2.fc1.bias"]
    refused(broken, "decoder.layers.1 ")
    with pytest.raises(ValueError, match="widths 8 and 40 do not divide an FFN of 24"):
        rebracket_checkpoint(ours(task)[1], Widths(8, 40))


def test_a_language_model(toy_task: Any) -> None:
    options = {name: value for name, value in SIZES.items() if name.startswith("decoder")}
    args = Namespace(**options, max_target_positions=64, splitting="lie", share_decoder_input_output_embed=True)
    model = randomized(MacaronLanguageModel.build_model(args, toy_task()))
    state = {"model": model.state_dict(), "cfg": {"model": {**vars(model.args), "_name": "macaron_lm_tiny"}}}
    made = rebracket_checkpoint(state, Widths(1, 40))
    again = MacaronLanguageModel.build_model(Namespace(**made.state["cfg"]["model"]), toy_task())
    again.load_state_dict(made.state["model"])
    tokens = torch.randint(4, 44, (3, 6))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens)[0], model(tokens)[0], rtol=1e-5, atol=1e-5)


def test_the_command(
    trained_lie: Path, tiny_data_bin: Path, train: Callable[..., Any], batches: list[str], tmp_path: Path, capsys: Any
) -> None:
    """A trained Transformer goes on as a Macaron, from a checkpoint that is not overwritten unasked."""
    out = tmp_path / "strang.pt"
    assert main(["convert", str(trained_lie), "--splitting", "strang", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "encoder: FFNs of 64 and 64 neurons; the last layer is without 64 of its 128 neurons" in said
    assert "left out: the optimiser's state" in said and f"--finetune-from-model {out}" in said
    assert main(["convert", str(trained_lie), "--splitting", "strang", "--output", str(out)]) == 1
    assert "exists; add --force" in capsys.readouterr().err
    flags = said.rpartition("fairseq-train … ")[2].split()
    done = train(tiny_data_bin, *batches, *flags)
    assert len(done.updates) == 4


@pytest.fixture(scope="module")
def trained_lie(train: Callable[..., Any], tiny_data_bin: Path, batches: list[str]) -> Path:
    done = train(
        tiny_data_bin, *batches, "--splitting", "lie", "--encoder-normalize-before", "--decoder-normalize-before"
    )
    return Path(done.checkpoint)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ffn-widths", "4", "4"], "--ffn-widths goes with --splitting strang"),
        (["--splitting", "strang", "--ffn-widths", "4", "4000"], "widths 4 and 4000 do not divide an FFN of 128"),
        (["--splitting", "strang", "--dict", "d.txt"], "for which --dict d.txt would do nothing"),
    ],
)
def test_refused_by_the_command(
    flags: list[str], message: str, trained_lie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(trained_lie), "--output", str(tmp_path / "o.pt"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.pt").exists()


def test_a_folder_is_warm_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "o"), "--splitting", "strang"]) == 1
    assert "python -m recipes.warm_start" in capsys.readouterr().err
