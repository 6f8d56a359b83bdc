"""A repeated layer in Macaron BERT, and who stops it: against the layer called by hand, and sentence by sentence."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from macaron.bert import (
    MacaronBertConfig,
    MacaronBertForMaskedLM,
    MacaronBertForSequenceClassification,
    MacaronBertModel,
    export_for_hub,
)
from macaron.bert.horizon import first_stop, horizon_loss
from macaron.bert.refinement import refine_folder
from macaron.hf.adversarial import first_layer
from macaron.hf.context import LayerContext
from macaron.hf.export import sources
from macaron.particles.surroundings import Surroundings

ALONE = LayerContext(Surroundings(), None, {})
STEPS = 5


class Scripted(nn.Module):
    """A policy that stops each sentence, by its number in the batch, after as many steps as were wanted."""

    def __init__(self, wanted: dict[int, int]) -> None:
        super().__init__()
        self.wanted = wanted

    def forward(self, first: Tensor, mean: Tensor, n: int) -> Tensor:
        if n == 1:
            self.going = [self.wanted[i] for i in range(len(first))]
        q = torch.tensor([1.0 if steps > n else -1.0 for steps in self.going])
        self.going = [steps for steps in self.going if steps > n]
        return q


class Counts:
    """The particles, padding among them, that each call of a layer sees."""

    def __init__(self, layer: nn.Module) -> None:
        self.seen: list[int] = []
        layer.register_forward_pre_hook(lambda module, args: self.seen.append(args[0].shape[:-1].numel()))


def decided(model: MacaronBertModel, times: list[int]) -> MacaronBertModel:
    model.policy = Scripted(dict(enumerate(times)))
    return model


def by_hand(model: MacaronBertModel, ids: Tensor, segments: Tensor, steps: int) -> Tensor:
    x = model.embeddings(ids, None, segments, torch.arange(ids.size(1)).unsqueeze(0))
    for _ in range(steps):
        x = model.layers[0](x, ALONE)
    return model.final_norm(x)


@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("horizon", ["fixed", "learned"])
def test_each_sentence_is_as_if_alone(horizon, implementation, padding_free, build, batch):
    """Against the layer called by hand, in float64: one sentence at a time, for its own number of steps."""
    options = {"padding_free": padding_free, "attn_implementation": implementation}
    model = build(horizon=horizon, num_hidden_layers=STEPS, **options).double()
    times = [STEPS] * 3 if horizon == "fixed" else [2, 5, 1]
    if horizon == "learned":
        decided(model, times)
    out = model(**batch)
    if horizon == "learned":
        assert out.horizon_steps.tolist() == times
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        ids, segments = batch["input_ids"][row : row + 1, :length], batch["token_type_ids"][row : row + 1, :length]
        expected = by_hand(model, ids, segments, times[row])
        # float64: attention sums over padding too
        torch.testing.assert_close(out.last_hidden_state[row, :length], expected[0], rtol=0, atol=1e-12)
        assert (out.last_hidden_state[row, length:] == 0).all()


def test_fixed_is_a_stack_of_equal_layers_to_the_bit(build, batch):
    model = build(horizon="fixed", num_hidden_layers=3)
    plain = build(num_hidden_layers=3)
    state = model.state_dict()
    assert {name.split(".")[1] for name in state if name.startswith("layers.")} == {"0"}
    assert not any(name.startswith("policy") for name in state)
    plain.load_state_dict(
        {name: state[".".join(["layers.0", *name.split(".")[2:]]) if "layers." in name else name]
         for name in plain.state_dict()}
    )  # fmt: skip
    assert torch.equal(model(**batch).last_hidden_state, plain(**batch).last_hidden_state)
    here, there = (m(**batch, output_hidden_states=True, output_attentions=True) for m in (model, plain))
    assert len(here.hidden_states) == 4 and len(here.attentions) == 3
    for ours, theirs in zip(here.hidden_states + here.attentions, there.hidden_states + there.attentions, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{"solver": "heun"}, {"normalize_before": False}, {"splitting": "lie"}])
def test_with_other_layers(options, build, batch):
    model = decided(build(horizon="learned", num_hidden_layers=3, **options).double(), [3, 1, 2])
    padded = copy.deepcopy(model)
    padded.config.padding_free = False
    out, again = model(**batch), padded(**batch)
    assert out.horizon_steps.tolist() == again.horizon_steps.tolist() == [3, 1, 2]
    torch.testing.assert_close(again.last_hidden_state, out.last_hidden_state, rtol=0, atol=1e-12)  # float64, as above


@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
def test_what_has_stopped_is_moved_no_more(padding_free, build, batch):
    """To the bit that of a run with as many steps for all, and its particle-steps are not computed."""
    model = decided(build(horizon="learned", num_hidden_layers=STEPS, padding_free=padding_free), [4, 2, 5])
    counts = Counts(model.layers[0])
    out = model(**batch).last_hidden_state
    sizes = [9, 6, 4] if padding_free else [9, 9, 9]
    assert counts.seen == [sum(s for s, t in zip(sizes, [4, 2, 5], strict=True) if t > n) for n in range(STEPS)]
    fixed = decided(copy.deepcopy(model), [2, 2, 2])  # until then the batch is the same
    assert torch.equal(fixed(**batch).last_hidden_state[1], out[1])


def test_all_stop_and_one_alone(build, batch):
    model = decided(build(horizon="learned", num_hidden_layers=STEPS), [1, 1, 1])
    counts = Counts(model.layers[0])
    assert model(**batch).horizon_steps.tolist() == [1, 1, 1] and counts.seen == [19]
    decided(model, [2])
    assert model(input_ids=torch.tensor([[3, 4, 5]])).horizon_steps.tolist() == [2]
    decided(model, [2, 5])  # a row with nothing in it
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    out = model(input_ids=torch.tensor([[3, 4, 5], [0, 0, 0]]), attention_mask=mask)
    assert out.horizon_steps.tolist() == [2, 5] and out.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("forms", ["one for all", "one each"])
def test_masks_of_pairs_go_with_their_sentences(forms, build):
    ids = torch.randint(1, 50, (3, 6))
    mask = torch.ones(1 if forms == "one for all" else 3, 1, 6, 6, dtype=torch.bool).tril()
    mask[-1, :, :, 0] = True
    model = decided(build(horizon="learned", num_hidden_layers=4).double(), [1, 4, 2])
    out = model(input_ids=ids, attention_mask=mask).last_hidden_state
    for row, steps in enumerate([1, 4, 2]):
        decided(model, [steps])
        alone = model(input_ids=ids[row : row + 1], attention_mask=mask[row if len(mask) == 3 else 0][None])
        torch.testing.assert_close(out[row], alone.last_hidden_state[0], rtol=0, atol=1e-12)  # float64


def test_several_sentences_in_a_row_stop_one_by_one(build):
    ids = torch.randint(1, 50, (1, 9))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    model = decided(build(horizon="learned", num_hidden_layers=4).double(), [3, 1])
    out = model(input_ids=ids, position_ids=positions)
    assert out.horizon_steps.tolist() == [3, 1]
    for part, steps in ((slice(0, 4), 3), (slice(4, 9), 1)):
        decided(model, [steps])
        alone = model(input_ids=ids[:, part]).last_hidden_state
        torch.testing.assert_close(out.last_hidden_state[:, part], alone, rtol=0, atol=1e-12)  # float64


def test_untrained_it_takes_all_steps_and_the_cost_decides(build, batch, tmp_path):
    """A model trained with "fixed" goes on as it is; the price may be set on a model that is there."""
    fixed = build(horizon="fixed", num_hidden_layers=3)
    fixed.save_pretrained(tmp_path)
    model = MacaronBertModel.from_pretrained(tmp_path, horizon="learned").eval()
    assert model(**batch).horizon_steps.tolist() == [3, 3, 3]
    assert torch.equal(model(**batch).last_hidden_state, fixed(**batch).last_hidden_state)
    model.config.horizon_cost = 1.5  # more than the 1 that it begins with
    assert model(**batch).horizon_steps.tolist() == [1, 1, 1]
    for wrong in (-1.0, float("nan"), float("inf"), True, "0"):
        model.config.__dict__["horizon_cost"] = wrong
        with pytest.raises(ValueError, match=r"horizon_cost=.* is no price of a step; it must be finite"):
            model(**batch)


def test_saved_and_loaded(build, batch, tmp_path):
    model = build(MacaronBertForSequenceClassification, horizon="learned", num_hidden_layers=4, horizon_cost=0.125)
    nn.init.normal_(model.macaron_bert.policy.fc2.weight)
    names = {name for name in model.state_dict() if ".policy." in name}
    parts = ("fc1.weight", "fc1.bias", "steps.weight", "fc2.weight", "fc2.bias")
    assert names == {f"macaron_bert.policy.{part}" for part in parts}
    model.save_pretrained(tmp_path)
    again = MacaronBertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert (again.config.horizon, again.config.horizon_cost) == ("learned", 0.125)
    here, there = model(**batch), again(**batch)
    assert torch.equal(here.logits, there.logits) and torch.equal(here.horizon_steps, there.horizon_steps)
    with pytest.raises(ValueError, match=r"it has .*policy\.fc1\.bias.*, for which there is no place"):
        MacaronBertForSequenceClassification.from_pretrained(tmp_path, horizon="fixed", horizon_cost=0.0)
    with pytest.raises(ValueError, match=r"it lacks .*layers\.1\."):
        MacaronBertForSequenceClassification.from_pretrained(tmp_path, horizon="none", horizon_cost=0.0)
    del (state := model.state_dict())["macaron_bert.policy.fc1.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"it lacks macaron_bert\.policy\.fc1\.weight"):
        MacaronBertForSequenceClassification.from_pretrained(tmp_path)


def test_the_code_of_an_export_has_it(build, tmp_path):
    assert {"horizon.py", "macaron_dynamics_horizon.py"} <= set(sources([MacaronBertModel.__module__]))
    folder = export_for_hub(build(horizon="learned", num_hidden_layers=2), tmp_path / "hub")
    assert MacaronBertModel.from_pretrained(folder).config.horizon == "learned"


# -- training


def test_the_loss(build, batch):
    """Written out for one batch: of the layer and of the policy, each with the gradient of its own."""
    losses = torch.tensor([[3.0, 1.0], [1.0, 2.0], [2.0, 0.5]], requires_grad=True)  # L = 3, B = 2
    q = torch.tensor([[0.5, -0.2], [-0.1, 0.3]], requires_grad=True)
    assert first_stop(q, 0.0).tolist() == [2, 1] and first_stop(q, 0.6).tolist() == [1, 1]
    # gains: sentence 0: stops at x_2: 3 − 1; x_2 → x_3: 1 − 2. sentence 1: from x_1 on, x_2 goes on: 1 − 0.5; 2 − 0.5
    policy = torch.tensor([((0.5 - 2) ** 2 + (-0.1 + 1) ** 2) / 2, ((-0.2 - 0.5) ** 2 + (0.3 - 1.5) ** 2) / 2])
    unit = torch.tensor([(1.0 + 2.0) / 2, (1.0 + 3.5 / 3) / 2])
    loss = horizon_loss(losses, q)
    torch.testing.assert_close(loss.detach(), (unit + policy).mean())
    loss.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([[1 / 12, 1 / 3], [1 / 3, 1 / 12], [1 / 12, 1 / 12]]))
    torch.testing.assert_close(q.grad, torch.tensor([[-0.75, -0.35], [0.45, -0.6]]))
    only = horizon_loss(losses, q, weights=torch.tensor([0, 1]), num_items_in_batch=4)
    torch.testing.assert_close(only.detach(), (unit + policy)[1] / 4)
    with pytest.raises(ValueError, match=r"losses \(3, 2\) and q \(3, 2\), but"):
        horizon_loss(losses, losses)
    with pytest.raises(ValueError, match="NaN"):
        horizon_loss(losses * float("nan"), q)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([2, -100, 0])),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"},
         torch.tensor([[0.0, 1.0, 1.0], [1.0, -100.0, 0.0], [-100.0, -100.0, -100.0]])),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, torch.tensor([1.0, 0.0, -100.0])),
    ],
)  # fmt: skip
def test_the_losses_of_all_kinds_of_labels(options, labels, build, batch):
    """At every depth those of a model that takes as many steps, and in all heads' manner of counting."""
    model = build(MacaronBertForSequenceClassification, horizon="learned", num_hidden_layers=3, **options).train()
    out = model(**batch, labels=labels)
    losses = []
    for logits in out.depth_logits:
        one, count = model._sentence_losses(logits, labels)
        torch.testing.assert_close((one * count).sum() / count.sum(), model._loss(logits, labels, None))
        losses.append(one)
    expected = horizon_loss(torch.stack(losses), out.depth_q, weights=count)
    torch.testing.assert_close(out.loss, expected)
    assert torch.equal(out.logits, out.depth_logits[-1]) and out.horizon_steps.tolist() == [3, 3, 3]
    torch.testing.assert_close(model(**batch, labels=labels, num_items_in_batch=10).loss, expected * count.sum() / 10)
    model.eval()
    for steps in (1, 2, 3):
        decided(model.macaron_bert, [steps] * 3)
        evaluated = model(**batch, labels=labels)
        torch.testing.assert_close(evaluated.logits, out.depth_logits[steps - 1], rtol=0, atol=1e-5)  # float32
        torch.testing.assert_close(evaluated.loss, model._loss(out.depth_logits[steps - 1], labels, None))


@pytest.mark.parametrize("pooler", [True, False])
def test_gradients_padded_packed_and_checkpointed(pooler, build, batch):
    options: dict[str, Any] = {"horizon": "learned", "num_hidden_layers": 3, "use_pooler": pooler}
    model = build(MacaronBertForSequenceClassification, **options).double().train()
    nn.init.normal_(model.macaron_bert.policy.fc2.weight)
    gradients = []
    for way in ("packed", "padded", "checkpointed"):
        model.config.padding_free = way != "padded"
        if way == "checkpointed":
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert {"macaron_bert.policy.fc1.weight", "macaron_bert.layers.0.flows.0.fc1.weight"} < gradients[0].keys()
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-8, atol=1e-12)  # float64


def kinds(count: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Sentences whose class stands in them, and others whose class cannot be known; and which are which."""
    hopeless = torch.rand(count) < 0.5
    labels = torch.randint(0, 2, (count,))
    ids = torch.randint(10, 40, (count, 6))
    ids[:, 0] = 1
    ids[:, 1] = torch.where(hopeless, 2, 3)
    ids[:, 2] = torch.where(hopeless, 4, 5 + labels)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, hopeless


def test_a_policy_learns_where_going_on_pays(build):
    """A layer that leaves the class at hand hidden until its third step: who has none stops at once.

    The layer is made so by hand, so that the best times are known: attention and FFN add nothing, and the classifier
    sees only what three steps have let through.
    """
    torch.manual_seed(0)
    model = build(MacaronBertForSequenceClassification, horizon="learned", num_hidden_layers=4).train()
    bert = model.macaron_bert

    class Reveals(nn.Module):
        """The class, told by the third particle, reaches the first one at the third step."""

        def __init__(self) -> None:
            super().__init__()
            self.n = 0

        def forward(self, x: Tensor, context: LayerContext) -> Tensor:
            self.n = self.n % 4 + 1
            rows = x.view(-1, 6, x.size(-1)).clone()
            if self.n == 3:
                rows[:, 0] = rows[:, 2]
            return rows.view_as(x)

    bert.layers = type(bert.layers)([Reveals()])
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(150):
        inputs, labels, _ = kinds(32)
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    model.config.horizon_cost = 0.1  # of ln 2 = 0.69, which is what three steps gain
    inputs, labels, hopeless = kinds(200)
    bert.layers[0].n = 0
    out = model(**inputs)
    assert out.horizon_steps[hopeless].float().mean() < 1.1
    assert (out.horizon_steps[~hopeless] == 3).float().mean() > 0.95
    assert (out.logits.argmax(-1) == labels)[~hopeless].float().mean() > 0.95


# -- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": "endless"}, "horizon='endless' is unknown; choose one of none, fixed, learned"),
        ({"horizon": "fixed", "depth_rule": "multistep"}, "depth_rule='multistep' tells layers of one stack apart"),
        ({"horizon": "learned", "depth_rule": "rk4"}, "depth_rule='rk4' tells layers of one stack apart"),
        ({"horizon": "learned", "stochastic_depth": 0.2}, "stochastic_depth=0.2 tells layers of one stack apart"),
        ({"horizon": "learned", "num_hidden_layers": 1}, "num_hidden_layers=1 leaves nothing to decide"),
        ({"horizon_cost": 0.1}, "horizon_cost=0.1 is what a policy weighs, and horizon='none' has none"),
        ({"horizon": "fixed", "horizon_cost": 0.1}, "and horizon='fixed' has none"),
        ({"horizon": "learned", "horizon_cost": -0.1}, "horizon_cost=-0.1 is no price of a step"),
    ],
)
def test_configurations_that_mean_nothing(options, message, config):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_what_learned_cannot_do(build, batch, tmp_path):
    model = build(horizon="learned")
    for name in ("output_hidden_states", "output_attentions"):
        with pytest.raises(ValueError, match=f"so that {name} would be of batches that get smaller"):
            model(**batch, **{name: True})
    with pytest.raises(ValueError, match="is trained by MacaronBertForSequenceClassification alone"):
        build(MacaronBertForMaskedLM, horizon="learned").train()(**batch)
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    row = {"input_ids": torch.tensor([[3, 4, 5, 6, 7]]), "position_ids": positions}
    for several in (
        build(horizon="learned", padding_free=False),
        build(MacaronBertForSequenceClassification, horizon="learned").train(),
    ):
        with pytest.raises(ValueError, match="give each sentence a row"):
            several(**row)
    with pytest.raises(ValueError, match="which a traced, compiled or exported graph cannot"):
        model.to("meta")(input_ids=torch.zeros(2, 3, dtype=torch.long, device="meta"))
    flex = build(horizon="learned")
    flex.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="those of 'flex_attention' have a form of their own"):
        flex(input_ids=batch["input_ids"])


def test_what_counts_layers_refuses(build, tmp_path):
    model = build(horizon="fixed", num_hidden_layers=2)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"horizon='fixed': all its 2 steps are one layer"):
        refine_folder(tmp_path / "model", 4, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="it has 1 for 2 steps, as under horizon='fixed'"):
        first_layer(model)


@pytest.mark.slow
@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
def test_it_saves_the_time(padding_free):
    """Half of the sentences stop after 2 of 12 steps: 7/12 of the work, and at most 0.8 of the time."""
    sizes = {"vocab_size": 100, "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 12}
    model = MacaronBertModel(MacaronBertConfig(**sizes, horizon="learned", padding_free=padding_free)).eval()
    lengths = torch.randint(40, 64, (16, 1))
    mask = torch.arange(64) < lengths
    ids = torch.randint(1, 100, (16, 64)).masked_fill(~mask, 0)

    def seconds(times: list[int]) -> float:
        taken = []
        for _ in range(5):
            decided(model, times)
            started = time.perf_counter()
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask)
            taken.append(time.perf_counter() - started)
        return min(taken)

    seconds([12] * 16)
    assert seconds([2, 12] * 8) < 0.8 * seconds([12] * 16)
