"""BLEU as multi-bleu.perl counts it, compounds as get_ende_bleu.sh splits them, intervals, and refusals that help."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation import scoring
from recipes.translation.scoring import (
    Output,
    bleu_by_length,
    check_pieces,
    compare,
    metric_set,
    score,
    split_compounds,
    tokenize,
)
from recipes.translation.text import TextSettings

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "rain",
    "fell",
    "and",
    "no",
    "one",
    "came",
    "home",
    "before",
    "ten",
    ".",
    ",",
    "&quot;",
]


def multi_bleu(hypotheses: list[str], references: list[str], lowercase: bool = False) -> float:
    """The formula of multi-bleu.perl, on its own: clipped counts over the corpus, geometric mean, brevity penalty."""
    correct, total = [0] * 4, [0] * 4
    lengths = [0, 0]
    for pair in zip(hypotheses, references, strict=True):
        hyp, ref = ((line.lower() if lowercase else line).split() for line in pair)
        lengths[0] += len(hyp)
        lengths[1] += len(ref)
        for n in range(4):
            grams, known = (Counter(tuple(w[i : i + n + 1]) for i in range(len(w) - n)) for w in (hyp, ref))
            total[n] += sum(grams.values())
            correct[n] += sum((grams & known).values())
    if not all(correct):
        return 0.0
    logs = sum(math.log(c / t) for c, t in zip(correct, total, strict=True)) / 4
    return 100 * min(1.0, math.exp(1 - lengths[1] / lengths[0])) * math.exp(logs)


def noisy(lines: list[str], seed: int, rate: float) -> list[str]:
    """Words are dropped with probability rate / 2, the others replaced with probability `rate`."""
    generator = random.Random(seed)
    kept = ([word for word in line.split() if generator.random() > rate / 2] for line in lines)
    return [" ".join(w if generator.random() > rate else generator.choice(WORDS) for w in words) for words in kept]


@pytest.fixture(scope="module")
def references() -> list[str]:
    generator = random.Random(7)
    return [" ".join(generator.choices(WORDS, k=generator.randint(4, 40))) for _ in range(200)]


def paper(hypotheses: list[str], references: list[str], metrics: str = "iwslt14") -> float:
    return score(None, None, hypotheses, references, metrics, samples=40)["paper"]["score"]


# --- the metric of the papers -----------------------------------------------------------------------------------


def test_by_hand() -> None:
    """p = 5/6, 3/5, 2/4, 1/3 by counting, and no brevity penalty."""
    hypothesis, reference = "the cat sat on the mat", "the cat sat on a mat"
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert paper([hypothesis], [reference]) == pytest.approx(expected, abs=0.005)


def test_brevity_by_hand() -> None:
    """All n-grams are right, but 5 words stand for 7: exp(1 − 7/5)."""
    assert paper(["a b c d e"], ["a b c d e f g"]) == pytest.approx(100 * math.exp(1 - 7 / 5), abs=0.005)


def test_clipping_by_hand() -> None:
    """Of seven `the` two count (the example of Papineni et al.), and without a correct 2-gram nothing is left."""
    hypotheses, references = ["the the the the the the the"], ["the cat is on the mat"]
    result = scoring.tokenized_bleu(lowercase=False).corpus_score(hypotheses, [references])
    assert result.counts[0] == 2 and result.totals[0] == 7 and result.score == 0


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_multi_bleu(references: list[str], rate: float) -> None:
    hypotheses = noisy(references, 1, rate)
    hypotheses[5] = ""  # an empty translation counts as length 0
    assert paper(hypotheses, references) == pytest.approx(multi_bleu(hypotheses, references, True), abs=0.005)


def test_no_smoothing(references: list[str]) -> None:
    """multi-bleu gives 0 where a precision is 0; sacreBLEU's default would not."""
    backwards = [" ".join(reversed(line.split())) for line in references[:2]]
    assert multi_bleu(backwards, references[:2]) == paper(backwards, references[:2]) == 0


def test_fairseq_score(references: list[str]) -> None:
    """What fairseq-generate prints with --remove-bpe."""
    from fairseq.data import Dictionary
    from fairseq.scoring.bleu import BleuConfig, Scorer

    hypotheses = noisy(references, 2, 0.2)
    dictionary = Dictionary()
    scorer = Scorer(BleuConfig(pad=dictionary.pad(), eos=dictionary.eos(), unk=dictionary.unk()))
    for hyp, ref in zip(hypotheses, references, strict=True):
        encoded = (dictionary.encode_line(line, append_eos=False).int() for line in (ref, hyp))
        scorer.add(*encoded)
    assert paper(hypotheses, references) == pytest.approx(scorer.score(), abs=0.005)


def test_case() -> None:
    hypotheses, references = ["The Cat sat on it"], ["the cat sat on it"]
    assert paper(hypotheses, references) == 100
    assert scoring.tokenized_bleu(lowercase=False).corpus_score(hypotheses, [references]).score < 100


def test_compounds() -> None:
    """Perl's s{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g does not overlap, and leaves dashes between spaces alone."""
    lines = ["der Rich-Text-Editor", "a-b-c", "er - sie", "-x", "rich-text format"]
    assert split_compounds(lines) == [
        "der Rich ##AT##-##AT## Text ##AT##-##AT## Editor",
        "a ##AT##-##AT## b-c",
        "er - sie",
        "-x",
        "rich ##AT##-##AT## text format",
    ]


def test_ende_bleu() -> None:
    """Retokenized and compound-split: four right pieces of a wrong compound count."""
    hyp = "Der EU-Gipfel, so hieß es, beginnt heute."
    ref = "Der EU-Rat, so hieß es, beginnt heute."
    scores = score([hyp], [ref], None, None, "wmt14", samples=40)
    pieces = [f"Der EU ##AT##-##AT## {word} , so hieß es , beginnt heute ." for word in ("Gipfel", "Rat")]
    assert scores["paper"]["score"] == pytest.approx(multi_bleu(pieces[:1], pieces[1:]), abs=0.005)
    assert scores["paper"]["title"] == "tokenized compound-split BLEU"
    assert "case:mixed" in scores["paper"]["signature"]


def test_wmt14_ignores_how_the_pipeline_tokenized() -> None:
    hyp, ref = "Der EU-Gipfel beginnt heute in Rom.", "Der EU-Gipfel beginnt heute in Bonn."
    given = score([hyp], [ref], [hyp], [ref], "wmt14", samples=40)
    assert given["paper"] == score([hyp], [ref], None, None, "wmt14", samples=40)["paper"]


# --- sacreBLEU and chrF -----------------------------------------------------------------------------------------


def test_all_metrics_together(references: list[str]) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    hypotheses = noisy(references, 3, 0.2)
    scores = score(None, None, hypotheses, references, "multi30k", samples=100)
    assert list(scores) == ["paper", "sacreBLEU", "chrF2"]
    raw = [scoring.detokenize(lines, "en") for lines in (hypotheses, references)]
    assert '"' in "".join(raw[1]) and "&quot;" not in "".join(raw[1])
    for name, metric in (("sacreBLEU", BLEU()), ("chrF2", CHRF())):
        expected = metric.corpus_score(raw[0], [raw[1]]).score
        assert scores[name]["score"] == pytest.approx(expected, abs=0.005)
        assert scores[name]["low"] < expected < scores[name]["high"]
    assert "tok:13a" in scores["sacreBLEU"]["signature"] and "case:mixed" in scores["sacreBLEU"]["signature"]
    assert "bs:100" in scores["chrF2"]["signature"]
    assert all(entry["signature"] in line for entry, line in zip(scores.values(), scoring.show(scores), strict=True))


def test_lower_cased_data_says_so() -> None:
    scores = score(["we saw berlin today ."], ["We saw Berlin today ."], None, None, "iwslt14", samples=40)
    assert all("case:lc" in scores[name]["signature"] for name in scores)
    assert scores["sacreBLEU"]["score"] == 100


def test_moses_escapes_come_back() -> None:
    line = "it 's &lt; 5 &amp; I don &apos;t say &quot; so &quot;"
    assert scoring.detokenize([line], "en") == ["it's < 5 & I don't say \"so\""]
    assert tokenize(['I don\'t say "so" & go.'], "en") == ["I don &apos;t say &quot; so &quot; &amp; go ."]


def test_an_interval_never_leaves_the_range_of_the_metric() -> None:
    """One sentence of two is right: the middle of the resamples ± half of their spread would reach beyond 100."""
    hypotheses = ["a b c d e f g h", "x y"]
    scores = score(hypotheses, ["a b c d e f g h", "p q"], None, None, "multi30k", samples=200)
    assert all(0 <= entry["low"] <= entry["high"] <= 100 for entry in scores.values())
    assert scores["sacreBLEU"]["high"] == 100


def test_what_sacrebleu_prints_itself(references: list[str], tmp_path: Path) -> None:
    """The command that the documentation names gives the scores and the intervals of a run."""
    raw = [scoring.detokenize(lines, "en") for lines in (noisy(references, 3, 0.2), references)]
    for name, lines in zip(("hyp", "ref"), raw, strict=True):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "ref",
        "-i",
        "hyp",
        "-m",
        "bleu",
        "chrf",
        "--confidence",
        "-f",
        "json",
    ]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    ours = score(*raw, None, None, metric_set("any", TextSettings("de", "en")))
    assert list(ours) == ["sacreBLEU", "chrF2"]
    for entry, theirs in zip(ours.values(), json.loads(printed), strict=True):
        assert theirs["score"] == pytest.approx(entry["score"], abs=0.051)  # it prints one digit
        middle, half = theirs["confidence_mean"], theirs["confidence_var"]
        assert (entry["low"], entry["high"]) == pytest.approx((middle - half, middle + half), abs=0.101)  # two such


@pytest.mark.parametrize(("target", "tokenizer"), [("ka", "13a"), ("zh_CN", "zh"), ("ja", "char"), ("th", "char")])
def test_a_corpus_without_papers(target: str, tokenizer: str) -> None:
    """sacreBLEU and chrF alone, by words as the language has them."""
    metrics = metric_set("any", TextSettings("en", target, lowercase=True))
    scores = score(["我 们 是 A"], ["我们是 a"], None, None, metrics, samples=40)
    assert list(scores) == ["sacreBLEU", "chrF2"]
    assert f"|tok:{tokenizer}|" in scores["sacreBLEU"]["signature"] and "case:lc" in scores["chrF2"]["signature"]
    (bucket,) = bleu_by_length(["a b c d"], ["a b c d"], ["x"], metrics)
    assert bucket["BLEU"] == 100


# --- between two systems ----------------------------------------------------------------------------------------


def test_a_better_system(references: list[str]) -> None:
    worse, better = (Output(None, noisy(references, seed, rate)) for seed, rate in ((4, 0.3), (5, 0.1)))
    result = compare(worse, better, Output(None, references), "iwslt14", samples=200)
    for entry in result.values():
        assert 0 < entry["low"] < entry["difference"] < entry["high"]
        assert entry["p"] == pytest.approx(1 / 201)
    reverse = compare(better, worse, Output(None, references), "iwslt14", samples=40)
    assert reverse["paper"]["difference"] == pytest.approx(-result["paper"]["difference"])


def test_systems_alike_but_for_noise(references: list[str]) -> None:
    systems = [Output(None, noisy(references, seed, 0.2)) for seed in (6, 7)]
    entry = compare(*systems, Output(None, references), "iwslt14", samples=200)["paper"]
    assert entry["low"] < 0 < entry["high"] and entry["p"] > 0.05


def test_the_same_system_twice(references: list[str]) -> None:
    """sacrebleu would report p = 1/(samples + 1), the strongest verdict there is."""
    same = Output(None, noisy(references, 8, 0.2))
    entry = compare(same, same, Output(None, references), "iwslt14", samples=40)["paper"]
    assert entry["difference"] == 0 and entry["p"] == 1


def test_over_seeds(references: list[str]) -> None:
    first, second = ([Output(None, noisy(references, s, rate)) for s in (1, 2, 3)] for rate in (0.3, 0.2))
    reference = Output(None, references)
    result = scoring.compare_over_seeds(first, second, reference, "iwslt14", samples=100)["paper"]
    means = [sum(multi_bleu(o.tokenized, references) for o in group) / 3 for group in (first, second)]
    assert result.value == pytest.approx(means[1] - means[0], abs=0.01)
    assert 0 < result.low < result.value < result.high


# --- by length --------------------------------------------------------------------------------------------------


def test_by_length(references: list[str]) -> None:
    hypotheses = noisy(references, 9, 0.2)
    buckets = bleu_by_length(hypotheses, references, references, edges=(10, 20))
    assert [(b["from"], b["to"]) for b in buckets] == [(0, 9), (10, 19), (20, None)]
    assert sum(b["sentences"] for b in buckets) == 200
    inside = [i for i, line in enumerate(references) if 10 <= len(line.split()) < 20]
    expected = multi_bleu([hypotheses[i] for i in inside], [references[i] for i in inside])
    assert buckets[1]["sentences"] == len(inside) and buckets[1]["BLEU"] == pytest.approx(expected, abs=0.006)


def test_empty_buckets_are_left_out() -> None:
    assert bleu_by_length(["a b"], ["a b"], ["x y"], edges=(2, 5)) == [
        {"from": 2, "to": 4, "sentences": 1, "BLEU": 0.0}
    ]


# --- refusals ---------------------------------------------------------------------------------------------------


def test_unequal_texts() -> None:
    with pytest.raises(RecipeError, match=r"hypotheses: 2 lines, but references: 1; .*same test set"):
        score(["a", "b"], ["a"], None, None, "wmt14")
    with pytest.raises(RecipeError, match=r"hypotheses \(detokenized\): 1 lines, but hypotheses \(tokenized\): 2"):
        score(["a"], ["a"], ["a", "b"], ["a"], "iwslt14")
    with pytest.raises(RecipeError, match="no lines; there is nothing to score"):
        score([], [], None, None, "wmt14")


@pytest.mark.parametrize("line", ["das ist ein hau@@ s", "ein hau@@", "▁das ▁ist"])
def test_sub_words_are_refused(line: str) -> None:
    with pytest.raises(RecipeError, match=r"hypotheses, line 1: .* holds sub-word marks.*--remove-bpe"):
        score(None, None, [line], ["das ist ein haus"], "iwslt14")


def test_a_stray_mark_is_text() -> None:
    check_pieces(hypotheses=["mail me@@ home", *["a b c"] * 30])


def test_escapes_on_one_side() -> None:
    with pytest.raises(RecipeError, match=r"references \(tokenized\) hold Moses' escapes .* hypotheses hold bare"):
        score(None, None, ["don 't go"], ["don &apos;t go"], "iwslt14")


def test_unknown_set() -> None:
    with pytest.raises(RecipeError, match=r"'wmt16' is unknown; choose one of iwslt14, wmt14, multi30k"):
        score(["a"], ["a"], None, None, "wmt16")
