"""BERT and classifier checkpoints of the original, converted, against the numbers that it computed itself."""

from __future__ import annotations

import argparse
import json
import lzma
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import macaron.bert  # noqa: F401  registers with the Auto classes, as in a user's script
from macaron.checkpoint import CheckpointError
from macaron.checkpoint import load as load_checkpoint
from macaron.cli import main
from macaron.legacy.adam import parameter_names
from macaron.legacy.bert import convert, convert_file, to_hub_names
from macaron.legacy.bert_tokenizer import SPECIAL_SYMBOLS, build_tokenizer, read_dictionary

# Whatever the folder holds; "none" fails where it holds nothing, and is skipped where there is no folder.
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden" / "bert"
PRETRAINED, CLASSIFIERS = (
    sorted(path.parent.name for path in FOLDER.glob(f"{kind}_*/checkpoint.pt")) or ["none"]
    for kind in ("bert", "classifier")
)
TOLERANCE = 2e-5  # the reference's own float32 error is up to 4e-6 (its README)
SUM = {"rel": 1e-6}  # of a positive float32 loss over a batch: some ε, whatever the order
TRAINED = {"rel": 2e-6}  # the same after some updates, which carry the rounding on
NORM = {"rel": 1e-5}  # of gradients, a float32 sum of squares that differ by TOLERANCE at the most
PAD = 1
IGNORED = -100


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0, msg=lambda m: f"{what}: {m}")


def inputs(batch: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The original's batch as a tokenizer here gives it: the original's segment 1 is the first sentence, here 0."""
    tokens = batch[prefix + "src_tokens"]
    return {
        "input_ids": tokens,
        "attention_mask": tokens.ne(PAD).long(),
        "token_type_ids": 1 - batch[prefix + "segment"],
    }


def labels(batch: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    target = batch[prefix + "target"]
    if prefix + "label" not in batch:
        return {"labels": target}
    return {"labels": target.masked_fill(target.eq(PAD), IGNORED), "next_sentence_label": batch[prefix + "label"]}


@pytest.fixture(scope="module")
def folder_of(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name → the reference folder of that name, and the one into which the command converted it."""
    done: dict[str, SimpleNamespace] = {}

    def convert_once(name: str) -> SimpleNamespace:
        if name not in done:
            folder = golden / "bert" / name
            meta = json.loads((folder / "meta.json").read_text())
            out = tmp_path_factory.mktemp("converted") / name
            dictionary = golden / "data" / meta["args"]["data"][0] / "dict.txt"
            assert (
                main(["convert", str(folder / "checkpoint.pt"), "--dict", str(dictionary), "--output", str(out)]) == 0
            )
            done[name] = SimpleNamespace(
                name=name,
                folder=folder,
                out=out,
                dictionary=dictionary,
                meta=meta,
                batch=load_file(folder / "batch.safetensors"),
                outputs=load_file(folder / "outputs.safetensors"),
            )
        return done[name]

    return convert_once


@pytest.fixture
def original(folder_of: Any, request: pytest.FixtureRequest) -> SimpleNamespace:
    """The reference of the name given as parameter, with the converted model as the Auto classes load it."""
    result = folder_of(request.param)
    auto = AutoModelForPreTraining if request.param in PRETRAINED else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(result.out, output_loading_info=True)
    assert not any(info.values()), info
    return SimpleNamespace(**vars(result), model=model.eval())


def each(*names: str) -> Any:
    return pytest.mark.parametrize("original", names, indirect=True)


# -- outputs


@each(*PRETRAINED, *CLASSIFIERS)
def test_encoder(original: SimpleNamespace) -> None:
    encoder, outputs = original.model.base_model, original.outputs
    states: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.no_grad():
        encoded = encoder(**inputs(original.batch), output_hidden_states=True).last_hidden_state  # hence with padding
        layers = list(states)
    real = original.batch["src_tokens"].ne(PAD)
    assert torch.equal(~real, outputs["encoder_padding_mask"])
    assert_close(encoded[real], outputs["encoder_out"].transpose(0, 1)[real], "encoder")
    if original.name in PRETRAINED:
        for i, state in enumerate(layers):
            assert_close(state[real], outputs[f"encoder_layer_{i}_out"].transpose(0, 1)[real], f"layer {i}")
        with torch.no_grad():
            ids = {k: v for k, v in inputs(original.batch).items() if k != "token_type_ids"}
            plain = encoder(**ids).last_hidden_state
        assert_close(plain[real], outputs["encoder_out_without_segment"].transpose(0, 1)[real], "without segments")
        chosen = torch.cat([encoded[:, 0], encoded[original.batch["output_mask"]]])
        assert_close(chosen, outputs["encoder_out_masked_positions"], "masked positions")


@each(*PRETRAINED)
def test_pretraining_logits(original: SimpleNamespace) -> None:
    with torch.no_grad():
        out = original.model(**inputs(original.batch))
    mask = original.batch["output_mask"]
    assert torch.equal(original.batch["target"][mask], original.outputs["mlm_target"])
    assert_close(out.prediction_logits[mask], original.outputs["mlm_logits"], "words")
    assert_close(out.seq_relationship_logits.flatten(), original.outputs["nsp_logits"], "next sentence")


@each(*CLASSIFIERS)
def test_classifier_logits(original: SimpleNamespace) -> None:
    with torch.no_grad():
        logits = original.model(**inputs(original.batch)).logits
        other = original.model(**inputs(original.outputs, "other_")).logits  # pairs for singles and vice versa
    assert_close(logits, original.outputs["logits"], "logits")
    assert_close(other, original.outputs["other_logits"], "logits of the other kind of batch")
    assert ("log_probs" in original.outputs) == (original.meta["args"]["criterion"] == "cross_entropy_classify")
    if "log_probs" in original.outputs:
        assert_close(logits.log_softmax(-1), original.outputs["log_probs"], "log-probabilities")


# -- losses and gradients


@each(*PRETRAINED, *CLASSIFIERS)
def test_loss_and_parameter_count(original: SimpleNamespace) -> None:
    """The original's sum is `sample_size` times the mean here, the weight N / B of its pairs included."""
    meta, batch = original.meta["loss"], original.batch
    with torch.no_grad():
        loss = original.model(**inputs(batch), **labels(batch)).loss
    assert loss.item() * meta["sample_size"] == pytest.approx(meta["loss_sum"], **SUM)
    assert sum(p.numel() for p in original.model.parameters()) == original.meta["num_params"]
    if original.name in PRETRAINED:
        with torch.no_grad():
            words = original.model(**inputs(batch), labels=labels(batch)["labels"]).loss
            pairs = original.model(**inputs(batch), next_sentence_label=batch["label"]).loss
        log = meta["logging_output"]
        assert words.item() * meta["sample_size"] == pytest.approx(log["mlm_loss"], **SUM)
        assert pairs.item() * log["nsentences"] == pytest.approx(log["nsp_loss"], **SUM)


def as_ours(tensors: dict[str, Tensor], original: SimpleNamespace) -> dict[str, Tensor]:
    """Some tensors of the parameters under our names; NaN fills the rest, by which the converter knows the scheme."""
    state = load_checkpoint(original.folder / "checkpoint.pt")["model"]
    filled = {n: tensors.get(n, torch.full_like(state[n], torch.nan)) for n in parameter_names(state)}
    return {n: t for n, t in to_hub_names(filled, tied=True).items() if not t.isnan().any()}


@each(*PRETRAINED, *CLASSIFIERS)
def test_gradients(original: SimpleNamespace) -> None:
    loss = original.model(**inputs(original.batch), **labels(original.batch)).loss
    (loss * original.meta["loss"]["sample_size"]).backward()
    ours = {name: p.grad for name, p in original.model.named_parameters()}
    assert ours["macaron_bert.embeddings.token_type_embeddings.weight"][0].eq(0).all()

    stored = load_file(original.folder / "grads.safetensors")
    theirs = as_ours(stored, original)
    assert len(theirs) == len(stored)
    for name, grad in theirs.items():
        allowed = TOLERANCE * max(1.0, grad.abs().max().item())  # of sums over a batch, up to 80
        torch.testing.assert_close(ours[name], grad, atol=allowed, rtol=0, msg=lambda m, n=name: f"{n}: {m}")

    # each of their parameters is one of ours, or a slice of one: compare the norms of all of them
    shapes = original.meta["state_dict"]
    for name, norm in original.meta["grad_l2_norm"].items():
        masks = as_ours({name: torch.ones(shapes[name])}, original)
        squares = sum((ours[n].double() * mask).square().sum() for n, mask in masks.items())
        assert squares.sqrt().item() == pytest.approx(norm, **NORM, abs=1e-5), name  # keys' biases: rounding


# -- training goes on


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """In training mode; the reference trained without dropout."""
    for module in model.train().modules():
        if hasattr(module, "p") and isinstance(module.p, float):
            module.p = 0.0
    return model


def update(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, batch: dict[str, Tensor], record: dict[str, Any], eps: float
) -> None:
    """One update as the original makes it, with its epsilon, compared with its record."""
    prefix = f"update{record['update']}."
    loss = model(**inputs(batch, prefix), **labels(batch, prefix)).loss
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    assert loss.item() == pytest.approx(record["logging"]["loss"], **TRAINED)
    assert norm.item() == pytest.approx(record["gnorm"], **NORM)
    (group,) = optimizer.param_groups
    step = 1 + max((int(s["step"]) for s in optimizer.state.values()), default=0)
    group["lr"] = record["lr_used"]
    group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** step)  # see macaron.legacy.bert
    optimizer.step()


def assert_norms(model: torch.nn.Module, norms: dict[str, float], original: SimpleNamespace) -> None:
    ours = dict(model.named_parameters())
    for name, norm in norms.items():
        if name.endswith("in_proj_bias") or name.startswith("classifier"):
            continue  # rounding moves the keys' biases, whose gradient is zero; the classifier is compared in full
        masks = as_ours({name: torch.ones(original.meta["state_dict"][name])}, original)
        squares = sum((ours[n].detach().double() * mask).square().sum() for n, mask in masks.items())
        assert squares.sqrt().item() == pytest.approx(norm, **TRAINED), name


@each("bert_base_macaron")
def test_pretraining_resumes_from_the_optimiser_state(original: SimpleNamespace) -> None:
    trace = json.loads((original.folder / "train_trace.json").read_text())
    batches = load_file(original.folder / "train_batches.safetensors")
    model = without_dropout(original.model)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(torch.load(original.out / "optimizer.pt", weights_only=True))
    assert {k: optimizer.param_groups[0][k] for k in ("betas", "eps", "weight_decay")} == {
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
    }
    for record in trace["updates_after_resume_from_checkpoint"]:
        update(model, optimizer, batches, record, eps=1e-6)

    ours = dict(model.named_parameters())
    stored = load_file(original.folder / "after_resume.safetensors")
    theirs = as_ours(stored, original)
    assert len(theirs) == len(stored)
    for name, tensor in theirs.items():
        assert_close(ours[name].detach(), tensor, name)
    assert_norms(model, trace["param_l2_norm_after_last_update"], original)


@each("classifier_macaron_pair_3way")
def test_finetuning_starts_from_the_converted_pretraining(original: SimpleNamespace, folder_of: Any) -> None:
    pretrained = folder_of("bert_base_macaron")
    model = AutoModelForSequenceClassification.from_pretrained(pretrained.out, num_labels=3).eval()
    torch.nn.init.zeros_(model.classifier.weight)  # as in the original, which draws no random head
    torch.nn.init.zeros_(model.classifier.bias)
    with torch.no_grad():
        start = model.base_model(**inputs(original.batch)).last_hidden_state
    real = original.batch["src_tokens"].ne(PAD)
    theirs = original.outputs["encoder_out_right_after_load_bert"].transpose(0, 1)
    assert_close(start[real], theirs[real], "encoder right after loading")
    assert model(**inputs(original.batch)).logits.eq(original.outputs["logits_right_after_load_bert"]).all()

    trace = json.loads((original.folder / "finetune_trace.json").read_text())
    batches = load_file(original.folder / "finetune_batches.safetensors")
    model = without_dropout(model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.0)
    for record in trace["updates"]:
        update(model, optimizer, batches, record, eps=1e-6)
    weight = torch.tensor(trace["classifier.weight_after_last_update"])
    bias = torch.tensor(trace["classifier.bias_after_last_update"])
    # entries of about 1e-4: compared to a ten-thousandth of that
    torch.testing.assert_close(model.classifier.weight.detach(), weight, atol=1e-8, rtol=0)
    torch.testing.assert_close(model.classifier.bias.detach(), bias, atol=1e-8, rtol=0)
    assert_norms(model, trace["param_l2_norm_after_last_update"], original)


# -- the folder


@each("bert_base_macaron")
def test_auto_classes_load_the_folder(original: SimpleNamespace) -> None:
    config = AutoConfig.from_pretrained(original.out)
    assert (config.splitting, config.intermediate_size, config.first_hidden_act) == ("strang", 48, "relu")
    assert config.architectures == ["MacaronBertForPreTraining"]
    batch = inputs(original.batch)
    encoder = AutoModel.from_pretrained(original.out).eval()
    words = AutoModelForMaskedLM.from_pretrained(original.out).eval()
    with torch.no_grad():
        expected = original.model(**batch, output_hidden_states=True)
        assert_close(encoder(**batch).last_hidden_state, expected.hidden_states[-1], "encoder")
        assert_close(words(**batch).logits, expected.prediction_logits, "words")


@each("classifier_macaron_single_binary")
def test_pipelines_run_on_the_folder(original: SimpleNamespace, folder_of: Any) -> None:
    text = (original.dictionary.parents[2] / "text" / "glue_single" / "valid.txt").read_text().splitlines()
    classify = pipeline("text-classification", model=str(original.out), device="cpu")
    scores = [result["score"] for result in classify(text)]
    order = original.batch["id"]
    expected = original.outputs["logits"].sigmoid().flatten()
    assert [scores[i] for i in order] == pytest.approx(expected.tolist(), abs=TOLERANCE)
    fill = pipeline("fill-mask", model=str(folder_of("bert_base_macaron").out), device="cpu")
    found = fill("the <mask> .")
    assert len(found) == 5 and found[0]["score"] > found[1]["score"]


PROBLEMS = {
    "cross_entropy_classify": "single_label_classification",
    "cross_entropy_classify_binary": "multi_label_classification",
    "mean_squared_error": "regression",
}


@each(*CLASSIFIERS)
def test_the_criterion_decides_the_problem(original: SimpleNamespace) -> None:
    config, trained = AutoConfig.from_pretrained(original.out), original.meta["args"]
    assert (config.problem_type, config.num_labels) == (PROBLEMS[trained["criterion"]], trained["n_classes"])


# -- variants: against the description of the original, written out in its own names


def reference(state: dict[str, Any], tokens: Tensor, segment: Tensor | None) -> Tensor:
    """(B, T) → (B, T, C): the original's encoder as its description says, one sentence at a time."""
    p, args = {n: t.double() for n, t in state["model"].items()}, state["args"]
    dim = p["encoder.embed_tokens.weight"].size(1)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), p.get(f"{name}.weight"), p.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attend(x: Tensor, name: str) -> Tensor:
        q, k, v = (x @ p[f"{name}.in_proj_weight"].T + p[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
        width = dim // args.encoder_attention_heads
        heads = []
        for j in range(0, dim, width):
            scores = q[:, j : j + width] * width**-0.5 @ k[:, j : j + width].T
            heads.append(scores.softmax(-1) @ v[:, j : j + width])
        return linear(torch.cat(heads, dim=-1), f"{name}.out_proj")

    def move(x: Tensor, norm_name: str, share: float, flow: Any) -> Tensor:
        if args.encoder_normalize_before:
            return x + share * flow(norm(x, norm_name))
        return norm(x + share * flow(x), norm_name)

    act = {"gelu": F.gelu, "relu": F.relu}[args.act_fn]
    out = torch.zeros(*tokens.shape, dim, dtype=torch.double)
    for b, row in enumerate(tokens):
        n = int(row.ne(PAD).sum())
        x = math.sqrt(dim) * p["encoder.embed_tokens.weight"][row[:n]]
        if args.encoder_learned_pos:
            x = x + p["encoder.embed_positions.weight"][2 : 2 + n]
        elif not args.no_token_positional_embeddings:
            h = dim // 2
            angles = torch.arange(2, 2 + n).double()[:, None] * 10000 ** (-torch.arange(h).double() / (h - 1))
            x = x + F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, dim % 2))
        if segment is not None:
            x = x + p["encoder.embed_segment.weight"][segment[b, :n]]
        for i in range(args.encoder_layers):
            name = f"encoder.layers.{i}"
            half = 1.0
            if getattr(args, "macaron", None):
                half = 0.5

                def first(z: Tensor, name: str = name) -> Tensor:
                    return linear(F.relu(linear(z, f"{name}.macaron_fc1")), f"{name}.macaron_fc2")

                x = move(x, f"{name}.layer_norms.2", half, first)
            x = move(x, f"{name}.layer_norms.0", 1.0, lambda z, name=name: attend(z, f"{name}.self_attn"))
            x = move(
                x,
                f"{name}.layer_norms.1",
                half,
                lambda z, name=name: linear(act(linear(z, f"{name}.fc1")), f"{name}.fc2"),
            )
        if args.encoder_normalize_before and p.get("encoder.version", torch.ones(1)).item() >= 2:
            x = norm(x, "encoder.layer_norm")
        out[b, :n] = x
    return out


def reference_words(state: dict[str, Any], x: Tensor) -> Tensor:
    p, act = {n: t.double() for n, t in state["model"].items()}, {"gelu": F.gelu, "relu": F.relu}
    x = act[state["args"].act_fn](x @ p["mid_layer.0.weight"].T + p["mid_layer.0.bias"])
    x = F.layer_norm(x, x.shape[-1:], p["mid_layer.2.weight"], p["mid_layer.2.bias"], 1e-5)
    return x @ p["embed_out"].T


@each("bert_base_macaron")
def test_the_written_out_description_is_the_original(original: SimpleNamespace) -> None:
    state = load_checkpoint(original.folder / "checkpoint.pt")
    tokens, real = original.batch["src_tokens"], original.batch["src_tokens"].ne(PAD)
    x = reference(state, tokens, original.batch["segment"])
    assert_close(x.float()[real], original.outputs["encoder_out"].transpose(0, 1)[real], "encoder")
    words = reference_words(state, x[original.batch["output_mask"]])
    assert_close(words.float(), original.outputs["mlm_logits"], "words")


def random_checkpoint(**options: Any) -> dict[str, Any]:
    """A small pre-trained model of the original with random parameters. `without`: stems of those that it lacks."""
    version, without = options.pop("version", 2.0), options.pop("without", ())
    args = {
        "arch": "transformer_bert_base_macaron",
        "criterion": "cross_entropy_bert",
        "macaron": True,
        "encoder_embed_dim": 12,
        "encoder_ffn_embed_dim": 20,
        "encoder_layers": 2,
        "encoder_attention_heads": 3,
        "encoder_normalize_before": True,
        "encoder_learned_pos": False,
        "no_token_positional_embeddings": False,
        "no_normalize_affine": True,
        "share_all_embeddings": True,
        "act_fn": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "relu_dropout": 0.0,
        "max_positions": 16,
        **options,
    }
    v, d, f = 24, args["encoder_embed_dim"], args["encoder_ffn_embed_dim"]
    shapes: dict[str, tuple[int, ...]] = {"embed_out": (v, d), "encoder.embed_tokens.weight": (v, d)}
    if args["encoder_learned_pos"]:
        shapes["encoder.embed_positions.weight"] = (args["max_positions"] + 2, d)
    shapes["encoder.embed_segment.weight"] = (2, d)
    ffns = ("fc", "macaron_fc") if args["macaron"] else ("fc",)
    for i in range(args["encoder_layers"]):
        layer = f"encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.in_proj_weight": (3 * d, d), f"{layer}.self_attn.in_proj_bias": (3 * d,)}
        shapes |= {f"{layer}.self_attn.out_proj.weight": (d, d), f"{layer}.self_attn.out_proj.bias": (d,)}
        for ffn in ffns:
            shapes |= {f"{layer}.{ffn}1.weight": (f, d), f"{layer}.{ffn}1.bias": (f,)}
            shapes |= {f"{layer}.{ffn}2.weight": (d, f), f"{layer}.{ffn}2.bias": (d,)}
        if not args["no_normalize_affine"]:
            for j in range(len(ffns) + 1):
                shapes |= {f"{layer}.layer_norms.{j}.{kind}": (d,) for kind in ("weight", "bias")}
    if not args["no_normalize_affine"] and args["encoder_normalize_before"] and version >= 2:
        shapes |= {f"encoder.layer_norm.{kind}": (d,) for kind in ("weight", "bias")}
    shapes |= {"mid_layer.0.weight": (d, d), "mid_layer.0.bias": (d,)}
    shapes |= {f"mid_layer.2.{kind}": (d,) for kind in ("weight", "bias")}
    shapes |= {"classifier.weight": (1, d), "classifier.bias": (1,)}
    model = {n: 0.5 * torch.randn(s) for n, s in shapes.items() if not n.startswith(tuple(without) or "-")}
    if "encoder.embed_segment.weight" in model:
        model["encoder.embed_segment.weight"][1] = 0
    if args["share_all_embeddings"]:
        model["embed_out"] = model["encoder.embed_tokens.weight"]
    if version is not None and "encoder.version" not in without:
        model["encoder.version"] = torch.tensor([version])
    return {"args": argparse.Namespace(**args), "model": model, "last_optimizer_state": {"state": {}}}


VARIANTS: dict[str, dict[str, Any]] = {
    "macaron by name": {"macaron": "new"},
    "no macaron": {"macaron": None, "arch": "transformer_bert_L6_A12"},
    "affine norms": {"no_normalize_affine": False},
    "post-norm": {"encoder_normalize_before": False},
    "post-norm with affine norms": {"encoder_normalize_before": False, "no_normalize_affine": False},
    "no final norm": {"version": 1.0},
    "no version": {"without": ["encoder.version"]},
    "separate output matrix": {"share_all_embeddings": False},
    "learned positions": {"encoder_learned_pos": True},
    "no positions": {"no_token_positional_embeddings": True},
    "no segments": {"without": ["encoder.embed_segment"]},
    "relu": {"act_fn": "relu"},
    "odd width": {"encoder_embed_dim": 15, "encoder_ffn_embed_dim": 7},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, tmp_path: Path) -> None:
    state = random_checkpoint(**VARIANTS[variant])
    convert(state).model.save_pretrained(tmp_path)
    model = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    tokens = torch.tensor([[5, 7, 9, 2, 8, 2], [5, 10, 2, 11, 2, PAD]])
    segment = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, PAD]])
    real = tokens.ne(PAD)
    theirs = reference(state, tokens, None if variant == "no segments" else segment)[real]
    batch = inputs({"src_tokens": tokens, "segment": segment})
    with torch.no_grad():
        encoded = model.base_model(**batch).last_hidden_state[real]
        words = model(**batch).prediction_logits[real]
    assert_close(encoded, theirs.float(), "encoder")
    assert_close(words, reference_words(state, theirs).float(), "words")


def test_options_reach_the_configuration(tmp_path: Path) -> None:
    state = random_checkpoint(dropout=0.3, attention_dropout=0.2, relu_dropout=0.05, max_positions=77)
    config = convert(state).model.config
    assert config.hidden_dropout_prob == 0.3 and config.attention_probs_dropout_prob == 0.2
    assert config.activation_dropout == 0.05 and config.classifier_dropout == 0
    assert config.max_position_embeddings == 77 and config.pad_token_id == PAD
    assert (config.cls_token_id, config.sep_token_id, config.mask_token_id) == (5, 2, 4)


def test_options_that_are_not_stored_are_those_of_the_architecture() -> None:
    state = random_checkpoint(encoder_embed_dim=24)
    for option in ("encoder_attention_heads", "encoder_normalize_before", "act_fn", "attention_dropout", "dropout"):
        delattr(state["args"], option)
    config = convert(state).model.config
    assert (config.num_attention_heads, config.hidden_act, config.normalize_before) == (12, "gelu", True)
    state["args"].arch = "transformer_bert"
    config = convert(state).model.config
    assert (config.num_attention_heads, config.hidden_act, config.normalize_before) == (8, "relu", False)


def test_float16_parameters_become_float32() -> None:
    state = random_checkpoint()
    state["model"] = {n: t.half() for n, t in state["model"].items()}
    model = convert(state).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = state["model"]["mid_layer.0.weight"]
    assert torch.equal(model.mlm_head.dense.weight, weight.float())


# -- tokenizer


@pytest.fixture(scope="module")
def tokenizer(folder_of: Any) -> Any:
    return AutoTokenizer.from_pretrained(folder_of("bert_base").out)


def test_token_ids_are_the_originals(golden: Path, folder_of: Any) -> None:
    text = golden / "data" / "text"
    ids = json.loads((golden / "data" / "ids_bert.json").read_text())
    names = {
        "bert": "bert_base",
        "glue_pair": "classifier_macaron_pair_3way",
        "glue_single": "classifier_base_single_2way",
    }
    assert {key.split("/")[0] for key in ids} == set(names)
    for key, expected in ids.items():
        assert expected
        tokenizer = AutoTokenizer.from_pretrained(folder_of(names[key.split("/")[0]]).out)
        lines = [line for line in (text / f"{key}.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
        assert [[5, *sentence] for sentence in expected] == tokenizer(lines)["input_ids"], key


def test_pairs_and_padding_are_the_originals(tokenizer: Any, folder_of: Any) -> None:
    """Rebuild the stored batch of pairs from its text."""
    original = folder_of("classifier_macaron_pair_3way")
    lines = (original.dictionary.parents[2] / "text" / "glue_pair" / "valid.txt").read_text(encoding="utf-8")
    sentences = [line for line in lines.split("\n") if line.strip()]
    first, second = sentences[0::2], sentences[1::2]
    tokenizer = AutoTokenizer.from_pretrained(original.out)
    order = original.batch["id"].tolist()
    batch = tokenizer([first[i] for i in order], [second[i] for i in order], padding=True, return_tensors="pt")
    expected = inputs(original.batch)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    real = expected["attention_mask"].bool()
    assert torch.equal(batch["token_type_ids"][real], expected["token_type_ids"][real])


def test_symbols_keep_their_ids(tokenizer: Any, folder_of: Any) -> None:
    symbols = read_dictionary(folder_of("bert_base").dictionary)
    assert len(tokenizer) == tokenizer.vocab_size == len(symbols) == 64
    assert tokenizer.convert_tokens_to_ids(symbols) == list(range(64))
    assert symbols[:6] == list(SPECIAL_SYMBOLS)
    special = tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id
    assert (*special, tokenizer.mask_token_id, tokenizer.cls_token_id) == (1, 2, 3, 4, 5)
    assert tokenizer.model_max_length == 32 and tokenizer.padding_side == "right"


def test_decoding_joins_the_parts_of_words(tokenizer: Any) -> None:
    ids = tokenizer("ne@@ kefa the bo . scho@@")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "nekefa the bo . scho"
    assert tokenizer.decode(ids) == "<cls> nekefa the bo . scho</s>"  # as the original: `@@ ` goes
    assert tokenizer.convert_tokens_to_string(["ne@@", "ne@@", "kefa", "bo"]) == "nenekefa bo"


def test_white_space_is_what_python_splits_at() -> None:
    tokenizer = build_tokenizer([*SPECIAL_SYMBOLS, "a", "b"], max_length=8)
    spaces = [chr(c) for c in range(0x3001) if chr(c).isspace()]
    assert all(tokenizer.tokenize(f"a{space}b") == ["a", "b"] for space in spaces)
    assert tokenizer.tokenize("a\u200bb") == ["<unk>"]  # no white space
    assert tokenizer(" ")["input_ids"] == [5, 2]


def test_a_model_without_segments_is_given_none() -> None:
    tokenizer = build_tokenizer([*SPECIAL_SYMBOLS, "a", "b"], max_length=8, segments=False)
    assert tokenizer("a", "b").keys() == {"input_ids", "attention_mask"}
    assert tokenizer("a", "b")["input_ids"] == [5, 6, 2, 7, 2]


@pytest.fixture(scope="module")
def bpe(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The codes, dictionary and text of IWSLT 2014, and a tokenizer made of them, saved and loaded again."""

    def read(name: str) -> str:
        return lzma.open(shared / "data" / "iwslt14" / f"{name}.xz", "rt", encoding="utf-8").read()

    folder = tmp_path_factory.mktemp("bpe")
    (folder / "codes").write_text(read("bpe10k.code"), encoding="utf-8")
    (folder / "dict.txt").write_text(read("dict.joined.txt"), encoding="utf-8")
    symbols = read_dictionary(folder / "dict.txt")
    build_tokenizer(symbols, 512, codes=folder / "codes").save_pretrained(folder / "first")
    (folder / "codes").unlink()  # the folder is all that it needs
    AutoTokenizer.from_pretrained(folder / "first").save_pretrained(folder / "saved")
    tokenizer = AutoTokenizer.from_pretrained(folder / "saved")
    lines = [line for name in ("valid.de", "valid.en") for line in read(name).split("\n")[3300:3500]]
    return SimpleNamespace(folder=folder, symbols=symbols, tokenizer=tokenizer, lines=lines, codes=read("bpe10k.code"))


def test_with_codes_words_are_split_as_subword_nmt_does(bpe: SimpleNamespace) -> None:
    ids = {symbol: i for i, symbol in enumerate(bpe.symbols)}
    command = [sys.executable, "-m", "subword_nmt.apply_bpe", "-c", str(bpe.folder / "saved" / "bpe.codes")]
    text = "\n".join(bpe.lines)
    split = subprocess.run(command, input=text, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    expected = [[5, *(ids.get(part, 3) for part in line.split()), 2] for line in split.split("\n")]
    assert bpe.tokenizer(bpe.lines)["input_ids"] == expected
    assert sum(map(len, expected)) > 8000 and bpe.tokenizer.vocab_size == len(bpe.symbols)
    decoded = [bpe.tokenizer.decode(e, skip_special_tokens=True) for e in expected if 3 not in e]
    assert decoded == [line for line, e in zip(bpe.lines, expected, strict=True) if 3 not in e]


def test_with_codes_pairs_words_and_special_tokens(bpe: SimpleNamespace) -> None:
    tokenizer = bpe.tokenizer
    pair = tokenizer("wunderbarerweise", "a\tb", return_tensors="pt")
    split = tokenizer.bpe.segment("wunderbarerweise").split()
    assert len(split) > 1
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"][0]) == ["<cls>", *split, "</s>", "a", "b", "</s>"]
    assert pair["token_type_ids"].tolist() == [[0] * (len(split) + 2) + [1, 1, 1]]
    words = tokenizer(["das", "wunderbarerweise"], is_split_into_words=True)
    assert words.word_ids() == [None, 0, *[1] * len(split), None]
    assert tokenizer.tokenize("das<mask>.") == ["das", "<mask>", "."]
    assert tokenizer.tokenize("") == []


def test_codes_of_another_kind_are_refused(bpe: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("#version: 0.2\nt h 120\n")
    with pytest.raises(ValueError, match=r"codes, line 2: 't h 120' is not a merge of two parts; give the codes that"):
        build_tokenizer(bpe.symbols, 512, codes=tmp_path / "codes")


# -- errors


@pytest.fixture
def files(golden: Path, tmp_path: Path) -> SimpleNamespace:
    checkpoint = golden / "bert" / "bert_base" / "checkpoint.pt"
    dictionary = golden / "data" / "data-bin" / "bert" / "dict.txt"
    return SimpleNamespace(checkpoint=checkpoint, dictionary=dictionary, out=tmp_path / "out", tmp=tmp_path)


def test_a_translation_checkpoint_is_refused(golden: Path, files: SimpleNamespace) -> None:
    path = golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt"
    message = r"checkpoint\.pt: not a BERT .* the parts decoder, encoder; a translation model becomes a"
    with pytest.raises(CheckpointError, match=message):
        convert_file(path, files.dictionary, files.out)
    assert not files.out.exists()


def test_the_command_asks_for_the_dictionary_of_a_bert(files: SimpleNamespace, golden: Path, capsys: Any) -> None:
    classifier = golden / "bert" / "classifier_macaron_pair_3way" / "checkpoint.pt"
    for checkpoint in (files.checkpoint, classifier):
        for codes in ([], ["--bpe-codes", "codes"]):
            assert main(["convert", str(checkpoint), "--output", str(files.out), *codes]) == 1
            message = capsys.readouterr().err
            assert f"macaron convert: {checkpoint} is a BERT or classifier of the original" in message
            assert "add --dict FILE" in message and message.count("\n") == 1
    assert not files.out.exists()


@pytest.mark.parametrize("option", ["--dict", "--bpe-codes"])
def test_the_command_refuses_options_of_a_bert_for_a_translation_model(
    option: str, golden: Path, files: SimpleNamespace, capsys: Any
) -> None:
    path = golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt"
    assert main(["convert", str(path), "--output", str(files.out), option, str(files.dictionary)]) == 1
    message = capsys.readouterr().err
    assert f"{path} is a translation model, for which {option} {files.dictionary} would do nothing" in message
    assert "leave it out" in message and message.count("\n") == 1
    assert not files.out.exists()


@pytest.mark.parametrize("names", [("encoder.layers.0.fc1.weight",), ("encoder.layers.0.flows.0.fc1.weight",), ("w",)])
def test_the_command_refuses_what_is_of_neither_kind(names: tuple, files: SimpleNamespace, capsys: Any) -> None:
    torch.save({"model": {name: torch.ones(2, 2) for name in names}}, files.tmp / "other.pt")
    command = ["convert", str(files.tmp / "other.pt"), "--dict", str(files.dictionary), "--output", str(files.out)]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "not a translation checkpoint" in message and "a BERT or classifier of the original becomes" in message
    assert not files.out.exists()


def test_another_projects_model_is_refused(files: SimpleNamespace) -> None:
    torch.save({"model": {"encoder.layer.0.weight": torch.ones(2)}}, files.tmp / "other.pt")
    with pytest.raises(CheckpointError, match="has the parts encoder; a model of this project or of another one needs"):
        convert_file(files.tmp / "other.pt", files.dictionary, files.out)


def test_a_dictionary_must_be_there_and_fit(files: SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist; give the dict\.txt"):
        convert_file(files.checkpoint, files.tmp / "nowhere.txt", files.out)
    lines = files.dictionary.read_text(encoding="utf-8").splitlines(keepends=True)
    other = files.tmp / "dict.txt"
    for content, message in {
        "".join(lines[:-1]): r"63 symbols with the 6 special ones, but the embeddings in .* have 64 rows",
        "".join(lines[:3]) + "word\n": r"line 4: 'word' is not `symbol count`",
        "".join(lines[:3]) + lines[1]: r"line 4: symbol ',' is there twice",
        "<mask> 3\n": r"line 1: symbol '<mask>' is there twice",
    }.items():
        other.write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            convert_file(files.checkpoint, other, files.out)
    other.write_bytes(b"caf\xe9 3\n")
    with pytest.raises(CheckpointError, match=r"dict\.txt: not a text file in UTF-8"):
        convert_file(files.checkpoint, other, files.out)
    assert not files.out.exists()


def test_a_folder_with_something_in_it_is_kept(files: SimpleNamespace, capsys: Any) -> None:
    files.out.mkdir()
    (files.out / "precious").write_text("mine")
    command = ["convert", str(files.checkpoint), "--dict", str(files.dictionary), "--output", str(files.out)]
    assert main(command) == 1
    assert f"folder {files.out} is not empty; name another one, or add --force" in capsys.readouterr().err
    assert [path.name for path in files.out.iterdir()] == ["precious"]
    assert main([*command, "--force"]) == 0
    assert (files.out / "precious").read_text() == "mine" and (files.out / "model.safetensors").exists()
    for other in ("optimizer.pt", "bpe.codes"):  # of a conversion before: not to be taken for this one's
        (files.out / other).touch()
    convert_file(files.checkpoint, files.dictionary, files.out, force=True)
    assert not {"optimizer.pt", "bpe.codes"} & {path.name for path in files.out.iterdir()}
    with pytest.raises(FileExistsError, match="precious is a file; name a folder"):
        convert_file(files.checkpoint, files.dictionary, files.out / "precious")
    assert [path.name for path in files.tmp.iterdir()] == ["out"]


class Malicious:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


def test_damaged_and_malicious_files_are_refused(files: SimpleNamespace) -> None:
    bad = files.tmp / "bad.pt"
    bad.write_bytes(files.checkpoint.read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=r"bad\.pt: not a readable checkpoint; the file is truncated or corrupt"):
        convert_file(bad, files.dictionary, files.out)
    torch.save({**random_checkpoint(), "extra_state": Malicious()}, bad)
    with pytest.raises(CheckpointError, match=r"bad\.pt: refused, because it refers to .*exec"):
        convert_file(bad, files.dictionary, files.out)
    with pytest.raises(FileNotFoundError, match=r"BPE codes .*gone do not exist"):
        convert_file(files.checkpoint, files.dictionary, files.out, codes=files.tmp / "gone")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt does not exist"):
        convert_file(files.tmp / "gone.pt", files.dictionary, files.out)


def test_parameters_without_a_counterpart_are_named() -> None:
    state = random_checkpoint()
    state["model"]["encoder.layers.1.adapter.weight"] = torch.ones(3)
    state["model"]["pooler.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r"no counterpart for encoder\.layers\.1\.adapter\.weight, pooler"):
        convert(state)
    state = random_checkpoint()
    del state["model"]["encoder.layers.1.fc2.bias"]
    with pytest.raises(CheckpointError, match=r"finds nothing for macaron_bert\.layers\.1\.flows\.2\.fc2\.bias"):
        convert(state)
    state = random_checkpoint()
    state["model"]["encoder.layers.1.fc2.bias"] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r"fc2\.bias gives \(3,\) for .*the other sizes .* imply \(12,\)"):
        convert(state)


def test_options_that_cannot_be_read_are_named() -> None:
    state = random_checkpoint()
    with pytest.raises(CheckpointError, match="entry 'args' is None, but the number of heads"):
        convert({**state, "args": None})
    with pytest.raises(CheckpointError, match="act_fn='swish' is unknown; the original has relu, gelu"):
        convert(random_checkpoint(act_fn="swish"))
    with pytest.raises(CheckpointError, match="num_attention_heads=5"):
        convert(random_checkpoint(encoder_attention_heads=5))
    with pytest.raises(CheckpointError, match=r"max_position_embeddings.* expected int, got str"):
        convert(random_checkpoint(max_positions="many"))
    without = [n for n in state["model"] if n.startswith(("mid_layer", "embed_out"))]
    for name in without:
        del state["model"][name]
    with pytest.raises(CheckpointError, match="criterion='cross_entropy_bert' says not what the classifier's 1 out"):
        convert(state)


@pytest.mark.parametrize(
    ("options", "lost", "message"),
    [
        ({"encoder_layers": 2}, "encoder.layers.1.", r"parameters of 1 layers, .* option encoder_layers is 2"),
        ({"encoder_layers": 2}, "encoder.layers.0.", r"encoder\.layers\.0\.fc1\.weight is missing"),
        ({}, ".macaron_fc", r"macaron_fc1\.weight is missing, though the option macaron is True"),
        ({}, "encoder.layers.0.macaron_fc2", "variant that cannot be converted"),
        ({"encoder_learned_pos": True}, "embed_positions", "embed_positions.weight is missing, though .*learned_pos"),
        ({"no_normalize_affine": False}, "layer_norm", "is missing, though the option no_normalize_affine is False"),
        ({"no_normalize_affine": False}, "encoder.layer_norm", r"finds nothing for macaron_bert\.final_norm"),
        ({"share_all_embeddings": False}, "embed_out", "embed_out is missing, though the option share_all_embeddings"),
        ({}, "mid_layer.2.bias", r"finds nothing for mlm_head\.norm\.bias"),
        ({}, "classifier.bias", r"finds nothing for nsp_head\.bias"),
        ({}, "encoder.layers.1.self_attn.out_proj.bias", r"finds nothing for .*layers\.1\..*out_proj\.bias"),
        ({}, "encoder.embed_tokens", r"encoder\.embed_tokens\.weight is missing"),
    ],
)
def test_what_is_missing_is_named(options: dict[str, Any], lost: str, message: str) -> None:
    """Sizes and kinds are read from the tensors, so a lost one must not make another model."""
    state = random_checkpoint(**{"macaron": True, **options})
    state["model"] = {name: t for name, t in state["model"].items() if lost not in name}
    with pytest.raises(CheckpointError, match=message):
        convert(state)


def test_a_classifier_without_its_weight_is_refused() -> None:
    state = random_checkpoint(criterion="cross_entropy_classify_binary")
    kept = {n: t for n, t in state["model"].items() if not n.startswith(("mid_layer", "embed_out"))}
    state["model"] = kept
    assert convert(state).model.num_labels == 1
    state["model"] = {n: t for n, t in kept.items() if n != "classifier.weight"}
    with pytest.raises(CheckpointError, match=r"classifier\.weight is missing"):
        convert(state)


@pytest.mark.parametrize("damage", [None, [], {"encoder.layers.0.fc1.weight": 1}], ids=str)
def test_a_model_that_is_no_table_of_tensors(damage: Any) -> None:
    with pytest.raises(CheckpointError, match="no table of tensors"):
        convert({**random_checkpoint(), "model": damage})


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_dictionaries_and_codes_are_read_alike(end: str, mark: str, tmp_path: Path) -> None:
    """Whatever ends their lines, with a byte order mark or without; only a line feed begins a line."""
    codes, dictionary = tmp_path / "codes", tmp_path / "dict.txt"
    codes.write_bytes(f"{mark}#version: 0.2{end}a b{end}ab c</w>{end}".encode())
    dictionary.write_bytes(f"{mark}abc 3{end}ab@@ 2{end}d\re 1{end}\u2028 1{end}".encode())
    symbols = read_dictionary(dictionary)
    assert symbols == [*SPECIAL_SYMBOLS, "abc", "ab@@", "d\re", "\u2028"]
    build_tokenizer(symbols, max_length=8, codes=codes).save_pretrained(tmp_path / "saved")
    for _ in range(2):  # saved again it is the same
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert tokenizer("abc abd")["input_ids"] == [5, 6, 7, 3, 2]
        assert tokenizer.bpe.version == (0, 2)
        tokenizer.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("line", ["a b\rc d", "\ra", "a b c", "a", ""], ids=repr)
def test_a_line_of_codes_that_is_no_merge_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "codes").write_bytes(f"#version: 0.2\na b\n{line}\nab c\n".encode())
    with pytest.raises(ValueError, match=r"line 3: .* is not a merge of two parts"):
        build_tokenizer(list(SPECIAL_SYMBOLS), max_length=8, codes=tmp_path / "codes")


def test_codes_and_dictionaries_of_another_encoding_are_refused(tmp_path: Path) -> None:
    for name in ("codes", "dict.txt"):
        (tmp_path / name).write_bytes("\ufeffa b\n".encode("utf-16"))
    with pytest.raises(ValueError, match="codes: not a text file in UTF-8"):
        build_tokenizer(list(SPECIAL_SYMBOLS), max_length=8, codes=tmp_path / "codes")
    with pytest.raises(CheckpointError, match=r"dict\.txt: not a text file in UTF-8"):
        read_dictionary(tmp_path / "dict.txt")


@pytest.mark.parametrize(
    "name", ["encoder.layers.0.fc1.weight", "encoder.layers.0.macaron_fc1.weight", "mid_layer.0.bias"]
)
def test_what_is_no_vector_or_matrix_of_numbers_is_refused(name: str) -> None:
    for value, message in (
        (torch.tensor(1.0), rf"parameter {name} is a torch\.float32 of shape \(\), and should be a vector or matrix"),
        (torch.ones(3, dtype=torch.int64), rf"parameter {name} is a torch\.int64 of shape \(3,\)"),
        (torch.full((3,), torch.inf), rf"parameter {name} is not finite: the run diverged, or the file is damaged"),
    ):
        state = random_checkpoint()
        state["model"][name] = value
        with pytest.raises(CheckpointError, match=message):
            convert(state)


def test_a_dictionary_that_was_sorted_anew_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("b 7\na 7\nc 2\nmadeupword0000 0\n")
    read_dictionary(path)
    assert not caplog.text
    path.write_text("a 7\nc 2\nb 7\n")
    assert read_dictionary(path)[6:] == ["a", "c", "b"]
    assert "dict.txt: its counts do not fall from line to line" in caplog.text
    path.write_text(f"a {'9' * 5000}\n")
    with pytest.raises(CheckpointError, match=r"line 1: .* is not `symbol count`"):
        read_dictionary(path)


@pytest.mark.parametrize("odd", [[1], {"state": {0: 1}}, {"state": [1], "param_groups": 3}], ids=str)
def test_an_odd_optimiser_state_is_left_out(odd: Any) -> None:
    assert convert({**random_checkpoint(), "last_optimizer_state": odd}).optimizer is None


def test_a_link_to_a_folder_stays_one(files: SimpleNamespace) -> None:
    (files.tmp / "elsewhere").mkdir()
    files.out.symlink_to("elsewhere")
    convert_file(files.checkpoint, files.dictionary, files.out)
    assert files.out.is_symlink() and (files.tmp / "elsewhere" / "model.safetensors").is_file()
    with pytest.raises(FileExistsError, match="is not empty"):
        convert_file(files.checkpoint, files.dictionary, files.out)
