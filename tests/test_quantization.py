"""Matrices of 8 bits, and checkpoints that hold them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from macaron import checkpoint
from macaron.quantization import SCALES, dequantized, quantized, restored, stored


@given(st.integers(0, 2**31), st.floats(-30, 30), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_half_a_step_at_most_and_the_same_numbers_again(seed: int, size: float, rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**size
    numbers, scale = quantized(weight)
    again = dequantized(numbers, scale)
    assert ((again.double() - weight.double()).abs() <= 0.501 * scale.double()[:, None]).all()
    renewed, other = quantized(again)
    assert torch.equal(renewed, numbers)
    torch.testing.assert_close(other, scale, rtol=3e-7, atol=0)


def state() -> dict[str, Any]:
    shared = torch.randn(11, 6)
    return {
        "model": {
            "encoder.embed_tokens.weight": shared,
            "decoder.output_projection.weight": shared,
            "decoder.embed_positions.weight": torch.randn(9, 6),
            "decoder.layers.0.fc1.weight": torch.randn(4, 6),
            "decoder.layers.0.fc1.bias": torch.randn(4),
            "decoder.layers.0.norm.weight": torch.randn(6),
        },
        "cfg": {"model": {"_name": "macaron"}},
    }


def size_of(held: dict[str, Any]) -> int:
    places = {t.data_ptr(): t.nbytes for t in held.values() if isinstance(t, Tensor)}
    return sum(places.values())


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("bf16", 16), ("int8", 8)])
def test_a_checkpoint_in_fewer_bits(tmp_path, precision: str, bits: int) -> None:
    whole = state()
    torch.save(stored(whole, precision), tmp_path / "model.pt")
    raw = torch.load(tmp_path / "model.pt", weights_only=True)
    matrices = ("encoder.embed_tokens.weight", "decoder.output_projection.weight", "decoder.layers.0.fc1.weight")
    assert {raw["model"][name].dtype.itemsize * 8 for name in matrices} == {bits}
    kept = [name for name in whole["model"] if name not in matrices]
    assert all(torch.equal(raw["model"][name], whole["model"][name]) for name in kept)
    assert raw["model"][matrices[0]].data_ptr() == raw["model"][matrices[1]].data_ptr(), "one tensor stays one"
    read = checkpoint.load(tmp_path / "model.pt")
    assert SCALES not in read and read["model"].keys() == whole["model"].keys()
    error = {"fp32": 0.0, "bf16": 2**-8, "int8": 0.501 / 127}[precision]
    for name in matrices:
        limit = error * whole["model"][name].abs().amax(-1, keepdim=True)
        assert ((read["model"][name].float() - whole["model"][name]).abs() <= limit).all()
    assert read["model"][matrices[0]].data_ptr() == read["model"][matrices[1]].data_ptr()


def test_float32_alone_is_quantized() -> None:
    half = state()
    half["model"]["decoder.layers.0.fc1.weight"] = half["model"]["decoder.layers.0.fc1.weight"].half()
    with pytest.raises(ValueError, match=r"fc1\.weight is float16; int8 is made of float32"):
        stored(half, "int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({SCALES: [1.0]}), "is a list, but must be"),
        (lambda s: s[SCALES].update({"nothing": torch.ones(4)}), "those of nothing do not fit"),
        (lambda s: s[SCALES].update({"decoder.layers.0.fc1.weight": torch.ones(5)}), r"fc1\.weight do not fit"),
        (lambda s: s[SCALES].update({"decoder.layers.0.fc1.weight": -torch.ones(4)}), "not all positive and finite"),
        (lambda s: s[SCALES].update({"decoder.layers.0.fc1.weight": torch.full((4,), torch.nan)}), "not all positive"),
        (lambda s: s.pop(SCALES), r"none for \S+, which holds 8-bit numbers"),
        (lambda s: s[SCALES].pop("decoder.layers.0.fc1.weight"), r"none for decoder\.layers\.0\.fc1\.weight"),
    ],
)
def test_scales_that_do_not_belong(tmp_path, change, message: str) -> None:
    made = stored(state(), "int8")
    change(made)
    with pytest.raises(ValueError, match=message):
        restored(made)
    torch.save(made, tmp_path / "model.pt")
    with pytest.raises(checkpoint.CheckpointError, match=rf"model\.pt: .*{message}.*copy it again"):
        checkpoint.load(tmp_path / "model.pt")
