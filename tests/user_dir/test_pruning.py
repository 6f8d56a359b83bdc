"""`--encoder-layers-to-keep`: which layers of a checkpoint are taken, and what cannot be."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from macaron.user_dir.pruning import kept_layers, prune


def weights(encoder: int, decoder: int, end: str = "flows.0.fc1.weight") -> dict[str, torch.Tensor]:
    """Each layer holds its number, from 0 in the encoder and from 100 in the decoder."""
    state = {"encoder.embed_tokens.weight": torch.tensor(-1), "decoder.layer_norm.weight": torch.tensor(-2)}
    for side, count, first in (("encoder", encoder, 0), ("decoder", decoder, 100)):
        state |= {f"{side}.layers.{i}.{end}": torch.tensor(first + i) for i in range(count)}
    return state


def numbers(state: dict[str, torch.Tensor], side: str) -> list[int]:
    names = sorted(name for name in state if name.startswith(f"{side}.layers."))
    assert [int(name.split(".")[2]) for name in names] == list(range(len(names)))
    return [int(state[name]) for name in names]


@pytest.mark.parametrize("end", ["flows.0.fc1.weight", "self_attn.out_proj.weight"], ids=["ours", "fairseq's"])
@pytest.mark.parametrize(
    ("keep", "encoder", "decoder"),
    [
        ({"encoder": "0,2"}, [0, 2], [100, 101, 102]),
        ({"decoder": "1"}, [0, 1, 2], [101]),
        ({"encoder": "2, 1", "decoder": "0,1"}, [1, 2], [100, 101]),
        ({"encoder": 0}, [0], [100, 101, 102]),
        ({"encoder": "", "decoder": None}, [0, 1, 2], [100, 101, 102]),
    ],
)
def test_layers_are_numbered_anew(keep, encoder, decoder, end):
    args = Namespace(**{f"{side}_layers_to_keep": given for side, given in keep.items()})
    state = weights(3, 3, end)
    found = prune(state, args)
    assert numbers(found, "encoder") == encoder and numbers(found, "decoder") == decoder
    assert {"encoder.embed_tokens.weight", "decoder.layer_norm.weight"} <= found.keys()
    assert len(state) == 8


def test_more_than_ten_layers():
    found = prune(weights(12, 0), Namespace(encoder_layers_to_keep="1,10,11"))
    assert numbers(found, "encoder") == [1, 10, 11]


def test_what_is_pruned_already_stays():
    args = Namespace(encoder_layers_to_keep="0,2", decoder_layers_to_keep="1")
    once = prune(weights(3, 3), args)
    assert prune(once, args) == once
    assert prune(weights(3, 3), None).keys() == weights(3, 3).keys()


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"--encoder-layers-to-keep 0,3: the checkpoint has the layers 0, 1, 2 only"):
        prune(weights(3, 3), Namespace(encoder_layers_to_keep="0,3"))


@pytest.mark.parametrize("given", ["a", "0,", ",", "1,1", "-1", "0.5", "0;2", "²", "[0,2]"])
def test_no_list_of_layers(given):
    with pytest.raises(ValueError, match=r"--decoder-layers-to-keep '.*' is no list of layers; give different numbers"):
        kept_layers(Namespace(decoder_layers_to_keep=given), "decoder")
