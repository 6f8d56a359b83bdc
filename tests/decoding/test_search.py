"""The search against one that is written down plainly, on a model that is a table; order, room, and bad input."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macaron.decoding import BeamSearch, Lattice, Options, Source, Symbols
from macaron.decoding.search import log_sum_exp

SYMBOLS = Symbols(start=2, end=2, pad=1, unknown=3)


class Table:
    """Logits by the source, the position and the last word; what came before acts through `weight`."""

    def __init__(self, vocabulary: int, seed: int = 0, sharp: float = 2.0) -> None:
        self.vocabulary, self.sharp = vocabulary, sharp
        generator = torch.Generator().manual_seed(seed)
        self.words = sharp * torch.randn(50, vocabulary, generator=generator, dtype=torch.float64)
        self.places = sharp * torch.randn(200, vocabulary, generator=generator, dtype=torch.float64)
        self.sources = sharp * torch.randn(64, vocabulary, generator=generator, dtype=torch.float64)
        self.words[:, SYMBOLS.end] += 1.0
        self.batches: list[int] = []

    def begin(self, beam: int) -> Lattice:
        lattice = Lattice(beam)
        lattice.add("source", torch.long, ())
        return lattice

    def read(self, lattice: Lattice, tokens: list[torch.Tensor]) -> None:
        lattice["source"][-len(tokens) :] = torch.stack([source[0] for source in tokens])

    def logits(self, source: torch.Tensor, position: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        return self.words[word % 50] + self.places[position] + self.sources[source]

    def step(self, lattice: Lattice, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(tokens))
        return self.logits(lattice["source"][:, None], positions[:, None], tokens).flatten(0, 1)


def plainly(model: Table, source: int, most: int, options: Options) -> list[tuple[list[int], float]]:
    """Beam search of one sentence, hypothesis by hypothesis."""
    alive: list[tuple[float, list[int]]] = [(0.0, [SYMBOLS.start])]
    found: list[tuple[list[int], float]] = []
    for step in range(most + 1):
        candidates = []
        for total, words in alive:
            where = [torch.tensor(n) for n in (source, step, words[-1])]
            row = (model.logits(*where) / options.temperature).log_softmax(-1)
            row[SYMBOLS.pad] = -math.inf
            row[SYMBOLS.unknown] -= options.unkpen
            if step == most:
                row[torch.arange(len(row)) != SYMBOLS.end] = -math.inf
            if step < options.min_len:
                row[SYMBOLS.end] = -math.inf
            n = options.no_repeat_ngram_size
            for i in range(len(words) - n + 1 if n else 0):
                if words[i : i + n - 1] == words[-(n - 1) :]:
                    row[words[i + n - 1]] = -math.inf
            values, best = row.topk(2 * options.beam)
            candidates += [
                (total + value, [*words, word]) for value, word in zip(values.tolist(), best.tolist(), strict=True)
            ]
        candidates = sorted((c for c in candidates if c[0] > -math.inf), key=lambda c: -c[0])[: 2 * options.beam]
        for total, words in candidates[: options.beam]:
            if words[-1] == SYMBOLS.end and len(found) < options.beam:
                score = total / (step + 1) ** options.lenpen if options.normalize else total
                found.append((words[1:], score))
        if len(found) == options.beam:
            break
        alive = [(total, words) for total, words in candidates if words[-1] != SYMBOLS.end][: options.beam]
    return sorted(found, key=lambda one: -one[1])


@given(
    st.builds(
        Options,
        beam=st.integers(1, 6),
        max_len_b=st.integers(3, 14),
        min_len=st.integers(0, 3),
        normalize=st.booleans(),
        lenpen=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
        unkpen=st.sampled_from([0.0, 1.0, -3.0]),
        temperature=st.sampled_from([0.5, 1.0, 3.0]),
        no_repeat_ngram_size=st.sampled_from([0, 2, 3]),
    ),
    st.sampled_from([20, 700, 3001]),  # sorted at once; in blocks; in blocks and a rest
    st.integers(0, 2**20),
    st.integers(1, 4),
)
@settings(max_examples=25)
def test_it_finds_what_a_plain_search_finds(options: Options, vocabulary: int, seed: int, room: int) -> None:
    model = Table(vocabulary, seed)
    sources = [Source(n, torch.tensor([n, 2]), options.most(2)) for n in range(5)]
    found = dict(BeamSearch(model, SYMBOLS, options)(sources, room=room))
    assert sorted(found) == list(range(5)) and max(model.batches) == min(room, 5)
    for n, hypotheses in found.items():
        expected = plainly(model, n, options.most(2), options)
        assert [one.tokens.tolist() for one in hypotheses] == [words for words, _ in expected]
        # float64: other orders of sums
        assert [float(one.score) for one in hypotheses] == pytest.approx([score for _, score in expected], abs=1e-9)
        for one in hypotheses:
            total = float(one.score) * (len(one.tokens) ** options.lenpen if options.normalize else 1)
            assert float(one.positional_scores.sum()) == pytest.approx(total, abs=1e-9)


def test_places_are_filled_again() -> None:
    """A batch stays full while sentences wait, and the results do not depend on it."""
    options = Options(beam=3, max_len_b=12)
    sources = [Source(n, torch.tensor([n, 2]), 3 + n % 9) for n in range(40)]
    model = Table(50)
    found = dict(BeamSearch(model, SYMBOLS, options)(sources, room=8))
    steps, full = len(model.batches), sum(size > 5 for size in model.batches)
    assert full > 0.8 * steps and max(model.batches) == 8
    alone = {}
    for source in sources:
        alone |= dict(BeamSearch(Table(50), SYMBOLS, options)([source]))
    for n, hypotheses in found.items():
        assert [one.tokens.tolist() for one in hypotheses] == [one.tokens.tolist() for one in alone[n]]
        assert [float(one.score) for one in hypotheses] == [float(one.score) for one in alone[n]]


def test_room_in_tokens() -> None:
    """Counted as long as the longest, at least 16; one that is longer than there is room comes alone."""
    sources = [Source(n, torch.tensor([n, *[5] * size, 2]), 4) for n, size in enumerate((2, 2, 2, 2, 98))]
    model = Table(50)
    assert len(dict(BeamSearch(model, SYMBOLS, Options(beam=2))(sources, tokens=50, refill=1.0))) == 5
    assert max(model.batches) == 3


class Broken(Table):
    """No numbers for one hypothesis, or for all."""

    def __init__(self, rows: slice, value: float) -> None:
        super().__init__(50)
        self.rows, self.value = rows, value

    def step(self, lattice: Lattice, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits = super().step(lattice, tokens, positions)
        if int(positions[0]) == 2:
            logits[self.rows, 7] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers(value) -> None:
    sources = [Source(n, torch.tensor([n, 2]), 9) for n in range(2)]
    options = Options(beam=3, min_len=4)
    found = dict(BeamSearch(Broken(slice(0, 1), value), SYMBOLS, options)(sources))
    assert all(math.isfinite(float(one.score)) for hypotheses in found.values() for one in hypotheses)
    assert [len(hypotheses) for hypotheses in found.values()] == [3, 3]
    with pytest.raises(FloatingPointError, match="no hypothesis of sentence 0 is left: the model's scores are no"):
        dict(BeamSearch(Broken(slice(0, 3), value), SYMBOLS, options)(sources))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam 0 must be at least 1"),
        ({"temperature": 0.0}, "temperature 0.0 must be positive"),
        ({"no_repeat_ngram_size": 1}, "no_repeat_ngram_size 1 must be 0 or at least 2"),
        ({"min_len": 9, "max_len_b": 4}, "min_len 9 is more than the greatest length, 4, of the translation of 2"),
        ({"beam": 25}, "beam 25: a search among 50 words needs a smaller one"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BeamSearch(Table(50), SYMBOLS, Options(**options)).options.most(2)


@pytest.mark.parametrize("lenpen", [400.0, 30.0, -30.0])
def test_a_length_penalty_beyond_all_numbers(lenpen) -> None:
    """Scores of 0 or −∞ would come in any order; what can be told apart is sorted as ever."""
    source = Source(0, torch.tensor([5, 2]), 30)
    with pytest.raises(ValueError, match=rf"lenpen {lenpen}: \d+ tokens to this power are beyond"):
        dict(BeamSearch(Table(50), SYMBOLS, Options(beam=3, min_len=20, lenpen=lenpen))([source]))
    options = Options(beam=3, lenpen=math.copysign(10, lenpen))
    (found,) = dict(BeamSearch(Table(50), SYMBOLS, options)([source])).values()
    scores = [float(one.score) for one in found]
    assert scores == sorted(scores, reverse=True) and all(-math.inf < score < 0 for score in scores)


def test_what_leaves_no_word_is_named() -> None:
    """A prefix that repeats itself, where nothing may be repeated."""
    prefix = torch.tensor([5, 6, 5, 6])
    options = Options(beam=2, no_repeat_ngram_size=2)
    with pytest.raises(FloatingPointError, match="is left: no_repeat_ngram_size 2 forbids whatever may follow, or the"):
        dict(BeamSearch(Table(50), SYMBOLS, options)([Source(0, torch.tensor([5, 2]), 9, prefix=prefix)]))


@pytest.mark.parametrize("shape", [(3, 10), (40, 9000), (1, 300_000)])
def test_log_sum_exp(shape) -> None:
    """In parts as at once."""
    x = 10 * torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(log_sum_exp(x), x.logsumexp(-1), rtol=1e-13, atol=0)
