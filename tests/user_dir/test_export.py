"""TorchScript: the model and its beam search compile, survive a file, and compute the same."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel

from macaron import MacaronModel

SIZES = {
    "encoder_embed_dim": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_embed_dim": 24,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "max_source_positions": 64,
    "max_target_positions": 64,
}
VARIANTS = {
    "strang": {"splitting": "strang"},
    "lie, post-norm": {
        "splitting": "lie",
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
    },
    "no positions, attention to both at once": {
        "no_token_positional_embeddings": True,
        "no_cross_attention": True,
        "cross_self_attention": True,
    },
}

# The same operations; TorchScript may fuse some of them, which rounds float32 otherwise.
TOLERANCE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, toy_task):
    built = MacaronModel.build_model(Namespace(**SIZES, **request.param), toy_task()).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built


def through_a_file(module, folder) -> torch.jit.ScriptModule:
    torch.jit.script(module).save(str(folder / "scripted.pt"))
    return torch.jit.load(str(folder / "scripted.pt"))


def sources() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randint(4, 44, (3, 6))
    source[1, :2] = 1
    return source, (source != 1).sum(1)


@torch.no_grad()
def test_outputs(model, tmp_path):
    scripted = through_a_file(model, tmp_path)
    source, lengths = sources()
    previous = torch.randint(4, 44, (3, 5))
    found = scripted(source, lengths, previous)
    expected = model(source, lengths, previous)
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE)
    # a scripted model leaves out what is only for inspection
    memory = scripted.encoder.forward(source, lengths)
    torch.testing.assert_close(memory["encoder_out"][0], model.encoder(source, lengths)["encoder_out"][0], **TOLERANCE)


@torch.no_grad()
def test_beam_search(model, toy_task, tmp_path):
    """The scripted generator holds the scripted model, its caches and their reordering."""
    dictionary = toy_task().target_dictionary
    source, lengths = sources()
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    eager = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=8, len_penalty=0.6)
    scripted = through_a_file(
        SequenceGenerator([model], dictionary, beam_size=3, max_len_b=8, len_penalty=0.6), tmp_path
    )
    for found, expected in zip(scripted(sample), eager.forward(sample), strict=True):
        for a, b in zip(found, expected, strict=True):
            assert a["tokens"].tolist() == b["tokens"].tolist()
            torch.testing.assert_close(a["positional_scores"], b["positional_scores"], **TOLERANCE)


@pytest.mark.parametrize("splitting", ["strang", "lie"])
@torch.no_grad()
def test_language_model(splitting, toy_task, tmp_path):
    sizes = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 2, "max_target_positions": 64}
    args = Namespace(splitting=splitting, decoder_attention_heads=2, **sizes)
    lm = MacaronLanguageModel.build_model(args, toy_task()).eval()
    tokens = torch.randint(4, 44, (3, 5))
    # its decoder, since fairseq's wrapper around it takes **kwargs, which TorchScript does not know
    scripted = through_a_file(lm.decoder, tmp_path)
    torch.testing.assert_close(scripted(tokens)[0], lm(tokens)[0], **TOLERANCE)
