"""Products of packed matrices beside those of the matrices themselves; which precision a processor has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from macaron.decoding import choose_precision, packed, weights

ALL = {"vnni", "avx512_vnni", "amx_tile", "avx512_bf16"}


@pytest.fixture
def processor(monkeypatch):
    """`processor("vnni")`: a CPU that has this alone."""

    def set_to(*names: str) -> None:
        for name in ALL:
            has = name in names
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=has: has, raising=False)

    return set_to


def int8_here() -> bool:
    try:
        return choose_precision("int8") == "int8"
    except ValueError:
        return False


needs_int8 = pytest.mark.skipif(not int8_here(), reason="no products of 8-bit numbers on this processor")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 40), (130, 40)], ids=str)
@pytest.mark.parametrize("out", [24, 4100])
def test_fp32_is_the_same(bias, shape, out) -> None:
    linear = nn.Linear(40, out, bias=bias)
    x = torch.randn(shape)
    # sums of 40 products of about 1/6 in another order
    torch.testing.assert_close(packed(linear, "fp32")(x), linear(x), rtol=0, atol=2e-6)


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 40), (130, 40)], ids=str)
def test_int8_is_near_by_its_scales(bias, shape) -> None:
    """Each factor is off by at most half a step of its scale; rows and columns of any size."""
    linear = nn.Linear(40, 24, bias=bias)
    x = torch.randn(shape) * torch.logspace(-4, 4, shape[-2])[:, None]
    with torch.no_grad():
        linear.weight.mul_(torch.logspace(-3, 3, 24)[:, None])
        found, expected = packed(linear, "int8")(x), linear(x)
        size, steps = x.abs(), x.abs().amax(-1, keepdim=True) / 254
        of_weights = linear.weight.abs().amax(-1) / 254
        bound = steps @ linear.weight.abs().sum(-1)[None] + size.sum(-1, keepdim=True) * of_weights
    assert ((found - expected).abs() <= 1.01 * bound + 40 * steps * of_weights + 1e-6 * expected.abs()).all()
    plain = expected if linear.bias is None else expected - linear.bias
    error = ((found - expected) / (steps * of_weights)).norm() / (plain / (steps * of_weights)).norm()
    assert 1e-4 < error < 0.02  # about 1/254 of the greatest of 40 numbers, and it is no copy


@needs_int8
def test_no_row_depends_on_its_neighbours() -> None:
    linear = packed(nn.Linear(40, 24), "int8")
    x = torch.randn(5, 40)
    x[1], x[2], x[3, 7] = 1e6, 0.0, torch.nan
    together = linear(x)
    for i in (0, 1, 2, 4):
        assert linear(x[i : i + 1]).equal(together[i : i + 1])
    assert together[2].equal(linear.bias) and not together[3].isfinite().any()


def test_bf16_rounds_the_factors_alone() -> None:
    linear = nn.Linear(40, 24)
    x = torch.randn(7, 40)
    found = packed(linear, "bf16")(x)
    assert found.dtype == torch.float32
    # 8 bits of a factor, and of the sum
    torch.testing.assert_close(found, linear(x), rtol=2**-6, atol=2**-6)
    assert not torch.allclose(found, linear(x), atol=1e-5)


def test_logits_keep_more_than_8_bits() -> None:
    """Of a projection, by its name: rounded to bfloat16, logits of 8 to 16 are 1/16 apart, and words tie."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.output_projection = nn.Linear(40, 24), nn.Linear(40, 24)
            self.output_projection.weight.data.mul_(20)

    decoder = Decoder()
    made = packed(decoder, "bf16")
    x = torch.randn(7, 40)
    found, expected = made.output_projection(x), decoder.output_projection(x)
    assert type(made.fc1) is weights.Bf16Linear and found.dtype == torch.float32
    # a weight of float16 is off by 2^-11 at most
    bound = 2**-11 * (x.abs() @ decoder.output_projection.weight.abs().t()) + 1e-5
    assert ((found - expected).abs() <= bound).all()
    assert (found != found.bfloat16().float()).any()
    decoder.output_projection.weight.data[0, 0] = 1e5  # more than float16 has
    huge = packed(decoder, "bf16").output_projection(x)
    torch.testing.assert_close(huge, decoder.output_projection(x), rtol=1e-5, atol=1e-4)


@needs_int8
def test_embeddings() -> None:
    embedding = nn.Embedding(30, 40, padding_idx=1)
    made = packed(embedding, "int8")
    tokens = torch.tensor([[0, 1, 29], [5, 5, 1]])
    step = embedding.weight.abs().amax(-1)[tokens] / 254
    assert ((made(tokens) - embedding(tokens)).abs() <= 1.001 * step[..., None]).all()
    assert not made(tokens)[0, 1].any()


def test_the_model_stays_as_it_was() -> None:
    """All that is not packed is shared, a module that comes twice is packed once, and subclasses are left alone."""

    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), Own(8, 8))
    model.again = model[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = packed(model, "bf16")
    assert made[1].weight is model[1].weight and made[0] is made.again and type(made[2]) is Own
    assert type(model[0]) is nn.Linear and type(made[0]) is weights.Bf16Linear
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="precision int8: is made of float32, and these parameters are float16"):
        packed(nn.Linear(2, 2).half(), "int8")


def test_what_a_processor_has(processor) -> None:
    processor()
    assert choose_precision("auto") == choose_precision("fp32") == "fp32"
    with pytest.raises(ValueError, match=r"precision int8: needs .* which cpu here has not; choose fp32, or auto"):
        choose_precision("int8")
    with pytest.raises(ValueError, match="precision bf16: needs arithmetic in bfloat16"):
        choose_precision("bf16")
    processor("avx512_bf16")
    assert choose_precision("auto") == choose_precision("bf16") == "bf16"
    with pytest.raises(ValueError, match="choose fp32 or bf16, or auto"):
        choose_precision("int8")
    if weights._onednn():
        processor("vnni")
        assert choose_precision("auto") == choose_precision("int8") == "int8"
    with pytest.raises(ValueError, match=r"precision int8: needs a CPU .* which meta here has not"):
        choose_precision("int8", "meta")
    with pytest.raises(ValueError, match="precision 'fp8' is unknown; choose one of fp32, bf16, int8, auto"):
        choose_precision("fp8")
