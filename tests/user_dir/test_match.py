"""A checkpoint whose names and shapes fit, and that belongs to another model or dictionary all the same."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from macaron.user_dir import match
from macaron.user_dir.models import MacaronLanguageModel
from macaron.user_dir.models.macaron import MODELS

from macaron import MacaronModel


@pytest.fixture(scope="module")
def reordered(tiny_data_bin, tmp_path_factory) -> Path:
    """The data with the first two words of both dictionaries exchanged."""
    folder = Path(shutil.copytree(tiny_data_bin, tmp_path_factory.mktemp("reordered") / "data-bin"))
    for path in folder.glob("dict.*.txt"):
        first, second, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join([second, first, *others]), encoding="utf-8")
    return folder


def test_a_checkpoint_knows_its_dictionaries(trained, tiny_data_bin):
    stored = torch.load(trained.checkpoint, weights_only=True)["task_state"][match.DICTIONARIES]
    dictionary = Dictionary.load(str(tiny_data_bin / "dict.de.txt"))
    model = Namespace(encoder=Namespace(dictionary=dictionary), decoder=Namespace(dictionary=dictionary))
    assert stored == match.dictionary_sums(model)


def test_generating_and_validating_with_another_dictionary(trained, reordered, tiny_data_bin):
    def load(data: Path):
        return checkpoint_utils.load_model_ensemble_and_task([str(trained.checkpoint)], {"data": str(data)})

    load(tiny_data_bin)
    message = r"checkpoint_last\.pt: the source and the target dictionary in the data folder is not the one"
    with pytest.raises(ValueError, match=message):
        load(reordered)
    with pytest.raises(ValueError, match=message):
        MacaronModel.from_pretrained(str(trained.folder), "checkpoint_last.pt", str(reordered))


def test_checkpoints_from_before_are_taken(trained, reordered, tmp_path):
    state = torch.load(trained.checkpoint, weights_only=True)
    for task_state in (None, {}, {match.DICTIONARIES: None}, {match.DICTIONARIES: {"side": 1}}, "damaged"):
        assert match.other_dictionaries(toy(), {**state, "task_state": task_state}) is None
    del state["task_state"]
    torch.save(state, tmp_path / "old.pt")
    checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "old.pt")], {"data": str(reordered)})


def test_resuming_with_another_dictionary_or_model(trained, train, tiny_data_bin, reordered, batches):
    """Said before anything is trained or saved."""
    resume = ["--restore-file", trained.checkpoint, "--max-update", 5, "--disable-validation"]
    run = train(reordered, *batches, *resume, expect=1)
    assert (
        "the source and the target dictionary in the data folder is not the one that it was trained with" in run.output
    )
    assert not run.updates and not run.checkpoint.exists()
    flags = ["--decoder-attention-heads", 4, "--activation-fn", "gelu", "--no-scale-embedding", "--dropout", 0.5]
    run = train(tiny_data_bin, *batches, *resume, *flags, expect=1)
    assert (
        "it was trained with --activation-fn relu (now gelu), --no-scale-embedding False (now True), "
        "--decoder-attention-heads 2 (now 4): its weights fit, but the model would compute something else"
    ) in run.output
    assert not run.updates and not run.checkpoint.exists()


def test_a_new_training_from_its_weights_is_told(trained, train, reordered, batches):
    flags = ["--decoder-attention-heads", 4, "--max-update", 1, "--disable-validation"]
    run = train(reordered, *batches, *flags, "--finetune-from-model", trained.checkpoint)
    assert len(run.updates) == 1
    for part in ("dictionary in the data folder is not the one", "--decoder-attention-heads 2 (now 4)"):
        assert sum("WARNING" in line and part in line for line in run.output.splitlines()) == 1


# -- options, one by one


def toy(arch: str = "macaron_tiny", **options: object) -> Namespace:
    """What is asked of a model, without one."""
    model = type("Toy", (), {"architecture": None, "config": MODELS[arch].config})()
    model.args = Namespace(**{**vars(MODELS[arch].config()), "splitting": "strang", **options})
    return model


def stored(form: str, arch: str = "macaron_tiny", **options: object) -> dict:
    if form == "args":
        return {"args": Namespace(arch=arch, **options)}
    return {"cfg": {"model": {"_name": arch, **options}}}


@pytest.mark.parametrize("form", ["args", "cfg"])
@pytest.mark.parametrize(
    ("option", "there", "here"),
    [
        *[("encoder_attention_heads", 2, 4), ("activation_fn", "relu", "gelu"), ("splitting", "strang", "lie")],
        *[("encoder_normalize_before", True, False), ("no_token_positional_embeddings", False, True)],
        *[("no_scale_embedding", True, False), ("share_all_embeddings", True, False), ("cross_self_attention", 0, 1)],
    ],
)
def test_what_changes_the_function(form, option, there, here):
    flag = f"--{option.replace('_', '-')} {there} (now {here})"
    assert flag in match.changed_options(toy(**{option: here}), stored(form, **{option: there}))
    assert match.changed_options(toy(**{option: there}), stored(form, **{option: there})) is None


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_what_may_change(form):
    here = toy(dropout=0.5, encoder_layerdrop=0.1, compile=True, checkpoint_activations=True, max_source_positions=9)
    assert match.changed_options(here, stored(form, dropout=0.1, compile=False, foreign="x")) is None
    # sharing all embeddings includes this one, and is settled when the model is built
    here = toy(share_all_embeddings=True, share_decoder_input_output_embed=True)
    assert match.changed_options(here, stored(form, share_all_embeddings=True)) is None


def test_what_a_checkpoint_does_not_say_is_the_default_of_its_architecture():
    iwslt = stored("args", "transformer_iwslt_de_en_macaron")  # four heads, norms after
    assert "--encoder-attention-heads 4 (now 2)" in match.changed_options(toy(), iwslt)
    for unknown in ({}, {"args": None, "cfg": None}, stored("args", "transformer"), {"cfg": {"model": 1}}):
        assert match.changed_options(toy(), unknown) is None
    heads = stored("args", "transformer", encoder_attention_heads=8)
    assert "--encoder-attention-heads 8 (now 2)" in match.changed_options(toy(), heads)


def test_the_side_without_an_encoder_is_named(toy_task):
    model = MacaronLanguageModel.build_model(Namespace(tokens_per_sample=8), toy_task())
    sums = match.dictionary_sums(model)
    assert list(sums) == ["decoder"]
    assert match.other_dictionaries(model, {"task_state": {match.DICTIONARIES: sums}}) is None
    found = match.other_dictionaries(model, {"task_state": {match.DICTIONARIES: {"decoder": "0"}}})
    assert "the language model's dictionary" in found
