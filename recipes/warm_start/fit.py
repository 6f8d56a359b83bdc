"""The start: neurons placed, and the maps of the half steps fitted to the teacher's states, layer by layer.

The teacher's layer is  u = LN(h + A(h)),  h' = LN(u + F(u)).  Read as Strang's (`macaron.bracketing`), H of width F₂
stands behind A and G of width F₁ before the next A, and the norm between them has no gain. So G sees not u but
ŷ = LN₀(u + H(u)), from which nothing gives u back exactly. Least squares on text does it well enough:

    inputs     G's input weights: from ŷ to what its neurons saw in the teacher, u_i·u + b_i
    outputs    output weights of H: from its neurons to F(u), the part of the absent neurons included; then of G: from
               its neurons to what is left, LN₀(u + F(u)) − ŷ. The last layer has H alone.
    attention  its output weights, from the values that it gathers on the student's states to the teacher's u

Each is fitted on the states of the student as it stands, the layers before it fitted already, so that it mends what
they miss. A ridge keeps weights of neurons that hardly move from growing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.bert import to_strang
from macaron.bracketing import Widths, by_norm

from .teacher import encoder_of
from .text import Batch


@dataclass(frozen=True)
class Possibility:
    """A way to begin.

    Args:
        name: for tables and --start.
        meaning: the same in words.
        neurons: which stand behind the attention: the first ("order"), those of the greatest weights ("weights"), or
            of the greatest weights times the standard deviation of their activation on text ("activity").
        fits: what is fitted, of those named above.
    """

    name: str
    meaning: str
    neurons: str
    fits: tuple[str, ...] = ()


POSSIBILITIES = (
    Possibility("order", "neurons divided as they stand, norms placed", "order"),
    Possibility("weights", "those of greatest weights behind the attention", "weights"),
    Possibility("activity", "those of greatest activity on text behind the attention", "activity"),
    Possibility("inputs", "and the inputs of the others fitted", "activity", ("inputs",)),
    Possibility("outputs", "and the outputs of all FFNs fitted", "activity", ("inputs", "outputs")),
    Possibility("attention", "and the outputs of the attention fitted", "activity", ("inputs", "outputs", "attention")),
)


class _FoundError(Exception):
    """Ends a forward pass at the first layer."""


@torch.no_grad()
def embedded(encoder: Any, batches: Iterable[Batch]) -> list[tuple[Tensor, Any]]:
    """For each batch, what the first layer is called with: particles, packed where there is padding, and context."""
    found: list[tuple[Tensor, Any]] = []

    def stop(_: Any, args: Any) -> None:
        found.append(args)
        raise _FoundError

    handle = encoder.layers[0].register_forward_pre_hook(stop)
    try:
        for batch in batches:
            try:
                encoder(**batch)
            except _FoundError:
                continue
    finally:
        handle.remove()
    return found


def least_squares(features: Sequence[Tensor], targets: Sequence[Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    """W (M, N), b (M) of the smallest Σ |W x + b − y|² + ridge · mean(x²) |W|², x of (…, N), y of (…, M).

    Sums are in float64, batch by batch.
    """
    n, m = features[0].size(-1), targets[0].size(-1)
    gram = torch.zeros(n + 1, n + 1, dtype=torch.float64, device=features[0].device)
    cross = torch.zeros(n + 1, m, dtype=torch.float64, device=features[0].device)
    for x, y in zip(features, targets, strict=True):
        x1 = F.pad(x.reshape(-1, n), (0, 1), value=1.0)
        gram += (x1.T @ x1).double()
        cross += (x1.T @ y.reshape(-1, m)).double()
    damping = ridge * gram.diagonal()[:-1].mean()
    gram.diagonal()[:-1] += damping
    # of a feature that is always the same there are two, itself and the offset: the least such weight
    solved = torch.linalg.lstsq(gram, cross, driver="gelsd" if gram.device.type == "cpu" else None).solution.float()
    return solved[:-1].T, solved[-1]


def assign(linear: Any, solved: tuple[Tensor, Tensor], rows: slice = slice(None)) -> None:
    linear.weight[rows], linear.bias[rows] = solved


def plain(x: Tensor, norm: Any) -> Tensor:
    """LN₀, the norm without its gain and offset."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


@torch.no_grad()
def orders(encoder: Any, batches: Sequence[Batch], kind: str) -> list[Tensor]:
    """For each layer of the teacher its neurons, those first that shall stand behind the attention."""
    found = embedded(encoder, batches) if kind == "activity" else []
    result, states = [], [x for x, _ in found]
    contexts = [context for _, context in found]
    for layer in encoder.layers:
        ffn = layer.flows[1]
        if kind == "order":
            result.append(torch.arange(ffn.fc1.out_features))
        elif kind == "weights":
            result.append(by_norm(ffn.fc1.weight, ffn.fc2.weight))
        else:
            states = [behind_attention(layer, x, c) for x, c in zip(states, contexts, strict=True)]
            hidden = torch.cat([hidden_of(ffn, u, c).flatten(0, -2) for u, c in zip(states, contexts, strict=True)])
            force = hidden.std(0) * ffn.fc2.weight.norm(dim=0)
            result.append(force.argsort(descending=True, stable=True))
            states = [layer.norms[1](u, ffn(u, c)[0], 1.0)[1] for u, c in zip(states, contexts, strict=True)]
    return result


def behind_attention(layer: Any, x: Tensor, context: Any) -> Tensor:
    """u = LN(h + A(h)) of a Lie layer."""
    moved: Tensor = layer.norms[0](x, layer.flows[0](x, context)[0], 1.0)[1]
    return moved


def inputs_of(module: Any, part: Any, *args: Any) -> tuple[Tensor, Any]:
    """(what `part` gets, what `module` gives) when `module` is called."""
    seen: list[Tensor] = []
    handle = part.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        result = module(*args)
    finally:
        handle.remove()
    return seen[0], result


def hidden_of(ffn: Any, x: Tensor, context: Any) -> Tensor:
    """What the neurons of an FFN give, (…, F)."""
    return inputs_of(ffn, ffn.fc2, x, context)[0]


@torch.no_grad()
def fit(
    student: Any, teacher: Any, batches: Sequence[Batch], order: Sequence[Tensor], fits: Sequence[str], ridge: float
) -> None:
    """Fit the student's maps in place, layer by layer.

    Args:
        student, teacher: encoders, of Strang's and of Lie's layers.
        batches: of the text.
        order: the neurons of each of the teacher's layers, as the student was made with.
        fits: which maps.
        ridge: of all fits.
    """
    found = embedded(teacher, batches)
    contexts = [context for _, context in found]
    theirs = [x for x, _ in found]
    norm = teacher.embeddings.norm
    ours = [x for x, _ in embedded(student, batches)]  # ŷ
    before: list[tuple[Tensor, Tensor]] = []  # of the layer before: u, and F(u)

    def each(function: Callable[..., Any], *rows: Sequence[Any]) -> list[Any]:
        return [function(*row) for row in zip(*rows, contexts, strict=True)]

    for n, (lie, strang) in enumerate(zip(teacher.layers, student.layers, strict=True)):
        g, a, h = strang.flows
        half, whole = strang.steps[0], strang.steps[1]
        if n:
            ffn = teacher.layers[n - 1].flows[1]
            width = strang.flows[0].fc1.out_features
            moved = order[n - 1][h.fc1.out_features :][:width]
            if "inputs" in fits and len(moved):
                saw = [F.linear(u, ffn.fc1.weight[moved], ffn.fc1.bias[moved]) for u, _ in before]
                assign(g.fc1, least_squares(ours, saw, ridge), slice(0, len(moved)))
            if "outputs" in fits:
                hidden = each(lambda x, c, g=g: hidden_of(g, x, c), ours)
                left = [(plain(u + v, norm) - x) / half for (u, v), x in zip(before, ours, strict=True)]
                assign(g.fc2, least_squares(hidden, left, ridge))
        ours = each(lambda x, c, g=g, s=strang, half=half: s.norms[0](x, g(x, c)[0], half)[1], ours)
        given = each(lambda x, c, lie=lie: lie.flows[0](x, c)[0], theirs)
        if "attention" in fits:
            gathered = each(lambda x, c, a=a: inputs_of(a, a.out_proj, x, c)[0], ours)
            wanted = [(x + v - y) / whole for x, v, y in zip(theirs, given, ours, strict=True)]
            assign(a.out_proj, least_squares(gathered, wanted, ridge))
        ours = each(lambda x, c, a=a, s=strang, whole=whole: s.norms[1](x, a(x, c)[0], whole)[1], ours)
        us = [lie.norms[0](x, v, 1.0)[1] for x, v in zip(theirs, given, strict=True)]
        before = each(lambda u, c, lie=lie: (u, lie.flows[1](u, c)[0]), us)
        if "outputs" in fits:
            hidden = each(lambda x, c, h=h: hidden_of(h, x, c), ours)
            assign(
                h.fc2,
                least_squares(hidden, [(u + v - x) / half for (u, v), x in zip(before, ours, strict=True)], ridge),
            )
        ours = each(lambda x, c, h=h, s=strang, half=half: s.norms[2](x, h(x, c)[0], half)[1], ours)
        theirs = [lie.norms[1](u, v, 1.0)[1] for u, v in before]


def begin(possibility: Possibility, teacher: Any, widths: Widths, batches: Sequence[Batch], ridge: float) -> Any:
    """The student that a possibility gives, a model of Strang layers with the teacher's heads."""
    encoder = encoder_of(teacher)
    order = orders(encoder, batches, possibility.neurons)
    student: Any = to_strang(teacher, widths, order).eval()
    if possibility.fits:
        fit(encoder_of(student), encoder, batches, order, possibility.fits, ridge)
    return student


@torch.no_grad()
def distance(student: Any, teacher: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """How far the student's last states are from the teacher's.

    distance   √(Σ |s − t|² / Σ |t|²) over all tokens
    cosine     of the mean-pooled vectors of a sentence, mean over the sentences
    """
    apart = size = 0.0
    cosines = []
    for batch in batches:
        s, t = (encoder(**batch).last_hidden_state.double() for encoder in (student, teacher))  # 0 at padding
        apart += float((s - t).square().sum())
        size += float(t.square().sum())
        number = batch["attention_mask"].sum(1, keepdim=True)
        cosines.append(torch.cosine_similarity(s.sum(1) / number, t.sum(1) / number))
    return {"distance": (apart / size) ** 0.5, "cosine": float(torch.cat(cosines).mean())}
