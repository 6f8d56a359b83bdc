"""What goes wrong names the value, the rule and the remedy."""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from fairseq.data.indexed_dataset import MMapIndexedDataset
from macaron.user_dir.training import check_data

from macaron import MacaronModel


@pytest.fixture(scope="module")
def generate(fairseq_cli, plugin, tiny_data_bin):
    """The output of a fairseq-generate that has to fail."""

    def run(checkpoint: Path, *flags: object, data: Path = tiny_data_bin, **options) -> str:
        arguments = [data, "--user-dir", plugin, "--path", checkpoint, "--cpu", "--beam", 1, *flags]
        return fairseq_cli("fairseq-generate", *arguments, cwd=checkpoint.parent, expect=1, **options).stdout

    return run


@pytest.fixture
def data(tiny_data_bin, tmp_path) -> Path:
    """A copy of the data to damage."""
    return Path(shutil.copytree(tiny_data_bin, tmp_path / "data-bin"))


def truncate(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_unknown_splitting(train, tiny_data_bin, batches, toy_task):
    with pytest.raises(ValueError, match=r"splitting='godunov' is unknown; choose one of strang, lie"):
        MacaronModel.build_model(Namespace(splitting="godunov"), toy_task())
    output = train(tiny_data_bin, *batches, "--splitting", "godunov", expect=2).output
    assert "argument --splitting: splitting='godunov' is unknown; choose one of strang, lie, or write its" in output


def test_widths_that_do_not_divide(train, tiny_data_bin, batches):
    flags = ["--encoder-embed-dim", 30, "--encoder-attention-heads", 4]
    output = train(tiny_data_bin, *batches, *flags, expect=1).output
    assert (
        "ValueError: --encoder-embed-dim 30 does not divide into --encoder-attention-heads 4; choose a width that "
        "is a multiple of the number of heads"
    ) in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_embed_dim": 30}, r"--decoder-embed-dim 30 does not divide into --decoder-attention-heads 4"),
        ({"encoder_ffn_embed_dim": 0}, r"--encoder-ffn-embed-dim 0 must be a positive number"),
        ({"decoder_attention_heads": -1}, r"--decoder-attention-heads -1 must be a positive number"),
        ({"activation_fn": "sine"}, r"activation='sine' is unknown; choose one of relu, gelu"),
        ({"dropout": 1.5}, r"dropout=1.5 is not a probability in \[0, 1\); 0 switches it off"),
    ],
)
def test_options_that_no_model_can_have(options, message, toy_task):
    sizes = {"encoder_embed_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    with pytest.raises(ValueError, match=message):
        MacaronModel.build_model(Namespace(**{**sizes, **options}), toy_task())


def test_missing_data_folder(train, batches, tmp_path):
    output = train(tmp_path / "nowhere", *batches, expect=1).output
    assert (
        f"FileNotFoundError: data folder '{tmp_path}/nowhere' does not exist; pass the --destdir that "
        "fairseq-preprocess wrote"
    ) in output


def test_a_truncated_data_file(data, train, trained, generate, batches):
    truncate(data / "test.de-en.en.bin")
    message = r"test\.de-en\.en\.bin has \d+ bytes, but its index describes \d+; .* run fairseq-preprocess again"
    assert re.search(message, train(data, *batches, expect=1).output)
    assert re.search(message, generate(trained.checkpoint, data=data))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9])
def test_a_truncated_index(data, keep):
    truncate(data / "train.de-en.de.idx", keep)
    message = r"train\.de-en\.de\.idx is truncated or corrupt; run fairseq-preprocess again"
    with pytest.raises(ValueError, match=message):
        check_data(str(data))


HEADER = 9 + 8 + 1 + 8  # magic, version, type of the numbers, how many lines


@pytest.mark.parametrize("where", ["type", "lines", "first size", "last size", "first pointer", "last pointer"])
@pytest.mark.parametrize("bit", [0, 2, 4])
def test_a_flipped_bit_in_an_index(data, where, bit):
    path = data / "train.de-en.de.idx"
    content = bytearray(path.read_bytes())
    lines = int.from_bytes(content[18:26], "little")
    offsets = {"type": 17, "lines": 18, "first size": HEADER, "last size": HEADER + 4 * (lines - 1)}
    offsets |= {"first pointer": HEADER + 4 * lines, "last pointer": HEADER + 4 * lines + 8 * (lines - 1)}
    content[offsets[where]] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run fairseq-preprocess again"):
        check_data(str(data))


def test_an_index_whose_sizes_were_exchanged(data):
    """Their sum, and so the length of the data, is what it was."""
    path = data / "train.de-en.de.idx"
    content = bytearray(path.read_bytes())
    sizes = np.frombuffer(content, np.int32, count=int.from_bytes(content[18:26], "little"), offset=HEADER)
    other = int(np.flatnonzero(sizes != sizes[0])[0])
    sizes[[0, other]] = sizes[[other, 0]]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated or corrupt; .* \(its pointers are not where its sizes put them\)"):
        check_data(str(data))


def test_numbers_of_another_kind(data):
    """As long as the right ones, but not whole."""
    path = data / "train.de-en.de.idx"
    index = MMapIndexedDataset.Index(str(path))
    sizes = index.sizes.copy()
    for number, code in ((np.int64, 5), (np.float64, 7)):
        with MMapIndexedDataset.Index.writer(str(path), number) as writer:
            writer.write(sizes)
        assert path.read_bytes()[17] in (code, 6)
        path.with_suffix(".bin").write_bytes(np.zeros(sizes.sum(), number).tobytes())
        if number is np.int64:
            check_data(str(data))
    with pytest.raises(ValueError, match="its numbers are no integers"):
        check_data(str(data))


def test_a_missing_data_file(data):
    (data / "valid.de-en.de.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid\.de-en\.de\.bin is missing beside its \.idx"):
        check_data(str(data))


def test_intact_data_passes(data):
    check_data(str(data))
    check_data(f"{data}:{data}")


def test_another_vocabulary(data, trained, generate):
    for language in ("de", "en"):
        with open(data / f"dict.{language}.txt", "a", encoding="utf-8") as file:
            file.write("".join(f"extra{i} 1\n" for i in range(8)))
    output = generate(trained.checkpoint, data=data)
    assert re.search(
        r"ValueError: the checkpoint was trained with a source vocabulary of (\d+) symbols, but the dictionary in "
        r"the data folder has (?!\1)\d+; use the dict\.\*\.txt files that it was trained with",
        output,
    )


def test_a_checkpoint_of_another_architecture(trained, train, tiny_data_bin, batches):
    flags = ["--splitting", "lie", "--restore-file", trained.checkpoint]
    output = train(tiny_data_bin, *batches, *flags, expect=1).output
    assert "ValueError: the checkpoint holds another architecture than the model (" in output
    assert "not expected: encoder.layers.0.flows.0.fc1.weight" in output
    assert "build the model with the --arch, --splitting and sizes that the checkpoint was trained with" in output


def test_a_backend_that_cannot_run(trained, generate):
    output = generate(trained.checkpoint, env={"MACARON_BACKEND": "triton", "TRITON_INTERPRET": "0"})
    assert re.search(r"RuntimeError: \w+: backend 'triton' was requested but cannot run: .*; ", output)


def test_a_truncated_checkpoint(trained, train, generate, tiny_data_bin, batches, tmp_path):
    damaged = Path(shutil.copy(trained.checkpoint, tmp_path / "checkpoint_last.pt"))
    truncate(damaged)
    message = f"{damaged}: not a readable checkpoint; the file is truncated or corrupt, or no checkpoint at all"
    for output in (
        generate(damaged),
        train(tiny_data_bin, *batches, save_dir=tmp_path, expect=1).output,
    ):
        assert message in output
        assert "Copy or download it again, or resume from an earlier one" in output
