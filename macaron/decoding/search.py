"""Beam search over a decoder that takes one step at a time, as fairseq's `SequenceGenerator` defines it.

A hypothesis y_1 … y_n </s> has the score Σ log p(y_t | y_<t) / n'^α, n' = n + 1. In each step the 2 K best
continuations of a sentence's K hypotheses are looked at; of these, what ends among the first K is finished, and the
first K that do not end go on. A sentence is done when K of its hypotheses are, or at its greatest length.

Sentences are independent of each other: each has a step of its own, leaves when it is done, and others take its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from macaron.decoding.lattice import Lattice

# Shapes: B sentences, K places of a beam, V words, T columns of the lattice.

_BLOCK = 128  # words of which the best is looked at first
_PLAIN = 4096  # up to so many continuations are sorted at once
_LEAST, _MOST = 1e-34, 1e34  # of n^α, for which float32 has the quotient
_SHORTEST = 16  # tokens that a sentence counts for at least, since its translation may be so long


class Symbols(NamedTuple):
    """Words with a meaning of their own, by their numbers."""

    start: int  # what a hypothesis begins with; fairseq's is </s>
    end: int
    pad: int
    unknown: int


@dataclass(frozen=True)
class Options:
    """How hypotheses are compared and when they end; the names are fairseq's.

    Fields:
        beam: K.
        max_len_a, max_len_b: a sentence of S tokens has a translation of at most a S + b, and `longest`, before </s>.
        longest: what the model takes, less one.
        min_len: before </s>.
        normalize: scores are means, over the length to the power of `lenpen`.
        lenpen: α.
        unkpen: taken from the score of each unknown word.
        temperature: logits are divided by it.
        no_repeat_ngram_size: of n-grams that come once only in a hypothesis, at least 2; 0: none.
        match_source_len: a translation has as many tokens as its sentence, </s> counted.

    Raises:
        ValueError: a value outside of its range.
    """

    beam: int = 5
    max_len_a: float = 0.0
    max_len_b: int = 200
    longest: int = 1023
    min_len: int = 1
    normalize: bool = True
    lenpen: float = 1.0
    unkpen: float = 0.0
    temperature: float = 1.0
    no_repeat_ngram_size: int = 0
    match_source_len: bool = False

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam {self.beam} must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be positive")
        if self.no_repeat_ngram_size < 0 or self.no_repeat_ngram_size == 1:
            raise ValueError(f"no_repeat_ngram_size {self.no_repeat_ngram_size} must be 0 or at least 2")

    def most(self, source: int) -> int:
        """The greatest length, before </s>, of the translation of `source` tokens.

        Raises:
            ValueError: it is below `min_len`.
        """
        most = source if self.match_source_len else min(int(self.max_len_a * source + self.max_len_b), self.longest)
        if most < self.min_len:
            raise ValueError(
                f"min_len {self.min_len} is more than the greatest length, {most}, of the translation of {source} "
                f"tokens; lower it, or raise max_len_a or max_len_b"
            )
        return most


class Source(NamedTuple):
    """A sentence that is to be decoded.

    Fields:
        name: by which its hypotheses come back.
        tokens: (S,), with </s>.
        most: the greatest length of its hypotheses, before </s>.
        length: with which `match_source_len` compares.
        prefix: (P,) what its hypotheses begin with, or None; the same P for all of a batch, filled with padding.
    """

    name: Any
    tokens: Tensor
    most: int
    length: int = 0
    prefix: Tensor | None = None


class Hypothesis(NamedTuple):
    tokens: Tensor  # (n,), </s> the last
    score: Tensor  # ()
    positional_scores: Tensor  # (n,), log-probabilities


class Stepper(Protocol):
    """A decoder, one step at a time, with its caches in a `Lattice`."""

    vocabulary: int

    def begin(self, beam: int) -> Lattice:
        """An empty lattice, which the steps to come use."""

    def read(self, lattice: Lattice, tokens: list[Tensor]) -> None:
        """Let the last sentences that joined have these sources as their memory."""

    def step(self, lattice: Lattice, tokens: Tensor, positions: Tensor) -> Tensor:
        """The next word's logits, (B K, V).

        Args:
            tokens: (B, K), the newest of each place.
            positions: (B,), how many came before them.
        """


class BeamSearch:
    """
    Args:
        stepper: the decoder.
        symbols: of its vocabulary.
        options: of the search.

    Raises:
        ValueError: a beam for which there are not enough words.
    """

    def __init__(self, stepper: Stepper, symbols: Symbols, options: Options) -> None:
        if stepper.vocabulary - 1 < 2 * options.beam:
            raise ValueError(f"beam {options.beam}: a search among {stepper.vocabulary} words needs a smaller one")
        self.stepper, self.symbols, self.options = stepper, symbols, options

    @torch.no_grad()
    def __call__(
        self, sources: Iterable[Source], room: int = 2**62, tokens: int = 2**62, refill: float = 0.25
    ) -> Iterator[tuple[Any, list[Hypothesis]]]:
        """Decode, with as many sentences at a time as there is room for.

        Args:
            sources: in the order in which they are taken up; best by length.
            room: sentences at a time.
            tokens: of these, all counted as long as the longest, and as 16 at least; one sentence is always taken.
            refill: others are taken up when this share of the batch has left, or all.

        Yields:
            The name of each sentence and its hypotheses, the best first, as soon as it is done.

        Raises:
            ValueError: `Source.most` is below `Options.min_len`.
            FloatingPointError: scores of a sentence that are no numbers, for all of its hypotheses.
        """
        waiting = _Queue(sources, room, tokens)
        batch = _Batch(self)
        while waiting or batch.sources:
            if waiting and len(batch.sources) <= (1 - refill) * batch.full:
                batch.join(waiting.take(batch.sources))
            yield from batch.step()


class _Queue:
    """Sentences that wait, and how many of them fit."""

    def __init__(self, sources: Iterable[Source], room: int, tokens: int) -> None:
        self._rest = iter(sources)
        self._room, self._tokens = max(1, room), tokens
        self._next = next(self._rest, None)

    def __bool__(self) -> bool:
        return self._next is not None

    def take(self, held: list[Source]) -> list[Source]:
        taken: list[Source] = []
        longest = max((source.tokens.numel() for source in held), default=_SHORTEST)
        while self._next is not None:
            longest = max(longest, self._next.tokens.numel(), _SHORTEST)
            count = len(held) + len(taken) + 1
            if count > 1 and (count > self._room or count * longest > self._tokens):
                break
            taken.append(self._next)
            self._next = next(self._rest, None)
        return taken


class _Batch:
    """The sentences that are decoded now: row b of every tensor belongs to `sources[b]`."""

    def __init__(self, search: BeamSearch) -> None:
        self.stepper, self.symbols, self.options = search.stepper, search.symbols, search.options
        self.beam = self.options.beam
        self.lattice = search.stepper.begin(self.beam)
        self.sources: list[Source] = []
        self.found: list[list[Hypothesis]] = []
        self.steps: list[int] = []  # taken; the device counts them too, but an answer would have to be waited for
        self._lists: tuple[list[Any], ...] = (self.sources, self.found, self.steps)
        self.full = 0  # sentences when others last joined
        self.device = self.lattice.device

    # --- sentences ---

    def join(self, sources: list[Source]) -> None:
        if not sources:
            return
        for source in sources:
            if source.most < self.options.min_len:
                raise ValueError(
                    f"min_len {self.options.min_len} is more than the greatest length of a translation, {source.most}"
                )
        lattice, beam = self.lattice, self.beam
        if "tokens" not in lattice:
            lattice.add("tokens", torch.long, (0, beam), time=1)  # (B, T, K), what each cell has read
            lattice.add("most", torch.long, ())
            lattice.add("lengths", torch.long, ())
            if sources[0].prefix is not None:
                lattice.add("prefix", torch.long, tuple(sources[0].prefix.shape))
        first = len(self.sources)
        lattice.join(len(sources))
        rows = slice(first, None)
        lattice["tokens"][rows, lattice.now] = self.symbols.start
        lattice["most"][rows] = torch.tensor([source.most for source in sources], device=self.device)
        lattice["lengths"][rows] = torch.tensor([source.length for source in sources], device=self.device)
        if "prefix" in lattice:
            lattice["prefix"][rows] = torch.stack([s.prefix for s in sources if s.prefix is not None])
        self.sources += sources
        self.found += [[] for _ in sources]
        self.steps += [0] * len(sources)
        self.stepper.read(lattice, [source.tokens for source in sources])
        self.full = len(self.sources)

    def _leave(self, rows: list[int]) -> Iterator[tuple[Any, list[Hypothesis]]]:
        for row in rows:
            found = self.found[row]
            order = torch.tensor([float(one.score) for one in found]).sort(descending=True)[1]
            yield self.sources[row].name, [found[i] for i in order.tolist()]
        for origin, to in self.lattice.leave(rows):
            for kept in self._lists:
                kept[to] = kept[origin]
        for kept in self._lists:
            del kept[self.lattice.sentences :]

    # --- one step ---

    def step(self) -> Iterator[tuple[Any, list[Hypothesis]]]:
        lattice, beam = self.lattice, self.beam
        steps = lattice.now - lattice.starts  # (B,)
        logits = self.stepper.step(lattice, lattice["tokens"][:, lattice.now], steps)
        logits = self._scaled(logits)  # (B K, V)
        if "scores" not in lattice:
            lattice.add("scores", logits.dtype, (0, beam), time=1)  # (B, T, K), sums of log-probabilities
        scores = lattice["scores"][:, lattice.now].clone()  # (B, K)
        scores[:, 1:].masked_fill_((steps == 0)[:, None], -math.inf)  # all places begin as one
        norm = self._normaliser(logits)
        self._forbid(logits, norm, steps, scores)
        values, words, places = self._best(logits.view(len(scores), beam, -1), norm.view_as(scores), scores)
        ends = words.eq(self.symbols.end) & values.ne(-math.inf)  # (B, 2 K)
        finished: list[int] = []
        if bool(ends.any()):
            finished = self._finish(ends[:, :beam], values, places, steps)
            going = torch.arange(2 * beam, device=self.device) + ends * (2 * beam)
            going = going.topk(beam, dim=1, largest=False)[1]
            values, words, places = (t.gather(1, going) for t in (values, words, places))
        else:
            values, words, places = values[:, :beam], words[:, :beam], places[:, :beam]
        finished += self._overdue(finished)
        lattice.advance(places)
        self.steps[:] = [n + 1 for n in self.steps]
        lattice["tokens"][:, lattice.now] = words
        lattice["scores"][:, lattice.now] = values
        if finished:
            yield from self._leave(sorted(finished))

    def _scaled(self, logits: Tensor) -> Tensor:
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return logits if self.options.temperature == 1.0 else logits.div_(self.options.temperature)

    def _normaliser(self, logits: Tensor) -> Tensor:
        """log Σ exp, (B K,); rows without one become −∞, which no search goes on from, and leave nothing behind."""
        norm = log_sum_exp(logits)
        lost = ~norm.isfinite()
        if bool(lost.any()):
            logits[lost] = -math.inf
            norm = norm.masked_fill(lost, 0.0)
            self.lattice.clear(lost.view(-1, self.beam))
        return norm

    def _forbid(self, logits: Tensor, norm: Tensor, steps: Tensor, scores: Tensor) -> None:
        """What may not follow; in place, after the normalisation."""
        options, (_, end, pad, unknown), lattice, beam = self.options, self.symbols, self.lattice, self.beam
        logits[:, pad] = -math.inf
        if options.unkpen:
            logits[:, unknown] -= options.unkpen
        over = steps >= lattice["most"]
        early = steps < options.min_len
        forced = torch.zeros_like(over)
        prefixed = "prefix" in lattice and lattice.now < lattice["prefix"].size(1)
        if prefixed:
            forced = ~over  # fairseq's prefixes take the place of the least length, as padding too
        by_place = logits.view(len(steps), beam, -1)
        ended = [n >= source.most for n, source in zip(self.steps, self.sources, strict=True)]
        if any(ended):
            kept = by_place[over, :, end]
            by_place[over] = -math.inf
            by_place[over, :, end] = kept
        if min(self.steps) < options.min_len:
            by_place[early & ~forced, :, end] = -math.inf
        if prefixed and not all(ended):
            self._force(by_place, norm, scores, lattice["prefix"][:, lattice.now])
        if options.no_repeat_ngram_size:
            self._forbid_repeats(logits)
        if options.match_source_len:
            lengths = lattice["lengths"]
            by_place[steps < lengths, :, end] = -math.inf
            full = steps >= lengths
            by_place[full, :, end] = norm.view_as(scores)[full]  # a log-probability of 0

    def _force(self, logits: Tensor, norm: Tensor, scores: Tensor, wanted: Tensor) -> None:
        """Only `wanted`, (B,), may follow, where that is no padding."""
        given = wanted != self.symbols.pad
        at = wanted[:, None, None].expand(-1, self.beam, 1)
        kept = logits.gather(2, at)
        logits[given] = -math.inf
        logits[given] = logits[given].scatter(2, at[given], kept[given])
        ended = wanted == self.symbols.end
        if bool(ended.any()):  # as fairseq: the first place stands for all
            self.lattice.replicate(ended)
            for t in (logits, norm.view_as(scores), scores):
                t[ended] = t[ended][:, :1].expand_as(t[ended]).clone()

    def _forbid_repeats(self, logits: Tensor) -> None:
        n, lattice = self.options.no_repeat_ngram_size, self.lattice
        rows, places = self._everywhere()
        path = lattice.path(rows, places)  # (B K, T)
        tokens = lattice["tokens"][:, lattice.low : lattice.now + 1]  # (B, T, K)
        words = tokens[rows].gather(2, path.clamp(min=0)[..., None])[..., 0]
        words = words.masked_fill(path < 0, -1)
        if words.size(1) < n:
            return
        grams = words.unfold(1, n, 1)  # (B K, T − n + 1, n)
        last = words[:, None, -(n - 1) :]
        repeated = (grams[..., :-1] == last).all(-1) & (grams[..., 0] >= 0)
        row, at = repeated.nonzero(as_tuple=True)
        logits[row, grams[row, at, -1]] = -math.inf

    def _everywhere(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.sources), device=self.device).repeat_interleave(self.beam)
        return rows, torch.arange(self.beam, device=self.device).repeat(len(self.sources))

    def _best(self, logits: Tensor, norm: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The 2 K best continuations of each sentence: score, word and place, (B, 2 K) each, the best first.

        logits − norm + score; the order of the sums is fairseq's. The best 2 K are within the 2 K blocks of words with
        the greatest maxima, since rounding keeps the order.
        """
        batch, beam, size = logits.shape
        count = 2 * beam
        norm, scores = norm[..., None], scores[..., None]
        blocks = size // _BLOCK
        if beam * size <= _PLAIN or blocks * beam < count:
            values, index = (logits - norm + scores).flatten(1).topk(count)
            return values, index % size, index // size
        whole = blocks * _BLOCK
        by_block = logits[..., :whole].unflatten(2, (blocks, _BLOCK))
        greatest = (by_block.amax(-1) - norm + scores).flatten(1).topk(count)[1]  # (B, 2 K)
        places, block = greatest // blocks, greatest % blocks
        rows = torch.arange(batch, device=self.device)[:, None]
        near = by_block[rows, places, block]  # (B, 2 K, block)
        near = near - norm[rows, places] + scores[rows, places]
        rest = logits[..., whole:] - norm + scores  # (B, K, V − whole)
        values, index = torch.cat([near.flatten(1), rest.flatten(1)], 1).topk(count)
        inside = index < count * _BLOCK
        which = (index // _BLOCK).clamp(max=count - 1)
        words = block.gather(1, which) * _BLOCK + index % _BLOCK
        place = places.gather(1, which)
        if rest.size(2):
            behind = (index - count * _BLOCK).clamp(min=0)
            words = torch.where(inside, words, whole + behind % rest.size(2))
            place = torch.where(inside, place, behind // rest.size(2))
        return values, words, place

    # --- hypotheses that end ---

    def _finish(self, ends: Tensor, values: Tensor, places: Tensor, steps: Tensor) -> list[int]:
        """Keep the hypotheses that end, `ends` (B, K) of the candidates; the rows that have K of them."""
        lattice, options = self.lattice, self.options
        rows, ranks = ends.nonzero(as_tuple=True)
        place, total = places[rows, ranks], values[rows, ranks]
        length = steps[rows] + 1
        path = lattice.path(rows, place).clamp(min=0)[..., None]  # (n, T, 1)
        past = slice(lattice.low, lattice.now + 1)
        tokens = lattice["tokens"][rows, past].gather(2, path)[..., 0]
        sums = lattice["scores"][rows, past].gather(2, path)[..., 0]
        tokens = torch.cat([tokens, torch.full_like(tokens[:, :1], self.symbols.end)], 1)
        sums = torch.cat([sums, total[:, None]], 1)
        each = sums[:, 1:] - sums[:, :-1]
        score = total
        if options.normalize:
            score = total / torch.tensor(self._penalties(length.tolist()), dtype=total.dtype, device=self.device)
        if options.match_source_len:
            score = torch.where(length - 1 > lattice["lengths"][rows], -math.inf, score)
        done = []
        for i, (row, n) in enumerate(zip(rows.tolist(), length.tolist(), strict=True)):
            found = self.found[row]
            if len(found) < self.beam:
                found.append(Hypothesis(tokens[i, -n:], score[i], each[i, -n:]))
                if len(found) == self.beam:
                    done.append(row)
        return done

    def _penalties(self, lengths: list[int]) -> list[float]:
        """n^α; without these, all scores would be 0 or −∞ and their order chance."""
        power = self.options.lenpen
        try:
            penalties = [float(n) ** power for n in lengths]
        except OverflowError:
            penalties = [math.inf]
        if not all(_LEAST < penalty < _MOST for penalty in penalties):
            raise ValueError(
                f"lenpen {power}: {max(lengths)} tokens to this power are beyond the numbers that scores have; the "
                f"length penalty is usually from 0 to 2"
            )
        return penalties

    def _overdue(self, finished: list[int]) -> list[int]:
        over = [row for row, source in enumerate(self.sources) if self.steps[row] >= source.most]
        rest = [row for row in over if row not in finished]
        for row in rest:
            if not self.found[row]:
                name = self.sources[row].name
                raise FloatingPointError(f"no hypothesis of sentence {name} is left: {self._reason()}")
        return rest

    def _reason(self) -> str:
        broken = "the model's scores are no numbers, since its weights, or their precision, are broken"
        if self.options.no_repeat_ngram_size:
            return f"no_repeat_ngram_size {self.options.no_repeat_ngram_size} forbids whatever may follow, or {broken}"
        return broken


def log_sum_exp(logits: Tensor) -> Tensor:
    """log Σ_j exp(x_ij), (N, V) → (N,); a few rows at a time on a CPU, so that they stay in its cache."""
    if logits.device.type != "cpu" or logits.size(0) * logits.size(1) < 2**18:
        return logits.logsumexp(-1)
    rows = max(1, 2**18 // logits.size(1))
    top = logits.amax(-1, keepdim=True)
    out = logits.new_empty(logits.size(0))
    held = logits.new_empty(rows, logits.size(1))
    for first in range(0, logits.size(0), rows):
        part = logits[first : first + rows]
        work = held[: len(part)]
        torch.sub(part, top[first : first + rows], out=work)
        torch.sum(work.exp_(), -1, out=out[first : first + rows])
    return out.log_().add_(top[:, 0])
