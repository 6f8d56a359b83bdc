"""Tiles against the whole, and the command on pictures of all kinds."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from macaron.vision import DnCNN
from recipes.common.errors import RecipeError
from recipes.denoise import models, restore
from recipes.denoise.__main__ import main
from recipes.denoise.models import Durr

CLOSE = 2e-6  # of numbers about 1, in float32: convolutions of other sizes add in another order


def seeded(model: torch.nn.Module) -> torch.nn.Module:
    """Parameters at random, so that a border that is wrong shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.05
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_a_policy_from_before_its_logarithm(tmp_path: Path) -> None:
    """It would stop elsewhere, in silence."""
    kind = {"kind": "durr", "width": 3, "policy_width": 3, "most": 3, "steps": 2, "task": "gaussian", "levels": [25.0]}
    models.save(tmp_path / "model.pt", kind, durr())
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    del state["model"]["policy.floor"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(RecipeError, match=r"is no model of recipes\.denoise, or was changed .*policy\.floor"):
        models.load(tmp_path)


def durr(policy_width: int = 3, most: int = 3) -> Durr:
    return seeded(Durr(3, policy_width, most, 2))


def never_stopping(model: Durr) -> Durr:
    model.policy.fc.weight.data.zero_()
    model.policy.fc.bias.data = torch.tensor([0.0, 1.0])
    return model


def plane(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((height, width), dtype=np.float32)


@pytest.mark.parametrize("size", [(97, 131), (96, 128), (65, 64), (8, 73), (1, 1), (1, 40), (2, 33), (3, 3)])
def test_tiles_give_what_the_whole_gives(size):
    image = plane(*size)
    model = never_stopping(durr())
    whole, steps = restore.restore_plane(model, image, tile=1024)
    tiled, again = restore.restore_plane(model, image, tile=32)
    assert whole.shape == size and steps == again == 3
    np.testing.assert_allclose(tiled, whole, atol=CLOSE)
    if min(size) > 1:
        y = torch.from_numpy(image)[None, None]
        x = y
        with torch.no_grad():
            for _ in range(3):
                x = x + model.unit(x, y)
        np.testing.assert_allclose(whole, x[0, 0].numpy(), atol=CLOSE)


@pytest.mark.parametrize("depth", [2, 9])
def test_tiles_of_a_baseline(depth):
    image, model = plane(70, 45), seeded(DnCNN(depth, 3))
    tiled, steps = restore.restore_plane(model, image, tile=16)
    assert steps == 1
    with torch.no_grad():
        np.testing.assert_allclose(tiled, model(torch.from_numpy(image)[None, None])[0, 0].numpy(), atol=CLOSE)


def test_margins_are_no_larger_than_they_must_be():
    """A change that is `radius` away is seen, one beyond is not; so tiles of another margin would differ."""
    unit = durr().unit
    x = torch.randn(1, 1, 128, 128)
    changed = x.clone()
    changed[..., 64, 64] += 1
    with torch.no_grad():
        seen = (unit(changed, x) - unit(x, x))[0, 0].abs().nonzero() - 64
    assert unit.radius - 1 <= seen.abs().max() <= unit.radius


@pytest.mark.parametrize("size", [(97, 131), (64, 64), (9, 200)])
def test_policy_sees_all_tiles(size):
    model, image = durr(), plane(*size)
    with torch.no_grad():
        whole = model.policy.features(torch.from_numpy(image)[None, None]).mean((2, 3))
        tiled = restore.Whole(image, 32, torch.device("cpu")).mean(model.policy, image)
    torch.testing.assert_close(tiled, whole, atol=CLOSE, rtol=1e-5)


def test_the_policy_stops():
    model = durr(most=4)
    model.policy.fc.weight.data.zero_()
    model.policy.fc.bias.data = torch.tensor([1.0, 0.0])
    image = plane(20, 21)
    restored, steps = restore.restore_plane(model, image)
    assert steps == 0 and np.array_equal(restored, image)
    assert restore.restore_plane(model, image, steps=3)[1] == 3
    assert restore.restore_plane(durr(policy_width=0), image)[1] == 2  # its own number, without a policy


def test_overflow_is_no_picture():
    model = never_stopping(durr())
    model.unit.conv8[0].weight.data *= 1e38
    with pytest.raises(restore.RecipeError, match=r"step [12] overflows"):
        restore.restore_plane(model, plane(16, 16))


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    kind = {"kind": "durr", "width": 3, "policy_width": 3, "most": 3, "steps": 2, "task": "gaussian", "levels": [25.0]}
    models.save(path, kind, never_stopping(durr()))
    return path


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (21, 13)) -> Path:
    numbers = np.random.default_rng(1).integers(0, 256, (size[1], size[0], len(Image.new(mode, (1, 1)).getbands())))
    numbers = numbers.astype(np.uint8)
    Image.fromarray(numbers[..., 0] if numbers.shape[2] == 1 else numbers, mode=None).save(path)
    return path


def test_pictures(model, tmp_path, capsys):
    one, two = picture(tmp_path / "one.png"), picture(tmp_path / "two.png", "RGBA", (1, 7))
    before = one.read_bytes()
    assert main(["restore", str(model), str(one), str(two), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "one.png: 21 × 13, 3 steps" in said and "two.png: 1 × 7, 3 steps" in said
    assert one.read_bytes() == before
    assert Image.open(tmp_path / "out" / "one.restored.png").size == (21, 13)
    with Image.open(tmp_path / "out" / "two.restored.png") as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image)[..., 3], np.asarray(Image.open(two))[..., 3])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.restored.png", "two.restored.png"]


def test_colour_by_luma_and_by_channels(model, tmp_path):
    """Luma: every channel changes by the same, up to clipping and rounding; channels: each as a gray image would."""
    path = picture(tmp_path / "a.png")
    rgb = np.asarray(Image.open(path)).astype(np.float32) / 255
    net, _ = models.load(model)
    for colour in ("luma", "channels"):
        out = tmp_path / colour
        assert main(["restore", str(model), str(path), "--out", str(out), "--colour", colour]) == 0
        got = np.asarray(Image.open(out / "a.restored.png")).astype(np.float32)
        if colour == "luma":
            y = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
            expected = rgb + (restore.restore_plane(net, y)[0] - y)[..., None]
        else:
            expected = np.stack([restore.restore_plane(net, rgb[..., i])[0] for i in range(3)], -1)
        np.testing.assert_allclose(got, expected.clip(0, 1) * 255, atol=0.5 + 1e-3)  # rounded to 8 bits


def test_bad_ones_are_named_and_the_rest_is_done(model, tmp_path, capsys):
    good, bad = picture(tmp_path / "good.png", "L"), tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    out = tmp_path / "out"
    files = [str(bad), str(tmp_path / "none.jpg"), str(good)]
    assert main(["restore", str(model), *files, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "bad.png: is damaged" in said.err and "none.jpg: no such file" in said.err and "2 of 3" in said.err
    assert [path.name for path in out.iterdir()] == ["good.restored.png"]


def test_nothing_is_overwritten(model, tmp_path, capsys):
    one = picture(tmp_path / "a.png", "L")
    (tmp_path / "other").mkdir()
    two = picture(tmp_path / "other" / "a.png", "RGB")
    out = tmp_path / "out"
    assert main(["restore", str(model), str(one), str(two), "--out", str(out)]) == 1
    assert "is the result of another picture" in capsys.readouterr().err
    content = (out / "a.restored.png").read_bytes()
    assert Image.open(out / "a.restored.png").mode == "L"
    assert main(["restore", str(model), str(two), "--out", str(out)]) == 1
    assert "exists; give another --out" in capsys.readouterr().err
    assert main(["restore", str(model), str(two), "--out", str(out), "--skip"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (out / "a.restored.png").read_bytes() == content


def test_a_result_that_appears_meanwhile_stays(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"another's")
    with pytest.raises(restore.RecipeError, match="was made by another"):
        restore.write_new(path, b"ours")
    assert path.read_bytes() == b"another's" and list(tmp_path.iterdir()) == [path]


def test_a_disk_without_links_that_is_full_keeps_no_half_of_a_picture(tmp_path, monkeypatch):
    def no_links(*names):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(restore.os, "link", no_links)
    restore.write_new(tmp_path / "a.png", b"ours")
    assert (tmp_path / "a.png").read_bytes() == b"ours"
    with pytest.raises(restore.RecipeError, match="was made by another"):
        restore.write_new(tmp_path / "a.png", b"again")
    with pytest.raises(OSError, match="No space left"):  # /dev/full is a disk that is
        restore.write_without_links(Full(tmp_path / "b.png"), b"ours")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


class Full(type(Path())):
    """A path whose file is on a full disk."""

    def open(self, mode="r"):
        super().open(mode).close()
        return open("/dev/full", "wb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "12"], "--tile 12: must be a multiple of 8"),
        (["--steps", "4"], "--steps 4: must lie between 1 and 3"),
        (["--threads", "0"], "--threads 0"),
        (["--device", "tpu"], "--device tpu"),
        (["--device", "cuda:99"], "torch finds no such GPU"),
    ],
)
def test_options_that_are_refused(model, tmp_path, capsys, options, message):
    assert main(["restore", str(model), str(picture(tmp_path / "a.png")), "--out", str(tmp_path / "o"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_first_seed_of_a_folder_is_the_least(model, tmp_path):
    for seed in (10, 2):
        folder = tmp_path / "run" / f"seed-{seed}"
        folder.mkdir(parents=True)
        kind = {"kind": "durr", "width": 3, "policy_width": 3, "most": 3, "steps": 2, "seed": seed}
        models.save(folder / "model.pt", kind, durr())
    assert models.load(tmp_path / "run")[1]["seed"] == 2


def test_what_is_no_model(model, data_dir, tmp_path, capsys):
    image = picture(tmp_path / "a.png")
    state = models.checkpoint.load(model)
    kinds = {
        "no kind": {"model": state["model"]},
        "another size": state | {"macaron_denoise": state["macaron_denoise"] | {"width": 4}},
        "huge": state | {"macaron_denoise": state["macaron_denoise"] | {"width": 10**9}},
        "another kind": state | {"macaron_denoise": {"kind": "dncnn", "depth": 3, "width": 3, "bias": 1}},
        "no steps": state | {"macaron_denoise": state["macaron_denoise"] | {"steps": 0}},
        "NaN": state | {"model": state["model"] | {"unit.conv8.0.bias": torch.tensor([float("nan")])}},
    }
    for content in kinds.values():
        models.checkpoint.save(content, model)
        assert main(["restore", str(model), str(image), "--out", str(tmp_path / "o")]) == 1
        assert "model.pt: " in capsys.readouterr().err
    others = ((image, "not a readable checkpoint"), (tmp_path / "x", "x does not exist"), (data_dir, "holds no model"))
    for path, message in others:
        assert main(["restore", str(path), str(image), "--out", str(tmp_path / "o")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
