"""Training by transformers' Trainer: equal updates however a batch is divided, resuming, LoRA."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from macaron.bert import MacaronBertForMaskedLM, MacaronBertForSequenceClassification

PROGRAM = Path(__file__).with_name("one_update.py")
program = runpy.run_path(str(PROGRAM))
KINDS, update = program["KINDS"], program["update"]


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    """Of each head, the parameters after an update on one batch of all examples."""
    folder = tmp_path_factory.mktemp("one_batch")
    return {kind: update(kind, folder, batch_size=8, accumulation=1) for kind in KINDS}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The same from two processes that accumulate two batches of two each."""
    folder = tmp_path_factory.mktemp("two_processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", PROGRAM, folder]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    return torch.load(folder / "results.pt")


def assert_same_update(kind: str, one: dict, other: dict) -> None:
    start = dict(program["build"](kind).named_parameters())
    moved = max((one[name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-3  # so that a factor would show
    for name, value in one.items():  # a thousandth of the move, in float32, of gradients summed in another order
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{kind}: {n}: {m}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_accumulation(kind, one_batch, tmp_path):
    assert_same_update(kind, one_batch[kind], update(kind, tmp_path, batch_size=2, accumulation=4))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes(kind, one_batch, two_processes):
    assert_same_update(kind, one_batch[kind], two_processes[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_data_parallelism(kind, two_processes):
    """No parameter is left without a gradient, not that of a pooler either."""
    gradients = two_processes[f"plain {kind}"]
    used = kind.startswith(("PreTraining", "SequenceClassification", "MultipleChoice"))
    assert any("pooler" in name for name in gradients) == used
    assert all(torch.isfinite(grad).all() for grad in gradients.values())
    assert used == any(grad.any() for name, grad in gradients.items() if "pooler" in name)


class Few(Dataset):
    """Sentences with one label in all, or none."""

    def __init__(self, labelled: bool, head: str) -> None:
        self.ids = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(0))
        self.labels = torch.full((4, 6) if head == "words" else (4,), -100)
        if labelled:
            self.labels.view(-1)[-1] = 1

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"input_ids": self.ids[i], "attention_mask": torch.ones_like(self.ids[i]), "labels": self.labels[i]}


@pytest.mark.parametrize("labelled", [True, False], ids=["a micro-batch", "the update"])
@pytest.mark.parametrize(
    ("head", "options", "shape"),
    [
        (MacaronBertForMaskedLM, {"sparse_prediction": True}, "words"),
        (MacaronBertForMaskedLM, {}, "words"),
        (MacaronBertForSequenceClassification, {"num_labels": 3}, "sentences"),
    ],
)
def test_accumulation_over_batches_without_a_label(head, options, shape, labelled, build, tmp_path):
    """The Trainer counts the labels of the update: some batches have none, or all."""

    def run(batch_size: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
            learning_rate=1.0,
            lr_scheduler_type="constant",
            optim="sgd",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Trainer(build(head, **options), arguments, train_dataset=Few(labelled, shape))
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        after = [p.detach() for p in trainer.model.parameters()]
        assert all(torch.isfinite(p).all() for p in after)
        assert labelled != all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return after

    for a, b in zip(run(4), run(1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32, gradients summed in another order


class Parity(Dataset):
    """Is the third token even?"""

    def __init__(self) -> None:
        self.ids = torch.randint(1, 50, (64, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        ids = self.ids[i]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[2] % 2}


def train(model, folder: Path, resume: bool = False) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        save_steps=3,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        max_steps=6,
    )
    trainer = Trainer(model, arguments, train_dataset=Parity(), eval_dataset=Parity())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_ends_where_an_unbroken_one_does(build, tmp_path):
    """With dropout, whose random numbers are part of a checkpoint."""

    def fresh():
        torch.manual_seed(0)
        return build(MacaronBertForSequenceClassification, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)

    whole = train(fresh(), tmp_path / "whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "broken" / "checkpoint-3")
    resumed = train(fresh(), tmp_path / "broken", resume=True)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)  # to the bit
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6

    prediction = resumed.predict(Parity())
    assert prediction.predictions.shape == (64, 2)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
    )
    assert resumed.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)  # float32, a mean of batches


def test_lora_on_the_projections(build, batch, tmp_path):
    peft = pytest.importorskip("peft")
    base = build(MacaronBertForSequenceClassification)
    base.save_pretrained(tmp_path / "base")
    before = base(**batch).logits
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["qkv_proj", "out_proj", "fc1", "fc2"])
    model = peft.get_peft_model(base, lora)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("lora_A" in name for name in trained) == 2 * 6  # layers × projections
    assert all("lora_" in name or "classifier" in name for name in trained)

    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    for _ in range(2):  # one of the two factors starts at zero
        optimizer.zero_grad()
        model.train()(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.any()) == (name in trained), name
    after = model.eval()(**batch).logits
    assert not torch.allclose(after, before, atol=1e-3)  # it has learned, far above rounding

    model.save_pretrained(tmp_path / "lora")
    fresh = MacaronBertForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "lora").eval()
    torch.testing.assert_close(loaded(**batch).logits, after, rtol=0, atol=1e-6)  # the same weights: some ε
    merged = loaded.merge_and_unload()(**batch).logits
    torch.testing.assert_close(merged, after, rtol=0, atol=1e-5)  # A B is added to W, and rounded with it


def test_training_without_padding_learns_like_training_with_it(build, batch):
    """A short run with packing on and off ends in the same losses."""
    losses = {}
    for padding_free in (True, False):
        torch.manual_seed(0)
        model = build(MacaronBertForMaskedLM, padding_free=padding_free).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        losses[padding_free] = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = model(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses[padding_free].append(loss.item())
    # float32: sums over padding in another order, carried on by ten updates; measured to 3e-7
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True][-1] < 0.6 * losses[True][0]


def test_layer_norm_tuning(build, batch):
    """peft puts a module of its own in the place of each norm: it must be called, in pre- and post-norm."""
    peft = pytest.importorskip("peft")
    for normalize_before in (True, False):
        base = build(MacaronBertForSequenceClassification, normalize_before=normalize_before)
        expected = base(**batch).logits
        config = peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["norms.0", "norms.1", "norms.2"])
        model = peft.get_peft_model(base, config)
        torch.testing.assert_close(model(**batch).logits, expected)  # it starts from the norms as they are
        tuned = {name: p for name, p in model.named_parameters() if p.requires_grad and "ln_tuning_layers" in name}
        assert len(tuned) == 2 * 3 * 2  # gain and offset of three norms in two layers
        model(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tuned.values())
