"""Checkpoints of the original implementation against the numbers that it computed itself (../shared/golden)."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import macaron
from macaron.checkpoint import CheckpointError
from macaron.legacy.kinds import TRANSLATION
from macaron.legacy.translation import convert
from macaron.names import in_order, to_particle_names

macaron.register_fairseq()

from fairseq import checkpoint_utils  # noqa: E402  after registration, as in a user's script
from fairseq.criterions import CRITERION_REGISTRY  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from fairseq.models import MODEL_REGISTRY  # noqa: E402
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig  # noqa: E402

# Whatever the folder holds; "none" fails where it holds nothing, and is skipped where there is no folder.
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden" / "translation"
MODELS = sorted(path.parent.name for path in FOLDER.glob("*/checkpoint.pt")) or ["none"]
TOLERANCE = 2e-5  # the reference's own float32 error is up to 4e-6 (its README)
SUM = {"rel": 1e-6}  # of a positive float32 loss over a batch: some ε, whatever the order
NORM = {"rel": 1e-5}  # of gradients, a float32 sum of squares that differ by TOLERANCE at the most
PAD = 1


class Golden(SimpleNamespace):
    """A model of the folder, loaded as fairseq's commands load it, with its batch and reference numbers."""

    def network_input(self, batch: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        return {k: batch[prefix + k] for k in ("src_tokens", "src_lengths", "prev_output_tokens")}

    def loss(self, batch: dict[str, torch.Tensor], prefix: str = "") -> tuple[torch.Tensor, dict[str, Any]]:
        criterion = CRITERION_REGISTRY["macaron_label_smoothed_cross_entropy"](
            self.task, False, 0.1, smoothing_over="all"
        )
        target = batch[prefix + "target"]
        sample = {
            "net_input": self.network_input(batch, prefix),
            "target": target,
            "ntokens": int(target.ne(PAD).sum()),
        }
        loss, _, log = criterion(self.model, sample)
        return loss, log


def load(golden: Path, name: str) -> Golden:
    folder = golden / "translation" / name
    meta = json.loads((folder / "meta.json").read_text())
    path = folder / "checkpoint.pt"
    overrides = {"data": str(golden / "data" / meta["data"])}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    return Golden(
        folder=folder,
        path=path,
        meta=meta,
        task=task,
        model=models[0].eval(),
        batch=load_file(folder / "batch.safetensors"),
        outputs=load_file(folder / "outputs.safetensors"),
    )


@pytest.fixture(params=MODELS, scope="module")
def original(request: pytest.FixtureRequest, golden: Path) -> Golden:
    return load(golden, request.param)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0, msg=lambda m: f"{what}: {m}")


def test_forward(original: Golden) -> None:
    batch, outputs, model = original.batch, original.outputs, original.model
    source, target = batch["src_tokens"].ne(PAD), batch["target"].ne(PAD)
    with torch.no_grad():
        encoded = model.encoder(batch["src_tokens"], batch["src_lengths"], return_all_hiddens=True)
        logits, extra = model(**original.network_input(batch))
        log_probs = model.get_normalized_probs((logits, extra), log_probs=True)

    assert torch.equal(encoded["encoder_padding_mask"][0], outputs["encoder_padding_mask"])
    # time first; padding positions of the encoder hold whatever the computation gives there
    assert_close(encoded["encoder_out"][0].transpose(0, 1)[source], first(outputs["encoder_out"])[source], "encoder")
    for i, state in enumerate(encoded["encoder_states"][1:]):
        assert_close(first(state)[source], first(outputs[f"encoder_layer_{i}_out"])[source], f"encoder layer {i}")
    for i, state in enumerate(extra["inner_states"]):
        assert_close(first(state)[target], first(outputs[f"decoder_inner_state_{i}"])[target], f"decoder state {i}")
    assert_close(logits[target], outputs["decoder_logits"][target], "logits")
    assert_close(log_probs[target], outputs["log_probs"][target], "log-probabilities")
    assert_close(extra["attn"][0][target], outputs["decoder_attn"][target], "attention")


def first(x: torch.Tensor) -> torch.Tensor:
    """Batch first."""
    return x.transpose(0, 1)


def test_loss_and_parameter_count(original: Golden) -> None:
    loss, log = original.loss(original.batch)
    assert loss.item() == pytest.approx(original.meta["loss"]["loss_sum"], **SUM)
    assert log["nll_loss"].item() == pytest.approx(original.meta["loss"]["nll_loss_sum"], **SUM)
    assert sum(p.numel() for p in original.model.parameters()) == original.meta["num_params"]


def stored_as_ours(stored: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Some tensors of a model under our names; NaN fills the rest, by which the converter knows the scheme."""
    filled = to_particle_names({n: stored.get(n, torch.full_like(t, torch.nan)) for n, t in state.items()})
    return {n: t for n, t in filled.items() if not t.isnan().any()}


def test_gradients(original: Golden) -> None:
    loss, _ = original.loss(original.batch)
    loss.backward()
    ours = {name: p.grad for name, p in original.model.named_parameters()}

    state = torch.load(original.path, weights_only=True)["model"]
    stored = load_file(original.folder / "grads.safetensors")
    theirs = stored_as_ours(stored, state)
    assert theirs.keys() <= ours.keys() and len(theirs) >= len(stored)
    for name, grad in theirs.items():
        assert_close(ours[name], grad, name)

    # each of their parameters is one of ours, or stacked of slices of ours: compare the norms of all of them
    for name, norm in original.meta["grad_l2_norm"].items():
        marked = {n: torch.full_like(t, float(n == name)) for n, t in state.items()}
        squares = sum(
            (ours[n].double() * mask).square().sum()
            for n, mask in to_particle_names(marked).items()
            if n in ours and mask.any()
        )
        assert squares.sqrt().item() == pytest.approx(norm, **NORM, abs=1e-5), name  # keys' biases: rounding


def test_parameters_stand_in_the_order_that_conversion_assumes(original: Golden) -> None:
    names = [name for name, _ in original.model.named_parameters()]
    assert names == in_order(dict.fromkeys(names))


def test_beam_search(original: Golden) -> None:
    source = {k: original.batch[k] for k in ("src_tokens", "src_lengths")}
    sample = {"net_input": {**source, "prev_output_tokens": original.batch["prev_output_tokens"]}}
    for name, setting in json.loads((original.folder / "beam_search.json").read_text()).items():
        options = SimpleNamespace(
            beam=setting["beam"],
            lenpen=setting["lenpen"],
            min_len=setting["min_len"],
            max_len_a=0,
            max_len_b=setting["max_len"],
            unkpen=setting["unkpen"],
        )
        generator = original.task.build_generator([original.model], options)
        found = generator.generate([original.model], sample)
        assert len(found) == len(setting["hypotheses"])
        padding = source["src_tokens"].eq(PAD).sum(dim=1).tolist()  # on the left
        for ours, theirs, n_padding in zip(found, setting["hypotheses"], padding, strict=True):
            assert [h["tokens"].tolist() for h in ours] == [h["tokens"] for h in theirs], name
            for a, b in zip(ours, theirs, strict=True):
                assert a["score"].item() == pytest.approx(b["score"], abs=TOLERANCE)
                positional = torch.tensor(b["positional_scores"])
                torch.testing.assert_close(a["positional_scores"], positional, atol=TOLERANCE, rtol=0)
                assert (a["attention"].argmax(dim=0) - n_padding).tolist() == b["alignment"]  # (source, target)
        strings = [original.task.target_dictionary.string(h[0]["tokens"]) for h in found]
        assert strings == setting["best_string"]


def test_training_resumes_from_the_optimiser_state(golden: Path) -> None:
    original = load(golden, "iwslt_macaron_v2")
    trace = json.loads((original.folder / "train_trace.json").read_text())
    batches = load_file(original.folder / "train_batches.safetensors")
    model = original.model.train()
    for module in model.modules():
        if hasattr(module, "p") and isinstance(module.p, float):
            module.p = 0.0  # the reference trained without dropout
    config = FairseqAdamConfig(adam_betas="(0.9, 0.98)", weight_decay=1e-4, lr=[0.0015], use_old_adam=True)
    optimizer = FairseqAdam(config, [p for p in model.parameters() if p.requires_grad])
    optimizer.load_state_dict(checkpoint_utils.load_checkpoint_to_cpu(str(original.path))["last_optimizer_state"])

    for update in trace["updates_after_resume_from_checkpoint"]:
        loss, _ = original.loss(batches, prefix=f"update{update['update']}.")
        optimizer.zero_grad()
        (loss / update["sample_size"]).backward()
        norm = optimizer.clip_grad_norm(0.0)
        optimizer.set_lr(update["lr_used"])
        optimizer.step()
        per_token_bits = loss.item() / update["ntokens"] / torch.log(torch.tensor(2.0)).item()
        assert per_token_bits == pytest.approx(update["loss_per_token_base2"], **SUM)
        assert norm.item() == pytest.approx(update["gnorm"], **NORM)

    ours = dict(model.named_parameters())
    state = torch.load(original.path, weights_only=True)["model"]
    after = load_file(original.folder / "after_resume.safetensors")
    theirs = stored_as_ours(after, state)
    assert theirs.keys() <= ours.keys() and len(theirs) == len(after)
    for name, tensor in theirs.items():
        assert_close(ours[name].detach(), tensor, name)


def test_release_checkpoint_without_args_namespace_fields(golden: Path, tmp_path: Path) -> None:
    """Released files may lack options that were added later, among them `macaron` in models without it."""
    path = golden / "translation" / "iwslt_v2_baseline" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    for option in (
        "relu_dropout",
        "no_token_positional_embeddings",
        "decoder_input_dim",
        "decoder_output_dim",
    ):
        delattr(state["args"], option)
    del state["extra_state"]["train_meters"]
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    data = str(golden / "data" / "data-bin" / "joined")
    models, *_ = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "old.pt")], arg_overrides={"data": data})
    assert sum(p.numel() for p in models[0].parameters()) == 6656


def test_initialisation_is_the_originals(golden: Path) -> None:
    measured = next(
        entry
        for entry in json.loads((golden / "init_stats.json").read_text())
        if entry["arch"] == "transformer_wmt_en_de_macaron_v2"
    )
    dictionary = Dictionary()
    for i in range(measured["vocab"] - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    sizes = {k: v for k, v in measured.items() if k.startswith(("encoder_", "decoder_"))}
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = MODEL_REGISTRY[measured["arch"]].build_model(Namespace(**sizes), task)

    # a tensor filled with the original's figure carries it through renaming and repacking
    def expected(figure: str) -> dict[str, torch.Tensor]:
        parameters = measured["parameters"].items()
        return to_particle_names({n: torch.full(p["shape"], p[figure]) for n, p in parameters})

    std, largest = expected("std"), expected("max")
    assert std.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        # of n draws a standard deviation is known to 1/√(2n), here of two initialisations; biases are zero
        spread = 0.02 if parameter.numel() > 10_000 else 0.2
        assert parameter.std().item() == pytest.approx(std[name].mean().item(), rel=spread, abs=1e-7), name
        # the largest of n uniform draws is by 1/n below their bound; embeddings are normal, with a random largest entry
        if "embed" not in name and "output" not in name:
            assert parameter.max().item() == pytest.approx(largest[name].mean().item(), rel=0.01, abs=1e-7), name
    assert model.encoder.embed_tokens.weight[PAD].eq(0).all()


def test_pre_norm_baselines_under_fairseqs_own_names_keep_their_final_norm(golden: Path, tmp_path: Path) -> None:
    """`transformer_wmt_en_de_big_t2t` is fairseq's own model, which would drop the norm of such old decoders."""
    original = load(golden, "iwslt_v2_baseline")
    state = torch.load(original.path, weights_only=True)
    state["args"].arch = "transformer_wmt_en_de_big_t2t"
    del state["extra_state"]["train_meters"]
    torch.save(state, tmp_path / "t2t.pt")
    overrides = {"data": str(golden / "data" / original.meta["data"])}
    (model,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "t2t.pt")], arg_overrides=overrides)
    assert type(model).__name__ == "TransformerModel"
    with torch.no_grad():
        logits, _ = model.eval()(**original.network_input(original.batch))
    real = original.batch["target"].ne(PAD)
    assert_close(logits[real], original.outputs["decoder_logits"][real], "logits")


def test_a_float16_runs_flat_optimiser_state_stays_flat(golden: Path) -> None:
    state = torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True)
    adam = state["last_optimizer_state"]
    entries = [adam["state"][key] for key in adam["param_groups"][0]["params"]]
    flat = {m: torch.cat([e[m].flatten() for e in entries]) for m in ("exp_avg", "exp_avg_sq")}
    separate = convert(state)["last_optimizer_state"]["state"]
    state["last_optimizer_state"] = {
        "state": {7: {"step": 3, **flat}},
        "param_groups": [{**adam["param_groups"][0], "params": [7]}],
        "loss_scale": 128.0,
    }
    converted = convert(state)["last_optimizer_state"]
    assert converted["loss_scale"] == 128.0 and converted["param_groups"][0]["params"] == [0]
    for m in flat:
        expected = torch.cat([entry[m].flatten() for entry in separate.values()])
        assert torch.equal(converted["state"][0][m], expected)


def test_an_optimiser_state_that_does_not_fit_is_left_out_with_a_warning(golden: Path, caplog: Any) -> None:
    state = torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True)
    state["last_optimizer_state"]["param_groups"][0]["params"].pop()
    assert convert(state)["last_optimizer_state"] is None
    assert "training starts with a fresh optimiser" in caplog.text


def test_what_is_no_translation_checkpoint_is_refused(golden: Path) -> None:
    bert = torch.load(golden / "bert" / "bert_base_macaron" / "checkpoint.pt", weights_only=True)
    with pytest.raises(CheckpointError, match=r"not a translation checkpoint .* has the parts .*embed_out.*encoder"):
        convert(bert)
    ours = convert(torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True))
    with pytest.raises(CheckpointError, match="no layer names of the original; a checkpoint of this project needs no"):
        convert(ours)


def damaged(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """With other tensors (None: lost; all whose name has it) or options ("args.…") in it."""
    model, args = dict(state["model"]), Namespace(**vars(state["args"]))
    for name, value in change.items():
        if name.startswith("args."):
            setattr(args, name.removeprefix("args."), value)
            continue
        for key in [key for key in model if name in key]:
            model[key] = value(model[key]) if value else None
    return {**state, "args": args, "model": {name: t for name, t in model.items() if t is not None}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.1.": None}, r"encoder has the layers 0, and should have those from 0 to 1; .* incomplete"),
        ({"encoder.layers.0.": None, "args.encoder_layers": None}, r"encoder has the layers 1, and should .* 0 to 1"),
        ({"encoder.layers.": None}, "encoder has the layers none"),
        (
            {"decoder.layers.1.fc2.bias": None},
            r"decoder\.layers\.1 and .* fc2\.bias is missing in the one and \(\d+,\)",
        ),
        ({"decoder.layers.1.macaron_": None}, r"decoder\.layers\.1 and decoder\.layers\.0 are not alike: macaron_fc1"),
        (
            {"encoder.layers.1.fc1.weight": lambda t: t[:-1]},
            r"layers\.1 and .* not alike: fc1\.weight is \(\d+, \d+\) in",
        ),
        ({"macaron_": None, "layer_norms.2": None}, "parameters macaron_fc1 are missing, though the option macaron is"),
        ({"encoder.embed_tokens": None}, r"parameter encoder\.embed_tokens\.weight is missing, and should have 24 col"),
        ({"decoder.embed_tokens": torch.t}, r"decoder\.embed_tokens\.weight is of shape .* should have 24 columns"),
        (
            {"encoder.layer_norm.weight": None},
            r"encoder\.layer_norm\.weight is missing, and a pre-norm encoder of width",
        ),
        ({"decoder.layer_norm.bias": lambda t: t[1:]}, r"decoder\.layer_norm\.bias is of 23 numbers, and a pre-norm"),
        ({"encoder.layers.1.fc1.bias": torch.Tensor.long}, r"encoder\.layers\.1\.fc1\.bias is a torch\.int64 of shape"),
        (
            {"encoder.layers.1.fc1.bias": lambda t: t / 0},
            r"encoder\.layers\.1\.fc1\.bias is not finite: the run diverged",
        ),
        ({"args.arch": "transformer_iwslt_de_en"}, r"architecture transformer_iwslt_de_en is fairseq's own .* lie"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(change: dict[str, Any], message: str, golden: Path) -> None:
    """Kinds and sizes are read from the tensors, so a lost one must not make another model."""
    state = torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True)
    with pytest.raises(CheckpointError, match=message):
        convert(damaged(state, change))


def test_fairseq_refuses_it_by_the_name_of_its_file(golden: Path, tmp_path: Path) -> None:
    state = torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True)
    del state["extra_state"]["train_meters"]
    torch.save(damaged(state, {"decoder.layers.1.macaron_": None}), tmp_path / "damaged.pt")
    with pytest.raises(CheckpointError, match=r"damaged\.pt: its decoder\.layers\.1 .* are not alike"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "damaged.pt"))


def test_buffers_are_no_parameters(golden: Path) -> None:
    """Uninitialised memory, and a counter."""
    state = torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True)
    convert(damaged(state, {"_float_tensor": lambda t: t / 0, "version": torch.Tensor.long}))


def test_a_later_options_name_is_kept(golden: Path) -> None:
    state = torch.load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt", weights_only=True)
    assert convert(state)["args"].activation_dropout == state["args"].relu_dropout > 0
    del state["args"].relu_dropout
    state["args"].activation_dropout = 0.25
    assert convert(state)["args"].activation_dropout == 0.25


def test_the_originals_architectures_are_those_of_the_plugin() -> None:
    from macaron.user_dir.architectures import TRANSLATION as OURS

    assert {name for name, architecture in OURS.items() if architecture.original} == TRANSLATION
