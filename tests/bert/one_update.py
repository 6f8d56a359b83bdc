"""One update of each head by the Trainer, for test_training.py; as a program, what one of several processes does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from macaron.bert import AUTO_CLASSES, MacaronBertConfig, MacaronBertModel

EXAMPLES, LENGTH, CHOICES = 8, 7, 3
# What makes a head's loss: problem type and number of labels of classifiers, and whether predictions are sparse.
KINDS = {
    "MaskedLM": {},
    "MaskedLM, sparse": {"sparse_prediction": True},
    "PreTraining": {},
    "PreTraining, sparse": {"sparse_prediction": True},
    "SequenceClassification": {"num_labels": 3},
    "SequenceClassification, regression": {"num_labels": 1},
    "SequenceClassification, several labels": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "SequenceClassification, one logit": {"num_labels": 1, "problem_type": "multi_label_classification"},
    "TokenClassification": {"num_labels": 3},
    "QuestionAnswering": {},
    "MultipleChoice": {},
}


class Examples(Dataset):
    """Sentences of different lengths with different numbers of labels."""

    def __init__(self, kind: str) -> None:
        g = torch.Generator().manual_seed(0)
        shape = (EXAMPLES, CHOICES, LENGTH) if kind == "MultipleChoice" else (EXAMPLES, LENGTH)
        lengths = torch.randint(3, LENGTH + 1, (*shape[:-1], 1), generator=g)
        real = torch.arange(LENGTH) < lengths
        ids = torch.randint(1, 30, shape, generator=g)
        self.columns = {"input_ids": ids * real, "attention_mask": real.long()}
        rows, kept = (
            (EXAMPLES,),
            torch.rand(shape, generator=g) < torch.linspace(0.2, 1.0, EXAMPLES).view(-1, *[1] * (len(shape) - 1)),
        )
        kept[..., 1] = True
        if kind.startswith(("MaskedLM", "PreTraining")):
            self.columns["labels"] = ids.masked_fill(~(real & kept), -100)
        if kind.startswith("PreTraining"):
            self.columns["next_sentence_label"] = torch.randint(0, 2, rows, generator=g)
        if kind == "TokenClassification":
            self.columns["labels"] = torch.randint(0, 3, shape, generator=g).masked_fill(~(real & kept), -100)
        if kind == "QuestionAnswering":  # LENGTH: the answer lies elsewhere
            for name in ("start_positions", "end_positions"):
                self.columns[name] = torch.randint(0, LENGTH + 1, rows, generator=g)
        if kind in ("SequenceClassification", "MultipleChoice"):
            self.columns["labels"] = torch.randint(0, 3, rows, generator=g)
        if kind.endswith("regression"):
            self.columns["labels"] = torch.randn(rows, generator=g)
        if kind.endswith("several labels"):
            self.columns["labels"] = torch.randint(0, 2, (EXAMPLES, 3), generator=g).float()
        if kind.endswith("one logit"):
            self.columns["labels"] = torch.randint(0, 2, rows, generator=g)

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


def build(kind: str, **options: Any) -> MacaronBertModel:
    head = next(m for m in AUTO_CLASSES.values() if m.__name__ == f"MacaronBertFor{kind.partition(',')[0]}")
    config = MacaronBertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        **{**KINDS[kind], **options},
    )
    torch.manual_seed(0)
    return head(config)


def update(kind: str, folder: Path, *, batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
    """The parameters after one step of gradient descent on all examples, and the loss that was logged."""
    model = build(kind)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    )
    trainer = Trainer(model, arguments, train_dataset=Examples(kind))
    trainer.train()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    log = trainer.state.log_history[0]
    return {**state, "logged loss": torch.tensor(log["loss"])}


def plain(kind: str) -> dict[str, torch.Tensor]:
    """The gradients after two steps under torch's own wrapper, which waits for every parameter."""
    model = torch.nn.parallel.DistributedDataParallel(build(kind, use_pooler=True))
    rank = torch.distributed.get_rank()
    for _ in range(2):
        model.zero_grad()
        model(
            **{name: column[4 * rank : 4 * rank + 4] for name, column in Examples(kind).columns.items()}
        ).loss.backward()
    return {name: p.grad.clone() for name, p in model.module.named_parameters()}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    results = {kind: update(kind, out, batch_size=2, accumulation=2) for kind in KINDS}
    for kind in KINDS:
        results[f"plain {kind}"] = plain(kind)
    if torch.distributed.get_rank() == 0:
        assert torch.distributed.get_world_size() == 2
        torch.save(results, out / "results.pt")
    torch.distributed.destroy_process_group()
