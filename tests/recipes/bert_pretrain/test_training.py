"""The parts around Trainer, without a training."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from recipes.bert_pretrain import training
from recipes.bert_pretrain.masking import IGNORED
from recipes.bert_pretrain.settings import settings_for
from recipes.common.errors import RecipeError


def rows(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"input_ids": [[2, n + 5, 3] for n in range(count)], "second": [3] * count, "is_next": [-1] * count}
    )


def test_each_pass_is_an_order_of_all_examples() -> None:
    passes = training.Passes(rows(7), 21, seed=3)
    items = passes.__getitems__(range(21))
    orders = [[item["example"] for item in items[start : start + 7]] for start in (0, 7, 14)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [item["pass"] for item in items] == [0] * 7 + [1] * 7 + [2] * 7
    assert all(item["input_ids"][1] == item["example"] + 5 for item in items)
    backwards = [training.Passes(rows(7), 21, seed=3)[position]["example"] for position in reversed(range(21))]
    assert backwards[::-1] == [example for order in orders for example in order]  # a position alone says which example
    assert [item["example"] for item in training.Passes(rows(4), 4, seed=None).__getitems__(range(4))] == [0, 1, 2, 3]


def test_spread() -> None:
    assert training.spread(rows(10), 3)["input_ids"] == [[2, 5, 3], [2, 9, 3], [2, 14, 3]]
    assert len(training.spread(rows(10), 30)) == 10


@pytest.mark.parametrize("sparse", [False, True])
def test_validation_sums_are_exact(sparse: bool) -> None:
    logits = torch.randn(3, 4, 9)
    labels = torch.tensor([[IGNORED, 1, 2, IGNORED], [IGNORED] * 4, [3, IGNORED, IGNORED, 8]])
    chosen = labels != IGNORED
    score, pair = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1, 1, 0])
    sums = training.example_sums((logits[chosen] if sparse else logits, score), (labels, pair))
    expected = torch.nn.functional.cross_entropy(logits[chosen], labels[chosen])
    metrics = training.validation_metrics(
        training.EvalPrediction(predictions=sums.numpy(), label_ids=(labels.numpy(), pair.numpy()))
    )
    assert metrics["mlm_loss"] == pytest.approx(expected.item(), rel=1e-6)  # a mean of four in float32
    assert metrics["mlm_accuracy"] == pytest.approx((logits.argmax(-1) == labels)[chosen].float().mean().item())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(score, pair.float())
    assert metrics["nsp_loss"] == pytest.approx(loss.item(), rel=1e-6)  # of three
    assert metrics["nsp_accuracy"] == pytest.approx(1 / 3)
    alone = training.validation_metrics(training.EvalPrediction(predictions=sums.numpy(), label_ids=labels.numpy()))
    assert "nsp_loss" not in alone


@pytest.mark.parametrize(("batch", "device", "expected"), [(256, 32, (32, 8)), (30, 8, (6, 5)), (7, 4, (1, 7))])
def test_the_batch_is_the_same_whatever_fits(
    tmp_path: Path, batch: int, device: int, expected: tuple[int, int]
) -> None:
    args = training.arguments(
        settings_for("tiny", batch_size=batch), training.Devices(device_batch=device), tmp_path / "checkpoints"
    )
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected
    assert not (tmp_path / "checkpoints").exists()


def test_half_written_checkpoints_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training.newest_checkpoint(tmp_path) is None
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / training.COMPLETE).touch()
    assert training.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists() and "checkpoint-100 was cut short" in capsys.readouterr().err


def test_presets_are_what_they_say() -> None:
    original = settings_for("base_original")
    t = original.training
    assert t.batch_size * original.data.max_length == 128 * 1024
    assert (t.lr, t.beta1, t.beta2, t.adam_eps, t.weight_decay, t.updates) == (3e-4, 0.9, 0.999, 1e-6, 0.01, 800_000)
    assert t.warmup_updates == 10_000 and t.schedule == "linear" and t.decay_all
    base = settings_for("base")
    assert base.data.objective == "mlm" and base.training.precision == "bf16"


def test_base_original_has_the_parameters_of_the_original() -> None:
    """golden/param_counts.json, transformer_bert_base_macaron: 110,787,073 with 32,768 words."""
    from macaron.bert import MacaronBertConfig, MacaronBertForPreTraining

    s = settings_for("base_original")
    config = MacaronBertConfig(
        vocab_size=s.data.vocab_size, max_position_embeddings=s.data.max_length, **dataclasses.asdict(s.model)
    )
    with torch.device("meta"):
        model = MacaronBertForPreTraining(config)
    trainable = sum(p.numel() for p in model.parameters())
    assert trainable == 110_787_073


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"warmup_updates": 4000}, "warmup_updates is 4000 but must be less than updates"),
        ({"mask_probability": 1.0}, r"mask_probability is 1.0 but must lie in \[0, 1\); change --mask-probability"),
        ({"max_length": 4}, "max_length is 4 but must be at least 8"),
        ({"objective": "clm"}, "objective is 'clm'; choose one of mlm, mlm.nsp"),
        ({"hidden": 4}, "hidden: no such setting"),
    ],
)
def test_settings_are_checked(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        settings_for("tiny", **overrides)


def test_a_model_that_cannot_be_built() -> None:
    class Tokenizer:
        pad_token_id, cls_token_id, sep_token_id, mask_token_id = 0, 2, 3, 4

        def __len__(self) -> int:
            return 50

    with pytest.raises(RecipeError, match=r"the model cannot be built: .*splitting='runge'"):
        training.build_model(settings_for("tiny", splitting="runge"), Tokenizer())


def test_weight_decay_of_everything(tmp_path: Path) -> None:
    class Tokenizer:
        pad_token_id, cls_token_id, sep_token_id, mask_token_id = 0, 2, 3, 4

        def __len__(self) -> int:
            return 50

    for decay_all in (False, True):
        sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "depth_rule": "multistep"}
        s = settings_for("tiny", decay_all=decay_all, **sizes)
        model = training.build_model(s, Tokenizer())
        trainer = training.Pretraining(
            model=model,
            args=training.arguments(s, training.Devices(), tmp_path),
            eval_dataset=training.Passes(rows(2), 2, seed=None),
            training=s.training,
            tokens_per_example=1.0,
            validation_collator=None,
        )
        decayed = set(trainer.get_decay_parameter_names(model))
        names = {name for name, _ in model.named_parameters()}
        k = {"macaron_bert.layers.rule.bias"}  # never
        assert decayed & names == names - k if decay_all else decayed & names < names - k
        assert k < names and ("mlm_head.dense.bias" in decayed) is decay_all
        with torch.no_grad():
            model.macaron_bert.layers.rule.bias.copy_(torch.tensor([0.25, -0.5]))
        trainer.log({"loss": 1.0})
        assert trainer.state.log_history[-1] | {"k_min": -0.5, "k_max": 0.25} == trainer.state.log_history[-1]


def test_order_needs_no_list_of_all_passes() -> None:
    passes = training.Passes(rows(50), 10**9, seed=1)
    for position in range(0, 10**9, 10**8):
        passes[position]
    assert len(passes.orders) <= 2 and isinstance(passes.order(3), np.ndarray)


# --- checkpoints that are gone on with ------------------------------------------------------------------------------


class Saved(NamedTuple):
    folder: Path
    model: Any
    tokenizer: Any


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """A checkpoint as Trainer leaves it, with the model and the tokenizer at hand."""
    tokenizer = BertTokenizer(vocab={piece: n for n, piece in enumerate(PIECES)})
    model = training.build_model(TINY, tokenizer)
    folder = tmp_path / "checkpoint-6"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.ones(3)}, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 6}')
    return Saved(folder, model, tokenizer)


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
TINY = settings_for("tiny", hidden_size=16, num_hidden_layers=2, num_attention_heads=2)


def test_a_whole_checkpoint_is_taken(saved: Saved) -> None:
    training.check_checkpoint(*saved)


def test_missing_layers_are_named(saved: Saved) -> None:
    path = saved.folder / "model.safetensors"
    tensors = load_file(path)
    layers = [name for name in saved.model.state_dict() if ".1." in name]
    assert layers
    save_file({name: tensor for name, tensor in tensors.items() if name not in layers}, path)
    with pytest.raises(RecipeError, match=re.escape(f"model.safetensors lacks {', '.join(layers)}. Put it back")):
        training.check_checkpoint(*saved)


@pytest.mark.parametrize("change", ["less", "more", "shape", "nan", "inf", "half", "empty", "text"])
def test_wrong_weights_are_refused(saved: Saved, change: str) -> None:
    path = saved.folder / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    changed = {
        "less": lambda: tensors.pop(name),
        "more": lambda: tensors.update(other=torch.ones(2)),
        "shape": lambda: tensors.update({name: torch.ones(2, 3, 5)}),
        "nan": lambda: tensors[name].fill_(math.nan),
        "inf": lambda: tensors[name].fill_(math.inf),
    }
    if change in changed:
        changed[change]()
        save_file(tensors, path)
    else:
        content = {"half": path.read_bytes()[:-400], "empty": b"", "text": b"weights" * 99}
        path.write_bytes(content[change])
    said = {
        "less": f"lacks {name}", "more": "has tensors that the model does not have: other",
        "shape": f"has another shape of {name}", "nan": "training diverged", "inf": "training diverged",
    }  # fmt: skip
    with pytest.raises(RecipeError, match=re.escape(said.get(change, "model.safetensors is damaged"))):
        training.check_checkpoint(*saved)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("num_attention_heads", 4, "num_attention_heads = 2 there, 4 now"),
        ("splitting", "lie", "splitting = 'strang' there, 'lie' now"),
        ("hidden_act", "relu", "hidden_act = 'gelu' there, 'relu' now"),
        ("hidden_dropout_prob", 0.1, "hidden_dropout_prob = 0.0 there, 0.1 now"),
    ],
)
def test_another_model_is_refused(saved: Saved, option: str, value: Any, said: str) -> None:
    """Of equal shapes, most of them: nothing else would tell."""
    other = training.build_model(
        dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, **{option: value})), saved.tokenizer
    )
    with pytest.raises(RecipeError, match=f"checkpoint-6: it is of another model .*{said}.*delete .* --restart"):
        training.check_checkpoint(saved.folder, other, saved.tokenizer)


def test_another_objective_is_refused(saved: Saved) -> None:
    other = training.build_model(
        dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, objective="mlm")), saved.tokenizer
    )
    with pytest.raises(RecipeError, match=r"MacaronBertForPreTraining.* there, MacaronBertForMaskedLM now"):
        training.check_checkpoint(saved.folder, other, saved.tokenizer)


def test_the_same_pieces_under_other_numbers_are_refused(saved: Saved) -> None:
    pieces = [*PIECES[:5], *reversed(PIECES[5:])]
    other = BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)})
    with pytest.raises(RecipeError, match=r"of another vocabulary \(8 pieces have another number"):
        training.check_checkpoint(saved.folder, saved.model, other)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]
)
@pytest.mark.parametrize("how", ["gone", "folder"])
def test_a_checkpoint_without_a_file_is_refused(saved: Saved, name: str, how: str) -> None:
    (saved.folder / name).unlink()
    if how == "folder":
        (saved.folder / name).mkdir()
    with pytest.raises(RecipeError, match=f"checkpoint-6: {re.escape(name)} is missing"):
        training.check_checkpoint(*saved)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_bits_that_fell_over_are_found(saved: Saved, name: str) -> None:
    content = bytearray((saved.folder / name).read_bytes())
    content[content.index(torch.ones(3).numpy().tobytes())] ^= 1
    (saved.folder / name).write_bytes(content)
    with pytest.raises(RecipeError, match=f"{re.escape(name)} is damaged"):
        training.check_checkpoint(*saved)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("trainer_state.json", "[]", "holds list"),
        ("trainer_state.json", "{}", "has no entry 'global_step'"),
        ("trainer_state.json", '{"global_step": 9}', "is that of update 9"),
        ("config.json", "null", "holds NoneType"),
        ("config.json", '{"architectures": ["MacaronBertForPreTraining"], "hidden_size": "wide"}', "no|not a config"),
        ("config.json", '{"architectures": 3}', "of another model|not a config"),
    ],
)
def test_records_of_another_shape_are_refused(saved: Saved, name: str, content: str, said: str) -> None:
    (saved.folder / name).write_text(content)
    with pytest.raises(RecipeError, match=said):
        training.check_checkpoint(*saved)


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").touch()
    assert training.newest_checkpoint(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "checkpoint-best"]


@pytest.mark.parametrize(
    "name", ["lr", "weight_decay", "clip_norm", "mask_probability", "valid_fraction", "initializer_range"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_settings_are_numbers(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{name} is {value} but must be a number; change --{name.replace('_', '-')}"):
        settings_for("tiny", **{name: value})


@pytest.mark.parametrize("name", ["seed", "data_seed"])
def test_seeds_fit_all_generators(name: str) -> None:
    settings_for("tiny", **{name: 2**32 - 1})
    for value in (-1, 2**32):
        with pytest.raises(RecipeError, match=f"{name} is {value} but must lie in"):
            settings_for("tiny", **{name: value})
