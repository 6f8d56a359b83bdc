from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from recipes.bert_pretrain.masking import IGNORED, MaskingCollator


class Vocabulary(SimpleNamespace):
    pad_token_id, mask_token_id = 0, 4
    all_special_ids = [0, 1, 2, 3, 4]  # noqa: RUF012

    def __len__(self) -> int:
        return 105


def example(number: int = 0, length: int = 100, which_pass: int = 0, **more: Any) -> dict[str, Any]:
    ids = np.concatenate([[2], np.random.default_rng(number).integers(5, 105, length - 2), [3]])
    return {"input_ids": ids, "second": length, "is_next": -1, "pass": which_pass, "example": number, **more}


def collator(**options: Any) -> MaskingCollator:
    return MaskingCollator(Vocabulary(), **options)


def test_shares_and_what_is_never_masked() -> None:
    examples = [example(n, 202) for n in range(500)]
    batch = collator()(examples)
    ids = torch.tensor(np.stack([e["input_ids"] for e in examples]))
    chosen = batch["labels"] != IGNORED
    assert (chosen.sum(1) == 30).all()  # 15 % of 200, exactly
    assert (batch["labels"][chosen] == ids[chosen]).all()
    assert not chosen[ids < 5].any()
    assert (batch["input_ids"][~chosen] == ids[~chosen]).all()
    seen, was = batch["input_ids"][chosen], ids[chosen]
    masked = (seen == 4).float().mean()
    kept = (seen == was).float().mean()
    replaced = seen[(seen != 4) & (seen != was)]
    assert abs(masked - 0.8) < 0.012 and abs(kept - 0.101) < 0.01  # 15,000 tokens: 3 standard deviations
    assert replaced.min() == 5 and replaced.max() == 104  # drawn from all ordinary pieces, no others
    places = chosen.float().mean(0)[1:-1]
    assert places.min() > 0.08 and places.max() < 0.22  # everywhere alike (standard deviation .016)


def test_a_mask_depends_on_pass_and_example_alone() -> None:
    make = collator(seed=7)
    alone = make([example(3)])
    among = make([example(9, 128), example(3), example(4, 50)])
    assert torch.equal(alone["labels"][0], among["labels"][1, :100])
    assert torch.equal(alone["input_ids"][0], among["input_ids"][1, :100])
    same = collator(seed=7)([example(3)])
    assert all(torch.equal(same[name], alone[name]) for name in alone)
    for other in (
        collator(seed=8)([example(3)]),
        make([example(3, which_pass=1)]),
        make([{**example(3), "example": 4}]),
    ):
        assert not torch.equal(other["labels"], alone["labels"])


def test_static_masks_come_back() -> None:
    def labels(copies: int, which_pass: int) -> torch.Tensor:
        return collator(copies=copies)([example(which_pass=which_pass)])["labels"]

    assert torch.equal(labels(1, 0), labels(1, 5))
    assert torch.equal(labels(3, 1), labels(3, 4)) and not torch.equal(labels(3, 1), labels(3, 2))


def test_padding_segments_and_labels() -> None:
    full = collator()([example(0), example(1)])
    assert set(full) == {"input_ids", "labels"}  # nothing padded, no pairs
    batch = collator()([example(0, 10, second=6, is_next=1), example(1, 7, second=3, is_next=0)])
    assert batch["attention_mask"].tolist() == [[1] * 10, [1] * 7 + [0] * 3]
    assert batch["token_type_ids"].tolist() == [[0] * 6 + [1] * 4, [0] * 3 + [1] * 4 + [0] * 3]
    assert batch["next_sentence_label"].tolist() == [1, 0]
    assert (batch["input_ids"][1, 7:] == 0).all() and (batch["labels"][1, 7:] == IGNORED).all()
    assert ((batch["labels"] != IGNORED).sum(1) == 1).all()  # at least one


def test_nothing_to_mask() -> None:
    batch = collator()([{**example(), "input_ids": np.array([2, 1, 3])}])
    assert (batch["labels"] == IGNORED).all()
