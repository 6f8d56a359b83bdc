"""Masks for the masked-language-model loss: a pure function of seed, pass, example and position.

Random numbers are counted, not drawn (SplitMix64; Steele, Lea, Flood 2014). So an example gets the same mask in
whatever batch, process or worker it comes up, and after a resumption, which transformers' own collator, drawing from
the state of a generator, cannot promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

IGNORED = -100  # label of positions that are not predicted
SEEN_AS_MASK, SEEN_AS_RANDOM = 0.8, 0.9  # below the first: [MASK]; between: a random piece; above: unchanged

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(z: Any) -> Any:
    """SplitMix64's finaliser on an array of uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(keys: Any, positions: int, channel: int) -> Any:
    """(B,) keys → (B, positions) numbers in [0, 1); channels are independent of each other."""
    counter = np.arange(positions, dtype=np.uint64) * np.uint64(4) + np.uint64(channel + 1)
    return (mixed(keys[:, None] + counter * _GOLDEN) >> np.uint64(11)) * 2.0**-53


def keys(seed: int, passes: Any, examples: Any) -> Any:
    """(B,) one key for each (pass, example)."""
    key = mixed(np.full(1, seed, np.uint64) + _GOLDEN)
    for part in (passes, examples):
        key = mixed((key ^ np.asarray(part, np.uint64)) + _GOLDEN)
    return key


class MaskingCollator:
    """Examples → a padded batch with 15 % of the ordinary tokens to predict (80 % [MASK], 10 % random, 10 % kept).

    The number of predicted tokens is exact, rounded, at least one. Special tokens are neither masked nor drawn.
    `attention_mask` is left out when nothing is padded, `token_type_ids` and `next_sentence_label` without pairs.

    Args:
        tokenizer: knows the special tokens.
        probability: share of the ordinary tokens to predict.
        seed: of the masks.
        copies: 0: new masks in each pass (dynamic); n: the masks of pass p are those of pass p mod n (static).
    """

    def __init__(self, tokenizer: Any, probability: float = 0.15, seed: int = 0, copies: int = 0):
        self.pad, self.mask = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.is_special = np.zeros(len(tokenizer), bool)
        self.is_special[tokenizer.all_special_ids] = True
        self.ordinary = np.flatnonzero(~self.is_special)
        self.probability, self.seed, self.copies = probability, seed, copies

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = np.array([len(example["input_ids"]) for example in examples])
        present = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
        ids = np.full(present.shape, self.pad, np.int64)
        ids[present] = np.concatenate([example["input_ids"] for example in examples])
        passes = np.array([example["pass"] for example in examples])
        key = keys(self.seed, passes % self.copies if self.copies else passes, [e["example"] for e in examples])
        batch: dict[str, Any] = dict(zip(("input_ids", "labels"), self.masked(ids, key), strict=True))
        if not present.all():
            batch["attention_mask"] = present.astype(np.int64)
        is_next = np.array([example["is_next"] for example in examples])
        if (is_next >= 0).all():
            second = np.array([example["second"] for example in examples])
            batch["token_type_ids"] = ((np.arange(ids.shape[1]) >= second[:, None]) & present).astype(np.int64)
            batch["next_sentence_label"] = is_next.astype(np.int64)
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def masked(self, ids: Any, key: Any) -> tuple[Any, Any]:
        """(input ids, labels), both (B, T)."""
        candidates = ~self.is_special[ids]
        wanted = np.maximum(1, np.rint(self.probability * candidates.sum(1)))
        order = np.where(candidates, uniform(key, ids.shape[1], 0), 2.0).argsort(1).argsort(1)  # rank, (B, T)
        chosen = candidates & (order < wanted[:, None])
        action = uniform(key, ids.shape[1], 1)
        drawn = self.ordinary[(uniform(key, ids.shape[1], 2) * len(self.ordinary)).astype(np.int64)]
        seen = np.where(action < SEEN_AS_MASK, self.mask, np.where(action < SEEN_AS_RANDOM, drawn, ids))
        return np.where(chosen, seen, ids), np.where(chosen, ids, IGNORED)
