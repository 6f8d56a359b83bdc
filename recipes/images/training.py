"""One run: a network, an adversary, a seed. It can be cut off anywhere and goes on with the same bits (on a CPU)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from macaron import checkpoint
from macaron.adversary import Attack, Split, perturb, train

from ..common.errors import RecipeError
from . import data, models
from .settings import Adversary, ImageSettings, Variant, schedule

EVALUATION_BATCH = 250
SCORING = "score"  # names the random starts of the attack that scores, which are the same for all runs
Tell = Callable[[str, float], None]  # a line or "", and how many units of work are done

_METHODS = {"madry": "pgd", "yopo": "yopo", "yopo-full": "yopo-full", "yopo-hamiltonian": "yopo-hamiltonian"}


def generator(*key: object) -> torch.Generator:
    """Random numbers that depend on the key alone, and not on where a run was cut off."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def augmented(images: Tensor, kind: str, random: torch.Generator) -> Tensor:
    """Padded on all sides by an eighth, cropped at random, and mirrored at random; (B, C, H, W)."""
    if kind == "none":
        return images
    count, _, height, width = images.shape
    pad = width // 8
    padded = F.pad(images, (pad,) * 4, mode="reflect" if kind == "crop_reflect" else "constant")
    top, left = (torch.randint(2 * pad + 1, (count, 1, 1), generator=random) for _ in range(2))
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    rows = top + torch.arange(height)[None, :, None]
    across = torch.arange(width).expand(count, width)
    columns = left + torch.where(mirrored, width - 1 - across, across)[:, None, :]
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded.movedim(1, 3)[which, rows, columns].movedim(3, 1).contiguous()


def attack_of(settings: ImageSettings, adversary: Adversary, share: float = 1.0) -> Attack:
    """The adversary of training; `share` of ε for a radius that grows at the beginning.

    A step of FreeAT is as long as the radius, as its paper has it.
    """
    radius = settings.epsilon * share
    common: dict[str, Any] = {"norm": "linf-sign", "radius": radius, "init": radius, "bounds": (0.0, 1.0)}
    if adversary.kind == "freeat":
        return Attack("freeat", step_size=radius, **common)
    method = _METHODS.get(adversary.kind, "pgd")
    return Attack(method, steps=adversary.steps, inner_steps=adversary.inner, step_size=settings.step_size, **common)


def scoring_attack(settings: ImageSettings) -> Attack | None:
    """PGD from one random start, on the network in evaluation mode."""
    if not settings.attack_steps:
        return None
    return attack_of(settings, Adversary("pgd", settings.attack_steps))


class Training:
    """A run from its beginning, or from where a checkpoint left it.

    Args:
        images: on the CPU.
    """

    def __init__(
        self, settings: ImageSettings, variant: Variant | None, adversary: Adversary, seed: int, images: data.ImageSet
    ) -> None:
        self.settings, self.variant, self.adversary, self.seed = settings, variant, adversary, seed
        self.schedule = schedule(settings, adversary)
        self.device = torch.device(settings.device)
        self.train_split, self.test_split = images.train.to(self.device), images.test.to(self.device)
        self.net = models.build(settings, variant, seed).to(self.device)
        if settings.channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            models.groups(self.net), lr=self.schedule.lr, momentum=self.schedule.momentum,
            weight_decay=self.schedule.weight_decay,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            if group["part"] == "k":
                group["weight_decay"] = 0.0
        self.per_epoch = math.ceil(len(self.train_split) / self.schedule.batch)
        self.total = self.schedule.epochs * self.per_epoch
        every = max(1, round(settings.evaluate_every * self.per_epoch))
        self.evaluations = {*range(every, self.total, every), self.total}
        self.batches = 0  # done
        self.seconds = self.cpu_seconds = 0.0  # of the updates alone
        self.losses, self.counted = 0.0, 0  # since the last evaluation
        self.history: list[dict[str, Any]] = []
        self.delta: Tensor | None = None  # FreeAT hands it to the next batch
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        torch.manual_seed(seed)  # dropout, layers dropped, δ₀; equal for all variants and adversaries

    # --- one batch --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32."""
        if self.settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self.net(x).float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """The images and labels of a batch, equal for all variants and adversaries of a seed."""
        epoch, place = divmod(number, self.per_epoch)
        if self._order[0] != epoch:
            order = torch.randperm(len(self.train_split), generator=generator(self.seed, "order", epoch))
            self._order = (epoch, order.to(self.device))
        size = self.schedule.batch
        images, labels = self.train_split.batch(self._order[1][place * size : (place + 1) * size])
        random = generator(self.seed, "augmentation", epoch, place)
        return augmented(images, self.settings.augment, random), labels

    def update(self) -> None:
        """Train on the next batch."""
        number = self.batches
        rest, first = self.schedule.rates(number // self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = first if group["part"] == "first" else rest
        x, label = self.batch(number)
        self.net.train()
        share = min(1.0, (number + 1) / self.settings.ramp) if self.settings.ramp else 1.0
        split = Split.at(self.net.first, lambda inputs: F.cross_entropy(self.forward(inputs), label))
        for _ in range(self.schedule.replays):
            self.optimizer.zero_grad()
            loss = self._gradients(split, x, label, share)
            self.optimizer.step()
            self.losses += loss
            self.counted += 1
        self.batches += 1

    def _gradients(self, split: Split, x: Tensor, label: Tensor, share: float) -> Any:
        """Add the gradients of one update; its loss, a mean over the passes that train, as a tensor."""
        kind = self.adversary.kind
        if kind == "natural":
            loss = F.cross_entropy(self.forward(x), label)
            loss.backward()
            return loss.detach()
        attack = attack_of(self.settings, self.adversary, share)
        if kind == "pgd":
            self.net.eval()
            moved = x + perturb(split, x, attack)
            self.net.train()
            total = torch.zeros((), device=x.device)
            for inputs in (moved, x):
                loss = F.cross_entropy(self.forward(inputs), label)
                loss.backward()
                total += loss.detach() / 2
            return total
        if kind == "freeat":
            start = torch.zeros_like(x) if self.delta is None else self.delta[: len(x)]
            start = start.clamp(-attack.init, attack.init)
            outcome = train(split, x, attack, start=(x + start).clamp(0.0, 1.0) - x, scale=attack.divisor)
            if self.delta is None or len(x) >= len(self.delta):
                self.delta = outcome.delta
            else:
                self.delta = torch.cat([outcome.delta, self.delta[len(x) :]])
            return outcome.losses[0]
        outcome = train(split, x, attack)
        return outcome.losses[-1] if kind == "madry" else outcome.losses.mean()

    # --- evaluation -------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Accuracies in per cent, in evaluation mode. Random starts are the same at every time and for every run."""
        attack, right, held = scoring_attack(self.settings), 0, 0
        test, attacked = self.test_split, self.settings.attacked_images
        self.net.eval()
        with _untouched(self.device):
            for begin in range(0, len(test), EVALUATION_BATCH):
                index = torch.arange(begin, min(begin + EVALUATION_BATCH, len(test)), device=self.device)
                x, label = test.batch(index)
                with torch.no_grad():
                    right += int((self.forward(x).argmax(1) == label).sum())
                if attack is not None and begin < attacked:
                    x, label = x[: attacked - begin], label[: attacked - begin]
                    draw = torch.empty(x.shape).uniform_(-1.0, 1.0, generator=generator(SCORING, begin))
                    delta = self._scored(x, label, attack, draw.to(self.device) * attack.init)
                    with torch.no_grad():
                        held += int((self.forward(x + delta).argmax(1) == label).sum())
        self.net.train()
        found = {"accuracy": 100 * right / len(test)}
        if attack is not None:
            found["robust"] = 100 * held / attacked
        return found

    def _scored(self, x: Tensor, label: Tensor, attack: Attack, start: Tensor) -> Tensor:
        split = Split.at(self.net.first, lambda inputs: F.cross_entropy(self.forward(inputs), label))
        return perturb(split, x, attack, start=start)

    # --- the loop ---------------------------------------------------------------------------------------------

    def run(self, path: Path, save_every: float, tell: Tell) -> None:
        """Train to the end. `path` gets a checkpoint every so many seconds, and at each evaluation.

        Raises:
            RecipeError: the loss is not finite any more.
        """
        while self.batches < self.total:
            with self._timed():
                begun, before = time.monotonic(), self.batches
                while True:
                    self.update()
                    if self.batches in self.evaluations or time.monotonic() - begun >= save_every:
                        break
            if not math.isfinite(float(self.losses)):
                raise RecipeError(
                    f"the loss is {float(self.losses)} in epoch {self.batches / self.per_epoch:.1f}: the training "
                    f"diverged. Take a smaller --lr, and another folder with --out or --restart"
                )
            units = float(self.adversary.passes * (self.batches - before))
            line = self._evaluated() if self.batches in self.evaluations else ""
            self.save(path)
            tell(line, units)

    def _evaluated(self) -> str:
        entry = {
            "batches": self.batches,
            "epoch": self.batches / self.per_epoch,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "loss": float(self.losses) / max(1, self.counted),
            **self.evaluate(),
            "k": self.net.k,
        }
        self.losses, self.counted = 0.0, 0
        self.history.append(entry)
        robust = f", PGD-{self.settings.attack_steps} {entry['robust']:.2f} %" if "robust" in entry else ""
        return (
            f"epoch {entry['epoch']:.4g} of {self.schedule.epochs}: loss {entry['loss']:.4f}, accuracy "
            f"{entry['accuracy']:.2f} %{robust}, {self.seconds / 60:.1f} min of training"
        )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    # --- checkpoints ------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        state = {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "losses": float(self.losses),
            "counted": self.counted,
            "history": self.history,
            "delta": self.delta,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        self.losses = float(self.losses)
        checkpoint.save(state, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            RecipeError: it is damaged, or of another run.
        """
        try:
            state = checkpoint.load(path)
            checkpoint.check_finite({k: v for k, v in state["model"].items() if v.is_floating_point() and v.dim()})
            self.net.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.batches, self.counted = int(state["batches"]), int(state["counted"])
            self.seconds, self.cpu_seconds = float(state["seconds"]), float(state["cpu_seconds"])
            self.losses, self.history = float(state["losses"]), list(state["history"])
            self.delta = None if state["delta"] is None else state["delta"].to(self.device)
            torch.set_rng_state(state["random"])
            if state["random_cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
            if not 0 <= self.batches <= self.total or len(self.history) > self.batches:
                raise ValueError(f"{self.batches} batches are done of {self.total}")
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise RecipeError(
                f"{path}: cannot be gone on from ({' '.join(str(error).split())[:300]}); delete it to have this run "
                f"begin anew"
            ) from error

    def result(self) -> dict[str, Any]:
        """What the report needs of a finished run."""
        return {
            "schedule": dataclasses.asdict(self.schedule),
            "parameters": models.parameters(self.net.net),
            "stored_by_the_original": models.stored_by_the_original(self.net.net),
            "batch_passes": self.adversary.passes,
            "updates": self.total * self.schedule.replays,
            "history": self.history,
        }


@contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """The generators stand afterwards where they stood."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
