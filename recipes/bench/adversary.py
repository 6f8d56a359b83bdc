"""One update under each adversary, in time and memory: YOPO beside PGD and FreeLB with as many ascents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from macaron.adversary import Attack, Split, added, train
from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification

from ..common.errors import RecipeError
from .bert import batch
from .lengths import VOCABULARY
from .measure import Contender, Plan, check_equal, count_parameters, interleaved, peak_mib, profiled
from .record import Record

STEP_SIZE = 0.1  # l2, in units of the embedding table; times do not depend on it
COSINE_STEPS = (0.1, 0.5, 2.0)  # of the inner ascents between which gradients are compared
INNER = 3


@dataclass(frozen=True)
class AttackSettings:
    dim: int = 256
    heads: int = 4
    batch_size: int = 16
    length: int = 64


def attack(name: str) -> Attack:
    """
    Raises:
        RecipeError: no such method, or counts that it has not.
    """
    try:
        return Attack.of(name) if name == "natural" else Attack.of(name, step_size=STEP_SIZE, norm="l2")
    except ValueError as error:
        raise RecipeError(f"--contenders {name}: {error}") from error


def run(
    record: Record,
    plan: Plan,
    settings: AttackSettings,
    layers: list[int],
    names: list[str],
    precision: str,
    seed: int,
    profile: bool = False,
) -> None:
    attacks = {name: attack(name) for name in names}
    for depth in layers:
        torch.manual_seed(seed)
        models = {name: build(settings, depth).to(plan.device).train() for name in names}
        contenders = [
            Contender(name, step(models[name], attacks[name], precision), count_parameters(models[name]))
            for name in names
        ]
        check_equal(contenders)
        works = batches(settings, plan.device, seed)
        timing = interleaved(
            contenders, works, plan, amount=lambda work: work["input_ids"].numel(), label=f"{depth} layers"
        )
        work, rows = next(works), timing.rows()
        for row, it in zip(rows, contenders, strict=True):
            row["parameters"] = it.parameters
            row["peak_mib"] = peak_mib(lambda it=it, work=work: it.step(work), plan.device)
            if profile:
                print(f"\n{it.name}, {depth} layers\n{profiled(lambda it=it, work=work: it.step(work))}")
        torch.manual_seed(seed)
        model = build(settings, depth).to(plan.device).eval()
        found = {f"{size:g}": cosines(model, work, size) for size in COSINE_STEPS}
        record.describe({**asdict(settings), "layers": depth, "cosines": found})
        record.add(f"adversary {depth} layers", rows)
        for size, values in found.items():
            shown = "  ".join(f"{value:.4f}" for value in values)
            print(f"cosine of the gradient with p frozen and the exact one, after 0 … {INNER} steps of {size}: {shown}")


def build(settings: AttackSettings, depth: int) -> MacaronBertForSequenceClassification:
    """Random weights, dropout 0.1 everywhere."""
    config = MacaronBertConfig(
        vocab_size=VOCABULARY["glue"],
        hidden_size=settings.dim,
        num_hidden_layers=depth,
        num_attention_heads=settings.heads,
        attn_implementation="sdpa",
    )
    return MacaronBertForSequenceClassification(config)


def batches(settings: AttackSettings, device: torch.device, seed: int) -> Iterator[dict[str, Tensor]]:
    """Full sentences of random words, so that padding takes no time from anybody."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((settings.batch_size,), settings.length)
    for _ in itertools.count():
        yield batch(lengths, "finetune", generator, device)["inputs"]


def split(model: Any, work: dict[str, Tensor], precision: str = "fp32", entire: bool = False) -> Split:
    """The model cut behind its first layer; it takes δ."""

    def loss(delta: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(delta.device.type, torch.bfloat16, enabled=precision == "bf16"))
            stack.enter_context(added(model.get_input_embeddings(), work["input_ids"], delta))
            return model(**work).loss

    return Split.at(model.macaron_bert.layers, loss, entire=entire)


def zeros(model: Any, work: dict[str, Tensor]) -> Tensor:
    weight = model.get_input_embeddings().weight
    return weight.new_zeros(*work["input_ids"].shape, weight.size(1))


def step(model: nn.Module, attack: Attack, precision: str) -> Callable[[dict[str, Tensor]], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    entire = attack.rule.inner and not attack.rule.hamiltonian

    def update(work: dict[str, Tensor]) -> None:
        train(split(model, work, precision, entire), zeros(model, work), attack, scale=attack.mean)
        optimizer.step()
        optimizer.zero_grad()

    return update


def cosines(model: nn.Module, work: dict[str, Tensor], size: float) -> list[float]:
    """Mean over the sentences of cos(∂⟨p, f₀⟩/∂δ, ∂L/∂δ) after 0 … n inner ascents along the former, p of δ = 0."""
    parts, delta = split(model, work), zeros(model, work)
    held: list[Tensor] = []

    def hold(state: Tensor) -> Tensor:
        held.append(state)
        return state

    leaf = delta.clone().requires_grad_()
    costate = torch.autograd.grad(parts.whole(leaf, hold), held[0])
    found = []
    for _ in range(INNER + 1):
        at = delta.clone().requires_grad_()
        frozen = torch.autograd.grad(parts.first(at), at, costate)[0].flatten(1)
        exact = torch.autograd.grad(parts.whole(at, lambda state: state), at)[0].flatten(1)
        found.append(torch.cosine_similarity(frozen, exact, dim=1).mean().item())
        length = frozen.norm(dim=1, keepdim=True).clamp(min=torch.finfo(frozen.dtype).tiny)
        delta = delta + size * (frozen / length).view_as(delta)
    return [round(value, 6) for value in found]
