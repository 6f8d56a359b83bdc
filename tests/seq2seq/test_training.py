"""transformers' own trainers."""

from __future__ import annotations

from typing import Any

import torch
from macaron.user_dir.portable import describe
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from macaron.seq2seq import MacaronForConditionalGeneration, MacaronTokenizer
from macaron.seq2seq.conversion import convert


def parts(folder: Any, texts: list[str]) -> tuple[MacaronForConditionalGeneration, MacaronTokenizer, list[Any]]:
    tokenizer = MacaronTokenizer.from_pretrained(folder)
    rows = tokenizer(texts, text_target=texts)
    data = [{name: rows[name][i] for name in rows} for i in range(len(texts))]
    return MacaronForConditionalGeneration.from_pretrained(folder), tokenizer, data


def test_seq2seq_trainer_learns_and_generates(make_release, texts, tmp_path):
    convert(describe(make_release(dropout=0.0)), tmp_path / "model")
    model, tokenizer, data = parts(tmp_path / "model", texts)
    seen = {}

    def metrics(prediction: Any) -> dict[str, float]:
        seen["shape"] = prediction.predictions.shape
        return {"rows": float(len(prediction.predictions))}

    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 5}
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(tmp_path / "run"),
            **options,
            max_steps=15,
            learning_rate=3e-3,
            per_device_train_batch_size=5,
            predict_with_generate=True,
            generation_max_length=9,
            label_smoothing_factor=0.1,
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=metrics,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.9 * before and after["eval_rows"] == len(texts)
    assert seen["shape"][0] == len(texts)
    trainer.save_model(str(tmp_path / "saved"))
    again, _, _ = parts(tmp_path / "saved", texts)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_accumulated_batches_make_the_same_update(make_release, texts, tmp_path):
    convert(describe(make_release(dropout=0.0)), tmp_path / "model")
    grads = []
    for size in (4, 1):
        model, tokenizer, data = parts(tmp_path / "model", texts[:4])
        arguments = TrainingArguments(
            str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_steps=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, learning_rate=1.0,
            optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant",
        )  # fmt: skip
        collator = DataCollatorForSeq2Seq(tokenizer, model)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
        trainer.train()
        grads.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=0, atol=1e-5)
