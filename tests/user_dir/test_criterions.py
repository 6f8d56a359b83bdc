"""`--criterion macaron_label_smoothed_cross_entropy` against fairseq's own, in value, gradient and log."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.logging import metrics
from macaron.user_dir.criterions import rdrop
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel

from macaron import MacaronModel

PAD = 1
# Float32: the fused loss sums in another order, and never holds the logits of all tokens. A tenth is seen.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SUM = 1e-6  # relative; of positive float32 losses over 14 tokens: some ε, whatever the order
NAME = "macaron_label_smoothed_cross_entropy"


def tokens(*lengths: int) -> torch.Tensor:
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = torch.randint(4, 40, (length,))
    return batch


def sample() -> dict[str, Any]:
    target = tokens(6, 3, 5)
    net_input = {
        "src_tokens": tokens(4, 7, 2),
        "src_lengths": torch.tensor([4, 7, 2]),
        "prev_output_tokens": torch.cat([torch.full((3, 1), 2), target[:, :-1]], dim=1),
    }
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


def model(toy_task, **options):
    sizes = {"encoder_embed_dim": 16, "encoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    args = MacaronModel.config(**sizes, encoder_ffn_embed_dim=16, dropout=0.0, **options)
    return MacaronModel.build_model(args, toy_task())


def criterion(toy_task, name=NAME, label_smoothing=0.1, **options):
    task = toy_task()
    return CRITERION_REGISTRY[name](task, options.pop("sentence_avg", False), label_smoothing, **options)


def run(built, made, batch) -> tuple[torch.Tensor, list[torch.Tensor], Any, dict[str, Any]]:
    built.zero_grad()
    loss, size, log = made(built, batch)
    loss.sum().backward()
    return loss.detach(), [p.grad.clone() for p in built.parameters() if p.grad is not None], size, log


@pytest.mark.parametrize("share", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", [{}, {"ignore_prefix_size": 2}, {"sentence_avg": True}], ids=str)
def test_value_gradient_and_log_are_those_of_fairseq(toy_task, options, share):
    built = model(toy_task, share_all_embeddings=share)
    batch = sample()
    theirs = run(built, criterion(toy_task, "label_smoothed_cross_entropy", **options), batch)
    ours = run(built, criterion(toy_task, **options), batch)
    torch.testing.assert_close(ours[0], theirs[0], **TOLERANCE)
    assert len(ours[1]) == len(theirs[1])
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert ours[2] == theirs[2] and ours[3].keys() == theirs[3].keys()
    for key, value in theirs[3].items():
        assert float(ours[3][key]) == pytest.approx(float(value), rel=SUM)


def test_without_reduction_there_is_one_loss_for_each_token(toy_task):
    built, batch = model(toy_task), sample()
    ours = criterion(toy_task)(built, batch, reduce=False)[0]
    theirs = criterion(toy_task, "label_smoothed_cross_entropy")(built, batch, reduce=False)[0]
    assert ours.shape == (18,)
    torch.testing.assert_close(ours, theirs.flatten(), rtol=SUM, atol=1e-6)


def test_smoothing_over_the_whole_vocabulary_is_that_of_torch(toy_task):
    built, batch = model(toy_task), sample()
    loss, _, _ = criterion(toy_task, smoothing_over="all")(built, batch)
    logits = built(**batch["net_input"])[0].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(
        logits, batch["target"].flatten(), label_smoothing=0.1, ignore_index=PAD, reduction="sum"
    )
    torch.testing.assert_close(loss, expected, **TOLERANCE)


def test_the_logits_are_not_computed(toy_task, monkeypatch):
    built, batch = model(toy_task), sample()
    monkeypatch.setattr(built.decoder, "output_layer", lambda *_: pytest.fail("the logits were computed"))
    criterion(toy_task)(built, batch)


def test_report_accuracy_takes_fairseqs_way(toy_task):
    built, batch = model(toy_task), sample()
    real = batch["target"].ne(PAD)
    with torch.no_grad():
        best = built(**batch["net_input"])[0].argmax(-1)
    batch["target"][0, :4] = best[0, :4]  # at least these are right
    log = criterion(toy_task, report_accuracy=True)(built, batch)[2]
    assert log["total"] == 14 and log["n_correct"] == best[real].eq(batch["target"][real]).sum() >= 4


def test_a_language_model(toy_task):
    args = MacaronLanguageModel.config(decoder_embed_dim=16, decoder_attention_heads=2, decoder_layers=1, dropout=0.0)
    args.tokens_per_sample = 16
    built, target = MacaronLanguageModel.build_model(args, toy_task()), tokens(6, 4)
    batch = {"net_input": {"src_tokens": target.roll(1, 1)}, "target": target, "ntokens": 10}
    ours = run(built, criterion(toy_task), batch)
    theirs = run(built, criterion(toy_task, "label_smoothed_cross_entropy"), batch)
    torch.testing.assert_close(ours[:2], theirs[:2], **TOLERANCE)


class Noisy:
    """Two passes of one model differ as under dropout, but reproducibly: the second copies are moved."""

    def __init__(self, built):
        self.built = built
        self.handle = built.decoder.layers[0].register_forward_hook(self.move)

    @staticmethod
    def move(_module, _inputs, output):
        x = output[0]  # (T, B, C)
        shift = torch.linspace(-1, 1, x.size(2)) * (torch.arange(x.size(1)) >= x.size(1) // 2)[:, None]
        return (x + shift, *output[1:])


def test_rdrop_has_the_gradient_of_fairseqs(toy_task):
    built = model(toy_task).train()
    Noisy(built)
    ours = run(built, criterion(toy_task, rdrop_alpha=2.5), sample_of(3))
    theirs = run(built, criterion(toy_task, "label_smoothed_cross_entropy_with_rdrop", rdrop_alpha=2.5), sample_of(3))
    torch.testing.assert_close(ours[0], theirs[0], **TOLERANCE)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    # of differences of probabilities that are alike
    assert float(ours[3]["rdrop_kl_loss"]) == pytest.approx(theirs[3]["rdrop_kl_loss"], rel=1e-5)
    assert float(ours[3]["rdrop_kl_loss"]) > 0.1
    assert float(ours[3]["nll_loss"]) == pytest.approx(float(theirs[3]["nll_loss"]) / 2, rel=SUM)


def sample_of(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return sample()


def test_rdrop_leaves_validation_alone(toy_task):
    built, batch = model(toy_task).eval(), sample()
    loss, _, log = criterion(toy_task, rdrop_alpha=5.0)(built, batch)
    torch.testing.assert_close(loss, criterion(toy_task)(built, batch)[0])
    assert "rdrop_kl_loss" not in log


def test_rdrop_is_chunked(toy_task, monkeypatch):
    x, weight = torch.randn(14, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    ignored = torch.tensor([False, True, False, False, False, True, False])
    whole = rdrop.linear_symmetric_kl(x, weight, None, ignored)
    monkeypatch.setattr(rdrop, "CHUNK", 3 * 9)
    torch.testing.assert_close(rdrop.linear_symmetric_kl(x, weight, None, ignored), whole)
    p, q = ((side @ weight.T).log_softmax(-1) for side in x.chunk(2))
    both = [torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1) for a, b in ((p, q), (q, p))]
    torch.testing.assert_close(whole, (sum(both) / 2)[~ignored].sum())
    assert rdrop.linear_symmetric_kl(x[:0], weight, None, ignored[:0]) == 0


NOTHING = {
    "": {},
    "R-Drop": {"rdrop_alpha": 5.0},
    "over all": {"smoothing_over": "all"},
    "sentences": {"sentence_avg": True},
    "prefix": {"ignore_prefix_size": 99},
    "R-Drop, prefix": {"rdrop_alpha": 5.0, "ignore_prefix_size": 99},
    "accuracy": {"report_accuracy": True},
}


@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING)
def test_a_batch_without_a_target_has_neither_loss_nor_gradient(toy_task, options):
    """Alone it is a whole update, whose log is finite too; among others it adds nothing."""
    built, made = model(toy_task).train(), criterion(toy_task, **options)
    batch, full = sample(), sample()
    if "ignore_prefix_size" not in options:
        batch["target"].fill_(PAD)
        batch["ntokens"] = 0
    loss, gradients, _, log = run(built, made, batch)
    assert loss == 0 and gradients and not any(g.isnan().any() or g.any() for g in gradients)

    made.reduce_metrics([])
    for logs, expected in (([log], 0.0), ([log, log], 0.0), ([run(built, made, full)[3], log], None)):
        with metrics.aggregate() as found:
            made.reduce_metrics(logs)
        values = found.get_smoothed_values()
        assert all(math.isfinite(value) for value in values.values()), values
        assert {"loss", "nll_loss", "ppl"} <= values.keys()
        assert expected is None or values["loss"] == expected


def test_a_micro_batch_without_a_target_adds_nothing_to_the_average(toy_task):
    built, made = model(toy_task), criterion(toy_task)
    logs = [run(built, made, sample())[3]]
    empty = sample()
    empty["target"].fill_(PAD)
    logs.append(run(built, made, {**empty, "ntokens": 0})[3])
    with metrics.aggregate() as alone:
        made.reduce_metrics(logs[:1])
    with metrics.aggregate() as both:
        made.reduce_metrics(logs)
        made.reduce_metrics(logs[1:])
    assert both.get_smoothed_values() == alone.get_smoothed_values()


def test_bad_rdrop_is_refused(toy_task):
    with pytest.raises(ValueError, match=r"--rdrop-alpha -1\.0 must not be negative; 0 switches R-Drop off"):
        criterion(toy_task, rdrop_alpha=-1.0)
    with pytest.raises(ValueError, match=r"--rdrop-alpha 5\.0 needs a plain output projection; leave out"):
        criterion(toy_task, rdrop_alpha=5.0, report_accuracy=True)(model(toy_task).train(), sample())


def test_training_through_the_command_line(train, trained, tiny_data_bin, batches):
    """The losses of fairseq's criterion, and R-Drop's in the log."""
    smoothed = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1, "--disable-validation"]
    theirs = train(tiny_data_bin, *batches, *smoothed)
    smoothed[1] = NAME
    ours = train(tiny_data_bin, *batches, *smoothed)
    assert ours.losses == theirs.losses
    flags = ["--rdrop-alpha", 5, "--dropout", 0.3]
    noisy = train(tiny_data_bin, *batches, *smoothed, *flags)
    assert all(float(entry["rdrop_kl_loss"]) > 0 for entry in noisy.updates)
