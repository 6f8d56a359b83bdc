"""With `--splitting lie` and its weights, the model is fairseq's own Transformer."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel

from macaron import MacaronModel
from macaron.names import to_particle_names

SIZES = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 40,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "dropout": 0.0,
    "max_source_positions": 64,
    "max_target_positions": 64,
}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
POST_NORM = {"encoder_normalize_before": False, "decoder_normalize_before": False}
VARIANTS = {
    "pre-norm": PRE_NORM,
    "post-norm": POST_NORM,
    "mixed-norm": {"encoder_normalize_before": True, "decoder_normalize_before": False},
    "all embeddings shared": {**PRE_NORM, "share_all_embeddings": True},
    "decoder's embeddings shared": {**POST_NORM, "share_decoder_input_output_embed": True},
    "other width of the decoder": {**PRE_NORM, "decoder_embed_dim": 32},
    "other width, post-norm": {**POST_NORM, "encoder_embed_dim": 32},
    "gelu, learned positions": {
        **PRE_NORM,
        "activation_fn": "gelu",
        "encoder_learned_pos": True,
        "decoder_learned_pos": True,
    },
    "normalised embeddings": {**POST_NORM, "layernorm_embedding": True, "no_scale_embedding": True},
    "no final norm": {**PRE_NORM, "no_decoder_final_norm": True},
    "attention to both at once": {**PRE_NORM, "no_cross_attention": True, "cross_self_attention": True},
    "adaptive softmax": {**PRE_NORM, "adaptive_softmax_cutoff": "10,20"},
    "input and output of other width": {**PRE_NORM, "decoder_input_dim": 24, "decoder_output_dim": 12},
}
# Float32, sums in another order: fairseq has q, k and v in three matrices and its norms apart from the steps. A quarter
# of this is seen. Gradients sum over all tokens; attention weights are below 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
OF_GRADIENTS = {"rtol": 1e-4, "atol": 1e-5}
OF_WEIGHTS = {"rtol": 0, "atol": 1e-6}


def randomize(model: torch.nn.Module) -> None:
    """No parameter keeps a value, such as the 1 and 0 of norms and biases, that would hide where it goes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def batch(words: int = 44) -> dict[str, torch.Tensor]:
    """Three sentence pairs of different lengths: sources padded left, targets right; 1 is padding, 2 the end."""
    source = torch.randint(4, words, (3, 7))
    source[:, -1] = 2
    source[1, :2] = 1
    source[2, :4] = 1
    target = torch.randint(4, words, (3, 6))
    for row, length in enumerate((6, 4, 5)):
        target[row, length - 1] = 2
        target[row, length:] = 1
    previous = torch.cat([torch.full((3, 1), 2), target[:, :-1]], dim=1)
    previous[target == 1] = 1
    return {
        "src_tokens": source,
        "src_lengths": (source != 1).sum(1),
        "prev_output_tokens": previous,
        "target": target,
    }


@pytest.fixture(params=VARIANTS)
def pair(request, toy_task):
    """fairseq's Transformer and ours with its weights."""
    options = VARIANTS[request.param]
    task = toy_task(40, None if "share_all_embeddings" in options else 40)
    args = Namespace(**{**SIZES, **options})
    base_architecture(args)
    theirs = TransformerModel.build_model(args, task).eval()
    randomize(theirs)
    ours = MacaronModel.build_model(Namespace(splitting="lie", **{**SIZES, **options}), task).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def forward(model, inputs):
    return model(inputs["src_tokens"], inputs["src_lengths"], inputs["prev_output_tokens"])


def test_encoder_and_its_layers(pair):
    inputs = batch()
    visible = (inputs["src_tokens"] != 1).t()  # (S, B)
    theirs, ours = (
        model.encoder(inputs["src_tokens"], inputs["src_lengths"], return_all_hiddens=True) for model in pair
    )
    torch.testing.assert_close(ours["encoder_out"][0][visible], theirs["encoder_out"][0][visible], **TOLERANCE)
    for a, b in zip(ours["encoder_states"], theirs["encoder_states"], strict=True):
        torch.testing.assert_close(a[visible], b[visible], **TOLERANCE)


def test_outputs_and_attention(pair):
    inputs = batch()
    (a, extra_a), (b, extra_b) = (forward(model, inputs) for model in pair)
    real = inputs["target"] != 1
    torch.testing.assert_close(a[real], b[real], **TOLERANCE)
    for inner_a, inner_b in zip(extra_a["inner_states"], extra_b["inner_states"], strict=True):
        torch.testing.assert_close(inner_a[real.t()], inner_b[real.t()], **TOLERANCE)
    attention_a, attention_b = extra_a["attn"][0], extra_b["attn"][0]
    if pair[0].cfg.no_cross_attention:
        assert attention_a is None and attention_b is None
    else:
        torch.testing.assert_close(attention_b[real], attention_a[real], **OF_WEIGHTS)


WITH_MEMORY = [name for name, options in VARIANTS.items() if "no_cross_attention" not in options]
WITH_ONE_PROJECTION = [name for name in WITH_MEMORY if "adaptive_softmax_cutoff" not in VARIANTS[name]]


@pytest.mark.parametrize("pair", WITH_MEMORY, indirect=True)
def test_attention_of_single_heads(pair):
    inputs = batch()
    real = inputs["target"] != 1
    found = []
    for model in pair:
        memory = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
        _, extra = model.decoder.extract_features(
            inputs["prev_output_tokens"], memory, alignment_layer=1, alignment_heads=1
        )
        found.append(extra["attn"][0][real])
    torch.testing.assert_close(*found, **OF_WEIGHTS)


@pytest.mark.parametrize("pair", WITH_ONE_PROJECTION, indirect=True)
def test_guided_alignment(pair, toy_task):
    """The loss of `label_smoothed_cross_entropy_with_alignment` and its gradients, in training."""
    theirs, ours = pair
    inputs = batch()
    net_input = {name: inputs[name] for name in ("src_tokens", "src_lengths", "prev_output_tokens")}
    sample = {"net_input": net_input, "target": inputs["target"], "ntokens": 15}
    sample["alignments"] = torch.tensor([[0, 2], [3, 0], [4, 8], [2, 8], [6, 13]])  # source, row of all targets
    sample["align_weights"] = torch.tensor([1.0, 1.0, 0.5, 0.5, 1.0])
    criterion = CRITERION_REGISTRY["label_smoothed_cross_entropy_with_alignment"](toy_task(), False, 0.1, 2.0)
    logs = []
    for model in pair:
        found, _, log = criterion(model.train(), sample)
        found.backward()
        logs.append({name: float(value) for name, value in log.items()})
    assert logs[0]["alignment_loss"] > 0
    assert logs[1] == pytest.approx(logs[0], rel=TOLERANCE["rtol"])
    expected = to_particle_names({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **OF_GRADIENTS)


def loss(model, inputs) -> torch.Tensor:
    output = forward(model, inputs)
    if model.decoder.adaptive_softmax is not None:
        logits, targets = model.decoder.adaptive_softmax(output[0], inputs["target"])
        return sum(
            torch.nn.functional.cross_entropy(part, wanted, ignore_index=1, reduction="sum")
            for part, wanted in zip(logits, targets, strict=True)
            if wanted is not None
        )
    log_probs = model.get_normalized_probs(output, log_probs=True)
    return label_smoothed_nll_loss(log_probs, inputs["target"].unsqueeze(-1), 0.1, ignore_index=1)[0]


def test_losses_and_gradients(pair):
    inputs = batch()
    theirs, ours = pair
    losses = []
    for model in pair:
        model.train()
        losses.append(loss(model, inputs))
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-5)  # one sum over fifteen tokens
    expected = to_particle_names({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert list(found) and set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **OF_GRADIENTS, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("pre_norm", [True, False])
def test_language_model(pre_norm, toy_task):
    sizes = {
        "decoder_embed_dim": 16,
        "decoder_ffn_embed_dim": 24,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_normalize_before": pre_norm,
        "dropout": 0.0,
        "max_target_positions": 64,
    }
    args = Namespace(**sizes)
    base_lm_architecture(args)
    theirs = TransformerLanguageModel.build_model(args, toy_task()).eval()
    randomize(theirs)
    ours = MacaronLanguageModel.build_model(Namespace(splitting="lie", **sizes), toy_task()).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)

    inputs = batch()
    real = inputs["target"] != 1
    outputs = [model(inputs["prev_output_tokens"])[0][real] for model in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0], **TOLERANCE)
    for output in outputs:
        output.square().sum().backward()
    expected = to_particle_names({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-4
        )  # of squares of logits, so up to hundreds
