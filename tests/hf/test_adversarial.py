"""Trainer under an adversary: against loops by hand, in float64 and with dropout, for Macaron BERT and others."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from macaron.adversary import METHODS, Attack
from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification
from macaron.hf.adversarial import AdversarialTrainer, attacked, first_layer

# Float64; two orders of the same sums, over some hundred terms.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
STEP, RADIUS, INIT = 0.3, 0.5, 0.2
BALL = {"step_size": STEP, "norm": "l2", "radius": RADIUS, "init": INIT}
LOOPS = [method for method in METHODS if method not in ("natural", "freeat", "yopo-restored")]
SIZES = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
         "max_position_embeddings": 20, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}  # fmt: skip


def macaron(**options: Any) -> nn.Module:
    return MacaronBertForSequenceClassification(MacaronBertConfig(**{**SIZES, **options}))


def bert(**options: Any) -> nn.Module:
    return BertForSequenceClassification(BertConfig(**{**SIZES, **options}))


def distilbert(**options: Any) -> nn.Module:
    config = DistilBertConfig(vocab_size=50, dim=8, hidden_dim=8, n_layers=2, n_heads=2, max_position_embeddings=20)
    return DistilBertForSequenceClassification(config)


BUILD = {"macaron": macaron, "bert": bert, "distilbert": distilbert}
# Before 5.23 a layer of transformers runs its hooks within what it computes again.
OLD_CHECKPOINTING = "__call__" in vars(GradientCheckpointingLayer)


class Examples(Dataset):
    """Four sentences of 6, 3, 5 and 4 tokens, padded on the right; [CLS] is 2, [SEP] 3."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        real = torch.arange(6) < torch.tensor([[6], [3], [5], [4]])
        ids = torch.randint(4, 50, (4, 6), generator=generator)
        ids[:, 0] = 2
        ids.masked_fill_(torch.arange(6) == torch.tensor([[5], [2], [4], [3]]), 3)
        self.ids, self.mask, self.labels = ids * real, real.long(), torch.tensor([0, 1, 1, 0])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}

    def batch(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids, "attention_mask": self.mask, "labels": self.labels}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {"max_steps": 2, "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd"}
    given |= {"per_device_train_batch_size": 4, "save_strategy": "no", "max_grad_norm": 0.0, "logging_steps": 1}
    return TrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **{**given, **options}
    )


def trainer(model: nn.Module, folder: Path, attack: str | None, ball: Any = None, **options: Any) -> Any:
    special = {name: options.pop(name) for name in tuple(options) if name.startswith("adversary_")}
    given = {"args": arguments(folder, **options), "train_dataset": Examples()}
    if attack is None:
        return Trainer(model, **given)
    ball = BALL if ball is None else ball
    return AdversarialTrainer(
        model, attack=Attack.of(attack, **(ball if attack != "natural" else {})), **given, **special
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def step(made: Any, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step from seed 3, as Trainer calls it."""
    made.model.zero_grad()
    made.current_gradient_accumulation_steps = 1
    torch.manual_seed(3)
    loss = made.training_step(made.model, batch or Examples().batch(), None)
    return loss, gradients(made.model)


# --- by hand ------------------------------------------------------------------------------------------------------


@contextmanager
def moved(model: nn.Module, delta: Tensor, mask: Tensor) -> Iterator[list[Tensor]]:
    """δ by another embedding, and what the first layer returns. Macaron BERT's packs its particles."""
    embedding, firsts = model.get_input_embeddings(), []
    plain = embedding.forward

    def forward(ids: Tensor) -> Tensor:
        return plain(ids) + (delta[mask.bool()] if ids.dim() == 1 else delta)

    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    hook = nn.ModuleList.__getitem__(layers, 0).register_forward_hook(
        lambda _m, _i, out: firsts.append(out[0] if isinstance(out, tuple) else out)
    )
    embedding.forward = forward
    yield firsts
    del embedding.forward
    hook.remove()


def by_hand(model: nn.Module, method: str, steps: int, n: int) -> float:
    """The published loops; see the tests of fairseq's criterion, which they do not share a line with in the sources."""
    model.train()
    batch = Examples().batch()
    real = batch["attention_mask"].unsqueeze(-1).double()
    channels = model.get_input_embeddings().weight.size(1)
    draw = torch.empty(4, 6, channels, dtype=torch.float64).uniform_(-1, 1) * real
    delta = draw * INIT / (real.sum(1, keepdim=True) * channels).sqrt()
    state = torch.get_rng_state()

    def run(delta: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_rng_state(state)
        with moved(model, delta, batch["attention_mask"]) as firsts:
            loss = model(**batch).loss
        return loss, firsts[0]

    def ascend(delta: Tensor, gradient: Tensor) -> Tensor:
        gradient = gradient * real
        delta = delta + STEP * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
        length = delta.flatten(1).norm(dim=1)[:, None, None]
        return torch.where(length > RADIUS, delta * RADIUS / length, delta)

    passes = steps if method in ("freelb-hf", "yopo", "yopo-full", "yopo-hamiltonian") else steps + 1
    total = 0.0
    for s in range(passes):
        leaf = delta.clone().requires_grad_()
        loss, first = run(leaf)
        if method == "pgd" and s < steps:
            delta = ascend(delta, torch.autograd.grad(loss, leaf)[0])
            continue
        share = 1.0 if method == "pgd" else 1.0 / passes
        total += loss.item() * share
        costate = torch.autograd.grad(loss * share, first, retain_graph=True)
        by_first = torch.autograd.grad(first, list(model.parameters()), costate, True, allow_unused=True)
        (loss * share).backward()
        if method == "yopo-hamiltonian":  # all but what goes through the first layer
            for parameter, gradient in zip(model.parameters(), by_first, strict=True):
                if gradient is not None:
                    parameter.grad -= gradient
        if method.startswith("freelb"):
            delta = ascend(delta, leaf.grad)
        elif method.startswith("yopo") and (method != "yopo-fairseq" or s < steps):
            for _ in range(n):
                at = delta.clone().requires_grad_()
                delta = ascend(delta, torch.autograd.grad(run(at)[1], at, costate)[0])
            if method in ("yopo", "yopo-hamiltonian"):
                torch.autograd.backward(run(delta)[1], costate)
    return total


@pytest.mark.parametrize(
    ("built", "method"),
    [*(("macaron", method) for method in LOOPS), *(("bert", method) for method in LOOPS), ("distilbert", "yopo-full")],
)
def test_gradients_are_those_of_a_loop_by_hand(built: str, method: str, tmp_path: Path) -> None:
    model = BUILD[built]().double()
    n = 3 if method.startswith("yopo") else 1
    loss, found = step(trainer(model, tmp_path, f"{method}-2-{n}"))
    model.zero_grad()
    torch.manual_seed(3)
    mean = by_hand(model, method, 2, n)
    assert_same(found, gradients(model), **CLOSE)
    assert loss.item() == pytest.approx(mean, rel=1e-6) and not loss.requires_grad  # heads compute it in float32


# --- as Trainer trains --------------------------------------------------------------------------------------------


def trained(
    model: nn.Module, folder: Path, attack: str | None, **options: Any
) -> tuple[dict[str, Tensor], list[float]]:
    model = copy.deepcopy(model)
    made = trainer(model, folder, attack, **options)
    made.train()
    return dict(model.named_parameters()), [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def test_without_an_adversary_it_is_trainer(tmp_path: Path) -> None:
    model = macaron()
    expected, losses = trained(model, tmp_path, None)
    for attack, options in (("natural", {}), ("yopo-2-2", {"adversary_start_update": 2})):
        found, same = trained(model, tmp_path, attack, **options)
        assert_same(found, expected, rtol=0.0, atol=0.0)
        assert same == losses
    found, other = trained(model, tmp_path, "yopo-2-2", adversary_start_update=1)
    assert other[0] == losses[0] and other[1] != losses[1]
    assert any(not torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("attack", ["pgd-2", "freelb-hf-2", "yopo-2-2", "yopo-full-2-2"])
def test_an_update_is_the_same_however_its_batch_is_cut(attack: str, tmp_path: Path) -> None:
    """δ₀ is 0 and there is no dropout, which would be drawn for one batch or for two.

    Stock BERT's head divides by its own micro-batch, and Trainer believes otherwise (transformers#47688), also without
    an adversary; with a loss of one's own, as in recipes.glue, it is the same.
    """
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, options = macaron(**rates).double(), {"max_steps": 1, "ball": {**BALL, "init": 0.0}}
    one, losses = trained(model, tmp_path, attack, **options)
    cut = {**options, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    two, same = trained(model, tmp_path, attack, **cut)
    assert_same(two, one, **CLOSE)
    assert same == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("built", ["macaron", "bert"])
@pytest.mark.parametrize("attack", ["pgd-2", "yopo-2-2", "yopo-full-2-2"])
def test_activation_checkpointing_changes_nothing(built: str, attack: str, reentrant: bool, tmp_path: Path) -> None:
    model = BUILD[built]().double()
    _, expected = step(trainer(model, tmp_path, attack))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if OLD_CHECKPOINTING and built == "bert" and attack.startswith("yopo"):
        with pytest.raises(ValueError, match="in this version of transformers; update it"):
            trainer(model, tmp_path, attack)
        return
    assert_same(step(trainer(model, tmp_path, attack))[1], expected, **CLOSE)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model = macaron()
    options = {"adversary_start_update": 1, "save_strategy": "steps", "save_steps": 2}
    whole, losses = trained(model, tmp_path, "yopo-2-2", max_steps=4, **options)
    other = macaron()
    made = trainer(other, tmp_path, "yopo-2-2", max_steps=4, **options)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(dict(other.named_parameters()), whole, rtol=0.0, atol=0.0)
    assert [entry["loss"] for entry in made.state.log_history if "loss" in entry] == losses


def test_bf16_autocast_is_near_fp32(tmp_path: Path) -> None:
    """One inner step, taken at the δ of its pass, is FreeLB's; in eight bits to some hundredths."""
    model = macaron()
    yopo = step(trainer(model, tmp_path, "yopo-fairseq-2-1", bf16=True))[1]
    full = step(trainer(model, tmp_path, "yopo-fairseq-2-1"))[1]
    for name, value in yopo.items():
        assert value.dtype == torch.float32
        assert (value - full[name]).abs().max() <= 0.1 * full[name].abs().max() + 1e-3, name


def test_a_packed_row_is_its_sentences(tmp_path: Path) -> None:
    """Norms and projections per sentence: one row of two moves as two rows."""
    ids, labels = Examples().ids[[0, 2]], torch.tensor([0, 1])
    seen: list[Tensor] = []

    class Words(nn.Module):
        """A loss per token, so that both layouts have the same."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = MacaronBertForSequenceClassification(
                MacaronBertConfig(**{**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
            ).double()
            self.config = self.inner.config

        def get_input_embeddings(self) -> nn.Module:
            return self.inner.get_input_embeddings()

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            labels = inputs.pop("labels")
            states = self.inner.macaron_bert(**inputs).last_hidden_state
            real = states.flatten(0, 1).abs().sum(-1) > 0
            return {"loss": (states.flatten(0, 1)[real] ** 3).sum() + 0.0 * labels.sum()}

    model = Words()
    rows = {"input_ids": ids, "attention_mask": ids.ne(0).long(), "labels": labels}
    real = ids.ne(0)
    position = torch.arange(6).expand(2, 6)[real].unsqueeze(0)
    packed = {"input_ids": ids[real].unsqueeze(0), "position_ids": position, "labels": labels}
    found = []
    for batch in (rows, packed):
        made = trainer(model, tmp_path, "yopo-fairseq-2-2", {**BALL, "init": 0.0})
        found.append(step(made, batch)[1])
        seen.append(found[-1]["inner.macaron_bert.embeddings.word_embeddings.weight"])
    assert seen[0].abs().max() > 0
    assert_same(found[1], found[0], **CLOSE)


def test_special_tokens_stay_where_they_are_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from macaron.hf import adversarial

    seen, added = [], adversarial.added

    def noted(embedding: Any, tokens: Tensor, delta: Tensor, **options: Any) -> Any:
        seen.append(delta.detach())
        return added(embedding, tokens, delta, **options)

    monkeypatch.setattr(adversarial, "added", noted)
    model, ids = macaron(), Examples().ids
    model.config.cls_token_id, model.config.sep_token_id = 2, 3
    for special, still in (("move", ids.eq(0)), ("stay", ids.lt(4))):
        seen.clear()
        step(trainer(model, tmp_path, "freelb-hf-2", adversary_special=special))
        assert len(seen) == 2 and all(torch.equal(delta.eq(0).all(-1), still) for delta in seen)


# --- refused ------------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    model = macaron()
    for attack, options, reason in [
        ("freeat-2", {}, "Trainer takes a new batch for each; choose freelb-hf"),
        ("pgd-2", {"adversary_start_update": -1}, "must be at least 0"),
        ("pgd-2", {"adversary_start_update": 2.5}, "=2.5 must be at least 0, a whole number"),
        ("pgd-2", {"adversary_special": "no"}, "choose one of move, stay"),
        ("pgd-2", {"torch_compile": True}, "which a compiled graph leaves out"),
    ]:
        with pytest.raises(ValueError, match=reason):
            trainer(model, tmp_path, attack, **options)
    with pytest.raises(ValueError, match="multistep' passes two states on; choose freelb-hf"):
        trainer(macaron(depth_rule="multistep"), tmp_path, "yopo-2-2")
    small = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    albert = AlbertForSequenceClassification(AlbertConfig(**small, num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"no list of 3 layers.*one shared layer; choose freelb-hf"):
        trainer(albert, tmp_path, "yopo-2-2")
    step(trainer(albert, tmp_path, "freelb-hf-2"))
    batch = Examples().batch()
    ids = batch.pop("input_ids")
    embeds = {**batch, "inputs_embeds": model.get_input_embeddings()(ids)}
    with pytest.raises(ValueError, match="batch has attention_mask, inputs_embeds, labels; give it input_ids"):
        step(trainer(model, tmp_path, "pgd-2"), embeds)
    model.config.cls_token_id = model.config.sep_token_id = None
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(ValueError, match="which tokens are special; give processing_class"):
        step(trainer(model, tmp_path, "pgd-2", adversary_special="stay"))
    assert first_layer(bert()).__class__.__name__ == "BertLayer"
    assert not any(module._forward_hooks for module in model.modules())


# --- two processes ------------------------------------------------------------------------------------------------


TOGETHER: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd-2", {}),
    "freelb": ("freelb-hf-2", {}),
    "yopo without unused": ("yopo-2-2", {"ddp_find_unused_parameters": False}),
    "yopo-full": ("yopo-full-2-2", {}),
    "yopo-fairseq": ("yopo-fairseq-2-2", {}),
}


def update_of(folder: Path, attack: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = macaron(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_pooler=False).double()
    made = trainer(model, folder, attack, {**BALL, "init": 0.0}, max_steps=1, **options)
    made.train()
    return made


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """DistributedDataParallel looks for unused parameters by default, and need not."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("two_processes.py")), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = torch.load(tmp_path / "results.pt", weights_only=True)
    torch.manual_seed(0)
    start = dict(
        macaron(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_pooler=False).named_parameters()
    )
    for case, (attack, options) in TOGETHER.items():
        one = dict(update_of(tmp_path, attack, **options).model.named_parameters())
        assert max((one[name] - start[name]).abs().max().item() for name in one) > 1e-3, case  # a factor would show
        assert_same(found[case], one, **CLOSE)


# --- evaluation ---------------------------------------------------------------------------------------------------


def albert(**options: Any) -> nn.Module:
    return AlbertForSequenceClassification(AlbertConfig(**{**SIZES, "embedding_size": 8, **options}))


@pytest.mark.parametrize("build", [macaron, bert, distilbert, albert], ids=lambda build: build.__name__)
def test_attack_of_an_evaluation(build: Any) -> None:
    """By hand, for each sentence alone and without padding: so the batch it stands in does not matter."""
    torch.manual_seed(0)
    model = build().double().eval()
    batch = Examples().batch()
    labels = batch.pop("labels")
    attack = Attack("pgd", steps=3, **BALL)
    switches = [p.requires_grad for p in model.parameters()]

    def each(**inputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(**inputs).logits, labels[: len(inputs["input_ids"])], reduction="none")

    with attacked(model, batch, lambda: each(**batch).mean(), attack, seed=5) as delta, torch.no_grad():
        under = each(**batch)
    table = model.get_input_embeddings()
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids = batch["input_ids"][row : row + 1, :length]
        embedded = table(ids).detach()

        def loss(x: Tensor, row: int = row) -> Tensor:
            return nn.functional.cross_entropy(model(inputs_embeds=x).logits, labels[row : row + 1])

        still = Attack("pgd", step_size=1e-30, norm="l2", init=INIT)  # the start alone
        with attacked(model, {"input_ids": ids}, lambda ids=ids: model(ids).logits.sum(), still, seed=5) as mine:
            model(ids)
        for _ in range(3):
            mine.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(embedded + mine), mine)
            mine = (mine + STEP * gradient / gradient.norm()).detach()
            mine = mine * min(1.0, RADIUS / mine.norm().item())
        torch.testing.assert_close(delta[row, :length], mine[0], **CLOSE)
        assert not delta[row, length:].any()
        torch.testing.assert_close(under[row], loss(embedded + mine).detach(), **CLOSE)
    with torch.no_grad():
        assert (under > each(**batch)).all()
    assert switches == [p.requires_grad for p in model.parameters()] and all(p.grad is None for p in model.parameters())
    assert not table._forward_hooks


def test_evaluations_that_are_refused() -> None:
    model, batch = bert(), Examples().batch()
    for given, attack, reason in (
        (batch, "pgd-3", "'pgd-3' is no attack; give one, such as Attack.of"),
        (batch, Attack("pgd", **BALL, bounds=(0.0, 1.0)), "are of pixels, and would clip δ itself"),
        (batch, Attack("pgd", **BALL), "training mode"),
        (batch, Attack("freelb-hf", **BALL), "is a way to train"),
        ({"inputs_embeds": torch.zeros(1, 2, 8)}, Attack("pgd", **BALL), "but the batch has inputs_embeds"),
        ({**batch, "input_ids": batch["input_ids"][:1]}, Attack("pgd", **BALL), "which are not the batch's"),
    ):
        with pytest.raises(ValueError, match=reason), attacked(model, given, lambda: model(**batch).loss, attack):
            pass
        model.train(reason.startswith("are of"))  # the next is refused for that
    model.eval()
    batch_under_attack = attacked(model, batch, lambda: model(**batch).loss, Attack("pgd", **BALL))
    with torch.inference_mode(), pytest.raises(ValueError, match="forbids the gradients"), batch_under_attack:
        pass
