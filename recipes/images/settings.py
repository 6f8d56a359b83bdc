"""What a run is: one frozen record, every number of it in the report. This file does not import torch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..common.device import check_threads
from ..common.errors import RecipeError

DATASETS = ("mnist", "cifar10", "cifar100")
MODELS = ("resnet", "small_cnn", "preact18", "wrn34")
DEPTHS = (20, 32, 44, 56, 110, 164)
CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}
SIDE = {"mnist": 28, "cifar10": 32, "cifar100": 32}  # pixels
CHANNELS = {"mnist": 1, "cifar10": 3, "cifar100": 3}
PUBLISHED_IMAGES = {"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}  # of the training set
AUGMENTATIONS = ("none", "crop", "crop_reflect")
PRECISIONS = ("float32", "bf16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class ImageSettings:
    """The settings that a result depends on, but for variant, adversary and seed, which make the runs of a folder.

    Fields that are None are the preset's, which may differ between adversaries, see `schedule`.
    """

    dataset: str
    model: str
    depth: int | None  # of the model resnet
    channels_scale: float  # times the channels of the other models
    size: int  # height and width of the images
    train_images: int  # the first so many
    test_images: int
    attacked_images: int  # test images under attack, the first so many
    attack_steps: int  # of the PGD that scores; 0: none
    epsilon: float  # radius of every adversary, L∞, in units of pixels from 0 to 1
    step_size: float  # of every adversary
    ramp: int  # updates over which the radius grows linearly
    evaluate_every: float  # epochs
    augment: str
    batch: int | None = None
    epochs: tuple[tuple[str, int], ...] = ()  # (an adversary's name, or "" for all others; how many)
    lr: float | None = None
    weight_decay: float | None = None
    milestones: tuple[int, ...] | None = None
    precision: str = "float32"
    channels_last: bool = False
    device: str = "cpu"
    threads: int = 1
    images: str = ""  # sha256 of the images and labels that are used

    def check(self) -> None:
        """
        Raises:
            RecipeError: a value that no run can have.
        """
        for name, known in (
            ("dataset", DATASETS), ("model", MODELS), ("augment", AUGMENTATIONS), ("precision", PRECISIONS),
            ("device", DEVICES),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in known:
                raise RecipeError(f"--{name} {value}: is unknown; choose one of {', '.join(known)}")
        if (self.depth is not None) != (self.model == "resnet"):
            raise RecipeError(f"--depth {self.depth}: goes with --model resnet, not {self.model}; leave it out")
        if self.depth is not None and self.depth not in DEPTHS:
            raise RecipeError(f"--depth {self.depth}: was not published; choose one of {', '.join(map(str, DEPTHS))}")
        if self.model == "resnet" and self.channels_scale != 1:
            raise RecipeError(
                f"--channels-scale {self.channels_scale:g}: is for small_cnn, preact18 and wrn34; make a resnet "
                f"smaller by --depth or --size"
            )
        side = SIDE[self.dataset]
        if self.size not in (side, side // 2):
            raise RecipeError(
                f"--size {self.size}: {self.dataset} has {side} x {side} pixels, and blocks of 2 x 2 can be averaged: "
                f"give {side} or {side // 2}"
            )
        for adversary, count in self.epochs:
            if count < 1:
                raise RecipeError(f"--epochs {adversary}{'=' if adversary else ''}{count}: must be at least 1")
        check_threads(self.threads)
        least = {"train_images": 1, "test_images": 1, "attacked_images": 1, "attack_steps": 0, "ramp": 0, "batch": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise RecipeError(f"--{flag(name)} {value}: must be at least {low}")
        for name in ("epsilon", "step_size", "evaluate_every", "lr", "channels_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RecipeError(f"--{flag(name)} {value}: must be a positive, finite number")
        for name in ("epsilon", "step_size"):
            if getattr(self, name) > 1:
                raise RecipeError(
                    f"--{flag(name)} {getattr(self, name):g}: is in units of pixels between 0 and 1, so at most 1; "
                    f"write 8/255 for 8 of 255 levels"
                )
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise RecipeError(f"--weight-decay {self.weight_decay}: must be a finite number, 0 or more")
        if self.milestones is not None and sorted(set(self.milestones)) != [m for m in self.milestones if m > 0]:
            raise RecipeError(f"--milestones {' '.join(map(str, self.milestones))}: must be positive and rise")
        if self.precision == "bf16" and self.device == "cpu":
            raise RecipeError("--precision bf16: is for --device cuda; on a CPU take float32")

    @property
    def normalised(self) -> bool:
        """Whether the network subtracts a mean and divides by a deviation first. Robust training never does."""
        return self.model == "resnet"


def flag(name: str) -> str:
    return name.replace("_", "-")


# --- the networks of a table ----------------------------------------------------------------------------------

OPTIONS: dict[str, type] = {
    "solver": str,
    "depth_rule": str,
    "dt": float,
    "multistep_init": str,
    "stochastic_depth": float,
    "stochastic_depth_schedule": str,
    "stochastic_depth_form": str,
}
HEADS: dict[str, dict[str, Any]] = {
    "resnet": {},
    "lm_resnet": {"depth_rule": "multistep", "multistep_init": "lm_resnet"},
}


@dataclass(frozen=True)
class Variant:
    """A network by what its depth is integrated with: resnet or lm_resnet, and after commas options of a scheme."""

    head: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, given: str) -> Variant:
        """ "lm_resnet,stochastic_depth=0.5". What the values mean together is judged by `models.scheme_of`.

        Raises:
            RecipeError: an unknown name, or one that is there twice.
        """
        head, *items = [part.strip() for part in given.split(",")]
        if head not in HEADS:
            raise RecipeError(
                f"--variants {given}: {head!r} is unknown; a variant begins with {' or '.join(HEADS)}, as in "
                f"lm_resnet,stochastic_depth=0.5"
            )
        found: dict[str, Any] = {}
        for item in items:
            name, sign, text = (part.strip() for part in item.partition("="))
            name = name.replace("-", "_")
            if not sign or name not in OPTIONS:
                raise RecipeError(
                    f"--variants {given}: {item!r} is not OPTION=VALUE with an option of {', '.join(OPTIONS)}"
                )
            if name in found:
                raise RecipeError(f"--variants {given}: {name} is there twice; give one value")
            try:
                found[name] = OPTIONS[name](text)
            except ValueError:
                raise RecipeError(f"--variants {given}: {name}={text!r} is no number") from None
        return cls(head, tuple((name, found[name]) for name in OPTIONS if name in found))

    @property
    def values(self) -> dict[str, Any]:
        """All options of the scheme that are not its defaults."""
        return HEADS[self.head] | dict(self.options)

    @property
    def name(self) -> str:
        words = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in self.options]
        return ",".join([self.head, *words])


# --- adversaries ----------------------------------------------------------------------------------------------

_ADVERSARY = re.compile(r"(natural)|(pgd|madry|freeat)-(\d{1,3})|(yopo|yopo-full|yopo-hamiltonian)-(\d{1,3})-(\d{1,3})")


@dataclass(frozen=True)
class Adversary:
    """How a batch is trained on.

    natural             the images as they are
    pgd-K               K steps in evaluation mode, then the loss at x + δ and the loss at x, as the authors of YOPO do
    madry-K             K steps in training mode, then the loss at x + δ alone (Madry et al. 2018, arXiv:1706.06083)
    freeat-m            m updates on a batch, each moves δ by ε, too (Shafahi et al. 2019, arXiv:1904.12843)
    yopo-m-n            m full passes, n steps on the first layer after each; the first layer's gradient counted twice
    yopo-full-m-n       … counted once, that of the full passes
    yopo-hamiltonian-m-n    … counted once, that of the Hamiltonian
    """

    kind: str
    steps: int = 1
    inner: int = 1

    @classmethod
    def parse(cls, given: str) -> Adversary:
        """
        Raises:
            RecipeError: another notation, or a number of steps of 0.
        """
        match = _ADVERSARY.fullmatch(given)
        if not match:
            raise RecipeError(
                f"--adversaries {given}: is unknown; write natural, pgd-K, madry-K, freeat-m, yopo-m-n, "
                f"yopo-full-m-n or yopo-hamiltonian-m-n with numbers, such as pgd-40 or yopo-5-10"
            )
        if match[1]:
            return cls("natural")
        kind, steps, inner = match[2] or match[4], int(match[3] or match[5]), int(match[6] or 1)
        if not steps or not inner:
            raise RecipeError(f"--adversaries {given}: numbers of steps must be at least 1")
        return cls(kind, steps, inner)

    @property
    def is_yopo(self) -> bool:
        return self.kind.startswith("yopo")

    @property
    def name(self) -> str:
        if self.kind == "natural":
            return self.kind
        return f"{self.kind}-{self.steps}" + (f"-{self.inner}" if self.is_yopo else "")

    @property
    def passes(self) -> int:
        """Forward and backward passes of the whole network for a batch."""
        extra = {"pgd": 2, "madry": 1}.get(self.kind, 0)
        return self.steps + extra


# --- schedules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum whose learning rate is divided by 10 at milestones.

    Fields:
        epochs: passes over the data, as they are loaded; FreeAT stays `replays` updates with each batch.
        lr: as SGD gets it, so already divided by m for YOPO.
        milestones: epochs, counted from 0, from whose beginning on the rate is a tenth of what it was.
        first_milestones: those of the first layer, which has an optimiser of its own in the authors' code.
        source: where it comes from.
    """

    epochs: int
    lr: float
    milestones: tuple[int, ...]
    first_milestones: tuple[int, ...]
    weight_decay: float
    batch: int
    source: str
    momentum: float = 0.9
    replays: int = 1

    def rates(self, epoch: int) -> tuple[float, float]:
        """(of the rest, of the first layer) in an epoch."""
        return (
            self.lr * 0.1 ** sum(m <= epoch for m in self.milestones),
            self.lr * 0.1 ** sum(m <= epoch for m in self.first_milestones),
        )

    def updates(self, images: int) -> int:
        """Batches of all epochs."""
        return self.epochs * math.ceil(images / self.batch)


_YOPO_CODE = "a1600012888/YOPO-You-Only-Propagate-Once @b8ae668"
_HE = "He et al. 2016 and Lu et al. 2018: the papers' recipe"
# (model, method) ↦ epochs, lr, milestones, first layer's milestones, weight decay, batch, source. The authors' loops
# for YOPO count one epoch more than they say.
_PRESETS: dict[tuple[str, str], tuple[int, float, tuple[int, ...], tuple[int, ...] | None, float, int, str]] = {
    ("resnet", "cifar10"): (160, 0.1, (80, 120), None, 1e-4, 128, _HE),
    ("resnet", "cifar100"): (300, 0.1, (150, 225), None, 1e-4, 128, _HE),
    ("resnet", "mnist"): (20, 0.1, (10, 15), None, 1e-4, 128, "ours: MNIST is not in the papers"),
    ("small_cnn", "yopo"): (41, 0.01, (30, 35, 39), (15, 19), 5e-4, 256, f"{_YOPO_CODE}, MNIST"),
    ("small_cnn", "pgd"): (56, 0.1, (50, 55), None, 5e-4, 256, f"{_YOPO_CODE}, MNIST"),
    ("preact18", "yopo"): (37, 0.2, (30, 34, 36), None, 5e-4, 256, f"{_YOPO_CODE}, PreAct-ResNet18"),
    ("preact18", "pgd"): (105, 0.05, (75, 90, 100), None, 5e-4, 256, f"{_YOPO_CODE}, PreAct-ResNet18"),
    ("wrn34", "yopo"): (37, 0.4, (30, 34, 36), None, 5e-4, 256, f"{_YOPO_CODE}, WRN-34-10"),
    ("wrn34", "pgd"): (105, 0.1, (75, 90, 100), None, 2e-4, 256, f"{_YOPO_CODE}, WRN-34-10"),
}
_PUBLISHED = {("small_cnn", "pgd"), ("preact18", "pgd"), ("wrn34", "pgd"), ("wrn34", "natural")}


def schedule(settings: ImageSettings, adversary: Adversary) -> Schedule:
    """Of the preset, with what the settings say instead. Other epochs move the milestones in proportion.

    The rate of YOPO is the given one divided by m, since the gradients of m passes are added.
    """
    group = "yopo" if adversary.is_yopo else "pgd"
    key = (settings.model, settings.dataset if settings.model == "resnet" else group)
    epochs, lr, milestones, first, decay, batch, source = _PRESETS[key]
    if settings.model != "resnet" and group == "pgd" and (settings.model, adversary.kind) not in _PUBLISHED:
        source = f"ours, after that of pgd: {adversary.kind} of {settings.model} is not there"
    given = dict(settings.epochs).get(adversary.name, dict(settings.epochs).get(""))
    changed = ["epochs"] if given else []
    changed += [
        flag(name) for name in ("lr", "weight_decay", "batch", "milestones") if getattr(settings, name) is not None
    ]
    if changed:
        source += f"; changed: {', '.join(changed)}"
    replays = adversary.steps if adversary.kind == "freeat" else 1
    wanted = math.ceil((given or epochs) / replays)

    def scaled(published: tuple[int, ...]) -> tuple[int, ...]:
        moved = [max(1, round(m * wanted / epochs)) if wanted != epochs else m for m in published]
        return tuple(m for m in dict.fromkeys(moved) if m < wanted)

    rest = scaled(milestones) if settings.milestones is None else settings.milestones
    return Schedule(
        epochs=wanted,
        lr=(settings.lr or lr) / (adversary.steps if adversary.is_yopo else 1),
        milestones=rest,
        first_milestones=rest if first is None or settings.milestones is not None else scaled(first),
        weight_decay=decay if settings.weight_decay is None else settings.weight_decay,
        batch=settings.batch or batch,
        source=source,
        replays=replays,
    )


# --- defaults -------------------------------------------------------------------------------------------------


def settings_for(given: Mapping[str, Any], train_images: int, test_images: int) -> ImageSettings:
    """The record of a run: what was given (None: the default), and how many images there are.

    Raises:
        RecipeError: a value that no run can have.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    dataset = chosen["dataset"]
    gray = dataset == "mnist"
    model = chosen.setdefault("model", "small_cnn" if gray else "resnet")
    if model == "resnet":
        chosen.setdefault("depth", 20)
    robust = model != "resnet" or bool(chosen.pop("attacked", False))
    chosen.pop("attacked", None)
    defaults: dict[str, Any] = {
        "depth": None,
        "channels_scale": 1.0,
        "size": SIDE.get(dataset, 0),
        "train_images": train_images,
        "test_images": test_images,
        "attack_steps": (40 if gray else 20) if robust else 0,
        "epsilon": 0.3 if gray else 8 / 255,
        "step_size": 0.01 if gray else 2 / 255,
        "ramp": 0,
        "evaluate_every": 1.0 if model in ("resnet", "small_cnn") else 5.0,
        "augment": "none" if gray else "crop",
    }
    values = defaults | chosen
    values.setdefault("attacked_images", values["test_images"])
    for name, there in (("train_images", train_images), ("test_images", test_images)):
        if values[name] > there:
            raise RecipeError(f"--{flag(name)} {values[name]}: --data-dir has {there:,}; give at most so many")
    if values["attacked_images"] > values["test_images"]:
        raise RecipeError(
            f"--attacked-images {values['attacked_images']}: more than the {values['test_images']} test images; give "
            f"at most so many"
        )
    if values.get("milestones") is not None:
        values["milestones"] = tuple(values["milestones"])
    settings = ImageSettings(**values)
    settings.check()
    return settings


def number(text: str) -> float:
    """ "8/255", "1/2", "½", "0.3" → a number.

    Raises:
        ValueError: something else.
    """
    text = text.strip().replace("½", "1/2").replace("¼", "1/4")
    if not re.fullmatch(r"[0-9.eE+-]{1,20}(/[0-9]{1,6})?", text):
        raise ValueError(text)
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except ZeroDivisionError:
        raise ValueError(text) from None


def epochs_of(words: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """["6", "pgd-40=3"] → (("", 6), ("pgd-40", 3)).

    Raises:
        RecipeError: another notation, or one adversary twice.
    """
    found: dict[str, int] = {}
    for word in words:
        match = re.fullmatch(r"(?:([\w-]+)=)?(\d{1,6})", word)
        if not match:
            raise RecipeError(f"--epochs {word}: is no number; write a whole number for all, and such as pgd-40=3")
        name = Adversary.parse(match[1]).name if match[1] else ""
        if name in found:
            raise RecipeError(f"--epochs {word}: {name or 'the number for all'} is there twice; give one")
        found[name] = int(match[2])
    return tuple(found.items())


def once(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def as_record(settings: ImageSettings) -> dict[str, Any]:
    """What a folder keeps. Epochs stand in the schedules of its runs, so that adversaries can be added with theirs."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name != "epochs"}
