"""What an attention mask means, in every form, type and implementation; and where a sentence in a row begins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from macaron.bert import MacaronBertForSequenceClassification, MacaronBertForTokenClassification

B, T, H = 3, 9, 4
REAL = torch.arange(T) < torch.tensor([[9], [6], [0]])  # one sentence is of padding alone
NEAR = (torch.arange(T).unsqueeze(1) - torch.arange(T)).abs() <= 2
SEEN = (NEAR & REAL.unsqueeze(1)).unsqueeze(1)  # (B, 1, T, T), with particles that see nothing
LOWEST = torch.finfo(torch.float32).min

pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning"
)


@pytest.fixture(autouse=True)
def uncompiled():
    """Flex attention as it is written: compiling it takes a CPU minutes."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def added(seen: Tensor, dtype: torch.dtype, least: float) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, least)


def run(model, ids: Tensor, implementation: str, **inputs) -> Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():  # flex attention has no gradient on a CPU
        out = model(ids, **inputs)
    assert torch.isfinite(out.logits).all()
    return out.logits


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # float32, sums in another order


IMPLEMENTATIONS = ["sdpa", "eager", "flex_attention"]
TYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


# (implementation, padding_free, which only sdpa knows)
WAYS = [("sdpa", True), ("sdpa", False), ("eager", False), ("flex_attention", False)]


@pytest.mark.parametrize(("implementation", "padding_free"), WAYS)
def test_padding_of_every_type(implementation, padding_free, build):
    model = build(MacaronBertForTokenClassification, padding_free=padding_free)
    ids = torch.randint(1, 50, (B, T))
    alone = torch.cat([model(ids[i : i + 1, :n]).logits[0] for i, n in enumerate((9, 6))])
    for dtype in TYPES:
        close(run(model, ids, implementation, attention_mask=REAL.to(dtype))[REAL], alone)


FORMS = {
    "bool": SEEN,
    "integers": SEEN.long(),
    "bytes": SEEN.to(torch.uint8),
    "three dimensions": SEEN.squeeze(1),
    "added": added(SEEN, torch.float32, -torch.inf),
    "added, three dimensions": added(SEEN, torch.float32, -torch.inf).squeeze(1),
    "added, half precision": added(SEEN, torch.float16, -torch.inf),
    "added, double precision": added(SEEN, torch.float64, -torch.inf),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_what_each_particle_sees(form, implementation, build):
    """And those that see nothing get nothing from the attention."""
    model = build(MacaronBertForTokenClassification, num_hidden_layers=1)
    ids = torch.randint(1, 50, (B, T))
    x = model.macaron_bert.embeddings(ids, None, None, torch.arange(T).unsqueeze(0))
    layer = model.macaron_bert.layers[0]
    first, attention, last = layer.flows
    with torch.no_grad():
        x = x + 0.5 * first(layer.norms[0](x)[1], None)[0]
        q, k, v = attention.split(attention.qkv_proj(layer.norms[1](x)[1]), 3)
        weights = (q @ k.transpose(-1, -2) / q.size(-1) ** 0.5).masked_fill(~SEEN, -torch.inf).softmax(-1)
        x = x + attention.out_proj(attention.merge(weights.nan_to_num(0.0) @ v))
        x = x + 0.5 * last(layer.norms[2](x)[1], None)[0]
        expected = model.classifier(model.macaron_bert.final_norm(x))
    close(run(model, ids, implementation, attention_mask=FORMS[form]), expected)


@pytest.mark.parametrize(
    "mask",
    [
        SEEN[:1],
        SEEN[:1].long(),
        NEAR.expand(1, 1, T, T),
        REAL[:2, None, None].expand(2, 1, 1, T)[:1],
        added(SEEN, torch.float32, LOWEST),
        added(SEEN, torch.bfloat16, torch.finfo(torch.bfloat16).min),
        torch.randn(B, 1, T, T),
        torch.randn(1, 1, T, T),
        torch.randn(B, 1, 1, T),
    ],
    ids=lambda mask: f"{tuple(mask.shape)} {mask.dtype}",
)
def test_implementations_agree(mask, build):
    model = build(MacaronBertForTokenClassification)
    ids = torch.randint(1, 50, (B, T))
    outs = [run(model, ids, implementation, attention_mask=mask) for implementation in IMPLEMENTATIONS]
    for other in outs[1:]:
        close(other, outs[0])


@pytest.mark.parametrize(
    "mask", [SEEN & (torch.rand(B, H, T, T) < 0.7), torch.randn(1, H, T, T)], ids=["bool", "added"]
)
def test_a_mask_of_each_head(mask, build):
    model = build(MacaronBertForTokenClassification)
    ids = torch.randint(1, 50, (B, T))
    close(run(model, ids, "eager", attention_mask=mask), run(model, ids, "sdpa", attention_mask=mask))
    with pytest.raises(ValueError, match=r"flex_attention cannot follow an attention_mask \(3, 4, 9, 9\)"):
        run(model, ids, "flex_attention", attention_mask=mask)


def test_weights_are_those_of_every_implementation(build):
    model = build(MacaronBertForTokenClassification)
    ids = torch.randint(1, 50, (B, T))
    for mask in (None, REAL, SEEN, added(SEEN, torch.float32, -torch.inf)):
        weights = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            weights.append(model(ids, attention_mask=mask, output_attentions=True).attentions)
        for a, b in zip(*weights, strict=True):
            close(a, b)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (added(REAL, torch.float32, LOWEST), r"\(3, 9\) holds other values than 1 \(seen\) and 0 \(not seen\)"),
        (added(REAL, torch.float32, -torch.inf), "holds other values"),
        (2 * REAL.long(), "holds other values"),
        (REAL.float() / 2, "holds other values"),
        (torch.full((B, T), torch.nan), "holds other values"),
        (-10000 * (~SEEN).long(), "holds other values"),
        (SEEN.float(), r"type torch.float32 is added to the scores, where 0 and 1 hide nothing; make it bool"),
        (SEEN.half().squeeze(1), "make it bool"),
        (REAL[:1], r"has the shape \(1, 9\); these 3 sentences of 9 tokens take \(3, 9\), or"),
        (torch.ones(B, T + 1), r"has the shape \(3, 10\)"),
        (REAL[0], r"has the shape \(9,\)"),
        (SEEN[:2], r"has the shape \(2, 1, 9, 9\)"),
        (SEEN.expand(B, 2, T, T), r"has the shape \(3, 2, 9, 9\)"),
        (SEEN.unsqueeze(0), r"has the shape \(1, 3, 1, 9, 9\)"),
        (REAL.tolist(), "is a list; pass a tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_mean_two_things_is_refused(mask, message, build):
    model = build(MacaronBertForSequenceClassification)
    for implementation in IMPLEMENTATIONS:
        with pytest.raises(ValueError, match=message):
            run(model, torch.randint(1, 50, (B, T)), implementation, attention_mask=mask)


# -- several sentences in a row


POSITIONS = {  # positions, where sentences begin
    "one sentence": ([0, 1, 2, 3, 4], [0]),
    "a gap": ([0, 1, 2, 7, 8], [0]),
    "two gaps": ([0, 5, 6, 20, 30], [0]),
    "a repetition": ([0, 1, 1, 2, 3], [0]),
    "later positions": ([3, 4, 5, 9, 10], [0]),
    "no positions": ([0, 0, 0, 0, 0], [0]),
    "two sentences": ([0, 1, 2, 0, 1], [0, 3]),
    "two sentences, a gap in each": ([0, 4, 5, 0, 3], [0, 3]),
    "two sentences that begin later": ([2, 3, 4, 2, 3], [0, 3]),
    "sentences of one token": ([0, 0, 1, 0, 0], [0, 1, 3, 4]),
    "all fall back": ([4, 3, 2, 1, 0], [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_where_sentences_begin(case, build):
    """In one row and in several, whatever the other rows hold."""
    for implementation, padding_free in WAYS:
        model = build(MacaronBertForTokenClassification, padding_free=padding_free)
        begins_where_it_should(model, case, implementation)


def begins_where_it_should(model, case: str, implementation: str) -> None:
    numbers, begins = POSITIONS[case]
    positions, ids = torch.tensor([numbers]), torch.randint(1, 50, (2, 5))
    parts = [slice(a, b) for a, b in zip(begins, [*begins[1:], 5], strict=True)]
    mask = torch.ones(1, 5)  # with a mask, positions are but positions
    alone = torch.cat(
        [model(ids[:1, p], attention_mask=mask[:, p], position_ids=positions[:, p]).logits for p in parts], 1
    )
    other = torch.arange(5).unsqueeze(0)
    for rows, places in (
        (ids[:1], positions),
        (ids, positions),
        (ids, torch.cat([positions, other])),
        (ids, positions[0]),
    ):
        close(run(model, rows, implementation, position_ids=places)[:1], alone)


def test_marks_that_do_not_fit(build):
    model, ids = build(MacaronBertForTokenClassification), torch.randint(1, 50, (2, 4))
    marks = {"cu_seq_lens_q": torch.tensor([0, 2, 4], dtype=torch.int32), "max_length_q": 2}
    with pytest.raises(ValueError, match="marks the sentences of a batch of one row, but there are 2"):
        model(ids, **marks)
    with pytest.raises(ValueError, match="leave out either it or attention_mask"):
        model(ids[:1], attention_mask=torch.ones(1, 4), **marks)


@pytest.mark.parametrize("places", [[], [0], [0, 2], [0, 2, 5], [1, 4], [0, 3, 2, 4], [2, 4]], ids=str)
def test_marks_that_divide_no_row(places, build):
    """They would leave tokens to a sentence that nobody meant."""
    marks = {"cu_seq_lens_q": torch.tensor(places, dtype=torch.int32), "max_length_q": 2}
    with pytest.raises(
        ValueError, match=r"cu_seq_lens_q=\[.*\] does not divide a row of 4 tokens into sentences; give"
    ):
        build()(torch.randint(1, 50, (1, 4)), **marks)


def test_marked_sentences_that_are_too_long(build):
    model = build()
    most = model.config.max_position_embeddings
    ids = torch.randint(1, 50, (1, 2 * most + 1))
    with pytest.raises(ValueError, match=f"sentences of {most + 1} tokens are longer than max_position_embeddings"):
        model(ids, cu_seq_lens_q=torch.tensor([0, most, 2 * most + 1]), max_length_q=most + 1)
    model(ids[:, 1:], cu_seq_lens_q=torch.tensor([0, most, 2 * most]), max_length_q=most)
