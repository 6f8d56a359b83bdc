"""Cut golden_layer.safetensors from the original's reference data: `python tests/data/excerpt.py ../shared/golden`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from macaron.checkpoint import load

OUT = Path(__file__).with_name("golden_layer.safetensors")
LAYER = "decoder.layers.1."
SENTENCES = [0, 4]  # of the batch's six: one has no padding in its source, the other none in its target


def excerpt(golden: Path) -> dict[str, Tensor]:
    """The second decoder layer of the IWSLT model: its parameters, and what went in and came out of it."""
    folder = golden / "translation" / "iwslt_macaron_v2"
    model = load(folder / "checkpoint.pt")["model"]
    outputs, batch = load_file(folder / "outputs.safetensors"), load_file(folder / "batch.safetensors")
    numbers = {name: tensor for name, tensor in model.items() if name.startswith(LAYER)}
    numbers |= {
        "x": outputs["decoder_inner_state_1"][:, SENTENCES],
        "y": outputs["decoder_inner_state_2"][:, SENTENCES],
        "memory": outputs["encoder_out"][:, SENTENCES],
        "memory_padding_mask": outputs["encoder_padding_mask"][SENTENCES],
        "attention": outputs["decoder_attn"][SENTENCES],
        "real": batch["target"][SENTENCES] != 1,
    }
    return {name: tensor.contiguous() for name, tensor in numbers.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("golden", type=Path, help="folder of the reference data")
    save_file(excerpt(parser.parse_args().golden), OUT)
