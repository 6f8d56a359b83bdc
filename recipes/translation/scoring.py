"""How good is a translation? The metric of the papers, sacreBLEU, chrF, and how sure of them one can be.

BLEU (Papineni et al. 2002) with n-gram precisions p_1 … p_4, hypothesis length c and reference length r:

    BLEU = min(1, exp(1 − r/c)) · (p_1 p_2 p_3 p_4)^¼        multi-bleu.perl: no smoothing, words as they stand

One model has several BLEU scores, because tokenization moves them by more than most papers gain, so they are always
given together: `paper`, tokenized as in the papers of the corpus, to compare with those; `sacreBLEU` and `chrF2` on
detokenized text with their signatures, to compare with everybody else. A corpus that no paper is about has these two.
For files there is sacreBLEU's own command: `sacrebleu raw/test.en -i hyp/test.en -m bleu chrf --confidence`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import RecipeError
from ..common.statistics import Difference, paired_bootstrap
from .languages import sacrebleu_tokenizer

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.base import Metric

    from .text import TextSettings

SAMPLES = 1000  # of every bootstrap
EDGES = (10, 20, 30, 40, 50, 60)  # of the buckets of source length, in words


@dataclass(frozen=True)
class MetricSet:
    """What the papers of a corpus report.

    Args:
        language: of the translation; Moses' rules for it tokenize and detokenize.
        paper_lowercase: the paper's BLEU ignores case.
        compounds: the paper's BLEU is of text tokenized anew, with hyphenated compounds split (`split_compounds`).
        lowercase: the data has no capitals, so sacreBLEU and chrF ignore case too (their signatures say so).
        published: there are papers; otherwise sacreBLEU and chrF are all.
        tokenizer: sacreBLEU's.
    """

    language: str
    paper_lowercase: bool = False
    compounds: bool = False
    lowercase: bool = False
    published: bool = True
    tokenizer: str = "13a"

    @property
    def title(self) -> str:
        words = ["lower-cased"] if self.paper_lowercase else []
        return " ".join([*words, "tokenized", *(["compound-split"] if self.compounds else []), "BLEU"])


METRIC_SETS = {
    # Edunov et al. 2018, Lu et al. 2019: multi-bleu.perl on the lower-cased, tokenized test set.
    "iwslt14": MetricSet("en", paper_lowercase=True, lowercase=True),
    # Vaswani et al. 2017: get_ende_bleu.sh of tensor2tensor.
    "wmt14": MetricSet("de", compounds=True),
    # Elliott et al. 2017 (WMT shared task): lower-cased and tokenized.
    "multi30k": MetricSet("en", paper_lowercase=True),
}
ANY = "any"  # corpus: whose metrics depend on its language

Scores = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Output:
    """One system's translations of a test set, or the references: `raw` detokenized, `tokenized` by Moses.

    What is None is made from the other.
    """

    raw: Sequence[str] | None
    tokenized: Sequence[str] | None = None

    def completed(self, language: str) -> tuple[Sequence[str], Sequence[str]]:
        if self.raw is not None:
            return self.raw, tokenize(self.raw, language) if self.tokenized is None else self.tokenized
        assert self.tokenized is not None
        return detokenize(self.tokenized, language), self.tokenized


def score(
    hyp_raw: Sequence[str] | None,
    ref_raw: Sequence[str] | None,
    hyp_tok: Sequence[str] | None,
    ref_tok: Sequence[str] | None,
    metrics: str | MetricSet,
    samples: int = SAMPLES,
) -> Scores:
    """All scores of one system, each with a 95 % confidence interval by bootstrap over the sentences.

    Args:
        hyp_raw, ref_raw: detokenized translations and references.
        hyp_tok, ref_tok: the same tokenized by Moses (with its escapes, such as &apos;), sub-words joined. Of raw
            and tokenized one may be None.
        metrics: a name in `METRIC_SETS`, or a `MetricSet`.

    Returns:
        "paper" (where there are papers), "sacreBLEU" and "chrF2", each {"title", "score", "low", "high", "signature"}.

    Raises:
        RecipeError: for texts of unequal length, sub-word marks, or escapes on one side only.
    """
    metric_set = look_up(metrics)
    texts = prepared(Output(hyp_raw, hyp_tok), Output(ref_raw, ref_tok), metric_set)
    return {
        name: {"title": title(name, metric_set), **with_interval(metric_of(name, metric_set), *texts[name], samples)}
        for name in texts
    }


def compare_over_seeds(
    first: Sequence[Output],
    second: Sequence[Output],
    reference: Output,
    metrics: str | MetricSet,
    samples: int = SAMPLES,
) -> dict[str, Difference]:
    """The difference of the mean scores over seeds, for the systems that were trained and other test sentences.

    Resamples sentences, the same for all runs; what another *seed* would do is the question of `paired_t_test`.
    `sacrebleu --paired-bs` counts only one tail, so its p is about half of this one.
    """
    metric_set = look_up(metrics)
    result = {}
    groups = [[prepared(system, reference, metric_set) for system in group] for group in (first, second)]
    for name in groups[0][0]:
        metric = metric_of(name, metric_set)
        rows = [
            np.stack([sufficient_statistics(metric, *texts[name]) for texts in group], axis=1) for group in groups
        ]  # (sentences, seeds, statistics)

        def mean_score(r: np.ndarray, m: Metric = metric) -> float:
            return float(np.mean([from_rows(m, r[:, seed]) for seed in range(r.shape[1])]))

        result[name] = paired_bootstrap(mean_score, *rows, samples=samples)
    return result


def bleu_by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str],
    metrics: str | MetricSet = "iwslt14",
    edges: Sequence[int] = EDGES,
) -> list[dict[str, Any]]:
    """BLEU of the sentences whose source has `from` to `to` words (None: no upper end); empty buckets left out.

    Where there are papers it is of words that Moses has set apart, unsmoothed, so that a bucket of a few sentences may
    well score 0; otherwise sacreBLEU of raw text.
    """
    check_lengths(hypotheses=hypotheses, references=references, sources=sources)
    metric_set = look_up(metrics)
    metric = tokenized_bleu(lowercase=False) if metric_set.published else metric_of("sacreBLEU", metric_set)
    lengths = np.array([len(line.split()) for line in sources])
    rows = sufficient_statistics(metric, hypotheses, references)
    buckets = []
    for low, high in zip([0, *edges], [*edges, None], strict=True):
        inside = (lengths >= low) & (lengths < (math.inf if high is None else high))
        if inside.any():
            buckets.append(
                {
                    "from": low,
                    "to": None if high is None else high - 1,
                    "sentences": int(inside.sum()),
                    "BLEU": round(from_rows(metric, rows[inside]), 2),
                }
            )
    return buckets


# --- metrics ----------------------------------------------------------------------------------------------------


def metric_set(name: str, text: TextSettings) -> MetricSet:
    """What a recipe is scored by."""
    if name != ANY:
        return look_up(name)
    tokenizer = sacrebleu_tokenizer(text.target)
    return MetricSet(text.target, lowercase=text.lowercase, published=False, tokenizer=tokenizer)


def look_up(metrics: str | MetricSet) -> MetricSet:
    if isinstance(metrics, MetricSet):
        return metrics
    if metrics not in METRIC_SETS:
        raise RecipeError(f"metric set {metrics!r} is unknown; choose one of {', '.join(METRIC_SETS)}")
    return METRIC_SETS[metrics]


def title(name: str, metrics: MetricSet) -> str:
    return metrics.title if name == "paper" else name


def metric_of(name: str, metrics: MetricSet) -> Metric:
    from sacrebleu.metrics import BLEU, CHRF

    if name == "paper":
        return tokenized_bleu(metrics.paper_lowercase)
    if name == "sacreBLEU":
        return BLEU(lowercase=metrics.lowercase, tokenize=metrics.tokenizer)
    return CHRF(lowercase=metrics.lowercase)


def tokenized_bleu(lowercase: bool) -> BLEU:
    """multi-bleu.perl: words between spaces, no smoothing; force: sacrebleu need not warn that this is tokenized."""
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=lowercase, tokenize="none", smooth_method="none", force=True)


def prepared(system: Output, reference: Output, metrics: MetricSet) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """{metric: (hypotheses, references)} in the form which that metric is defined on, after all checks."""
    for side, output in (("hypotheses", system), ("references", reference)):
        if output.raw is not None and output.tokenized is not None:
            check_lengths(**{f"{side} (detokenized)": output.raw, f"{side} (tokenized)": output.tokenized})
    given = [output.tokenized if output.raw is None else output.raw for output in (system, reference)]
    check_lengths(hypotheses=given[0], references=given[1])
    check_pieces(hypotheses=given[0], references=given[1])
    if not metrics.published and system.raw is not None and reference.raw is not None:
        return {"sacreBLEU": (system.raw, reference.raw), "chrF2": (system.raw, reference.raw)}
    hyp_raw, hyp_tok = system.completed(metrics.language)
    ref_raw, ref_tok = reference.completed(metrics.language)
    check_escapes(hyp_tok, ref_tok)
    if metrics.compounds:
        hyp_tok, ref_tok = (split_compounds(tokenize(raw, metrics.language)) for raw in (hyp_raw, ref_raw))
    paper = {"paper": (hyp_tok, ref_tok)} if metrics.published else {}
    return {**paper, "sacreBLEU": (hyp_raw, ref_raw), "chrF2": (hyp_raw, ref_raw)}


def with_interval(metric: Metric, hypotheses: Sequence[str], references: Sequence[str], samples: int) -> dict[str, Any]:
    """Score and 95 % interval by sacrebleu's bootstrap, centred on the mean of the resamples, within 0 to 100."""
    from sacrebleu.significance import PairedTest

    signatures, scores = PairedTest([("system", hypotheses)], {"metric": metric}, [references], "bs", samples)()
    (key, signature), *_ = signatures.items()
    result = scores[key][0]
    return {
        "score": round(float(result.score), 2),
        "low": round(max(float(result.mean - result.ci), 0.0), 2),
        "high": round(min(float(result.mean + result.ci), 100.0), 2),
        "signature": str(signature),
    }


def sufficient_statistics(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(sentences, statistics) counts whose sum over sentences determines the score.

    sacrebleu's significance tests use the same two methods of its metrics, which it does not document.
    """
    return np.asarray(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.float64)


def from_rows(metric: Metric, rows: np.ndarray) -> float:
    return float(metric._compute_score_from_stats(rows.sum(0)).score)


# --- texts ------------------------------------------------------------------------------------------------------


def tokenize(lines: Iterable[str], language: str) -> list[str]:
    """Moses' tokenizer.perl -l LANGUAGE, with its escapes of & | < > ' " [ ]."""
    from macaron.moses import Moses

    moses = Moses(language)
    return [moses.tokenize(line) for line in lines]


def detokenize(lines: Iterable[str], language: str) -> list[str]:
    """Moses' detokenizer.perl -l LANGUAGE; escapes become characters again."""
    from macaron.moses import Moses

    moses = Moses(language)
    return [moses.decode(line) for line in lines]


_HYPHEN = re.compile(r"(\S)-(\S)")


def split_compounds(lines: Iterable[str]) -> list[str]:
    """`rich-text` → `rich ##AT##-##AT## text`: for historical reasons, as in GNMT, ConvS2S, and the Transformer.

    The substitution of get_ende_bleu.sh, s{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g, which leaves the second hyphen of a-b-c.
    """
    return [_HYPHEN.sub(r"\1 ##AT##-##AT## \2", line) for line in lines]


def check_lengths(**texts: Sequence[str]) -> None:
    (name, text), *others = texts.items()
    for other, lines in others:
        if len(lines) != len(text):
            raise RecipeError(
                f"{name}: {len(text)} lines, but {other}: {len(lines)}; translations are compared line by line, "
                f"so give files of the same test set (an empty translation is an empty line)"
            )
    if not len(text):
        raise RecipeError(f"{name}: no lines; there is nothing to score")


_PIECES = re.compile(r"\S@@( |$)|▁")


def check_pieces(**texts: Sequence[str]) -> None:
    for name, lines in texts.items():
        marked = [number for number, line in enumerate(lines, 1) if _PIECES.search(line)]
        if len(marked) > len(lines) / 10:  # a stray mark is text
            raise RecipeError(
                f"{name}, line {marked[0]}: {lines[marked[0] - 1][:80]!r} holds sub-word marks, as {len(marked)} of "
                f"{len(lines)} lines do, but BLEU is of words; join the pieces first (--remove-bpe of "
                f"fairseq-generate)"
            )


_ESCAPE = re.compile(r"&(apos|quot|amp|lt|gt|#124|#91|#93);")
_BARE = re.compile(r"['\"]")


def check_escapes(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Tokenized by Moses are both sides or neither: `don 't` never matches `don &apos;t`."""
    sides = {"hypotheses": hypotheses, "references": references}
    escaped = {name for name, lines in sides.items() if any(map(_ESCAPE.search, lines))}
    bare = {name for name, lines in sides.items() if any(map(_BARE.search, lines))} - escaped
    if escaped and bare:
        raise RecipeError(
            f"{escaped.pop()} (tokenized) hold Moses' escapes such as &apos;, {bare.pop()} hold bare quotes; they "
            f"would never match. Tokenize both in the same way, or give both as raw text"
        )


def show(scores: Scores) -> list[str]:
    """One line per metric, the same wherever scores are printed."""
    lines = []
    for entry in scores.values():
        interval = f"[{entry['low']:5.2f}, {entry['high']:5.2f}]" if "low" in entry else ""
        lines.append(f"{entry['title']:<34} {entry['score']:6.2f} {interval:<15}  {entry['signature']}")
    return lines
