"""The layer against the numbers of the original: a trained decoder layer of tests/data, see the README there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from macaron.dynamics import STRANG
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION
from macaron.names import to_particle_names
from macaron.particles import CrossAttention, FeedForward, Mask, Memory, ParticleLayer, SelfAttention, Surroundings

C, F, H = 24, 40, 4
STEM = "decoder.layers.1."
TOLERANCE = 1e-5  # float32 against float32 of numbers up to 15; the original's own error is up to 4e-6
OF_WEIGHTS = 1e-6  # of attention weights, which are below 1


@pytest.fixture(scope="module")
def data(project_root: Path) -> Path:
    return project_root / "tests" / "data"


@pytest.fixture(scope="module")
def numbers(data: Path) -> dict[str, Tensor]:
    return load_file(data / "golden_layer.safetensors")


def layer(numbers: dict[str, Tensor]) -> ParticleLayer:
    makers = {
        FFN: lambda: FeedForward(C, F),
        SELF_ATTENTION: lambda: SelfAttention(C, H),
        CROSS_ATTENTION: lambda: CrossAttention(C, H),
    }
    splitting = STRANG.with_cross_attention()
    made = ParticleLayer(splitting, [makers[s.flow]() for s in splitting.substeps], C).eval()
    state = to_particle_names({name: t for name, t in numbers.items() if name.startswith(STEM)})
    made.load_state_dict({name.removeprefix(STEM): t for name, t in state.items()})
    return made


def around(numbers: dict[str, Tensor]) -> Surroundings:
    mask = numbers["memory_padding_mask"]
    return Surroundings(Mask(causal=True), Memory(numbers["memory"], mask), need_memory_weights=True)


def errors(made: ParticleLayer, numbers: dict[str, Tensor], surroundings: Surroundings) -> tuple[float, float]:
    """The largest, of the particles and of the attention weights."""
    with torch.no_grad():
        y, weights = made(numbers["x"], surroundings)
    real = numbers["real"]
    off = (y - numbers["y"]).transpose(0, 1)[real], (weights.mean(1) - numbers["attention"])[real]
    return off[0].abs().max().item(), off[1].abs().max().item()


def test_a_decoder_layer_is_the_originals(numbers: dict[str, Tensor]) -> None:
    of_particles, of_weights = errors(layer(numbers), numbers, around(numbers))
    assert of_particles <= TOLERANCE and of_weights <= OF_WEIGHTS


def whole_steps(made: ParticleLayer, seen: Surroundings) -> Surroundings:
    made.steps = [1.0] * len(made.steps)
    return seen


def other_ffn_first(made: ParticleLayer, seen: Surroundings) -> Surroundings:
    made.flows[0], made.flows[3] = made.flows[3], made.flows[0]
    return seen


def other_norm_first(made: ParticleLayer, seen: Surroundings) -> Surroundings:
    made.norms[0], made.norms[3] = made.norms[3], made.norms[0]
    return seen


def padding_seen(made: ParticleLayer, seen: Surroundings) -> Surroundings:
    return seen._replace(memory=Memory(seen.memory.particles))


def future_seen(made: ParticleLayer, seen: Surroundings) -> Surroundings:
    return seen._replace(mask=Mask())


@pytest.mark.parametrize("slip", [whole_steps, other_ffn_first, other_norm_first, padding_seen, future_seen])
def test_the_numbers_tell_another_layer_apart(slip: Callable[..., Surroundings], numbers: dict[str, Tensor]) -> None:
    made = layer(numbers)
    assert errors(made, numbers, slip(made, around(numbers)))[0] > 1000 * TOLERANCE


def test_the_excerpt_is_that_of_the_reference_data(data: Path, golden: Path, numbers: dict[str, Tensor]) -> None:
    spec = importlib.util.spec_from_file_location("excerpt", data / "excerpt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    again = module.excerpt(golden)
    assert again.keys() == numbers.keys()
    assert [name for name, tensor in again.items() if not torch.equal(tensor, numbers[name])] == []
