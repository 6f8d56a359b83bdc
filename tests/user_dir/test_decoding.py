"""Our beam search in the place of fairseq's: the same hypotheses for every scheme and option; what is left to it."""

from __future__ import annotations

import logging
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import search
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import FairseqTask
from hypothesis import given, settings
from hypothesis import strategies as st
from macaron.user_dir import decoding
from macaron.user_dir.decoding import Generator

from macaron import MacaronModel, analysis
from macaron.decoding import choose_precision

from .conftest import dictionary
from .test_incremental import SIZES, VARIANTS, randomize

BOTH = "attention to source and target at once"


def build(words: int = 40, double: bool = True, **options: Any) -> tuple[Any, Any]:
    """A model and its dictionary; in float64, with probabilities of the same, which fairseq takes in float32."""
    made = dictionary(words)
    task = SimpleNamespace(source_dictionary=made, target_dictionary=made)
    model = MacaronModel.build_model(Namespace(**SIZES, **options), task).eval()
    randomize(model)
    if double:
        model.double()
        model.get_normalized_probs = lambda output, log_probs, sample: output[0].log_softmax(-1)
    return model, made


def batch(sentences: int = 4, longest: int = 7, words: int = 40, generator: Any = None) -> dict[str, Any]:
    source = torch.randint(4, 4 + words, (sentences, longest), generator=generator)
    for row in range(1, sentences):
        source[row, : row % longest] = 1
    source[:, -1] = 2
    return {"id": torch.arange(sentences), "net_input": {"src_tokens": source, "src_lengths": (source != 1).sum(1)}}


def check_same(found: Any, expected: Any, tolerance: float) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one["tokens"].tolist() for one in ours] == [one["tokens"].tolist() for one in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys()
            torch.testing.assert_close(a["score"], b["score"], rtol=0, atol=tolerance)
            torch.testing.assert_close(a["positional_scores"], b["positional_scores"], rtol=0, atol=tolerance)


def compare(model: Any, made: Any, sample: Any, tolerance: float = 1e-9, **options: Any) -> Generator:
    """By both, with a strategy of each one's own; `run` are arguments of the run."""
    run = options.pop("run", {})
    if options.get("match_source_len"):
        lengths = search.LengthConstrainedBeamSearch(made, min_len_a=1, min_len_b=0, max_len_a=1, max_len_b=0)
        options["search_strategy"] = lengths
    generator = Generator([model], made, **options)
    expected = SequenceGenerator([model], made, **options).generate([model], sample, **run)
    check_same(generator.generate([model], sample, **run), expected, tolerance)
    return generator


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_scheme(options) -> None:
    generator = compare(*build(**options), batch(), beam_size=3, max_len_b=10, len_penalty=0.6)
    assert (BOTH in generator.left) == ("cross_self_attention" in options)


def test_what_is_recorded_is_decoded_by_the_layers_themselves() -> None:
    model, made = build(double=False)
    generator, sample = Generator([model], made, beam_size=2, max_len_b=6), batch()
    expected = generator.generate([model], sample)
    assert not generator.left
    with analysis.record(model) as trajectories:
        found = generator.generate([model], sample)
        assert "recorded" in generator.left
    check_same(found, expected, 1e-5)  # float32, whose products of other shapes round otherwise
    assert "encoder.layers" in trajectories and sum(name.startswith("decoder.layers") for name in trajectories) > 1
    assert not generator.left


@given(
    st.fixed_dictionaries(
        {
            "beam_size": st.sampled_from([1, 2, 5]),
            "max_len_a": st.sampled_from([0, 1.5]),
            "max_len_b": st.sampled_from([5, 12]),
            "min_len": st.sampled_from([1, 4]),
            "normalize_scores": st.booleans(),
            "len_penalty": st.sampled_from([0.0, 0.6, 1.0]),
            "unk_penalty": st.sampled_from([0.0, 2.0, -2.0]),
            "temperature": st.sampled_from([0.7, 1.0]),
            "no_repeat_ngram_size": st.sampled_from([0, 2, 3]),
            "match_source_len": st.sampled_from([False, False, True]),
        }
    ),
    st.sampled_from([0, 1, 3]),
    st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_every_option(options, prefix, seed) -> None:
    torch.manual_seed(seed)
    sample, run = batch(), {}
    if options["match_source_len"]:
        options["min_len"] = 1
    if prefix:
        run["prefix_tokens"] = torch.randint(4, 44, (4, prefix))
        run["prefix_tokens"][2, 1:] = 1
    compare(*build(), sample, **options, run=run)


def test_a_large_vocabulary_in_float32() -> None:
    """The best of blocks; and fairseq's own probabilities."""
    compare(*build(words=5000, double=False), batch(words=5000), 1e-4, beam_size=5, max_len_b=12)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(precision) -> None:
    model, made = build(words=5000, double=False)
    model._is_generation_fast, model.inference_precision = True, precision
    sample, options = batch(words=5000), {"beam_size": 5, "max_len_b": 12, "min_len": 12}
    expected = SequenceGenerator([model], made, **options).generate([model], sample)
    sample["net_input"] = {name: value.cuda() for name, value in sample["net_input"].items()}
    found = Generator([model.cuda()], made, **options).generate([model], sample)
    gaps = [abs(float(a[0]["score"]) - float(b[0]["score"])) for a, b in zip(found, expected, strict=True)]
    assert max(gaps) < (1e-3 if precision == "fp32" else 0.05)  # products may be TF32; 8 bits of each factor


def test_a_start_of_its_own() -> None:
    compare(*build(), batch(), beam_size=3, max_len_b=8, run={"bos_token": 9})


def test_a_prefix_that_ends() -> None:
    prefix = torch.tensor([[5, 6, 2], [7, 2, 1], [8, 9, 10], [11, 1, 1]])
    compare(*build(), batch(), beam_size=2, max_len_b=8, run={"prefix_tokens": prefix})


def test_a_stream_has_the_same_in_any_room() -> None:
    """Sentences that wait for a place are translated as they are alone, whoever else is there."""
    model, made = build()
    generator = Generator([model], made, beam_size=3, max_len_a=1.0, max_len_b=5)
    random = torch.Generator().manual_seed(1)
    sources = [torch.cat([torch.randint(4, 44, (1 + n % 7,), generator=random), torch.tensor([2])]) for n in range(23)]
    order = sorted(range(23), key=lambda n: len(sources[n]))
    found = dict(generator.stream([(n, sources[n]) for n in order], tokens=40))
    plain = SequenceGenerator([model], made, beam_size=3, max_len_a=1.0, max_len_b=5)
    for n, source in enumerate(sources):
        sample = {"net_input": {"src_tokens": source[None], "src_lengths": torch.tensor([len(source)])}}
        check_same([found[n]], plain.generate([model], sample), 1e-9)


def test_the_memory_of_a_sentence_is_kept_once() -> None:
    """Not for each place of its beam."""
    model, made = build(encoder_normalize_before=True, decoder_normalize_before=True)
    engine = Generator([model], made, beam_size=5, max_len_b=8).engine()
    kept = {}

    class Watched(decoding.Steps):
        def step(self, lattice, tokens, positions):
            names = [name for name in lattice._fields if name.startswith("memory")]
            kept.update({name: lattice[name].shape for name in names})
            return super().step(lattice, tokens, positions)

    engine.stepper = Watched(model.encoder, model.decoder, len(made))
    source = decoding.Source("a", torch.tensor([5, 6, 7, 2]), 8)
    assert len(dict(engine([source]))["a"]) == 5
    assert set(kept.values()) == {(1, 2, 4, 8)} and len(kept) == 4  # keys and values of two layers; (B, H, S, D)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"sampling": True}, "sampling"),
        ({"diverse_beam_groups": 2, "beam": 4}, "a diverse beam search"),
        ({"diversity_rate": 0.5}, "a search with a diversity rate"),
        ({"beam": 30}, "a beam of half the vocabulary"),
        ({"print_alignment": "hard"}, "--print-alignment"),
    ],
    ids=str,
)
def test_what_is_left_to_fairseq_is_said_once(options, left, caplog) -> None:
    model, made = build(double=False)
    config = GenerationConfig(**{"beam": 2, "max_len_b": 5, **options})
    decoding._warn.cache_clear()
    task = FairseqTask.__new__(FairseqTask)
    task.__class__ = type("Task", (FairseqTask,), {"target_dictionary": made, "source_dictionary": made})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            generator = task.build_generator([model], config)
            assert len(generator.generate([model], batch())[0]) >= 1
    said = [record.getMessage() for record in caplog.records if "fairseq's generator" in record.getMessage()]
    assert said == [f"{left} is left to fairseq's generator, which is slower"]


def test_a_precision_that_fairseq_does_not_compute_in_is_said(caplog) -> None:
    model, made = build(double=False)
    for attribute in ("released_precision", "inference_precision"):
        decoding._warn.cache_clear()
        caplog.clear()
        setattr(model, attribute, "int8")
        with caplog.at_level(logging.WARNING):
            Generator([model, model], made)
        assert "which is slower and computes with the parameters as they are: precision int8 is not" in caplog.text
    model.inference_precision = "fp32"  # as asked, whatever the release's
    decoding._warn.cache_clear()
    caplog.clear()
    Generator([model, model], made)
    assert "which is slower" in caplog.text and "precision" not in caplog.text


def test_n_grams_of_one_word_are_refused() -> None:
    """fairseq's own search ignores them."""
    model, made = build(double=False)
    with pytest.raises(ValueError, match="--no-repeat-ngram-size 1: no word twice, not even a comma, is no rule"):
        Generator([model], made, no_repeat_ngram_size=1)


def test_who_gets_which_generator(monkeypatch) -> None:
    model, made = build(double=False)
    task = FairseqTask.__new__(FairseqTask)
    task.__class__ = type("Task", (FairseqTask,), {"target_dictionary": made, "source_dictionary": made})
    config = GenerationConfig(beam=2)
    assert type(task.build_generator([model], config)) is Generator
    assert Generator([model, model], made).left == "an ensemble of models"

    class Own(SequenceGenerator):
        pass

    assert type(task.build_generator([model], config, Own)) is Own
    monkeypatch.setenv(decoding.SWITCH, "fairseq")
    assert type(task.build_generator([model], config)) is SequenceGenerator
    monkeypatch.setenv(decoding.SWITCH, "Fairseq")
    with pytest.raises(ValueError, match="MACARON_GENERATOR=Fairseq in the environment is unknown; give auto or"):
        task.build_generator([model], config)


# --- precision ------------------------------------------------------------------------------------------------------


def ready(**options: Any) -> tuple[Any, Any]:
    model, made = build(double=False, **options)
    model._is_generation_fast = True
    return model, made


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_precision_is_kept_apart_from_the_model(precision) -> None:
    try:
        choose_precision(precision)
    except ValueError as error:
        pytest.skip(str(error))
    model, made = ready()
    model.inference_precision = precision
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sample = batch()
    generator = Generator([model], made, beam_size=3, max_len_b=8)
    found = generator.generate([model], sample)
    exact = SequenceGenerator([model], made, beam_size=3, max_len_b=8).generate([model], sample)
    gaps = [abs(float(a[0]["score"]) - float(b[0]["score"])) for a, b in zip(found, exact, strict=True)]
    # float32; of 8 bits, what a tiny random model makes of a hundredth, and something at all
    assert max(gaps) < (1e-5 if precision == "fp32" else 0.3) and (precision == "fp32" or max(gaps) > 1e-5)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.decoder.layers[0].flows[0].fc1.weight.mul_(-1)
    changed = generator.generate([model], sample)
    assert changed[0][0]["score"] != found[0][0]["score"], "other weights are packed anew"


def test_a_model_in_training_is_not_packed(monkeypatch) -> None:
    model, _ = build(double=False)
    monkeypatch.setenv(decoding.PRECISION, "int8")
    assert decoding.parts(model) == (model.encoder, model.decoder)


def test_the_environment_says_the_precision(monkeypatch) -> None:
    model, _ = ready()
    monkeypatch.setenv(decoding.PRECISION, "int9")
    with pytest.raises(ValueError, match="precision 'int9' is unknown"):
        decoding.parts(model)


def test_float16_on_a_cpu_is_said(caplog) -> None:
    model, _ = ready()
    decoding._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        decoding.parts(model.half())
    assert "leave out --fp16" in caplog.text
