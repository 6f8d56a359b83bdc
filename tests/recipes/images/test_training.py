"""One run: batches, schedules, what each adversary leaves in the weights, and how a run is gone on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from macaron.adversary import Attack, Split, perturb, train
from macaron.vision import PreActResNet
from recipes.common.errors import RecipeError
from recipes.images import data, models, training
from recipes.images.settings import Adversary, ImageSettings, Variant, epochs_of, settings_for
from recipes.images.training import Training

from .conftest import made

NATURAL = Adversary("natural")


def images(dataset: str = "mnist", train: int = 40, test: int = 20, size: int = 0) -> data.ImageSet:
    channels, side = (1, 28) if dataset == "mnist" else (3, 32)
    splits = []
    for count, seed in ((train, 1), (test, 2)):
        x, y = (torch.tensor(array) for array in made(count, channels, side, seed))
        splits.append(data.Split(data.averaged(x, size or side), y.long()))
    return data.ImageSet(dataset, "made", *splits, there=train)


def settings(dataset: str = "mnist", **more) -> ImageSettings:
    small = {"channels_scale": 1 / 8} if more.get("model") != "resnet" else {"size": 16}
    given = {"dataset": dataset, "attack_steps": 2, "batch": 16, "lr": 0.1, "epochs": epochs_of(["2"])} | small | more
    return settings_for(given, 40, 20)


def begun(adversary: str = "natural", seed: int = 1, **more) -> Training:
    return Training(settings(**more), None, Adversary.parse(adversary), seed, images())


def resnets(variant: str, seed: int = 1, **more) -> Training:
    chosen = settings("cifar10", model="resnet", depth=20, **more)
    return Training(chosen, Variant.parse(variant), NATURAL, seed, images("cifar10", size=16))


# --- networks -------------------------------------------------------------------------------------------------


def test_variants_of_a_seed_begin_alike() -> None:
    plain, lm, dropped = (resnets(v).net for v in ("resnet", "lm_resnet", "lm_resnet,stochastic_depth=0.5"))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, lm.state_dict()[name]) and torch.equal(value, dropped.state_dict()[name])
    ks = [k for stage in lm.k for k in stage]
    assert len(ks) == 6 and all(-0.1 < k <= 0 for k in ks) and len(set(ks)) == 6
    assert not torch.equal(plain.net.conv1.weight, resnets("resnet", 2).net.net.conv1.weight)


def test_k_has_no_weight_decay_and_the_first_layer_its_own_group() -> None:
    run = resnets("lm_resnet")
    parts = {group["part"]: group for group in run.optimizer.param_groups}
    assert parts["k"]["weight_decay"] == 0.0 and sum(p.numel() for p in parts["k"]["params"]) == 6
    assert [tuple(p.shape) for p in parts["first"]["params"]] == [(16, 3, 3, 3)]
    assert sum(p.numel() for group in parts.values() for p in group["params"]) == models.parameters(run.net.net)


@pytest.mark.parametrize("depth, stored", [(20, 273_475), (56, 856_789), (164, 1_703_760)])
@pytest.mark.parametrize("head", ["resnet", "lm_resnet"])
def test_what_the_published_code_stores(depth: int, stored: int, head: str) -> None:
    net = models.resnet(depth, 10, 3, models.scheme_of(Variant.parse(head)))
    assert models.stored_by_the_original(net) == stored


def test_networks_take_pixels() -> None:
    run = resnets("resnet")
    run.net.eval()
    x = torch.rand(2, 3, 16, 16)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in data.NORMALISATION["cifar10"])
    assert isinstance(run.net.net, PreActResNet)
    torch.testing.assert_close(run.net(x), run.net.net((x - mean) / deviation))
    small = begun().net.eval()
    nn.init.normal_(small.net.fc.weight)
    digits = torch.rand(2, 1, 28, 28)
    assert torch.equal(small(digits), small.net(digits))  # robust training does not normalise


# --- batches --------------------------------------------------------------------------------------------------


def test_batches_are_equal_for_all_runs_of_a_seed_and_new_in_each_epoch() -> None:
    first, second, other = begun("natural"), begun("yopo-2-2"), begun(seed=2)
    seen = []
    for number in range(6):
        x, y = first.batch(number)
        assert torch.equal(x, second.batch(number)[0]) and torch.equal(y, second.batch(number)[1])
        seen.append(y)
    assert [len(y) for y in seen] == [16, 16, 8] * 2
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    assert not torch.equal(*epochs) and torch.equal(epochs[0].sort()[0], epochs[1].sort()[0])
    assert not torch.equal(first.batch(0)[0], other.batch(0)[0])


@pytest.mark.parametrize("kind, mode", [("crop", "constant"), ("crop_reflect", "reflect")])
def test_crops_and_mirrors(kind: str, mode: str) -> None:
    x = torch.rand(64, 3, 16, 16)
    found = training.augmented(x, kind, training.generator("a"))
    padded, seen = F.pad(x, (2,) * 4, mode=mode), set()
    for i, image in enumerate(found):
        places = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(image, _crop(padded[i], top, left, mirrored))
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {place[2] for place in seen} == {False, True} and {place[0] for place in seen} == set(range(5))
    assert {place[1] for place in seen} == set(range(5))
    assert torch.equal(found, training.augmented(x, kind, training.generator("a")))
    assert not torch.equal(found, training.augmented(x, kind, training.generator("b")))
    assert training.augmented(x, "none", training.generator("a")) is x


def _crop(padded: torch.Tensor, top: int, left: int, mirrored: bool) -> torch.Tensor:
    crop = padded[:, top : top + 16, left : left + 16]
    return crop.flip(2) if mirrored else crop


# --- updates --------------------------------------------------------------------------------------------------


def by_hand(run: Training, gradients) -> list[torch.Tensor]:
    """The weights after one update from the gradients that `gradients(split, x, label)` leaves."""
    x, label = run.batch(0)
    net, rate = run.net, run.schedule.rates(0)[0]
    net.train()
    gradients(Split.at(net.first, lambda inputs: F.cross_entropy(net(inputs), label)), x, label)
    decay = run.schedule.weight_decay
    return [p.detach() - rate * (p.grad + decay * p.detach()) for p in net.parameters()]


def attack(method: str, **more) -> Attack:
    common = {"step_size": 0.01, "norm": "linf-sign", "radius": 0.3, "init": 0.3, "bounds": (0.0, 1.0)}
    return Attack(method, **(common | more))


def natural(run: Training):
    return lambda split, x, label: F.cross_entropy(run.net(x), label).backward()


def pgd(run: Training):
    def gradients(split, x, label) -> None:
        run.net.eval()
        moved = x + perturb(split, x, attack("pgd", steps=3))
        run.net.train()
        F.cross_entropy(run.net(moved), label).backward()
        F.cross_entropy(run.net(x), label).backward()

    return gradients


def engine(method: str, **more):
    return lambda run: lambda split, x, label: train(split, x, attack(method, **more))


def free(run: Training):
    """One pass at x, its whole gradient."""
    return lambda split, x, label: F.cross_entropy(run.net(x), label).backward()


@pytest.mark.parametrize(
    "name, how",
    [
        ("natural", natural),
        ("pgd-3", pgd),
        ("madry-3", engine("pgd", steps=3)),
        ("yopo-2-3", engine("yopo", steps=2, inner_steps=3)),
        ("yopo-full-2-3", engine("yopo-full", steps=2, inner_steps=3)),
        ("yopo-hamiltonian-2-3", engine("yopo-hamiltonian", steps=2, inner_steps=3)),
        ("freeat-1", free),
    ],
)
def test_an_update_is_what_its_name_says(name: str, how) -> None:
    runs = [begun(name), begun(name)]
    for run in runs:
        nn.init.normal_(run.net.net.fc.weight)  # at 0 the adversary does not move
    runs[1].net.load_state_dict(runs[0].net.state_dict())
    torch.manual_seed(5)
    expected = by_hand(runs[0], how(runs[0]))
    torch.manual_seed(5)
    runs[1].update()
    for found, want in zip(runs[1].net.parameters(), expected, strict=True):
        torch.testing.assert_close(found, want, atol=1e-6, rtol=1e-5)  # SGD sums in another order
    assert runs[1].schedule.lr == pytest.approx(0.1 / (2 if "yopo" in name else 1))


def test_freeat_moves_on_with_each_update() -> None:
    run = begun("freeat-4")
    nn.init.normal_(run.net.net.fc.weight)
    before = run.batch(0)[0]
    run.update()
    assert run.counted == 4 and run.delta is not None and run.batches == 1
    assert run.delta.abs().max() == pytest.approx(0.3) and (before + run.delta).min() >= 0
    run.update(), run.update()  # the last batch of the epoch is smaller
    assert len(run.delta) == 16


def test_the_radius_grows() -> None:
    assert training.attack_of(settings(), Adversary("pgd", 3), 0.25).radius == pytest.approx(0.075)
    run, seen = begun("madry-1", ramp=4), []
    real = training.attack_of
    training_attack = lambda *a: seen.append(a[2]) or real(*a)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "attack_of", training_attack)
        for _ in range(6):
            run.update()
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_rates_follow_the_milestones() -> None:
    run = begun(milestones=[1])
    rates = []
    for _ in range(6):
        run.update()
        rates.append(run.optimizer.param_groups[1]["lr"])
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3)


# --- evaluation -----------------------------------------------------------------------------------------------


def test_evaluation_is_of_the_network_at_rest_and_leaves_no_trace() -> None:
    run = begun()
    nn.init.normal_(run.net.net.fc.weight)
    before = torch.get_rng_state(), {k: v.clone() for k, v in run.net.state_dict().items()}
    found = run.evaluate()
    assert torch.equal(before[0], torch.get_rng_state()) and run.net.training
    assert all(torch.equal(v, run.net.state_dict()[k]) for k, v in before[1].items())
    assert all(p.grad is None for p in run.net.parameters())
    x, label = run.test_split.batch(torch.arange(20))
    run.net.eval()
    assert found["accuracy"] == 100 * int((run.net(x).argmax(1) == label).sum()) / 20
    assert run.evaluate() == found and found["robust"] <= found["accuracy"]


def test_so_many_images_are_attacked() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EVALUATION_BATCH", 8)
        seen: list[int] = []
        run = begun(attacked_images=11)
        patch.setattr(run, "_scored", lambda x, label, a, start: seen.append(len(x)) or torch.zeros_like(x))
        found = run.evaluate()
    assert seen == [8, 3]
    label = run.test_split.labels[:11]
    assert found["robust"] == 100 * float((label == 0).sum()) / 11  # a network of zeros answers 0


# --- interruptions --------------------------------------------------------------------------------------------


def finished(run: Training, path: Path) -> dict[str, torch.Tensor]:
    run.run(path, 0.0, lambda line, units: None)
    return run.net.state_dict()


def same(first: Training, second: Training) -> None:
    for name, value in first.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    timeless = [
        [{k: v for k, v in entry.items() if "seconds" not in k} for entry in run.history] for run in (first, second)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 3  # after two batches each


def once_killed(make, tmp_path: Path, at: int) -> None:
    whole, cut = make(), make()
    finished(whole, tmp_path / "whole.pt")
    cut = make()
    real, count = cut.update, 0

    def update() -> None:
        nonlocal count
        if count == at:
            raise KeyboardInterrupt
        count += 1
        real()

    cut.update = update  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        finished(cut, tmp_path / "cut.pt")
    torch.manual_seed(99)  # another process
    again = make()
    again.load(tmp_path / "cut.pt")
    assert again.batches == at
    finished(again, tmp_path / "cut.pt")
    same(whole, again)


@pytest.mark.parametrize("name", ["natural", "pgd-2", "yopo-2-2", "freeat-2"])
def test_a_run_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    epochs = epochs_of(["4" if name == "freeat-2" else "2"])
    once_killed(lambda: begun(name, evaluate_every=0.5, epochs=epochs, ramp=4), tmp_path, at=4)


def test_stochastic_depth_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    once_killed(lambda: resnets("lm_resnet,stochastic_depth=0.5", evaluate_every=0.5, attack_steps=0), tmp_path, at=2)


def test_a_checkpoint_that_is_damaged_or_of_another_network(tmp_path: Path) -> None:
    run, path = begun(), tmp_path / "last.pt"
    run.update()
    run.save(path)
    with pytest.raises(RecipeError, match=r"cannot be gone on from .*delete it"):
        begun(channels_scale=1 / 4).load(path)
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    with pytest.raises(RecipeError, match=r"last.pt: cannot be gone on from"):
        begun().load(path)
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="1 batches are done of 0"):
        short = begun()
        short.total = 0
        short.load(path)


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    run = begun(lr=1e30)
    with pytest.raises(RecipeError, match=r"diverged\. Take a smaller --lr"):
        finished(run, tmp_path / "last.pt")
    assert not (tmp_path / "last.pt").exists() or run.batches


def test_settings_are_all_in_the_record() -> None:
    from recipes.images.settings import as_record

    assert {*as_record(settings()), "epochs"} == {field.name for field in dataclasses.fields(ImageSettings)}
