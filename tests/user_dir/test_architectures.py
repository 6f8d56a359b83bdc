"""Every named architecture: its size, its options on the command line and under hydra, its help."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import fields

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from macaron.user_dir.architectures import LANGUAGE_MODELS, TRANSLATION
from macaron.user_dir.config import complete

NAMES = [*TRANSLATION, *LANGUAGE_MODELS]

# The design's table: d, width of each FFN half, heads, layers.
TABLE = {
    "macaron_iwslt_de_en": (512, 512, 4, 6),
    "macaron_base": (512, 1024, 8, 6),
    "macaron_big": (1024, 2048, 16, 6),
    "macaron_tiny": (64, 64, 2, 2),
}
ORIGINAL = [
    "transformer_iwslt_de_en_macaron",
    "transformer_iwslt_de_en_macaron_v2",
    "transformer_wmt_en_de_macaron",
    "transformer_wmt_en_de_macaron_v2",
    "transformer_wmt_en_de_big_t2t_macaron",
]


def build(name: str, task, /, **given):
    """The model without its memory: shapes only."""
    with torch.device("meta"):
        return MODEL_REGISTRY[name].build_model(Namespace(**given), task)


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def completed(name: str, given) -> dict:
    model = MODEL_REGISTRY[name]
    return vars(complete(given, model.config(), model.architecture))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_model_and_an_architecture(name):
    assert ARCH_MODEL_REGISTRY[name] is MODEL_REGISTRY[name]
    assert MODEL_DATACLASS_REGISTRY[name] is MODEL_REGISTRY[name].config


def test_the_names_of_the_design_and_of_the_original_are_there():
    assert {*TABLE, *ORIGINAL, "macaron", "macaron_lm"} <= set(NAMES)


@pytest.mark.parametrize(("name", "sizes"), TABLE.items())
def test_sizes_of_the_design(name, sizes, toy_task):
    model = build(name, toy_task())
    dim, ffn, heads, layers = sizes
    for side, attention in ((model.encoder, 1), (model.decoder, 1)):
        assert len(side.layers) == layers
        for layer in side.layers:
            assert layer.normalize_before and side.layer_norm is not None
            assert [layer.flows[i].fc1.weight.shape for i in (0, -1)] == [(ffn, dim)] * 2
            assert layer.flows[attention].num_heads == heads


@pytest.fixture(scope="module")
def expected_counts(golden) -> list[dict]:
    return json.loads((golden / "param_counts.json").read_text(encoding="utf-8"))


def test_parameter_counts_of_the_original(expected_counts, toy_task):
    checked = 0
    for entry in expected_counts:
        if entry["arch"] in TRANSLATION:
            task = toy_task(entry["vocab"] - 4, None if entry["share_all_embeddings"] else entry["vocab"] - 4)
            model = build(entry["arch"], task, share_all_embeddings=entry["share_all_embeddings"])
            assert count(model) == entry["total"], entry
            for option in ("dropout", "attention_dropout"):
                assert getattr(model.args, option) == entry[option], entry
            assert model.args.activation_dropout == entry["relu_dropout"], entry
            assert model.args.encoder_normalize_before == entry["pre_norm"], entry
            checked += 1
    assert checked >= 7


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("macaron_iwslt_de_en", "transformer_iwslt_de_en_macaron_v2"),
        ("macaron_base", "transformer_wmt_en_de_macaron_v2"),
        ("macaron_big", "transformer_wmt_en_de_big_t2t_macaron"),
    ],
)
def test_our_sizes_count_as_many_as_the_original(ours, original, toy_task):
    assert count(build(ours, toy_task())) == count(build(original, toy_task()))


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("macaron_iwslt_de_en", "transformer_iwslt_de_en_v2"),
        ("macaron_base", "transformer_wmt_en_de_v2"),
        ("macaron_big", "transformer_wmt_en_de_big_t2t"),
    ],
)
def test_lie_is_the_matched_baseline(name, baseline, expected_counts, toy_task):
    """One FFN of double width: the Transformer of the original, and strang but for one norm and one bias per layer."""
    (entry,) = (entry for entry in expected_counts if entry["arch"] == baseline)
    task = toy_task(entry["vocab"] - 4)
    lie = build(name, task, splitting="lie", share_all_embeddings=True)
    strang = build(name, task, splitting="strang", share_all_embeddings=True)
    assert count(lie) == entry["total"]
    layers = 2 * lie.args.encoder_layers
    assert count(strang) - count(lie) == layers * 3 * lie.args.encoder_embed_dim


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models(name, toy_task):
    small = {"adaptive_input_cutoff": "10,20", "adaptive_softmax_cutoff": "10,20"}
    model = build(name, toy_task(), **(small if name == "macaron_lm_wiki103" else {}))
    layer = model.decoder.layers[0]
    assert [flow.kind for flow in layer.flows] == ["ffn", "self_attention", "ffn"]
    ffn = LANGUAGE_MODELS[name].ffn
    assert [layer.flows[i].fc1.out_features for i in (0, 2)] == [ffn, ffn]
    lie = build(name, toy_task(), splitting="lie", **(small if name == "macaron_lm_wiki103" else {}))
    assert [flow.kind for flow in lie.decoder.layers[0].flows] == ["self_attention", "ffn"]
    assert lie.decoder.layers[0].flows[1].fc1.out_features == 2 * ffn


def command_line(name: str, *flags: str) -> Namespace:
    task = "language_modeling" if name in LANGUAGE_MODELS else "translation"
    return options.parse_args_and_arch(options.get_training_parser(), ["--task", task, ".", "--arch", name, *flags])


def _from_another_section(field) -> bool:
    """Whether hydra fills it in from the task or the common options."""
    return str(field.default).startswith("${")


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_and_hydra_mean_the_same_model(name):
    """From nothing but the name: a namespace, fairseq's configuration of it, the dataclass that hydra takes."""
    args = command_line(name)
    own = {field.name for field in fields(MODEL_REGISTRY[name].config) if not _from_another_section(field)}
    from_dataclass = completed(name, MODEL_REGISTRY[name].config())
    for given in (args, convert_namespace_to_omegaconf(args).model):
        found = completed(name, given)
        differing = {
            key: (found[key], from_dataclass[key]) for key in own - {"_name"} if found[key] != from_dataclass[key]
        }
        assert differing == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_help_text(name):
    for field in fields(MODEL_REGISTRY[name].config):
        if not field.name.startswith("_") and not _from_another_section(field):
            assert field.metadata.get("help"), field.name


def test_options_that_are_on_by_default_can_be_switched_off(toy_task):
    assert completed("macaron_tiny", command_line("macaron_tiny"))["encoder_normalize_before"] is True
    args = command_line("macaron_tiny", "--no-encoder-normalize-before")
    model = build("macaron_tiny", toy_task(), **vars(args))
    assert not model.encoder.layers[0].normalize_before and model.encoder.layer_norm is None
    assert model.decoder.layers[0].normalize_before and model.decoder.layer_norm is not None


def test_a_misspelt_flag_is_rejected(capsys):
    with pytest.raises(SystemExit):
        command_line("macaron_tiny", "--encoder-embed-dimm", "32")
    assert "unrecognized arguments: --encoder-embed-dimm" in capsys.readouterr().err


def test_help_of_the_options():
    parser = ArgumentParser(prog="fairseq-train")
    MODEL_REGISTRY["macaron_tiny"].add_args(parser)
    shown = " ".join(parser.format_help().split())
    assert "--splitting NAME" in shown and "(registered: strang, lie)" in shown
    assert "operator splitting of a layer: strang = FFN half step, attention, FFN half step (Macaron Net)" in shown
    assert "--no-encoder-normalize-before" in shown


def test_the_command_lists_the_architectures(fairseq_cli, plugin, tmp_path):
    arguments = ["--user-dir", plugin, "--arch", "macaron_iwlst"]
    said = fairseq_cli("fairseq-train", *arguments, cwd=tmp_path, expect=2).stdout
    assert "invalid choice: 'macaron_iwlst'" in said
    assert [name for name in NAMES if f"'{name}'" not in said] == []


CONFIG = """
# @package _group_
common: {{user_dir: {plugin}, cpu: true, log_format: json, log_interval: 1}}
task: {{_name: translation, data: {data}}}
model: {{_name: macaron_tiny, dropout: 0, {model}}}
criterion: {{_name: cross_entropy}}
optimizer: {{_name: adam, adam_betas: "(0.9,0.98)"}}
lr_scheduler: {{_name: fixed}}
optimization: {{lr: [0.005], max_update: 4}}
dataset: {{batch_size: 15, required_batch_size_multiple: 1, num_workers: 0, disable_validation: true}}
checkpoint: {{save_dir: {folder}, no_epoch_checkpoints: true}}
"""


@pytest.fixture
def hydra_train(fairseq_cli, plugin, tiny_data_bin, tmp_path, read_training):
    def run(model: str, **options):
        config = CONFIG.format(plugin=plugin, data=tiny_data_bin, model=model, folder=tmp_path)
        (tmp_path / "tiny.yaml").write_text(config, encoding="utf-8")
        arguments = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path}"]
        done = fairseq_cli("fairseq-hydra-train", *arguments, cwd=tmp_path, **options)
        return read_training(tmp_path, done.stdout)

    return run


def test_hydra_trains_the_model_of_the_command_line(hydra_train, train, tiny_data_bin, batches):
    by_flags = train(tiny_data_bin, *batches, "--disable-validation", "--splitting", "lie", "--decoder-layers", 1)
    by_hydra = hydra_train("splitting: lie, decoder_layers: 1")
    assert by_hydra.losses == by_flags.losses


def test_hydra_takes_a_notation_and_resumes_under_another_spelling(hydra_train, train, tiny_data_bin, batches):
    """In a file, with activation checkpointing and layerdrop around the layers."""
    flags = [*batches, "--disable-validation", "--splitting", "attention/2 ffn attention/2"]
    flags += ["--checkpoint-activations", "--encoder-layerdrop", "0.3"]
    by_flags = train(tiny_data_bin, *flags)
    spelt = 'splitting: "self_attention/2.0  ffn attention/2"'
    by_hydra = hydra_train(f"{spelt}, checkpoint_activations: true, encoder_layerdrop: 0.3")
    assert by_hydra.losses == by_flags.losses
    kept = torch.load(by_hydra.checkpoint, weights_only=True)["cfg"]["model"]["splitting"]
    assert kept == "attention/2 ffn attention/2"
    flags[flags.index("--splitting") + 1] = "self_attention/2 ffn/1 attention/2"
    on = train(tiny_data_bin, *flags, "--restore-file", by_hydra.checkpoint, "--max-update", 5)
    assert [number for number, *_ in on.losses] == ["5"]
    assert {name: tensor.shape for name, tensor in by_hydra.weights.items()} == {
        name: tensor.shape for name, tensor in by_flags.weights.items()
    }


def test_hydra_rejects_a_misspelt_key(hydra_train):
    output = hydra_train("encoder_embed_dimm: 32", expect=1).output
    assert "encoder_embed_dimm" in output


def test_hydra_rejects_an_unknown_splitting(hydra_train):
    output = hydra_train("splitting: godunov", expect=1).output
    assert "godunov" in output and "strang" in output
