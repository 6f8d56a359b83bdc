"""Keys and values of a beam search that stay where they were written.

A sentence has a lattice of cells (t, slot), one column for each step and one slot for each place of its beam. The token
that a slot has read at t has its keys and values in that cell, for good. What changes when hypotheses die, double and
change places is who descends from whom, a small table of numbers; a query then attends to all cells of its sentence
that are its ancestors. So the caches are written in place, read as views, and never reordered; and the keys of a
sentence are read once for its whole beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from macaron.ops.attention import sdpa

# Shapes: B sentences, K places of a beam, T columns, H heads, S particles of a memory, D channels of a head.

_COLUMNS = 32  # at first; then twice as many whenever they are full


@dataclass
class _Field:
    """A buffer with a row for each sentence; `time` is its dimension of columns, where it has one."""

    data: Tensor
    time: int | None


class Lattice:
    """The cells of the sentences that are decoded now, in rows 0 … B − 1 of every buffer.

    All sentences write into the same column at a time; each has a `start`, the column of its first token. A sentence
    that leaves gives its row to the last one; those that join come behind the others.

    Args:
        beam: K.
        device: where the tables are.

    Fields:
        sentences: B.
        now: the column that is written now.
        low: the first column that any sentence has.
        starts: (B,) long, the first column of each.
    """

    def __init__(self, beam: int, device: torch.device | str = "cpu") -> None:
        self.beam, self.device = beam, torch.device(device)
        self.sentences = self.now = self.low = 0
        self._rows, self._columns = 0, _COLUMNS
        self._slots = torch.arange(beam, device=device)
        self._fields: dict[str, _Field] = {}
        self._masks: dict[torch.dtype, Tensor | None] = {}
        self._memory_masks: dict[torch.dtype, Tensor | None] = {}
        self._longest_memory = 0
        self.add("ancestry", torch.long, (beam, 0), time=2)  # (B, K, T): the slot of each place's ancestor
        self.add("starts", torch.long, ())
        self.add("hidden", torch.bool, (0,))  # (B, S), padding of the memory

    # --- buffers ---

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], time: int | None = None) -> None:
        """A buffer of zeros by a name, (B, *shape); with `time`, that dimension has the columns."""
        full = [self._rows, *shape]
        if time is not None:
            full[time] = self._columns
        self._fields[name] = _Field(torch.zeros(full, dtype=dtype, device=self.device), time)

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __getitem__(self, name: str) -> Tensor:
        """The rows of the sentences that are there."""
        return self._fields[name].data[: self.sentences]

    @property
    def starts(self) -> Tensor:
        return self["starts"]

    def bytes(self) -> int:
        """Of all buffers."""
        return sum(field.data.nbytes for field in self._fields.values())

    def _resize(self, name: str, dim: int, size: int) -> None:
        field = self._fields[name]
        shape = list(field.data.shape)
        kept = min(shape[dim], size)
        shape[dim] = size
        grown = torch.zeros(shape, dtype=field.data.dtype, device=self.device)
        grown.narrow(dim, 0, kept).copy_(field.data.narrow(dim, 0, kept))
        field.data = grown

    # --- sentences ---

    def join(self, count: int) -> None:
        """`count` sentences more, whose first token is in the present column."""
        if not self.sentences:
            self.now = self.low = 0
        first, last = self.sentences, self.sentences + count
        if last > self._rows:
            for name in self._fields:
                self._resize(name, 0, last)
            self._rows = last
        for field in self._fields.values():
            if field.time is None:
                field.data[first:last].zero_()
            else:  # what stands there of sentences that have left may not be finite
                field.data[first:last].narrow(field.time, self.low, self.now - self.low + 1).zero_()
        self.sentences = last
        ancestry = self["ancestry"][first:last]
        ancestry[:, :, self.low : self.now] = -1
        ancestry[:, :, self.now] = self._slots
        self.starts[first:last] = self.now
        self._forget_masks()

    def leave(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Take these sentences out; returns (from, to) of the rows that took their places."""
        gone = set(rows)
        remaining = self.sentences - len(gone)
        holes = sorted(row for row in gone if row < remaining)
        moved = [row for row in range(remaining, self.sentences) if row not in gone]
        if holes:
            to, origin = (torch.tensor(part, device=self.device) for part in (holes, moved))
            for field in self._fields.values():
                if field.time is None:
                    field.data[to] = field.data[origin]
                else:
                    there = field.data.narrow(field.time, self.low, self.now - self.low + 1)
                    there[to] = there[origin]
        self.sentences = remaining
        self._forget_masks()
        if remaining:
            self.low = int(self.starts.min())
        return list(zip(moved, holes, strict=True))

    # --- columns ---

    def advance(self, parents: Tensor) -> None:
        """Go on to the next column, in which each place descends from `parents` (B, K), slots of the present one."""
        ancestry = self["ancestry"][:, :, self.low : self.now + 1]
        ancestry.copy_(ancestry.gather(1, parents[:, :, None].expand(-1, -1, ancestry.size(2))))
        if self.now + 1 == self._columns:
            self._make_room()
        self.now += 1
        self["ancestry"][:, :, self.now] = self._slots
        self._masks.clear()

    def _make_room(self) -> None:
        """Columns that no sentence has any more are given away, or there are twice as many."""
        timed = {name: field for name, field in self._fields.items() if field.time is not None}
        if self.low >= self._columns // 2:
            held = self.now + 1 - self.low
            for field in timed.values():
                assert field.time is not None
                rows = field.data[: self.sentences]
                rows.narrow(field.time, 0, held).copy_(rows.narrow(field.time, self.low, held))
            self._fields["starts"].data -= self.low
            self.now -= self.low
            self.low = 0
        else:
            self._columns *= 2
            for name, field in timed.items():
                assert field.time is not None
                self._resize(name, field.time, self._columns)

    def path(self, rows: Tensor, places: Tensor) -> Tensor:
        """(n,) rows and places → (n, T) the slots of their ancestors in columns `low` … `now`; −1 before the start."""
        return self["ancestry"][rows, places, self.low : self.now + 1]

    def replicate(self, rows: Tensor) -> None:
        """Let all places of these sentences, (B,) bool, have the ancestors of the first one, and be its twins."""
        ancestry = self["ancestry"][:, :, self.low : self.now + 1]
        ancestry.copy_(torch.where(rows[:, None, None], ancestry[:, :1], ancestry))
        self._masks.clear()

    # --- attention ---

    def _forget_masks(self) -> None:
        self._masks.clear()
        self._memory_masks.clear()

    def _mask(self, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, K, T K), 0 where a place sees a cell and −∞ elsewhere; None where it sees all."""
        if dtype not in self._masks:
            ancestry = self["ancestry"][:, :, self.low : self.now + 1]
            if self.beam == 1 and not bool((ancestry < 0).any()):
                self._masks[dtype] = None
            else:
                unseen = (ancestry[..., None] != self._slots).flatten(2)[:, None]
                zeros = torch.zeros(unseen.shape, dtype=dtype, device=self.device)
                self._masks[dtype] = zeros.masked_fill_(unseen, -torch.inf)
        return self._masks[dtype]

    def attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the newest tokens to themselves and their ancestors.

        Args:
            name: of the evaluation of a flow; each has keys of its own.
            q, k, v: (B K, H, 1, D) of the newest tokens; any strides.

        Returns:
            (B K, H, 1, D).
        """
        q, k, v = (self._by_sentence(t) for t in (q, k, v))  # (B, H, K, D)
        past = slice(self.low, self.now + 1)
        both = []
        for part, new in (("k", k), ("v", v)):
            key = f"{part} {name}"
            if key not in self._fields:
                self.add(key, new.dtype, (new.size(1), 0, self.beam, new.size(3)), time=2)
            cells = self[key]
            cells[:, :, self.now] = new
            both.append(cells[:, :, past].flatten(2, 3))  # (B, H, T K, D), a view
        return self._by_place(attention(q, both[0], both[1], self._mask(q.dtype)))

    def remember(self, name: str, k: Tensor, v: Tensor, hidden: Tensor | None) -> None:
        """Keys and values of a memory for the last sentences that joined.

        Args:
            name: of a flow.
            k, v: (B', H, S, D).
            hidden: (B', S) bool, True at padding.
        """
        count, size = k.size(0), k.size(2)
        first = self.sentences - count
        for part, new in (("k", k), ("v", v)):
            key = f"memory {part} {name}"
            if key not in self._fields:
                self.add(key, new.dtype, (new.size(1), size, new.size(3)))
            if self._fields[key].data.size(2) < size:
                self._resize(key, 2, size)
            self[key][first:, :, :size] = new
        self._hide(first, size, hidden)

    def _hide(self, first: int, size: int, hidden: Tensor | None) -> None:
        if self._fields["hidden"].data.size(1) < size:
            held = self._fields["hidden"].data.size(1)
            self._resize("hidden", 1, size)
            self["hidden"][:first, held:] = True
        rows = self["hidden"][first:]
        rows[:, size:] = True
        rows[:, :size] = False if hidden is None else hidden
        self._memory_masks.clear()

    def attend_memory(self, name: str, q: Tensor) -> Tensor:
        """Attention of the newest tokens, (B K, H, 1, D), to the memory of their sentence; returns the same shape."""
        q = self._by_sentence(q)
        if q.dtype not in self._memory_masks:
            hidden = self["hidden"]
            seen = (~hidden).any(0).nonzero()
            self._longest_memory = int(seen.max()) + 1 if len(seen) else hidden.size(1)
            hidden = hidden[:, None, None, : self._longest_memory]
            zeros = torch.zeros(hidden.shape, dtype=q.dtype, device=self.device)
            self._memory_masks[q.dtype] = zeros.masked_fill_(hidden, -torch.inf) if bool(hidden.any()) else None
        k, v = (self[f"memory {part} {name}"][:, :, : self._longest_memory] for part in "kv")
        return self._by_place(attention(q, k, v, self._memory_masks[q.dtype]))

    def _by_sentence(self, t: Tensor) -> Tensor:
        """(B K, H, 1, D) → (B, H, K, D), a view."""
        return t.squeeze(2).unflatten(0, (-1, self.beam)).transpose(1, 2)

    def _by_place(self, t: Tensor) -> Tensor:
        """(B, H, K, D) → (B K, H, 1, D)."""
        return t.transpose(1, 2).flatten(0, 1)[:, :, None]

    def clear(self, lost: Tensor) -> None:
        """Zeros for the keys and values in the present cells of places, (B, K) bool, that are not finite: 0 · NaN."""
        for name in self._fields:
            if name.startswith(("k ", "v ")):
                cells = self[name][:, :, self.now]  # (B, H, K, D)
                cells.masked_fill_(lost[:, None, :, None], 0)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √D + mask) v, of (B, H, K, D) and (B, H, S, D).

    On several threads of a CPU torch's kernel takes longer than its parts for so few queries: recipes/bench/README.md.
    """
    if q.device.type != "cpu" or torch.get_num_threads() == 1:
        return sdpa(q, k, v, mask)
    weights = torch.bmm((q * q.size(-1) ** -0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], -1)
    if mask is not None:
        weights += mask
    return torch.bmm(weights.softmax(-1).flatten(0, 1), v.flatten(0, 1)).view(q.shape)


class SelfCache:
    """A `Lattice` as the cache of one self-attention's layer: `caches.own`."""

    def __init__(self, lattice: Lattice, name: str) -> None:
        self._lattice, self._name = lattice, name

    def attend(self, suffix: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._lattice.attend(f"{self._name}{suffix}", q, k, v)


class MemoryCache:
    """A `Lattice` as the cache of one cross-attention's layer: `caches.memory`."""

    def __init__(self, lattice: Lattice, name: str) -> None:
        self._lattice, self._name = lattice, name

    def attend_memory(self, suffix: str, q: Tensor) -> Tensor:
        return self._lattice.attend_memory(f"{self._name}{suffix}", q)
