"""What building a model settles stands in the configuration that checkpoints save."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks.fairseq_task import FairseqTask
from macaron.user_dir import layers
from macaron.user_dir.architectures import LANGUAGE_MODELS, TRANSLATION
from omegaconf import DictConfig, OmegaConf

from macaron.particles.layer import ParticleLayer

SMALL = ["--adaptive-input-cutoff", "10,20", "--adaptive-softmax-cutoff", "10,20"]


class Task(FairseqTask):
    """A task of fairseq's with dictionaries and no data."""

    def __init__(self, toy):
        self.toy = toy

    source_dictionary = property(lambda self: self.toy.source_dictionary)
    target_dictionary = property(lambda self: self.toy.target_dictionary)


class OwnStep(Task):
    def train_step(self, *args, **kwargs):
        raise NotImplementedError


@pytest.fixture
def task(toy_task):
    return Task(toy_task())


def parsed(arch: str, *flags: str) -> Namespace:
    task = "language_modeling" if arch in LANGUAGE_MODELS else "translation"
    flags = [*flags, *(SMALL if "wiki103" in arch else [])]
    return options.parse_args_and_arch(options.get_training_parser(), ["--task", task, ".", "--arch", arch, *flags])


def composed(arch: str, *flags: str) -> DictConfig:
    return convert_namespace_to_omegaconf(parsed(arch, *flags))


def saved(cfg: DictConfig) -> dict:
    """As the trainer writes it."""
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)["model"]


@pytest.mark.parametrize("arch", [*TRANSLATION, *LANGUAGE_MODELS])
def test_every_option_is_saved_as_it_was_settled(arch, task):
    cfg = composed(arch)
    with torch.device("meta"):
        model = task.build_model(cfg.model)
    found = saved(cfg)
    for f in fields(type(model).config):
        if not f.name.startswith("_"):
            assert found[f.name] == getattr(model.args, f.name), f.name
    assert all(found[name] for name in found if name.endswith("ffn_embed_dim"))


def test_sharing_and_checkpointing_are_saved(task):
    cfg = composed("macaron_tiny", "--share-all-embeddings", "--offload-activations")
    model = task.build_model(cfg.model)
    assert model.decoder.share_input_output_embed
    assert saved(cfg)["share_decoder_input_output_embed"] and saved(cfg)["checkpoint_activations"]


def test_a_partial_configuration_of_hydra_is_completed(task):
    cfg = OmegaConf.create({"model": {"_name": "macaron_tiny", "dropout": 0.0, "encoder_layers_to_keep": "0"}})
    model = task.build_model(cfg.model)
    assert len(model.encoder.layers) == 1
    found = saved(cfg)
    assert (found["encoder_layers"], found["encoder_ffn_embed_dim"], found["dropout"]) == (1, 64, 0.0)
    again = task.build_model(OmegaConf.create({"model": found}).model)
    again.load_state_dict(model.state_dict())


def test_positions_that_follow_from_the_task_do_not_change_with_it(task):
    cfg = composed("macaron_lm_tiny", "--decoder-learned-pos", "--tokens-per-sample", "32")
    model = task.build_model(cfg.model)
    assert saved(cfg)["max_target_positions"] == 32
    other = OmegaConf.create({"model": {**saved(cfg), "tokens_per_sample": 64}})
    task.build_model(other.model).load_state_dict(model.state_dict())


@pytest.mark.parametrize("arch", ["macaron_tiny", "macaron_lm_tiny"])
def test_pruning_is_settled_once(arch, task):
    """The whole checkpoint is pruned; what is saved then, loads as it is, and again under the same options."""
    flags = ["--decoder-layers", "3", "--decoder-layers-to-keep", "0,2"]
    whole = task.build_model(composed(arch, *flags[:2]).model)
    cfg = composed(arch, *flags)
    pruned = task.build_model(cfg.model)
    pruned.load_state_dict(whole.state_dict(), model_cfg=cfg.model)
    for here, there in enumerate((0, 2)):
        for name, tensor in pruned.decoder.layers[here].state_dict().items():
            assert tensor.equal(whole.state_dict()[f"decoder.layers.{there}.{name}"])
    found = saved(cfg)
    assert (found["decoder_layers"], found["decoder_layers_to_keep"]) == (2, None)
    for again in (OmegaConf.create({"model": found}), composed(arch, *flags)):
        loaded = task.build_model(again.model)
        loaded.load_state_dict(pruned.state_dict(), model_cfg=again.model)
        for name, tensor in loaded.state_dict().items():
            assert tensor.equal(pruned.state_dict()[name])


def test_a_namespace_of_the_user_stays_as_it_is(toy_task):
    args = Namespace(encoder_layers=3, encoder_layers_to_keep="0,2")
    for _ in range(2):
        assert len(MODEL_REGISTRY["macaron_tiny"].build_model(args, toy_task()).encoder.layers) == 2
    assert vars(args) == {"encoder_layers": 3, "encoder_layers_to_keep": "0,2"}


ALIGNED = "label_smoothed_cross_entropy_with_alignment"


def attention_in_training(model) -> bool:
    tokens = torch.randint(4, 40, (2, 5))
    extra = model.train()(tokens, torch.tensor([5, 5]), tokens)[1]
    assert len(extra["inner_states"]) == 3
    assert model.eval()(tokens, torch.tensor([5, 5]), tokens)[1]["attn"][0].shape == (2, 5, 5)
    return extra["attn"][0] is not None


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("cross_entropy", False),
        ("label_smoothed_cross_entropy", False),
        ("macaron_label_smoothed_cross_entropy", False),
        (ALIGNED, True),
    ],
)
@pytest.mark.parametrize("splitting", ["strang", "lie"])
def test_attention_weights_are_there_for_a_criterion_that_may_read_them(task, toy_task, criterion, expected, splitting):
    flags = ["--criterion", criterion, "--splitting", splitting]
    assert attention_in_training(task.build_model(composed("macaron_tiny", *flags).model)) is expected
    args = parsed("macaron_tiny", *flags)
    assert attention_in_training(MODEL_REGISTRY["macaron_tiny"].build_model(args, task)) is expected
    # one that nobody here knows, or none
    for other in ({"_name": "of_a_user"}, {}):
        whole = OmegaConf.create({"model": {"_name": "macaron_tiny", "splitting": splitting}, "criterion": other})
        assert attention_in_training(task.build_model(whole.model))
    assert attention_in_training(OwnStep(toy_task()).build_model(composed("macaron_tiny", *flags).model))
    assert attention_in_training(MODEL_REGISTRY["macaron_tiny"].build_model(Namespace(splitting=splitting), task))


@pytest.mark.parametrize("flags", [["--checkpoint-activations"], ["--compile"], ["--share-all-embeddings"]], ids=str)
def test_attention_weights_in_training_have_a_gradient(task, flags, monkeypatch):
    torch._dynamo.reset()
    compiled = torch.compile(ParticleLayer.integrate, dynamic=True, fullgraph=True, backend="eager")
    monkeypatch.setattr(layers, "_compiled", lambda kind: compiled)  # its graphs, without half a minute of C++ for them
    model = task.build_model(composed("macaron_tiny", "--criterion", ALIGNED, *flags).model).train()
    tokens = torch.randint(4, 40, (2, 5))
    weights = model(tokens, torch.tensor([5, 5]), tokens)[1]["attn"][0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    weights[..., 0].log().sum().backward()
    assert model.decoder.layers[-1].flows[2].q_proj.weight.grad.any()
