"""How good is a translation? The metric of the papers, sacreBLEU, chrF, and how sure of them one can be.

    python -m recipes.translation.scoring --metric-set iwslt14 --hyp out.txt --ref test.en [--hyp2 other.txt]

BLEU (Papineni et al. 2002) with n-gram precisions p_1 … p_4, hypothesis length c and reference length r:

    BLEU = min(1, exp(1 − r/c)) · (p_1 p_2 p_3 p_4)^¼        multi-bleu.perl: no smoothing, words as they stand

One model has several BLEU scores, because tokenization moves them by more than most papers gain, so they are always
given together: `paper`, tokenized as in the papers of the corpus, to compare with those; `sacreBLEU` and `chrF2` on
detokenized text with their signatures, to compare with everybody else.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from macaron.text import join_bpe, join_sentencepiece
from recipes.common.errors import RecipeError
from recipes.common.main import run_command
from recipes.common.statistics import Difference, paired_bootstrap
from recipes.common.workspace import read_lines, write_json

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.base import Metric

SAMPLES = 1000  # of every bootstrap
EDGES = (10, 20, 30, 40, 50, 60)  # of the buckets of source length, in words


@dataclass(frozen=True)
class MetricSet:
    """What the papers of a corpus report.

    Args:
        source, language: of the source and of the translation; Moses' rules for it tokenize and detokenize.
        paper_lowercase: the paper's BLEU ignores case.
        compounds: the paper's BLEU is of text tokenized anew, with hyphenated compounds split (`split_compounds`).
        lowercase: the data has no capitals, so sacreBLEU and chrF ignore case too (their signatures say so).
    """

    source: str
    language: str
    paper_lowercase: bool
    compounds: bool
    lowercase: bool

    @property
    def title(self) -> str:
        words = ["lower-cased"] if self.paper_lowercase else []
        return " ".join([*words, "tokenized", *(["compound-split"] if self.compounds else []), "BLEU"])


METRIC_SETS = {
    # Edunov et al. 2018, Lu et al. 2019: multi-bleu.perl on the lower-cased, tokenized test set.
    "iwslt14": MetricSet("de", "en", paper_lowercase=True, compounds=False, lowercase=True),
    # Vaswani et al. 2017: get_ende_bleu.sh of tensor2tensor.
    "wmt14": MetricSet("en", "de", paper_lowercase=False, compounds=True, lowercase=False),
    # Elliott et al. 2017 (WMT shared task): lower-cased and tokenized.
    "multi30k": MetricSet("de", "en", paper_lowercase=True, compounds=False, lowercase=False),
}

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
        "paper", "sacreBLEU" and "chrF2", each {"title", "score", "low", "high", "signature"}.

    Raises:
        RecipeError: for texts of unequal length, sub-word marks, or escapes on one side only.
    """
    metric_set = look_up(metrics)
    texts = prepared(Output(hyp_raw, hyp_tok), Output(ref_raw, ref_tok), metric_set)
    return {
        name: {"title": title(name, metric_set), **with_interval(metric_of(name, metric_set), *texts[name], samples)}
        for name in texts
    }


def compare(
    first: Output, second: Output, reference: Output, metrics: str | MetricSet, samples: int = SAMPLES
) -> Scores:
    """Is `second` better than `first`? Per metric the difference, its interval and two-sided p (`paired_bootstrap`).

    `sacrebleu_p` is what `sacrebleu --paired-bs` prints, for comparison with papers that quote it: it counts only
    one tail, so it is about half of p. Of two equal outputs sacrebleu says 1/(samples + 1); here it is left out.
    """
    from sacrebleu.significance import PairedTest

    metric_set = look_up(metrics)
    texts = [prepared(system, reference, metric_set) for system in (first, second)]
    result: Scores = {}
    for name in texts[0]:
        (a, ref), (b, _) = (of_system[name] for of_system in texts)
        metric = metric_of(name, metric_set)
        rows = [sufficient_statistics(metric, hypotheses, ref) for hypotheses in (a, b)]
        result[name] = as_dict(paired_bootstrap(lambda r, m=metric: from_rows(m, r), *rows, samples=samples))
        result[name]["title"] = title(name, metric_set)
        if list(a) != list(b):
            test = PairedTest([("first", a), ("second", b)], {name: metric}, [ref], "bs", samples)
            signatures, scores = test()
            (key, signature), *_ = signatures.items()
            result[name] |= {"sacrebleu_p": scores[key][1].p_value, "sacrebleu_signature": str(signature)}
    return result


def compare_over_seeds(
    first: Sequence[Output],
    second: Sequence[Output],
    reference: Output,
    metrics: str | MetricSet,
    samples: int = SAMPLES,
) -> dict[str, Difference]:
    """The difference of the mean scores over seeds, for the systems that were trained and other test sentences.

    Resamples sentences, the same for all runs; what another *seed* would do is the question of `paired_t_test`.
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
    hyp_tok: Sequence[str], ref_tok: Sequence[str], source_tok: Sequence[str], edges: Sequence[int] = EDGES
) -> list[dict[str, Any]]:
    """Tokenized BLEU of the sentences whose source has `from` to `to` words (None: no upper end); empty ones left out.

    Unsmoothed, so a bucket of a few sentences may well score 0.
    """
    check_lengths(hypotheses=hyp_tok, references=ref_tok, sources=source_tok)
    metric = tokenized_bleu(lowercase=False)
    lengths = np.array([len(line.split()) for line in source_tok])
    rows = sufficient_statistics(metric, hyp_tok, ref_tok)
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
    return BLEU(lowercase=metrics.lowercase) if name == "sacreBLEU" else CHRF(lowercase=metrics.lowercase)


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
    hyp_raw, hyp_tok = system.completed(metrics.language)
    ref_raw, ref_tok = reference.completed(metrics.language)
    check_escapes(hyp_tok, ref_tok)
    if metrics.compounds:
        hyp_tok, ref_tok = (split_compounds(tokenize(raw, metrics.language)) for raw in (hyp_raw, ref_raw))
    return {"paper": (hyp_tok, ref_tok), "sacreBLEU": (hyp_raw, ref_raw), "chrF2": (hyp_raw, ref_raw)}


def with_interval(metric: Metric, hypotheses: Sequence[str], references: Sequence[str], samples: int) -> dict[str, Any]:
    """Score and 95 % interval by sacrebleu's bootstrap, centred on the mean of the resamples."""
    from sacrebleu.significance import PairedTest

    signatures, scores = PairedTest([("system", hypotheses)], {"metric": metric}, [references], "bs", samples)()
    (key, signature), *_ = signatures.items()
    result = scores[key][0]
    return {
        "score": round(float(result.score), 2),
        "low": round(float(result.mean - result.ci), 2),
        "high": round(float(result.mean + result.ci), 2),
        "signature": str(signature),
    }


def sufficient_statistics(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(sentences, statistics) counts whose sum over sentences determines the score.

    sacrebleu's significance tests use the same two methods of its metrics, which it does not document.
    """
    return np.asarray(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.float64)


def from_rows(metric: Metric, rows: np.ndarray) -> float:
    return float(metric._compute_score_from_stats(rows.sum(0)).score)


def as_dict(difference: Difference) -> dict[str, Any]:
    return {"difference": difference.value, "low": difference.low, "high": difference.high, "p": difference.p}


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
                f"{len(lines)} lines do, but BLEU is of words; join the pieces first (--remove-bpe, here as in "
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
            f"would never match. Tokenize both in the same way, or give both as raw text with --text raw"
        )


def join_pieces(lines: Iterable[str]) -> list[str]:
    """subword-nmt's `@@ ` and sentencepiece's `▁`, as fairseq's --remove-bpe does."""
    return [join_bpe(join_sentencepiece(line) if "▁" in line else line) for line in lines]


# --- COMET ------------------------------------------------------------------------------------------------------


def comet(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], model: Path) -> dict[str, Any]:
    """COMET (Rei et al. 2020) of raw text, when the user has the package and a checkpoint; nothing is downloaded.

    Raises:
        RecipeError: if `unbabel-comet` is not installed or there is no checkpoint at `model`.
    """
    check_lengths(sources=sources, hypotheses=hypotheses, references=references)
    checkpoint = model / "checkpoints" / "model.ckpt" if model.is_dir() else model
    if not checkpoint.is_file():
        raise RecipeError(
            f"--comet {model}: {checkpoint} is not there; give the checkpoint of a COMET model, or the folder that "
            f"holds checkpoints/model.ckpt (`comet.download_model` makes one). Nothing is downloaded here"
        )
    os.environ["HF_HUB_OFFLINE"] = "1"  # COMET would fetch its encoder without asking
    try:
        import torch
        from comet import load_from_checkpoint
    except ImportError as error:
        raise RecipeError(
            f"--comet: cannot import COMET ({error}); pip install unbabel-comet, or leave the option out"
        ) from error
    rows = [{"src": s, "mt": h, "ref": r} for s, h, r in zip(sources, hypotheses, references, strict=True)]
    prediction = load_from_checkpoint(str(checkpoint)).predict(rows, batch_size=16, gpus=int(torch.cuda.is_available()))
    name = model.name if model.is_dir() else model.stem
    return {"title": "COMET", "score": round(100 * float(prediction.system_score), 2), "signature": f"model:{name}"}


# --- command line -----------------------------------------------------------------------------------------------


def show(scores: Scores) -> list[str]:
    """One line per metric, the same wherever scores are printed."""
    lines = []
    for entry in scores.values():
        interval = f"[{entry['low']:5.2f}, {entry['high']:5.2f}]" if "low" in entry else ""
        lines.append(f"{entry['title']:<34} {entry['score']:6.2f} {interval:<15}  {entry['signature']}")
    return lines


def show_comparison(differences: Scores) -> list[str]:
    lines = []
    for entry in differences.values():
        interval = f"[{entry['low']:+.2f}, {entry['high']:+.2f}]"
        also = f"  (sacrebleu --paired-bs: p = {entry['sacrebleu_p']:.4f})" if "sacrebleu_p" in entry else ""
        lines.append(f"{entry['title']:<34} {entry['difference']:+6.2f} {interval:<15}  p = {entry['p']:.4f}{also}")
    return lines


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m recipes.translation.scoring",
        description="Score translations: the metric of the papers, sacreBLEU and chrF, with 95 %% bootstrap "
        "intervals; with --hyp2 also a paired bootstrap between the two systems.",
    )
    p.add_argument("--hyp", type=Path, required=True, metavar="FILE", help="translations, one a line")
    p.add_argument("--ref", type=Path, required=True, metavar="FILE", help="references, line by line")
    p.add_argument("--hyp2", type=Path, metavar="FILE", help="translations of a second system")
    p.add_argument("--metric-set", required=True, choices=sorted(METRIC_SETS), help="whose papers to compare with")
    p.add_argument(
        "--text",
        choices=("raw", "tokenized"),
        help="what the files hold: detokenized text, or Moses' tokens, which are then also detokenized for "
        "sacreBLEU and chrF (default: tokenized for iwslt14, else raw)",
    )
    p.add_argument("--remove-bpe", action="store_true", help="join sub-word pieces (@@ or ▁) first")
    p.add_argument("--comet", type=Path, metavar="MODEL", help="a COMET checkpoint that you have; needs --src")
    p.add_argument("--src", type=Path, metavar="FILE", help="source sentences, in the form of the other files")
    p.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="of the bootstrap (default: %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    return p


def read(path: Path, remove_bpe: bool) -> list[str]:
    return join_pieces(read_lines(path)) if remove_bpe else read_lines(path)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("translation.scoring", lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> None:
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    result = evaluate(args)
    if args.json:
        write_json(args.json, result)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    if args.comet and not args.src:
        raise RecipeError("--comet judges translations by their sources too; give them with --src")
    if args.samples < 40:
        raise RecipeError(f"--samples {args.samples}: a 95 % interval needs at least 40; 1000 is usual")
    form = args.text or ("tokenized" if args.metric_set == "iwslt14" else "raw")
    metrics = look_up(args.metric_set)
    paths = {name: path for name in ("ref", "hyp", "hyp2", "src") if (path := getattr(args, name))}
    texts = {name: read(path, args.remove_bpe) for name, path in paths.items()}
    check_lengths(**{str(paths[name]): lines for name, lines in texts.items()})
    outputs = {name: Output(*((None, t) if form == "tokenized" else (t, None))) for name, t in texts.items()}
    reference = outputs["ref"]
    result: dict[str, Any] = {}
    for name in ("hyp", "hyp2"):
        if name in outputs:
            system = outputs[name]
            scores = score(system.raw, reference.raw, system.tokenized, reference.tokenized, metrics, args.samples)
            if args.comet:
                raw = [outputs[side].completed(metrics.language)[0] for side in (name, "ref")]
                scores["COMET"] = comet(outputs["src"].completed(metrics.source)[0], *raw, args.comet)
            result[name] = scores
            print(f"{paths[name]}: {len(texts[name]):,} sentences", *show(scores), sep="\n  ")
    if "hyp2" in outputs:
        result["hyp2 - hyp"] = compare(outputs["hyp"], outputs["hyp2"], reference, metrics, args.samples)
        print(f"{paths['hyp2']} against {paths['hyp']}", *show_comparison(result["hyp2 - hyp"]), sep="\n  ")
    return result


if __name__ == "__main__":
    sys.exit(main())
