"""Models and configurations go through pickle, torch.save and copies, into other processes too."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from fairseq.models import MODEL_REGISTRY
from macaron.user_dir.architectures import LANGUAGE_MODELS, TRANSLATION
from macaron.user_dir.criterions.label_smoothed_cross_entropy import MacaronLabelSmoothedCrossEntropyConfig
from macaron.user_dir.optim.adam import Adam
from omegaconf import OmegaConf

SIZES = {
    "encoder_embed_dim": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
}
VARIANTS = {
    "strang": {},
    "lie": {"splitting": "lie"},
    "layerdrop": {"encoder_layerdrop": 0.2, "decoder_layerdrop": 0.2},
    "checkpointed": {"checkpoint_activations": True},
    "compiled": {"compile": True},
    "shared": {"share_all_embeddings": True},
    "adaptive": {"adaptive_softmax_cutoff": "10,20"},
}


@pytest.mark.parametrize("name", [*TRANSLATION, *LANGUAGE_MODELS])
def test_generated_classes_are_attributes_of_their_module(name):
    model = MODEL_REGISTRY[name]
    for made in (model, model.config):
        assert getattr(sys.modules[made.__module__], made.__qualname__) is made
        assert pickle.loads(pickle.dumps(made)) is made
    config = model.config()
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(OmegaConf.structured(config))) == OmegaConf.structured(config)
    assert model.config is not model.__mro__[1].config
    assert model.__module__ == model.__mro__[1].__module__


def test_criterion_and_optimiser():
    config = MacaronLabelSmoothedCrossEntropyConfig()
    assert pickle.loads(pickle.dumps(OmegaConf.structured(config))) == OmegaConf.structured(config)
    optimiser = Adam([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    assert through_pickle(optimiser).state_dict() == optimiser.state_dict()


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("through", [through_pickle, through_a_file, copy.deepcopy])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_copy_computes_the_same_from_its_own_parameters(toy_task, options, through):
    cfg = OmegaConf.create({"model": {"_name": "macaron_tiny", **SIZES, **options}})
    for given in (cfg.model, Namespace(**SIZES, **options)):  # hydra's holds enums
        model = MODEL_REGISTRY["macaron_tiny"].build_model(given, toy_task()).eval()
        tokens = torch.randint(4, 40, (2, 5))
        inputs = (tokens, torch.tensor([5, 5]), tokens)
        expected = model(*inputs)[0]
        copied = through(model)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        assert type(copied) is type(model) and vars(copied.args) == vars(model.args)
        assert copied(*inputs)[0].equal(expected)


@pytest.mark.parametrize("through", [through_pickle, through_a_file, copy.deepcopy])
@pytest.mark.parametrize("name", ["macaron_tiny", "macaron_lm_tiny"])
def test_a_model_that_is_ready_to_generate(toy_task, name, through):
    model = MODEL_REGISTRY[name].build_model(Namespace(**SIZES), toy_task())
    model.make_generation_fast_()
    copied = through(model)
    assert not copied.training and copied.eval() is copied
    assert all(map(torch.equal, copied.state_dict().values(), model.state_dict().values()))
    for one in (model, copied):
        with pytest.raises(RuntimeError, match="cannot train after make_generation_fast"):
            one.train()


SCRIPT = """
import multiprocessing, pickle, sys
from argparse import Namespace
from types import SimpleNamespace

import fairseq.utils
from fairseq.data import Dictionary
from fairseq.models import MODEL_REGISTRY

if __name__ == "__main__":
    fairseq.utils.import_user_module(Namespace(user_dir=sys.argv[1]))
    made = MODEL_REGISTRY["macaron_tiny"]
    task = SimpleNamespace(source_dictionary=Dictionary(), target_dictionary=Dictionary())
    model, config = made.build_model(Namespace(), task), made.config()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(pickle.loads, (pickle.dumps(config),)) == config
        there = pool.apply(type(model).state_dict, (model,))
    assert all(there[name].equal(tensor) for name, tensor in model.state_dict().items())
    print(made.__module__, type(config).__module__)
"""


@pytest.mark.parametrize("package", ["macaron.user_dir", "user_dir"])
def test_a_spawned_process_understands_both(package, plugin, project_root, tmp_path):
    (tmp_path / "spawn.py").write_text(SCRIPT, encoding="utf-8")
    folder = plugin if package.startswith("macaron") else project_root / "user_dir"
    command = [sys.executable, "-W", "ignore", tmp_path / "spawn.py", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{package}.models.macaron", f"{package}.config"]
