"""BLEU as multi-bleu.perl counts it, compounds as get_ende_bleu.sh splits them, intervals, and refusals that help."""

from __future__ import annotations

import json
import lzma
import math
import os
import random
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.translation import scoring
from recipes.translation.scoring import Output, bleu_by_length, check_pieces, compare, score, split_compounds, tokenize

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


# --- between two systems ----------------------------------------------------------------------------------------


def test_a_better_system(references: list[str]) -> None:
    worse, better = (Output(None, noisy(references, seed, rate)) for seed, rate in ((4, 0.3), (5, 0.1)))
    result = compare(worse, better, Output(None, references), "iwslt14", samples=200)
    for entry in result.values():
        assert 0 < entry["low"] < entry["difference"] < entry["high"]
        assert entry["p"] == pytest.approx(1 / 201) and entry["sacrebleu_p"] == pytest.approx(1 / 201)
    reverse = compare(better, worse, Output(None, references), "iwslt14", samples=40)
    assert reverse["paper"]["difference"] == pytest.approx(-result["paper"]["difference"])


def test_systems_alike_but_for_noise(references: list[str]) -> None:
    systems = [Output(None, noisy(references, seed, 0.2)) for seed in (6, 7)]
    entry = compare(*systems, Output(None, references), "iwslt14", samples=200)["paper"]
    assert entry["low"] < 0 < entry["high"] and entry["p"] > 0.05
    assert "bs:200" in entry["sacrebleu_signature"]


def test_the_same_system_twice(references: list[str]) -> None:
    """sacrebleu would report p = 1/(samples + 1), the strongest verdict there is."""
    same = Output(None, noisy(references, 8, 0.2))
    entry = compare(same, same, Output(None, references), "iwslt14", samples=40)["paper"]
    assert entry["difference"] == 0 and entry["p"] == 1 and "sacrebleu_p" not in entry


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


def test_pieces_joined() -> None:
    lines = ["ein hau@@ s am se@@", "▁das ▁ha us", "nichts zu tun", ""]
    assert scoring.join_pieces(lines) == ["ein haus am se", "das haus", "nichts zu tun", ""]


def test_escapes_on_one_side() -> None:
    with pytest.raises(RecipeError, match=r"references \(tokenized\) hold Moses' escapes .* hypotheses hold bare"):
        score(None, None, ["don 't go"], ["don &apos;t go"], "iwslt14")


def test_unknown_set() -> None:
    with pytest.raises(RecipeError, match=r"'wmt16' is unknown; choose one of iwslt14, wmt14, multi30k"):
        score(["a"], ["a"], None, None, "wmt16")


# --- COMET ------------------------------------------------------------------------------------------------------


def test_comet_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.ckpt is not there.*Nothing is downloaded here"):
        scoring.comet(["a"], ["b"], ["c"], tmp_path)


def test_comet_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comet", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (tmp_path / "m.ckpt").touch()
    with pytest.raises(RecipeError, match="pip install unbabel-comet, or leave the option out"):
        scoring.comet(["a"], ["b"], ["c"], tmp_path / "m.ckpt")


class CometModel:
    """As much of unbabel-comet 2 as is called; its score tells source, translation and reference apart."""

    def predict(self, samples: list[dict[str, str]], batch_size: int, gpus: int) -> types.SimpleNamespace:
        assert os.environ["HF_HUB_OFFLINE"] == "1" and batch_size > 0 and gpus <= torch.cuda.device_count()
        scores = [(len(s["src"]) + 10 * len(s["mt"]) + 100 * len(s["ref"])) / 1000 for s in samples]
        return types.SimpleNamespace(scores=scores, system_score=sum(scores) / len(scores))


def load_from_checkpoint(checkpoint_path: str) -> CometModel:
    """It wants a file, and beside that file's folder the settings of the model."""
    path = Path(checkpoint_path)
    assert path.is_file() and (path.parents[1] / "hparams.yaml").is_file()
    return CometModel()


@pytest.fixture
def comet_model(tmp_path: Path) -> Path:
    folder = tmp_path / "wmt22-comet-da"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.ckpt").touch()
    (folder / "hparams.yaml").touch()
    return folder


@pytest.mark.parametrize(("given", "name"), [("", "wmt22-comet-da"), ("checkpoints/model.ckpt", "model")])
def test_comet(given: str, name: str, comet_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources, translations and references in their places, the mean in per cent, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    module = types.SimpleNamespace(load_from_checkpoint=load_from_checkpoint)
    monkeypatch.setitem(sys.modules, "comet", module)
    result = scoring.comet(["s", "s" * 3], ["m" * 2, "m" * 4], ["r" * 5, "r" * 7], comet_model / given)
    assert result == {"title": "COMET", "score": 63.2, "signature": f"model:{name}"}


# --- command line -----------------------------------------------------------------------------------------------


def command_line(*arguments: object) -> list[str]:
    return list(map(str, arguments))


def test_command_line(tmp_path: Path, references: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, lines in {
        "ref": references,
        "one": noisy(references, 1, 0.3),
        "two": [line.replace("a", "a@@ ", 1).replace("a@@  ", "a ") for line in references],
    }.items():
        # CRLF, and separators of Unicode and C inside a sentence, which end no line
        end = "\r\n" if name == "one" else "\n"
        text = [f"{line} \u2028 \x85 \x0b end" for line in lines]
        (tmp_path / name).write_bytes("".join(line + end for line in text).encode())
    arguments = command_line("--ref", tmp_path / "ref", "--hyp", tmp_path / "one", "--hyp2", tmp_path / "two")
    arguments += command_line("--metric-set=iwslt14", "--samples=40", "--remove-bpe", "--json", tmp_path / "s.json")
    assert scoring.main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("lower-cased tokenized BLEU") == 3 and output.count("chrF2") == 3
    assert "200 sentences" in output and "p = 0.0244  (sacrebleu --paired-bs" in output
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["hyp2"]["paper"]["score"] > 99 and list(result) == ["hyp", "hyp2", "hyp2 - hyp"]


def test_command_line_names_both_files(tmp_path: Path, project_root: Path) -> None:
    (tmp_path / "hyp.txt").write_text("one\ntwo\n")
    (tmp_path / "ref.txt").write_text("one\n")
    done = subprocess.run(
        [sys.executable, "-m", "recipes.translation.scoring", "--metric-set=wmt14", "--hyp", tmp_path / "hyp.txt",
         "--ref", tmp_path / "ref.txt"],
        cwd=project_root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ref.txt: 1 lines, but" in done.stderr and "hyp.txt: 2" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hyp=nowhere"], "nowhere: cannot be read as UTF-8 text"),
        (["--comet=m.ckpt"], "--comet judges translations by their sources too; give them with --src"),
        (["--samples=10"], "--samples 10: a 95 % interval needs at least 40"),
    ],
)
def test_command_line_refusals(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("one\n")
    base = command_line("--metric-set=wmt14", "--ref", tmp_path / "text", "--hyp", tmp_path / "text")
    assert scoring.main([*base, *arguments]) == 1
    assert message in capsys.readouterr().err


# --- real text --------------------------------------------------------------------------------------------------


def test_newstest2014_tokenizes_without_loss(shared: Path) -> None:
    """The references scored against themselves: detokenized, retokenized, split, and still 100 in every metric."""
    with lzma.open(shared / "data" / "wmt14" / "newstest2014.de.xz", "rt", encoding="utf8", newline="\n") as file:
        lines = file.read().removesuffix("\n").split("\n")[:200]
    scores = score(lines, lines, None, None, "wmt14", samples=40)
    assert [entry["score"] for entry in scores.values()] == [100, 100, 100]


@pytest.mark.parametrize("marked", ["hyp", "ref", "src", "hyp2"])
def test_a_byte_order_mark_is_no_text(marked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal files score 100, whichever of them was saved with a mark."""
    for name in ("hyp", "ref", "src", "hyp2"):
        encoding = "utf-8-sig" if name == marked else "utf-8"
        (tmp_path / name).write_text("The cat sat on a mat .\nIt rained all day .\n", encoding=encoding)
    files = [f"--{name}={tmp_path / name}" for name in ("hyp", "ref", "src", "hyp2")]
    arguments = [*files, "--metric-set=wmt14", "--samples=40", f"--json={tmp_path / 's.json'}"]
    assert scoring.main(arguments) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert {entry["score"] for name in ("hyp", "hyp2") for entry in scores[name].values()} == {100.0}
    assert {entry["difference"] for entry in scores["hyp2 - hyp"].values()} == {0.0}


@pytest.mark.parametrize("option", ["hyp", "ref", "hyp2", "src"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings_are_refused(
    option: str, encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "right").write_text("Grün .\n", encoding="utf-8")
    (tmp_path / "other").write_text("Grün .\n", encoding=encoding)
    files = {name: tmp_path / "right" for name in ("hyp", "ref", "hyp2", "src")} | {option: tmp_path / "other"}
    arguments = [f"--{name}={path}" for name, path in files.items()]
    assert scoring.main([*arguments, "--metric-set=wmt14"]) == 1
    assert f"{tmp_path / 'other'}: not UTF-8 after line 0 (" in capsys.readouterr().err
