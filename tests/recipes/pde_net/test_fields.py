"""Files of users: what is read, and what is refused by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.pde_net import fields
from recipes.pde_net.settings import settings_for


def test_what_is_read(content, written):
    path = written(content)
    found = fields.read(path)
    assert found.components == ("c",)
    assert found.dx == pytest.approx(2 * np.pi / 16) and found.dt == pytest.approx(0.02)
    assert found.values.dtype == torch.float64 and found.values.shape == (4, 8, 1, 16, 16)
    assert np.array_equal(found.values.numpy(), content["fields"])


def test_single_sample_and_single_precision(content, written):
    content |= {"fields": content["fields"][0].astype(np.float32), "time": content["time"].astype(np.float32) + 100}
    found = fields.read(written(content))
    assert found.values.shape == (1, 8, 1, 16, 16) and found.dt == pytest.approx(0.02, rel=1e-3)


def test_components_in_the_order_asked_for(content, written):
    content |= {
        "fields": np.concatenate([content["fields"], 2 * content["fields"]], 2),
        "components": np.array(["c", "d"]),
    }
    path = written(content)
    found = fields.read(path, ["d", "c"])
    assert found.components == ("d", "c")
    torch.testing.assert_close(found.values[:, :, 0], 2 * found.values[:, :, 1])
    for asked, message in ((["c", "w"], "w not in"), (["c", "c"], "each once")):
        with pytest.raises(RecipeError, match=message):
            fields.read(path, asked)


def spoiled(content, name):
    """{what is wrong: the file's arrays with that}"""
    arrays = dict(content)
    if name == "nan":
        arrays["fields"] = arrays["fields"].copy()
        arrays["fields"][1, 2, 0, 3, 4] = np.nan
    elif name == "uneven time":
        arrays["time"] = arrays["time"] + np.eye(8)[3] * 0.004
    elif name == "uneven x":
        arrays["x"] = arrays["x"] ** 1.1
    elif name == "falling y":
        arrays["y"] = arrays["y"][::-1]
    elif name == "dx and dy":
        arrays["y"] = 2 * arrays["y"]
    elif name == "time with nan":
        arrays["time"] = np.where(np.arange(8) == 2, np.nan, arrays["time"])
    elif name == "order of axes":
        arrays["fields"] = arrays["fields"].swapaxes(0, 1)
    elif name == "complex":
        arrays["fields"] = arrays["fields"] + 0j
    elif name == "object":
        arrays["components"] = np.array(["c"], dtype=object)
    elif name == "name with digit":
        arrays["components"] = np.array(["c1"])
    elif name == "reserved name":
        arrays["components"] = np.array(["x"])
    elif name == "no grid":
        del arrays["x"]
    elif name == "closed period":
        arrays["fields"] = np.concatenate([arrays["fields"], arrays["fields"][..., :1]], -1)
        arrays["x"] = np.arange(17) * arrays["x"][1]
    elif name == "constant":
        arrays["fields"] = np.ones_like(arrays["fields"])
    elif name == "one time":
        arrays |= {"time": arrays["time"][:1], "fields": arrays["fields"][:, :1]}
    return arrays


@pytest.mark.parametrize(
    "name, message",
    [
        ("nan", "1 values that are NaN or infinite, the first in sample 1, time 2, component c, y 3, x 4"),
        ("uneven time", "'time' is not uniform: from point 2 to 3"),
        ("uneven x", "'x' is not uniform"),
        ("falling y", "'y' does not rise"),
        ("dx and dy", "one and the same"),
        ("time with nan", "'time' holds NaN"),
        ("order of axes", "has the shape (8, 4, 1, 16, 16)"),
        ("complex", "complex128"),
        ("object", "not objects"),
        ("name with digit", "'c1'"),
        ("reserved name", "'x'"),
        ("no grid", "lacks x"),
        ("closed period", "along x the last points of 'fields' repeat the first"),
        ("constant", "component c has one and the same value"),
        ("one time", "two or more real numbers"),
    ],
)
def test_what_is_refused(content, written, name, message):
    with pytest.raises(RecipeError) as error:
        fields.read(written(spoiled(content, name)))
    assert message in str(error.value)


def test_files_that_are_no_npz(content, written, tmp_path: Path):
    whole = written(content).read_bytes()
    for text, damaged in {
        "no such file": None,
        "cannot be read as npz": b"",
        "not a zip": b"hello",
        "not a zip file": whole[: len(whole) // 2],
        "Bad CRC": whole[:2000] + b"\xff" * 8 + whole[2008:],
    }.items():
        path = tmp_path / "damaged.npz"
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(RecipeError) as error:
            fields.read(path)
        assert text in str(error.value) and "--data" in str(error.value)


def test_what_unpacks_to_too_much_is_not_unpacked(content, written, monkeypatch):
    monkeypatch.setattr(fields, "LARGEST", 10_000)
    with pytest.raises(RecipeError, match="more than 10,000"):
        fields.read(written(content))


def test_a_file_that_claims_little_and_holds_much(tmp_path: Path):
    """The header says a shape that the bytes do not have."""
    path = tmp_path / "lies.npz"
    header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }"
    with zipfile.ZipFile(path, "w") as file:
        for key in fields.KEYS:
            file.writestr(f"{key}.npy", header.ljust(127) + b"\n")
    with pytest.raises(RecipeError, match="cannot be read as npz"):
        fields.read(path)


def test_split_of_samples_and_of_times(content, written):
    settings = settings_for("data", blocks=(0, 2), samples=3)
    found = fields.read(written(content))
    parts = fields.split(found, settings)
    assert torch.equal(parts.training, found.values[:3]) and torch.equal(parts.test, found.values[3:])

    alone = fields.read(written(content | {"fields": content["fields"][:1]}))
    parts = fields.split(alone, settings)
    assert torch.equal(parts.training, alone.values[:, :6]) and torch.equal(parts.test, alone.values[:, 6:])


def test_too_little_to_learn_from_is_named(content, written):
    found = fields.read(written(content))
    with pytest.raises(RecipeError, match=r"8 times are left.*a block of 9 steps takes 10"):
        fields.split(found, settings_for("data", blocks=(0, 9)))
    with pytest.raises(RecipeError, match=r"holds 12 stretches of 4 steps.*--samples 12 or fewer"):
        fields.split(found, settings_for("data", blocks=(0, 4), samples=13))


def test_windows_are_stretches_of_the_data_new_for_each_block(content, written):
    settings = settings_for("data", blocks=(0, 2), samples=5)
    training = fields.split(fields.read(written(content)), settings).training
    first, again, other, longer = (fields.windows(training, settings, 1, block) for block in (1, 1, 0, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (2, 5, 1, 16, 16) and longer.shape == (3, 5, 1, 16, 16)
    for stretch in longer.unbind(1):
        places = [(s, t) for s in range(3) for t in range(6) if torch.equal(training[s, t : t + 3], stretch)]
        assert len(places) == 1
    noisy = fields.windows(training, settings_for("data", samples=5, noise=0.1), 1, 1)
    ratio = (noisy - first).std() / first[0].std((-2, -1)).square().mean().sqrt()
    assert ratio.item() == pytest.approx(0.1, rel=0.1)  # 1,280 numbers: 3 % of sampling error


def many(content, fields):
    return content | {"fields": fields}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: many(c, c["fields"] * 1e200), "magnitudes up to"),
        (lambda c: many(c, c["fields"] * 1e-200), "magnitudes up to"),
        (lambda c: many(c, np.broadcast_to(c["fields"][..., :1, :], c["fields"].shape)), "do not vary along y"),
        (lambda c: many(c, np.broadcast_to(c["fields"][..., :1], c["fields"].shape)), "do not vary along x"),
        (lambda c: c | {"time": (c["time"] + 1e5).astype(np.float32)}, "save more digits"),
        (lambda c: c | {"time": 1 + 1e-9 * np.array([0, 1, 2, 3, 4, 5, 6, 17])}, "'time' is not uniform"),
        (lambda c: c | {"time": c["time"] * 1e300}, "'time' goes on by"),
        (lambda c: c | {"components": np.array([b"c"])}, "as strings"),
    ],
)
def test_what_would_be_learned_wrongly_is_refused(content, written, change, message):
    with pytest.raises(RecipeError) as error:
        fields.read(written(change(content)))
    assert message in str(error.value)


def test_a_pulse_far_from_the_rim_is_no_closed_period(content, written):
    x = content["x"] - np.pi
    pulse = np.exp(-12 * (x[:, None] ** 2 + x**2))
    decay = np.exp(-content["time"])[None, :, None, None, None] * np.arange(1.0, 5.0)[:, None, None, None, None]
    assert fields.read(written(content | {"fields": decay * pulse})).values.shape == (4, 8, 1, 16, 16)


def test_parts_without_anything_to_learn_or_to_compare_are_named(content, written):
    settings, values = settings_for("data", blocks=(0, 1), samples=2), content["fields"]
    for changed, message in (
        (np.concatenate([np.ones_like(values[:3]), values[3:]]), "one and the same value in what is learned from"),
        (np.concatenate([values[:3], 0 * values[3:]]), "all components are 0"),
        (np.broadcast_to(values[:, :1], values.shape), "do not change over time"),
    ):
        found = fields.read(written(content | {"fields": changed}))
        with pytest.raises(RecipeError, match=message):
            fields.split(found, settings)


def test_zips_of_other_kinds(content, written, tmp_path: Path):
    path = tmp_path / "packed.npz"
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(written(content)) as plain, zipfile.ZipFile(path, "w", method) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        assert np.array_equal(fields.read(path).values.numpy(), content["fields"])
        whole = path.read_bytes()
        path.write_bytes(whole[:3000] + b"\x55" * 200 + whole[3200:])
        with pytest.raises(RecipeError, match="cannot be read as npz"):
            fields.read(path)

    encrypted = bytearray(written(content).read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := encrypted.find(signature, place + 1)) >= 0:
            encrypted[place + flags] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(RecipeError, match="encrypted"):
        fields.read(path)

    header = b"\x93NUMPY\x01\x00\xf6\x01" + (b"(" * 400).ljust(501) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        for key in fields.KEYS:
            file.writestr(f"{key}.npy", header)
    with pytest.raises(RecipeError, match="cannot be read as npz"):
        fields.read(path)
