"""`--criterion macaron_adversarial`: against loops written by hand, in float64 and with dropout; as fairseq trains."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from fairseq.tasks import FairseqTask
from macaron.user_dir.criterions import adversarial, reads_attention
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel
from torch import Tensor, nn

from macaron import MacaronModel
from macaron.adversary import METHODS, Attack

PAD, EOS = 1, 2
# Float64; two orders of the same sums, over some hundred terms.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
STEP, RADIUS, INIT = 0.3, 0.5, 0.2
ATTACK = {"adversary_step_size": STEP, "adversary_norm": "l2", "adversary_radius": RADIUS, "adversary_init": INIT}
LOOPS = [method for method in METHODS if method not in ("natural", "freeat", "yopo-restored")]
FAIRSEQS = "label_smoothed_cross_entropy"
OURS = "macaron_label_smoothed_cross_entropy"  # in float64 where the model is; fairseq's is in float32


class Task(FairseqTask):
    """fairseq's own train_step, and dictionaries without data."""

    def __init__(self, words: int = 40) -> None:
        super().__init__(SimpleNamespace())
        self.words = Dictionary()
        for i in range(words):
            self.words.add_symbol(f"word{i}")

    @property
    def source_dictionary(self) -> Dictionary:
        return self.words

    @property
    def target_dictionary(self) -> Dictionary:
        return self.words


class Optimizer:
    """What a step needs of fairseq's; it notes the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def backward(self, loss: Tensor) -> None:
        self.losses.append(loss.item())
        loss.backward()


def tokens(*lengths: int) -> Tensor:
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = torch.randint(4, 40, (length,))
        row[length - 1] = EOS
    return batch


def sample(rows: slice = slice(None), lm: bool = False) -> dict[str, Any]:
    torch.manual_seed(5)
    source, target = tokens(4, 7, 3), tokens(6, 3, 5)
    before = torch.cat([torch.full((3, 1), EOS), target[:, :-1]], dim=1)[rows]
    target = target[rows]
    net_input = {"src_tokens": before} if lm else {"src_tokens": source[rows], "prev_output_tokens": before}
    net_input["src_lengths"] = net_input["src_tokens"].ne(PAD).sum(1)
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


SIZES = {"encoder_embed_dim": 8, "encoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2}


def macaron(task: Task, **options: Any) -> nn.Module:
    pre_norm = {"encoder_normalize_before": True, "decoder_normalize_before": True}
    options = {"dropout": 0.2, "activation_dropout": 0.1, "encoder_ffn_embed_dim": 8, **pre_norm, **options}
    return MacaronModel.build_model(MacaronModel.config(**SIZES, **options), task).double().train()


def transformer(task: Task, **options: Any) -> nn.Module:
    args = Namespace(**SIZES, encoder_ffn_embed_dim=8, **{"dropout": 0.2, **options})
    base_architecture(args)
    return TransformerModel.build_model(args, task).double().train()


def lm(task: Task, **options: Any) -> nn.Module:
    sizes = {"decoder_embed_dim": 8, "decoder_attention_heads": 2, "decoder_layers": 2, "decoder_ffn_embed_dim": 8}
    args = MacaronLanguageModel.config(**sizes, **{"dropout": 0.2, **options})
    args.tokens_per_sample = 16
    return MacaronLanguageModel.build_model(args, task).double().train()


def criterion(task: Task, inner: str | None = OURS, **options: Any) -> Any:
    given = {"label_smoothing": 0.1, "sentence_avg": False, **options}
    given = {name: value for name, value in given.items() if value is not None}
    return task.build_criterion(Namespace(criterion=adversarial.NAME, inner=inner, **given))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def step(task: Task, model: nn.Module, made: Any, batch: dict[str, Any], update: int = 0, **options: Any) -> Any:
    """One training step from seed 3: (what train_step returned, gradients, losses that went backward)."""
    model.zero_grad()
    torch.manual_seed(3)
    optimizer = Optimizer()
    result = task.train_step(batch, model, made, optimizer, update, **options)
    return result, gradients(model), optimizer.losses


# --- by hand ------------------------------------------------------------------------------------------------------


class Moved(nn.Module):
    """An embedding and δ."""

    def __init__(self, embedding: nn.Module, delta: Tensor) -> None:
        super().__init__()
        self.embedding, self.delta = embedding, delta
        self.padding_idx = PAD

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) + self.delta


@contextmanager
def moved(part: nn.Module, delta: Tensor) -> Iterator[None]:
    plain = part.embed_tokens
    part.embed_tokens = Moved(plain, delta)
    yield
    part.embed_tokens = plain


def by_hand(model: nn.Module, inner: Any, batch: dict[str, Any], method: str, steps: int, n: int, on: str) -> float:
    """The published loops, with gradients left in the model; the mean of the losses that train.

    The first layer's output is seen by a hook on that layer, and p is the gradient that the whole backward pass has
    there. An ascent on the first layer alone runs the whole model again and uses that output alone.
    """
    encoder = getattr(model, "encoder", None)
    net_input = batch["net_input"]
    parts = {"source": encoder or model.decoder, "target": model.decoder}
    keys = {"source": "src_tokens", "target": "prev_output_tokens" if encoder else "src_tokens"}
    names = ["source", "target"] if on == "both" else [on]
    real = torch.cat([net_input[keys[name]].ne(PAD) for name in names], 1).unsqueeze(-1).double()
    widths = [net_input[keys[name]].size(1) for name in names]
    channels = parts[names[0]].embed_tokens.embedding_dim
    draw = torch.empty(*real.shape[:2], channels, dtype=torch.float64).uniform_(-1, 1) * real
    delta = draw * INIT / (real.sum(1, keepdim=True) * channels).sqrt()
    state = torch.get_rng_state()

    def run(delta: Tensor) -> tuple[Tensor, list[Tensor]]:
        torch.set_rng_state(state)
        firsts: list[Tensor] = []
        with ExitStack() as stack:
            for name, own in zip(names, delta.split(widths, 1), strict=True):
                stack.enter_context(moved(parts[name], own))
                layer = nn.ModuleList.__getitem__(parts[name].layers, 0)
                hook = layer.register_forward_hook(lambda _m, _i, o: firsts.append(o[0] if isinstance(o, tuple) else o))
                stack.callback(hook.remove)
            return inner(model, batch)[0], firsts

    def ascend(delta: Tensor, gradient: Tensor) -> Tensor:
        gradient = gradient * real
        delta = delta + STEP * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
        length = delta.flatten(1).norm(dim=1)[:, None, None]
        return torch.where(length > RADIUS, delta * RADIUS / length, delta)

    passes = steps if method in ("freelb-hf", "yopo", "yopo-full", "yopo-hamiltonian") else steps + 1
    total = 0.0
    for s in range(passes):
        leaf = delta.clone().requires_grad_()
        loss, firsts = run(leaf)
        if method == "pgd" and s < steps:
            delta = ascend(delta, torch.autograd.grad(loss, leaf)[0])
            continue
        share = 1.0 if method == "pgd" else 1.0 / passes
        total += loss.item() * share
        costates = torch.autograd.grad(loss * share, firsts, retain_graph=True)
        by_first = torch.autograd.grad(firsts, list(model.parameters()), costates, True, allow_unused=True)
        (loss * share).backward()
        if method == "yopo-hamiltonian":  # all but what goes through the first layer
            for parameter, gradient in zip(model.parameters(), by_first, strict=True):
                if gradient is not None:
                    parameter.grad -= gradient
        if method.startswith("freelb"):
            delta = ascend(delta, leaf.grad)
        elif method.startswith("yopo") and (method != "yopo-fairseq" or s < steps):
            begin = delta
            for _ in range(n):
                at = delta.clone().requires_grad_()
                gradient = torch.autograd.grad(run(at)[1][0], at, costates[0])[0]
                if len(names) > 1:  # the decoder's by its own δ, at the memory of the pass
                    both = torch.cat([begin[:, : widths[0]], at[:, widths[0] :]], 1)
                    gradient[:, widths[0] :] = torch.autograd.grad(run(both)[1][1], at, costates[1])[0][:, widths[0] :]
                delta = ascend(delta, gradient)
            if method in ("yopo", "yopo-hamiltonian"):
                torch.autograd.backward(run(delta)[1], costates)
    return total


BUILD: dict[str, Callable[..., nn.Module]] = {"macaron": macaron, "transformer": transformer, "lm": lm}


@pytest.mark.parametrize(
    ("built", "method", "on"),
    [
        *[("macaron", method, "source") for method in LOOPS],
        *[("macaron", method, "target") for method in ("pgd", "freelb-fairseq", "yopo-full", "yopo-fairseq")],
        *[("macaron", method, "both") for method in ("freelb-hf", "yopo-full")],
        *[("transformer", method, "source") for method in ("freelb-fairseq", "yopo", "yopo-fairseq")],
        ("transformer", "yopo-full", "both"),
        *[("lm", method, "source") for method in ("freelb-fairseq", "yopo", "yopo-fairseq")],
    ],
)
def test_gradients_are_those_of_a_loop_by_hand(built: str, method: str, on: str) -> None:
    task = Task()
    model, batch = BUILD[built](task), sample(lm=built == "lm")
    n = 3 if method.startswith("yopo") else 1
    options = {"adversary": method, "adversary_steps": 2, "adversary_inner_steps": n, "adversary_on": on}
    made = criterion(task, **options, **ATTACK)
    (loss, size, log), found, _ = step(task, model, made, batch)
    model.zero_grad()
    torch.manual_seed(3)
    mean = by_hand(model, made.inner, batch, method, 2, n, on)
    assert_same(found, gradients(model), **CLOSE)
    plain = made.inner(model, batch)
    assert size == plain[1] and log.keys() == plain[2].keys()
    assert log["ntokens"] == plain[2]["ntokens"] and log["sample_size"] == plain[2]["sample_size"]
    assert loss.item() == pytest.approx(mean, rel=1e-12) == float(log["loss"])


# --- the same to the bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [FAIRSEQS, OURS])
def test_without_an_adversary_it_is_the_inner_criterion(inner: str) -> None:
    task = Task()
    model, batch = macaron(task), sample()
    plain = task.build_criterion(Namespace(criterion=inner, label_smoothing=0.1, sentence_avg=False))
    (loss, size, log), expected, _ = step(task, model, plain, batch)
    natural = criterion(task, inner, adversary="natural")
    later = criterion(task, inner, adversary="yopo-2-2", adv_start_update=5, **ATTACK)
    at = {"natural": (natural, 9), "before its start": (later, 4)}
    for made, update in at.values():
        result, found, backward = step(task, model, made, batch, update)
        assert len(backward) == 1 and torch.equal(result[0], loss) and result[1:] == (size, log)
        assert_same(found, expected, rtol=0.0, atol=0.0)
    _, found, backward = step(task, model, later, batch, 5)
    assert len(backward) == 3  # two passes, and fairseq's own of what is left
    assert any(not torch.equal(found[name], expected[name]) for name in expected)
    assert type(later).__name__ == type(plain).__name__  # checkpoints record it
    with torch.no_grad():
        model.eval()
        torch.manual_seed(0)
        assert torch.equal(later(model, batch)[0], plain(model, batch)[0])


def test_a_step_that_is_ignored_leaves_no_gradient() -> None:
    task = Task()
    model, made = macaron(task), criterion(task, adversary="yopo-2-2", **ATTACK)
    (loss, *_), found, _ = step(task, model, made, sample(), ignore_grad=True)
    assert loss == 0 and all(gradient.eq(0).all() for gradient in found.values())


@pytest.mark.parametrize("method", ["pgd-2", "freelb-fairseq-2", "yopo-2-2", "yopo-fairseq-2-2"])
def test_two_batches_add_up_to_one(method: str) -> None:
    """Without dropout; δ₀ is 0, for it would be drawn for one batch or for two."""
    task = Task()
    model = macaron(task, dropout=0.0, activation_dropout=0.0)
    made = criterion(task, adversary=method, **{**ATTACK, "adversary_init": 0.0})
    (_, size, _), expected, _ = step(task, model, made, sample())
    model.zero_grad()
    sizes = [task.train_step(sample(rows), model, made, Optimizer(), 0)[1] for rows in (slice(0, 1), slice(1, 3))]
    assert sum(sizes) == size
    assert_same(gradients(model), expected, **CLOSE)


@pytest.mark.parametrize("method", ["pgd-2", "freelb-hf-2", "yopo-2-2", "yopo-fairseq-2-2"])
def test_activation_checkpointing_changes_nothing(method: str) -> None:
    task = Task()
    torch.manual_seed(0)
    plain = macaron(task)
    torch.manual_seed(0)
    recomputed = macaron(task, checkpoint_activations=True)
    made = criterion(task, adversary=method, **ATTACK)
    expected = step(task, plain, made, sample())[1]
    assert_same(step(task, recomputed, made, sample())[1], expected, **CLOSE)


@pytest.mark.parametrize(
    ("options", "on"),
    [
        ({"share_all_embeddings": True}, "both"),
        ({"stochastic_depth": 0.5}, "both"),
        ({"solver": "midpoint"}, "source"),
        ({"depth_rule": "rk2"}, "both"),
    ],
    ids=str,
)
def test_models_of_all_kinds_are_split_where_all_of_the_state_passes(options: dict[str, Any], on: str) -> None:
    """One inner step of YOPO, taken at the δ of its pass, is FreeLB's."""
    task = Task()
    model = macaron(task, **options)
    yopo = criterion(task, adversary="yopo-fairseq-2-1", adversary_on=on, **ATTACK)
    freelb = criterion(task, adversary="freelb-fairseq-2", adversary_on=on, **ATTACK)
    assert_same(step(task, model, yopo, sample())[1], step(task, model, freelb, sample())[1], **CLOSE)


def test_rdrop_inside_sees_one_delta_in_both_copies() -> None:
    task = Task()
    model = macaron(task)
    for inner in (OURS, "label_smoothed_cross_entropy_with_rdrop"):
        yopo = criterion(task, inner, adversary="yopo-fairseq-2-1", rdrop_alpha=2.0, **ATTACK)
        freelb = criterion(task, inner, adversary="freelb-fairseq-2", rdrop_alpha=2.0, **ATTACK)
        assert_same(step(task, model, yopo, sample())[1], step(task, model, freelb, sample())[1], **CLOSE)


def test_special_tokens_stay_where_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    model, batch, seen = macaron(task), sample(), []
    added = adversarial.added

    def noted(embedding, tokens, delta, **options):
        seen.append(delta.detach())
        return added(embedding, tokens, delta, **options)

    monkeypatch.setattr(adversarial, "added", noted)
    source = batch["net_input"]["src_tokens"]
    for special, still in (("move", source.eq(PAD)), ("stay", source.eq(PAD) | source.eq(EOS))):
        seen.clear()
        step(task, model, criterion(task, adversary="freelb-hf-2", adversary_special=special, **ATTACK), batch)
        for delta in seen:
            assert torch.equal(delta.eq(0).all(-1), still)


class Scaled(Optimizer):
    """As under --fp16."""

    scaler = SimpleNamespace(loss_scale=2.0**10)

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.scaler.loss_scale)


@pytest.mark.parametrize("method", ["pgd-2", "freelb-fairseq-2", "yopo-2-2", "yopo-fairseq-2-2"])
def test_a_loss_scaler_scales_every_pass(method: str) -> None:
    task = Task()
    model, made = macaron(task), criterion(task, adversary=method, **ATTACK)
    batch = sample()
    expected = step(task, model, made, batch)[1]
    model.zero_grad()
    torch.manual_seed(3)
    task.train_step(batch, model, made, Scaled(), 0)
    assert_same({name: g / 2.0**10 for name, g in gradients(model).items()}, expected, **CLOSE)


def test_a_model_in_half_precision_has_finite_gradients() -> None:
    """The embeddings' own norm squared in bfloat16 or float16 would overflow or vanish; δ is float32."""
    task = Task()
    model = macaron(task).bfloat16()
    for method in ("pgd-2", "yopo-2-2", "yopo-fairseq-2-2"):
        found = step(task, model, criterion(task, OURS, adversary=method, **ATTACK), sample())[1]
        assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in found.values())


def test_a_gradient_that_is_not_finite_moves_no_delta() -> None:
    """An overflow under a loss scale is the optimiser's to see: the criterion hands it on."""
    task = Task()
    model, made = macaron(task), criterion(task, adversary="yopo-fairseq-2-2", **ATTACK)

    class Overflowing(Optimizer):
        def backward(self, loss: Tensor) -> None:
            super().backward(loss * math.inf)

    (loss, _, log) = task.train_step(sample(), model, made, Overflowing(), 0)
    assert loss.isfinite() and log["loss"].isfinite()  # of the passes, whose δ stayed where it was


def test_attention_weights_are_computed_only_where_the_inner_criterion_reads_them() -> None:
    task = Task()
    for inner, reads in ((FAIRSEQS, False), (OURS, False), ("label_smoothed_cross_entropy_with_alignment", True)):
        assert reads_attention(Namespace(criterion=adversarial.NAME, inner=inner), task) == reads


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"inner": None}, r"say which: --inner adaptive_loss \| "),
        ({"inner": adversarial.NAME}, "is this criterion itself"),
        ({"inner": "label_smooth"}, "--inner label_smooth is unknown; choose one of adaptive_loss, "),
        ({"inner": "sentence_ranking"}, "in fairseq's old way"),
        ({"inner": "cross_entropy"}, "--label-smoothing is no option of --inner cross_entropy"),
        ({"report_accuracy": True, "rdrop_alpha": 1.0}, "--rdrop-alpha is no option of --inner label_smoothed"),
        ({"inner": "speech_unit_lm_criterion", "label_smoothing": None}, "takes .* from its task"),
        ({"adversary": "freelb-3"}, "'freelb' is unknown.*freelb-fairseq, freelb-hf"),
        ({"adversary": "freeat-3"}, "a new batch for each; choose freelb-fairseq"),
        ({"adversary": "yopo-3-3", "adversary_steps": 2}, "say it once"),
        ({"adversary": "pgd-3", "adversary_inner_steps": 2}, "only yopo-fairseq"),
        ({"adversary": "pgd-3", "adversary_norm": None, "adversary_radius": None}, "moves δ, but norm=None"),
        ({"adversary": "natural", "adversary_norm": None}, "radius=0.5 without a norm bounds nothing"),
        ({"adversary": "pgd-3", "adversary_step_size": 0.0}, "give a step_size above 0"),
        ({"adv_start_update": -1}, "must not be negative; 0 begins at once"),
        ({"adversary_on": "encoder"}, "--adversary-on encoder is unknown; choose one of source"),
        ({"adversary_special": "no"}, "--adversary-special no is unknown; choose one of move"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    given = {"adversary": "pgd-2", "inner": FAIRSEQS, **ATTACK, **options}
    with pytest.raises(ValueError, match=reason):
        criterion(Task(), given.pop("inner"), **given)


def test_models_that_cannot_be_split_are_refused() -> None:
    task = Task()
    yopo = {"adversary": "yopo-2-2", **ATTACK}
    full = {**yopo, "adversary": "yopo-full-2-2"}
    cases = [
        (macaron(task, depth_rule="multistep"), yopo, "multistep passes two states on; choose freelb-fairseq"),
        (transformer(task, encoder_layerdrop=0.5), yopo, "--encoder-layerdrop leaves it out at times"),
        (macaron(task, encoder_layerdrop=0.5), yopo, "--encoder-layerdrop leaves it out at times"),
        (macaron(task), {**yopo, "adversary_on": "target"}, "also takes the encoder's output; on the target choose"),
        (lm(task), {**full, "adversary_on": "both"}, "takes in one sequence; leave the option out"),
        (
            macaron(task, decoder_embed_dim=4, decoder_output_dim=4, decoder_attention_heads=2),
            {**full, "adversary_on": "both"},
            "choose source",
        ),
        (nn.Linear(2, 2), yopo, "Linear has neither an encoder nor a decoder"),
    ]
    for model, options, reason in cases:
        batch = sample(lm=isinstance(model, MacaronLanguageModel))
        with pytest.raises(ValueError, match=reason):
            step(task, model_with_updates(model), criterion(task, **options), batch)
    model = macaron(task)
    with pytest.raises(ValueError, match="outside of the task's train_step"):
        criterion(task, **yopo)(model, sample())
    batch = sample()
    batch["net_input"]["src_tokens"] = batch["net_input"].pop("src_tokens").tolist()
    with pytest.raises(ValueError, match="no embed_tokens that takes src_tokens"):
        step(task, model, criterion(task, **yopo), batch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def model_with_updates(model: nn.Module) -> nn.Module:
    if not hasattr(model, "set_num_updates"):
        model.set_num_updates = lambda _updates: None
    return model


def test_the_options_of_every_criterion_can_be_given() -> None:
    own = {f.name for f in fields(adversarial.MacaronAdversarialConfig)}
    for name, config in CRITERION_DATACLASS_REGISTRY.items():
        missing = {f.name for f in fields(config)} - own
        assert missing <= {"discrete_duration", "discrete_f0"}, name  # of a task for speech
    task = Task()
    made = criterion(task, OURS, smoothing_over="all", rdrop_alpha=2.0).inner
    assert (made.smoothing_over, made.rdrop_alpha, made.label_smoothing) == ("all", 2.0, 0.1)


def test_the_class_is_registered_once() -> None:
    assert CRITERION_REGISTRY[adversarial.NAME] is adversarial.AdversarialCriterion
    assert Attack.of("natural") == Attack("natural")
