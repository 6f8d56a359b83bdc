"""Cells that never move hold what caches that are reordered in every step would hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from macaron.decoding import Lattice

HEADS, WIDTH = 2, 3
# Float64: sums over more keys, most of them hidden, round otherwise.
TOLERANCE = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> None:
    """Attention by torch's kernel, and on several threads written out."""
    torch.set_num_threads(request.param)


class Reordered:
    """The usual caches: keys and values of every hypothesis from its first token on, copied whenever it is."""

    def __init__(self, beam: int) -> None:
        self.beam = beam
        self.rows: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # of each sentence and place, (H, T, D) each

    def join(self, count: int) -> None:
        empty = torch.empty(HEADS, 0, WIDTH, dtype=torch.float64)
        self.rows += [[(empty, empty)] * self.beam for _ in range(count)]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = []
        for n in range(len(q)):
            sentence, place = divmod(n, self.beam)
            past = self.rows[sentence][place]
            pair = tuple(torch.cat([old, new[n]], 1) for old, new in zip(past, (k, v), strict=True))
            self.rows[sentence][place] = pair
            out.append(F.scaled_dot_product_attention(q[n], *pair))
        return torch.stack(out)

    def advance(self, parents: torch.Tensor) -> None:
        self.rows = [
            [row[parent] for parent in chosen] for row, chosen in zip(self.rows, parents.tolist(), strict=True)
        ]


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("columns", [2, 32])
def test_it_attends_as_reordered_caches_do(beam, columns, monkeypatch) -> None:
    monkeypatch.setattr("macaron.decoding.lattice._COLUMNS", columns)
    lattice, plain = Lattice(beam), Reordered(beam)
    for step in range(40):
        if step in (0, 3, 11, 12, 25):  # sentences join in the middle of others' decoding
            lattice.join(2 + step % 3)
            plain.join(2 + step % 3)
        count = lattice.sentences * beam
        for name in ("a", "b") if step else ("a",):  # another evaluation, that begins later
            q, k, v = torch.randn(3, count, HEADS, 1, WIDTH, dtype=torch.float64)
            found = lattice.attend(name, q, k, v)
            if name == "a":
                torch.testing.assert_close(found, plain.attend(q, k, v), **TOLERANCE)
        parents = torch.randint(beam, (lattice.sentences, beam))
        lattice.advance(parents)
        plain.advance(parents)
        if step in (8, 9, 20):
            gone = [0, lattice.sentences - 1] if step != 9 else [1]
            moved = lattice.leave(gone)
            for origin, to in moved:
                plain.rows[to] = plain.rows[origin]
            del plain.rows[lattice.sentences :]
        assert len(plain.rows) == lattice.sentences
    assert lattice.now >= 31


def test_what_was_there_before_does_not_matter() -> None:
    """Keys of a sentence that has left may be NaN; so may those of a hypothesis whose scores were none."""
    lattice = Lattice(2)
    lattice.join(2)
    nan = torch.full((4, HEADS, 1, WIDTH), torch.nan)
    one = torch.ones(4, HEADS, 1, WIDTH)
    lattice.attend("a", one, nan, nan)
    lattice.advance(torch.zeros(2, 2, dtype=torch.long))
    lattice.leave([0])
    lattice.attend("a", one[:2], nan[:2], nan[:2])
    lattice.advance(torch.zeros(1, 2, dtype=torch.long))
    lattice.join(1)
    assert lattice.attend("a", one, one, one)[2:].equal(one[2:])
    mixed = one.clone()
    mixed[3] = torch.nan
    lattice.attend("a", one, mixed, mixed)
    lattice.clear(torch.tensor([[False, False], [False, True]]))
    lattice.advance(torch.zeros(2, 2, dtype=torch.long))
    assert lattice.attend("a", one, one, one)[2:].equal(one[2:])


def test_memories_of_any_length() -> None:
    lattice, beam = Lattice(2), 2
    memories = []
    for count, size in ((2, 3), (1, 5), (2, 2)):
        k, v = torch.randn(2, count, HEADS, size, WIDTH, dtype=torch.float64)
        hidden = torch.rand(count, size) < 0.4
        hidden[:, 1] = False
        lattice.join(count)
        lattice.remember("a", k, v, hidden if size != 2 else None)
        if size == 2:
            hidden[:] = False
        memories += [(k[i][:, ~hidden[i]], v[i][:, ~hidden[i]]) for i in range(count)]
        if size == 5:
            for origin, to in lattice.leave([0]):
                memories[to] = memories[origin]
            memories.pop()
        q = torch.randn(len(memories) * beam, HEADS, 1, WIDTH, dtype=torch.float64)
        expected = [F.scaled_dot_product_attention(q[n], *memories[n // beam]) for n in range(len(q))]
        torch.testing.assert_close(lattice.attend_memory("a", q), torch.stack(expected), **TOLERANCE)
